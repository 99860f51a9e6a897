//! A kernel built on Muster: all CPUs count until one of them has taken three ticks of a PC's timer.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use muster::{cpus, interrupts, log};
use x86_64::instructions::port::Port;

muster::entry!(run);

/// Relaxed, as `ROUNDS`: a count, by which nothing else is read.
static TICKS: AtomicU64 = AtomicU64::new(0);

cpus::cpu_local! { shared static ROUNDS: AtomicU64 = AtomicU64::new(0); }

fn run() -> Result<(), interrupts::RouteError> {
    let last = cpus::count() as u32 - 1;
    let route = interrupts::route_isa(0, last, &|| _ = TICKS.fetch_add(1, Relaxed))?;
    // SAFETY: the ports of a PC's 8254, which ticks every 10 ms then; nothing else uses it any more.
    unsafe {
        Port::new(0x43).write(0x34_u8);
        Port::new(0x40).write(0x9c_u8);
        Port::new(0x40).write(0x2e_u8);
    }
    // The run ends with an error if that takes more than ten seconds.
    cpus::run_on_all(10_000, &|_| {
        while TICKS.load(Relaxed) < 3 {
            cpus::with_own(&ROUNDS, |rounds| rounds.fetch_add(1, Relaxed));
            cpus::relax();
        }
    });
    let rounds: u64 = cpus::each(&ROUNDS).map(|(_, own)| own.load(Relaxed)).sum();
    let gsi = route.gsi();
    log::info!("{rounds} rounds, three ticks at GSI {gsi} on CPU {last}");
    Ok(())
}
