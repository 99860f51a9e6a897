//! The magazine heap: it asks caches, depots, slabs and frames, in this order.

mod defer;
mod large;
mod misuse;
mod scattered;
mod shortage;
mod small;
#[cfg(all(test, feature = "hosted"))]
mod tests;

use core::alloc::{GlobalAlloc, Layout};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::{fmt, slice};

use super::cache::{Block, Entry};
use super::class::{BINS, Bin, CLASSES, Class, MAX_DEPTH};
use super::context::Context;
use super::deferred::DeferredList;
use super::depot::{Depot, MAGAZINES};
use super::frames::{Frames, Use};
use super::slab_map::SlabMap;
use super::slabs::Slabs;
use super::transit::Transit;
use super::{ClassStatistics, FramePlatform, Totals, Traffic};
use large::frames_of;
use misuse::{Misuse, settle};
use shortage::Attempt;
pub use shortage::Shortage;

/// A heap that scales with the number of CPUs: `#[global_allocator]` material.
///
/// Each CPU serves itself from its own [`CpuCache`](super::CpuCache), without locks and without
/// atomic operations. When that is empty or full, a magazine's worth of blocks moves from or to the
/// *depot* of the size class, which all CPUs share; and when that can't help, from or to *slabs*,
/// which are frames cut into blocks. Blocks larger than [`MAX_CLASS_SIZE`](super::MAX_CLASS_SIZE) are frames, of which a CPU
/// keeps some as well, as blocks of up to 64.
///
/// It needs no start: it works as soon as the platform has frames, at first without caches and
/// therefore slowly.
///
/// # At any instruction
///
/// Interrupts and preemption are disabled on slow paths only, and for a number of instructions that
/// has a bound: long work is done in steps. Code that interrupts its own CPU inside the heap is served
/// from what it may touch there:
///
/// | interrupted | allocation | free |
/// |---|---|---|
/// | fast path | from a slab, new frames included | to the slab |
/// | slow path (NMI, panic, the platform itself) | the CPU's reserve of one block of each class it uses; then from a slab with a free block, if nobody has its lock; else null | noted in the block itself, done later |
///
/// # Out of memory
///
/// Before it returns null, the heap drains this CPU's cache, empties the depots, returns empty
/// slabs, asks the platform to [drain the other CPUs](FramePlatform::drain_others), and tries again.
/// It does so only if that can help: not for more than the machine [has](FramePlatform::capacity),
/// and not again as long as nothing has been freed or brought back since it last did not help.
///
/// Where no contiguous frames are left, it asks the platform for
/// [scattered ones](FramePlatform::allocate_scattered), if that has any.
///
/// Contention is not "out of memory": an allocation waits for memory that another CPU has in transit,
/// for an attempt that fails or on its way back, and CPUs that would keep the last frames from each
/// other try one after the other. [`FramePlatform::wait_for_memory`] decides how long they wait.
///
/// A `realloc` that makes a block smaller needs no memory: where none is left, the block stays where it
/// is, and is then a larger one than its size asks for. Only a block larger than
/// [`MAX_CLASS_SIZE`](super::MAX_CLASS_SIZE) can be refused: if no slab is near, it shrinks below that
/// size, and the frames it frees are fewer than the three that its own description takes; in code
/// that interrupted a slow path, if it has whole frames to give back; and in scattered frames, if it shrinks below that size,
/// or they [can't be unmapped](FramePlatform::can_unmap).
///
/// A CPU that waits for a lock of the heap answers others, and its wait has a bound: see
/// [`FramePlatform::wait_for_lock`].
///
/// # Panics
///
/// [`dealloc`](GlobalAlloc::dealloc) panics if it finds that a block was freed twice, or isn't the
/// heap's, or is smaller than the layout it was freed with. It finds that when the block returns to its
/// slab, so the free at fault may be an earlier one, on this CPU or another.
pub struct MagazineHeap<P> {
    frames: Frames<P>,
    depots: [Depot; CLASSES],
    slabs: [Slabs; CLASSES],
    map: SlabMap,
    transit: Transit,
    shared: Shared,
}

/// The state that is no single CPU's, and counters of operations past a cache. The counters are `Relaxed`,
/// except where a comment says otherwise: they are for reports, and exact while no CPU uses the heap.
#[repr(align(128))]
struct Shared {
    allocated: AtomicU64,
    freed: AtomicU64,
    /// The number of blocks that drains outside a relief and the deferred list brought back, and of
    /// drains that were refused: what a relief may find beside the blocks freed since. Only grows.
    returned: AtomicU64,
    /// [`MagazineHeap::gains`] during the last relief that did not help.
    barren: AtomicU64,
    /// Blocks in the deferred list.
    waiting: AtomicUsize,
    /// Whether a CPU tries to get scattered frames.
    is_scattering: AtomicBool,
    large_blocks: AtomicUsize,
    /// The number of CPUs that are short of memory: while there are any, no CPU takes more than it
    /// needs.
    short: AtomicUsize,
    /// Whether there ever was a block that is less aligned than those of its class are.
    has_misfits: AtomicBool,
    refusals: AtomicU64,
    reentries: AtomicU64,
    deferred: DeferredList,
}

