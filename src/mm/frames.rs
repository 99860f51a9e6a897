//! The frames that a CPU has at hand.

use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{Ordering, compiler_fence};

use muster_memory::{FrameCache, NotFreed, OwnedFrame, Owner};

use super::shared;
use crate::smp::cpu;

/// There is no cache yet.
const ABSENT: u8 = 0;
/// The cache is there and nobody uses it.
const READY: u8 = 1;
/// Somebody on this CPU uses the cache, or is making it.
const BUSY: u8 = 2;

/// A CPU's own frame cache, which it gets when it first needs one.
pub struct Frames {
    state: Cell<u8>,
    cache: UnsafeCell<Option<FrameCache<'static>>>,
}

impl Frames {
    /// No frames yet.
    pub const fn new() -> Self {
        Self {
            state: Cell::new(ABSENT),
            cache: UnsafeCell::new(None),
        }
    }

    /// Lends the cache. `None` to a handler that has interrupted its own CPU just here, and where
    /// the machine has none.
    #[inline(always)]
    fn with<T>(&self, f: impl FnOnce(&mut FrameCache<'static>) -> T) -> Option<T> {
        // A handler that comes between this look and the store is done before the store, and leaves
        // the state as it was.
        if self.state.get() != READY && !self.make() {
            return None;
        }
        self.state.set(BUSY);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: this CPU alone gets here (`Local` is reached by no other), and while the state is
        // `BUSY` no second time; it was `READY`, so there is a cache.
        let result = f(unsafe { (*self.cache.get()).as_mut().unwrap_unchecked() });
        compiler_fence(Ordering::SeqCst);
        self.state.set(READY);
        Some(result)
    }

    /// Gets the cache, if there is none yet. Says whether it is there to be used.
    #[cold]
    fn make(&self) -> bool {
        if self.state.get() == ABSENT {
            self.state.set(BUSY);
            compiler_fence(Ordering::SeqCst);
            let cache = cpu::try_with(|here| shared::get().frame_cache(here.index())).flatten();
            let is_there = cache.is_some();
            // SAFETY: as in `with`; nobody has a reference to the cache while it is absent.
            unsafe { *self.cache.get() = cache };
            compiler_fence(Ordering::SeqCst);
            self.state.set(if is_there { READY } else { ABSENT });
        }
        self.state.get() == READY
    }
}

/// Takes a frame from this CPU's own, if it has a cache.
#[inline]
pub fn allocate(owner: Owner) -> Option<OwnedFrame> {
    let mut taken = None;
    match with_cache(|cache| taken = cache.allocate(owner)) {
        Some(()) => taken,
        None => allocate_slowly(owner),
    }
}

#[cold]
#[inline(never)]
fn allocate_slowly(owner: Owner) -> Option<OwnedFrame> {
    shared::get().take_frame(owner)
}

/// Gives a frame back to this CPU's own, if it has a cache.
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

/// Gives frames to this CPU's cache, or to `otherwise` where there is none to be had.
///
/// # Errors
///
/// Those of the one that got them.
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

/// Lends this CPU's frame cache. `None` where there is none to be had: before the CPU has its
/// block, and to a handler that has interrupted the cache's use.
#[inline(always)]
pub fn with_cache<T>(f: impl FnOnce(&mut FrameCache<'static>) -> T) -> Option<T> {
    cpu::try_with(|here| here.local().frames().with(f))?
}

/// Gives this CPU's frames back, for the others. `false`: this code has interrupted their use.
pub fn drain() -> bool {
    cpu::try_with(|here| {
        let frames = here.local().frames();
        // Where there is no cache, none shall be made for this.
        frames.state.get() == ABSENT || frames.with(FrameCache::drain).is_some()
    })
    .unwrap_or(true)
}
