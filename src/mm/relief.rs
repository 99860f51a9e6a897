//! Relief: when memory runs out, the other CPUs give back what they cache.

use core::sync::atomic::{AtomicBool, Ordering};

use super::{heap_platform, shared};
use crate::arch::clock::Deadline;
use crate::smp::call::{self, Targets, Uses};
use crate::smp::{cpu, lock, online};

/// How long a CPU that needs memory waits for the others, in milliseconds. A CPU answers within
/// microseconds, unless it is off its host core; memory is out then, for all this CPU knows.
const TIMEOUT: u64 = 500;

/// After how long it asks again, in milliseconds: a CPU that was just then using what it should
/// give back has kept it.
const ASK_AGAIN: u64 = 10;

/// Makes the other CPUs give back what they cache, and returns when they have, or when it has
/// taken too long.
pub fn ask_others() {
    let Some(own) = cpu::try_with(|here| here.index()) else {
        return;
    };
    // The others might be waiting for the lock. Memory is out then for who holds it.
    if lock::held().is_some() {
        return;
    }
    heap_platform::relieve();
    // All CPUs meet the end of memory together, and most have nothing left then.
    let has_some = |shared: &cpu::Shared| shared.cache.may_have_blocks();
    if shared::get().cached_frames() == 0
        && !online::cpus().any(|(index, shared)| index != own && has_some(shared))
    {
        return;
    }
    let deadline = Deadline::after_millis(TIMEOUT);
    loop {
        let kept = AtomicBool::new(false);
        let answered = call::insist(Uses::Heap, Targets::Others, TIMEOUT, &|_| {
            if !heap_platform::drain_here() {
                kept.store(true, Ordering::Relaxed);
            }
        });
        // From a CPU that does not answer there is nothing available.
        if answered.is_err() || !kept.into_inner() || deadline.passed() {
            return;
        }
        let ask_again = Deadline::after_millis(ASK_AGAIN);
        while !ask_again.passed() {
            call::serve();
            core::hint::spin_loop();
        }
    }
}
