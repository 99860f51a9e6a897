//! The cell of a CPU's own frame cache, which is made when the CPU first needs one.

use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{Ordering, compiler_fence};

use muster_percpu::InterruptSafe;

use crate::boot::owner::FrameCache;

/// There is no cache yet.
const ABSENT: u8 = 0;
/// The cache is there and not in use.
const READY: u8 = 1;
/// Code on this CPU uses the cache, or is making it.
const BUSY: u8 = 2;

/// A CPU's own frame cache, which it gets when it first needs one.
///
/// What `muster_percpu::LocalCell` does for an `Option`, with one state for both: two instructions less for each
/// use, of some twenty.
///
/// The fences keep the compiler from moving an access to the cache out of the time in which the state is
/// [`BUSY`]. They are the compiler's alone: only handlers of the same CPU come in between.
pub struct FrameSlot {
    /// A `Cell`, and no `LocalWord`, which costs two instructions of some twenty: it is a byte, of which there is no part
    /// to be accessed alone, and what the compiler must neither leave out nor repeat has a fence beside it.
    state: Cell<u8>,
    cache: UnsafeCell<Option<FrameCache<'static>>>,
}

// SAFETY: the cache is lent to one user at a time. A handler that comes before the state is `BUSY` is done before it
// is: it leaves a cache as it was, or has made it. One that comes later is refused.
unsafe impl InterruptSafe for FrameSlot {}

impl FrameSlot {
    /// Creates a cell without a cache.
    pub const fn new() -> Self {
        Self {
            state: Cell::new(ABSENT),
            cache: UnsafeCell::new(None),
        }
    }

    /// Runs `f` with the cache, for which `make` is to call [`make`](Self::make) if there is none yet. Returns
    /// `None` in a handler that has interrupted its own CPU just here, and where no cache can be made.
    #[inline(always)]
    pub fn with<T>(
        &self,
        make: impl FnOnce(),
        f: impl FnOnce(&mut FrameCache<'static>) -> T,
    ) -> Option<T> {
        // A handler that comes between this look and the store is done before the store, and leaves
        // the state as it was.
        if self.state.get() != READY {
            make();
            if self.state.get() != READY {
                return None;
            }
        }
        self.state.set(BUSY);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: this CPU alone gets here (it is not `Sync`), and while the state is
        // `BUSY` no second time; it was `READY`, so there is a cache.
        let result = f(unsafe { (*self.cache.get()).as_mut().unwrap_unchecked() });
        compiler_fence(Ordering::SeqCst);
        self.state.set(READY);
        Some(result)
    }

    /// Makes the cache, if there is none yet.
    pub fn make(&self, make: impl FnOnce() -> Option<FrameCache<'static>>) {
        if self.state.get() == ABSENT {
            self.state.set(BUSY);
            compiler_fence(Ordering::SeqCst);
            let made = make();
            // SAFETY: as in `with`; there is no reference to the cache while the state is `BUSY`.
            let cache = unsafe { &mut *self.cache.get() };
            // If a handler made it just before the state was `BUSY`, `make` can make no other.
            if made.is_some() {
                *cache = made;
            }
            let is_there = cache.is_some();
            compiler_fence(Ordering::SeqCst);
            self.state.set(if is_there { READY } else { ABSENT });
        }
    }

    /// Returns whether there is no cache yet.
    pub fn is_absent(&self) -> bool {
        self.state.get() == ABSENT
    }
}
