//! Large blocks: those that a CPU keeps, and those that grow where they are.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use muster_heap::hosted::HostedFrames;
use muster_heap::{FRAME, FramePlatform, MagazineHeap};

use crate::layout;

type Heap = MagazineHeap<HostedFrames>;

/// The frames that a CPU keeps in large blocks at most, by the documentation.
const KEPT: usize = 256;

fn alloc(heap: &Heap, layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: no test asks for zero bytes.
    NonNull::new(unsafe { heap.alloc(layout) })
}

fn free(heap: &Heap, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests free what they allocated, once, with the layout that it has.
    unsafe { heap.dealloc(block.as_ptr(), layout) };
}

fn kept(heap: &Heap) -> usize {
    heap.platform().cache().cached_large_bytes() / FRAME
}

#[test]
fn a_cpu_keeps_a_large_block_for_the_next_one_of_as_many_frames() {
    let heap = Heap::new(HostedFrames::new(1024));
    let left = heap.platform().frames_left();
    for frames in 3..=64 {
        let size = frames * FRAME;
        let before = kept(&heap);
        let block = alloc(&heap, layout(size, 4096)).unwrap();
        free(&heap, block, layout(size, 4096));
        assert_eq!(kept(&heap), before, "kept before there was a second one");
        let block = alloc(&heap, layout(size, 4096)).unwrap();
        free(&heap, block, layout(size, 4096));
        let without = heap.platform().frames_left();
        let smaller = layout(size - FRAME + 1, 8);
        assert_eq!(alloc(&heap, smaller), Some(block), "{frames} frames");
        assert_eq!(heap.platform().frames_left(), without);
        free(&heap, block, smaller);
        let totals = heap.totals();
        assert_eq!((totals.live_bytes, totals.live_blocks), (0, 0));
        assert_eq!(totals.cached_bytes, totals.large_frames * FRAME);
        assert!((1..=KEPT).contains(&kept(&heap)));
    }
    assert!(heap.drain());
    assert_eq!((kept(&heap), heap.platform().frames_left()), (0, left));
}

#[test]
fn a_cpu_keeps_no_block_of_more_frames_or_a_higher_alignment() {
    let heap = Heap::new(HostedFrames::new(1024));
    let left = heap.platform().frames_left();
    for layout in [layout(64 * FRAME + 1, 8), layout(3 * FRAME, 2 * FRAME)] {
        let block = alloc(&heap, layout).unwrap();
        free(&heap, block, layout);
        assert_eq!((kept(&heap), heap.platform().frames_left()), (0, left));
    }
}

/// Of one size as many as fit in the budget of that size, and of many sizes as many as fit in that of all.
#[test]
fn what_a_cpu_keeps_has_a_bound_and_goes_when_others_come() {
    let heap = Heap::new(HostedFrames::new(4096));
    let left = heap.platform().frames_left();
    let many = |frames: usize| {
        let layout = layout(frames * FRAME, 8);
        let blocks: Vec<_> = (0..40).map(|_| alloc(&heap, layout).unwrap()).collect();
        (blocks.into_iter()).for_each(|block| free(&heap, block, layout));
    };
    for frames in (3..=64).chain((3..=64).rev()) {
        many(frames);
        let kept = kept(&heap);
        assert!(kept <= KEPT && kept >= 64 / frames * frames, "{kept}");
        assert_eq!(heap.platform().frames_left(), left - kept);
    }
    assert!(heap.drain());
    assert_eq!(heap.platform().frames_left(), left);
}

/// What comes back for a new block may be just what the old one lacks.
#[test]
fn a_block_that_can_grow_only_where_it_is_does_so_after_a_relief() {
    let heap = Heap::new(HostedFrames::new(101));
    let old = layout(60 * FRAME, 8);
    let block = alloc(&heap, old).unwrap();
    let page = layout(4096, 8);
    let pages: Vec<_> = (0..10).map(|_| alloc(&heap, page).unwrap()).collect();
    pages.into_iter().for_each(|block| free(&heap, block, page));
    // SAFETY: live, of this layout, and the size is not zero.
    let grown = unsafe { heap.realloc(block.as_ptr(), old, 90 * FRAME) };
    assert_eq!(grown, block.as_ptr());
    assert_eq!(heap.totals().refusals, 0);
    free(&heap, block, layout(90 * FRAME, 8));
}
