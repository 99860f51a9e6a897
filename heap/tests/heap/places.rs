//! Where a slab can be: its description takes frames, more in some places than in others.

use core::alloc::GlobalAlloc;
use core::ptr::{self, NonNull};
use std::alloc;
use std::sync::Mutex;

use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap};

use crate::layout;

/// Bytes that share their last table.
const NODE: usize = 128 << 20;

/// A machine with few frames, far apart.
struct Scattered {
    cache: CpuCache,
    free: Mutex<Vec<usize>>,
}

// SAFETY: the frames are ones of an allocation that is kept, each given once until it is freed; there is one CPU.
unsafe impl FramePlatform for Scattered {
    type NoPreempt = ();
    type InterruptGuard = ();

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) {}

    fn cpu(&self) -> Option<usize> {
        Some(0)
    }

    fn cache(&self) -> &CpuCache {
        &self.cache
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        visit(&self.cache);
    }

    /// The lowest one.
    fn allocate_frames(&self, count: usize, _align: usize) -> Option<NonNull<u8>> {
        let mut free = self.free.lock().unwrap();
        let lowest = (0..free.len()).min_by_key(|&index| free[index])?;
        let frame = (count == 1).then(|| free.swap_remove(lowest))?;
        NonNull::new(ptr::with_exposed_provenance_mut(frame))
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        let frames = (0..count).map(|index| start.addr().get() + index * FRAME);
        self.free.lock().unwrap().extend(frames);
    }
}

/// Returns the blocks that a heap gets out of the last two frames, the lower one where no tables are.
fn blocks_of_two_frames() -> usize {
    // Only what the heap gets is touched.
    // SAFETY: of more than zero bytes.
    let memory = unsafe { alloc::alloc(layout(3 * NODE, FRAME)) };
    let start = memory.expose_provenance();
    let border = start.next_multiple_of(NODE) + NODE;
    let (below, above) = (border - FRAME, border);
    let heap = MagazineHeap::new(Scattered {
        cache: CpuCache::new(),
        free: Mutex::new((1..=5).map(|index| above + index * FRAME).collect()),
    });
    let blocks = || {
        // SAFETY: of more than zero bytes.
        std::iter::from_fn(|| NonNull::new(unsafe { heap.alloc(layout(64, 8)) })).count()
    };
    assert!(blocks() > 0);
    heap.platform().free.lock().unwrap().extend([below, above]);
    let blocks = blocks();
    let left = heap.platform().free.lock().unwrap().clone();
    assert_eq!(left, [below]);
    // SAFETY: allocated above, and the heap is gone.
    unsafe { alloc::dealloc(memory, layout(3 * NODE, FRAME)) };
    blocks
}

#[test]
fn a_slab_is_where_its_description_fits() {
    // The lowest frame would take a leaf and the table above it: with the other one that is one frame too few.
    assert!(blocks_of_two_frames() > 0);
}
