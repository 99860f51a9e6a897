//! The magazine heap: it asks caches, depots, slabs and frames, in this order.

use core::alloc::{GlobalAlloc, Layout};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::{fmt, slice};

use super::cache::{Block, Entry, Owner};
use super::class::{CLASSES, Class, FRAME, MAX_DEPTH};
use super::context::Context;
use super::deferred::{BATCH, DeferredList, Kind, Written};
use super::depot::{Depot, MAGAZINES};
use super::frames::{Frames, Use};
#[cfg(target_arch = "x86_64")]
use super::restart;
use super::slab::Wrong;
use super::slab_map::{SlabMap, Spares};
use super::slabs::Slabs;
use super::transit::Transit;
use super::{ClassStatistics, FastPath, FramePlatform, Totals, Traffic};

/// A heap that scales with the number of CPUs: `#[global_allocator]` material.
///
/// Each CPU serves itself from its own [`CpuCache`](super::CpuCache), without locks and without
/// atomic operations. When that is empty or full, a magazine's worth of blocks moves from or to the
/// *depot* of the size class, which all CPUs share; and when that can't help, from or to *slabs*,
/// which are frames cut into blocks. Blocks larger than [`MAX_CLASS_SIZE`](super::MAX_CLASS_SIZE) are frames.
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
/// Contention is not "out of memory": an allocation waits for memory that another CPU has in transit,
/// for an attempt that fails or on its way back, and CPUs that would keep the last frames from each
/// other try one after the other. [`FramePlatform::wait_for_memory`] decides how long they wait.
///
/// A `realloc` that makes a block smaller needs no memory: where none is left, the block stays where it
/// is, and is then a larger one than its size asks for. Only a block larger than
/// [`MAX_CLASS_SIZE`](super::MAX_CLASS_SIZE) can be refused: if no slab is near, it shrinks below that
/// size, and the frames it frees are fewer than the three that its own description takes; and in code
/// that interrupted a slow path, if it has whole frames to give back.
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
    large_blocks: AtomicUsize,
    /// The number of CPUs that are short of memory: while there are any, no CPU takes more than it
    /// needs.
    short: AtomicUsize,
    refusals: AtomicU64,
    reentries: AtomicU64,
    deferred: DeferredList,
}

/// A CPU is short of memory, until this is dropped.
struct Shortage<'a>(&'a AtomicUsize);

impl Drop for Shortage<'_> {
    fn drop(&mut self) {
        // Relaxed: see `is_short`.
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The kind of an attempt: what it may do, and how it is announced to other CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// It may fill the cache, unless another CPU is short.
    First,
    /// It may not: once memory is short, it is for blocks.
    Again,
    /// The same, in [`Transit::seek`].
    Last,
}

