//! One measurement: a workload on some CPUs, and what it needs of memory.

use alloc::boxed::Box;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use spin::Mutex;

use crate::histogram::Histogram;
use crate::machine::{Machine, Place};
use crate::meter::{Lap, Limit, Meter};
use crate::random::Random;

/// The most blocks, or frames, that a workload holds on each CPU.
pub(crate) const HELD: usize = 1024;

/// Blocks in each of larson's baskets.
pub(crate) const BASKET: usize = 500;

/// Blocks on the shelf that all CPUs take from and put on, if there are not more CPUs.
pub(crate) const SHELF: usize = 160;

/// A block of an allocator's, or none if it is null.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) start: *mut u8,
    pub(crate) size: usize,
}

impl Block {
    pub(crate) const NONE: Self = Self {
        start: ptr::null_mut(),
        size: 0,
    };
}

// SAFETY: a block is its holder's alone, and the contenders take it back on any CPU.
unsafe impl Send for Block {}

/// Two cache lines, which processors fetch together, for one CPU's writes.
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

/// Blocks that CPUs hand to one another all at once.
pub(crate) type Basket = Padded<Mutex<Box<[Block]>>>;

/// All memory that the benchmarks themselves use while they measure. It is allocated once, before.
pub struct Room {
    states: Box<[Padded<Mutex<WorkerState>>]>,
    baskets: Box<[Basket]>,
    shelf: Box<[AtomicPtr<u8>]>,
    rings: Box<[Ring]>,
}

/// One CPU's own memory and results.
struct WorkerState {
    histogram: Histogram,
    blocks: Box<[Block]>,
    frames: Box<[u64]>,
    lap: Lap,
    failures: u64,
}

impl Room {
    /// Allocates the memory for this number of CPUs.
    pub fn new(cpus: usize) -> Self {
        let state = |_| {
            Padded(Mutex::new(WorkerState {
                histogram: Histogram::default(),
                blocks: (0..HELD).map(|_| Block::NONE).collect(),
                frames: (0..HELD).map(|_| 0).collect(),
                lap: Lap::default(),
                failures: 0,
            }))
        };
        let basket = |_| Padded(Mutex::new((0..BASKET).map(|_| Block::NONE).collect()));
        Self {
            states: (0..cpus).map(state).collect(),
            baskets: (0..2 * cpus).map(basket).collect(),
            shelf: (0..SHELF.max(cpus)).map(|_| AtomicPtr::default()).collect(),
            rings: (0..cpus.div_ceil(2)).map(|_| Ring::new()).collect(),
        }
    }
}

/// The common part of all measurements of a comparison.
#[derive(Clone, Copy)]
pub struct Course<'a> {
    /// What they run on.
    pub machine: &'a dyn Machine,
    /// The memory for it.
    pub room: &'a Room,
    /// On how many CPUs; at most as many as there is room for.
    pub cpus: usize,
    /// When each ends.
    pub limit: Limit,
}

/// The result of one measurement.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Steps of all CPUs, each divided by the time it took, in thousandths a second.
    pub millisteps_per_second: u64,
    /// Steps of all CPUs.
    pub steps: u64,
    /// Ticks from the start to the end of the last CPU.
    pub ticks: u64,
    /// What steps took.
    pub histogram: Histogram,
    /// Allocations answered with null.
    pub failures: u64,
    /// The steps a second of the CPU that did the fewest, to those of the one that did the most, in
    /// thousandths; `None` if one did none.
    pub fairness: Option<u64>,
}

/// One CPU's part of a measurement.
pub(crate) struct Worker<'a> {
    pub(crate) course: Course<'a>,
    pub(crate) place: Place<'a>,
    pub(crate) random: Random,
    pub(crate) blocks: &'a mut [Block],
    pub(crate) frames: &'a mut [u64],
    histogram: &'a mut Histogram,
}

impl<'a> Worker<'a> {
    /// Waits for the other CPUs, and starts to measure. Returns the meter and the memory of the
    /// loop.
    pub(crate) fn start(&mut self) -> (Meter<'_>, &mut [Block], &mut [u64], &mut Random) {
        let course = self.course;
        let meter = Meter::start(course.machine, course.limit, self.place, self.histogram);
        (meter, self.blocks, self.frames, &mut self.random)
    }

    pub(crate) fn baskets(&self) -> &'a [Basket] {
        let baskets = &self.course.room.baskets;
        baskets.get(..2 * self.course.cpus).unwrap_or(baskets)
    }

    pub(crate) fn shelf(&self) -> &'a [AtomicPtr<u8>] {
        &self.course.room.shelf
    }

    /// Returns the ring of this pair of CPUs.
    pub(crate) fn ring(&self) -> Option<&'a Ring> {
        self.course.room.rings.get(self.place.cpu / 2)
    }
}

