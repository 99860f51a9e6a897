//! The workloads on frame allocators, and the frame allocators.

use core::hint::black_box;

use muster_frames::{
    FRAME_SIZE, Frame, FrameAlign, FrameAllocator, FrameCache, FrameRun, OwnedFrame, OwnedRun,
    PhysAddr, PhysRange, RunRequest, SoleOwner,
};
use spin::Mutex;

use super::Workload;
use crate::course::{Course, HELD, Score, Worker};
use crate::meter::{Lap, step};
use crate::random::Random;

/// Frames that go out, then in, in frame-bulk.
const BULK: usize = 512;

/// Runs that frame-fragmentation holds on each CPU.
const RUNS: usize = 512;

/// The number of sizes of its runs, powers of two.
const ORDERS: usize = 4;

/// No frame has this number, so it says that there was none.
const NONE: u64 = 0;

/// A frame allocator for many CPUs.
pub trait FrameSource: Sync {
    /// A CPU as its user.
    type User<'a>: FrameUser
    where
        Self: 'a;

    /// Makes this CPU, on which no other user lives, a user; `None` if that can't be.
    fn user(&self) -> Option<Self::User<'_>>;
}

/// What one CPU can do. Runs are named by the numbers of their first frames.
pub trait FrameUser {
    /// Takes a frame, if there is one.
    fn take(&mut self) -> Option<Frame>;

    /// Gives a frame back; returns `false` if it was refused.
    ///
    /// # Safety
    ///
    /// A user of the same allocator has taken the frame, and none has given it back since.
    unsafe fn give(&mut self, frame: Frame) -> bool;

    /// Takes a run of `frames` frames, a power of two, aligned to that; returns the first.
    fn take_run(&mut self, frames: usize) -> Option<u64>;

    /// Gives a run back; returns `false` if it was refused.
    ///
    /// # Safety
    ///
    /// A user of the same allocator has taken this run of frames, and none has given them back
    /// since.
    unsafe fn give_run(&mut self, first: u64, frames: usize) -> bool;
}

/// Muster's frame allocator, with a cache for each CPU.
pub struct MusterFrames<'a>(pub &'a FrameAllocator);

/// The owner of the frames.
const OWNER: SoleOwner = SoleOwner::Used;

impl FrameSource for MusterFrames<'_> {
    type User<'a>
        = FrameCache<'a>
    where
        Self: 'a;

    fn user(&self) -> Option<FrameCache<'_>> {
        self.0.cache()
    }
}

impl FrameUser for FrameCache<'_> {
    #[inline]
    fn take(&mut self) -> Option<Frame> {
        self.allocate(OWNER).map(OwnedFrame::into_raw)
    }

    #[inline]
    unsafe fn give(&mut self, frame: Frame) -> bool {
        // SAFETY: it was taken, and not given back since, as the caller promises.
        self.free(unsafe { OwnedFrame::from_raw(frame, OWNER) })
            .is_ok()
    }

    fn take_run(&mut self, frames: usize) -> Option<u64> {
        let align = FrameAlign::from_frames(frames as u64)?;
        let run = self.allocate_run(RunRequest::new(frames).aligned(align), OWNER)?;
        Some(run.into_raw().first().number())
    }

    unsafe fn give_run(&mut self, first: u64, frames: usize) -> bool {
        let run = PhysRange::new(
            PhysAddr::new(first * FRAME_SIZE),
            frames as u64 * FRAME_SIZE,
        )
        .and_then(FrameRun::from_range);
        // SAFETY: as for `give`.
        run.map(|run| unsafe { OwnedRun::from_raw(run, OWNER) })
            .is_some_and(|run| self.free_run(run).is_ok())
    }
}

/// `buddy_system_allocator`'s frame allocator behind a spin lock. Its records are `BTreeSet`s, for
/// which it uses the global heap.
pub struct BuddyFrames(Mutex<buddy_system_allocator::FrameAllocator>);

impl BuddyFrames {
    /// Creates one that has the frames with these numbers.
    pub fn new(frames: core::ops::Range<usize>) -> Self {
        let mut buddy = buddy_system_allocator::FrameAllocator::new();
        buddy.add_frame(frames.start, frames.end);
        Self(Mutex::new(buddy))
    }
}

impl FrameSource for BuddyFrames {
    type User<'a>
        = &'a Self
    where
        Self: 'a;

    fn user(&self) -> Option<&Self> {
        Some(self)
    }
}

impl FrameUser for &BuddyFrames {
    #[inline]
    fn take(&mut self) -> Option<Frame> {
        let frame = self.0.lock().alloc(1)?;
        Frame::from_number(frame as u64)
    }

    #[inline]
    unsafe fn give(&mut self, frame: Frame) -> bool {
        self.0.lock().dealloc(frame.number() as usize, 1);
        true
    }

    fn take_run(&mut self, frames: usize) -> Option<u64> {
        self.0.lock().alloc(frames).map(|frame| frame as u64)
    }

    unsafe fn give_run(&mut self, first: u64, frames: usize) -> bool {
        self.0.lock().dealloc(first as usize, frames);
        true
    }
}

/// No frame allocator.
pub(super) struct NoFrames;

impl FrameSource for NoFrames {
    type User<'a> = Self;

    fn user(&self) -> Option<Self> {
        Some(Self)
    }
}

impl FrameUser for NoFrames {
    #[inline(always)]
    fn take(&mut self) -> Option<Frame> {
        Frame::from_number(black_box(1))
    }

    #[inline(always)]
    unsafe fn give(&mut self, _: Frame) -> bool {
        true
    }

    #[inline(always)]
    fn take_run(&mut self, _: usize) -> Option<u64> {
        Some(black_box(1))
    }

    #[inline(always)]
    unsafe fn give_run(&mut self, _: u64, _: usize) -> bool {
        true
    }
}

