//! What one CPU caches, and the fast paths.

use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use core::sync::atomic::{compiler_fence, fence};
use core::{fmt, slice};

use super::class::{CLASSES, Class, FRAME, STRIDE};

/// A block that nobody uses.
pub(super) type Block = NonNull<u8>;

/// This CPU is outside the heap.
const IDLE: u8 = 0;
/// This CPU is on a fast path: its cache may be in between, but it holds no lock.
const FAST: u8 = 1;
/// This CPU is on a slow path: it may hold any lock of the heap.
const SLOW: u8 = 2;
/// There is no cache.
const ABSENT: u8 = 3;

/// Where in the storage each class's magazine starts, in bytes.
static OFFSETS: [usize; CLASSES] = {
    let mut offsets = [0; CLASSES];
    let mut class = 1;
    while class < CLASSES {
        offsets[class] = offsets[class - 1] + capacity(class - 1) * size_of::<Block>();
        class += 1;
    }
    offsets
};

/// The memory that the magazines of one CPU take, in frames.
pub(super) const STORAGE_FRAMES: usize =
    (OFFSETS[CLASSES - 1] + capacity(CLASSES - 1) * size_of::<Block>()).div_ceil(FRAME);

/// For CPUs that have no cache yet: whoever uses it goes to the slabs.
pub static NO_CACHE: CpuCache = CpuCache::in_state(ABSENT);

/// What one CPU caches: a magazine of free blocks for each size class.
///
/// The kernel keeps it wherever it keeps what belongs to a CPU, all zeroes at first. Only the CPU
/// itself writes to it (the methods here only read); the magazines lie in frames that the heap
/// gets when the CPU first needs them.
///
/// # Why an interrupt can't break it
///
/// A fast path reads `state`, which must be `IDLE`, stores `FAST`, works, and stores `IDLE`. Let
/// an interrupt, or an NMI, come at any instruction of it and use the heap:
///
/// 1. *Before the store of `FAST`.* So far the interrupted code has read nothing but `state`. The
///    handler finds `IDLE`, works, and leaves `IDLE` behind: what was read is still true.
/// 2. *From there until the store of `IDLE`.* The handler finds `FAST`. It touches neither magazines
///    nor counters here, but takes from the slabs and gives to them. As the interrupted code holds
///    no lock, it may wait for one. Meanwhile it makes the state `SLOW`, for whoever interrupts it.
/// 3. *After the store of `IDLE`.* The interrupted code is done with the cache.
///
/// On a slow path the state is `SLOW`, and interrupts are kept out. Only an NMI or a panic can find
/// it so. It then waits for no lock, because its own CPU may hold it, but has a reserve of one block
/// of each class. The CPU adds to the reserve where there is nothing, so both can't have the block.
///
/// "Before" and "after" are about the order of instructions on one CPU. Compiler fences keep it, and
/// a CPU sees its own stores in order. No store here is for other CPUs to act on.
#[repr(C, align(128))]
pub struct CpuCache {
    state: AtomicU8,
    drain_wanted: AtomicBool,
    /// Bytes allocated less bytes freed on this CPU, as asked for.
    live_bytes: AtomicI64,
    magazines: [Magazine; CLASSES],
    storage: AtomicPtr<Block>,
    /// A block of each class for whoever comes upon this CPU on a slow path, or null.
    reserve: [AtomicPtr<u8>; CLASSES],
    tallies: [Tally; CLASSES],
}

/// The free blocks of one class, as addresses from `base` up to `top`: the blocks themselves are
/// not touched. All null, so both empty and full, while there is no storage.
///
/// Other CPUs read what is atomic. The rest the compiler may read as it likes best.
#[repr(C)]
struct Magazine {
    top: AtomicPtr<Block>,
    base: Cell<*mut Block>,
    end: Cell<*mut Block>,
    allocations: AtomicU64,
}

const _: () = assert!(size_of::<Magazine>() == STRIDE);

// SAFETY: the cells are used by the cache's own CPU only, and there only by whoever may write to the
// cache: see "Why an interrupt can't break it".
unsafe impl Sync for CpuCache {}

// SAFETY: nothing here is bound to a thread. A cache goes to another only while nobody uses it.
unsafe impl Send for CpuCache {}

/// Counts the slow path's work.
struct Tally {
    refills: AtomicU64,
    flushes: AtomicU64,
}

/// One CPU's figures for one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MagazineStatistics {
    /// Allocations that the magazine served: hits, and what followed a refill.
    pub allocations: u64,
    /// Times the magazine was empty and was refilled from the depot or from slabs.
    pub refills: u64,
    /// Times the magazine was full and a part of it went to the depot or to slabs.
    pub flushes: u64,
    /// Free blocks in the magazine, and the one in reserve.
    pub cached_blocks: usize,
}