impl<P: FramePlatform> MagazineHeap<P> {
    /// Creates a heap that holds nothing.
    pub const fn new(platform: P) -> Self {
        Self {
            frames: Frames::new(platform),
            depots: [const { Depot::new() }; CLASSES],
            slabs: [const { Slabs::new() }; CLASSES],
            map: SlabMap::new(),
            transit: Transit::new(),
            shared: Shared {
                allocated: AtomicU64::new(0),
                freed: AtomicU64::new(0),
                returned: AtomicU64::new(0),
                barren: AtomicU64::new(u64::MAX),
                waiting: AtomicUsize::new(0),
                is_scattering: AtomicBool::new(false),
                large_blocks: AtomicUsize::new(0),
                short: AtomicUsize::new(0),
                has_misfits: AtomicBool::new(false),
                refusals: AtomicU64::new(0),
                reentries: AtomicU64::new(0),
                deferred: DeferredList::new(),
            },
        }
    }

    /// Returns the platform this heap stands on.
    pub const fn platform(&self) -> &P {
        self.frames.platform()
    }

    /// Drains this CPU's cache into the slabs, and returns the frames that become free. One
    /// magazine after another, with interrupts disabled for each.
    ///
    /// For a CPU that is asked to by another one's [`FramePlatform::drain_others`], and for one that
    /// goes idle. `false`: this code interrupted the CPU inside the heap. The CPU drains on its next
    /// slow paths.
    ///
    /// # Panics
    ///
    /// As for the [heap](Self).
    pub fn drain(&self) -> bool {
        let _preemption = self.platform().disable_preemption();
        self.free_deferred();
        for bin in (0..BINS).filter_map(Bin::from_index) {
            let drained = {
                let _interrupts = self.platform().disable_interrupts();
                let cache = self.platform().cache();
                match cache.enter() {
                    Entry::Owner(mut owner) => self.drain_bin(&mut owner, bin),
                    Entry::Guest(_) | Entry::Nested => {
                        if !cache.exists() {
                            return true;
                        }
                        cache.request_drain();
                        // The blocks that this CPU caches are still available.
                        self.count_returned(1);
                        return false;
                    }
                }
            };
            settle(drained);
        }
        self.unmap_freed();
        true
    }

    /// Returns the frames of what no CPU keeps for itself: depots and empty slabs. In steps, with
    /// interrupts disabled for each.
    ///
    /// After everything is freed and each CPU has [drained](Self::drain), that is every frame.
    ///
    /// # Panics
    ///
    /// As for the [heap](Self).
    pub fn trim(&self) {
        self.free_deferred();
        for class in Class::all() {
            // A bound, as others may fill the depot again.
            for _ in 0..=2 * MAGAZINES {
                match self.step(|context| self.trim_depot(context, class)) {
                    Some(true) => {}
                    Some(false) => break,
                    None => return,
                }
            }
            self.step(|context| {
                self.depots[class].release(context, class);
                self.slabs[class].trim(context);
                ((), Ok(()))
            });
        }
        self.unmap_freed();
    }