/// Runs a workload.
pub(super) fn run<F: FrameSource>(frames: &F, workload: Workload, course: &Course<'_>) -> Score {
    course.measure(&|worker| {
        let Some(user) = frames.user() else {
            // The others wait for this CPU; it has failed once and for all.
            let (meter, ..) = worker.start();
            return (meter.end(), 1);
        };
        let mut cpu = Cpu { user, failures: 0 };
        let lap = match workload {
            Workload::FramePair => pair(&mut cpu, worker),
            Workload::FrameRandom => random(&mut cpu, worker),
            Workload::FrameBulk => bulk(&mut cpu, worker),
            Workload::FrameRepeat => repeat(&mut cpu, worker),
            Workload::FrameFragmentation => fragmentation(&mut cpu, worker),
            _ => Lap::default(),
        };
        (lap, cpu.failures)
    })
}

/// A user, and how often it was refused.
struct Cpu<U> {
    user: U,
    failures: u64,
}

impl<U: FrameUser> Cpu<U> {
    #[inline(always)]
    fn take(&mut self) -> u64 {
        match self.user.take() {
            Some(frame) => frame.number(),
            None => self.failed(),
        }
    }

    #[cold]
    fn failed(&mut self) -> u64 {
        self.failures += 1;
        NONE
    }

    /// Gives a frame back, if it is one.
    ///
    /// # Safety
    ///
    /// [`Self::take`] answered this, and it was not given since.
    #[inline(always)]
    unsafe fn give(&mut self, frame: u64) {
        if let Some(frame) = Frame::from_number(frame).filter(|_| frame != NONE)
            // SAFETY: the caller's promise.
            && !unsafe { self.user.give(frame) }
        {
            self.failed();
        }
    }

    fn take_run(&mut self, order: usize) -> u64 {
        let first = self.user.take_run(1 << order);
        self.failures += u64::from(first.is_none());
        // The order fits in beside the number: those of frames are below 2^52.
        first.map_or(NONE, |first| first << 8 | order as u64)
    }

    /// Gives a run back, if it is one.
    ///
    /// # Safety
    ///
    /// [`Self::take_run`] answered this, and it was not given since.
    unsafe fn give_run(&mut self, run: u64) {
        if run != NONE {
            // SAFETY: the caller's promise.
            let given = unsafe { self.user.give_run(run >> 8, 1 << (run & 0xff)) };
            self.failures += u64::from(!given);
        }
    }
}

fn pair<U: FrameUser>(cpu: &mut Cpu<U>, worker: &mut Worker<'_>) -> Lap {
    let (mut meter, ..) = worker.start();
    while !meter.is_over() {
        step!(meter, {
            // SAFETY: it was just taken.
            let given =
                (cpu.user.take()).is_some_and(|frame| unsafe { cpu.user.give(black_box(frame)) });
            if !given {
                cpu.failed();
            }
        });
    }
    meter.end()
}

fn random<U: FrameUser>(cpu: &mut Cpu<U>, worker: &mut Worker<'_>) -> Lap {
    worker.frames.fill_with(|| cpu.take());
    let (mut meter, _, held, random) = worker.start();
    while !meter.is_over() {
        step!(meter, {
            if let Some(frame) = held.get_mut(random.below(HELD)) {
                // SAFETY: it was taken, and another one takes its place.
                unsafe { cpu.give(*frame) };
                *frame = cpu.take();
            }
        });
    }
    let lap = meter.end();
    // SAFETY: each was taken, and none is used again.
    held.iter().for_each(|&frame| unsafe { cpu.give(frame) });
    lap
}

fn bulk<U: FrameUser>(cpu: &mut Cpu<U>, worker: &mut Worker<'_>) -> Lap {
    let (mut meter, _, held, _) = worker.start();
    while !meter.is_over() {
        for frame in held.iter_mut().take(BULK) {
            *frame = step!(meter, cpu.take());
        }
        for &mut frame in held.iter_mut().take(BULK) {
            // SAFETY: it was taken just above, and not given since.
            step!(meter, unsafe { cpu.give(frame) });
        }
    }
    meter.end()
}

fn repeat<U: FrameUser>(cpu: &mut Cpu<U>, worker: &mut Worker<'_>) -> Lap {
    worker.frames.fill_with(|| cpu.take());
    let (mut meter, _, held, _) = worker.start();
    if let Some(frame) = held.last_mut() {
        while !meter.is_over() {
            step!(meter, {
                // SAFETY: it was taken, and another one takes its place.
                unsafe { cpu.give(*frame) };
                *frame = cpu.take();
            });
        }
    }
    let lap = meter.end();
    // SAFETY: each was taken, and none is used again.
    held.iter().for_each(|&frame| unsafe { cpu.give(frame) });
    lap
}

fn fragmentation<U: FrameUser>(cpu: &mut Cpu<U>, worker: &mut Worker<'_>) -> Lap {
    let order = |random: &mut Random| random.below(ORDERS);
    let random = &mut worker.random;
    let runs = worker.frames.iter_mut().take(RUNS);
    runs.for_each(|run| *run = cpu.take_run(order(random)));
    let (mut meter, _, held, random) = worker.start();
    while !meter.is_over() {
        step!(meter, {
            if let Some(run) = held.get_mut(random.below(RUNS)) {
                // SAFETY: it was taken, and another one takes its place.
                unsafe { cpu.give_run(*run) };
                *run = cpu.take_run(order(random));
            }
        });
    }
    let lap = meter.end();
    // SAFETY: each was taken, and none is used again.
    held.iter()
        .take(RUNS)
        .for_each(|&run| unsafe { cpu.give_run(run) });
    lap
}

const _: () = assert!(BULK <= HELD && RUNS <= HELD);
