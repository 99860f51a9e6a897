//! A line that CPUs wait at until all are there.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::sync::{AtomicUsize, mutated, order_unless};

/// A line that so many CPUs come to, and leave together, again and again.
///
/// How a CPU waits there is its own business: it may serve others meanwhile, or give up.
///
/// # Ordering
///
/// Everything a CPU did before it came is visible to all who have seen that all are there.
///
/// ```
/// use muster_percpu::Line;
///
/// let line = Line::new(2);
/// let first = line.come();
/// assert!(!line.is_left(&first));
/// let second = line.come();
/// assert!(line.is_left(&first) && line.is_left(&second));
/// ```
pub struct Line {
    cpus: usize,
    waiting: AtomicUsize,
    round: AtomicUsize,
}

/// That a CPU is at the line.
#[must_use = "until the line is left, not all are there"]
#[derive(Debug)]
pub struct Arrival {
    round: usize,
}

impl Line {
    /// Makes a line for `cpus` CPUs.
    ///
    /// # Panics
    ///
    /// If there are none: no CPU that came would be the last, and it would never be left.
    #[cfg(not(loom))]
    pub const fn new(cpus: usize) -> Self {
        assert!(
            cpus > 0,
            "a line is for one CPU at least, and this one for 0"
        );
        Self {
            cpus,
            waiting: AtomicUsize::new(0),
            round: AtomicUsize::new(0),
        }
    }

    /// Makes a line for `cpus` CPUs.
    #[cfg(loom)]
    pub fn new(cpus: usize) -> Self {
        assert!(
            cpus > 0,
            "a line is for one CPU at least, and this one for 0"
        );
        Self {
            cpus,
            waiting: AtomicUsize::new(0),
            round: AtomicUsize::new(0),
        }
    }

    /// How many CPUs it takes.
    pub const fn cpus(&self) -> usize {
        self.cpus
    }

    /// Comes to the line. Each CPU comes once before the line is left.
    pub fn come(&self) -> Arrival {
        let round = self.round.load(Ordering::Acquire);
        let order = order_unless(
            "what a CPU did before it came is not published",
            Ordering::AcqRel,
        );
        if self.waiting.fetch_add(1, order) + 1 == self.cpus {
            // Nobody comes again before it has seen the new round.
            let round = round.wrapping_add(1);
            if mutated("a line is left before it can be come to again") {
                self.round.store(round, Ordering::Release);
            }
            self.waiting.store(0, Ordering::Relaxed);
            self.round.store(round, Ordering::Release);
        }
        Arrival { round }
    }

    /// Whether all were there, and the line is left.
    pub fn is_left(&self, arrival: &Arrival) -> bool {
        let order = order_unless(
            "a line is left without a look at what was done before",
            Ordering::Acquire,
        );
        self.round.load(order) != arrival.round
    }

    /// How many are there and wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line({} of {})", self.waiting(), self.cpus)
    }
}
