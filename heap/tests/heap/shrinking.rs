//! Blocks that become smaller where they are: when they give frames back, and when there is no memory
//! for a new one.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{Class, FRAME, MAX_CLASS_SIZE, MagazineHeap};

use crate::layout;

type Heap = MagazineHeap<HostedFrames>;

/// A block on its way to another CPU.
struct Sent(NonNull<u8>);

// SAFETY: a block is memory that its holder alone may touch, whichever thread that is.
unsafe impl Send for Sent {}

fn alloc(heap: &Heap, layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: no test asks for zero bytes.
    NonNull::new(unsafe { heap.alloc(layout) })
}

fn free(heap: &Heap, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests free what they allocated, once, with the layout that it has.
    unsafe { heap.dealloc(block.as_ptr(), layout) };
}

fn shrink(heap: &Heap, block: NonNull<u8>, from: Layout, size: usize) -> Option<NonNull<u8>> {
    // SAFETY: live, with this layout, and the size isn't zero.
    NonNull::new(unsafe { heap.realloc(block.as_ptr(), from, size) })
}

/// Takes all memory there is, in blocks that are live from now on.
fn exhaust(heap: &Heap) -> Vec<(NonNull<u8>, Layout)> {
    let mut blocks = Vec::new();
    let mut sizes: Vec<_> = Class::all().map(Class::size).collect();
    sizes.extend([MAX_CLASS_SIZE + 1, 65536]);
    for size in sizes.into_iter().rev() {
        let layout = layout(size, 1);
        while let Some(block) = alloc(heap, layout) {
            blocks.push((block, layout));
        }
    }
    for class in Class::all() {
        assert_eq!(alloc(heap, layout(class.size(), 1)), None);
    }
    blocks
}

fn assert_all_back(heap: &Heap, frames: usize) {
    assert!(heap.drain());
    heap.trim();
    let totals = heap.totals();
    assert_eq!((totals.live_bytes, totals.live_blocks), (0, 0));
    assert_eq!((totals.cached_bytes, totals.frames()), (0, 0), "{totals:?}");
    assert_eq!(heap.platform().frames_left(), frames);
}

#[test]
fn a_large_block_gives_back_the_frames_behind_its_new_end() {
    let heap = Heap::new(HostedFrames::new(256));
    let frames = heap.platform().frames_left();
    let old = layout(100 * FRAME, 8);
    let block = alloc(&heap, old).unwrap();
    let left = heap.platform().frames_left();
    let new = layout(50 * FRAME - 7, 8);
    assert_eq!(shrink(&heap, block, old, new.size()), Some(block));
    assert_eq!(heap.platform().frames_left(), left + 50);
    let totals = heap.totals();
    assert_eq!(
        (totals.large_frames, totals.live_bytes),
        (50, new.size() as i64)
    );
    free(&heap, block, new);
    assert_all_back(&heap, frames);
}

/// Returns pairs of sizes, from and to, in bytes.
fn shrinkings() -> impl Iterator<Item = (usize, usize)> {
    let sizes = || {
        (Class::all().map(Class::size)).chain([
            MAX_CLASS_SIZE + 1,
            4 * FRAME,
            5 * FRAME + 1,
            60_000,
        ])
    };
    sizes().flat_map(move |from| {
        let smaller = sizes().filter(move |&to| to < from);
        smaller.map(move |to| (from, to))
    })
}

#[test]
fn shrinking_never_fails_and_the_block_is_right_for_all_that_follows() {
    for (from, to) in shrinkings() {
        let heap = &Heap::new(HostedFrames::new(64));
        let frames = heap.platform().frames_left();
        let (old, new) = (layout(from, 1), layout(to, 1));
        // There is a slab: only where there is none, its description may be what is missing.
        let first = alloc(heap, layout(16, 1)).unwrap();
        // Several, as a block's place in its slab matters.
        let blocks: Vec<_> = (0..3).filter_map(|_| alloc(heap, old)).collect();
        let others = exhaust(heap);
        let refusals = heap.totals().refusals;
        for (number, block) in (1..).zip(&blocks) {
            // SAFETY: the block is so long.
            unsafe { block.write_bytes(number, to) };
        }
        let shrunk: Vec<_> = (blocks.iter())
            .map(|&block| {
                shrink(heap, block, old, to).unwrap_or_else(|| panic!("{from} to {to}: null"))
            })
            .collect();
        assert_eq!(heap.totals().refusals, refusals, "{from} to {to}");
        for (number, block) in (1..).zip(&shrunk) {
            // SAFETY: the block has this many bytes, which realloc carried over.
            let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), to) };
            assert!(bytes.iter().all(|&byte| byte == number), "{from} to {to}");
        }
        // One is freed here, on the fast path and then at once used again; the next on another CPU;
        // and the last after a drain.
        let mut shrunk = shrunk.into_iter();
        if let Some(block) = shrunk.next() {
            free(heap, block, new);
            if Class::of(new).is_some() {
                assert_eq!(alloc(heap, new), Some(block), "{from} to {to}");
                free(heap, block, new);
            }
        }
        if let Some(block) = shrunk.next() {
            let sent = Sent(block);
            thread::scope(|scope| {
                scope.spawn(move || {
                    let sent = sent;
                    free(heap, sent.0, new);
                    assert!(heap.drain());
                });
            });
        }
        assert!(heap.drain());
        shrunk.for_each(|block| free(heap, block, new));
        free(heap, first, layout(16, 1));
        for (block, layout) in others {
            free(heap, block, layout);
        }
        assert_all_back(heap, frames);
    }
}

