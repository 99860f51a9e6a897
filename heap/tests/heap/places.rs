//! Where a slab can be: its description takes frames, more in some places than in others.

use core::alloc::GlobalAlloc;
use core::ptr::{self, NonNull};
use std::sync::Mutex;

use muster_heap::{CpuCache, FRAME, FramePlatform, FrameSearch, MagazineHeap, SearchFn};

use crate::layout;

/// Bytes that share the table above the last ones.
const NODE: usize = 128 << 20;

/// Bytes that share all of their tables.
const REGION: usize = 64 << 30;

/// A machine with few frames, far apart.
struct Scattered {
    cache: CpuCache,
    free: Mutex<Vec<usize>>,
    /// Whether only a search finds several frames.
    searches: bool,
}

impl Scattered {
    /// Takes the lowest frames.
    fn take(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        let mut free = self.free.lock().unwrap();
        free.sort_unstable();
        let frames = |start| (0..count).map(move |index| start + index * FRAME);
        let is_start = |start: usize| {
            start.is_multiple_of(align * FRAME) && frames(start).all(|frame| free.contains(&frame))
        };
        let start = free.iter().copied().find(|&start| is_start(start))?;
        free.retain(|frame| !frames(start).any(|taken| taken == *frame));
        NonNull::new(ptr::with_exposed_provenance_mut(start))
    }
}

// SAFETY: one thread, which nothing interrupts; the frames are memory that stays mapped, and each is given once at a time.
unsafe impl FramePlatform for Scattered {
    one_cpu!();

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        let is_found = !self.searches || count == 1;
        is_found.then(|| self.take(count, align))?
    }

    fn search_frames(&self, count: usize, align: usize, search: &mut SearchFn<'_>) {
        if self.searches {
            search(&mut || {
                (self.take(count, align)).map_or(FrameSearch::NotFree, FrameSearch::Found)
            });
        }
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        let frames = (0..count).map(|index| start.addr().get() + index * FRAME);
        self.free.lock().unwrap().extend(frames);
    }
}

/// Returns the blocks of `size` bytes that a heap gets out of `count` frames behind a border, of which the tables are there, and
/// as many before it, of which they are not.
fn blocks_at_a_border(unit: usize, size: usize, count: usize, searches: bool) -> usize {
    // Only what the heap gets is touched.
    // SAFETY: new memory.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            3 * unit,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(memory, libc::MAP_FAILED);
    let border = memory.expose_provenance().next_multiple_of(unit) + unit;
    let frames = |start: usize, count: usize| (0..count).map(move |index| start + index * FRAME);
    let heap = MagazineHeap::new(Scattered {
        cache: CpuCache::new(),
        free: Mutex::new(frames(border + count * FRAME, 3 + count).collect()),
        searches,
    });
    let blocks = || {
        // SAFETY: of more than zero bytes.
        std::iter::from_fn(|| NonNull::new(unsafe { heap.alloc(layout(size, 8)) })).count()
    };
    assert!(blocks() > 0);
    let below = border - count * FRAME;
    (heap.platform().free.lock().unwrap()).extend(frames(below, 2 * count));
    let blocks = blocks();
    let mut left = heap.platform().free.lock().unwrap().clone();
    left.sort_unstable();
    assert_eq!(left, frames(below, count).collect::<Vec<_>>());
    drop(heap);
    // SAFETY: mapped above, and the heap is gone.
    assert_eq!(unsafe { libc::munmap(memory, 3 * unit) }, 0);
    blocks
}

#[test]
fn a_slab_is_where_its_description_fits() {
    // The lowest frame would take a leaf and the table above it: with the other one that is one frame too few.
    assert!(blocks_at_a_border(NODE, 64, 1, false) > 0);
}

#[test]
fn a_slab_of_several_frames_is_where_its_description_fits() {
    // The lowest frames would take three tables.
    assert_eq!(blocks_at_a_border(REGION, 8192, 2, false), 1);
}

#[test]
fn a_slab_is_searched_for_where_its_description_fits() {
    assert_eq!(blocks_at_a_border(REGION, 8192, 2, true), 1);
}