impl Course<'_> {
    /// Runs `work` on each CPU, which returns its lap and its failures.
    pub(crate) fn measure(&self, work: &(dyn Fn(&mut Worker<'_>) -> (Lap, u64) + Sync)) -> Score {
        self.machine.run(self.cpus, &|place| {
            let Some(state) = self.room.states.get(place.cpu) else {
                return;
            };
            let state = &mut *state.0.lock();
            state.histogram.clear();
            let mut worker = Worker {
                course: *self,
                place,
                random: Random::new(place.cpu),
                blocks: &mut state.blocks,
                frames: &mut state.frames,
                histogram: &mut state.histogram,
            };
            (state.lap, state.failures) = work(&mut worker);
        });
        self.sum()
    }

    fn sum(&self) -> Score {
        let states = || {
            self.room
                .states
                .iter()
                .take(self.cpus)
                .map(|state| state.0.lock())
        };
        let started = states().map(|state| state.lap.started).min().unwrap_or(0);
        let mut score = Score::default();
        let (mut fewest, mut most) = (u64::MAX, 0);
        for state in states() {
            let ticks = state.lap.ended.saturating_sub(started);
            let rate =
                u128::from(state.lap.steps) * 1000 * u128::from(self.machine.ticks_per_second())
                    / u128::from(ticks.max(1));
            let rate = u64::try_from(rate).unwrap_or(u64::MAX / 1024);
            score.millisteps_per_second += rate;
            (fewest, most) = (fewest.min(rate), most.max(rate));
            score.steps += state.lap.steps;
            score.ticks = score.ticks.max(ticks);
            score.histogram.add(&state.histogram);
            score.failures += state.failures;
        }
        score.fairness = (fewest > 0)
            .then(|| (u128::from(fewest) * 1000).checked_div(u128::from(most)))
            .flatten()
            .map(|thousandths| thousandths as u64);
        score
    }
}

/// Blocks on their way from one CPU to another: a queue of one producer and one consumer.
///
/// Each of the two loads its own count Relaxed and the other's with Acquire, and stores its own with Release:
/// so the consumer sees the blocks of a batch, and the producer reuses slots that are read.
pub(crate) struct Ring {
    slots: Box<[AtomicPtr<u8>]>,
    published: Padded<AtomicUsize>,
    taken: Padded<AtomicUsize>,
    is_done: AtomicBool,
}

impl Ring {
    const SIZE: usize = 4096;

    /// Blocks that become visible to the other CPU at once.
    pub(crate) const BATCH: usize = 64;

    fn new() -> Self {
        Self {
            slots: (0..Self::SIZE).map(|_| AtomicPtr::default()).collect(),
            published: Padded(AtomicUsize::new(0)),
            taken: Padded(AtomicUsize::new(0)),
            is_done: AtomicBool::new(false),
        }
    }

    /// Makes the ring as new. Before either CPU uses it.
    pub(crate) fn reset(&self) {
        // Relaxed: the barrier before the measurement publishes it.
        self.published.0.store(0, Ordering::Relaxed);
        self.taken.0.store(0, Ordering::Relaxed);
        self.is_done.store(false, Ordering::Relaxed);
    }

    /// Returns whether there is room for a batch.
    pub(crate) fn has_room(&self) -> bool {
        let taken = self.taken.0.load(Ordering::Acquire);
        self.published.0.load(Ordering::Relaxed) - taken + Self::BATCH <= Self::SIZE
    }

    /// Publishes a batch, for which there is room.
    pub(crate) fn put(&self, mut block: impl FnMut() -> *mut u8) {
        let published = self.published.0.load(Ordering::Relaxed);
        let slots = self.slots.iter().skip(published % Self::SIZE);
        slots
            .take(Self::BATCH)
            .for_each(|slot| slot.store(block(), Ordering::Relaxed));
        (self.published.0).store(published + Self::BATCH, Ordering::Release);
    }

    /// Takes the oldest batch, if there is one.
    pub(crate) fn take(&self, mut block: impl FnMut(*mut u8)) -> bool {
        let taken = self.taken.0.load(Ordering::Relaxed);
        if self.published.0.load(Ordering::Acquire) == taken {
            return false;
        }
        let slots = self.slots.iter().skip(taken % Self::SIZE);
        slots
            .take(Self::BATCH)
            .for_each(|slot| block(slot.load(Ordering::Relaxed)));
        self.taken.0.store(taken + Self::BATCH, Ordering::Release);
        true
    }

    /// Says that no more batches come.
    pub(crate) fn finish(&self) {
        self.is_done.store(true, Ordering::Release);
    }

    /// Returns whether no more batches come but those that are there.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }
}

// Batches neither overlap nor reach beyond the end.
const _: () = assert!(Ring::SIZE.is_multiple_of(Ring::BATCH));