impl CpuCache {
    /// An empty cache.
    pub const fn new() -> Self {
        Self::in_state(IDLE)
    }

    const fn in_state(state: u8) -> Self {
        Self {
            state: AtomicU8::new(state),
            drain_wanted: AtomicBool::new(false),
            live_bytes: AtomicI64::new(0),
            magazines: [const { Magazine::new() }; CLASSES],
            storage: AtomicPtr::new(ptr::null_mut()),
            reserve: [const { AtomicPtr::new(ptr::null_mut()) }; CLASSES],
            tallies: [const {
                Tally {
                    refills: AtomicU64::new(0),
                    flushes: AtomicU64::new(0),
                }
            }; CLASSES],
        }
    }

    /// The CPU's figures for a class. Exact while the CPU doesn't use the heap.
    pub fn statistics(&self, class: Class) -> MagazineStatistics {
        let magazine = &self.magazines[class];
        let tally = &self.tallies[class];
        let base = self.storage.load(Ordering::Relaxed).addr() + OFFSETS[class];
        let bytes = (magazine.top.load(Ordering::Relaxed).addr()).saturating_sub(base);
        MagazineStatistics {
            allocations: magazine.allocations.load(Ordering::Relaxed),
            refills: tally.refills.load(Ordering::Relaxed),
            flushes: tally.flushes.load(Ordering::Relaxed),
            cached_blocks: (bytes / size_of::<Block>()).min(capacity(class.index()))
                + usize::from(!self.reserve[class].load(Ordering::Relaxed).is_null()),
        }
    }

    /// Bytes in free blocks that the CPU keeps to itself. Exact while it doesn't use the heap.
    pub fn cached_bytes(&self) -> usize {
        Class::all()
            .map(|class| self.statistics(class).cached_blocks * class.size())
            .sum()
    }

    /// Bytes allocated less bytes freed by this CPU: negative where it frees what others allocate.
    pub(super) fn live_bytes(&self) -> i64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// Whether this is a CPU's, and not [`NO_CACHE`].
    pub(super) fn exists(&self) -> bool {
        self.state.load(Ordering::Relaxed) != ABSENT
    }

    /// A cached block, for an allocation of `size` bytes. `None`: see to it on the slow path.
    #[inline(always)]
    pub(super) fn pop(&self, class: Class, size: usize) -> Option<Block> {
        if !self.begin() {
            return None;
        }
        let block = self.pop_inside(class, size);
        self.end();
        block
    }

    /// Caches a block that was an allocation of `size` bytes. `false`: see to it on the slow path.
    #[inline(always)]
    pub(super) fn push(&self, class: Class, block: Block, size: usize) -> bool {
        if !self.begin() {
            return false;
        }
        let pushed = self.push_inside(class, block, size);
        self.end();
        pushed
    }

    /// Corrects the live bytes. `false`: this CPU is inside the heap or has no cache.
    #[inline]
    pub(super) fn correct(&self, bytes: i64) -> bool {
        if !self.begin() {
            return false;
        }
        self.account(bytes);
        self.end();
        true
    }

