//! The global heap, in its two stages: a boot arena before per-CPU state exists, and
//! then whichever heap `heap=` asks for.
//!
//! An address tells where a block belongs: the boot arena lies in the image and the
//! linked list's memory in a window of its own, both above every block of the
//! magazines, which lie in the HHDM. While the heap is checked, all of the magazines'
//! blocks are, but for what nobody frees.

use alloc::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use muster_arguments::HeapKind;
use muster_heap::{
    Class, CpuCache, FastPath, FramePlatform, Heap, MagazineHeap, MagazineStatistics, NO_CACHE,
    Platform, Traffic, resume,
};
use muster_memory::FRAME_SIZE;
use x86_64::instructions::interrupts;

use super::{checked, frames, heap_memory, relief, shared};
use crate::arch::{clock, trap};
use crate::boot::bytes::Bytes;
use crate::boot::window;
use crate::smp::{call, cpu, crew, lock};

/// What the heap lives on until the kernel's tables are loaded: enough for the
/// physical map and the mapping plan of a machine with hundreds of memory-map
/// entries and hundreds of CPUs.
const BOOT_BYTES: usize = 1024 * 1024;

/// How long a CPU may hold a lock of the heap's, in milliseconds.
const LOCK_TIMEOUT: u64 = lock::TIMEOUT;

/// How long a CPU may keep another one waiting with memory in transit, in milliseconds: that takes
/// microseconds, but a host may stop a virtual CPU for hundreds of milliseconds.
const MEMORY_TIMEOUT: u64 = 1000;

/// How long a CPU may take to drain its cache, in milliseconds.
const DRAIN_PATIENCE: u64 = 10_000;

#[global_allocator]
static GLOBAL: Global = Global;

static LIST: Heap<Kernel> = Heap::new(Kernel);
static MAGAZINES: MagazineHeap<Kernel> = MagazineHeap::new(Kernel);

/// Whether new blocks come from the magazines, as they are.
static USE_MAGAZINES: AtomicBool = AtomicBool::new(false);

/// The kind of heap that is open, for who asks. The boot arena is a list.
static KIND: AtomicU8 = AtomicU8::new(HeapKind::LinkedList as u8);

/// Blocks below this go back to the magazines as they are: none, while the heap is checked. One load, so
/// that a free need not ask for that.
static MAGAZINES_END: AtomicUsize = AtomicUsize::new(window::ALL.start as usize);

/// All heaps as one.
struct Global;

/// The magazines, for the checked heap.
pub struct Unchecked;

// SAFETY: the magazines' blocks.
//
// Not inlined, as for `Global`.
unsafe impl GlobalAlloc for Unchecked {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, handed on.
        unsafe { MAGAZINES.alloc(layout) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { MAGAZINES.dealloc(block, layout) };
    }
}

/// Whether a block lies in the list's memory, the boot arena included.
fn is_of_list(block: *mut u8) -> bool {
    block.addr() as u64 >= window::ALL.start
}

