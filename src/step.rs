//! Single steps: what happens if an interrupt comes just before this instruction?

use core::arch::asm;
use core::cell::Cell;

use crate::cpu;
use crate::exceptions::{Frame, Heap};

/// Bit 8 of RFLAGS: the CPU traps after every instruction (Intel SDM vol. 1, 3.4.3.3).
const TRAP_FLAG: u64 = 1 << 8;

type Handler<'a> = &'a dyn Fn();

/// What a CPU is stepping through.
pub struct Stepper {
    /// Traps until the handler's turn. 0: it is past, or there is none.
    countdown: Cell<u64>,
    traps: Cell<u64>,
    handler: Cell<Option<Handler<'static>>>,
}

// SAFETY: it is part of one CPU's own state and holds a handler only while that CPU is in `run`;
// so no handler ever gets to another CPU.
unsafe impl Send for Stepper {}

impl Stepper {
    /// Stepping through nothing.
    pub const fn new() -> Self {
        Self {
            countdown: Cell::new(0),
            traps: Cell::new(0),
            handler: Cell::new(None),
        }
    }
}

/// Runs `work` with a trap after each instruction; the one before instruction `at`, counted from 1,
/// runs `handler`, and the rest is run without. With 0, there are traps only.
///
/// Returns how many traps there were: one for each instruction of `work`, and some before and after
/// it, always as many.
pub fn run(at: u64, handler: Handler<'_>, work: Handler<'_>) -> u64 {
    cpu::with(|here| {
        let stepper = here.local().stepper();
        // SAFETY: only the lifetime changes, and the handler is forgotten before this returns.
        stepper.handler.set(Some(unsafe {
            core::mem::transmute::<Handler<'_>, Handler<'static>>(handler)
        }));
        stepper.traps.set(0);
        stepper.countdown.set(at);
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
        stepper.handler.set(None);
        stepper.traps.get()
    })
}

/// Takes a debug exception. `None`: nobody is stepping on this CPU.
pub fn trapped(frame: &mut Frame) -> Option<Heap> {
    cpu::try_with(|here| {
        let stepper = here.local().stepper();
        let handler = stepper.handler.get()?;
        stepper.traps.set(stepper.traps.get() + 1);
        if let Some(left) = stepper.countdown.get().checked_sub(1) {
            stepper.countdown.set(left);
            if left == 0 {
                handler();
                frame.rflags &= !TRAP_FLAG;
                return Some(Heap::MayBeUsed);
            }
        }
        // A sequence that began anew at each step would never end.
        Some(Heap::Untouched)
    })?
}
