//! The benchmarks: Muster's heap and frame allocator beside others, on this machine's CPUs.
//!
//! Each of the others lives on an arena of its own, of frames that are taken for it, and Muster's
//! heap and frame allocator on the machine's free frames, as always.

use alloc::alloc::{GlobalAlloc, Layout};
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::ptr::NonNull;

use muster::internals::arch::clock;
use muster::internals::boot::owner::{OwnedFrame, OwnedRun, Owner};
use muster::internals::mm::{frames, heap, heap_memory};
use muster::internals::report::events;
use muster::internals::smp::jobs::TimedBarrier;
use muster::internals::smp::{jobs, online};
use muster_bench::contenders::{self, Arena};
use muster_bench::report::Console;
use muster_bench::{
    BuddyFrames, Contender, FrameSource, FrameUser, Kind, Machine, OnFrames, OnHeap, Options, Place,
};
use muster_events::Event;
use muster_frames::{FRAME_SIZE, Frame, FrameAlign, FrameRun, PhysAddr, PhysRange, RunRequest};
use muster_heap::FrameSearch;

/// Frames of an arena: 64 MiB.
const ARENA: usize = 16 * 1024;

/// The frames that the other frame allocator is measured with, 256 MiB: it only computes with their
/// numbers, so they need not exist.
const FRAMES: (u64, u64) = (0x1000_0000, 0x2000_0000);

/// How long a CPU may take beyond a measurement's time, in milliseconds: to allocate before it and
/// to free after it, with many CPUs on few cores.
const TIMEOUT: u64 = 60_000;

/// The online CPUs.
struct OnlineCpus;

impl Machine for OnlineCpus {
    fn cpus(&self) -> usize {
        online::count()
    }

    fn ticks(&self) -> u64 {
        clock::ticks()
    }

    fn ticks_per_second(&self) -> u64 {
        clock::hz()
    }

    fn run(&self, cpus: usize, work: &(dyn Fn(Place<'_>) + Sync)) {
        let barrier = TimedBarrier::new(cpus, TIMEOUT);
        jobs::all(TIMEOUT, &|cpu| {
            if cpu < cpus {
                work(Place {
                    cpu,
                    line: &|| barrier.wait(),
                });
            }
        });
    }
}

/// The log.
struct Log;

impl Console for Log {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        log::info!("{text}");
    }

    fn progress(&mut self, text: fmt::Arguments<'_>) {
        log::info!("{text}");
    }

    fn emit(&mut self, event: Event<'_>) {
        events::emit(event);
    }
}

/// Contiguous frames, in the HHDM, which are freed when this is dropped.
struct ArenaFrames {
    start: NonNull<u8>,
    count: usize,
}

impl ArenaFrames {
    fn take(count: usize) -> Result<Self, String> {
        // Aligned to a large page, so that arenas differ in nothing but their addresses.
        let mut start = None;
        heap_memory::search(count, 512, &mut |take_step| {
            start = loop {
                match take_step() {
                    FrameSearch::Found(start) => break Some(start),
                    FrameSearch::Unfinished => {}
                    FrameSearch::NotFree => break None,
                }
            };
        });
        let start = start.ok_or_else(|| {
            format!(
                "too little memory for the benchmarks: no {count} contiguous frames are free; \
                 give the machine 1 GiB"
            )
        })?;
        Ok(Self { start, count })
    }

    /// Returns the frames' bytes.
    ///
    /// # Safety
    ///
    /// Called once, and nothing uses the bytes any more when this is dropped.
    unsafe fn lend(&self) -> Arena {
        let bytes = self.count * FRAME_SIZE as usize;
        // SAFETY: (1) frames taken from the frame allocator have no other user, and the HHDM maps
        // them in all tables; (2) it is called only once, so this is the only reference; (3) by the
        // caller's promise the bytes are not used after this is dropped; (4) the element type allows
        // uninitialised bytes.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr().cast(), bytes) }
    }
}

impl Drop for ArenaFrames {
    fn drop(&mut self) {
        // SAFETY: allocated by `take`, and, by the promise to `lend`, not used any more.
        unsafe { heap_memory::free(self.start, self.count) };
    }
}

/// The kernel's heap as a contender.
struct Magazines;

// SAFETY: all of it is the heap's own.
unsafe impl GlobalAlloc for Magazines {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { heap::magazines().alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { heap::magazines().dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { heap::magazines().realloc(block, layout, new_size) }
    }
}

/// The kernel's frames as a contender: each CPU has its cache.
struct KernelFrames;

/// The owner of the frames during the measurement.
const OWNER: Owner = Owner::Heap;

impl FrameSource for KernelFrames {
    type User<'a> = Self;

    fn user(&self) -> Option<Self> {
        Some(Self)
    }
}

impl FrameUser for KernelFrames {
    #[inline]
    fn take(&mut self) -> Option<Frame> {
        let mut taken = None;
        frames::with_cache(|cache| taken = cache.allocate(OWNER));
        taken.map(OwnedFrame::into_raw)
    }

    #[inline]
    unsafe fn give(&mut self, frame: Frame) -> bool {
        // SAFETY: it was taken, and not given back since, as the caller promises.
        frames::free(unsafe { OwnedFrame::from_raw(frame, OWNER) }).is_ok()
    }

    fn take_run(&mut self, frames: usize) -> Option<u64> {
        let align = FrameAlign::from_frames(frames as u64)?;
        let run = frames::take_run(RunRequest::new(frames).aligned(align), OWNER)?;
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
            .is_some_and(|run| frames::give_run_back(run).is_ok())
    }
}

/// Runs the benchmarks that are asked for.
///
/// # Errors
///
/// If there is too little memory, or a contender could not be run.
pub fn run(options: &Options) -> Result<(), String> {
    // Dropped in reverse: the allocators before what they live on.
    let arena = || ArenaFrames::take(ARENA);
    let arenas = [arena()?, arena()?, arena()?, arena()?, arena()?];
    // SAFETY: each is lent once, below, to allocators that are dropped before `arenas`.
    let [a, b, c, d, e] = arenas.each_ref().map(|arena| unsafe { arena.lend() });
    let linked_list = OnHeap::new("linked_list", Kind::Kernel, contenders::linked_list(a));
    let talc = OnHeap::new("talc", Kind::Kernel, contenders::talc(b));
    let buddy_system = OnHeap::new("buddy_system", Kind::Kernel, contenders::buddy_system(c));
    let rlsf = OnHeap::new("rlsf", Kind::Kernel, contenders::rlsf(d));
    let good_memory = OnHeap::new("good_memory", Kind::Kernel, contenders::good_memory(e));
    let muster = OnHeap::new("muster", Kind::Muster, Magazines);

    let numbers = (FRAMES.0 / FRAME_SIZE) as usize..(FRAMES.1 / FRAME_SIZE) as usize;
    let buddy_frames = OnFrames::new("buddy_system", Kind::Kernel, BuddyFrames::new(numbers));
    let muster_frames = OnFrames::new("muster", Kind::Muster, KernelFrames);

    let all: [&dyn Contender; 8] = [
        &linked_list,
        &talc,
        &buddy_system,
        &rlsf,
        &good_memory,
        &muster,
        &buddy_frames,
        &muster_frames,
    ];
    log::info!(
        "benchmarks on up to {} CPUs, {} rounds of {} ms",
        online::count(),
        options.rounds,
        options.millis
    );
    muster_bench::compare(&OnlineCpus, &all, options, &mut Log).map_err(|error| format!("{error}"))
}
