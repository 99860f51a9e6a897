//! The frames that a CPU has at hand.

use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{Ordering, compiler_fence};

use muster_memory::FrameCache;

use crate::{cpu, shared};

/// A CPU's own frame cache, which it gets when it first needs one.
pub struct Frames {
    is_busy: Cell<bool>,
    cache: UnsafeCell<Option<FrameCache<'static>>>,
}

impl Frames {
    /// No frames yet.
    pub const fn new() -> Self {
        Self {
            is_busy: Cell::new(false),
            cache: UnsafeCell::new(None),
        }
    }

    /// Lends the cache. `None` to a handler that has interrupted its own CPU just here, and where
    /// the machine has none.
    #[inline]
    fn with<T>(&self, f: impl FnOnce(&mut FrameCache<'static>) -> T) -> Option<T> {
        // A handler that comes between this look and the store is done before the store, and leaves
        // the flag as it was.
        if self.is_busy.get() {
            return None;
        }
        self.is_busy.set(true);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: this CPU alone gets here (`Local` is reached by no other), and while the flag is
        // set no second time.
        let cache = unsafe { &mut *self.cache.get() };
        if cache.is_none() {
            *cache = shared::get().new_frame_cache();
        }
        let result = cache.as_mut().map(f);
        compiler_fence(Ordering::SeqCst);
        self.is_busy.set(false);
        result
    }
}

/// Lends this CPU's frame cache. `None` where there is none to be had: before the CPU has its
/// block, and to a handler that has interrupted the cache's use.
#[inline]
pub fn with_cache<T>(f: impl FnOnce(&mut FrameCache<'static>) -> T) -> Option<T> {
    cpu::try_with(|here| here.local().frames().with(f))?
}

/// Gives this CPU's frames back, for the others. `false`: this code has interrupted their use.
pub fn drain() -> bool {
    cpu::try_with(|here| {
        let frames = here.local().frames();
        frames.with(FrameCache::drain).is_some() || !frames.is_busy.get()
    })
    .unwrap_or(true)
}
