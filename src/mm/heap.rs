//! The global heap, in its two stages: a boot arena before per-CPU state exists, and
//! then whichever heap `heap=` asks for.
//!
//! The address of a block determines its heap: the boot arena lies in the image and the linked
//! list's memory in a window of its own, both above every block of the magazines, which lie in the
//! HHDM, but for those in scattered frames, which are in the window of mappings. While the heap is checked, all of the
//! magazines' blocks are, but for those that are never freed, and none is scattered.

use alloc::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use muster_arguments::HeapKind;
use muster_frames::FRAME_SIZE;
#[cfg(feature = "bench")]
use muster_heap::MagazineHeap;
use muster_heap::{Class, MagazineStatistics, Traffic, resume};

#[cfg(feature = "bench")]
use super::heap_platform::Kernel;
use super::heap_platform::{LIST, MAGAZINES, drain_here};
use super::{checked, frames, mapping, scattered, shared};
use crate::arch::trap;
use crate::boot::bytes::Bytes;
use crate::boot::window;
use crate::smp::{cpu, jobs};

/// The size of the boot arena, the heap's memory until the kernel's tables are loaded: enough for
/// the physical map and the mapping plan of a machine with hundreds of memory-map entries and
/// hundreds of CPUs.
const BOOT_BYTES: usize = 1024 * 1024;

/// How long a CPU may take to drain its cache, in milliseconds.
const DRAIN_TIMEOUT: u64 = 10_000;

#[global_allocator]
static GLOBAL: Global = Global;

/// Whether new blocks come from the magazines, unchecked.
///
/// This and the two below are stored on the BSP, before any AP is released or between jobs, so the release
/// or the next job publishes them: Relaxed loads are enough, on the fast path.
static USE_MAGAZINES: AtomicBool = AtomicBool::new(false);

/// The kind of heap that is open, for reports. The boot arena is a list.
static KIND: AtomicU8 = AtomicU8::new(HeapKind::LinkedList as u8);

/// The end of the addresses whose blocks go back to the magazines unchecked: 0 while the heap is
/// checked. So a free needs one load.
static MAGAZINES_END: AtomicUsize = AtomicUsize::new(window::ALL.start.get() as usize);

/// All heaps as one.
struct Global;

/// Returns whether a block lies in the list's memory, the boot arena included.
fn is_of_list(block: *mut u8) -> bool {
    block.addr() as u64 >= window::ALL.start.get() && !scattered::contains(block)
}

// SAFETY: every block goes back to the heap it came from: the list's memory lies in the
// kernel's windows or the image, the magazines' in the HHDM, which is kept from
// reaching into either (`SharedMemory::build`), or in the window of mappings; and of these, all are checked or none. Each is an
// allocator itself.
//
// Never inlined: each copy would add restartable sequences, and each interrupt has to search the
// list of them.
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
        if block.addr() < MAGAZINES_END.load(Ordering::Relaxed) || scattered::contains(block) {
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

/// Allocates from a heap that is not the usual one.
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

/// Frees to such a heap.
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
    if scattered::contains(block) {
        // SAFETY: as above.
        return unsafe { MAGAZINES.dealloc(block, layout) };
    }
    let itself: unsafe fn(*mut u8, Layout) = free_otherwise;
    let callers = checked::callers(trap::frame_pointer(), itself as *const ());
    // SAFETY: the caller's promise, handed on to the heap the block is of.
    unsafe { checked::free(block, layout, callers) };
}

/// Returns the address at which code resumes that was interrupted at `instruction` by a handler
/// that may have used the heap.
pub fn resume_at(instruction: u64) -> u64 {
    resume(instruction as usize) as u64
}

/// Returns the number of free blocks for a layout that this CPU caches, the one in reserve
/// included.
#[cfg(feature = "selftest")]
pub fn cached_here(layout: Layout) -> usize {
    statistics_here(layout).cached_blocks
}

/// Returns whether this CPU's cache has no room for one more free block for a layout.
#[cfg(feature = "selftest")]
pub fn is_full_here(layout: Layout) -> bool {
    let statistics = statistics_here(layout);
    // One of them is the reserve.
    statistics.cached_blocks > statistics.limit
}

#[cfg(feature = "selftest")]
fn statistics_here(layout: Layout) -> MagazineStatistics {
    Class::of(checked::taken(layout))
        .zip(cpu::try_with(|here| here.head()))
        .map(|(class, cache)| cache.statistics(class))
        .unwrap_or_default()
}

