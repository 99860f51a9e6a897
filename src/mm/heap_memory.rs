//! The memory of the heap: frames that the HHDM maps, and the heap's window, which grows.

use core::ptr::NonNull;

use muster_frames::{
    FRAME_SIZE, FrameAlign, FrameRun, PhysAddr, PhysRange, RunRequest, RunSearch, SearchStep,
};
use muster_heap::{FrameSearch, SearchFn};
use muster_paging::{Access, Cache, PageSize, PhysicalMemory, Region, VirtAddr};

use super::frames;
use super::shared::{self, Growing, SharedMemory};
use super::table_frames::TableFrames;
use crate::arch::failpoint;
use crate::boot::owner::{OwnedFrame, OwnedRun, Owner};
use crate::boot::window::HEAP;

/// By how much the heap grows at least, in bytes: one large page.
const HEAP_STEP: u64 = 2 * 1024 * 1024;

/// Frames in a large page.
const LARGE: usize = (HEAP_STEP / FRAME_SIZE) as usize;

/// Allocates `count` contiguous frames for the heap, the first a multiple of `align`, at their
/// address in the HHDM. Returns `None` if there are none where a first step of a [`search`] looks.
pub fn allocate(count: usize, align: usize) -> Option<NonNull<u8>> {
    match step(&mut RunSearch::new(request(count, align)?)) {
        FrameSearch::Found(start) => Some(start),
        FrameSearch::Unfinished | FrameSearch::NotFree => None,
    }
}

/// Searches for what [`allocate`] allocates, in steps.
pub fn search(count: usize, align: usize, search: &mut SearchFn<'_>) {
    if let Some(request) = request(count, align) {
        let mut run = RunSearch::new(request);
        search(&mut || step(&mut run));
    }
}

/// Returns the request for frames of which the addresses in the HHDM are aligned, too; `None`: there are none.
fn request(count: usize, align: usize) -> Option<RunRequest> {
    let align = FrameAlign::from_frames(align as u64)?;
    // A block's address is the HHDM's plus the frame's: both must be aligned.
    let is_aligned = shared::get().hhdm.base.is_multiple_of(align.bytes());
    is_aligned.then(|| RunRequest::new(count).aligned(align))
}

fn step(search: &mut RunSearch) -> FrameSearch {
    match frames::search_run(search, Owner::Heap) {
        // The allocator has only frames that the HHDM maps.
        SearchStep::Found(run) => (shared::get().hhdm)
            .pointer(run.into_raw().start())
            .map_or(FrameSearch::NotFree, FrameSearch::Found),
        SearchStep::Unfinished => FrameSearch::Unfinished,
        SearchStep::NotFree => FrameSearch::NotFree,
    }
}

/// Adds `more` frames to `count` of the heap's, right behind them, if they are free: they follow in the HHDM as well, as
/// all of it lies at one distance from the frames. Returns whether they were.
///
/// # Safety
///
/// [`allocate`] gave `start` for `count` frames, or this added some of them, and they are in use.
pub unsafe fn extend(start: NonNull<u8>, count: usize, more: usize) -> bool {
    let Some(run) = run_at(shared::get(), start, count) else {
        return false;
    };
    // SAFETY: the right was given up for `start`, and is given up again below.
    let mut owned = unsafe { OwnedRun::from_raw(run, Owner::Heap) };
    let is_longer = frames::extend_run(&mut owned, more);
    let _ = owned.into_raw();
    is_longer
}

/// Returns the frames that are seen at an address of the HHDM.
fn run_at(shared: &SharedMemory, start: NonNull<u8>, count: usize) -> Option<FrameRun> {
    let phys = VirtAddr::from_ptr(start.as_ptr()) - shared.hhdm.base;
    let range = PhysRange::new(PhysAddr::new(phys), count as u64 * FRAME_SIZE)?;
    FrameRun::from_range(range)
}

/// Takes heap frames back.
///
/// # Safety
///
/// [`allocate`] gave `start` for `count` frames, and nothing uses
/// them any more.
///
/// # Panics
///
/// If they are not the heap's.
pub unsafe fn free(start: NonNull<u8>, count: usize) {
    let shared = shared::get();
    let run = run_at(shared, start, count);
    // SAFETY: `allocate` gave the right to them up for `start`; the caller promises that
    // nothing uses them, and so gives them once.
    let freed = run.map(|run| unsafe {
        match count {
            1 => frames::free(OwnedFrame::from_raw(run.first(), Owner::Heap)).is_ok(),
            _ => frames::give_run_back(OwnedRun::from_raw(run, Owner::Heap)).is_ok(),
        }
    });
    assert!(
        freed == Some(true),
        "the heap gives back {count} frames at {start:p} that are not its own"
    );
}

/// Maps the next piece of the heap's window, at least `at_least` bytes. Returns `None` if the
/// machine has no more frames. Pages that were mapped in vain then stay for a smaller request.
pub fn grow(at_least: usize) -> Option<NonNull<[u8]>> {
    let shared = shared::get();
    let at_least = (at_least as u64).checked_next_multiple_of(FRAME_SIZE)?;
    let mut growing = shared.growing.lock();
    let wanted = growing
        .heap_given
        .checked_add(at_least.max(HEAP_STEP))?
        .min(HEAP.end);
    // A request that can't be met must not take frames that others could use.
    let reserve = growing.heap_mapped - growing.heap_given;
    if at_least > reserve + shared.frames_free_bytes() || at_least > HEAP.end - growing.heap_given {
        return None;
    }
    while growing.heap_mapped < wanted && map_page(shared, &mut growing).is_some() {}
    let start = growing.heap_given;
    let length = growing.heap_mapped.min(wanted) - start;
    if length < at_least {
        return None;
    }
    growing.heap_given += length;
    let pointer = NonNull::new(start.as_mut_ptr())?;
    Some(NonNull::slice_from_raw_parts(pointer, length as usize))
}

/// Maps the next page of the heap window, a large one if one is available.
fn map_page(shared: &SharedMemory, growing: &mut Growing) -> Option<()> {
    let virt = growing.heap_mapped;
    let source = &shared.frames;
    let run = if virt.is_multiple_of(HEAP_STEP) {
        source.allocate_run(
            RunRequest::new(LARGE).aligned(FrameAlign::MIB_2),
            Owner::Heap,
        )
    } else {
        None
    };
    let run = match run {
        Some(run) => run,
        None if failpoint::refuses_frames() => return None,
        None => source.allocate_run(RunRequest::new(1), Owner::Heap)?,
    };
    let region = Region {
        name: "heap",
        virt,
        phys: run.run().start(),
        length: run.run().range().len(),
        access: Access::ReadWrite,
        cache: Cache::WriteBack,
        largest: PageSize::Size2MiB,
    };
    // SAFETY: the window is the heap's, and nothing is there yet; the run is memory.
    let mapped = unsafe { growing.tables.map(&region, &TableFrames(source)) };
    if mapped.is_err() {
        // Only a frame for a table can be missing: the HHDM maps the run with the same cache type.
        // The run was just taken, so it can be given back; the tables hold no leaf of it, for
        // tables come first.
        let freed = source.free_run(run);
        debug_assert!(freed.is_ok());
        return None;
    }
    // It is never unmapped.
    let _ = run.into_raw();
    growing.heap_mapped += region.length;
    Some(())
}
