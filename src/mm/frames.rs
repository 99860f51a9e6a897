//! Frames through each CPU's cache.

use muster_frames::{RunRequest, RunSearch, SearchStep};
use muster_percpu::cpu_local;

use super::frame_slot::FrameSlot;
use super::shared;
use crate::arch::failpoint;
use crate::boot::owner::{FrameCache, NotFreed, OwnedFrame, OwnedRun, Owner};
use crate::smp::cpu::{self, Cpu};

cpu_local! {
    /// The frames that the CPU has cached, once it has needed some.
    static CACHE: FrameSlot = FrameSlot::new();
}

/// Frees a frame, to this CPU's cache if it has one.
///
/// # Errors
///
/// If the frame was not handed out to its owner.
#[inline]
pub fn free(frame: OwnedFrame) -> Result<(), NotFreed<OwnedFrame>> {
    let mut left = Some(frame);
    with_cache(|cache| {
        left = left
            .take()
            .and_then(|frame| cache.free_quickly(frame).err());
    });
    left.map_or(Ok(()), free_slowly)
}

#[cold]
#[inline(never)]
fn free_slowly(frame: OwnedFrame) -> Result<(), NotFreed<OwnedFrame>> {
    let uncached = |frame| shared::get().give_frame_back(frame);
    give(frame, FrameCache::free, uncached)
}

/// Frees frames to this CPU's cache, or to `otherwise` where none is available.
///
/// # Errors
///
/// The error of the one that was called.
#[inline(always)]
pub fn give<T, E>(
    frames: T,
    cached: impl FnOnce(&mut FrameCache<'static>, T) -> Result<(), E>,
    otherwise: impl FnOnce(T) -> Result<(), E>,
) -> Result<(), E> {
    let mut left = Some(frames);
    let given = with_cache(|cache| match left.take() {
        Some(frames) => cached(cache, frames),
        None => Ok(()),
    });
    match left {
        Some(frames) => otherwise(frames),
        None => given.unwrap_or(Ok(())),
    }
}

/// Allocates a run of frames, through this CPU's cache if it has one. Returns `None` if there is no
/// such run.
pub fn take_run(request: RunRequest, owner: Owner) -> Option<OwnedRun> {
    if failpoint::refuses_frames() {
        return None;
    }
    with_cache(|cache| cache.allocate_run(request, owner))
        .unwrap_or_else(|| shared::get().frames().allocate_run(request, owner))
}

/// Takes a step of a search for a run, through this CPU's cache if it has one.
pub fn search_run(search: &mut RunSearch, owner: Owner) -> SearchStep<OwnedRun> {
    if failpoint::refuses_frames() {
        return SearchStep::NotFree;
    }
    let mut step = None;
    with_cache(|cache| step = Some(cache.search_run(search, owner)));
    step.unwrap_or_else(|| shared::get().frames().search_run(search, owner))
}

/// Adds the next `more` frames to a run, through this CPU's cache if it has one. Returns whether they were free.
pub fn extend_run(run: &mut OwnedRun, more: usize) -> bool {
    if failpoint::refuses_frames() {
        return false;
    }
    with_cache(|cache| cache.extend_run(run, more))
        .unwrap_or_else(|| shared::get().frames().extend_run(run, more))
}

/// Frees a run of frames, through this CPU's cache if it has one.
///
/// # Errors
///
/// If the frames were not handed out to their owner.
pub fn give_run_back(run: OwnedRun) -> Result<(), NotFreed<OwnedRun>> {
    give(run, FrameCache::free_run, |run| {
        shared::get().frames().free_run(run)
    })
}

/// Runs `f` with this CPU's frame cache. Returns `None` where none is available: before the CPU has
/// its block, and in a handler that has interrupted the cache's use.
#[inline(always)]
pub fn with_cache<T>(f: impl FnOnce(&mut FrameCache<'static>) -> T) -> Option<T> {
    Cpu::try_with_own(&CACHE, |cache| cache.with(make, f))?
}

/// Drains this CPU's cache, for the others. Returns `false` if this code has interrupted the
/// cache's use.
pub fn drain() -> bool {
    // Where there is no cache, none must be made for this.
    let drain =
        |cache: &FrameSlot| cache.is_absent() || cache.with(make, FrameCache::drain).is_some();
    Cpu::try_with_own(&CACHE, drain).unwrap_or(true)
}

/// Makes this CPU's cache, if there is none yet. Looks the slot up again: that costs the common case nothing, where
/// its address would take an instruction.
#[cold]
#[inline(never)]
fn make() {
    cpu::try_with(|here| {
        let make = || shared::get().frame_cache(here.index());
        here.get(&CACHE).make(make);
    });
}