    #[inline(always)]
    fn begin(&self) -> bool {
        if self.state.load(Ordering::Relaxed) != IDLE {
            return false;
        }
        self.state.store(FAST, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        true
    }

    #[inline(always)]
    fn end(&self) {
        compiler_fence(Ordering::SeqCst);
        self.state.store(IDLE, Ordering::Relaxed);
    }

    #[inline(always)]
    fn magazine(&self, class: Class) -> &Magazine {
        // SAFETY: a class's offset is its number times the size of a magazine.
        unsafe { &*(&raw const self.magazines).byte_add(class.offset()).cast() }
    }

    #[inline(always)]
    fn pop_inside(&self, class: Class, size: usize) -> Option<Block> {
        let magazine = self.magazine(class);
        let top = magazine.top.load(Ordering::Relaxed);
        if top == magazine.base.get() {
            return None;
        }
        // SAFETY: `top` lies above `base`, so the magazine's memory goes on below it.
        let top = unsafe { top.sub(1) };
        // SAFETY: everything from `base` to the old `top` is a block, and only this CPU, once at a
        // time, gets here.
        let block = unsafe { top.read() };
        magazine.top.store(top, Ordering::Relaxed);
        // Only this CPU writes the counter: an increment needs no bus lock.
        let allocations = magazine.allocations.load(Ordering::Relaxed);
        magazine
            .allocations
            .store(allocations.wrapping_add(1), Ordering::Relaxed);
        self.account(size as i64);
        Some(block)
    }

    #[inline(always)]
    fn push_inside(&self, class: Class, block: Block, size: usize) -> bool {
        let magazine = self.magazine(class);
        let top = magazine.top.load(Ordering::Relaxed);
        if top == magazine.end.get() {
            return false;
        }
        // SAFETY: `top` lies below `end`, so there is room for a block, and only this CPU, once at a
        // time, gets here.
        unsafe { top.write(block) };
        // SAFETY: at most `end`, as above.
        let top = unsafe { top.add(1) };
        magazine.top.store(top, Ordering::Relaxed);
        self.account(-(size as i64));
        true
    }

    #[inline(always)]
    fn account(&self, bytes: i64) {
        let live = self.live_bytes.load(Ordering::Relaxed);
        self.live_bytes
            .store(live.wrapping_add(bytes), Ordering::Relaxed);
    }

    /// Enters a slow path on this CPU. Interrupts are kept out.
    pub(super) fn enter(&self) -> Entry<'_> {
        let before = self.state.load(Ordering::Relaxed);
        if before == SLOW {
            return Entry::Nested;
        }
        if before != ABSENT {
            self.state.store(SLOW, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
        }
        let inside = Inside {
            cache: self,
            before,
        };
        if before == IDLE {
            Entry::Owner(Owner(inside))
        } else {
            Entry::Guest(inside)
        }
    }

    /// Runs what stands for an interrupt handler where a fast path is half done.
    #[cfg(all(test, feature = "hosted"))]
    pub(super) fn during_fast_path(&self, handler: impl FnOnce()) {
        assert!(self.begin());
        handler();
        self.end();
    }

    /// The block in reserve, for code that came upon its own CPU on a slow path.
    pub(super) fn take_reserve(&self, class: Class) -> Option<Block> {
        // An exchange, so that not even an NMI on top of a panic gets the block a second time.
        NonNull::new(self.reserve[class].swap(ptr::null_mut(), Ordering::Relaxed))
    }

    /// Asks the CPU to drain when it next takes a slow path.
    pub(super) fn want_drain(&self) {
        self.drain_wanted.store(true, Ordering::Relaxed);
    }
}

impl Default for CpuCache {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CpuCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuCache")
            .field("live_bytes", &self.live_bytes())
            .field("cached_bytes", &self.cached_bytes())
            .finish_non_exhaustive()
    }
}

impl Magazine {
    const fn new() -> Self {
        Self {
            top: AtomicPtr::new(ptr::null_mut()),
            base: Cell::new(ptr::null_mut()),
            end: Cell::new(ptr::null_mut()),
            allocations: AtomicU64::new(0),
        }
    }
}

/// How a slow path was entered, which says what it may touch.
pub(super) enum Entry<'a> {
    /// From outside the heap: the cache is this code's alone.
    Owner(Owner<'a>),
    /// On top of a fast path, or without a cache: locks, but no cache.
    Guest(#[expect(dead_code, reason = "held for its drop")] Inside<'a>),
    /// On top of a slow path: neither.
    Nested,
}

/// A slow path, which ends when this is dropped.
pub(super) struct Inside<'a> {
    cache: &'a CpuCache,
    before: u8,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.before != ABSENT {
            compiler_fence(Ordering::SeqCst);
            self.cache.state.store(self.before, Ordering::Relaxed);
        }
    }
}

/// The right to the CPU's cache: the state is `SLOW`, and was `IDLE` before.
pub(super) struct Owner<'a>(Inside<'a>);

