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
        flush: impl Fn() -> usize,
        mut wait: impl FnMut() -> bool,
    ) -> Option<T> {
        for _ in 0..ATTEMPTS {
            let before = self.released();
            if let ControlFlow::Break(answer) = attempt() {
                return answer;
            }
            if flush() > 0 {
                continue;
            }
            // In this order, and with Acquire, as a release that has ended was counted before.
            while self.releasing.load(Ordering::Acquire) > 0 && self.released() == before {
                if !wait() {
                    return None;
                }
            }
            if self.released() == before {
                return None;
            }
        }
        None
    }

    fn released(&self) -> usize {
        // Acquire, with the Release of `count`: the next attempt finds the blocks.
        self.released.load(Ordering::Acquire)
    }
}