/// The reason why there is no block.
enum Refused {
    /// Memory is short, and this code may do something about it.
    Short,
    /// This code interrupted its own CPU inside the heap.
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
                    Wrong::OfClass(found) => panic!(
                        "{block:p} was freed as a block of up to {size} bytes, but no such block is there: \
                         those have up to {}",
                        found.size()
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
                large_blocks: AtomicUsize::new(0),
                short: AtomicUsize::new(0),
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
    /// class after another, with interrupts disabled for each.
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
        for class in Class::all() {
            let drained = {
                let _interrupts = self.platform().disable_interrupts();
                let cache = self.platform().cache();
                match cache.enter() {
                    Entry::Owner(mut owner) => self.drain_class(&mut owner, class),
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
                let _transit = self.transit.begin();
                self.depots[class].release(context, class);
                self.slabs[class].trim(context);
                ((), Ok(()))
            });
        }
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
        let _transit = self.transit.begin();
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

    /// Serves an allocation that the fast path can't. It takes what the fast path has in its registers,
    /// and returns what that would, so that the fast path just jumps here.
    #[cold]
    #[inline(never)]
    fn allocate_slowly(&self, layout: Layout) -> *mut u8 {
        let block = match Class::of(layout) {
            Some(class) => self.allocate_small(class, layout),
            None => self.allocate_large(layout),
        };
        if block.is_none() {
            self.shared.refusals.fetch_add(1, Ordering::Relaxed);
        }
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    fn allocate_small(&self, class: Class, layout: Layout) -> Option<Block> {
        let size = layout.size();
        loop {
            let block = self
                .pop(class, size)
                .or_else(|| self.until_short(|kind| self.attempt(class, size, kind)))?;
            // All blocks are aligned to a unit. For more, not to a fast path's account, there is one
            // exception: a block of a larger class that shrank where it was.
            if block.addr().get().is_multiple_of(layout.align()) {
                return Some(block);
            }
            self.send_home(class, block, size);
        }
    }

    /// Frees a block that is in the magazine of another class than its slab's, into its slab.
    fn send_home(&self, class: Class, block: Block, size: usize) {
        let freed = self.step(|context| ((), self.free_to_slabs(context, class, &[block])));
        if freed.is_none() {
            // SAFETY: allocated just now as one of this class, and nobody has it.
            unsafe { self.defer(block, Kind::Small(class)) };
        }
        self.count_resized(size, 0);
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

    /// Retries after each thing that can be done about a shortage.
    fn until_short(&self, attempt: impl Fn(Attempt) -> Result<Block, Refused>) -> Option<Block> {
        match attempt(Attempt::First) {
            Ok(block) => return Some(block),
            Err(Refused::Nested) => return None,
            Err(Refused::Short) => {}
        }
        // Relaxed: see `is_short`.
        self.shared.short.fetch_add(1, Ordering::Relaxed);
        let _shortage = Shortage(&self.shared.short);
        // Relaxed: a CPU that does not see the last value asks once more, in vain.
        let is_barren = self.shared.barren.load(Ordering::Relaxed) == self.gains()
            && self.platform().reclaimable() == 0;
        if is_barren {
            return self.seek(|| attempt(Attempt::Last).ok());
        }
        self.drain();
        self.trim();
        if let Ok(block) = attempt(Attempt::Again) {
            return Some(block);
        }
        // After the blocks here came back, which is a gain, and before all that follows: this relief
        // may or may not find blocks that come back from now on.
        let gains = self.gains();
        self.platform().drain_others();
        self.drain();
        self.trim();
        let found = self.seek(|| attempt(Attempt::Last).ok());
        if found.is_none() {
            // Relaxed, as above.
            self.shared.barren.store(gains, Ordering::Relaxed);
        }
        found
    }

    /// Returns whether a CPU is short of memory. Memory that this CPU would take beside what it needs
    /// is out of the other's reach, unless it is there when the other asks for it.
    fn is_short(&self) -> bool {
        // Relaxed: the other CPU counts itself before it asks this one to drain, which this one does
        // after a slow path that has not seen it, and before one that does.
        self.shared.short.load(Ordering::Relaxed) > 0
    }

    /// Returns a number that grows whenever a block is freed, comes into a CPU's cache, or comes back
    /// from where a relief may not have found it: as long as it stays the same, a relief finds nothing
    /// that the last one did not. It grows *after* that, so a CPU that sees it grow finds the block.
    fn gains(&self) -> u64 {
        let Shared {
            freed, returned, ..
        } = &self.shared;
        // Acquire, with the Release of the counts: the block is where it can be found. The counters in
        // CPUs' caches count blocks there, for which the CPUs are asked.
        let mut gains = freed.load(Ordering::Acquire);
        gains = gains.wrapping_add(returned.load(Ordering::Acquire));
        (self.platform()).each_cache(&mut |cache| gains = gains.wrapping_add(cache.gains()));
        gains
    }

    /// Tries for the last time, and again as long as memory is in transit on other CPUs: contention
    /// must not count as out of memory. Within bounds, as others may do so forever.
    fn seek(&self, attempt: impl Fn() -> Option<Block>) -> Option<Block> {
        let platform = self.platform();
        let enter = || {
            let preemption = platform.disable_preemption();
            // Dropped in this order.
            let guards = (platform.disable_interrupts(), preemption);
            (platform.cpu(), guards)
        };
        let wait = |state: &mut u64| platform.wait_for_memory(state);
        self.transit.seek(enter, wait, attempt)
    }

    fn attempt(&self, class: Class, size: usize, kind: Attempt) -> Result<Block, Refused> {
        let fills = kind == Attempt::First && !self.is_short();
        let _preemption = self.platform().disable_preemption();
        let (block, freed) = {
            let _interrupts = self.platform().disable_interrupts();
            let context = Context {
                is_announced: kind == Attempt::Last,
                ..self.context()
            };
            match self.platform().cache().enter() {
                Entry::Owner(mut owner) => {
                    let freed = self.catch_up(&context, &mut owner);
                    let mut magazine = owner.close(class);
                    if fills {
                        magazine.refill(|room| self.gather(&context, class, room));
                    }
                    let block = magazine.pop(size);
                    if fills {
                        magazine.keep_reserve();
                    }
                    drop(magazine);
                    let block = block.or_else(|| {
                        let block = self.gather_one(&context, class)?;
                        owner.count_allocated(size);
                        Some(block)
                    });
                    (block.ok_or(Refused::Short), freed)
                }
                Entry::Guest(_) => {
                    self.count_reentry();
                    let block = self.gather_one(&context, class);
                    if block.is_some() {
                        self.count_allocated(size);
                    }
                    (block.ok_or(Refused::Short), Ok(()))
                }
                Entry::Nested => {
                    self.count_reentry();
                    let block = (self.platform().cache().take_reserve(class))
                        .or_else(|| self.slabs[class].try_allocate(context.cpu, class));
                    if block.is_some() {
                        self.count_allocated(size);
                    }
                    (block.ok_or(Refused::Nested), Ok(()))
                }
            }
        };
        settle(freed);
        block
    }

    /// Takes a magazine's worth of blocks, from the depot or else from slabs.
    fn gather(
        &self,
        context: &Context<'_, P>,
        class: Class,
        room: &mut [MaybeUninit<Block>],
    ) -> usize {
        match self.depots[class].take(context, room) {
            0 => self.slabs[class].allocate(context, class, room),
            count => count,
        }
    }

    /// Takes a block past the cache.
    fn gather_one(&self, context: &Context<'_, P>, class: Class) -> Option<Block> {
        let mut room = [MaybeUninit::uninit()];
        // SAFETY: `gather` has filled it.
        (self.gather(context, class, &mut room) > 0).then(|| unsafe { room[0].assume_init() })
    }

    /// Serves a free that the fast path can't.
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
            let context = self.context();
            match self.platform().cache().enter() {
                Entry::Owner(mut owner) => {
                    self.free_inside(&context, &mut owner, class, block, size)
                }
                Entry::Guest(_) => {
                    self.count_reentry();
                    let freed = self.free_to_slabs(&context, class, &[block]);
                    self.count_freed(size);
                    freed
                }
                Entry::Nested => {
                    self.count_reentry();
                    // SAFETY: the caller has freed it, as one of this class.
                    unsafe { self.defer(block, Kind::Small(class)) };
                    self.count_freed(size);
                    Ok(())
                }
            }
        };
        settle(freed);
    }

    fn free_inside(
        &self,
        context: &Context<'_, P>,
        owner: &mut Owner<'_>,
        class: Class,
        block: Block,
        size: usize,
    ) -> Result<(), Misuse> {
        let mut freed = self.catch_up(context, owner);
        let mut magazine = owner.close(class);
        if !magazine.push(block, size) {
            magazine.flush(|blocks| {
                // A depot may need frames.
                if self.is_short() || !self.depots[class].put(context, class, blocks) {
                    freed = freed.and(self.free_to_slabs(context, class, blocks));
                }
            });
            magazine.push(block, size);
        }
        freed
    }

    /// Returns blocks that were freed as ones of this class to their slabs.
    fn free_to_slabs(
        &self,
        context: &Context<'_, P>,
        class: Class,
        mut blocks: &[Block],
    ) -> Result<(), Misuse> {
        let mut freed = Ok(());
        while let Err(stopped) = self.slabs[class].free(context, class, blocks) {
            let misuse = |wrong| Misuse::Slab {
                block: blocks[stopped.at],
                class,
                wrong,
            };
            let this = match stopped.why {
                // The block shrank where it was (`shrink_in_place`): it goes where it came from.
                Wrong::OfClass(larger) if larger > class => (self.slabs[larger])
                    .free(context, larger, &blocks[stopped.at..=stopped.at])
                    .map_err(|stopped| misuse(stopped.why)),
                wrong => Err(misuse(wrong)),
            };
            freed = freed.and(this);
            blocks = &blocks[stopped.at + 1..];
        }
        freed
    }

    /// Runs some of the work that was deferred to a slow path, which must not become much longer by it.
    fn catch_up(&self, context: &Context<'_, P>, owner: &mut Owner<'_>) -> Result<(), Misuse> {
        let (_, freed) = self.free_some_deferred(context);
        match owner.next_undrained() {
            Some(class) => freed.and(self.drain_class(owner, class)),
            None => freed,
        }
    }

    fn drain_class(&self, owner: &mut Owner<'_>, class: Class) -> Result<(), Misuse> {
        let _transit = self.transit.begin();
        let context = self.context();
        let mut freed = Ok(());
        let mut count = 0;
        let reserve = owner.take_reserve(class);
        owner.close(class).empty(|blocks| {
            for blocks in [reserve.as_slice(), blocks] {
                if !blocks.is_empty() {
                    freed = freed.and(self.free_to_slabs(&context, class, blocks));
                    count += blocks.len();
                }
            }
        });
        self.count_returned(count);
        freed
    }

    /// Frees all blocks whose free was deferred, in steps.
    fn free_deferred(&self) {
        while let Some(BATCH) = self.step(|context| self.free_some_deferred(context)) {}
    }

    /// Frees blocks whose free was deferred, up to a batch, and returns how many.
    fn free_some_deferred(&self, context: &Context<'_, P>) -> (usize, Result<(), Misuse>) {
        if self.shared.deferred.is_empty() {
            return (0, Ok(()));
        }
        let _transit = self.transit.begin();
        let mut freed = Ok(());
        let batch = self.shared.deferred.take(context.cpu);
        let count = batch.len();
        self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
        for deferred in batch {
            match deferred {
                Ok((block, Kind::Small(class))) => {
                    freed = freed.and(self.free_to_slabs(context, class, &[block]));
                }
                // SAFETY: a large block that was freed, of this many frames.
                Ok((block, Kind::Large { frames })) => unsafe {
                    self.free_frames(block, frames as usize);
                },
                Err(Written(block)) => freed = freed.and(Err(Misuse::Written(block))),
            }
        }
        self.count_returned(count);
        (count, freed)
    }

    /// Defers the free of a block.
    ///
    /// # Safety
    ///
    /// As for [`DeferredList::push`].
    unsafe fn defer(&self, block: Block, kind: Kind) {
        // First, so that it isn't counted down before.
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.shared.deferred.push(block, kind) };
    }