    /// Runs a step past this CPU's cache, with interrupts disabled. `None`: this code interrupted the
    /// CPU on a slow path.
    fn step<T>(&self, work: impl FnOnce(&Context<'_, P>) -> (T, Result<(), Misuse>)) -> Option<T> {
        let _preemption = self.platform().disable_preemption();
        let (result, freed) = {
            let _interrupts = self.platform().disable_interrupts();
            match self.platform().cache().enter() {
                Entry::Owner(_) | Entry::Guest(_) => work(&self.context()),
                Entry::Nested => return None,
            }
        };
        settle(freed);
        Some(result)
    }

    /// Takes a magazine's worth of blocks from a depot to the slabs. Returns whether there may be more.
    fn trim_depot(&self, context: &Context<'_, P>, class: Class) -> (bool, Result<(), Misuse>) {
        if self.depots[class].length() == 0 {
            return (false, Ok(()));
        }
        let _transit = context.announce();
        let mut room = [MaybeUninit::uninit(); MAX_DEPTH];
        let count = self.depots[class].take(context, &mut room);
        // SAFETY: `take` has written `count` blocks.
        let blocks = unsafe { slice::from_raw_parts(room.as_ptr().cast::<Block>(), count) };
        (count > 0, self.free_to_slabs(context, class, blocks))
    }

    /// Returns what was allocated and freed past all caches: before CPUs have one, and in code that
    /// interrupted a CPU inside the heap. Together with each CPU's [own](super::CpuCache::traffic) it
    /// is all traffic.
    pub fn common_traffic(&self) -> Traffic {
        Traffic {
            allocated_bytes: self.shared.allocated.load(Ordering::Relaxed),
            freed_bytes: self.shared.freed.load(Ordering::Relaxed),
        }
    }

    /// Returns what the heap holds. Exact while no CPU uses it.
    pub fn totals(&self) -> Totals {
        let mut traffic = self.common_traffic();
        let mut cached_blocks = 0;
        let mut cached_bytes = 0;
        self.platform().each_cache(&mut |cache| {
            traffic = traffic + cache.traffic();
            for class in Class::all() {
                let blocks = cache.statistics(class).cached_blocks;
                cached_blocks += blocks;
                cached_bytes += blocks * class.size();
            }
            let (blocks, bytes) = cache.large();
            cached_blocks += blocks;
            cached_bytes += bytes;
        });
        let mut used = self.shared.large_blocks.load(Ordering::Relaxed);
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        for class in Class::all() {
            let depot = self.depots[class].length();
            cached_blocks += depot;
            cached_bytes += depot * class.size();
            used += self.slabs[class].used();
        }
        Totals {
            live_bytes: traffic.live_bytes(),
            // Exact: no machine has that many blocks.
            live_blocks: used as i64 - cached_blocks as i64 - waiting as i64,
            cached_bytes,
            slab_frames: self.frames.held(Use::Slab),
            large_frames: self.frames.held(Use::Large),
            own_frames: self.frames.held(Use::Own),
            peak_frames: self.frames.peak(),
            refusals: self.shared.refusals.load(Ordering::Relaxed),
            reentries: self.shared.reentries.load(Ordering::Relaxed),
        }
    }

    /// Returns the statistics of a class that all CPUs share. A CPU's own part is
    /// [`CpuCache::statistics`](super::CpuCache::statistics).
    pub fn class_statistics(&self, class: Class) -> ClassStatistics {
        let slabs = &self.slabs[class];
        let depot = &self.depots[class];
        ClassStatistics {
            slab_frames: slabs.frames(),
            used_blocks: slabs.used(),
            peak_used_blocks: slabs.peak_used(),
            remote_blocks: slabs.remote(),
            depot_blocks: depot.length(),
            depot_contended: depot.contended(),
        }
    }

    fn context(&self) -> Context<'_, P> {
        Context {
            map: &self.map,
            frames: &self.frames,
            transit: &self.transit,
            cpu: self.platform().cpu(),
            is_announced: false,
        }
    }

