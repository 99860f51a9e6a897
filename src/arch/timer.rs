//! The handler and the period of a CPU's timer.

use muster_percpu::{InterruptSafe, LocalWord};

/// A closure that runs at each interrupt of a timer.
pub type TimerHandler<'a> = &'a dyn Fn();

/// The handler and the period of one CPU's timer.
pub struct Timer {
    /// A reference to a reference, as one to a closure is two words.
    handler: LocalWord<Option<&'static TimerHandler<'static>>>,
    /// In ticks of the TSC.
    period: LocalWord<u64>,
    /// Whether it is to end a halt, without a handler.
    ends_halt: LocalWord<bool>,
}

// SAFETY: it is part of one CPU's own state and holds a handler only while that CPU is in `smp::timer::every`;
// so no handler ever gets to another CPU.
unsafe impl Send for Timer {}

// SAFETY: each field is a `LocalWord`, so a handler at any instruction finds it as it was or as it is; and a period and a
// handler of two uses of the timer do no more than run the one after the other.
unsafe impl InterruptSafe for Timer {}

impl Timer {
    /// Creates a timer that is not in use.
    pub const fn new() -> Self {
        Self {
            handler: LocalWord::new(None),
            period: LocalWord::new(0),
            ends_halt: LocalWord::new(false),
        }
    }

    /// Sets a handler, and its period in ticks of the TSC.
    pub fn lend(&self, handler: &'static TimerHandler<'static>, period: u64) {
        self.period.set(period);
        self.handler.set(Some(handler));
    }

    /// Removes the handler.
    pub fn take_back(&self) {
        self.handler.set(None);
    }

    /// Returns the handler, while there is one.
    pub fn handler(&self) -> Option<&'static TimerHandler<'static>> {
        self.handler.get()
    }

    /// Returns whether it is to end a halt.
    pub fn ends_halt(&self) -> bool {
        self.ends_halt.get()
    }

    /// Notes whether it is to end a halt.
    pub fn set_ends_halt(&self, ends_halt: bool) {
        self.ends_halt.set(ends_halt);
    }

    /// Returns the period, in ticks of the TSC.
    pub fn period(&self) -> u64 {
        self.period.get()
    }
}
