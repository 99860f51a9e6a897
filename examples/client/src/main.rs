//! A kernel built on Muster: every CPU sums up a part of some numbers in memory that is mapped for it.

#![no_std]
#![no_main]

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use muster::{cpus, log};

/// How long the CPUs may take, in milliseconds.
const TIMEOUT: u64 = 10_000;

/// The numbers are those from 1 to this one.
const LAST: u64 = 1_000_000;

muster::entry!(run);

/// Why it failed.
struct Wrong(u64);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the sum of 1 to {LAST} is not {}", self.0)
    }
}

fn run() -> Result<(), Wrong> {
    // Relaxed: the end of the job publishes what every CPU has added.
    let sum = AtomicU64::new(0);
    cpus::run_on_all(TIMEOUT, &|cpu| {
        let part: u64 = (1..=LAST)
            .skip(cpu as usize)
            .step_by(cpus::possible())
            .sum();
        log::debug!("{part} on this CPU");
        sum.fetch_add(part, Ordering::Relaxed);
    });
    let sum = sum.into_inner();
    log::info!("{} CPUs sum 1 to {LAST} up to {sum}", cpus::count());
    if sum == LAST * (LAST + 1) / 2 {
        Ok(())
    } else {
        Err(Wrong(sum))
    }
}
