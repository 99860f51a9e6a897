//! The relief when memory is short: the heap does only what can help, and in steps.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use muster_heap::hosted::HostedFrames;
use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap};

use crate::layout;

/// A machine that counts how often the other CPUs are asked to drain, and what happens while
/// interrupts are disabled.
struct Counting {
    machine: HostedFrames,
    drains: AtomicUsize,
    reclaimable: AtomicUsize,
}

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Frames given and taken since interrupts were disabled, and the most there ever were.
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static MAX_CALLS: Cell<usize> = const { Cell::new(0) };
    static IN_SHORTAGE: Cell<bool> = const { Cell::new(false) };
    /// Whether it was so when the heap last asked for frames.
    static ASKED_IN_SHORTAGE: Cell<bool> = const { Cell::new(false) };
}

struct Disabled;

impl Drop for Disabled {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

fn count_call() {
    if DEPTH.get() > 0 {
        CALLS.set(CALLS.get() + 1);
        MAX_CALLS.set(MAX_CALLS.get().max(CALLS.get()));
    }
}

// SAFETY: everything is `HostedFrames`'.
unsafe impl FramePlatform for Counting {
    type NoPreempt = ();
    type InterruptGuard = Disabled;

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) -> Disabled {
        if DEPTH.get() == 0 {
            CALLS.set(0);
        }
        DEPTH.set(DEPTH.get() + 1);
        Disabled
    }

    hosted_cpus!(machine);

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        count_call();
        ASKED_IN_SHORTAGE.set(IN_SHORTAGE.get());
        self.machine.allocate_frames(count, align)
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        count_call();
        // SAFETY: the caller's promise.
        unsafe { self.machine.free_frames(start, count) };
    }

    fn in_shortage(&self, relieve: &mut dyn FnMut()) {
        IN_SHORTAGE.set(true);
        relieve();
        IN_SHORTAGE.set(false);
    }

    fn drain_others(&self) -> bool {
        assert_eq!(DEPTH.get(), 0, "interrupts are as the caller has them");
        assert!(IN_SHORTAGE.get());
        self.drains.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn capacity(&self) -> usize {
        self.machine.capacity()
    }

    fn reclaimable(&self) -> usize {
        self.reclaimable.load(Ordering::Relaxed)
    }
}

fn heap(frames: usize) -> MagazineHeap<Counting> {
    MagazineHeap::new(Counting {
        machine: HostedFrames::new(frames),
        drains: AtomicUsize::new(0),
        reclaimable: AtomicUsize::new(0),
    })
}

fn alloc(heap: &MagazineHeap<Counting>, layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: no test asks for zero bytes.
    NonNull::new(unsafe { heap.alloc(layout) })
}

fn free(heap: &MagazineHeap<Counting>, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests free what they allocated, once, with the same layout.
    unsafe { heap.dealloc(block.as_ptr(), layout) };
}

/// Fills this CPU's cache with free blocks.
fn warm(heap: &MagazineHeap<Counting>) -> usize {
    let layout = layout(64, 8);
    let blocks: Vec<_> = (0..200).map(|_| alloc(heap, layout).unwrap()).collect();
    (blocks.into_iter()).for_each(|block| free(heap, block, layout));
    let cached = heap.totals().cached_bytes;
    assert!(cached > 0);
    cached
}

#[test]
fn what_exceeds_the_machine_is_refused_at_once() {
    let heap = heap(4096);
    let cached = warm(&heap);
    for size in [4097 * FRAME, 1 << 40, isize::MAX as usize - 7] {
        assert_eq!(alloc(&heap, layout(size, 8)), None);
    }
    assert_eq!(heap.platform().drains.load(Ordering::Relaxed), 0);
    assert_eq!(heap.totals().cached_bytes, cached, "nobody was drained");
    assert_eq!(heap.totals().refusals, 3);
}

