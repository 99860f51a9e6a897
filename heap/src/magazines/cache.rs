//! A CPU's cache, and the fast paths.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64};
use core::sync::atomic::{Ordering, compiler_fence};
use core::{fmt, slice};

use super::class::{BINS, Bin, CLASSES, Class, FRAME, LARGE_BINS, MAX_LARGE_FRAMES, STRIDE};
use super::statistics::Traffic;

/// A block that nobody uses.
pub(super) type Block = NonNull<u8>;

/// This CPU is outside the heap, or on a fast path that is restarted.
const IDLE: u8 = 0;
/// This CPU is on a flagged fast path: its cache may be in between, but it holds no lock.
const FAST: u8 = 1;
/// This CPU is on a slow path: it may hold any lock of the heap.
const SLOW: u8 = 2;
/// There is no cache.
const ABSENT: u8 = 3;

/// Which slot each magazine begins with. It is always null: the end that a pop runs into. None begins with slot 0, which is the
/// `top` and the `end` of those that were never used.
static BOTTOMS: [u32; BINS] = {
    let mut bottoms = [1; BINS];
    let mut bin = 1;
    while bin < BINS {
        bottoms[bin] = bottoms[bin - 1] + 1 + capacity(bin - 1);
        bin += 1;
    }
    bottoms
};

/// The slot that a closed magazine's `top` is: null, so a pop finds nothing there, and not below any
/// `end`, so a push finds no room.
const CLOSED: u32 = BOTTOMS[BINS - 1] + 1 + capacity(BINS - 1);

const SLOTS: usize = CLOSED as usize + 1;

/// The cache of CPUs that have none yet: code that uses it takes from the slabs.
pub static NO_CACHE: CpuCache = CpuCache::in_state(ABSENT);

/// One CPU's cache: a magazine of free blocks for each size class, and for large blocks of each number of frames up to 64.
/// Some 31 KiB.
///
/// The kernel keeps it wherever it keeps what belongs to a CPU, all zeroes at first, which is also
/// what [`new`](Self::new) makes. Only the CPU itself writes to it; the methods here only read.
///
/// # Why an interrupt can't break it
///
/// A pop reads `top`, reads the slot of that number, and counts `top` down; a push reads `top`, writes
/// the slot above, and counts `top` up. An interrupt, or an NMI, may come at any instruction and its
/// handler may use the heap. The state that it finds and leaves behind depends on the platform's
/// [`FastPath`](super::FastPath).
///
/// **Restarted.** The change of `top` is the last instruction of the sequence and the only one that
/// counts: the sequence up to there has changed nothing but a slot that is free. So it may be given up
/// and restarted, which is what happens if the handler's return comes through
/// [`resume`](super::resume). The handler itself finds a cache that is whole. All this is true also if
/// the code goes on on another CPU, as the sequence begins with GS.
///
/// **Flagged.** The sequence is enclosed by stores of `FAST` and `IDLE` to `state`, which is `IDLE`
/// before.
///
/// 1. *Before the store of `FAST`*, the interrupted code has read nothing but `state`. The handler
///    finds `IDLE`, works, and leaves `IDLE` behind: what was read is still true.
/// 2. *From there until the store of `IDLE`*, the handler finds `FAST`. It touches neither magazines
///    nor counters here, but takes from the slabs and gives to them. As the interrupted code holds no
///    lock, it may wait for one. For that time it makes the state `SLOW`, for code that interrupts it.
/// 3. *After the store of `IDLE`*, the interrupted code is done with the cache.
///
/// **Uninterrupted.** No handler uses the heap.
///
/// **On a slow path** the state is `SLOW`, and interrupts are disabled. Only an NMI or a panic can find
/// it so. Each magazine that the slow path works on is *closed* first, by one exchange of its `top`,
/// and opened last, by one store: a restarted fast path on top finds it neither with a block nor with
/// room, and the others as usable as ever. A slow path on top of a slow path waits for no lock, because
/// its own CPU may hold it, but has a reserve of one block of each class. The CPU adds to the reserve
/// where there is nothing, so both can't have the block.
///
/// "Before" and "after" are about the order of instructions on one CPU. Compiler fences keep it, and
/// a CPU sees its own stores in order. The fences are `SeqCst`, as no other keeps the compiler from
/// loading before an earlier store. All accesses are `Relaxed`, except where a comment says otherwise: the figures that other
/// CPUs read are for reports, but for those by which they decide whether to ask this one for memory.
#[repr(C, align(128))]
pub struct CpuCache {
    state: AtomicU8,
    /// The number of magazines that the CPU has yet to drain, because it was asked to inside the heap:
    /// the last of them first.
    undrained: AtomicU8,
    /// Bytes allocated on this CPU, as asked for, and bytes freed: both only grow.
    pub(super) allocated: AtomicU64,
    pub(super) freed: AtomicU64,
    pub(super) magazines: [Magazine; BINS],
    pub(super) slots: UnsafeCell<[*mut u8; SLOTS]>,
    /// Operations of this CPU that have memory in transit with interrupts enabled. Relaxed: only code on this CPU uses it.
    long_transits: AtomicU32,
    /// A block of each class for code that interrupts this CPU on a slow path, or null.
    reserve: [AtomicPtr<u8>; CLASSES],
    tallies: [Tally; CLASSES],
    /// The number of times that a magazine was refilled, from [`FILLED`] up, and whether one [is](IS_FILLING) just now.
    fills: AtomicU64,
    /// Frames of large blocks that the magazines have room for now. Each of these four is used by this CPU alone, on a slow
    /// path, so `Relaxed`.
    large_frames: AtomicU32,
    /// A bit for each bin of large blocks: whether there is room for any.
    grown: AtomicU64,
    /// The number, among these, of the bin that gives up its room next, if it has some.
    victim: AtomicU8,
    /// The bins of large blocks for which there was no room the last few times, a byte each.
    recent: AtomicU32,
}

