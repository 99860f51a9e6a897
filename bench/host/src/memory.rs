//! What memory it takes to hold 8000 blocks of 16 bytes to 8 KiB while they are replaced in random
//! order, three figures for each allocator:
//!
//! - the least arena in which 40 000 replacements succeed, by the most bytes that were live;
//! - the resident memory that a process has more of after that, by the same, where there is plenty;
//! - after 400 000 in an arena of half more than is live, the largest block that can be had of the
//!   bytes that nobody uses: how little they are in pieces.
//!
//! And for Muster, what each byte of its least arena is for.

use std::alloc::{GlobalAlloc, Layout};
use std::fmt;
use std::fs;
use std::mem::MaybeUninit;
use std::process::Command;

use muster_bench::figures::Fixed;
use muster_bench::{Format, Options, Random};
use muster_heap::{Class, FRAME, FramePlatform};

use crate::contenders;

const BLOCKS: usize = 8000;
const REPLACED: usize = 40_000;
const REPLACED_FOR_LONG: usize = 400_000;

/// Tells all figures of the allocators that are asked for.
pub fn compare(options: &Options) {
    let peak = peak(REPLACED);
    let mut uses = None;
    if options.format == Format::Table {
        println!(
            "{BLOCKS} blocks of mixed sizes, at most {} KiB live",
            peak >> 10
        );
        println!("              least/live  resident/live  largest/free");
    }
    for (name, _) in contenders::heaps() {
        if !options.wants(name) {
            continue;
        }
        let least = least(peak, |bytes| {
            with_arena(name, bytes, |heap| run(heap, REPLACED).is_some())
        });
        if name == "muster" {
            uses = least.and_then(uses_of);
        }
        let share = |part: usize, whole: usize| Fixed::<3>((part * 1000 / whole) as u64);
        let least = Figure(least.map(|least| share(least, peak)));
        let resident = Figure(resident_in_child(name).map(|bytes| share(bytes, peak)));
        let largest = Figure(largest(name));
        match options.format {
            Format::Table => {
                println!("{name:<13} {least:>10} {resident:>14} {largest:>13}");
            }
            Format::Json => println!(
                "{{\"bench\":\"memory\",\"allocator\":\"{name}\",\"least_by_live\":{},\
                 \"resident_by_live\":{},\"largest_by_free\":{}}}",
                least.json(),
                resident.json(),
                largest.json()
            ),
        }
    }
    if let Some(uses) = uses {
        uses.print(options.format);
    }
}

