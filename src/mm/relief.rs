//! Memory reclaim: when memory runs out, the other CPUs drain their caches.

use core::sync::atomic::{AtomicBool, Ordering};

use super::{heap_platform, shared};
use crate::arch::clock::Deadline;
use crate::smp::call::{self, Targets, Uses};
use crate::smp::{cpu, lock, online};

/// How long a CPU that needs memory waits for the others, in milliseconds. A CPU answers within
/// microseconds, unless it is off its host core; this CPU then reports that memory is out.
const TIMEOUT: u64 = 500;

/// After how long it asks again, in milliseconds: a CPU that was just using its cache has not
/// drained it.
const ASK_AGAIN: u64 = 10;

/// Tries again to get memory, once all CPUs have drained their caches; until it has tried, they keep nothing.
pub fn reclaim<T>(retry: impl FnOnce() -> T) -> T {
    let _shortages = (
        heap_platform::begin_shortage(),
        shared::get().frames().begin_shortage(),
    );
    heap_platform::drain_here();
    ask_others();
    // The others could not unmap what they freed.
    heap_platform::MAGAZINES.trim();
    retry()
}

/// Whether a CPU has not answered the last time. Relaxed: it only says how long to wait.
static IS_LATE: AtomicBool = AtomicBool::new(false);

/// Has the other CPUs drain their caches, and waits until they have, or until the timeout. `false`: this CPU can't ask now, or
/// some have not.
pub fn ask_others() -> bool {
    let Some(own) = cpu::try_with(|here| here.index()) else {
        return false;
    };
    // The others might be waiting for the lock. For its holder, memory is out then.
    if lock::held().is_some() {
        return false;
    }
    heap_platform::relieve();
    // All CPUs run out of memory together, and most caches are empty then.
    let has_some = |block: &cpu::Block| block.head().may_have_blocks();
    if !shared::get().may_have_cached_frames()
        && !online::cpus().any(|(index, block)| index != own && has_some(block))
    {
        return true;
    }
    // A CPU that has stopped for good must not keep each request that is refused for so long.
    let timeout = if IS_LATE.load(Ordering::Relaxed) {
        ASK_AGAIN
    } else {
        TIMEOUT
    };
    let deadline = Deadline::after_millis(timeout);
    loop {
        // Relaxed below: the end of the call publishes it.
        let kept = AtomicBool::new(false);
        let answered = call::insist(Uses::Heap, Targets::Others, timeout, &|_| {
            if !heap_platform::drain_here() {
                kept.store(true, Ordering::Relaxed);
            }
        });
        IS_LATE.store(answered.is_err(), Ordering::Relaxed);
        let has_drained = answered.is_ok() && !kept.into_inner();
        // A CPU that does not answer now may have memory later.
        if has_drained || answered.is_err() || deadline.passed() {
            return has_drained;
        }
        let ask_again = Deadline::after_millis(ASK_AGAIN);
        while !ask_again.passed() {
            call::relax();
        }
    }
}