// SAFETY: every block goes back to the heap it came from: the list's memory lies in the
// kernel's windows or the image, the magazines' in the HHDM, which is kept from
// reaching into either (`Shared::build`); and of these, all are checked or none. Each is an
// allocator itself.
//
// Never inlined: the sequences would be all over the kernel, and each interrupt has to look
// through the list of them.
unsafe impl GlobalAlloc for Global {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, handed on.
        unsafe {
            if USE_MAGAZINES.load(Ordering::Relaxed) {
                MAGAZINES.alloc(layout)
            } else {
                allocate_otherwise(layout)
            }
        }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on to the heap the block is of.
        unsafe {
            if block.addr() < MAGAZINES_END.load(Ordering::Relaxed) {
                MAGAZINES.dealloc(block, layout);
            } else {
                free_otherwise(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if block.addr() < MAGAZINES_END.load(Ordering::Relaxed) {
            // SAFETY: as for `dealloc`.
            return unsafe { MAGAZINES.realloc(block, layout, new_size) };
        }
        // SAFETY: the caller promises that the new size, with the alignment, makes a
        // layout, and that the block is live with the old one. The two blocks are
        // apart, and both as long as what is copied.
        unsafe {
            let layout_after = Layout::from_size_align_unchecked(new_size, layout.align());
            let moved = self.alloc(layout_after);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// An allocation from a heap that is not the usual one.
///
/// # Safety
///
/// As for [`GlobalAlloc::alloc`].
#[cold]
#[inline(never)]
unsafe fn allocate_otherwise(layout: Layout) -> *mut u8 {
    if !checked::is_on() {
        // SAFETY: the caller's promise, handed on.
        return unsafe { LIST.alloc(layout) };
    }
    let itself: unsafe fn(Layout) -> *mut u8 = allocate_otherwise;
    let callers = checked::callers(trap::frame_pointer(), itself as *const ());
    checked::allocate(layout, callers)
}

/// A free to such a heap.
///
/// # Safety
///
/// As for [`GlobalAlloc::dealloc`].
#[cold]
#[inline(never)]
unsafe fn free_otherwise(block: *mut u8, layout: Layout) {
    if is_of_list(block) {
        // SAFETY: the caller's promise, handed on to the heap the block is of.
        return unsafe { LIST.dealloc(block, layout) };
    }
    let itself: unsafe fn(*mut u8, Layout) = free_otherwise;
    let callers = checked::callers(trap::frame_pointer(), itself as *const ());
    // SAFETY: the caller's promise, handed on to the heap the block is of.
    unsafe { checked::free(block, layout, callers) };
}

/// What the heaps need of this kernel.
pub struct Kernel;

/// Puts the interrupt flag back to what it was.
pub struct InterruptGuard {
    were_enabled: bool,
}

impl InterruptGuard {
    fn new() -> Self {
        let were_enabled = interrupts::are_enabled();
        interrupts::disable();
        Self { were_enabled }
    }
}

impl Drop for InterruptGuard {
    fn drop(&mut self) {
        if self.were_enabled {
            interrupts::enable();
        }
    }
}

// SAFETY: (1) the CPU number is the index of the block that runs here, and no two
// CPUs claim one block; (2) the guard keeps IF clear, and nothing moves code from
// one CPU to another; (3) `grow` gives heap-window addresses, each only once,
// mapped to frames taken for the heap, in the tables that every CPU loads before
// it allocates, and never unmapped.
unsafe impl Platform for Kernel {
    type InterruptGuard = InterruptGuard;

    fn disable_interrupts(&self) -> InterruptGuard {
        InterruptGuard::new()
    }

    fn cpu(&self) -> Option<usize> {
        cpu::try_with(|here| here.index() as usize)
    }

    fn grow(&self, at_least: usize) -> Option<NonNull<[u8]>> {
        let is_here = |index| cpu::try_with(|here| here.index() == index) == Some(true);
        if is_here(HALTS_IN_GROWTH.load(Ordering::Relaxed)) {
            HAS_HALTED.store(true, Ordering::Release);
            loop {
                x86_64::instructions::hlt();
            }
        }
        heap_memory::grow(at_least)
    }

    fn wait_for_lock(&self, holder: Option<usize>, state: &mut u64) {
        if is_overdue(state, LOCK_TIMEOUT) {
            Platform::lock_stuck(self, holder);
        }
    }
}

// SAFETY: (1) Muster has no tasks: what comes in between on a CPU is an interrupt,
// which runs to its end; (2) the cache is part of the CPU's own memory, found
// through its block, which it registers once; only this heap uses it; (3) and (4)
// as for `Platform`; (5) frames come from the frame allocator, as asked, and are
// seen through the HHDM, which every CPU's tables map; (7) GS base is the address of
// a block, or of the sentinel's like, whose head is the cache, so far from it; and all that
// interrupts a CPU returns by `exceptions`, which asks `resume`.
unsafe impl FramePlatform for Kernel {
    const FAST_PATH: FastPath = FastPath::Restarted {
        cache_from_gs: cpu::CACHE_FROM_GS,
    };

    type NoPreempt = ();
    type InterruptGuard = InterruptGuard;

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) -> InterruptGuard {
        InterruptGuard::new()
    }

    fn cpu(&self) -> Option<usize> {
        Platform::cpu(self)
    }

    fn cache(&self) -> &CpuCache {
        cpu::try_with(|here| here.head()).unwrap_or(&NO_CACHE)
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        cpu::all().for_each(|(_, shared)| visit(shared.cache));
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        heap_memory::allocate(count, align)
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: the caller's promise, handed on.
        unsafe { heap_memory::free(start, count) };
    }

    fn drain_others(&self) {
        relief::ask_others();
    }

    fn capacity(&self) -> usize {
        shared::get().frame_count()
    }

    fn reclaimable(&self) -> usize {
        shared::get().cached_frames()
    }

    fn wait_for_memory(&self, state: &mut u64) -> bool {
        !is_overdue(state, MEMORY_TIMEOUT)
    }

    fn wait_for_lock(&self, holder: Option<usize>, state: &mut u64) {
        if is_overdue(state, LOCK_TIMEOUT) {
            FramePlatform::lock_stuck(self, holder);
        }
    }
}

/// Waits a moment for another CPU that uses the heap, and flushes for others at the same time. Says
/// whether the wait has lasted longer than the timeout, in milliseconds; `state` is
/// [`clock::has_waited`]'s.
fn is_overdue(state: &mut u64, timeout: u64) -> bool {
    call::serve_without_heap();
    core::hint::spin_loop();
    clock::has_waited(state, timeout)
}

/// The CPU that halts for good the next time that it makes the list grow: `fault=halt-in-heap`.
static HALTS_IN_GROWTH: AtomicU32 = AtomicU32::new(u32::MAX);

/// Whether it has.
static HAS_HALTED: AtomicBool = AtomicBool::new(false);

/// Halts this CPU for good while it holds the lock of the list's growth.
pub fn halt_in_growth() {
    cpu::with(|here| HALTS_IN_GROWTH.store(here.index(), Ordering::Relaxed));
    outgrow();
}

/// Whether a CPU has halted in growth, and not just begun to.
pub fn has_halted_in_growth() -> bool {
    HAS_HALTED.load(Ordering::Acquire)
}

/// Allocates from the list until it has to grow.
pub fn outgrow() {
    let layout = Layout::new::<[u8; 64 * 1024]>();
    let growths = LIST.statistics().growths;
    // SAFETY: the size is not zero. Nothing is freed: the run ends by it.
    while LIST.statistics().growths == growths && !unsafe { LIST.alloc(layout) }.is_null() {}
}

/// Where code that was interrupted at `instruction` by something that may have used the
/// heap has to go on.
pub fn resume_at(instruction: u64) -> u64 {
    resume(instruction as usize) as u64
}

/// How many free blocks for a layout this CPU has, the one in reserve included.
pub fn cached_here(layout: Layout) -> usize {
    statistics_here(layout).cached_blocks
}

/// Whether this CPU has no room for one more free block for a layout.
pub fn is_full_here(layout: Layout) -> bool {
    let statistics = statistics_here(layout);
    // One of them is the reserve.
    statistics.cached_blocks > statistics.limit
}

fn statistics_here(layout: Layout) -> MagazineStatistics {
    Class::of(checked::taken(layout))
        .zip(cpu::try_with(|here| here.head()))
        .map(|(class, cache)| cache.statistics(class))
        .unwrap_or_default()
}

/// Gives back what this CPU caches, of blocks and of frames. `false`: this code has
/// interrupted their use.
pub fn drain_here() -> bool {
    MAGAZINES.drain() && frames::drain()
}

/// Gives the heap its boot arena. Later calls do nothing.
pub fn start() {
    struct Arena(UnsafeCell<[MaybeUninit<u8>; BOOT_BYTES]>);
    // SAFETY: the cell is reached only once, below.
    unsafe impl Sync for Arena {}
    static ARENA: Arena = Arena(UnsafeCell::new([MaybeUninit::uninit(); BOOT_BYTES]));
    static TAKEN: AtomicBool = AtomicBool::new(false);

    if !TAKEN.swap(true, Ordering::AcqRel) {
        // SAFETY: the flag lets one caller through, once, so this is the only
        // reference to the arena there ever is.
        let arena = unsafe { &mut *ARENA.0.get() };
        // Fails only for a second arena or one that is too small; this is neither.
        let started = LIST.start_boot(arena);
        debug_assert!(started.is_ok());
    }
}

/// Lets new blocks come from the machine's free frames, through the heap of this
/// kind. Called once the shared memory state is published and the BSP has its block,
/// and again, between orders, to change over.
pub fn open(kind: HeapKind) {
    KIND.store(kind as u8, Ordering::Relaxed);
    USE_MAGAZINES.store(kind != HeapKind::LinkedList, Ordering::Release);
    match kind {
        HeapKind::Magazines => {}
        HeapKind::LinkedList => LIST.open(),
        HeapKind::Checked if checked::is_on() => USE_MAGAZINES.store(false, Ordering::Release),
        HeapKind::Checked => {
            checked::start();
            USE_MAGAZINES.store(false, Ordering::Release);
            MAGAZINES_END.store(0, Ordering::Release);
        }
    }
}

/// The kind that new blocks come from.
pub fn kind() -> HeapKind {
    let number = KIND.load(Ordering::Relaxed);
    let kind = HeapKind::ALL.get(usize::from(number)).copied();
    kind.unwrap_or(HeapKind::LinkedList)
}

/// The heap of all CPUs, to be measured.
#[cfg(feature = "bench")]
#[inline]
pub fn magazines() -> &'static MagazineHeap<Kernel> {
    &MAGAZINES
}

/// Makes every CPU give back what it caches, and the heap every frame it can do
/// without. Called on the BSP, between orders.
pub fn drain() {
    checked::flush();
    crew::all(DRAIN_PATIENCE, &|_| {
        // Refused only to code that has interrupted the heap; an order has not.
        let drained = drain_here();
        debug_assert!(drained);
    });
    MAGAZINES.trim();
    // Trimming has given frames to this CPU's cache.
    frames::drain();
}

/// Gives back what waits in quarantine, for somebody else who needs memory.
pub fn relieve() {
    if checked::flush() {
        drain_here();
        MAGAZINES.trim();
    }
}

/// Logs what the heap has its frames for, and how the magazines have served so far: allocations from
/// them, how many there were for each refill and flush, how often two CPUs met at a depot, and blocks
/// that came back to their slab from another CPU than the one that last got some of it.
pub fn tell() {
    let mut sum = MagazineStatistics::default();
    let (mut contended, mut remote) = (0, 0);
    for class in Class::all() {
        for (_, shared) in cpu::all() {
            let statistics = shared.cache.statistics(class);
            sum.allocations += statistics.allocations;
            sum.refills += statistics.refills;
            sum.flushes += statistics.flushes;
        }
        let shared = MAGAZINES.class_statistics(class);
        contended += shared.depot_contended;
        remote += shared.remote_blocks;
    }
    let reading = Reading::take();
    let bytes = |bytes: i64| Bytes(u64::try_from(bytes).unwrap_or(0));
    log::info!("heap's frames live in them     cached       rest");
    log::info!(
        "{:>13} {:>12} {:>10} {:>10}",
        Bytes(reading.frame_bytes()),
        bytes(reading.live_in_frames()),
        Bytes(reading.cached_bytes),
        bytes(reading.rest())
    );
    if sum.allocations > 0 {
        log::info!("allocations per refill per flush contended   remote");
        log::info!(
            "{:>11} {:>10} {:>9} {contended:>9} {remote:>8}",
            sum.allocations,
            sum.allocations / sum.refills.max(1),
            sum.allocations / sum.flushes.max(1)
        );
    }
}

/// What the heap holds at one moment. Exact while no CPU uses it.
///
/// These words mean the same wherever the kernel prints them, and so do the fields of its events:
///
/// - **live**: bytes allocated and not freed, as asked for. Each is in the heap's frames or in the boot
///   arena, which is part of the image: where a figure leaves the arena out, it says "in its frames".
///   While the heap is checked, a block is asked for with its guards, and is freed when it leaves its
///   quarantine.
/// - **cached**: bytes in free blocks that CPUs and depots keep, each as large as its class.
/// - **rest**: the heap's frames less what is live in them less what is cached: free in slabs, in the
///   list or in a window's last page, lost to rounding, or the heap's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Bytes allocated and not freed, the boot arena's included.
    pub live_bytes: i64,
    /// Those of them that lie in the boot arena.
    pub boot_live_bytes: i64,
    /// Blocks allocated and not freed.
    pub live_blocks: i64,
    /// What was allocated and freed past the CPUs' caches: before there were any, by code that
    /// interrupted a CPU inside the heap, and all that the list gave.
    pub common_traffic: Traffic,
    /// Bytes in free blocks that CPUs and depots keep.
    pub cached_bytes: u64,
    /// Those of them that depots keep.
    pub depot_bytes: u64,
    /// Frames that the magazines hold, for blocks and for their own books.
    pub magazine_frames: u64,
    /// Bytes of the window that the list is given memory of.
    pub window_bytes: u64,
    /// The most bytes that both heaps had of memory at once.
    pub peak_bytes: u64,
}

impl Reading {
    /// Reads what both heaps hold now.
    pub fn take() -> Self {
        let list = LIST.statistics();
        let magazines = MAGAZINES.totals();
        let in_depot = |class: Class| MAGAZINES.class_statistics(class).depot_blocks * class.size();
        let depot_bytes: usize = Class::all().map(in_depot).sum();
        Self {
            // Exact: no machine has so much memory.
            live_bytes: list.live_bytes as i64 + magazines.live_bytes,
            boot_live_bytes: list.boot_live_bytes as i64,
            live_blocks: list.live_blocks as i64 + magazines.live_blocks,
            common_traffic: list.traffic() + MAGAZINES.common_traffic(),
            cached_bytes: magazines.cached_bytes as u64,
            depot_bytes: depot_bytes as u64,
            magazine_frames: magazines.frames() as u64,
            window_bytes: shared::get().heap_window_bytes(),
            peak_bytes: list.capacity_bytes + magazines.peak_frames as u64 * FRAME_SIZE,
        }
    }

    /// Returns the bytes that are live in the heap's frames.
    pub const fn live_in_frames(&self) -> i64 {
        self.live_bytes - self.boot_live_bytes
    }

    /// Returns the bytes of the heap's frames, by the heap's own counters.
    pub const fn frame_bytes(&self) -> u64 {
        self.magazine_frames * FRAME_SIZE + self.window_bytes
    }

    /// Returns the rest of the heap's frames, negative if more is live and cached than there is.
    pub const fn rest(&self) -> i64 {
        self.frame_bytes() as i64 - self.live_in_frames() - self.cached_bytes as i64
    }
}

/// Bytes that the heap in use has and nobody uses, what CPUs cache left out.
pub fn unused_bytes() -> u64 {
    // The list keeps what it has, the boot arena too, to itself.
    if USE_MAGAZINES.load(Ordering::Relaxed) {
        return 0;
    }
    let list = LIST.statistics();
    list.capacity_bytes.saturating_sub(list.live_bytes)
}