#[test]
fn a_shrunk_block_is_never_given_to_someone_who_asks_for_more_alignment_than_it_has() {
    let heap = Heap::new(HostedFrames::new(64));
    let frames = heap.platform().frames_left();
    let (old, new) = (layout(5120, 8), layout(4096, 8));
    let blocks = [(); 4].map(|()| alloc(&heap, old).unwrap());
    let others = exhaust(&heap);
    let shrunk = blocks.map(|block| shrink(&heap, block, old, new.size()).unwrap());
    let is_aligned = |block: &NonNull<u8>| block.addr().get().is_multiple_of(4096);
    assert!(!shrunk.iter().all(is_aligned), "the test shows nothing");
    shrunk.into_iter().for_each(|block| free(&heap, block, new));
    let aligned = layout(4096, 4096);
    let mut found = Vec::new();
    while let Some(block) = alloc(&heap, aligned) {
        assert!(is_aligned(&block));
        found.push(block);
    }
    found
        .into_iter()
        .for_each(|block| free(&heap, block, aligned));
    for (block, layout) in others {
        free(&heap, block, layout);
    }
    assert_all_back(&heap, frames);
}

#[test]
fn a_large_block_that_becomes_small_takes_its_description_from_what_it_gives_back() {
    // Nothing else is in the machine: no slab whose tables it could share, and no frame.
    for kept in [64, 4096, 5000, 8192] {
        let heap = Heap::new(HostedFrames::new(32));
        let frames = heap.platform().frames_left();
        let old = layout(frames * FRAME, 8);
        let block = alloc(&heap, old).unwrap();
        assert_eq!(heap.platform().frames_left(), 0);
        let new = layout(kept, 8);
        assert_eq!(shrink(&heap, block, old, kept), Some(block));
        let totals = heap.totals();
        assert_eq!((totals.large_frames, totals.own_frames), (0, 3));
        assert_eq!(totals.slab_frames, kept.div_ceil(FRAME));
        assert_eq!((totals.live_blocks, totals.live_bytes), (1, kept as i64));
        free(&heap, block, new);
        assert_all_back(&heap, frames);
    }
}

#[test]
fn a_large_block_becomes_small_wherever_it_lies() {
    // In each place that a block can have among the descriptions of a leaf, which fill a frame.
    for place in 0..80 {
        for before in [3, 4, 20] {
            let heap = Heap::new(HostedFrames::new(256));
            let frames = heap.platform().frames_left();
            // There is a slab, whose tables may serve.
            let first = alloc(&heap, layout(16, 1)).unwrap();
            let gap = layout((3 + place) * FRAME, 8);
            let gap = (alloc(&heap, gap).unwrap(), gap);
            let old = layout(before * FRAME, 8);
            let block = alloc(&heap, old).unwrap();
            let mut others = exhaust(&heap);
            let new = layout(8192, 8);
            let at = block.addr().get() / FRAME % 64;
            let shrunk = shrink(&heap, block, old, new.size());
            assert!(shrunk.is_some(), "{before} frames at {at}");
            others.extend(shrunk.map(|block| (block, new)));
            others.extend([gap, (first, layout(16, 1))]);
            for (block, layout) in others {
                free(&heap, block, layout);
            }
            assert_all_back(&heap, frames);
        }
    }
}

#[test]
fn only_a_description_that_fits_nowhere_keeps_a_large_block_from_becoming_small() {
    let heap = Heap::new(HostedFrames::new(4));
    let frames = heap.platform().frames_left();
    let old = layout(frames * FRAME, 8);
    assert_eq!(frames, 3);
    let block = alloc(&heap, old).unwrap();
    // SAFETY: the block's bytes.
    unsafe { block.write_bytes(0x5a, old.size()) };
    assert_eq!(shrink(&heap, block, old, 64), None);
    // SAFETY: as above: it is as it was.
    let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), old.size()) };
    assert!(bytes.iter().all(|&byte| byte == 0x5a));
    free(&heap, block, old);
    assert_all_back(&heap, frames);
}

#[test]
fn a_block_that_is_larger_than_its_layout_is_right_but_a_smaller_one_is_not() {
    let heap = Heap::new(HostedFrames::new(64));
    let block = alloc(&heap, layout(64, 8)).unwrap();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        free(&heap, block, layout(100, 8));
        heap.drain();
    }));
    let message = caught.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("as a block of up to 112 bytes") && message.contains("up to 64"));
}
