//! Stretches with interrupts disabled: what is done in one, where the platform is asked, and what comes when it ends.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use std::cell::{Cell, RefCell};

use muster_heap::hosted::HostedFrames;
use muster_heap::{CpuCache, FRAME, FramePlatform, FrameSearch, MagazineHeap, SearchFn};

use crate::layout;

type Heap = MagazineHeap<Machine>;

/// The most frames that are given back in a stretch, by the heap's constant.
const MAX_FREED: usize = 4096;

thread_local! {
    /// How many guards there are, and how many frames came back since the first.
    static GUARDS: Cell<usize> = const { Cell::new(0) };
    static FREED: Cell<usize> = const { Cell::new(0) };
    /// Waits for memory.
    static WAITS: Cell<usize> = const { Cell::new(0) };
    /// What an interrupt does, when one is due, once interrupts are enabled.
    static HANDLER: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
    static IS_DUE: Cell<bool> = const { Cell::new(false) };
    /// What an NMI does inside the platform, and whether it is called inside itself then.
    static NMI: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        GUARDS.set(GUARDS.get() - 1);
        if GUARDS.get() == 0 {
            FREED.set(0);
            if IS_DUE.take()
                && let Some(handler) = HANDLER.take()
            {
                handler();
            }
        }
    }
}

/// A CPU with handlers, which may use the heap.
struct Machine(HostedFrames);

impl Machine {
    fn inside(&self) {
        assert!(GUARDS.get() > 0);
        let nmi = NMI.take();
        if let Some(mut nmi) = nmi {
            assert!(!IS_INSIDE.replace(true));
            nmi();
            IS_INSIDE.set(false);
            NMI.set(Some(nmi));
        } else {
            assert!(!IS_INSIDE.get(), "the platform is called inside itself");
        }
    }
}

// SAFETY: everything is `HostedFrames`', of one thread; handlers run to their end.
unsafe impl FramePlatform for Machine {
    type NoPreempt = ();
    type InterruptGuard = Guard;

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) -> Guard {
        GUARDS.set(GUARDS.get() + 1);
        Guard
    }

    hosted_cpus!(0);

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        self.inside();
        self.0.allocate_frames(count, align)
    }

    fn search_frames(&self, count: usize, align: usize, search: &mut SearchFn<'_>) {
        search(&mut || {
            self.inside();
            IS_DUE.set(true);
            let found = self.0.allocate_frames(count, align);
            found.map_or(FrameSearch::NotFree, FrameSearch::Found)
        });
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        FREED.set(FREED.get() + count);
        assert!(FREED.get() <= MAX_FREED, "{} frames at once", FREED.get());
        // SAFETY: the caller's promise.
        unsafe { self.0.free_frames(start, count) };
        self.inside();
    }

    fn wait_for_memory(&self, _state: &mut u64) -> bool {
        WAITS.set(WAITS.get() + 1);
        WAITS.get() < 10
    }
}

fn heap(frames: usize) -> &'static Heap {
    Box::leak(Box::new(MagazineHeap::new(Machine(HostedFrames::new(
        frames,
    )))))
}

fn alloc(heap: &Heap, layout: Layout) -> *mut u8 {
    // SAFETY: no test asks for zero bytes.
    unsafe { heap.alloc(layout) }
}

#[test]
fn frames_go_back_in_steps_wherever_they_come_from() {
    const COUNT: usize = 3 * MAX_FREED;
    let heap = heap(COUNT + 300);
    let all = layout(COUNT * FRAME, 8);
    let small = layout(3 * FRAME, 8);
    // SAFETY: each block is freed once, with the layout that it has then.
    unsafe {
        heap.dealloc(alloc(heap, all), all);
        let block = alloc(heap, all);
        assert_eq!(heap.realloc(block, all, small.size()), block);
        heap.dealloc(block, small);

        // On top of a slow path.
        let block = alloc(heap, all).expose_provenance();
        assert_ne!(block, 0);
        let mut once = Some(block);
        NMI.set(Some(Box::new(move || {
            if let Some(block) = once.take() {
                heap.dealloc(ptr::with_exposed_provenance_mut(block), all);
            }
        })));
        let other = alloc(heap, layout(70 * FRAME, 8));
        NMI.set(None);
        assert!(!other.is_null() && heap.drain());
        heap.dealloc(other, layout(70 * FRAME, 8));

        // To a class, while no other memory is left.
        let block = alloc(heap, all);
        assert!(!block.is_null());
        while !alloc(heap, layout(FRAME, 8)).is_null() {}
        while !alloc(heap, layout(64, 8)).is_null() {}
        assert_eq!(heap.realloc(block, all, 64), block);
        heap.dealloc(block, layout(64, 8));
    }
    // One frame was taken for a block that is live, or its slab's description.
    assert!(heap.drain());
    heap.trim();
    assert!(heap.platform().0.frames_left() >= COUNT);
}

#[test]
fn a_handler_waits_for_no_frames_that_the_search_it_interrupted_keeps() {
    // One frame for the account of frames, and one that is free: a slab, but not its description.
    let heap = heap(2);
    HANDLER.set(Some(Box::new(move || {
        assert!(alloc(heap, layout(8, 8)).is_null());
    })));
    WAITS.set(0);
    assert!(alloc(heap, layout(8, 8)).is_null());
    assert!(HANDLER.take().is_none(), "no handler came");
    assert_eq!(WAITS.get(), 0);
    assert_eq!(heap.platform().0.frames_left(), 1);
}

#[test]
fn the_heap_knows_that_it_is_inside_whenever_it_calls_the_platform() {
    let heap = heap(2);
    NMI.set(Some(Box::new(move || {
        let block = alloc(heap, layout(100, 8));
        assert!(block.is_null());
    })));
    assert!(alloc(heap, layout(8, 8)).is_null());
    NMI.set(None);
    assert_eq!(heap.platform().0.frames_left(), 1);
}