/// The free blocks of one class, or large ones: those in the slots above the magazine's bottom, up to `top`. The
/// blocks themselves are not touched. All zeroes, so both empty and full, until first used.
///
/// `top` and `end` are less than [`SLOTS`].
#[repr(C)]
pub(super) struct Magazine {
    pub(super) top: AtomicU32,
    /// The highest slot that may be filled.
    pub(super) end: AtomicU32,
    pub(super) allocations: AtomicU64,
}

const _: () = assert!(size_of::<Magazine>() == STRIDE);

// SAFETY: slots are used by the cache's own CPU only, and there only by whoever may write to the
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
    /// The most blocks that the magazine may have now: it grows with each refill and flush, up to twice
    /// the class's [`depth`](Class::depth), and starts again when the CPU drains.
    pub limit: usize,
}

impl CpuCache {
    /// Creates an empty cache: all zeroes.
    pub const fn new() -> Self {
        Self::in_state(IDLE)
    }

    const fn in_state(state: u8) -> Self {
        Self {
            state: AtomicU8::new(state),
            undrained: AtomicU8::new(0),
            allocated: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            magazines: [const {
                Magazine {
                    top: AtomicU32::new(0),
                    end: AtomicU32::new(0),
                    allocations: AtomicU64::new(0),
                }
            }; BINS],
            slots: UnsafeCell::new([ptr::null_mut(); SLOTS]),
            long_transits: AtomicU32::new(0),
            reserve: [const { AtomicPtr::new(ptr::null_mut()) }; CLASSES],
            tallies: [const {
                Tally {
                    refills: AtomicU64::new(0),
                    flushes: AtomicU64::new(0),
                }
            }; CLASSES],
            fills: AtomicU64::new(0),
            large_frames: AtomicU32::new(0),
            grown: AtomicU64::new(0),
            victim: AtomicU8::new(0),
            recent: AtomicU32::new(0),
        }
    }

    /// Returns the CPU's figures for a class. Exact while the CPU doesn't use the heap.
    pub fn statistics(&self, class: Class) -> MagazineStatistics {
        let tally = &self.tallies[class];
        let (blocks, limit) = self.blocks(class.into());
        MagazineStatistics {
            allocations: self
                .magazine(class.into())
                .allocations
                .load(Ordering::Relaxed),
            refills: tally.refills.load(Ordering::Relaxed),
            flushes: tally.flushes.load(Ordering::Relaxed),
            cached_blocks: blocks
                + usize::from(!self.reserve[class].load(Ordering::Relaxed).is_null()),
            limit,
        }
    }

    /// Returns the bytes in large blocks that the CPU keeps to itself: those of up to 64 frames, aligned to no more than one.
    /// Exact while it doesn't use the heap.
    pub fn cached_large_bytes(&self) -> usize {
        self.large().1
    }

