//! AP fault injection: the last AP halts, faults or is delayed during bring-up, so that tests see
//! the roll call do without it: `ap-halt=`, `ap-fault=` and `ap-delay=`, each with the phase after which it
//! happens.

use conquer_once::spin::OnceCell;
use muster_arguments::{ApFault, Step};
use muster_events::Phase;
use muster_percpu::Outcome;

use crate::arch::clock::Deadline;
use crate::arch::idle;
use crate::smp::cpu;

/// How long a delayed AP waits for the roll call's end, in milliseconds.
const TIMEOUT: u64 = 60_000;

static ASKED_FOR: OnceCell<(ApFault, Step)> = OnceCell::uninit();

/// Sets the fault to inject, if one is asked for. Called before any AP is released.
pub fn set(what: Option<(ApFault, Step)>) {
    if let Some((fault, step)) = what {
        log::info!("the last AP: {}={}", fault.name(), step.name());
        ASKED_FOR.init_once(|| (fault, step));
    }
}

/// Injects the fault if this is the last AP and the phase that is asked for. Called by AP `index`
/// when it has reported that it has reached `phase`.
pub fn at_phase(index: u32, shared: &cpu::Shared, phase: Phase) {
    let Ok(&(fault, step)) = ASKED_FOR.try_get() else {
        return;
    };
    if step.name() != phase.name() || index as usize + 1 != cpu::all().len() {
        return;
    }
    match fault {
        // With interrupts disabled, as they are until it is online.
        ApFault::Halt => idle::halt_for_good(),
        // SAFETY: an invalid opcode, which ends in the handler of its exception.
        ApFault::Fault => unsafe { core::arch::asm!("ud2", options(noreturn)) },
        ApFault::Delay => {
            let deadline = Deadline::after_millis(TIMEOUT);
            while shared.report.admission() == Outcome::Pending && !deadline.passed() {
                core::hint::spin_loop();
            }
        }
    }
}
