//! Memory on its way from the quarantines to the wrapped heap, for which an allocation waits.

use core::ops::ControlFlow;
use core::sync::atomic::Ordering;

use muster_sync::{AtomicUsize, const_unless_modelled};

/// The number of times that an allocation which finds nothing is retried, while memory comes back.
const ATTEMPTS: usize = 16;

/// The record of which CPUs may have blocks between a quarantine and the wrapped heap: while there are
/// any, the machine is not out of memory.
pub(super) struct Releases {
    /// The number of these CPUs, and how often one had some and gave them back.
    releasing: AtomicUsize,
    released: AtomicUsize,
}

/// An announcement that a CPU may have such blocks, until dropped.
pub(super) struct Releasing<'a> {
    releases: &'a Releases,
    /// The number of blocks that it has given back.
    pub(super) blocks: usize,
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        // Counted before the release ends: `obtain` reads the two in the opposite order.
        self.count();
        // Release, with the Acquire of `obtain`: whoever sees that the release has ended sees it counted.
        self.releases.releasing.fetch_sub(1, Ordering::Release);
    }
}

impl Releasing<'_> {
    fn count(&self) {
        if self.blocks > 0 {
            // Release, with the Acquire of `obtain`: whoever sees it counted finds the blocks in the
            // wrapped heap.
            self.releases.released.fetch_add(1, Ordering::Release);
        }
    }
}

impl Releases {
    const_unless_modelled! {
        pub(super) const fn new() -> Self {
            Self {
                releasing: AtomicUsize::new(0),
                released: AtomicUsize::new(0),
            }
        }
    }

    /// Announces that blocks may be on their way from a quarantine, until the result is dropped.
    pub(super) fn begin(&self) -> Releasing<'_> {
        // Relaxed: the exchange that takes a block out of a quarantine releases this, too, so a CPU that
        // finds the slot empty sees it.
        self.releasing.fetch_add(1, Ordering::Relaxed);
        Releasing {
            releases: self,
            blocks: 0,
        }
    }

    /// Repeats an attempt to get memory, until it breaks off, as long as `flush` gives blocks back from the
    /// quarantines, or other CPUs do. `wait` waits a moment, or returns `false` if that has lasted too
    /// long.
    pub(super) fn obtain<T>(
        &self,
        attempt: impl Fn() -> ControlFlow<Option<T>>,
        flush: impl Fn(),
        mut wait: impl FnMut() -> bool,
    ) -> Option<T> {
        for left in (0..ATTEMPTS).rev() {
            let before = self.released();
            if let ControlFlow::Break(answer) = attempt() {
                return answer;
            }
            flush();
            let now = self.released();
            // What has come back until now, or does next, may be what others have freed since, and not what was under way
            // then. So the last time all of it is waited for.
            let is_over = || left > 0 && self.released() != now;
            // In this order, and with Acquire, as a release that has ended was counted before.
            while self.releasing.load(Ordering::Acquire) > 0 && !is_over() && wait() {}
            if self.released() == before {
                return None;
            }
        }
        match attempt() {
            ControlFlow::Break(answer) => answer,
            ControlFlow::Continue(()) => None,
        }
    }

    fn released(&self) -> usize {
        // Acquire, with the Release of `count`: the next attempt finds the blocks.
        self.released.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::{Cell, RefCell};

    use super::*;

    /// A CPU has memory on its way, while this one flushes what others go on freeing.
    #[test]
    fn what_is_under_way_is_waited_for_although_other_blocks_come_back() {
        let releases = Releases::new();
        // How long it takes the CPU: less than the others' next free, and far more.
        for polls in [1, 10 * ATTEMPTS] {
            let slow = RefCell::new(Some(releases.begin()));
            let flush = || releases.begin().blocks = 1;
            let waited = Cell::new(0_usize);
            let wait = || {
                waited.set(waited.get() + 1);
                if waited.get().is_multiple_of(3) {
                    flush();
                }
                if waited.get() == polls {
                    slow.take();
                }
                true
            };
            let attempt = || match *slow.borrow() {
                Some(_) => ControlFlow::Continue(()),
                None => ControlFlow::Break(Some(5)),
            };
            assert_eq!(releases.obtain(attempt, flush, wait), Some(5));
            assert_eq!(waited.get(), polls);
        }
    }

    #[test]
    fn a_cpu_that_has_stopped_with_memory_under_way_is_not_waited_for_for_ever() {
        let releases = Releases::new();
        let _slow = releases.begin();
        let attempts = Cell::new(0);
        let attempt = || {
            attempts.set(attempts.get() + 1);
            match attempts.get() {
                3 => ControlFlow::Break(Some(5)),
                _ => ControlFlow::Continue(()),
            }
        };
        // Nothing comes back but what it flushes itself, which is reason for another attempt.
        let flush = || releases.begin().blocks = 1;
        assert_eq!(releases.obtain(attempt, flush, || false), Some(5));
        let nothing = || drop(releases.begin());
        attempts.set(3);
        assert_eq!(releases.obtain(attempt, nothing, || false), None::<i32>);
        assert_eq!(attempts.get(), 4);
    }
}
