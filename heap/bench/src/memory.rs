//! The least memory in which an allocator can hold 8000 blocks of 16 bytes to 8 KiB while they are
//! replaced in random order, and what the magazine heap takes if it has plenty.

use std::alloc::{GlobalAlloc, Layout};
use std::mem::MaybeUninit;

use muster_heap::FRAME;

use crate::contenders;
use crate::workloads::Random;

const BLOCKS: usize = 8000;
const REPLACED: usize = 40_000;

pub fn compare() {
    let peak = peak();
    println!(
        "{BLOCKS} blocks, {REPLACED} replaced, at most {} KiB live",
        peak >> 10
    );
    println!("  allocator      least arena / live");
    for (name, new) in contenders::ON_ARENAS {
        // This one doesn't return when it runs out.
        if name == "good_memory" {
            continue;
        }
        let least = least(peak, |bytes| {
            let mut arena = vec![MaybeUninit::uninit(); bytes];
            // SAFETY: neither the allocator nor its blocks are used when the arena is gone.
            let arena = unsafe { &mut *(arena.as_mut_slice() as *mut [MaybeUninit<u8>]) };
            run(new(arena)).is_some()
        });
        println!("  {name:<14} {:>8.3}", least as f64 / peak as f64);
    }
    let least = least(peak, |bytes| {
        run(contenders::muster_for_this_thread(bytes / FRAME)).is_some()
    });
    println!("  {:<14} {:>8.3}", "muster", least as f64 / peak as f64);

    let heap = contenders::muster_for_this_thread(1 << 16);
    let _blocks = run(heap);
    for state in ["with plenty of memory", "and then drained"] {
        let totals = heap.totals();
        let live = totals.live_bytes as f64;
        println!(
            "  muster {state}: frames / live {:.3} ({} KiB slabs, {} KiB own, {} KiB cached)",
            (totals.frames() * FRAME) as f64 / live,
            (totals.slab_frames * FRAME) >> 10,
            (totals.own_frames * FRAME) >> 10,
            totals.cached_bytes >> 10,
        );
        heap.drain();
        heap.trim();
    }
}

/// The most bytes that are live at a time.
fn peak() -> usize {
    let mut random = Random::new(1);
    let mut sizes = vec![0; BLOCKS];
    let (mut live, mut peak) = (0, 0);
    for number in 0..BLOCKS + REPLACED {
        let (place, layout) = next(&mut random, number);
        live = live - sizes[place] + layout.size();
        sizes[place] = layout.size();
        peak = peak.max(live);
    }
    peak
}

/// Which block is replaced next, and by what. At first, each is a new one.
fn next(random: &mut Random, number: usize) -> (usize, Layout) {
    let layout = Layout::from_size_align(random.mixed(), 8).expect("a valid layout");
    let any = random.next() as usize % BLOCKS;
    (if number < BLOCKS { number } else { any }, layout)
}

/// `None`: out of memory.
fn run(allocator: &dyn GlobalAlloc) -> Option<Vec<(*mut u8, Layout)>> {
    let mut random = Random::new(1);
    let mut blocks = Vec::with_capacity(BLOCKS);
    for number in 0..BLOCKS + REPLACED {
        let (place, layout) = next(&mut random, number);
        if let Some(&(block, old)) = blocks.get(place) {
            // SAFETY: live, with this layout.
            unsafe { allocator.dealloc(block, old) };
        }
        // SAFETY: the size isn't zero.
        let block = unsafe { allocator.alloc(layout) };
        if block.is_null() {
            return None;
        }
        match blocks.get_mut(place) {
            Some(place) => *place = (block, layout),
            None => blocks.push((block, layout)),
        }
    }
    Some(blocks)
}

/// The least size, to a frame, for which `holds` is true.
fn least(live: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut short, mut enough) = (live / FRAME, 2 * live / FRAME);
    while enough - short > 1 {
        let middle = short.midpoint(enough);
        if holds(middle * FRAME) {
            enough = middle;
        } else {
            short = middle;
        }
    }
    enough * FRAME
}