    fn allocate_large(&self, layout: Layout) -> Option<Block> {
        let count = frames_of(layout)? as usize;
        let align = layout.align().div_ceil(FRAME);
        if count > self.platform().capacity() {
            return None;
        }
        self.until_short(|_| {
            let _preemption = self.platform().disable_preemption();
            let _interrupts = self.platform().disable_interrupts();
            let entry = self.platform().cache().enter();
            if matches!(entry, Entry::Nested) {
                self.count_reentry();
                return Err(Refused::Nested);
            }
            let block = self.frames.allocate(count, align, Use::Large);
            let block = block.ok_or(Refused::Short)?;
            match &entry {
                Entry::Owner(owner) => owner.count_allocated(layout.size()),
                _ => self.count_allocated(layout.size()),
            }
            self.shared.large_blocks.fetch_add(1, Ordering::Relaxed);
            Ok(block)
        })
    }

    /// Frees a large block.
    ///
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
        let entry = self.platform().cache().enter();
        if matches!(entry, Entry::Nested) {
            self.count_reentry();
            // SAFETY: the caller has freed it, this many frames.
            unsafe { self.defer(block, Kind::Large { frames }) };
        } else {
            // SAFETY: allocated so, and dead now.
            unsafe { self.free_frames(block, frames as usize) };
        }
        match &entry {
            Entry::Owner(owner) => owner.count_freed(layout.size()),
            _ => self.count_freed(layout.size()),
        }
    }

    /// Frees the frames of a large block.
    ///
    /// # Safety
    ///
    /// `block` is a large one of this many frames, which nobody uses.
    unsafe fn free_frames(&self, block: Block, count: usize) {
        // SAFETY: `allocate_large` allocated it so.
        unsafe { self.frames.free(block, count, Use::Large) };
        self.shared.large_blocks.fetch_sub(1, Ordering::Relaxed);
    }

    /// Makes a block smaller without a new one, and gives back what it no longer needs, if that is
    /// whole frames. `false`: nothing has changed.
    ///
    /// # Safety
    ///
    /// `block` is live with the layout `old`, of which the new one differs in the size, which is less,
    /// and nobody uses what lies behind that.
    unsafe fn shrink_in_place(&self, block: Block, old: Layout, new: Layout) -> bool {
        let frames = |layout| frames_of(layout).map_or(0, |frames| frames as usize);
        match (Class::of(old), Class::of(new)) {
            (None, None) => {
                let (before, after) = (frames(old), frames(new));
                // SAFETY: the block's last frames, which it no longer needs.
                unsafe { self.give_back_tail(block, before, after) }
            }
            // The slab knows the block's class when the block returns. Until then it is good for all of
            // the new class, but may be less aligned than they are: see `allocate_small`.
            (Some(_), _) => true,
            // SAFETY: as the caller promises.
            (None, Some(class)) => unsafe { self.split(block, frames(old), class) },
        }
    }

    /// Frees the frames of a large block from `after` on. `false`: not now, as this code interrupted
    /// its CPU inside the heap.
    ///
    /// # Safety
    ///
    /// `block` is a large one of `before` frames, of which nobody uses those from `after` on, of which
    /// there are some.
    unsafe fn give_back_tail(&self, block: Block, before: usize, after: usize) -> bool {
        self.step(|_| {
            // SAFETY: the caller's promise; the tail lies within the block.
            unsafe {
                let tail = block.add(after * FRAME);
                self.frames.free(tail, before - after, Use::Large);
            }
            ((), Ok(()))
        })
        .is_some()
    }

    /// Makes the beginning of a large block a slab, of which it is the first block, and frees the rest.
    /// `false`: nothing has changed.
    ///
    /// # Safety
    ///
    /// `block` is a large one of `before` frames, of which nobody uses what lies behind the first
    /// `class.size()` bytes.
    unsafe fn split(&self, block: Block, before: usize, class: Class) -> bool {
        let kept = class.size().div_ceil(FRAME);
        let split = self.step(|context| {
            let frames = &self.frames;
            let tail = before - kept;
            // Frames for a description that the tail is too small for may go back.
            let _transit = context.announce();
            // The slab's description can lie in what the block gives back, wherever memory is.
            // SAFETY: the block's last frames, which nobody uses, and which are ours until below.
            let mut spares = unsafe { Spares::lent(frames, block.add(kept * FRAME), tail) };
            let slab = (self.map).insert(context, block, kept as u8, class, &mut spares);
            let Ok(slab) = slab else {
                return (false, Ok(()));
            };
            let left = spares.lent_count();
            frames.convert(tail - left, Use::Large, Use::Own);
            frames.convert(kept, Use::Large, Use::Slab);
            let is_listed = self.slabs[class].add(context, class, slab, 1);
            debug_assert!(is_listed, "this CPU holds no lock");
            if left > 0 {
                // SAFETY: what lies between the slab and the tables, of which the same is true.
                unsafe { frames.free(block.add(kept * FRAME), left, Use::Large) };
            }
            self.shared.large_blocks.fetch_sub(1, Ordering::Relaxed);
            (true, Ok(()))
        });
        split == Some(true)
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

/// Returns how many frames a large block takes. `None`: more than there can be.
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
            (None, None) => false,
            _ => before == after,
        };
        if stays {
            self.count_resized(layout.size(), new_size);
            return block;
        }
        let mut moved = ptr::null_mut();
        if is_less && let Some(class) = after {
            // The caches of other CPUs are not drained for it: the block may stay where it is.
            let found = (self.pop(class, new_size))
                .or_else(|| self.attempt(class, new_size, Attempt::First).ok());
            match found {
                Some(found) if found.addr().get().is_multiple_of(new.align()) => {
                    moved = found.as_ptr();
                }
                // As in `allocate_small`.
                Some(found) => self.send_home(class, found, new_size),
                None => {}
            }
            // SAFETY: as above.
            let shrinks =
                || unsafe { self.shrink_in_place(NonNull::new_unchecked(block), layout, new) };
            if moved.is_null() && shrinks() {
                self.count_resized(layout.size(), new_size);
                return block;
            }
        }
        if moved.is_null() {
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
        // Depots and the map have frames of their own by now. A write past the end of the frame before,
        // that is, to the first byte of theirs, changes nothing.
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
    fn a_cpu_on_a_slow_path_may_have_blocks() {
        let heap = Heap::new(HostedFrames::new(256));
        let cache = heap.platform().cache();
        assert!(!cache.may_have_blocks());
        {
            let _entry = cache.enter();
            assert!(cache.may_have_blocks() && cache.cached_bytes() == 0);
        }
        assert!(!cache.may_have_blocks());
        free(&heap, alloc(&heap, LAYOUT), LAYOUT);
        assert!(cache.may_have_blocks());
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