#[test]
fn relief_that_did_not_help_is_repeated_only_when_something_may_have_come_back() {
    let heap = heap(256);
    let machine = heap.platform();
    let drains = || machine.drains.load(Ordering::Relaxed);
    let kept = alloc(&heap, layout(100 * FRAME, 8)).unwrap();
    let too_large = layout(200 * FRAME, 8);
    warm(&heap);
    assert_eq!(alloc(&heap, too_large), None);
    assert_eq!(drains(), 1);
    for _ in 0..10 {
        assert_eq!(alloc(&heap, too_large), None);
    }
    assert_eq!(drains(), 1, "nothing has been freed");

    // Something was freed: a small block, on the fast path.
    warm(&heap);
    assert_eq!(alloc(&heap, too_large), None);
    assert_eq!(drains(), 2);
    assert_eq!(alloc(&heap, too_large), None);
    assert_eq!(drains(), 2);

    // Nothing was freed, but an allocation has filled a cache.
    let small = alloc(&heap, layout(512, 8)).unwrap();
    assert!(heap.totals().cached_bytes > 0);
    assert_eq!(alloc(&heap, too_large), None);
    assert_eq!(drains(), 3);

    // The platform has something of its own to bring back.
    machine.reclaimable.store(1, Ordering::Relaxed);
    assert_eq!(alloc(&heap, too_large), None);
    assert_eq!(drains(), 4);
    machine.reclaimable.store(0, Ordering::Relaxed);
    assert_eq!(alloc(&heap, too_large), None);
    assert_eq!(drains(), 4);

    // Enough was freed: the others need not be asked.
    free(&heap, small, layout(512, 8));
    free(&heap, kept, layout(100 * FRAME, 8));
    let block = alloc(&heap, too_large).unwrap();
    assert_eq!(drains(), 4);
    free(&heap, block, too_large);
    assert_eq!(heap.totals().refusals, 16);
}

#[test]
fn a_drained_cpu_keeps_nothing_in_a_shortage() {
    let heap = heap(256);
    for size in [16, 32, 64, 512, 8192, 3 * FRAME] {
        let layout = layout(size, 8);
        let blocks: Vec<_> = (0..10).map(|_| alloc(&heap, layout).unwrap()).collect();
        let shortage = heap.begin_shortage();
        assert!(heap.drain());
        for block in blocks {
            free(&heap, block, layout);
            // What a slow path does for a block must not make room for others.
            let block = alloc(&heap, layout).unwrap();
            free(&heap, block, layout);
            assert_eq!(heap.totals().cached_bytes, 0, "of {size} bytes");
        }
        drop(shortage);
        // The second time, a large block is kept as well.
        for _ in 0..2 {
            let block = alloc(&heap, layout).unwrap();
            free(&heap, block, layout);
        }
        assert!(heap.totals().cached_bytes > 0, "of {size} bytes");
    }
}

#[test]
fn the_last_tries_are_in_the_shortage() {
    let heap = heap(64);
    let all = layout(64 * FRAME, 8);
    let kept = alloc(&heap, layout(FRAME + 1, 8)).unwrap();
    for _ in 0..2 {
        // The second relief is refused as barren.
        ASKED_IN_SHORTAGE.set(false);
        assert_eq!(alloc(&heap, all), None);
        assert!(ASKED_IN_SHORTAGE.get());
    }
    assert_eq!(heap.platform().drains.load(Ordering::Relaxed), 1);
    assert!(!IN_SHORTAGE.get());
    free(&heap, kept, layout(FRAME + 1, 8));
}

#[test]
fn relief_that_did_not_help_is_not_repeated_for_small_blocks_either() {
    let heap = heap(64);
    let drains = || heap.platform().drains.load(Ordering::Relaxed);
    let small = layout(FRAME, 8);
    while alloc(&heap, small).is_some() {}
    let before = drains();
    for _ in 0..10 {
        assert_eq!(alloc(&heap, small), None);
    }
    assert_eq!(drains(), before, "nothing has been freed");
}

#[test]
fn relief_counts_no_refusal_if_it_helped() {
    let heap = heap(256);
    let small = layout(64, 8);
    let blocks: Vec<_> = (0..12_000).map(|_| alloc(&heap, small).unwrap()).collect();
    (blocks.into_iter()).for_each(|block| free(&heap, block, small));
    assert!(heap.totals().cached_bytes > 0);
    let large = layout((heap.platform().machine.frames_left() + 1) * FRAME, 8);
    let block = alloc(&heap, large).unwrap();
    assert_eq!(heap.totals().refusals, 0);
    free(&heap, block, large);
}

#[test]
fn drains_and_trims_disable_interrupts_for_a_bounded_time_whatever_there_is() {
    /// A slab for each block of a class's magazine, and the tables of each, in and out.
    const BOUND: usize = 2 * 128;

    let heap = heap(40_000);
    let sizes = [64, 512, 4096, 8192];
    let mut blocks = Vec::new();
    for size in sizes {
        let layout = layout(size, 8);
        blocks.extend((0..8_000_000 / size).map(|_| (alloc(&heap, layout).unwrap(), layout)));
    }
    // Some of each magazine's worth end up in different slabs.
    let mut at = 0;
    while !blocks.is_empty() {
        at = (at + 7919) % blocks.len();
        let (block, layout) = blocks.swap_remove(at);
        free(&heap, block, layout);
    }
    let frames = heap.totals().frames();
    assert!(heap.drain());
    heap.trim();
    assert!(frames > 100);
    assert_eq!(heap.totals().frames(), 0);
    assert!(MAX_CALLS.get() <= BOUND, "{} calls", MAX_CALLS.get());
}