    /// Returns how many large blocks the CPU keeps to itself, and their bytes.
    pub(super) fn large(&self) -> (usize, usize) {
        Bin::all_large().fold((0, 0), |(blocks, bytes), bin| {
            let count = self.blocks(bin).0;
            let frames = bin.class().err().unwrap_or(0);
            (blocks + count, bytes + count * frames * FRAME)
        })
    }

    /// Returns how many blocks are in a magazine, and how many may be now.
    fn blocks(&self, bin: Bin) -> (usize, usize) {
        let magazine = self.magazine(bin);
        let end = magazine.end.load(Ordering::Relaxed);
        // A magazine that is closed just now counts as empty.
        let top = Some(magazine.top.load(Ordering::Relaxed)).filter(|&top| top <= end);
        let above_bottom = |slot: u32| slot.saturating_sub(BOTTOMS[bin]) as usize;
        (top.map_or(0, above_bottom), above_bottom(end))
    }

    /// Returns the bytes in free blocks that the CPU keeps to itself. Exact while it doesn't use the
    /// heap; but a block that shrank where it was counts as of its new size, though all of it is kept.
    pub fn cached_bytes(&self) -> usize {
        let small = Class::all().map(|class| self.statistics(class).cached_blocks * class.size());
        small.sum::<usize>() + self.large().1
    }

    /// Returns whether the CPU may have blocks that it would give back if it were asked to drain: it
    /// has some, or is on a slow path, where a magazine that it works on counts as empty.
    ///
    /// If any CPU may, a platform had better ask all: one that is about to enter a slow path may take what the others give
    /// back.
    pub fn may_have_blocks(&self) -> bool {
        // Acquire: a CPU that has left its slow path has what it put into its magazines there.
        self.state.load(Ordering::Acquire) == SLOW
            || self
                .magazines
                .iter()
                .zip(&BOTTOMS)
                .any(|(magazine, bottom)| {
                    // The CPU may have gone on since, and have closed one: that is above any bottom. Acquire: what went from
                    // there into the reserve is found below.
                    magazine.top.load(Ordering::Acquire) > *bottom
                })
            || (self.reserve.iter()).any(|block| !block.load(Ordering::Relaxed).is_null())
    }

    /// Returns what was allocated and freed on this CPU, large blocks included. The traffic of code
    /// that interrupted it inside the heap is the heap's [common
    /// traffic](super::MagazineHeap::common_traffic).
    pub fn traffic(&self) -> Traffic {
        Traffic {
            allocated_bytes: self.allocated.load(Ordering::Relaxed),
            freed_bytes: self.freed.load(Ordering::Relaxed),
        }
    }

    /// Returns a number that grows whenever something comes into the cache; `None`: something may just now.
    pub(super) fn gains(&self) -> Option<u64> {
        // Acquire, with the Release of the counts: what came in is found, or the magazine is found closed.
        let freed = self.freed.load(Ordering::Acquire);
        let fills = self.fills.load(Ordering::Acquire);
        (fills & IS_FILLING == 0).then_some(freed.wrapping_add(fills))
    }

    /// Returns whether this is a CPU's, and not [`NO_CACHE`].
    pub(super) fn exists(&self) -> bool {
        self.state.load(Ordering::Relaxed) != ABSENT
    }

    /// Runs the fast path of an allocation of `size` bytes, flagged or uninterrupted. `None`: take
    /// the slow path.
    #[inline(always)]
    pub(super) fn pop<const FLAGGED: bool>(&self, bin: Bin, size: usize) -> Option<Block> {
        if FLAGGED && !self.begin() {
            return None;
        }
        let magazine = self.magazine(bin);
        let top = magazine.top.load(Ordering::Relaxed);
        // SAFETY: (1) `top` is less than `SLOTS`; (2) only this CPU, once at a time, gets here.
        let block = unsafe { self.slot(top).read() };
        let block = NonNull::new(block);
        if block.is_some() {
            // Release: what the slow path has left for others to see stays so (`may_have_blocks`).
            magazine.top.store(top - 1, Ordering::Release);
            // Only this CPU writes the counters: an increment needs no bus lock.
            add(&magazine.allocations, 1, Ordering::Relaxed);
            add(&self.allocated, size as u64, Ordering::Relaxed);
        }
        if FLAGGED {
            self.end();
        }
        block
    }