/// Gives the heap its boot arena. Later calls do nothing.
pub fn start() {
    struct Arena(UnsafeCell<[MaybeUninit<u8>; BOOT_BYTES]>);
    // SAFETY: the cell is reached only once, below.
    unsafe impl Sync for Arena {}
    static ARENA: Arena = Arena(UnsafeCell::new([MaybeUninit::uninit(); BOOT_BYTES]));
    static TAKEN: AtomicBool = AtomicBool::new(false);

    // AcqRel: the swap alone lets one caller through; this is not a fast path.
    if !TAKEN.swap(true, Ordering::AcqRel) {
        // SAFETY: the flag lets one caller through, once, so this is the only
        // reference to the arena there ever is.
        let arena = unsafe { &mut *ARENA.0.get() };
        // Fails only for a second arena or one that is too small; this is neither.
        let started = LIST.start_boot(arena);
        debug_assert!(started.is_ok());
    }
}

/// Opens the heap of this kind: new blocks come from it, on the machine's free frames. Called once
/// the shared memory state is published and the BSP has its block, and again, between jobs, to
/// change over.
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

/// Returns the kind of heap that new blocks come from.
#[cfg(feature = "selftest")]
pub fn kind() -> HeapKind {
    let number = KIND.load(Ordering::Relaxed);
    let kind = HeapKind::ALL.get(usize::from(number)).copied();
    kind.unwrap_or(HeapKind::LinkedList)
}

/// Returns the magazines, for benchmarks.
#[cfg(feature = "bench")]
#[inline]
pub fn magazines() -> &'static MagazineHeap<Kernel> {
    &MAGAZINES
}

/// Drains every CPU's cache, and returns every frame that the heap can do without. Called on the
/// BSP, between jobs.
pub fn drain() {
    checked::flush();
    jobs::all(DRAIN_TIMEOUT, &|_| {
        // Refused only to code that has interrupted the heap; a job has not.
        let drained = drain_here();
        debug_assert!(drained);
    });
    MAGAZINES.trim();
    if mapping::trim() {
        checked::flush();
        drain_here();
        MAGAZINES.trim();
    }
    // Trimming has given frames to this CPU's cache.
    frames::drain();
}

/// Logs the use of the heap's frames, and the statistics of the magazines so far: allocations, how
/// many there were for each refill and flush, how often two CPUs contended for a depot, and blocks
/// that came back to their slab from another CPU than the one that last got some of it.
pub fn log_usage() {
    let mut sum = MagazineStatistics::default();
    let (mut contended, mut remote) = (0, 0);
    for class in Class::all() {
        for (_, block) in cpu::all() {
            let statistics = block.head().statistics(class);
            sum.allocations += statistics.allocations;
            sum.refills += statistics.refills;
            sum.flushes += statistics.flushes;
        }
        let shared = MAGAZINES.class_statistics(class);
        contended += shared.depot_contended;
        remote += shared.remote_blocks;
    }
    let reading = HeapReading::take();
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

/// The heap's figures at one moment. Exact while no CPU uses it.
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
pub struct HeapReading {
    /// Bytes allocated and not freed, the boot arena's included.
    pub live_bytes: i64,
    /// Those of them that lie in the boot arena.
    pub boot_live_bytes: i64,
    /// Blocks allocated and not freed.
    pub live_blocks: i64,
    /// The bytes allocated and freed past the CPUs' caches: before there were any, by code that
    /// interrupted a CPU inside the heap, and all of the list's.
    pub common_traffic: Traffic,
    /// Bytes in free blocks that CPUs and depots keep.
    pub cached_bytes: u64,
    /// Those of them that depots keep.
    pub depot_bytes: u64,
    /// Frames that the magazines hold, for blocks and for their own records.
    pub magazine_frames: u64,
    /// Bytes of the window that are mapped for the list.
    pub window_bytes: u64,
    /// The peak of the bytes that both heaps had together.
    pub peak_bytes: u64,
}

impl HeapReading {
    /// Reads the figures of both heaps.
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

/// Returns the bytes that the heap in use has free, without those that CPUs cache.
#[cfg(feature = "selftest")]
pub fn unused_bytes() -> u64 {
    // The list's free memory, the boot arena's too, is of use to the list alone.
    if USE_MAGAZINES.load(Ordering::Relaxed) {
        return 0;
    }
    let list = LIST.statistics();
    list.capacity_bytes.saturating_sub(list.live_bytes)
}
