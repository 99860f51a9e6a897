//! The checked heap, for `heap=checked`: its platform in this kernel.
//!
//! It wraps the magazines. A block that is freed twice, or written where it may not be, ends the run
//! with the CPUs that allocated and freed it, and with the return addresses of both.

use alloc::alloc::Layout;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use conquer_once::spin::OnceCell;
use muster_heap::{Callers, CheckPlatform, CheckedHeap, CheckedTotals, FRAME, Misuse, Quarantine};
use muster_paging::VirtAddr;

use super::{heap_platform, shared};
use crate::boot::{image, stack};
use crate::report::panic;
use crate::smp::cpu;

static HEAP: CheckedHeap<heap_platform::Unchecked, Watch> =
    CheckedHeap::new(heap_platform::Unchecked, Watch);

/// One for each CPU.
static QUARANTINES: OnceCell<&'static [Quarantine]> = OnceCell::uninit();

/// Whether new blocks are checked, and with them all that come from the magazines. Release and Acquire: a
/// CPU that sees it set sees the quarantines.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// Starts to check all blocks that do not come from the list. Called on the BSP, before there are
/// other CPUs and before a block of the magazines has been allocated that will be freed.
pub fn start() {
    QUARANTINES.init_once(|| {
        let quarantines: Vec<_> = cpu::all().map(|_| Quarantine::new()).collect();
        quarantines.leak()
    });
    IS_ON.store(true, Ordering::Release);
}

/// Returns whether blocks are checked.
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Acquire)
}

/// Allocates for these callers. Returns null if memory is out.
pub fn allocate(layout: Layout, callers: Callers) -> *mut u8 {
    HEAP.allocate(layout, callers)
}

/// Frees for these callers.
///
/// # Safety
///
/// As for [`dealloc`](alloc::alloc::dealloc), but for the misuses that the heap finds.
pub unsafe fn free(block: *mut u8, layout: Layout, callers: Callers) {
    // SAFETY: the caller's promise.
    unsafe { HEAP.free(block, layout, callers) };
}

/// Checks all blocks in quarantine and gives them back to the magazines. Returns whether there were
/// any.
pub fn flush() -> bool {
    is_on() && HEAP.flush() > 0
}

/// Returns the heap's totals, if it is on.
pub fn totals() -> Option<CheckedTotals> {
    is_on().then(|| HEAP.totals())
}

/// Returns the layout that a block of this layout takes of the magazines.
#[cfg(feature = "selftest")]
pub fn taken(layout: Layout) -> Layout {
    if is_on() {
        CheckedHeap::<heap_platform::Unchecked, Watch>::taken(layout).unwrap_or(layout)
    } else {
        layout
    }
}

/// Returns the return addresses on the way to the global allocator, from the frame pointer of the
/// calling `function`, in which the allocator ends if it isn't the usual path.
///
/// Beyond the first frame only within the stack that it is on, where anything can be read: code that
/// was compiled without frame pointers may have left anything in the register.
#[inline(never)]
pub fn callers(mut frame_pointer: VirtAddr, function: *const ()) -> Callers {
    let stack = stack::around(frame_pointer);
    let mut up = || {
        let frame = NonNull::new(frame_pointer.as_mut_ptr::<u64>())?;
        // SAFETY: two aligned words of a stack of this CPU's: first those at a frame pointer, then
        // others that lie wholly in the stack.
        let [next, return_address] =
            unsafe { [frame.read(), frame.add(1).read()] }.map(VirtAddr::new);
        let is_above = next > frame_pointer && next.is_multiple_of(8);
        let is_in_stack = stack.is_some_and(|stack| stack.contains(next) && stack.top - next > 8);
        frame_pointer = if is_above && is_in_stack {
            next
        } else {
            VirtAddr::new(0)
        };
        image::is_text(return_address).then_some(return_address.get() as usize)
    };
    // The compiler makes the allocator's last call a jump, so that the function returns to the
    // allocator's caller; or it doesn't.
    let first = up();
    let first = match first {
        Some(address) if called_before(address) == Some(function.addr()) => up(),
        _ => first,
    };
    Callers::new(first.into_iter().chain(core::iter::from_fn(up)))
}

/// Returns the target of the call before this return address, if it is a call by distance.
fn called_before(return_address: usize) -> Option<usize> {
    /// A call by distance (Intel SDM vol. 2A, CALL): an opcode and four bytes.
    const CALL: u8 = 0xe8;
    const LENGTH: usize = 5;

    let instruction = ptr::with_exposed_provenance::<u8>(return_address - LENGTH);
    // SAFETY: the kernel's code, which can be read; a return address is not among its first bytes.
    let (opcode, distance) = unsafe {
        (
            instruction.read(),
            instruction.add(1).cast::<i32>().read_unaligned(),
        )
    };
    (opcode == CALL).then(|| return_address.wrapping_add_signed(distance as isize))
}

/// The checked heap's platform.
struct Watch;

// SAFETY: (1) the frames are the heap's, which the HHDM maps for as long as they are, and longer; (2)
// there is one heap.
unsafe impl CheckPlatform for Watch {
    fn cpu(&self) -> Option<usize> {
        cpu::try_with(|here| here.index() as usize)
    }

    fn quarantine(&self) -> &Quarantine {
        let own = self.cpu().unwrap_or(0);
        match QUARANTINES.try_get().ok().and_then(|all| all.get(own)) {
            Some(quarantine) => quarantine,
            None => panic!("the checked heap is used before it is started"),
        }
    }

    fn each_quarantine(&self, visit: &mut dyn FnMut(&Quarantine)) {
        if let Ok(quarantines) = QUARANTINES.try_get() {
            quarantines.iter().for_each(visit);
        }
    }

    fn may_read(&self, start: usize, length: usize) -> bool {
        shared::get().is_heap_memory(VirtAddr::new(start as u64), length as u64)
    }

    fn capacity(&self) -> usize {
        shared::get().frame_count() * FRAME
    }

    fn report(&self, misuse: &Misuse) -> ! {
        panic::misuse(misuse)
    }
}