    /// The same for an attempt, of which the last ones are announced ([`Transit::seek`]).
    fn context_of(&self, kind: Attempt) -> Context<'_, P> {
        Context {
            is_announced: kind == Attempt::Last,
            ..self.context()
        }
    }

    /// Serves an allocation that the fast path can't. It takes what the fast path has in its registers,
    /// and returns what that would, so that the fast path just jumps here.
    #[cold]
    #[inline(never)]
    fn allocate_slowly(&self, layout: Layout) -> *mut u8 {
        match self.pop_large(layout) {
            Some(block) => block.as_ptr(),
            None => self.allocate_uncached(layout),
        }
    }

    /// Takes a large block that the CPU has kept, if there is one of as many frames.
    #[inline(always)]
    fn pop_large(&self, layout: Layout) -> Option<Block> {
        self.pop(Bin::of_large(layout)?, layout.size())
    }

    /// Serves an allocation that no magazine can.
    // Apart, as what it saves on its stack costs more than a large block from a magazine does.
    #[inline(never)]
    fn allocate_uncached(&self, layout: Layout) -> *mut u8 {
        let block = match Class::of(layout) {
            Some(class) => self.allocate_small(class, layout),
            None => self.allocate_large(layout),
        };
        self.counted(block)
    }

    /// Returns the answer to a caller, and counts it if it is a refusal.
    fn counted(&self, block: Option<Block>) -> *mut u8 {
        if block.is_none() {
            self.shared.refusals.fetch_add(1, Ordering::Relaxed);
        }
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    /// Serves a free that the fast path can't.
    ///
    /// # Safety
    ///
    /// `block` is live, with this layout.
    #[cold]
    #[inline(never)]
    unsafe fn free_slowly(&self, block: Block, layout: Layout) {
        let bin = Bin::of_large(layout);
        if bin.is_some_and(|bin| self.push(bin, block, layout.size())) {
            return;
        }
        match Class::of(layout) {
            Some(class) => {
                if !self.push(class, block, layout.size()) {
                    self.free_small(class, block, layout.size());
                }
            }
            // SAFETY: the caller's promise.
            None => unsafe { self.free_large(block, layout, bin) },
        }
    }

    fn count_allocated(&self, bytes: usize) {
        (self.shared.allocated).fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts freed bytes, once the block is where others find it.
    fn count_freed(&self, bytes: usize) {
        // Release: see `gains`.
        (self.shared.freed).fetch_add(bytes as u64, Ordering::Release);
    }

    /// Counts blocks that have come back, when they are where others find them.
    fn count_returned(&self, blocks: usize) {
        if blocks > 0 {
            // Release: see `gains`.
            (self.shared.returned).fetch_add(blocks as u64, Ordering::Release);
        }
    }

    fn count_reentry(&self) {
        self.shared.reentries.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that a block has become larger or smaller where it is.
    fn count_resized(&self, before: usize, after: usize) {
        let _preemption = self.platform().disable_preemption();
        if self.platform().cache().count_resized(before, after) {
            return;
        }
        if after >= before {
            self.count_allocated(after - before);
        } else {
            self.count_freed(before - after);
        }
    }
}

// SAFETY: (1) blocks come from frames that belong to the heap alone (the contract of
// `FramePlatform`), of a class that has the size and alignment asked for, and each is in one place
// only: live, in one magazine, in one depot, on the deferred list or free in its slab. (2) Nothing
// unwinds except over a free that breaks this trait's contract, or to end a run (`lock_stuck`).
unsafe impl<P: FramePlatform> GlobalAlloc for MagazineHeap<P> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(class) = Class::of_usual(layout)
            && let Some(block) = self.pop(class, layout.size())
        {
            return block.as_ptr();
        }
        self.allocate_slowly(layout)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: a live block isn't null.
        let block = unsafe { NonNull::new_unchecked(block) };
        if let Some(class) = Class::of_usual(layout)
            && self.push(class, block, layout.size())
        {
            return;
        }
        // SAFETY: live, and of this layout: the contract of `GlobalAlloc::dealloc`.
        unsafe { self.free_slowly(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the contract of `GlobalAlloc::realloc`.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let (before, after) = (Class::of(layout), Class::of(new));
        let is_less = new_size < layout.size();
        let stays = match (before, after) {
            (None, None) if frames_of(layout) == frames_of(new) => true,
            // SAFETY: the contract of `GlobalAlloc::realloc`: a live block isn't null, and is the
            // caller's up to its new size.
            (None, None) if is_less => unsafe {
                self.shrink_in_place(NonNull::new_unchecked(block), layout, new)
            },
            // SAFETY: as above.
            (None, None) => unsafe { self.extend(NonNull::new_unchecked(block), layout, new) },
            _ => before == after,
        };
        if stays {
            self.count_resized(layout.size(), new_size);
            return block;
        }
        let mut moved = ptr::null_mut();
        if is_less && let Some(class) = after {
            // The caches of other CPUs are not drained for it: the block may stay where it is.
            let found = (self.pop_aligned(class, new))
                .or_else(|| self.attempt(class, new, Attempt::First).ok());
            if let Some(found) = found {
                moved = found.as_ptr();
            }
            // SAFETY: as above.
            let shrinks =
                || unsafe { self.shrink_in_place(NonNull::new_unchecked(block), layout, new) };
            if moved.is_null() && shrinks() {
                self.count_resized(layout.size(), new_size);
                return block;
            }
        }
        if !is_less && (before, after) == (None, None) {
            let found = self.pop_large(new);
            // SAFETY: as above.
            let grow = || unsafe { self.grow_large(NonNull::new_unchecked(block), layout, new) };
            moved = self.counted(found.or_else(grow));
            if moved == block {
                self.count_resized(layout.size(), new_size);
                return block;
            }
        } else if moved.is_null() {
            // SAFETY: the contract of `GlobalAlloc::realloc`: the new size isn't zero.
            moved = unsafe { self.alloc(new) };
        }
        if !moved.is_null() {
            // SAFETY: both blocks are that long, and a new one overlaps no live one.
            unsafe { ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size)) };
            // SAFETY: live, and of this layout.
            unsafe { self.dealloc(block, layout) };
        }
        moved
    }
}

impl<P: FramePlatform> fmt::Debug for MagazineHeap<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MagazineHeap")
            .field("totals", &self.totals())
            .finish_non_exhaustive()
    }
}
