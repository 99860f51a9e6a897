//! The duration of something: the median of a number of rounds, within a time limit.

use core::fmt;

use muster::internals::arch::clock::{self, Deadline};
use muster::internals::report::events;
use muster_events::{Cost, Measured};

/// Rounds of a measurement.
const ROUNDS: usize = 301;

/// The time limit of a measurement, in milliseconds.
const MILLIS: u64 = 200;

/// A median duration, and the number of rounds.
#[derive(Debug, Clone, Copy)]
pub struct Median {
    nanos: u64,
    rounds: usize,
}

impl Median {
    /// Runs `work` until it has been timed often enough, or for long enough.
    ///
    /// # Errors
    ///
    /// The first one of `work`.
    pub fn of<E>(mut work: impl FnMut() -> Result<(), E>) -> Result<Self, E> {
        let mut times = heapless::Vec::<u64, ROUNDS>::new();
        let over = Deadline::after_millis(MILLIS);
        while !times.is_full() && (times.is_empty() || !over.passed()) {
            let before = clock::ticks();
            work()?;
            // There is room.
            let _ = times.push(clock::ticks().saturating_sub(before));
        }
        times.sort_unstable();
        let ticks = times.get(times.len() / 2).copied().unwrap_or(0);
        Ok(Self {
            nanos: clock::to_micros(ticks.saturating_mul(1000)),
            rounds: times.len(),
        })
    }
}

impl Median {
    /// Emits it as the cost of something, with this number of other CPUs.
    pub fn emit(&self, of: Measured, others: usize) {
        events::emit(Cost {
            of,
            others: others as u32,
            median_ns: self.nanos,
            rounds: self.rounds as u32,
        });
    }
}

impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // On too few host CPUs it is milliseconds.
        let (unit, name) = match self.nanos {
            ..10_000_000 => (1000, "us"),
            _ => (1_000_000, "ms"),
        };
        let (whole, tenths) = (self.nanos / unit, self.nanos / (unit / 10) % 10);
        write!(f, "{whole}.{tenths} {name}, median of {}", self.rounds)
    }
}
