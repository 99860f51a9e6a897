//! What can happen to the last AP on its way up, on demand, so that the roll call is seen to do
//! without it: `die=`, `fall=` and `late=`, each with the phase after which it happens.

use conquer_once::spin::OnceCell;
use muster_arguments::{Mishap, Step};
use muster_events::Phase;
use muster_percpu::Outcome;

use crate::arch::clock::Deadline;
use crate::arch::idle;
use crate::smp::cpu;

/// How long an AP that is to be late waits for the roll call's end, in milliseconds.
const TIMEOUT: u64 = 60_000;

static ASKED_FOR: OnceCell<(Mishap, Step)> = OnceCell::uninit();

/// Makes it happen to the APs that are released from now on, if anything is asked for.
pub fn set(what: Option<(Mishap, Step)>) {
    if let Some((mishap, step)) = what {
        log::info!("the last AP: {}={}", mishap.name(), step.name());
        ASKED_FOR.init_once(|| (mishap, step));
    }
}

/// Called by AP `index` when it has reported that it has reached `phase`.
pub fn at_phase(index: u32, shared: &cpu::Shared, phase: Phase) {
    let Ok(&(mishap, step)) = ASKED_FOR.try_get() else {
        return;
    };
    if step.name() != phase.name() || index as usize + 1 != cpu::all().len() {
        return;
    }
    match mishap {
        // With interrupts off, as they are until it is at work.
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
