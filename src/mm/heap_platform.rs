//! The two heaps, a linked list and the magazines, and their platform in this kernel.

use alloc::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use muster_heap::{
    CpuCache, FastPath, FramePlatform, Heap, MagazineHeap, NO_CACHE, Platform, SearchFn, Shortage,
};
use x86_64::instructions::interrupts;

use super::{checked, frames, heap_memory, relief, scattered, shared};
use crate::arch::{clock, failpoint};
use crate::smp::{call, cpu, lock};

/// How long a CPU may hold a lock of the heap's, in milliseconds.
const LOCK_TIMEOUT: u64 = lock::TIMEOUT;

/// How long a CPU may keep another one waiting with memory in transit, in milliseconds: that takes
/// microseconds, but a host may stop a virtual CPU for hundreds of milliseconds.
const MEMORY_TIMEOUT: u64 = 1000;

/// The linked list.
pub static LIST: Heap<Kernel> = Heap::new(Kernel);
/// The magazines.
pub(super) static MAGAZINES: MagazineHeap<Kernel> = MagazineHeap::new(Kernel);

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

/// The heaps' platform.
pub struct Kernel;

/// Disables interrupts until it is dropped, and restores the flag.
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
        failpoint::heap_grows(cpu::try_with(|here| here.index()));
        heap_memory::grow(at_least)
    }

    fn wait_for_lock(&self, holder: Option<usize>, state: &mut u64) {
        if is_overdue(state, LOCK_TIMEOUT) {
            Platform::lock_stuck(self, holder);
        }
    }
}

// SAFETY: (1) Muster has no tasks: only interrupts come in between on a CPU, and each runs to its
// end; (2) the cache is part of the CPU's own memory, found through its block, which it registers
// once; only this heap uses it; (3) and (4) as for `Platform`; (5) frames come from the frame
// allocator, as asked, and are seen through the HHDM, which every CPU's tables map, or where the shared tables map them for
// the heap, in the window of mappings, which is apart from it; (7) GS base is
// the address of a block, or of the sentinel's like, whose head is the cache, so far from it; and
// all that interrupts a CPU returns by `exceptions`, which asks `resume`.
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
        cpu::all().for_each(|(_, block)| visit(block.head()));
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        heap_memory::allocate(count, align)
    }

    fn search_frames(&self, count: usize, align: usize, search: &mut SearchFn<'_>) {
        heap_memory::search(count, align, search);
    }

    unsafe fn extend_frames(&self, start: NonNull<u8>, count: usize, more: usize) -> bool {
        // SAFETY: the caller's promise, handed on.
        unsafe { heap_memory::extend(start, count, more) }
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: the caller's promise, handed on.
        unsafe { heap_memory::free(start, count) };
    }

    fn allocate_scattered(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        // The checked heap's checks read blocks in the HHDM only.
        if failpoint::refuses_frames() || checked::is_on() {
            return None;
        }
        scattered::allocate(count, align)
    }

    #[inline]
    fn is_scattered(&self, start: NonNull<u8>) -> bool {
        scattered::contains(start.as_ptr())
    }

    fn can_unmap(&self) -> bool {
        scattered::can_unmap()
    }

    unsafe fn free_scattered(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: the caller's promise, handed on.
        unsafe { scattered::free(start, count) };
    }

    fn drain_others(&self) -> bool {
        relief::ask_others()
    }

    fn in_shortage(&self, relieve: &mut dyn FnMut()) {
        let _shortage = shared::get().frames().begin_shortage();
        relieve();
    }

    fn capacity(&self) -> usize {
        shared::get().frame_count()
    }

    fn reclaimable(&self) -> usize {
        usize::from(shared::get().may_have_cached_frames())
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

/// Waits a moment for another CPU that uses the heap, and serves calls that do not use it. Returns
/// whether the wait has lasted longer than the timeout, in milliseconds; `state` is
/// [`clock::has_waited`]'s.
fn is_overdue(state: &mut u64, timeout: u64) -> bool {
    call::serve_without_heap();
    core::hint::spin_loop();
    clock::has_waited(state, timeout)
}

/// Drains this CPU's caches of blocks and of frames. Returns `false` if this code has interrupted
/// their use.
pub fn drain_here() -> bool {
    MAGAZINES.drain() && frames::drain()
}

/// Returns a number that changes when this CPU's caches are used: what was allocated and freed here, and how many frames are
/// cached.
pub fn cache_use() -> u64 {
    cpu::try_with(|here| {
        let traffic = here.head().traffic();
        let bytes = traffic.allocated_bytes.wrapping_add(traffic.freed_bytes);
        let frames = shared::get().share_of(here.index());
        let frames = frames.map_or(0, |share| share.cached());
        // In the bits that the bytes reach only after 256 TiB.
        bytes.wrapping_add((frames as u64) << 48)
    })
    .unwrap_or(0)
}

/// Begins a shortage in which the heap keeps nothing: of frames for something else.
pub fn begin_shortage() -> Shortage<'static> {
    MAGAZINES.begin_shortage()
}

/// Frees the blocks in quarantine, for a CPU that needs memory.
pub fn relieve() {
    if checked::flush() {
        drain_here();
        MAGAZINES.trim();
    }
}
