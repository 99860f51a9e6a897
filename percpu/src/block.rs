//! The block: what one CPU owns, and the part of it that others may read.

use core::fmt;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicBool, mutated};

/// The first bytes of every [`Block`], at a layout that assembly may rely on.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | the block's own address once a CPU has claimed it, null before |
/// | 8 | 4 | the CPU's index |
///
/// The address at offset 0 is there because a segment-relative load can't yield the segment's base:
/// reading `gs:[0]` is the cheapest way to get from GS base to a pointer.
#[repr(C)]
pub struct Header {
    this: AtomicPtr<Header>,
    index: u32,
}

const _: () = assert!(offset_of!(Header, this) == 0 && offset_of!(Header, index) == 8);

/// What a CPU's register points to before the CPU has a block: its address field is null, so that
/// [`Register::load`](crate::Register::load) yields null instead of whatever lies at address 0.
///
/// [`Storage::reset`](crate::Storage::reset) puts it there.
pub static UNREGISTERED: Header = Header::new(u32::MAX);

impl Header {
    const fn new(index: u32) -> Self {
        Self {
            this: AtomicPtr::new(ptr::null_mut()),
            index,
        }
    }

    /// The address stored at offset 0: this header's own once a CPU has claimed the block, null
    /// before, and always null for [`UNREGISTERED`].
    ///
    /// For a [`Register`](crate::Register) that holds the pointer itself (a thread-local, a
    /// coprocessor register) rather than a segment base to read through.
    pub fn this(&self) -> *const Header {
        // Relaxed: only the CPU that claimed the block reads this, and it wrote it itself.
        self.this.load(Ordering::Relaxed)
    }
}

/// One CPU's memory: `local` for that CPU alone, `shared` for all to read.
///
/// `local` needs no `Sync`: it may be made of [`Cell`](core::cell::Cell)s, since the only way to it
/// is [`Storage::with`](crate::Storage::with) on the CPU that registered the block. What other CPUs
/// may read (or write: an inbox) goes into `shared`, usually as atomics.
///
/// A block is aligned to, and its shared part stands on, a 128-byte boundary: two cache lines,
/// because the spatial prefetcher of Intel's cores fetches lines in pairs (Intel 64 and IA-32
/// Architectures Optimization Reference Manual, "Data Prefetching"). So no two blocks ever share a
/// line, and neither do the two parts of one block.
///
/// A block belongs to the first CPU that registers it, for good.
#[repr(C, align(128))]
pub struct Block<L, S> {
    header: Header,
    claimed: AtomicBool,
    local: L,
    shared: CachePadded<S>,
}

// SAFETY: (1) `local` can be reached only through `Here`, which exists only on the CPU that claimed
// this block, and a block is claimed at most once; so `L` moves to at most one CPU, for which
// `L: Send` is enough. (2) `shared` is handed out by shared reference to all, for which `S: Sync`
// is enough. (3) The rest is atomics and a field that never changes.
unsafe impl<L: Send, S: Sync> Sync for Block<L, S> {}

impl<L, S> Block<L, S> {
    const LAYOUT: () = {
        assert!(offset_of!(Self, header) == 0);
        assert!(align_of::<Self>() >= 128);
        assert!(offset_of!(Self, shared).is_multiple_of(128));
        assert!(size_of::<Self>().is_multiple_of(128));
    };

    /// A block for the CPU with the given index.
    ///
    /// The index is the kernel's own, counted from 0 without gaps (not a LAPIC id).
    #[cfg(not(loom))]
    pub const fn new(index: u32, local: L, shared: S) -> Self {
        let () = Self::LAYOUT;
        Self {
            header: Header::new(index),
            claimed: AtomicBool::new(false),
            local,
            shared: CachePadded::new(shared),
        }
    }

    /// A block for the CPU with the given index.
    #[cfg(loom)]
    pub fn new(index: u32, local: L, shared: S) -> Self {
        let () = Self::LAYOUT;
        Self {
            header: Header::new(index),
            claimed: AtomicBool::new(false),
            local,
            shared: CachePadded::new(shared),
        }
    }

    /// The index of the CPU this block was made for.
    pub const fn index(&self) -> u32 {
        self.header.index
    }

    /// Whether a CPU has claimed this block, or is about to.
    pub fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }

    /// The part that every CPU may read.
    pub fn shared(&self) -> &S {
        &self.shared
    }

    /// The part for the owning CPU. `pub(crate)`: the caller must be that CPU.
    pub(crate) const fn local(&self) -> &L {
        &self.local
    }

    /// Makes the calling CPU the owner; `None` if the block has one already.
    pub(crate) fn claim(&'static self) -> Option<*const Header> {
        if mutated("a block is claimed in two steps") {
            if self.is_claimed() {
                return None;
            }
            self.claimed.store(true, Ordering::Release);
        } else {
            self.claimed
                .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire)
                .ok()?;
        }
        // Made from the whole block, so that the way back from header to block is covered by the
        // pointer's provenance.
        let this = ptr::from_ref(self).cast::<Header>();
        self.header.this.store(this.cast_mut(), Ordering::Relaxed);
        Some(this)
    }
}

impl<L, S: fmt::Debug> fmt::Debug for Block<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("index", &self.index())
            .field("claimed", &self.is_claimed())
            .field("shared", self.shared())
            .finish_non_exhaustive()
    }
}
