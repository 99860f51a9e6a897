//! Waits for the locks of a heap: what a CPU does there, and that none lasts for ever.

use core::alloc::GlobalAlloc;
use core::ptr::NonNull;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap};

use crate::layout;

thread_local! {
    /// Whether this CPU stops for good when it asks for frames.
    static STOPS: Cell<bool> = const { Cell::new(false) };
}

/// A machine on which a CPU may stop in the middle of a slow path, as one does that is parked by an
/// NMI or a virtual one that is taken off its core.
struct Stopping {
    machine: HostedFrames,
    stopped: AtomicUsize,
    is_over: AtomicBool,
}

impl Stopping {
    fn stop(&self) {
        if STOPS.get() {
            self.stopped.fetch_add(1, Ordering::SeqCst);
            while !self.is_over.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        }
    }
}

// SAFETY: everything is `HostedFrames`'.
unsafe impl FramePlatform for Stopping {
    nothing_interrupts!();

    hosted_cpus!(machine);

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        self.stop();
        self.machine.allocate_frames(count, align)
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        self.stop();
        // SAFETY: the caller's promise.
        unsafe { self.machine.free_frames(start, count) };
    }

    fn wait_for_lock(&self, holder: Option<usize>, _state: &mut u64) {
        panic!("a CPU waits for {holder:?}");
    }
}

/// A CPU stops wherever the heap calls the platform; all that another one may ask for goes on.
#[test]
fn a_cpu_that_stops_in_the_platform_holds_no_lock() {
    let scenes: [fn(&MagazineHeap<Stopping>); 4] = [
        // The first slab, its tables, and a depot's memory.
        |heap| {
            // SAFETY: the size isn't zero.
            unsafe { heap.alloc(layout(8192, 8)) };
        },
        |heap| {
            // SAFETY: the size isn't zero.
            unsafe { heap.alloc(layout(100 * FRAME, 8)) };
        },
        |heap| {
            let layout = layout(64, 8);
            STOPS.set(false);
            // SAFETY: the sizes aren't zero, and each block is freed once.
            unsafe {
                let blocks: Vec<_> = (0..1000).map(|_| heap.alloc(layout)).collect();
                STOPS.set(true);
                blocks
                    .into_iter()
                    .for_each(|block| heap.dealloc(block, layout));
            }
        },
        |heap| {
            let layout = layout(64, 8);
            STOPS.set(false);
            // SAFETY: as above.
            unsafe {
                let blocks: Vec<_> = (0..1000).map(|_| heap.alloc(layout)).collect();
                blocks
                    .into_iter()
                    .for_each(|block| heap.dealloc(block, layout));
            }
            STOPS.set(true);
            heap.drain();
            heap.trim();
        },
    ];
    for scene in scenes {
        let heap = &MagazineHeap::new(Stopping {
            machine: HostedFrames::new(4096),
            stopped: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        });
        let machine = heap.platform();
        thread::scope(|scope| {
            scope.spawn(move || {
                STOPS.set(true);
                scene(heap);
            });
            while machine.stopped.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            let served = thread::scope(|scope| scope.spawn(|| use_all_of(heap)).join());
            machine.is_over.store(true, Ordering::SeqCst);
            assert!(served.is_ok());
        });
    }
}

fn use_all_of(heap: &MagazineHeap<Stopping>) {
    let layouts = [layout(64, 8), layout(8192, 8), layout(50_000, 8)];
    for layout in layouts {
        let alloc = || {
            // SAFETY: the size isn't zero.
            NonNull::new(unsafe { heap.alloc(layout) }).unwrap()
        };
        let blocks: Vec<_> = (0..50).map(|_| alloc()).collect();
        for block in blocks {
            // SAFETY: allocated above, with this layout.
            unsafe { heap.dealloc(block.as_ptr(), layout) };
        }
    }
    assert!(heap.drain());
    heap.trim();
}
