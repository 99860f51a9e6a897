//! The platform of the magazine heap: what it asks of the kernel.

use core::hint;
use core::ptr::NonNull;

use super::CpuCache;
use crate::lock;

/// The number of times that a CPU polls for memory in transit, where nobody knows the time: for longer
/// than a drain takes, unless the CPU that drains is interrupted.
const MAX_POLLS: u64 = 1 << 20;

/// The protection of a fast path against interrupts whose handlers use the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastPath {
    /// It does nothing: no handler uses the heap, not even an NMI's.
    Uninterrupted,
    /// It raises a flag, which a handler finds. Works everywhere, and costs some six instructions for
    /// an allocation and its free.
    Flagged,
    /// It is a sequence that the kernel restarts if it interrupted it: see
    #[cfg_attr(target_arch = "x86_64", doc = "[`resume`](super::resume).")]
    #[cfg_attr(not(target_arch = "x86_64"), doc = "`resume`.")]
    /// On x86-64 only.
    Restarted {
        /// The offset of the CPU's cache from GS base, in bytes: less than 1 GiB.
        cache_from_gs: usize,
    },
}

/// What a step of [`FramePlatform::search_frames`] has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameSearch {
    /// Frames that were found, and are the heap's now, as from [`FramePlatform::allocate_frames`].
    Found(NonNull<u8>),
    /// There is more to search.
    Unfinished,
    /// There are none.
    NotFree,
}

/// What takes the steps of a search: see [`FramePlatform::search_frames`].
pub type SearchFn<'a> = dyn FnMut(&mut dyn FnMut() -> FrameSearch) + 'a;

/// The kernel (or the operating system) below a [`MagazineHeap`](super::MagazineHeap).
///
/// # Lock order
///
/// The heap calls the platform while it holds no lock, and [`allocate_frames`](Self::allocate_frames), the steps of a search,
/// [`extend_frames`](Self::extend_frames) and [`free_frames`](Self::free_frames) with interrupts disabled, on a path that may itself be the
/// answer to an allocation of the platform's. So code that holds a lock which the platform takes
/// there must not allocate or free, nor may an interrupt handler run at the same time that does. If a
/// non-maskable interrupt may use the heap, it must not find the platform waiting for a lock that the
/// interrupted code holds: let the platform return `None` then.
///
/// Where the platform itself allocates or frees in these, the heap knows by the CPU's cache that it is
/// inside already, and answers as to an NMI. A CPU without a cache it can't know of: there the platform
/// must not, or the heap asks it for frames again, and so on.
///
/// The other methods must not use the heap, unless they say that they may: it would ask them again, and so on. That goes for
/// [`search_frames`](Self::search_frames) and [`in_shortage`](Self::in_shortage), too, outside of what they call.
///
/// # Safety
///
/// 1. While a [`NoPreempt`](Self::NoPreempt) is alive, the code that holds it is neither preempted nor
///    migrated: it stays on its CPU, and nothing else that uses the heap runs there but what runs to
///    its end first, as interrupt handlers do. Another task does not.
/// 2. [`cache`](Self::cache) returns to each CPU a cache of its own, and always the same one since it
///    first had one; before that, [`NO_CACHE`](super::NO_CACHE). A cache serves one heap only. A CPU gets its cache while it
///    is outside the heap: neither in a method of this trait, nor in what interrupts the heap's code there.
/// 3. [`cpu`](Self::cpu) returns different numbers, less than `usize::MAX - 1`, to two CPUs that run at the same time, and
///    to each CPU always the same one since it first had one. A CPU that has a cache has a number. Where code
///    uses the heap that nothing masks, as in a non-maskable interrupt, the CPU has a cache.
/// 4. While an [`InterruptGuard`](Self::InterruptGuard) is alive, no maskable interrupt is taken on
///    this CPU. The heap makes one only while it holds a [`NoPreempt`](Self::NoPreempt).
/// 5. [`allocate_frames`](Self::allocate_frames) returns, [`search_frames`](Self::search_frames) finds, and
///    [`extend_frames`](Self::extend_frames) adds, memory that is
///    mapped, readable and writable on all CPUs, aligned and contiguous as asked, and used by nothing else until it
///    is freed. What was done to it before it was freed comes before what is done by the CPU that it is given next. What is
///    added is reached by the pointer to the frames in front of it: it belongs to the same allocation, in the language's sense.
///    [`allocate_scattered`](Self::allocate_scattered) returns such memory, too, but that its frames need not be
///    contiguous; [`is_scattered`](Self::is_scattered) returns `true` for each of these and for no others.
/// 6. If [`FAST_PATH`](Self::FAST_PATH) is [`FastPath::Uninterrupted`], nothing that interrupts a CPU
///    uses the heap there.
/// 7. If it is [`FastPath::Restarted`]: (a) at that offset from GS base lies what
///    [`cache`](Self::cache) returns, or, where that is [`NO_CACHE`](super::NO_CACHE), a [`CpuCache`]
///    that nobody has ever had, and that may be written; (b) interrupted code goes on where `resume` says, and not where it was
///    interrupted, if the heap may have been used on the CPU in between: by what interrupted it (a handler of an
///    interrupt or exception, an NMI's included, or another task), or by what interrupted that in turn. So does
///    a task that goes on on another CPU, and that CPU has a cache.
/// 8. No method unwinds, nor does the drop of a [`NoPreempt`](Self::NoPreempt) or an
///    [`InterruptGuard`](Self::InterruptGuard): code that calls an allocator is compiled as code that nothing unwinds through. If
///    [`lock_stuck`](Self::lock_stuck) panics, nothing goes on after that.
pub unsafe trait FramePlatform: Sync {
    /// The protection of fast paths against interrupts.
    const FAST_PATH: FastPath = FastPath::Flagged;

