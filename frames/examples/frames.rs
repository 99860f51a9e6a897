//! The cost of a frame: this crate's frame allocator, with and without a cache for each CPU, beside the
//! one of `buddy_system_allocator` behind a spin lock. Threads stand for CPUs.
//!
//! `cargo run --release -p muster-frames --example frames`

#![allow(
    clippy::unwrap_used,
    reason = "an allocator that fails has no figures to tell"
)]

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use muster_frames::{
    FRAME_SIZE, Frame, FrameAlign, FrameAllocator, FrameCache, FrameInfo, FrameRun, OwnedFrame,
    OwnedRun, PhysAddr, PhysRange, RunRequest, SoleOwner,
};
use spin::Mutex;

/// 1 GiB, from 1 MiB on. Nothing touches the memory itself, so there need not be any.
const MEMORY: (u64, u64) = (0x10_0000, 0x4010_0000);
const ROUNDS: usize = 7;
const TIME: Duration = Duration::from_millis(60);
const OWNER: SoleOwner = SoleOwner::Used;

/// The operations of one CPU, by the numbers of first frames.
trait Cpu {
    fn take(&mut self, frames: usize) -> u64;
    fn give(&mut self, first: u64, frames: usize);
}

struct Cached<'a>(FrameCache<'a>);
struct Uncached<'a>(&'a FrameAllocator);
struct Buddy<'a>(&'a Mutex<buddy_system_allocator::FrameAllocator>);

fn frame(number: u64) -> OwnedFrame {
    // SAFETY: there is no memory of these frames; and what is given was taken, and not given since.
    unsafe { OwnedFrame::from_raw(Frame::from_number(number).unwrap(), OWNER) }
}

fn request(frames: usize) -> RunRequest {
    RunRequest::new(frames).aligned(FrameAlign::from_frames(frames as u64).unwrap())
}

fn run(first: u64, frames: usize) -> OwnedRun {
    let range = PhysRange::new(
        PhysAddr::new(first * FRAME_SIZE),
        frames as u64 * FRAME_SIZE,
    )
    .unwrap();
    // SAFETY: as for one.
    unsafe { OwnedRun::from_raw(FrameRun::from_range(range).unwrap(), OWNER) }
}

impl Cpu for Cached<'_> {
    fn take(&mut self, frames: usize) -> u64 {
        if frames == 1 {
            return self.0.allocate(OWNER).unwrap().into_raw().number();
        }
        let run = self.0.allocate_run(request(frames), OWNER).unwrap();
        run.into_raw().first().number()
    }

    fn give(&mut self, first: u64, frames: usize) {
        if frames == 1 {
            return self.0.free(frame(first)).unwrap();
        }
        self.0.free_run(run(first, frames)).unwrap();
    }
}

impl Cpu for Uncached<'_> {
    fn take(&mut self, frames: usize) -> u64 {
        let run = self.0.allocate_run(request(frames), OWNER).unwrap();
        run.into_raw().first().number()
    }

    fn give(&mut self, first: u64, frames: usize) {
        self.0.free_run(run(first, frames)).unwrap();
    }
}

impl Cpu for Buddy<'_> {
    fn take(&mut self, frames: usize) -> u64 {
        self.0.lock().alloc(frames).unwrap() as u64
    }

    fn give(&mut self, first: u64, frames: usize) {
        self.0.lock().dealloc(first as usize, frames);
    }
}

#[derive(Clone, Copy)]
enum Workload {
    /// A run of this many frames out, and in again.
    Pair(usize),
    /// One of 2048 frames in, picked at random, and another out.
    Random,
    /// 512 frames out, then in.
    Bulk,
}

impl Workload {
    /// Works until the time is over, and answers the nanoseconds for one out and one in.
    fn nanoseconds_per_pair(self, mut cpu: impl Cpu) -> f64 {
        let mut held = Vec::with_capacity(2048);
        if let Self::Random = self {
            held.extend((0..2048).map(|_| cpu.take(1)));
        }
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut pairs = 0;
        let start = Instant::now();
        while start.elapsed() < TIME {
            for _ in 0..512 {
                match self {
                    Self::Pair(frames) => {
                        let first = cpu.take(frames);
                        cpu.give(first, frames);
                    }
                    Self::Random => {
                        // Marsaglia's xorshift64.
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let place = &mut held[(random % 2048) as usize];
                        cpu.give(*place, 1);
                        *place = cpu.take(1);
                    }
                    Self::Bulk => held.push(cpu.take(1)),
                }
            }
            if let Self::Bulk = self {
                held.drain(..).for_each(|first| cpu.give(first, 1));
            }
            pairs += 512;
        }
        let time = start.elapsed();
        held.drain(..).for_each(|first| cpu.give(first, 1));
        time.as_nanos() as f64 / f64::from(pairs)
    }

    /// Measures the mean of this many CPUs that work at once.
    fn measure<C: Cpu>(self, cpus: usize, cpu: impl Fn() -> C + Sync) -> f64 {
        let barrier = Barrier::new(cpus);
        thread::scope(|scope| {
            let work = || {
                let cpu = cpu();
                barrier.wait();
                self.nanoseconds_per_pair(cpu)
            };
            let threads: Vec<_> = (0..cpus).map(|_| scope.spawn(work)).collect();
            let times = threads.into_iter().map(|thread| thread.join().unwrap());
            times.sum::<f64>() / cpus as f64
        })
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let range = PhysRange::from_bounds(PhysAddr::new(MEMORY.0), PhysAddr::new(MEMORY.1)).unwrap();
    let records = FrameInfo::needed([range].into_iter());
    let records = Box::leak(Box::new_uninit_slice(records));
    // SAFETY: nothing uses the memory of these frames, which is none.
    let frames = unsafe { FrameAllocator::new([range].into_iter(), [].into_iter(), records) };
    let frames = frames.unwrap().with_caches(2).unwrap();
    let buddy = Mutex::new(buddy_system_allocator::FrameAllocator::new());
    buddy
        .lock()
        .add_frame(MEMORY.0 as usize / 4096, MEMORY.1 as usize / 4096);

    println!("ns for a frame or run out and in, median of {ROUNDS} rounds (ratio to buddy)");
    println!("workload          threads      buddy       no cache          cache");
    for (name, workload) in [
        ("pair", Workload::Pair(1)),
        ("random", Workload::Random),
        ("bulk 512", Workload::Bulk),
        ("runs of 2", Workload::Pair(2)),
        ("runs of 8", Workload::Pair(8)),
        ("runs of 512", Workload::Pair(512)),
    ] {
        for cpus in [1, 2] {
            let mut times = [const { Vec::new() }; 3];
            for _ in 0..ROUNDS {
                times[0].push(workload.measure(cpus, || Buddy(&buddy)));
                times[1].push(workload.measure(cpus, || Uncached(&frames)));
                times[2].push(workload.measure(cpus, || Cached(frames.cache().unwrap())));
            }
            let [buddy, uncached, cached] = times.map(median);
            println!(
                "{name:<18} {cpus:>6} {buddy:>10.1} {uncached:>8.1} ({:>4.1}) {cached:>7.1} ({:>5.1})",
                buddy / uncached,
                buddy / cached
            );
        }
    }
    assert_eq!(frames.free_frames(), frames.capacity(), "frames were lost");
}
