//! How long an allocation and a free take, one by one: mixed sizes, 8000 live, one thread.

use std::alloc::Layout;
use std::arch::x86_64::{__rdtscp, _mm_lfence, _rdtsc};
use std::time::Instant;

use crate::contenders::{self, Allocator};
use crate::median;
use crate::workloads::Random;

const LIVE: usize = 8000;
const OPERATIONS: usize = 200_000;
const ROUNDS: usize = 7;

pub fn compare() {
    let contenders = contenders::all();
    let per_us = ticks_per_us();
    contenders::enter_cpu(0);
    let mut rounds = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for (contender, figures) in contenders.iter().zip(&mut rounds) {
            figures.push(measure(contender.allocator).map(|ticks| ticks as f64 / per_us));
        }
    }
    println!("mixed, {LIVE} live, one thread, µs an operation");
    println!("  allocator           p50      p99    p99.9   p99.99");
    for (contender, figures) in contenders.iter().zip(&rounds) {
        print!("  {:<13}", contender.name);
        for column in 0..PARTS.len() {
            print!(
                " {:>8.3}",
                median(figures.iter().map(|figures| figures[column]))
            );
        }
        println!();
    }
}

/// Operations out of 10 000 that take no longer.
const PARTS: [usize; 4] = [5000, 9900, 9990, 9999];

fn measure(allocator: Allocator) -> [u64; PARTS.len()] {
    let mut random = Random::new(5);
    let mut next = || {
        let layout = Layout::from_size_align(random.mixed(), 8).expect("a valid layout");
        (random.next() as usize % LIVE, layout)
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
        live[place] = (block, layout);
    }
    for (block, layout) in live {
        // SAFETY: live, with this layout.
        unsafe { allocator.dealloc(block, layout) };
    }
    ticks.sort_unstable();
    PARTS.map(|part| ticks[ticks.len() * part / 10_000])
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

fn ticks_per_us() -> f64 {
    let start = Instant::now();
    let (ticks, ()) = timed(|| while start.elapsed().as_millis() < 20 {});
    ticks as f64 / start.elapsed().as_micros() as f64
}
