//! The magazine heap: the order in which caches, depots, slabs and frames are asked.

use core::alloc::{GlobalAlloc, Layout};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use core::{fmt, hint};

use super::cache::{Block, Entry, Owner};
use super::class::{CLASSES, Class, FRAME};
use super::deferred::{DeferredList, Kind, Written};
use super::depot::Depot;
use super::frames::{Frames, Use};
#[cfg(target_arch = "x86_64")]
use super::restart;
use super::slab::Wrong;
use super::slab_map::SlabMap;
use super::slabs::{Ground, Slabs};
use super::{ClassStatistics, FastPath, FramePlatform, Totals};

/// A heap that scales with the number of CPUs: `#[global_allocator]` material.
///
/// Each CPU serves itself from its own [`CpuCache`](super::CpuCache), without locks and without
/// atomic operations. When that is empty or full, a magazine's worth of blocks moves from or to the
/// *depot* of the size class, which all CPUs share; and when that can't help, from or to *slabs*,
/// which are frames cut into blocks. What is larger than [`LARGEST`](super::LARGEST) is frames.
///
/// It needs no start: it works as soon as the platform has frames, at first without caches and
/// therefore slowly.
///
/// # At any instruction
///
/// Interrupts are kept out on slow paths only. Whoever comes upon its own CPU inside the heap is
/// served from what it may touch there:
///
/// | interrupted | allocation | free |
/// |---|---|---|
/// | fast path | from a slab, new frames included | to the slab |
/// | slow path (NMI, panic, the platform itself) | the CPU's reserve of one block of each class it uses; then from a slab with a free block, if nobody has its lock; else null | noted in the block itself, done later |
///
/// # Out of memory
///
/// Before it answers null, the heap drains this CPU's cache, empties the depots, returns empty
/// slabs, asks the platform to [drain the other CPUs](FramePlatform::drain_others), and tries again.
///
/// # Panics
///
/// [`dealloc`](GlobalAlloc::dealloc) panics if it finds that a block was freed twice, or isn't the
/// heap's, or not of its size. It finds it when the block gets back to its slab, so the free at
/// fault may be an earlier one, on this CPU or another.
pub struct MagazineHeap<P> {
    frames: Frames<P>,
    depots: [Depot; CLASSES],
    slabs: [Slabs; CLASSES],
    map: SlabMap,
    shared: Shared,
}

/// What doesn't fit in any CPU's counters: large blocks, and operations past a cache.
#[repr(align(128))]
struct Shared {
    live_bytes: AtomicI64,
    large_blocks: AtomicUsize,
    refusals: AtomicU64,
    reentries: AtomicU64,
    /// Drains and trims that are under way, and that there have been.
    relieving: AtomicUsize,
    relieved: AtomicUsize,
    deferred: DeferredList,
}

/// How often an allocation that finds nothing tries again, while memory comes back.
const SEARCHES: usize = 16;

/// How often it looks whether memory is still on its way: for longer than a drain takes, unless the
/// CPU that drains is interrupted.
const LOOKS: usize = 1 << 20;

/// A drain or a trim.
struct Relief<'a>(&'a Shared);