impl Owner<'_> {
    fn cache(&self) -> &CpuCache {
        self.0.cache
    }

    pub(super) fn has_storage(&self) -> bool {
        !self.cache().storage.load(Ordering::Relaxed).is_null()
    }

    /// Gives the magazines their memory.
    ///
    /// # Safety
    ///
    /// The memory is [`STORAGE_FRAMES`] long, aligned for pointers, and the cache's alone until
    /// [`detach`](Self::detach) returns it.
    pub(super) unsafe fn attach(&mut self, storage: NonNull<Block>) {
        for class in Class::all() {
            // SAFETY: all magazines together fit in the storage.
            let base = unsafe { storage.as_ptr().byte_add(OFFSETS[class]) };
            // SAFETY: as above.
            let end = unsafe { base.add(capacity(class.index())) };
            let magazine = &self.cache().magazines[class];
            magazine.base.set(base);
            magazine.top.store(base, Ordering::Relaxed);
            magazine.end.set(end);
        }
        self.cache()
            .storage
            .store(storage.as_ptr(), Ordering::Relaxed);
    }

    /// Takes the memory back, if there is any. The magazines must be empty; what they hold is lost.
    pub(super) fn detach(&mut self) -> Option<NonNull<Block>> {
        for magazine in &self.cache().magazines {
            magazine.top.store(ptr::null_mut(), Ordering::Relaxed);
            magazine.base.set(ptr::null_mut());
            magazine.end.set(ptr::null_mut());
        }
        // `Inside` says that nobody else writes here, so no exchange is needed.
        let storage = self.cache().storage.load(Ordering::Relaxed);
        self.cache()
            .storage
            .store(ptr::null_mut(), Ordering::Relaxed);
        // Statistics that other CPUs gather only compare the addresses.
        fence(Ordering::Release);
        NonNull::new(storage)
    }

    pub(super) fn pop(&mut self, class: Class, size: usize) -> Option<Block> {
        self.cache().pop_inside(class, size)
    }

    pub(super) fn push(&mut self, class: Class, block: Block, size: usize) -> bool {
        self.cache().push_inside(class, block, size)
    }

    /// Sees to it that there is a block in reserve, if the magazine has one.
    pub(super) fn keep_reserve(&mut self, class: Class) {
        let reserve = &self.cache().reserve[class];
        if reserve.load(Ordering::Relaxed).is_null() {
            // Whoever interrupts this only takes, so the reserve is still empty afterwards.
            self.take_oldest(class, 1, |blocks| {
                if let Some(block) = blocks.first() {
                    reserve.store(block.as_ptr(), Ordering::Relaxed);
                }
            });
        }
    }

    /// Lets `fill` put blocks into the magazine, which must be empty.
    pub(super) fn refill(
        &mut self,
        class: Class,
        fill: impl FnOnce(&mut [MaybeUninit<Block>]) -> usize,
    ) {
        let magazine = &self.cache().magazines[class];
        let base = magazine.base.get();
        if base.is_null() || magazine.top.load(Ordering::Relaxed) != base {
            return;
        }
        // SAFETY: the magazine has memory for at least its class's depth, which is this code's
        // alone, and holds no block.
        let room = unsafe { slice::from_raw_parts_mut(base.cast(), class.depth()) };
        let filled = fill(room).min(class.depth());
        // SAFETY: within the magazine's memory.
        let top = unsafe { base.add(filled) };
        magazine.top.store(top, Ordering::Relaxed);
        count(&self.cache().tallies[class].refills);
    }

    /// Lets `empty` have the blocks that have been here longest, as many as move at once.
    pub(super) fn flush(&mut self, class: Class, empty: impl FnOnce(&[Block])) {
        let depth = class.depth();
        self.take_oldest(class, depth, empty);
        count(&self.cache().tallies[class].flushes);
    }

    /// Lets `empty` have all blocks of the class, in one or two parts.
    pub(super) fn flush_all(&mut self, class: Class, mut empty: impl FnMut(&[Block])) {
        if let Some(block) = self.cache().take_reserve(class) {
            empty(&[block]);
        }
        self.take_oldest(class, usize::MAX, empty);
    }

    fn take_oldest(&self, class: Class, most: usize, empty: impl FnOnce(&[Block])) {
        let magazine = &self.cache().magazines[class];
        let base = magazine.base.get();
        if base.is_null() {
            return;
        }
        // SAFETY: both point into the magazine's memory, `top` not below `base`.
        let cached = unsafe {
            magazine
                .top
                .load(Ordering::Relaxed)
                .offset_from_unsigned(base)
        };
        let taken = cached.min(most);
        // SAFETY: `cached` blocks lie at `base`, and nobody writes there meanwhile.
        empty(unsafe { slice::from_raw_parts(base, taken) });
        // SAFETY: the rest of the blocks, moved down within the magazine's memory.
        unsafe { ptr::copy(base.add(taken), base, cached - taken) };
        // SAFETY: within the magazine's memory.
        let top = unsafe { base.add(cached - taken) };
        magazine.top.store(top, Ordering::Relaxed);
    }

    /// Whether the CPU has been asked to drain and has not yet.
    pub(super) fn is_drain_wanted(&self) -> bool {
        self.cache().drain_wanted.load(Ordering::Relaxed)
    }

    pub(super) fn drained(&mut self) {
        self.cache().drain_wanted.store(false, Ordering::Relaxed);
    }
}

/// How many blocks of a class a CPU caches at most.
const fn capacity(class: usize) -> usize {
    match Class::from_index(class) {
        Some(class) => 2 * class.depth(),
        None => 0,
    }
}

/// Counts up what only this CPU writes.
fn count(counter: &AtomicU64) {
    let value = counter.load(Ordering::Relaxed);
    counter.store(value.wrapping_add(1), Ordering::Relaxed);
}
