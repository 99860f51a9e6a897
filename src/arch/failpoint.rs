//! Failpoints: the places in the kernel at which the self-test has it fail, so that a test sees the
//! failure reported, or survived.
//!
//! - [`refuses_frames`]: with `frames-fail=N` the N-th request for frames is refused. Requests that the
//!   benchmarks serve from a CPU's cached frames are not among them: the test would cost them time.
//! - [`ap_reached`]: with `ap-halt=`, `ap-fault=` and `ap-delay=`, each with a phase, the last AP halts, faults or is
//!   delayed when it has reached that phase of its bring-up.
//! - [`overflow_boot_stack`]: with `fault=boot-stack-overflow` the BSP overflows that stack.
//! - [`heap_grows`]: a CPU halts for good while it holds the lock of the heap's growth.
//! - [`trapped`] and [`caught`]: a CPU steps through its own code, and runs into faults on purpose.
//!
//! All of it is there only with the feature `selftest`. Without it each function here is empty, so that
//! the callers need no condition.

pub use injected::*;

#[cfg(feature = "selftest")]
mod injected {
    use core::hint::black_box;
    use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

    use conquer_once::spin::OnceCell;
    use muster_arguments::{ApFault, Arguments, Fault, Step};
    use muster_events::Phase;
    use muster_percpu::{Register, Storage};

    use crate::arch::clock::Deadline;
    use crate::arch::idle;
    pub use crate::arch::probe::caught;
    use crate::arch::step::STEPPER;
    use crate::arch::trap::{Frame, Heap};

    /// How long a delayed AP waits for the roll call's end, in milliseconds.
    const TIMEOUT: u64 = 60_000;

    /// The request for frames that is refused, counted from 1, if one is.
    static REFUSED_REQUEST: OnceCell<u64> = OnceCell::uninit();

    /// The number of requests until the one that is refused, that one included; 0: none is. Relaxed: a
    /// count, by which nothing else is read.
    static REQUESTS_LEFT: AtomicU64 = AtomicU64::new(0);

    /// What happens to the last AP, and the phase after which it does.
    static AP_FAULT: OnceCell<(ApFault, Step)> = OnceCell::uninit();

    /// The CPU that halts for good the next time that it makes the heap grow. Relaxed: a CPU stores its own
    /// index, which no other CPU's is equal to.
    static HALTS_IN_GROWTH: AtomicU32 = AtomicU32::new(u32::MAX);

    /// Whether it has. Release and Acquire: a CPU that sees it sees the lock taken.
    static HAS_HALTED: AtomicBool = AtomicBool::new(false);

    /// Sets the failures that are asked for. Called once, on the BSP, before any AP is released and before
    /// there are frames.
    pub fn set(arguments: &Arguments) {
        if let Some(request) = arguments.selftest.frames_fail {
            REFUSED_REQUEST.init_once(|| request);
            REQUESTS_LEFT.store(request, Ordering::Relaxed);
        }
        if let Some((fault, step)) = arguments.selftest.ap_fault {
            log::info!("the last AP: {}={}", fault.name(), step.name());
            AP_FAULT.init_once(|| (fault, step));
        }
    }

    /// Overflows the boot stack, if that is asked for. Called on it.
    pub fn overflow_boot_stack(arguments: &Arguments) {
        if let Some(fault @ Fault::BootStackOverflow) = arguments.selftest.fault {
            log::info!("injecting {fault:?}, as fault= asks");
            overflow(0);
        }
    }

    /// Recurses until the stack is used up.
    pub fn overflow(depth: u64) {
        let here = black_box([depth; 64]);
        if black_box(true) {
            overflow(depth + 1);
        }
        black_box(here);
    }

    /// Counts a request for frames, and returns whether it is to be refused.
    pub fn refuses_frames() -> bool {
        // In all other runs this load is all that it costs.
        REQUESTS_LEFT.load(Ordering::Relaxed) != 0
            && REQUESTS_LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            }) == Ok(1)
    }

    /// Injects the fault that is asked for, if `phase` is its phase. Called by an AP when it has reported
    /// that it has reached `phase`; a delayed AP waits while its admission `is_pending`.
    pub fn ap_reached(phase: Phase, is_last: bool, is_pending: impl Fn() -> bool) {
        let Ok(&(fault, step)) = AP_FAULT.try_get() else {
            return;
        };
        if step.name() != phase.name() || !is_last {
            return;
        }
        match fault {
            // With interrupts disabled, as they are until it is online.
            ApFault::Halt => idle::halt_for_good(),
            // SAFETY: an invalid opcode, which ends in the handler of its exception.
            ApFault::Fault => unsafe { core::arch::asm!("ud2", options(noreturn)) },
            ApFault::Delay => {
                let deadline = Deadline::after_millis(TIMEOUT);
                while is_pending() && !deadline.passed() {
                    core::hint::spin_loop();
                }
            }
        }
    }

    /// Halts CPU `cpu` for good if [`halt_in_growth`] asks for it. Called by that CPU, with the lock of the
    /// heap's growth.
    pub fn heap_grows(cpu: Option<u32>) {
        if cpu == Some(HALTS_IN_GROWTH.load(Ordering::Relaxed)) {
            HAS_HALTED.store(true, Ordering::Release);
            loop {
                // Interrupts are disabled: an NMI alone ends it, which does not return.
                x86_64::instructions::hlt();
            }
        }
    }

    /// Has CPU `cpu`, which is this one, halt for good the next time that it makes the heap grow.
    pub fn halt_in_growth(cpu: u32) {
        HALTS_IN_GROWTH.store(cpu, Ordering::Relaxed);
    }

    /// Returns whether a CPU has halted in growth, and not just begun to.
    pub fn has_halted_in_growth() -> bool {
        HAS_HALTED.load(Ordering::Acquire)
    }

    /// Handles a debug exception. Returns `None` if this CPU is not stepping.
    pub fn trapped<R: Register>(frame: &mut Frame) -> Option<Heap> {
        Storage::<R>::try_with_own(&STEPPER, |stepper| stepper.trapped(frame))?
    }

    /// Logs whether the request for frames that is refused was made.
    pub fn log_outcome() {
        let Ok(request) = REFUSED_REQUEST.try_get() else {
            return;
        };
        match REQUESTS_LEFT.load(Ordering::Relaxed) {
            0 => log::info!("request {request} for frames was refused, as frames-fail= asks"),
            left => log::info!("request {request} for frames was never made: {left} were missing"),
        }
    }
}

/// The same functions, empty.
#[cfg(not(feature = "selftest"))]
mod injected {
    use muster_arguments::Arguments;
    use muster_events::Phase;
    use muster_percpu::Register;

    use crate::arch::trap::{Frame, Heap};

    #[inline(always)]
    pub fn set(_: &Arguments) {}

    #[inline(always)]
    pub fn overflow_boot_stack(_: &Arguments) {}

    #[inline(always)]
    pub fn refuses_frames() -> bool {
        false
    }

    #[inline(always)]
    pub fn ap_reached(_: Phase, _is_last: bool, _is_pending: impl Fn() -> bool) {}

    #[inline(always)]
    pub fn heap_grows(_: Option<u32>) {}

    #[inline(always)]
    pub fn log_outcome() {}

    #[expect(clippy::extra_unused_type_parameters, reason = "as above")]
    #[inline(always)]
    pub fn trapped<R: Register>(_: &mut Frame) -> Option<Heap> {
        None
    }

    #[inline(always)]
    pub fn caught(_: &mut Frame) -> bool {
        false
    }
}