impl Drop for Relief<'_> {
    fn drop(&mut self) {
        self.0.relieved.fetch_add(1, Ordering::SeqCst);
        self.0.relieving.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Why there is no block.
enum Refused {
    /// Memory is short, and this code may do something about it.
    Short,
    /// This code came upon its own CPU inside the heap.
    Nested,
}

/// A block that wasn't what it was freed as, or isn't any more.
#[derive(Clone, Copy)]
enum Misuse {
    Slab {
        block: Block,
        class: Class,
        wrong: Wrong,
    },
    Written(Block),
}

impl Misuse {
    #[cold]
    #[track_caller]
    fn report(self) -> ! {
        match self {
            Self::Slab {
                block,
                class,
                wrong,
            } => {
                let size = class.size();
                match wrong {
                    Wrong::Foreign => panic!(
                        "{block:p} was freed as a block of up to {size} bytes, but no such block is there"
                    ),
                    Wrong::Free => {
                        panic!("{block:p}, a block of up to {size} bytes, was freed twice")
                    }
                }
            }
            Self::Written(block) => panic!("{block:p} was written to after it was freed"),
        }
    }
}

impl<P: FramePlatform> MagazineHeap<P> {
    /// A heap that holds nothing.
    pub const fn new(platform: P) -> Self {
        Self {
            frames: Frames::new(platform),
            depots: [const { Depot::new() }; CLASSES],
            slabs: [const { Slabs::new() }; CLASSES],
            map: SlabMap::new(),
            shared: Shared {
                live_bytes: AtomicI64::new(0),
                large_blocks: AtomicUsize::new(0),
                refusals: AtomicU64::new(0),
                reentries: AtomicU64::new(0),
                relieving: AtomicUsize::new(0),
                relieved: AtomicUsize::new(0),
                deferred: DeferredList::new(),
            },
        }
    }

    /// The platform this heap stands on.
    pub const fn platform(&self) -> &P {
        self.frames.platform()
    }

    /// Gives all that this CPU caches back to the slabs, and returns the frames that become free.
    ///
    /// For a CPU that is asked to by another one's [`FramePlatform::drain_others`], and for one that
    /// goes idle. `false`: this code interrupted the CPU inside the heap. The CPU drains when it
    /// next takes a slow path.
    ///
    /// # Panics
    ///
    /// As for the [heap](Self).
    pub fn drain(&self) -> bool {
        let _preemption = self.platform().disable_preemption();
        let drained = {
            let _interrupts = self.platform().disable_interrupts();
            let cache = self.platform().cache();
            match cache.enter() {
                Entry::Owner(mut owner) => Ok(self.drain_inside(&mut owner)),
                Entry::Guest(_) | Entry::Nested => Err(cache),
            }
        };
        match drained {
            Ok(freed) => {
                settle(freed);
                true
            }
            Err(cache) if cache.exists() => {
                cache.want_drain();
                false
            }
            Err(_) => true,
        }
    }

    /// Returns the frames of what no CPU keeps for itself: depots and empty slabs.
    ///
    /// After everything is freed and each CPU has [drained](Self::drain), that is every frame.
    ///
    /// # Panics
    ///
    /// As for the [heap](Self).
    pub fn trim(&self) {
        let _preemption = self.platform().disable_preemption();
        let freed = {
            let _interrupts = self.platform().disable_interrupts();
            match self.platform().cache().enter() {
                Entry::Owner(_) | Entry::Guest(_) => self.trim_inside(),
                Entry::Nested => Ok(()),
            }
        };
        settle(freed);
    }

    /// What the heap holds. Exact while no CPU uses it.
    pub fn totals(&self) -> Totals {
        let mut live_bytes = self.shared.live_bytes.load(Ordering::Relaxed);
        let mut cached_blocks = 0;
        let mut cached_bytes = 0;
        self.platform().each_cache(&mut |cache| {
            live_bytes += cache.live_bytes();
            for class in Class::all() {
                let blocks = cache.statistics(class).cached_blocks;
                cached_blocks += blocks;
                cached_bytes += blocks * class.size();
            }
        });
        let mut used = self.shared.large_blocks.load(Ordering::Relaxed);
        for class in Class::all() {
            let depot = self.depots[class].length();
            cached_blocks += depot;
            cached_bytes += depot * class.size();
            used += self.slabs[class].used();
        }
        Totals {
            live_bytes,
            // Exact: no machine has so many blocks.
            live_blocks: used as i64 - cached_blocks as i64,
            cached_bytes,
            slab_frames: self.frames.held(Use::Slab),
            large_frames: self.frames.held(Use::Large),
            own_frames: self.frames.held(Use::Own),
            peak_frames: self.frames.peak(),
            refusals: self.shared.refusals.load(Ordering::Relaxed),
            reentries: self.shared.reentries.load(Ordering::Relaxed),
        }
    }

    /// What all CPUs share of a class. A CPU's own part is
    /// [`CpuCache::statistics`](super::CpuCache::statistics).
    pub fn class_statistics(&self, class: Class) -> ClassStatistics {
        let slabs = &self.slabs[class];
        let depot = &self.depots[class];
        ClassStatistics {
            slab_frames: slabs.frames(),
            used_blocks: slabs.used(),
            most_used_blocks: slabs.most_used(),
            remote_blocks: slabs.remote(),
            depot_blocks: depot.length(),
            depot_contended: depot.contended(),
        }
    }

    fn ground(&self) -> Ground<'_, P> {
        Ground {
            map: &self.map,
            frames: &self.frames,
            cpu: self.platform().cpu(),
        }
    }

    /// An allocation that the fast path leaves. It takes what the fast path has in its registers, and
    /// returns what that would, so that the fast path just jumps here.
    #[cold]
    #[inline(never)]
    fn allocate_slowly(&self, layout: Layout) -> *mut u8 {
        let block = match Class::of(layout) {
            Some(class) => self.pop(class, layout.size()).or_else(|| {
                self.until_short(|is_first| self.attempt(class, layout.size(), is_first))
            }),
            None => self.allocate_large(layout),
        };
        block
            .or_else(|| self.platform().last_resort(layout))
            .map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline(always)]
    fn pop(&self, class: Class, size: usize) -> Option<Block> {
        match P::FAST_PATH {
            FastPath::Uninterrupted => {
                let _preemption = self.platform().disable_preemption();
                self.platform().cache().pop::<false>(class, size)
            }
            FastPath::Flagged => {
                let _preemption = self.platform().disable_preemption();
                self.platform().cache().pop::<true>(class, size)
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: it is this kind of fast path.
            FastPath::Restarted { .. } => unsafe { restart::pop::<P>(class, size) },
            #[cfg(not(target_arch = "x86_64"))]
            FastPath::Restarted { .. } => const { panic!("there are no such sequences here") },
        }
    }

    #[inline(always)]
    fn push(&self, class: Class, block: Block, size: usize) -> bool {
        match P::FAST_PATH {
            FastPath::Uninterrupted => {
                let _preemption = self.platform().disable_preemption();
                self.platform().cache().push::<false>(class, block, size)
            }
            FastPath::Flagged => {
                let _preemption = self.platform().disable_preemption();
                self.platform().cache().push::<true>(class, block, size)
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: it is this kind of fast path.
            FastPath::Restarted { .. } => unsafe { restart::push::<P>(class, block, size) },
            #[cfg(not(target_arch = "x86_64"))]
            FastPath::Restarted { .. } => const { panic!("there are no such sequences here") },
        }
    }

    /// Tries, and tries again after each thing that can be done about a shortage.
    fn until_short(&self, attempt: impl Fn(bool) -> Result<Block, Refused>) -> Option<Block> {
        let reliefs: [&dyn Fn(); 2] = [
            &|| {
                self.drain();
                self.trim();
            },
            &|| {
                self.platform().drain_others();
                self.trim();
            },
        ];
        for (round, relieve) in reliefs.into_iter().enumerate() {
            match attempt(round == 0) {
                Ok(block) => return Some(block),
                Err(Refused::Short) => relieve(),
                Err(Refused::Nested) => return self.refuse(),
            }
        }
        self.seek(|| attempt(false).ok()).or_else(|| self.refuse())
    }

    /// Tries for the last time, and once more whenever memory has come back meanwhile or is on its
    /// way, in the hands of a CPU that drains or trims: nobody shall be told that memory has run out
    /// who only looked when it was between two places. Within bounds: others may do so for ever.
    fn seek(&self, attempt: impl Fn() -> Option<Block>) -> Option<Block> {
        let Shared {
            relieving,
            relieved,
            ..
        } = &self.shared;
        let mut looks = LOOKS;
        for _ in 0..SEARCHES {
            let before = relieved.load(Ordering::SeqCst);
            if let Some(block) = attempt() {
                return Some(block);
            }
            // In this order: what has ended has said so before.
            while relieving.load(Ordering::SeqCst) > 0 && relieved.load(Ordering::SeqCst) == before
            {
                looks -= 1;
                if looks == 0 {
                    return None;
                }
                hint::spin_loop();
            }
            if relieved.load(Ordering::SeqCst) == before {
                return None;
            }
        }
        None
    }

    /// Says that memory is on its way back, until the result is dropped.
    fn relieve(&self) -> Relief<'_> {
        self.shared.relieving.fetch_add(1, Ordering::SeqCst);
        Relief(&self.shared)
    }

    fn refuse(&self) -> Option<Block> {
        self.shared.refusals.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Only the first attempt may fill the cache: once memory is short, it is for blocks.
    fn attempt(&self, class: Class, size: usize, fills: bool) -> Result<Block, Refused> {
        let _preemption = self.platform().disable_preemption();
        let (block, freed) = {
            let _interrupts = self.platform().disable_interrupts();
            match self.platform().cache().enter() {
                Entry::Owner(mut owner) => {
                    let freed = self.catch_up(&mut owner);
                    let mut magazine = owner.close(class);
                    if fills {
                        magazine.refill(|room| self.gather(class, room));
                    }
                    let block = magazine.pop(size).ok_or(Refused::Short);
                    if fills {
                        magazine.keep_reserve();
                    }
                    (block.or_else(|_| self.allocate_one(class, size)), freed)
                }
                Entry::Guest(_) => {
                    self.shared.reentries.fetch_add(1, Ordering::Relaxed);
                    (self.allocate_one(class, size), Ok(()))
                }
                Entry::Nested => {
                    self.shared.reentries.fetch_add(1, Ordering::Relaxed);
                    let platform = self.platform();
                    let block = (platform.cache().take_reserve(class))
                        .or_else(|| self.slabs[class].try_allocate(platform.cpu(), class));
                    if block.is_some() {
                        self.account(size as i64);
                    }
                    (block.ok_or(Refused::Nested), Ok(()))
                }
            }
        };
        settle(freed);
        block
    }

    /// A magazine's worth of blocks, from the depot or else from slabs.
    fn gather(&self, class: Class, room: &mut [MaybeUninit<Block>]) -> usize {
        match self.depots[class].take(self.platform().cpu(), room) {
            0 => self.slabs[class].allocate(&self.ground(), class, room),
            count => count,
        }
    }

    /// A block past the cache.
    fn allocate_one(&self, class: Class, size: usize) -> Result<Block, Refused> {
        let mut room = [MaybeUninit::uninit()];
        if self.gather(class, &mut room) == 0 {
            return Err(Refused::Short);
        }
        self.account(size as i64);
        // SAFETY: `gather` has filled it.
        Ok(unsafe { room[0].assume_init() })
    }

    /// A free that the fast path leaves.
    ///
    /// # Safety
    ///
    /// `block` is live, with this layout.
    #[cold]
    #[inline(never)]
    unsafe fn free_slowly(&self, block: Block, layout: Layout) {
        match Class::of(layout) {
            Some(class) => {
                if !self.push(class, block, layout.size()) {
                    self.free_small(class, block, layout.size());
                }
            }
            // SAFETY: the caller's promise.
            None => unsafe { self.free_large(block, layout) },
        }
    }

    fn free_small(&self, class: Class, block: Block, size: usize) {
        let _preemption = self.platform().disable_preemption();
        let freed = {
            let _interrupts = self.platform().disable_interrupts();
            match self.platform().cache().enter() {
                Entry::Owner(mut owner) => self.free_inside(&mut owner, class, block, size),
                Entry::Guest(_) => {
                    self.shared.reentries.fetch_add(1, Ordering::Relaxed);
                    self.account(-(size as i64));
                    self.free_to_slabs(class, &[block])
                }
                Entry::Nested => {
                    self.shared.reentries.fetch_add(1, Ordering::Relaxed);
                    self.account(-(size as i64));
                    // SAFETY: the caller has freed it, as one of this class.
                    unsafe { self.shared.deferred.push(block, Kind::Small(class)) };
                    Ok(())
                }
            }
        };
        settle(freed);
    }

    fn free_inside(
        &self,
        owner: &mut Owner<'_>,
        class: Class,
        block: Block,
        size: usize,
    ) -> Result<(), Misuse> {
        let mut freed = self.catch_up(owner);
        let mut magazine = owner.close(class);
        if !magazine.push(block, size) {
            magazine.flush(|blocks| {
                let cpu = self.platform().cpu();
                if !self.depots[class].put(cpu, &self.frames, class, blocks) {
                    freed = freed.and(self.free_to_slabs(class, blocks));
                }
            });
            magazine.push(block, size);
        }
        freed
    }

    fn free_to_slabs(&self, class: Class, blocks: &[Block]) -> Result<(), Misuse> {
        (self.slabs[class].free(&self.ground(), class, blocks)).map_err(|(block, wrong)| {
            Misuse::Slab {
                block,
                class,
                wrong,
            }
        })
    }

    /// Does what had to wait for a slow path.
    fn catch_up(&self, owner: &mut Owner<'_>) -> Result<(), Misuse> {
        let freed = self.free_deferred();
        if owner.is_drain_wanted() {
            return freed.and(self.drain_inside(owner));
        }
        freed
    }

    fn drain_inside(&self, owner: &mut Owner<'_>) -> Result<(), Misuse> {
        let _relief = self.relieve();
        let mut freed = self.free_deferred();
        for class in Class::all() {
            let reserve = owner.take_reserve(class);
            owner.close(class).empty(|blocks| {
                for blocks in [reserve.as_slice(), blocks] {
                    if !blocks.is_empty() {
                        freed = freed.and(self.free_to_slabs(class, blocks));
                    }
                }
            });
        }
        owner.drained();
        freed
    }

    fn trim_inside(&self) -> Result<(), Misuse> {
        let _relief = self.relieve();
        let ground = self.ground();
        let mut freed = self.free_deferred();
        for class in Class::all() {
            if let Some(contents) = self.depots[class].empty(ground.cpu, class) {
                freed = freed.and(self.free_to_slabs(class, contents.blocks()));
                contents.free(&self.frames);
            }
            self.slabs[class].trim(&ground);
        }
        self.map.trim(ground.cpu, &self.frames);
        freed
    }

    fn free_deferred(&self) -> Result<(), Misuse> {
        let mut freed = Ok(());
        for deferred in self.shared.deferred.take_all() {
            match deferred {
                Ok((block, Kind::Small(class))) => {
                    freed = freed.and(self.free_to_slabs(class, &[block]));
                }
                // SAFETY: a large block that was freed, of so many frames.
                Ok((block, Kind::Large { frames })) => unsafe {
                    self.free_frames(block, frames as usize);
                },
                Err(Written(block)) => freed = freed.and(Err(Misuse::Written(block))),
            }
        }
        freed
    }

    fn allocate_large(&self, layout: Layout) -> Option<Block> {
        let count = frames_of(layout)?;
        let align = layout.align().div_ceil(FRAME);
        self.until_short(|_| {
            let _preemption = self.platform().disable_preemption();
            let _interrupts = self.platform().disable_interrupts();
            let entry = self.platform().cache().enter();
            if matches!(entry, Entry::Nested) {
                self.shared.reentries.fetch_add(1, Ordering::Relaxed);
                return Err(Refused::Nested);
            }
            let block = self.frames.allocate(count as usize, align, Use::Large);
            let block = block.ok_or(Refused::Short)?;
            self.account(layout.size() as i64);
            self.shared.large_blocks.fetch_add(1, Ordering::Relaxed);
            Ok(block)
        })
    }

    /// # Safety
    ///
    /// `block` is live, and was allocated with this layout, which no class serves.
    unsafe fn free_large(&self, block: Block, layout: Layout) {
        // It was allocated, so it isn't too large.
        let Some(frames) = frames_of(layout) else {
            return;
        };
        let _preemption = self.platform().disable_preemption();
        let _interrupts = self.platform().disable_interrupts();
        self.account(-(layout.size() as i64));
        let entry = self.platform().cache().enter();
        if matches!(entry, Entry::Nested) {
            self.shared.reentries.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the caller has freed it, so many frames.
            unsafe { self.shared.deferred.push(block, Kind::Large { frames }) };
        } else {
            // SAFETY: allocated so, and dead now.
            unsafe { self.free_frames(block, frames as usize) };
        }
    }

    /// # Safety
    ///
    /// `block` is a large one of so many frames, which nobody uses.
    unsafe fn free_frames(&self, block: Block, count: usize) {
        // SAFETY: `allocate_large` allocated it so.
        unsafe { self.frames.free(block, count, Use::Large) };
        self.shared.large_blocks.fetch_sub(1, Ordering::Relaxed);
    }

    fn account(&self, bytes: i64) {
        self.shared.live_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// How many frames a large block takes. `None`: more than there can be.
fn frames_of(layout: Layout) -> Option<u32> {
    layout.size().div_ceil(FRAME).try_into().ok()
}

/// Ends an operation that may have found a misuse. Outside of all locks: what runs after a panic may
/// use the heap.
#[inline]
#[track_caller]
fn settle(freed: Result<(), Misuse>) {
    if let Err(misuse) = freed {
        misuse.report();
    }
}

// SAFETY: (1) blocks come from frames that belong to the heap alone (the contract of
// `FramePlatform`), of a class that has the size and alignment asked for, and each is in one place
// only: live, in one magazine, in one depot, on the deferred list or free in its slab. (2) Nothing
// unwinds except over a free that breaks this trait's contract.
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
        let stays = match (Class::of(layout), Class::of(new)) {
            (None, None) => frames_of(layout) == frames_of(new),
            (old, new) => old == new,
        };
        if stays {
            let grown = new_size as i64 - layout.size() as i64;
            let _preemption = self.platform().disable_preemption();
            if !self.platform().cache().correct(grown) {
                self.account(grown);
            }
            return block;
        }
        // SAFETY: the contract of `GlobalAlloc::realloc`: the new size isn't zero.
        let moved = unsafe { self.alloc(new) };
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

#[cfg(all(test, feature = "hosted"))]
mod tests {
    use super::*;
    use crate::hosted::HostedFrames;
    use std::vec::Vec;

    type Heap = MagazineHeap<HostedFrames>;

    const LAYOUT: Layout = Layout::new::<[u64; 8]>();

    fn alloc(heap: &Heap, layout: Layout) -> *mut u8 {
        // SAFETY: the size isn't zero.
        unsafe { heap.alloc(layout) }
    }

    fn free(heap: &Heap, block: *mut u8, layout: Layout) {
        // SAFETY: the tests free what they allocated, once.
        unsafe { heap.dealloc(block, layout) };
    }

    fn assert_all_back(heap: &Heap) {
        assert!(heap.drain());
        heap.trim();
        assert_eq!(heap.totals().frames(), 0, "{heap:?}");
        assert_eq!(heap.totals().live_bytes, 0);
    }

    #[test]
    #[should_panic(expected = "was written to after it was freed")]
    fn what_waits_to_be_freed_is_not_believed_if_it_was_written_to() {
        let heap = Heap::new(HostedFrames::new(256));
        // Larger than any class: no fast path takes it.
        let layout = Layout::new::<[u64; 4096]>();
        let [first, second] = [(); 2].map(|()| alloc(&heap, layout));
        {
            let entry = heap.platform().cache().enter();
            assert!(matches!(entry, Entry::Owner(_)));
            free(&heap, first, layout);
            free(&heap, second, layout);
        }
        // SAFETY: the memory is the heap's, whose answer is to be seen.
        unsafe { *second ^= 0x10 };
        heap.drain();
    }

    #[test]
    fn a_byte_past_the_last_block_of_a_frame_leads_nowhere() {
        const FRAMES: usize = 512;
        const SIZES: [usize; 4] = [16, 64, 1024, 4096];
        let heap = Heap::new(HostedFrames::new(FRAMES));
        let layouts = SIZES.map(|size| Layout::from_size_align(size, 16).unwrap());
        let mut live = Vec::new();
        let mut fill = |count: usize| {
            for number in 0..count {
                let layout = layouts[number % layouts.len()];
                let block = alloc(&heap, layout);
                assert!(!block.is_null());
                // SAFETY: the block's own bytes.
                unsafe { block.write_bytes(number as u8, layout.size()) };
                live.push((block, layout, number as u8));
            }
            for (number, &(block, layout, _)) in live.iter().enumerate() {
                if number % 3 == 0 {
                    free(&heap, block, layout);
                }
            }
            let mut number = 0;
            live.retain(|_| {
                number += 1;
                (number - 1) % 3 != 0
            });
        };
        fill(1200);
        // Depots and the map have frames of their own by now. What somebody writes past the end of the
        // frame before, that is, to the first byte of theirs, changes nothing.
        for change in [0x01, 0x08, 0x10, 0x80, 0xff_u8] {
            let mut written = 0;
            let mut write = |frame: NonNull<u8>| {
                // SAFETY: the heap's, which this is about.
                unsafe { *frame.as_ptr() ^= change };
                written += 1;
            };
            heap.depots
                .iter()
                .filter_map(Depot::memory)
                .for_each(&mut write);
            heap.map.each_table(&mut write);
            assert!(written > 5, "{written}");
            fill(300);
            assert!(heap.drain());
        }
        for (block, layout, number) in live {
            // SAFETY: the block's own bytes.
            let bytes = unsafe { core::slice::from_raw_parts(block, layout.size()) };
            assert!(bytes.iter().all(|&byte| byte == number));
            free(&heap, block, layout);
        }
        assert_all_back(&heap);
    }

    #[test]
    fn nmi_on_top_of_a_slow_path_gets_what_is_there_and_frees_later() {
        let heap = Heap::new(HostedFrames::new(256));
        let large = Layout::new::<[u64; 4096]>();
        let blocks = [LAYOUT, large].map(|layout| (alloc(&heap, layout), layout));
        {
            let entry = heap.platform().cache().enter();
            assert!(matches!(entry, Entry::Owner(_)));
            let frames = heap.platform().frames_left();
            for (block, layout) in blocks {
                free(&heap, block, layout);
            }
            assert_eq!(heap.totals().live_bytes, 0);
            assert!(alloc(&heap, large).is_null());
            let block = alloc(&heap, LAYOUT);
            assert!(!block.is_null());
            free(&heap, block, LAYOUT);
            assert_eq!(heap.platform().frames_left(), frames);
        }
        // One refusal; two blocks of 64 bytes and a large one wait for the next slow path.
        assert_eq!(heap.totals().refusals, 1);
        assert_eq!(heap.totals().large_frames, 8);
        assert_all_back(&heap);
    }
}
