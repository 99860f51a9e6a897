//! Memory on its way from the quarantines to the wrapped heap, for which an allocation waits.

use core::ops::ControlFlow;
use core::sync::atomic::Ordering;

use crate::sync::{AtomicUsize, const_unless_modelled};

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
        if self.blocks > 0 {
            // Counted before the release ends: `obtain` reads the two in the opposite order.
            self.releases.released.fetch_add(1, Ordering::SeqCst);
        }
        self.releases.releasing.fetch_sub(1, Ordering::SeqCst);
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
        self.releasing.fetch_add(1, Ordering::SeqCst);
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
            let before = self.released.load(Ordering::SeqCst);
            if let ControlFlow::Break(answer) = attempt() {
                return answer;
            }
            if flush() > 0 {
                continue;
            }
            // In this order: a release that has ended was counted before.
            while self.releasing.load(Ordering::SeqCst) > 0
                && self.released.load(Ordering::SeqCst) == before
            {
                if !wait() {
                    return None;
                }
            }
            if self.released.load(Ordering::SeqCst) == before {
                return None;
            }
        }
        None
    }
}
