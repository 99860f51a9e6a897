//! Memory that a CPU has in its hands, between two places, is not out: another one that is short waits.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap};

use crate::layout;

type Heap = MagazineHeap<Pausing>;

/// A machine on which a CPU can be held up where it gives frames back.
struct Pausing {
    machine: HostedFrames,
    is_paused: AtomicBool,
    /// Requests for frames that were answered.
    answered: AtomicUsize,
    /// How many there must be before the CPU goes on.
    awaited: AtomicUsize,
}

/// A block, and the layout that it is freed with.
type Freed = (NonNull<u8>, Layout);

thread_local! {
    /// Whether this CPU is held up the next time.
    static PAUSES: Cell<bool> = const { Cell::new(false) };
    /// Large blocks that are freed from within the heap the next time it asks for frames.
    static FREED: Cell<Option<[Freed; 2]>> = const { Cell::new(None) };
    static HEAP: Cell<Option<&'static Heap>> = const { Cell::new(None) };
}

// SAFETY: everything is `HostedFrames`'.
unsafe impl FramePlatform for Pausing {
    type NoPreempt = ();
    type InterruptGuard = ();

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) {}

    hosted_cpus!(machine);

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        if let (Some(blocks), Some(heap)) = (FREED.take(), HEAP.get()) {
            (blocks.into_iter()).for_each(|(block, layout)| free(heap, block, layout));
        }
        let start = self.machine.allocate_frames(count, align);
        self.answered.fetch_add(1, Ordering::SeqCst);
        start
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        if PAUSES.replace(false) {
            self.is_paused.store(true, Ordering::SeqCst);
            while self.answered.load(Ordering::SeqCst) < self.awaited.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.machine.free_frames(start, count) };
    }
}

fn heap() -> &'static Heap {
    Box::leak(Box::new(MagazineHeap::new(Pausing {
        machine: HostedFrames::new(64),
        is_paused: AtomicBool::new(false),
        answered: AtomicUsize::new(0),
        awaited: AtomicUsize::new(usize::MAX),
    })))
}

fn alloc(heap: &Heap, layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: no test asks for zero bytes.
    NonNull::new(unsafe { heap.alloc(layout) })
}

fn free(heap: &Heap, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests free what they allocated, once, with the same layout.
    unsafe { heap.dealloc(block.as_ptr(), layout) };
}

/// All frames that there are.
fn all(heap: &Heap) -> Layout {
    layout(heap.platform().machine.frames_left() * FRAME, 8)
}

/// How often a request for all frames asks for them before it is refused.
fn requests() -> usize {
    let heap = heap();
    let all = all(heap);
    let kept = alloc(heap, layout(3 * FRAME, 8)).unwrap();
    let before = heap.platform().answered.load(Ordering::SeqCst);
    assert_eq!(alloc(heap, all), None);
    free(heap, kept, layout(3 * FRAME, 8));
    heap.platform().answered.load(Ordering::SeqCst) - before
}

fn is_found(scene: fn(&'static Heap)) -> bool {
    let heap = heap();
    let machine = heap.platform();
    let all = all(heap);
    let requests = requests();
    thread::scope(|scope| {
        scope.spawn(move || scene(heap));
        while !machine.is_paused.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        // The other CPU goes on when this one has tried all it can by itself.
        let awaited = machine.answered.load(Ordering::SeqCst) + requests;
        machine.awaited.store(awaited, Ordering::SeqCst);
        alloc(heap, all).is_some()
    })
}

/// A wait has a bound, and the other CPU may not have a core in time.
fn assert_found(scene: fn(&'static Heap)) {
    assert!((0..200).any(|_| is_found(scene)));
}

#[test]
fn a_slab_that_another_cpu_trims_is_not_out() {
    assert_found(|heap| {
        let layout = layout(8192, 8);
        let block = alloc(heap, layout).unwrap();
        free(heap, block, layout);
        assert!(heap.drain());
        assert!(heap.totals().slab_frames > 0, "an empty slab is kept");
        PAUSES.set(true);
        heap.trim();
    });
}

#[test]
fn frees_that_had_to_wait_and_that_another_cpu_does_are_not_out() {
    assert_found(|heap| {
        let layouts = [layout(20 * FRAME, 8), layout(3 * FRAME, 8)];
        let blocks = layouts.map(|layout| (alloc(heap, layout).unwrap(), layout));
        HEAP.set(Some(heap));
        FREED.set(Some(blocks));
        let other = alloc(heap, layouts[1]).unwrap();
        free(heap, other, layouts[1]);
        assert_eq!(heap.totals().large_frames, 23, "they wait");
        PAUSES.set(true);
        assert!(heap.drain());
    });
}