    /// While alive, the code is neither preempted by another task nor migrated to another CPU. Guards
    /// nest. `()` in a kernel that has no tasks, or whose tasks give up the CPU only by themselves.
    type NoPreempt;

    /// While alive, interrupts are disabled; afterwards they are as before. Guards nest.
    type InterruptGuard;

    /// Disables preemption and migration of this code until the result is dropped: say, a count in the
    /// CPU's own memory that the scheduler checks before it switches.
    fn disable_preemption(&self) -> Self::NoPreempt;

    /// Disables interrupts on this CPU until the result is dropped. On slow paths only.
    fn disable_interrupts(&self) -> Self::InterruptGuard;

    /// Returns the number of the CPU this runs on, less than `usize::MAX - 1`, or `None` before the
    /// CPU's own state exists.
    ///
    /// By the number the heap distinguishes a CPU that waits for itself from one that waits for
    /// another.
    fn cpu(&self) -> Option<usize>;

    /// Returns the cache of the CPU this runs on, or [`NO_CACHE`](super::NO_CACHE) before the CPU's own
    /// state exists.
    ///
    /// Part of every allocation and free, unless those are [restarted](FastPath::Restarted): make it
    /// one load.
    fn cache(&self) -> &CpuCache;

    /// Calls the visitor with each CPU's cache once. By what they have had the heap decides whether it may help to ask the
    /// CPUs for memory.
    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache));

    /// Allocates `count` contiguous frames of [`FRAME`](super::FRAME) bytes, the first one's address a
    /// multiple of `align` frames; or `None` if there are none.
    ///
    /// `count` is not zero, and `align` is a power of two. For slabs, which is all that is frequent,
    /// both are 1, 2, 4 or 8. Frames need not be zeroed. They may lie anywhere in the address space,
    /// but slabs in at most 1024 different, naturally aligned 64 GiB of it.
    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>>;

    /// Searches for frames as [`allocate_frames`](Self::allocate_frames) does, in steps, so that interrupts come in between:
    /// calls `search` once, with what takes a step. A step is taken as `allocate_frames` is called, and looks at as much
    /// as interrupts may be disabled for. Then `allocate_frames` need not look everywhere for more than one frame: it may answer
    /// `None` after as much as a step.
    ///
    /// `search` takes steps until one has [found](FrameSearch::Found) frames or says that there are none, and may take fewer,
    /// or none. If the frames are of no use, it keeps them, and goes on: the next step begins again. Unless overridden, this does not call it: `allocate_frames` looks everywhere.
    ///
    /// ```
    /// # use muster_heap::{FrameSearch, SearchFn};
    /// # fn look_at_some_memory(count: usize, from: &mut usize) -> FrameSearch { FrameSearch::NotFree }
    /// # struct Machine;
    /// # impl Machine {
    /// fn search_frames(&self, count: usize, align: usize, search: &mut SearchFn<'_>) {
    ///     let mut from = 0;
    ///     search(&mut || look_at_some_memory(count, &mut from));
    /// }
    /// # }
    /// ```
    fn search_frames(&self, count: usize, align: usize, search: &mut SearchFn<'_>) {
        let _ = (count, align, search);
    }

    /// Adds `more` frames to the `count` from `start`, right behind them, so that a block grows where it is; `false` if
    /// they are not free, or unless overridden: nothing has changed then, and the block moves. Called as
    /// [`allocate_frames`](Self::allocate_frames) is, and the frames are as those.
    ///
    /// # Safety
    ///
    /// The `count` frames are in use, given by [`allocate_frames`](Self::allocate_frames) at once, or by this.
    unsafe fn extend_frames(&self, start: NonNull<u8>, count: usize, more: usize) -> bool {
        let _ = (start, count, more);
        false
    }

    /// Takes frames back: all that [`allocate_frames`](Self::allocate_frames) gave at once, with what
    /// [`extend_frames`](Self::extend_frames) has added, or a part, as when a block shrinks.
    ///
    /// # Safety
    ///
    /// [`allocate_frames`](Self::allocate_frames) gave these frames, at once, or
    /// [`extend_frames`](Self::extend_frames) added them, and nothing uses them any more.
    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize);

    /// Allocates `count` frames that need not be contiguous, and maps them at contiguous addresses, the first one a multiple of
    /// `align` frames: *scattered* frames, for a block of which the heap finds no contiguous ones, after all else. `None` if
    /// there are too few, if they can't be mapped now, or unless overridden: the request is refused then.
    ///
    /// Called with no lock held, interrupts as the caller of the heap has them, and a [`NoPreempt`](Self::NoPreempt) alive, as a
    /// rule on one CPU at a time. `count` is at least 2. It may use the heap, but what the heap has no contiguous frames for ends
    /// up here again. Code that interrupted the heap on its own CPU calls it, too: it should return `None` there.
    fn allocate_scattered(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        let _ = (count, align);
        None
    }

    /// Returns whether the frame at this address is a scattered one. It is asked about each frame, or run of them, that the heap
    /// gives back: make it a comparison with the beginning of a range of addresses.
    fn is_scattered(&self, start: NonNull<u8>) -> bool {
        let _ = start;
        false
    }

    /// Returns whether scattered frames can be unmapped now: whether this code may wait until all CPUs have flushed their TLBs,
    /// as it can't with interrupts disabled or while it holds a lock. CPUs that wait for this one in between, in
    /// [`wait_for_memory`](Self::wait_for_memory) or [`wait_for_lock`](Self::wait_for_lock), with interrupts disabled, must flush
    /// if asked to, or they wait for each other. Called as [`allocate_scattered`](Self::allocate_scattered) is, but without a
    /// [`NoPreempt`](Self::NoPreempt).
    ///
    /// A free never asks: what is freed is unmapped before the heap takes memory from others, when a CPU
    /// [drains](super::MagazineHeap::drain) its cache or the heap is [trimmed](super::MagazineHeap::trim), and when a block
    /// shrinks.
    fn can_unmap(&self) -> bool {
        false
    }

    /// Unmaps scattered frames and takes them back: all that [`allocate_scattered`](Self::allocate_scattered) gave at once, or
    /// the last of them, as when a block shrinks. Then the others come back later. Called as `allocate_scattered` is, but with a
    /// [`NoPreempt`](Self::NoPreempt) alive, after [`can_unmap`](Self::can_unmap) has returned `true`; it may use the heap.
    ///
    /// # Safety
    ///
    /// [`allocate_scattered`](Self::allocate_scattered) gave these frames, at once, and nothing uses them, or what came back of
    /// them before, any more.
    unsafe fn free_scattered(&self, start: NonNull<u8>, count: usize) {
        let _ = (start, count);
    }

    /// Makes the other CPUs call [`MagazineHeap::drain`](super::MagazineHeap::drain), and returns
    /// when they have, or when waiting for them is of no use. `false`: this CPU can't ask them now, though another one could, or
    /// one of them has not drained in time; the heap doesn't conclude then that no memory is available, and asks again for the
    /// next request.
    ///
    /// Called when memory has run out, with no lock held and interrupts as the caller of the heap
    /// has them; several CPUs may call it at the same time, and a CPU that waits here must still
    /// drain when asked. A [`NoPreempt`](Self::NoPreempt) is alive, so that it is the same CPU all the time that the others are
    /// asked by. It must not allocate, as that would end up here again. To do nothing is
    /// allowed: what others cache is then out of reach.
    fn drain_others(&self) -> bool {
        true
    }

    /// Calls `relieve` once: what the heap does about a shortage of memory, from before it
    /// [drains the others](Self::drain_others) until it has tried for the last time.
    ///
    /// Override this where CPUs keep frames to themselves: until `relieve` returns, a CPU must take no more frames than it hands
    /// out, and once it has drained, keep none that are freed. Otherwise frames that are free all the time may be
    /// out of reach each time that the heap looks for them, and a request is refused. With `muster-frames` that is
    /// `FrameAllocator::begin_shortage`. A CPU that isn't asked to drain, as it has nothing, may keep what is freed from then on.
    ///
    /// Called as [`drain_others`](Self::drain_others) is, but without a [`NoPreempt`](Self::NoPreempt).
    fn in_shortage(&self, relieve: &mut dyn FnMut()) {
        relieve();
    }

    /// Returns how many frames there are at most, used or not: a request for more is refused at once,
    /// and no CPU is asked to drain for it.
    fn capacity(&self) -> usize {
        usize::MAX
    }

    /// Returns what [`drain_others`](Self::drain_others) may bring back beside what this heap's caches
    /// hold, in whatever unit: frames that CPUs keep to themselves, say. As long as this is 0 and
    /// nothing has been freed, the heap doesn't ask again for what did not help the last time.
    fn reclaimable(&self) -> usize {
        0
    }

    /// Waits a moment while another CPU has memory in transit, of which it may give something back, or tries
    /// for the last of it. Called again and again when memory has run out, with no lock held, and
    /// interrupts as the caller of the heap has them. It must not use the heap. Where scattered frames
    /// [are unmapped](Self::can_unmap), a CPU answers requests to flush here, if its interrupts are disabled.
    ///
    /// `state` is 0 when the wait begins, and then what the last call left there. `false`: the wait has
    /// lasted longer than any such operation takes, as if a CPU had stopped in it, and the heap goes on
    /// without. Unless overridden, that is after 2²⁰ polls.
    fn wait_for_memory(&self, state: &mut u64) -> bool {
        *state += 1;
        hint::spin_loop();
        *state < MAX_POLLS
    }

    /// Waits a moment for a lock of the heap's that the CPU `holder` holds; `None`: a CPU that has no
    /// number. Called again and again, with interrupts disabled, until the lock is released.
    ///
    /// Here a CPU may answer requests of others, but only such as never use the heap: a TLB shootdown,
    /// or to stop. `state` is 0 when the wait for this holder begins, and then what the last call left
    /// there, such as a deadline.
    ///
    /// A CPU that holds a lock runs code whose length has a bound, with interrupts disabled. If it
    /// does not release it in a time as generous as for any answer of another CPU, it has stopped:
    /// call [`lock_stuck`](Self::lock_stuck). Unless overridden, that is after 2³² polls.
    fn wait_for_lock(&self, holder: Option<usize>, state: &mut u64) {
        if lock::is_overdue(state) {
            self.lock_stuck(holder);
        }
    }

    /// Ends the run: the CPU `holder` has stopped with a lock of the heap's, so that nobody else can
    /// go on. Called with interrupts disabled; it must not use the heap.
    ///
    /// # Panics
    ///
    /// Unless overridden.
    fn lock_stuck(&self, holder: Option<usize>) -> ! {
        lock::report_stuck(holder)
    }
}
