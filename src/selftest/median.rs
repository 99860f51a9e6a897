//! How long something takes: the median of so many times, for not too long.

use core::fmt;

use muster_events::{Cost, Measured};

use crate::arch::clock::{self, Deadline};
use crate::report::events;

/// Rounds of a measurement.
const ROUNDS: usize = 301;

/// How long one may take, in milliseconds.
const MILLIS: u64 = 200;

/// A time and how often it was taken.
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
    /// Tells programs that this is what something costs, with so many other CPUs.
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
        // Host CPUs that are too few make it milliseconds.
        let (unit, name) = match self.nanos {
            ..10_000_000 => (1000, "us"),
            _ => (1_000_000, "ms"),
        };
        let (whole, tenths) = (self.nanos / unit, self.nanos / (unit / 10) % 10);
        write!(f, "{whole}.{tenths} {name}, median of {}", self.rounds)
    }
}
