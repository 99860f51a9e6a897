//! What the magazine heap asks of the kernel around it.

use core::alloc::Layout;
use core::ptr::NonNull;

use super::CpuCache;

/// What a fast path does about interrupts whose handlers use the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastPath {
    /// It does nothing: no handler uses the heap, not even an NMI's.
    Uninterrupted,
    /// It raises a flag, which a handler finds. Works everywhere, and costs some six instructions for
    /// an allocation and its free.
    Flagged,
    /// It is a sequence that the kernel begins anew if it interrupted it: see
    #[cfg_attr(target_arch = "x86_64", doc = "[`resume`](super::resume).")]
    #[cfg_attr(not(target_arch = "x86_64"), doc = "`resume`.")]
    /// On x86-64 only.
    Restarted {
        /// Where the CPU's cache lies from GS base, in bytes: less than 1 GiB.
        cache_from_gs: usize,
    },
}

/// The kernel (or the operating system) below a [`MagazineHeap`](super::MagazineHeap).
///
/// # Lock order
///
/// The heap calls [`allocate_frames`](Self::allocate_frames) and [`free_frames`](Self::free_frames)
/// with interrupts disabled, and possibly while it holds a lock of its own, which other CPUs may be
/// waiting for. So what the platform locks there lies below the heap's locks: code that holds it
/// must not allocate or free, nor may an interrupt handler run meanwhile that does. If a non-maskable interrupt may use the heap, it must not find the
/// platform waiting for a lock that the interrupted code holds: let the platform answer `None`
/// then.
///
/// # Safety
///
/// 1. While a [`NoPreempt`](Self::NoPreempt) is alive, the code that holds it is neither preempted nor
///    migrated: it stays on its CPU, and nothing else that uses the heap runs there but what runs to
///    its end first, as interrupt handlers do. Another task does not.
/// 2. [`cache`](Self::cache) gives each CPU a cache that it has for itself, and always the same one
///    since it first had one; before that, [`NO_CACHE`](super::NO_CACHE). A cache serves one heap only.
/// 3. [`cpu`](Self::cpu) gives two CPUs that run at the same time different numbers, and a CPU that
///    has a cache has a number.
/// 4. While an [`InterruptGuard`](Self::InterruptGuard) is alive, no maskable interrupt is taken on
///    this CPU. The heap makes one only while it holds a [`NoPreempt`](Self::NoPreempt).
/// 5. [`allocate_frames`](Self::allocate_frames) gives memory that is mapped, readable and writable
///    on all CPUs, aligned and contiguous as asked, and used by nothing else until it is freed.
/// 6. If [`FAST_PATH`](Self::FAST_PATH) is [`FastPath::Uninterrupted`], nothing that interrupts a CPU
///    uses the heap there.
/// 7. If it is [`FastPath::Restarted`]: (a) as far from GS base as it
///    says lies what [`cache`](Self::cache) gives, or, where that is
///    [`NO_CACHE`](super::NO_CACHE), a [`CpuCache`] that nobody has ever had; (b) whatever
///    interrupts a CPU and uses the heap there (a handler of an interrupt or exception, an NMI's
///    included, or another task) goes back to where `resume` says, and not to
///    where it came from; and so does a task that goes on on another CPU.
pub unsafe trait FramePlatform: Sync {
    /// How a fast path keeps clear of what interrupts it.
    const FAST_PATH: FastPath = FastPath::Flagged;

    /// While alive, the code is neither preempted by another task nor migrated to another CPU. Guards
    /// nest. `()` in a kernel that has no tasks, or whose tasks give up the CPU only by themselves.
    type NoPreempt;

    /// While alive, interrupts are disabled; afterwards they are as before. Guards nest.
    type InterruptGuard;

    /// Disables preemption and migration of this code until the result is dropped: say, a count in
    /// the CPU's own memory that the scheduler looks at before it switches.
    fn disable_preemption(&self) -> Self::NoPreempt;

    /// Disables interrupts on this CPU until the result is dropped. On slow paths only.
    fn disable_interrupts(&self) -> Self::InterruptGuard;

    /// The number of the CPU this runs on, or `None` before the CPU's own state exists.
    ///
    /// By the number the heap tells a CPU that waits for itself from one that waits for another; a
    /// CPU that has none must not use the heap in a non-maskable interrupt.
    fn cpu(&self) -> Option<usize>;

    /// The cache of the CPU this runs on, or [`NO_CACHE`](super::NO_CACHE) before the CPU's own state exists.
    ///
    /// Part of every allocation and free, unless those are [restarted](FastPath::Restarted): make it
    /// one load.
    fn cache(&self) -> &CpuCache;

    /// Shows the visitor each CPU's cache once, for statistics.
    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache));

    /// `count` contiguous frames of [`FRAME`](super::FRAME) bytes, the first one's address a
    /// multiple of `align` frames; or `None` if there are none.
    ///
    /// `count` is not zero, and `align` is a power of two. For slabs, which is all that is frequent,
    /// both are 1, 2, 4 or 8. Frames need not be zeroed. All frames there ever are must lie within
    /// [`SPAN`](super::SPAN) bytes of address space.
    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>>;

    /// Takes frames back.
    ///
    /// # Safety
    ///
    /// [`allocate_frames`](Self::allocate_frames) gave `start` for this `count`, and nothing uses
    /// the frames any more.
    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize);

    /// Makes the other CPUs call [`MagazineHeap::drain`](super::MagazineHeap::drain), and returns
    /// when they have, or when waiting for them is of no use.
    ///
    /// Called when memory has run out, with no lock held and interrupts as the caller of the heap
    /// has them; several CPUs may call it at the same time, and a CPU that waits here must still
    /// drain when asked. To do nothing is allowed: what others cache is then out of reach.
    fn drain_others(&self) {}

    /// A block for this layout from elsewhere, for code that knows of no other answer, where the heap
    /// has come to its end. It is none of the heap's: the platform must tell it by its address when it
    /// is freed, and keep it from [`dealloc`](core::alloc::GlobalAlloc::dealloc) and `realloc` here.
    ///
    /// Called with no lock of the heap's held, and interrupts as the caller of the heap has them.
    fn last_resort(&self, layout: Layout) -> Option<NonNull<u8>> {
        let _ = layout;
        None
    }
}
