//! Steps and breakpoints: what happens if an interrupt comes just before this instruction?

use core::arch::asm;

use muster_percpu::{InterruptSafe, LocalWord, cpu_local};
use x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr7};

use super::trap::{Frame, Heap};

/// Bit 8 of RFLAGS: the CPU traps after every instruction (Intel SDM vol. 1, 3.4.3.3).
const TRAP_FLAG: u64 = 1 << 8;

/// Bit 16 of RFLAGS: the next instruction runs even if there is a breakpoint at it (Intel SDM vol. 3B,
/// 17.3.1.1).
const RESUME_FLAG: u64 = 1 << 16;

/// DR7 with the breakpoint of DR0 on, for the instruction at its address, and with none (Intel SDM
/// vol. 3B, 17.2.4: L0, R/W0 and LEN0; bit 10 is always set).
const BREAK_AT_DR0: u64 = 1 << 10 | 1;
const BREAK_NOWHERE: u64 = 1 << 10;

/// A closure that runs at a step, and one that is stepped through.
pub type StepHandler<'a> = &'a dyn Fn();

cpu_local! {
    /// The CPU's stepper.
    pub static STEPPER: Stepper = Stepper::new();
}

/// The work that a CPU single-steps through.
pub struct Stepper {
    /// Traps until the handler's turn. 0: it is past, or there is none.
    countdown: LocalWord<u64>,
    traps: LocalWord<u64>,
    /// A reference to a reference, as one to a closure is two words.
    handler: LocalWord<Option<&'static StepHandler<'static>>>,
}

// SAFETY: it is part of one CPU's own state and holds a handler only while that CPU is in `run`;
// so no handler ever gets to another CPU.
unsafe impl Send for Stepper {}

// SAFETY: each field is a `LocalWord`, so a handler at any instruction finds it as it was or as it is. A handler that steps
// in between takes the stepper away from the code that it interrupted, which then counts too few traps.
unsafe impl InterruptSafe for Stepper {}

impl Stepper {
    /// Creates a stepper that is not in use.
    pub const fn new() -> Self {
        Self {
            countdown: LocalWord::new(0),
            traps: LocalWord::new(0),
            handler: LocalWord::new(None),
        }
    }

    /// Runs `work` with a trap after each instruction; the one before instruction `at`, counted from 1,
    /// runs `handler`, and the rest is run without. With 0, there are traps only.
    ///
    /// Returns how many traps there were: one for each instruction of `work`, and some before and after
    /// it, always as many.
    pub fn run(&self, at: u64, handler: StepHandler<'_>, work: StepHandler<'_>) -> u64 {
        // SAFETY: only the lifetime changes, and the handler is forgotten before this returns.
        self.handler.set(Some(unsafe {
            core::mem::transmute::<&StepHandler<'_>, &'static StepHandler<'static>>(&handler)
        }));
        self.traps.set(0);
        self.countdown.set(at);
        // SAFETY: sets the trap flag by way of the stack; the handler of the trap is there since
        // the first IDT was, and changes no register.
        unsafe {
            asm!("pushfq", "or qword ptr [rsp], {TRAP_FLAG}", "popfq", TRAP_FLAG = const TRAP_FLAG)
        };
        work();
        // SAFETY: as above, the other way round.
        unsafe {
            asm!("pushfq", "and qword ptr [rsp], ~{TRAP_FLAG}", "popfq", TRAP_FLAG = const TRAP_FLAG)
        };
        self.handler.set(None);
        self.traps.get()
    }

    /// Runs `work`, and before the instruction at `address`, the first time that this CPU comes there,
    /// `handler`. Unlike a step, a breakpoint comes right after `sti`, too: QEMU's translator and some
    /// CPUs do not trap after it.
    ///
    /// Returns whether the CPU came there.
    pub fn before(&self, address: u64, handler: StepHandler<'_>, work: StepHandler<'_>) -> bool {
        // SAFETY: only the lifetime changes, and the handler is forgotten before this returns.
        self.handler.set(Some(unsafe {
            core::mem::transmute::<&StepHandler<'_>, &'static StepHandler<'static>>(&handler)
        }));
        self.traps.set(0);
        self.countdown.set(1);
        Dr0::write(address);
        Dr7::write_raw(BREAK_AT_DR0);
        work();
        Dr7::write_raw(BREAK_NOWHERE);
        self.handler.set(None);
        self.traps.get() > 0
    }

    /// Handles a debug exception. Returns `None` if this CPU is not stepping.
    pub fn trapped(&self, frame: &mut Frame) -> Option<Heap> {
        let handler = self.handler.get()?;
        self.traps.set(self.traps.get() + 1);
        if let Some(left) = self.countdown.get().checked_sub(1) {
            self.countdown.set(left);
            if left == 0 {
                handler();
                frame.rflags &= !TRAP_FLAG;
                frame.rflags |= RESUME_FLAG;
                return Some(Heap::MayBeUsed);
            }
        }
        // A sequence that began again at each step would never end.
        Some(Heap::Untouched)
    }
}
