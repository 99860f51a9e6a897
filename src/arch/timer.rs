//! The handler and the period of a CPU's timer.

use core::cell::Cell;

use muster_percpu::InterruptSafe;

/// A closure that runs at each interrupt of a timer.
pub type TimerHandler<'a> = &'a dyn Fn();

/// The handler and the period of one CPU's timer.
pub struct Timer {
    handler: Cell<Option<TimerHandler<'static>>>,
    /// In ticks of the TSC.
    period: Cell<u64>,
}

// SAFETY: it is part of one CPU's own state and holds a handler only while that CPU is in `smp::timer::every`;
// so no handler ever gets to another CPU.
unsafe impl Send for Timer {}

// SAFETY: `smp::timer::every` changes it with interrupts disabled, so that the timer's interrupt, which alone uses it
// in a handler, finds all of it or nothing.
unsafe impl InterruptSafe for Timer {}

impl Timer {
    /// Creates a timer that is not in use.
    pub const fn new() -> Self {
        Self {
            handler: Cell::new(None),
            period: Cell::new(0),
        }
    }

    /// Sets a handler, and its period in ticks of the TSC.
    pub fn lend(&self, handler: TimerHandler<'static>, period: u64) {
        self.period.set(period);
        self.handler.set(Some(handler));
    }

    /// Removes the handler.
    pub fn take_back(&self) {
        self.handler.set(None);
    }

    /// Returns the handler, while there is one.
    pub fn handler(&self) -> Option<TimerHandler<'static>> {
        self.handler.get()
    }

    /// Returns the period, in ticks of the TSC.
    pub fn period(&self) -> u64 {
        self.period.get()
    }
}
