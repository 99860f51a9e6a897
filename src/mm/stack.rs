//! Stacks that come and go.

use core::ptr::NonNull;

use muster_paging::VirtAddr;

use super::mapping::{Mapping, MappingError};
use crate::boot::stack::{Extent, paint};

/// A stack for some work, with a guard page on both sides, which is unmapped when this is dropped.
#[derive(Debug)]
pub struct Stack {
    memory: Mapping,
}

impl Stack {
    /// Maps a stack of at least `bytes` bytes. To be made and dropped where a [`Mapping`] may be.
    ///
    /// # Errors
    ///
    /// [`MappingError`]; nothing is mapped then.
    pub fn new(bytes: u64) -> Result<Self, MappingError> {
        let stack = Self {
            memory: Mapping::memory(bytes)?,
        };
        if let Some(memory) = NonNull::new(stack.memory.start().cast()) {
            // SAFETY: writable memory of this length, just mapped, in whole pages.
            unsafe { paint(memory, stack.memory.length()) };
        }
        Ok(stack)
    }

    /// Returns its addresses.
    pub fn extent(&self) -> Extent {
        let bottom = VirtAddr::from_ptr(self.memory.start());
        Extent {
            name: "stack of its own",
            bottom,
            top: bottom + self.memory.length(),
        }
    }

    /// Runs `work` on it, and returns to the old stack. Interrupts in between use it as well.
    pub fn run(&mut self, work: impl FnOnce()) {
        let mut work = Some(work);
        call_on(self.extent().top.get(), &mut work);
    }

    /// Returns the peak use of it, in bytes.
    pub fn peak_used(&self) -> u64 {
        // SAFETY: it is mapped for as long as this lives.
        unsafe { self.extent().peak_used() }
    }
}

/// Takes `work` and runs it on the stack that ends at `top`, which is mapped, the caller's alone, and
/// in whole pages.
fn call_on<F: FnOnce()>(top: u64, work: &mut Option<F>) {
    extern "C" fn enter<F: FnOnce()>(work: &mut Option<F>) {
        if let Some(work) = work.take() {
            work();
        }
    }
    let enter: extern "C" fn(&mut Option<F>) = enter;
    // SAFETY: (1) the stack is as described, and `call` pushes 8 bytes below a multiple of 16, as
    // the ABI has it; (2) the old stack pointer is kept where `enter` leaves it, in a register that
    // is the callee's to save, and put back; nothing unwinds (panics end the run); (3) all that a
    // function may change is given as changed, and the flags are whatever the ABI makes them.
    unsafe {
        core::arch::asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {enter}",
            "mov rsp, r12",
            top = in(reg) top,
            enter = in(reg) enter,
            in("rdi") work,
            out("r12") _,
            clobber_abi("C"),
        );
    }
}
