//! How long an allocation and a free take, one by one: mixed sizes, 8000 live, one thread.

use std::alloc::{GlobalAlloc, Layout};
use std::arch::x86_64::{__rdtscp, _mm_lfence, _rdtsc};

use muster_bench::figures::{Fixed, Spread};
use muster_bench::{Format, Machine, Options, Random};

use crate::contenders;
use crate::threads::Threads;

const LIVE: usize = 8000;
const OPERATIONS: usize = 200_000;

/// Operations out of 10 000 that take no longer.
const PARTS: [(&str, usize); 4] = [
    ("p50", 5000),
    ("p99", 9900),
    ("p99.9", 9990),
    ("p99.99", 9999),
];

/// Tells all figures of the allocators that are asked for, in ns.
pub fn compare(options: &Options) {
    let mut heaps = contenders::heaps();
    heaps.retain(|(name, _)| options.wants(name));
    let hz = Threads::new(1).ticks_per_second();
    contenders::enter_cpu(0);
    let mut all = vec![[const { Vec::new() }; PARTS.len()]; heaps.len()];
    for _ in 0..options.rounds {
        for ((_, heap), figures) in heaps.iter().zip(&mut all) {
            for (figures, ticks) in figures.iter_mut().zip(measure(&**heap)) {
                figures.push(ticks * 1_000_000_000 / hz);
            }
        }
    }
    if options.format == Format::Table {
        println!("mixed, {LIVE} live, one thread, us an operation");
        println!("                   p50      p99    p99.9   p99.99");
    }
    for ((name, _), figures) in heaps.iter().zip(&all) {
        let ns = figures.each_ref().map(|figures| Spread::of(figures).median);
        if options.format == Format::Table {
            let columns = ns.map(|ns| format!(" {:>8}", Fixed::<3>(ns)));
            println!("{name:<13}{}", columns.concat());
        } else {
            let figures = PARTS.iter().zip(ns);
            let figures: Vec<_> = figures
                .map(|((part, _), ns)| format!("\"{part}_ns\":{ns}"))
                .collect();
            let figures = figures.join(",").replace('.', "");
            println!("{{\"bench\":\"latency\",\"allocator\":\"{name}\",{figures}}}");
        }
    }
    contenders::leave_cpu();
}

fn measure(allocator: &dyn GlobalAlloc) -> [u64; PARTS.len()] {
    let mut random = Random::new(5);
    let mut next = || {
        let layout = Layout::from_size_align(random.mixed(), 8).expect("a valid layout");
        (random.below(LIVE), layout)
    };
    let mut live: Vec<_> = (0..LIVE)
        .map(|_| {
            let (_, layout) = next();
            // SAFETY: the size isn't zero.
            (unsafe { allocator.alloc(layout) }, layout)
        })
        .collect();
    let mut ticks = Vec::with_capacity(2 * OPERATIONS);
    for _ in 0..OPERATIONS {
        let (place, layout) = next();
        let (block, old) = live[place];
        // SAFETY: live, with this layout.
        ticks.push(timed(|| unsafe { allocator.dealloc(block, old) }).0);
        // SAFETY: the size isn't zero.
        let (time, block) = timed(|| unsafe { allocator.alloc(layout) });
        ticks.push(time);
        assert!(!block.is_null(), "out of memory");
        live[place] = (block, layout);
    }
    for (block, layout) in live {
        // SAFETY: live, with this layout.
        unsafe { allocator.dealloc(block, layout) };
    }
    ticks.sort_unstable();
    PARTS.map(|(_, part)| ticks[ticks.len() * part / 10_000])
}

fn timed<T>(operation: impl FnOnce() -> T) -> (u64, T) {
    let mut processor = 0;
    // SAFETY: every x86-64 processor of today has these (AMD64 APM, volume 3, RDTSCP).
    let start = unsafe {
        _mm_lfence();
        _rdtsc()
    };
    let value = operation();
    // SAFETY: as above; the argument is a place to write to.
    let end = unsafe { __rdtscp(&mut processor) };
    (end - start, value)
}
