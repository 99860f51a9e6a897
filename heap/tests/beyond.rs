//! More threads than a hosted machine has caches for. A process of its own: whatever else runs in it at
//! the same time has no cache either, on which other tests rely.

#![allow(
    clippy::unwrap_used,
    reason = "a test that finds nothing to unwrap must fail"
)]

use core::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{FramePlatform, MagazineHeap, NO_CACHE};

#[test]
fn threads_beyond_those_that_have_caches_do_without() {
    // `HostedFrames` has 64 caches.
    const THREADS: usize = 80;
    let heap = &MagazineHeap::new(HostedFrames::new(1024));
    let frames = heap.platform().frames_left();
    let barrier = &Barrier::new(THREADS);
    let without = &AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || {
                let byte = number as u8;
                let blocks: Vec<_> = (1..=50)
                    .map(|step| {
                        let size = 1 + (number * 31 + step * 17) % 200;
                        let layout = Layout::from_size_align(size, 8).unwrap();
                        // SAFETY: the size isn't zero.
                        let block = unsafe { heap.alloc(layout) };
                        assert!(!block.is_null());
                        // SAFETY: the block is so long.
                        unsafe { block.write_bytes(byte, size) };
                        (block, layout)
                    })
                    .collect();
                if heap.platform().cpu().is_none() {
                    without.fetch_add(1, Ordering::Relaxed);
                    assert!(ptr::eq(heap.platform().cache(), &NO_CACHE));
                }
                // Until here, nobody's number comes free.
                barrier.wait();
                for (block, layout) in blocks {
                    // SAFETY: the block is so long, and live.
                    let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
                    assert!(bytes.iter().all(|&found| found == byte));
                    // SAFETY: live, and freed once with its layout.
                    unsafe { heap.dealloc(block, layout) };
                }
                assert!(heap.drain());
            });
        }
    });
    assert!(without.load(Ordering::Relaxed) >= THREADS - 64);
    heap.trim();
    assert_eq!((heap.totals().frames(), heap.totals().live_bytes), (0, 0));
    assert_eq!(heap.platform().frames_left(), frames);
}
