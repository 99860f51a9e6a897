//! One CPU's measurement: when it ends, and what its operations took.

use crate::histogram::Histogram;
use crate::machine::{Machine, Place};

/// Does and counts one step. A macro, so that the step is part of the loop: of a closure that the
/// meter called, the compiler would make a function, and of a small one not.
macro_rules! step {
    ($meter:ident, $step:expr) => {{
        let looks = $meter.begin();
        let value = $step;
        $meter.finish(looks);
        value
    }};
}
pub(crate) use step;

/// How often the meter looks at the clock, in looks a second.
const LOOKS: u64 = 125_000;

/// The most steps between two looks.
const MAX_STRIDE: u32 = 1024;

/// When a measurement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After this many ticks of the machine's clock.
    Ticks(u64),
    /// After this many steps; not 0.
    Steps(u32),
}

/// What one CPU did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lap {
    /// Steps done.
    pub steps: u64,
    /// When it started, by the machine's clock.
    pub started: u64,
    /// When it ended.
    pub ended: u64,
}

/// Counts steps and sees when time is up.
///
/// In the measured loop that is a counter that runs down to 0. Then comes a look: the clock is read
/// around that one step, which tells how long a step takes and whether time is up, and the next look
/// is set as many steps away as take about 8 µs, 1 to 1024. So whatever the allocator's speed the
/// clock's cost stays small and the end is met.
pub struct Meter<'a> {
    machine: &'a dyn Machine,
    histogram: &'a mut Histogram,
    left: u32,
    stride: u32,
    is_over: bool,
    /// The time that ends it; without one, the first look does.
    until: Option<u64>,
    /// Ticks that two looks should be apart.
    apart: u64,
    /// When the last look ended, and the step of the next one began.
    looked: u64,
    before: u64,
    lap: Lap,
}

impl<'a> Meter<'a> {
    /// Waits for the other CPUs, then starts the clock.
    pub fn start(
        machine: &'a dyn Machine,
        limit: Limit,
        place: Place<'_>,
        histogram: &'a mut Histogram,
    ) -> Self {
        (place.line)();
        let started = machine.ticks();
        let (stride, until) = match limit {
            Limit::Ticks(ticks) => (1, Some(started.saturating_add(ticks))),
            Limit::Steps(steps) => (steps.max(1), None),
        };
        Self {
            machine,
            histogram,
            left: stride,
            stride,
            is_over: false,
            until,
            apart: machine.ticks_per_second() / LOOKS,
            looked: started,
            before: started,
            lap: Lap {
                steps: 0,
                started,
                ended: started,
            },
        }
    }

    /// Returns whether it is time to stop.
    #[inline(always)]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Counts a step that begins. Whether it is one to look at.
    #[inline(always)]
    pub fn begin(&mut self) -> bool {
        self.left = self.left.wrapping_sub(1);
        let looks = self.left == 0;
        if looks {
            self.begin_look();
        }
        looks
    }

    /// Ends a step that [`begin`](Self::begin) began.
    #[inline(always)]
    pub fn finish(&mut self, looks: bool) {
        if looks {
            self.look();
        }
    }

    /// Looks at the clock outside of a step, for one who waits.
    pub fn wait(&mut self) {
        self.is_over |= self
            .until
            .is_some_and(|until| self.machine.ticks() >= until);
        core::hint::spin_loop();
    }

    /// Ends the measurement.
    pub fn end(mut self) -> Lap {
        self.lap.steps += u64::from(self.stride - self.left);
        if self.left != self.stride {
            self.lap.ended = self.machine.ticks();
        }
        self.lap
    }

    #[cold]
    #[inline(never)]
    fn begin_look(&mut self) {
        self.before = self.machine.ticks();
    }

    #[cold]
    #[inline(never)]
    fn look(&mut self) {
        let now = self.machine.ticks();
        self.histogram.count(now.saturating_sub(self.before));
        self.lap.steps += u64::from(self.stride);
        self.lap.ended = now;
        self.is_over |= self.until.is_none_or(|until| now >= until);
        let took = now.saturating_sub(self.looked);
        if took < self.apart {
            self.stride = (self.stride * 2).min(MAX_STRIDE);
        } else if took > 2 * self.apart {
            self.stride = (self.stride / 2).max(1);
        }
        self.looked = now;
        self.left = self.stride;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU64, Ordering};

    /// A machine whose clock is set by hand, at 1 GHz.
    struct Clock(AtomicU64);

    impl Machine for Clock {
        fn cpus(&self) -> usize {
            1
        }
        fn ticks(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
        fn ticks_per_second(&self) -> u64 {
            1_000_000_000
        }
        fn run(&self, _: usize, work: &(dyn Fn(Place<'_>) + Sync)) {
            work(Place {
                cpu: 0,
                line: &|| {},
            });
        }
    }

    fn laps(limit: Limit, ticks_per_step: u64) -> (Lap, Histogram) {
        let clock = Clock(AtomicU64::new(1000));
        let mut histogram = Histogram::default();
        let place = Place {
            cpu: 0,
            line: &|| {},
        };
        let mut meter = Meter::start(&clock, limit, place, &mut histogram);
        while !meter.is_over() {
            step!(meter, clock.0.fetch_add(ticks_per_step, Ordering::Relaxed));
        }
        (meter.end(), histogram)
    }

    #[test]
    fn time_is_met_whatever_a_step_takes() {
        for ticks_per_step in [1, 20, 700, 9_000, 300_000] {
            let (lap, histogram) = laps(Limit::Ticks(1_000_000), ticks_per_step);
            let took = lap.ended - lap.started;
            assert_eq!(took, lap.steps * ticks_per_step);
            let late = (3 * 8_000).max(ticks_per_step);
            assert!((1_000_000..1_000_000 + late).contains(&took), "{took}");
            assert!(histogram.per_mille(500).unwrap() >= ticks_per_step);
        }
    }

    #[test]
    fn steps_are_counted_to_the_last() {
        let (lap, _) = laps(Limit::Steps(12_345), 3);
        assert_eq!((lap.steps, lap.ended - lap.started), (12_345, 3 * 12_345));
    }

    #[test]
    fn steps_since_the_last_look_count() {
        let clock = Clock(AtomicU64::new(0));
        let mut histogram = Histogram::default();
        let place = Place {
            cpu: 0,
            line: &|| {},
        };
        let mut meter = Meter::start(&clock, Limit::Steps(100), place, &mut histogram);
        for _ in 0..7 {
            step!(meter, clock.0.fetch_add(10, Ordering::Relaxed));
        }
        let lap = meter.end();
        assert_eq!((lap.steps, lap.ended), (7, 70));
    }
}