    /// Runs the fast path of a free of `size` bytes, flagged or uninterrupted. `false`: take the
    /// slow path.
    #[inline(always)]
    pub(super) fn push<const FLAGGED: bool>(&self, bin: Bin, block: Block, size: usize) -> bool {
        if FLAGGED && !self.begin() {
            return false;
        }
        let magazine = self.magazine(bin);
        let top = magazine.top.load(Ordering::Relaxed);
        let has_room = top < magazine.end.load(Ordering::Relaxed);
        if has_room {
            // SAFETY: (1) `top` is below `end`, which is less than `SLOTS`; (2) as in `pop`.
            unsafe { self.slot(top + 1).write(block.as_ptr()) };
            magazine.top.store(top + 1, Ordering::Relaxed);
            // Release, with the Acquire of `gains`: a CPU that sees the count finds the block.
            add(&self.freed, size as u64, Ordering::Release);
        }
        if FLAGGED {
            self.end();
        }
        has_room
    }

    /// Counts that a block of this CPU's became larger or smaller where it is. `false`: this CPU is
    /// inside the heap or has no cache.
    #[inline]
    pub(super) fn count_resized(&self, before: usize, after: usize) -> bool {
        if self.state.load(Ordering::Relaxed) != IDLE {
            return false;
        }
        // Against interrupts, not other CPUs: what the handler adds must not be lost.
        if after >= before {
            (self.allocated).fetch_add((after - before) as u64, Ordering::Relaxed);
        } else {
            (self.freed).fetch_add((before - after) as u64, Ordering::Relaxed);
        }
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
    fn magazine(&self, bin: Bin) -> &Magazine {
        // SAFETY: a bin's offset is its number times the size of a magazine.
        unsafe { &*(&raw const self.magazines).byte_add(bin.offset()).cast() }
    }

    /// Returns the slot of this number.
    ///
    /// # Safety
    ///
    /// `number` is less than [`SLOTS`].
    #[inline(always)]
    unsafe fn slot(&self, number: u32) -> *mut *mut u8 {
        // SAFETY: within the array, as the caller promises.
        unsafe { self.slots.get().cast::<*mut u8>().add(number as usize) }
    }

    /// Enters a slow path on this CPU. Interrupts are disabled.
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

    /// Takes the block in reserve, for code that interrupted its own CPU on a slow path.
    pub(super) fn take_reserve(&self, class: Class) -> Option<Block> {
        // An exchange, so that not even an NMI on top of a panic gets the block a second time.
        NonNull::new(self.reserve[class].swap(ptr::null_mut(), Ordering::Relaxed))
    }

    /// Marks that code of this CPU has memory in transit with interrupts enabled, until the result is dropped. It stays on the CPU.
    pub(super) fn mark_transit(&self) -> TransitMark<'_> {
        let marked = self.exists().then_some(self);
        if let Some(cache) = marked {
            cache.long_transits.fetch_add(1, Ordering::Relaxed);
        }
        TransitMark(marked)
    }

    /// Returns whether this code interrupted such code, and must not wait for it.
    pub(super) fn is_in_transit(&self) -> bool {
        self.long_transits.load(Ordering::Relaxed) > 0
    }

    /// Asks the CPU to drain on its next slow paths, a magazine on each.
    pub(super) fn request_drain(&self) {
        self.undrained.store(BINS as u8, Ordering::Relaxed);
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
            .field("traffic", &self.traffic())
            .field("cached_bytes", &self.cached_bytes())
            .finish_non_exhaustive()
    }
}

/// Code of a CPU, unless that has no cache, has memory in transit with interrupts enabled.
pub(super) struct TransitMark<'a>(Option<&'a CpuCache>);

impl Drop for TransitMark<'_> {
    fn drop(&mut self) {
        if let Some(cache) = self.0 {
            cache.long_transits.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The way in which a slow path was entered, which decides what it may use.
pub(super) enum Entry<'a> {
    /// From outside the heap: the cache is this code's alone.
    Owner(Owner<'a>),
    /// On top of a flagged fast path, or without a cache: locks, but no cache.
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
            // Release: see `may_have_blocks`.
            self.cache.state.store(self.before, Ordering::Release);
        }
    }
}

