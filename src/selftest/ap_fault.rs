//! AP fault injection: the last AP halts, faults or is delayed during bring-up, so that tests see
//! the roll call do without it: `die=`, `fall=` and `late=`, each with the phase after which it
//! happens.

use conquer_once::spin::OnceCell;
use muster_arguments::{Mishap, Step};
use muster_events::Phase;
use muster_percpu::Outcome;

use crate::arch::clock::Deadline;
use crate::arch::idle;
use crate::smp::cpu;

/// How long a delayed AP waits for the roll call's end, in milliseconds.
const TIMEOUT: u64 = 60_000;

static ASKED_FOR: OnceCell<(Mishap, Step)> = OnceCell::uninit();

/// Sets the fault to inject, if one is asked for. Called before any AP is released.
pub fn set(what: Option<(Mishap, Step)>) {
    if let Some((mishap, step)) = what {
        log::info!("the last AP: {}={}", mishap.name(), step.name());
        ASKED_FOR.init_once(|| (mishap, step));
    }
}

/// Injects the fault if this is the last AP and the phase that is asked for. Called by AP `index`
/// when it has reported that it has reached `phase`.
pub fn at_phase(index: u32, shared: &cpu::Shared, phase: Phase) {
    let Ok(&(mishap, step)) = ASKED_FOR.try_get() else {
        return;
    };
    if step.name() != phase.name() || index as usize + 1 != cpu::all().len() {
        return;
    }
    match mishap {
        // With interrupts disabled, as they are until it is online.
        Mishap::Die => idle::halt_for_good(),
        // SAFETY: an invalid opcode, which ends in the handler of its exception.
        Mishap::Fall => unsafe { core::arch::asm!("ud2", options(noreturn)) },
        Mishap::Late => {
            let deadline = Deadline::after_millis(TIMEOUT);
            while shared.report.admission() == Outcome::Pending && !deadline.passed() {
                core::hint::spin_loop();
            }
        }
    }
}
