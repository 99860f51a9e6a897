//! A barrier: CPUs wait at it until all of them have arrived.

use core::fmt;
use core::sync::atomic::Ordering;

use muster_sync::{AtomicUsize, const_unless_modelled};

/// A reusable barrier: it releases its CPUs together once all of them have arrived.
///
/// The caller decides how a CPU waits for the release: it may serve others in the meantime, or give up.
///
/// # Ordering
///
/// Everything that a CPU did before it arrived is visible to every CPU that has seen the release.
///
/// ```
/// use muster_cross_cpu::Barrier;
///
/// let barrier = Barrier::new(2);
/// let first = barrier.arrive();
/// assert!(!first.is_released());
/// let second = barrier.arrive();
/// assert!(first.is_released() && second.is_released());
/// ```
pub struct Barrier {
    cpus: usize,
    waiting: AtomicUsize,
    round: AtomicUsize,
}

/// A CPU's arrival at a barrier, with which it asks for the release.
#[must_use = "the CPU has arrived, but not all have until the barrier is released"]
#[derive(Debug)]
pub struct Arrival<'a> {
    barrier: &'a Barrier,
    round: usize,
}

impl Arrival<'_> {
    /// Returns whether all CPUs have arrived since this arrival, so that the barrier is released.
    pub fn is_released(&self) -> bool {
        // Acquire, with the Release of the last arrival: what all CPUs did before is visible.
        self.barrier.round.load(Ordering::Acquire) != self.round
    }
}

impl Barrier {
    const_unless_modelled! {
        /// Creates a barrier for `cpus` CPUs.
        ///
        /// # Panics
        ///
        /// If `cpus` is 0: no arrival would be the last one, so the barrier would never be released.
        pub const fn new(cpus: usize) -> Self {
            assert!(cpus > 0, "a barrier needs at least one CPU, and got 0");
            Self {
                cpus,
                waiting: AtomicUsize::new(0),
                round: AtomicUsize::new(0),
            }
        }
    }

    /// Returns the number of CPUs that the barrier waits for.
    pub const fn cpus(&self) -> usize {
        self.cpus
    }

    /// Arrives at the barrier. Each of its CPUs, which are always the same, arrives once before the barrier is released; one
    /// that gives up has arrived as well.
    pub fn arrive(&self) -> Arrival<'_> {
        // Acquire, with the Release of the last arrival: the count below starts from its 0.
        let round = self.round.load(Ordering::Acquire);
        // Release: the last arrival, and all that it releases, see what this CPU did before. Acquire: the
        // last arrival has seen what all others did, and passes it on with the new round.
        if self.waiting.fetch_add(1, Ordering::AcqRel) + 1 == self.cpus {
            // No CPU arrives again before it has seen the new round.
            let round = round.wrapping_add(1);
            // Relaxed: the Release of the new round publishes it.
            self.waiting.store(0, Ordering::Relaxed);
            // Release: with `Arrival::is_released`.
            self.round.store(round, Ordering::Release);
        }
        Arrival {
            barrier: self,
            round,
        }
    }

    /// Returns the number of CPUs that have arrived and wait.
    pub fn waiting(&self) -> usize {
        // Relaxed: for messages only, and nothing is read by what it says.
        self.waiting.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Barrier({} of {})", self.waiting(), self.cpus)
    }
}