/// The right to the CPU's cache: the state is `SLOW`, and was `IDLE` before.
pub(super) struct Owner<'a>(Inside<'a>);

impl Owner<'_> {
    fn cache(&self) -> &CpuCache {
        self.0.cache
    }

    /// Closes a magazine to all others, for as long as the result lives.
    pub(super) fn close(&mut self, bin: impl Into<Bin>) -> Closed<'_> {
        let cache = self.0.cache;
        let bin = bin.into();
        let magazine = cache.magazine(bin);
        let bottom = BOTTOMS[bin];
        // One exchange: what an NMI does with the magazine until now counts, and from now on it
        // does nothing.
        let top = magazine.top.swap(CLOSED, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        let end = magazine.end.load(Ordering::Relaxed);
        let mut closed = Closed {
            cache,
            bin,
            blocks: top.saturating_sub(bottom) as usize,
            limit: end.saturating_sub(bottom) as usize,
            _owner: PhantomData,
        };
        if end == 0 {
            closed.blocks = 0;
            closed.limit = bin.first_limit();
        }
        closed
    }

    /// Takes the block in reserve.
    pub(super) fn take_reserve(&mut self, class: Class) -> Option<Block> {
        self.cache().take_reserve(class)
    }

    /// Returns whether there is a block in the class's reserve.
    pub(super) fn has_reserve(&self, class: Class) -> bool {
        let reserve = &self.cache().reserve[class];
        !reserve.load(Ordering::Relaxed).is_null()
    }

    /// Returns the next magazine to drain, if the CPU has been asked to.
    pub(super) fn next_undrained(&mut self) -> Option<Bin> {
        // Relaxed, and in two steps: only this CPU uses it. A request that an NMI makes in between is
        // lost; the code that asked knows from `drain` that it has to ask again.
        let left = self
            .cache()
            .undrained
            .load(Ordering::Relaxed)
            .checked_sub(1)?;
        self.cache().undrained.store(left, Ordering::Relaxed);
        Bin::from_index(left.into())
    }

    /// Notes that there was no room for a large block. Returns whether it is worth while to make some: whether one of the last few
    /// that found none had as many frames. Otherwise the next request is likely to be for another number.
    pub(super) fn note_full(&mut self, bin: Bin) -> bool {
        let recent = &self.cache().recent;
        let before = recent.load(Ordering::Relaxed);
        // Not 0, which is none.
        let number = bin.large_bit().trailing_zeros() as u8 + 1;
        recent.store(before << u8::BITS | u32::from(number), Ordering::Relaxed);
        before.to_le_bytes().contains(&number)
    }

    /// Makes room in a magazine for one more large block. The blocks that leave the cache for it go to `empty`, with the
    /// number of frames that each has. `false`: there is no room.
    pub(super) fn make_room(&mut self, bin: Bin, mut empty: impl FnMut(&[Block], usize)) -> bool {
        let Err(frames) = bin.class() else {
            return false;
        };
        for _ in 0..=LARGE_BINS {
            let kept = self.cache().large_frames.load(Ordering::Relaxed) as usize;
            let mut closed = self.close(bin);
            if closed.limit == bin.capacity() {
                closed.take_oldest(1, |blocks| empty(blocks, frames));
                return true;
            }
            if kept + frames <= MAX_LARGE_FRAMES {
                closed.set_limit(closed.limit + 1, frames);
                return true;
            }
            drop(closed);
            match self.next_victim() {
                Some(victim) => self.empty_large(victim, &mut empty),
                None => break,
            }
        }
        false
    }

    /// Returns the bin of large blocks that gives up its room next: one after the other does.
    fn next_victim(&mut self) -> Option<Bin> {
        let cache = self.cache();
        let first = cache.victim.load(Ordering::Relaxed);
        let grown = cache.grown.load(Ordering::Relaxed);
        let next = grown.rotate_right(first.into()).trailing_zeros();
        let number = (u32::from(first) + next) % u64::BITS;
        cache
            .victim
            .store((number + 1) as u8 % u64::BITS as u8, Ordering::Relaxed);
        Bin::from_index(CLASSES + number as usize).filter(|_| grown != 0)
    }

    /// Passes all blocks of a bin of large ones to `empty`, with their number of frames, and lets it have none for now.
    pub(super) fn empty_large(&mut self, bin: Bin, empty: &mut impl FnMut(&[Block], usize)) {
        if let Err(frames) = bin.class() {
            self.close(bin).empty(|blocks| empty(blocks, frames));
        }
    }

    /// Counts a block past the magazines. An NMI's fast path may add to it at the same time.
    pub(super) fn count_allocated(&self, bytes: usize) {
        (self.cache().allocated).fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a block that was freed past the magazines, as [`count_allocated`](Self::count_allocated)
    /// does.
    pub(super) fn count_freed(&self, bytes: usize) {
        (self.cache().freed).fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A magazine that no other code can use until this is dropped.
pub(super) struct Closed<'a> {
    cache: &'a CpuCache,
    bin: Bin,
    /// The number of blocks.
    blocks: usize,
    /// The maximum number of blocks now: at most the magazine's capacity.
    limit: usize,
    /// One magazine is closed at a time.
    _owner: PhantomData<&'a mut ()>,
}

impl Closed<'_> {
    /// Returns the memory for the blocks, of which the first `blocks` are there.
    fn memory(&mut self) -> &mut [MaybeUninit<Block>] {
        // SAFETY: (1) the magazine's slots but the lowest are this many, and hold pointers, which a
        // `MaybeUninit<NonNull>` is as large as; (2) the magazine is closed and the state `SLOW`, and
        // code that interrupts this leaves both alone: no other code reads or writes there while `self`
        // is borrowed.
        unsafe {
            let first = self.cache.slot(BOTTOMS[self.bin] + 1);
            slice::from_raw_parts_mut(first.cast(), self.bin.capacity())
        }
    }

    /// Takes the block that was put in last.
    pub(super) fn pop(&mut self, size: usize) -> Option<Block> {
        let last = self.blocks.checked_sub(1)?;
        // SAFETY: the first `blocks` are there.
        let block = unsafe { self.memory().get(last)?.assume_init() };
        self.blocks = last;
        add(
            &self.cache.magazine(self.bin).allocations,
            1,
            Ordering::Relaxed,
        );
        // An NMI's fast path may add to it at the same time.
        (self.cache.allocated).fetch_add(size as u64, Ordering::Relaxed);
        Some(block)
    }

    /// Puts a block in, if there is room.
    pub(super) fn push(&mut self, block: Block, size: usize) -> bool {
        let blocks = self.blocks;
        if blocks >= self.limit {
            return false;
        }
        if let Some(place) = self.memory().get_mut(blocks) {
            place.write(block);
            self.blocks += 1;
            // As in `pop`, and Release: a CPU that sees the count finds the magazine closed, or what is in it.
            (self.cache.freed).fetch_add(size as u64, Ordering::Release);
        }
        blocks < self.blocks
    }

    /// Returns how many blocks move at once: half of what there may be.
    fn batch(&self) -> usize {
        self.limit.max(self.bin.first_limit()) / 2
    }

    /// Lets the magazine hold more, if it may, as a miss shows that it is too small.
    fn grow(&mut self) {
        let more = (self.limit * 2).max(self.bin.first_limit());
        self.limit = more.min(self.bin.capacity());
    }

    /// Lets a magazine of large blocks hold `limit` blocks, of `frames` frames each.
    fn set_limit(&mut self, limit: usize, frames: usize) {
        let cache = self.cache;
        let kept = cache.large_frames.load(Ordering::Relaxed) as usize;
        let now = kept + limit * frames - self.limit * frames;
        cache.large_frames.store(now as u32, Ordering::Relaxed);
        let (bit, grown) = (self.bin.large_bit(), cache.grown.load(Ordering::Relaxed));
        let grown = if limit > 0 { grown | bit } else { grown & !bit };
        cache.grown.store(grown, Ordering::Relaxed);
        self.limit = limit;
    }

    /// Fills the reserve with a block, if the magazine has one.
    pub(super) fn keep_reserve(&mut self) {
        let Ok(class) = self.bin.class() else {
            return;
        };
        let reserve = &self.cache.reserve[class];
        if reserve.load(Ordering::Relaxed).is_null() {
            // Code that interrupts this only takes, so the reserve is still empty afterwards.
            self.take_oldest(1, |blocks| {
                if let Some(block) = blocks.first() {
                    reserve.store(block.as_ptr(), Ordering::Relaxed);
                }
            });
        }
    }

    /// Lets `fill` put blocks into the magazine, if it is empty.
    pub(super) fn refill(&mut self, fill: impl FnOnce(&mut [MaybeUninit<Block>]) -> usize) {
        if self.blocks > 0 {
            return;
        }
        let batch = self.batch();
        // Before the blocks are on their way here, where nobody else finds them. Release, here and below: see `gains`.
        let fills = self.cache.fills.load(Ordering::Relaxed) & !IS_FILLING;
        (self.cache.fills).store(fills | IS_FILLING, Ordering::Release);
        if let Some(room) = self.memory().get_mut(..batch) {
            self.blocks = fill(room).min(batch);
        }
        // A miss that could not be refilled does not count.
        if self.blocks > 0 {
            (self.cache.fills).store(fills + FILLED, Ordering::Release);
            self.count(|tally| &tally.refills);
            self.grow();
        } else {
            self.cache.fills.store(fills, Ordering::Release);
        }
    }

    /// Passes the blocks that have been here longest to `empty`, as many as move at once, if there are any.
    pub(super) fn flush(&mut self, empty: impl FnOnce(&[Block])) {
        if self.blocks > 0 {
            self.take_oldest(self.batch(), empty);
            self.count(|tally| &tally.flushes);
        }
        self.grow();
    }

    fn count(&self, counter: impl Fn(&Tally) -> &AtomicU64) {
        if let Ok(class) = self.bin.class() {
            add(counter(&self.cache.tallies[class]), 1, Ordering::Relaxed);
        }
    }

    /// Passes all blocks to `empty`, and leaves no room for others: what comes next takes the slow path, which asks whether
    /// a CPU is short.
    pub(super) fn empty(&mut self, empty: impl FnOnce(&[Block])) {
        self.take_oldest(usize::MAX, empty);
        match self.bin.class() {
            Ok(_) => self.limit = 0,
            Err(frames) => self.set_limit(0, frames),
        }
    }

    fn take_oldest(&mut self, max: usize, empty: impl FnOnce(&[Block])) {
        let blocks = self.blocks;
        let taken = blocks.min(max);
        // If `empty` unwinds, it may have given them away: none is here any more.
        self.blocks = 0;
        let memory = self.memory();
        let Some(oldest) = memory.get(..taken) else {
            return;
        };
        // SAFETY: the first `blocks` are there, which is at least as many.
        empty(unsafe { slice::from_raw_parts(oldest.as_ptr().cast(), taken) });
        memory.copy_within(taken..blocks, 0);
        self.blocks = blocks - taken;
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let magazine = self.cache.magazine(self.bin);
        let bottom = BOTTOMS[self.bin];
        // Both casts are exact: there are fewer slots than that. The `end` first: a closed
        // magazine has no room, whatever that is.
        magazine
            .end
            .store(bottom + self.limit as u32, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        // Release: see `may_have_blocks`.
        magazine
            .top
            .store(bottom + self.blocks as u32, Ordering::Release);
    }
}

/// Returns how many blocks a magazine holds at most.
const fn capacity(bin: usize) -> u32 {
    match Bin::from_index(bin) {
        Some(bin) => bin.capacity() as u32,
        None => 0,
    }
}

/// A magazine is being refilled.
const IS_FILLING: u64 = 1;
/// One that has been.
const FILLED: u64 = 2;

/// Adds to a counter that only this CPU writes.
#[inline(always)]
fn add(counter: &AtomicU64, amount: u64, order: Ordering) {
    let value = counter.load(Ordering::Relaxed);
    counter.store(value.wrapping_add(amount), order);
}

const _: () = assert!(BINS <= u8::MAX as usize);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::boxed::Box;

    /// What another CPU sees that has read the state just before this one goes on.
    #[test]
    fn a_cpu_that_has_just_closed_a_magazine_may_have_blocks() {
        let cache = Box::new(CpuCache::new());
        assert!(!cache.may_have_blocks());
        for bin in (0..BINS).filter_map(Bin::from_index) {
            let before = cache.magazine(bin).top.swap(CLOSED, Ordering::Relaxed);
            assert!(cache.may_have_blocks());
            cache.magazine(bin).top.store(before, Ordering::Relaxed);
        }
        cache.reserve[CLASSES - 1].store(ptr::without_provenance_mut(16), Ordering::Relaxed);
        assert!(cache.may_have_blocks());
    }
}