/// What the bytes of an arena are for.
struct Uses {
    arena: usize,
    parts: [(&'static str, usize); 7],
}

impl Uses {
    fn print(&self, format: Format) {
        if format == Format::Table {
            println!(
                "muster's least arena, {} KiB, with all blocks live:",
                self.arena >> 10
            );
        }
        for (name, bytes) in self.parts {
            match format {
                Format::Table => {
                    let percent = Fixed::<1>((bytes * 1000 / self.arena) as u64);
                    println!("{name:<24} {:>8} KiB {percent:>6} %", bytes >> 10);
                }
                Format::Json => println!(
                    "{{\"bench\":\"memory\",\"allocator\":\"muster\",\"use\":\"{name}\",\"bytes\":{bytes}}}"
                ),
            }
        }
    }
}

/// Says what each byte of an arena is for when the workload is done, and all blocks are live.
fn uses_of(arena: usize) -> Option<Uses> {
    let heap = contenders::muster_for_this_thread(arena);
    let blocks = run(heap, REPLACED)?;
    let sum = |of: &dyn Fn(Layout) -> usize| blocks.iter().map(|&(_, layout)| of(layout)).sum();
    let live: usize = sum(&|layout| layout.size());
    let rounded: usize = sum(&|layout| match Class::of(layout) {
        Some(class) => class.size(),
        None => layout.size().next_multiple_of(FRAME),
    });
    let cpu = heap.platform().cache().cached_bytes();
    let of_class = |of: &dyn Fn(Class) -> usize| Class::all().map(of).sum();
    let depots: usize = of_class(&|class| heap.class_statistics(class).depot_blocks * class.size());
    let free_in_slabs = of_class(&|class| {
        let statistics = heap.class_statistics(class);
        statistics.slab_frames * FRAME - statistics.used_blocks * class.size()
    });
    let totals = heap.totals();
    let parts = [
        ("blocks, as asked for", live),
        ("rounding up to classes", rounded - live),
        ("cached by the CPU", cpu),
        ("in depots", depots),
        ("free in slabs, at ends", free_in_slabs),
        ("tables and depots", totals.own_frames * FRAME),
        ("frames, free", arena - totals.frames() * FRAME),
    ];
    let all: usize = parts.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(all, arena, "each byte has a use");
    Some(Uses { arena, parts })
}

/// A figure, if there is one.
struct Figure(Option<Fixed<3>>);

impl Figure {
    fn json(&self) -> String {
        self.0.map_or("null".into(), |figure| figure.to_string())
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(figure) => figure.fmt(f),
            None => f.pad("-"),
        }
    }
}

/// Runs `work` with an allocator on an arena of `bytes` bytes. Returns `None` if it has no arena.
fn with_arena<T>(name: &str, bytes: usize, work: impl FnOnce(&dyn GlobalAlloc) -> T) -> Option<T> {
    if name == "muster" {
        return Some(work(contenders::muster_for_this_thread(bytes)));
    }
    let mut arena = vec![MaybeUninit::<u8>::uninit(); bytes];
    // SAFETY: neither the allocator nor its blocks are used when the arena is gone.
    let lent = unsafe { &mut *(arena.as_mut_slice() as *mut [MaybeUninit<u8>]) };
    let heap = contenders::on_arena(name, lent)?;
    Some(work(&*heap))
}

/// Finds the minimum size, to a frame, for which `holds` is true. Returns `None` if there is none.
fn least(live: usize, holds: impl Fn(usize) -> Option<bool>) -> Option<usize> {
    let (mut short, mut enough) = (live / FRAME, 2 * live / FRAME);
    if !holds(enough * FRAME)? {
        return None;
    }
    while enough - short > 1 {
        let middle = short.midpoint(enough);
        if holds(middle * FRAME)? {
            enough = middle;
        } else {
            short = middle;
        }
    }
    Some(enough * FRAME)
}

/// Measures the largest block that is available after a long run, by the bytes that are not live.
fn largest(name: &str) -> Option<Fixed<3>> {
    let arena = peak(REPLACED_FOR_LONG) * 3 / 2;
    with_arena(name, arena, |heap| {
        let blocks = run(heap, REPLACED_FOR_LONG)?;
        let live: usize = blocks.iter().map(|(_, layout)| layout.size()).sum();
        let can_have = |bytes: usize| {
            let layout = Layout::from_size_align(bytes, 8).expect("a valid layout");
            // SAFETY: the size isn't zero, and the block is freed with its layout.
            unsafe {
                let block = heap.alloc(layout);
                if !block.is_null() {
                    heap.dealloc(block, layout);
                }
                !block.is_null()
            }
        };
        let (mut most, mut too_much) = (0, arena / FRAME);
        while too_much - most > 1 {
            let middle = most.midpoint(too_much);
            if can_have(middle * FRAME) {
                most = middle;
            } else {
                too_much = middle;
            }
        }
        Some(Fixed((most * FRAME * 1000 / (arena - live)) as u64))
    })?
}

/// Runs [`resident`] in a process of its own, where no other allocator was used.
fn resident_in_child(name: &str) -> Option<usize> {
    let program = std::env::current_exe().ok()?;
    let output = Command::new(program)
        .args(["resident", name])
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Measures how much more resident memory this process has when the allocator holds the blocks.
pub fn resident(name: &str) -> Option<usize> {
    let heaps = contenders::heaps();
    let (_, heap) = heaps.iter().find(|(found, _)| *found == name)?;
    contenders::enter_cpu(0);
    // The list of blocks is there before and after.
    let mut blocks = Vec::with_capacity(BLOCKS);
    blocks.resize(BLOCKS, (std::ptr::null_mut(), Layout::new::<u64>()));
    blocks.clear();
    let before = resident_bytes()?;
    run_into(&**heap, REPLACED, &mut blocks).then_some(())?;
    Some(resident_bytes()?.saturating_sub(before))
}

/// Reads the resident memory: the second field of statm, in pages (proc_pid_statm(5)).
fn resident_bytes() -> Option<usize> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * FRAME)
}

/// Returns the peak of live bytes.
fn peak(replaced: usize) -> usize {
    let mut random = Random::new(1);
    let mut sizes = vec![0; BLOCKS];
    let (mut live, mut peak) = (0, 0);
    for number in 0..BLOCKS + replaced {
        let (place, layout) = next(&mut random, number);
        live = live - sizes[place] + layout.size();
        sizes[place] = layout.size();
        peak = peak.max(live);
    }
    peak
}

/// Returns the block that is replaced next, and the size of the new one. At first, each is a new
/// one.
fn next(random: &mut Random, number: usize) -> (usize, Layout) {
    let layout = Layout::from_size_align(random.mixed(), 8).expect("a valid layout");
    let any = random.below(BLOCKS);
    (if number < BLOCKS { number } else { any }, layout)
}

type Blocks = Vec<(*mut u8, Layout)>;

/// Runs the workload. Returns `None` if memory is out.
fn run(allocator: &dyn GlobalAlloc, replaced: usize) -> Option<Blocks> {
    let mut blocks = Vec::with_capacity(BLOCKS);
    run_into(allocator, replaced, &mut blocks).then_some(blocks)
}

/// Runs the workload on these blocks. Returns `false` if memory is out.
fn run_into(allocator: &dyn GlobalAlloc, replaced: usize, blocks: &mut Blocks) -> bool {
    let mut random = Random::new(1);
    for number in 0..BLOCKS + replaced {
        let (place, layout) = next(&mut random, number);
        if let Some(&(block, old)) = blocks.get(place) {
            // SAFETY: live, with this layout.
            unsafe { allocator.dealloc(block, old) };
        }
        // SAFETY: the size isn't zero.
        let block = unsafe { allocator.alloc(layout) };
        if block.is_null() {
            return false;
        }
        // SAFETY: the block is that long. Memory counts when it is used.
        unsafe { block.write_bytes(1, layout.size()) };
        match blocks.get_mut(place) {
            Some(place) => *place = (block, layout),
            None => blocks.push((block, layout)),
        }
    }
    true
}
