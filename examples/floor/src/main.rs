//! Floor: a kernel of another kind on Muster's libraries, and no more of it than shows how.
//!
//! It stays on the tables and stacks of its loader and lets no interrupt in. All CPUs get a block, a
//! frame cache and a heap, and hand boxes to each other: who frees one is not who allocated it. In
//! the end every frame is back.

#![no_std]
#![no_main]

extern crate alloc;

mod console;
mod cpu;
mod heap;
mod loader;
mod memory;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::error::Error;
use core::panic::PanicInfo;
use core::sync::atomic::Ordering;

use muster_heap::CpuCache;
use muster_percpu::{Template, cpu_local};
use spin::Mutex;

use crate::console::{Outcome, say};
use crate::cpu::{Block, CPUS, Cpu, IS_DONE};

cpu_local! {
    /// A box from another CPU.
    shared static INBOX: Mutex<Option<Box<[u64; 8]>>> = Mutex::new(None);
}

/// How many boxes each CPU makes.
const BOXES: u64 = 100_000;

/// How long the first CPU waits for the others, in ticks of the TSC: ten seconds and more on any.
const TIMEOUT: u64 = 60_000_000_000;

/// Starts the first CPU: the loader enters here.
#[unsafe(no_mangle)]
extern "C" fn entry() -> ! {
    // SAFETY: this CPU has no block yet.
    unsafe { Cpu::reset() };
    match run() {
        Ok(()) => console::end(Outcome::Passed),
        Err(error) => {
            say!("{error}");
            console::end(Outcome::Failed)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    heap::start();
    let loader = loader::ask()?;
    memory::start(&loader)?;
    let template = Template::find(loader::has_loaded)?;
    let blocks: Result<Vec<_>, _> = (0..)
        .take(loader.cpus)
        .map(|index| Block::allocate(&template, index, CpuCache::new()))
        .collect();
    CPUS.publish(blocks?.leak())?;
    cpu::start(0)?;
    heap::open();

    let before = memory::free_frames();
    loader::release(CPUS.len() - 1, enter);
    work();
    cpu::wait_for_all(TIMEOUT)?;
    say!("{} CPUs made {BOXES} boxes each", CPUS.len());

    for (_, inbox) in CPUS.each(&INBOX) {
        drop(inbox.lock().take());
    }
    heap::drain();
    say!(
        "{} frames free before, {} after",
        before,
        memory::free_frames()
    );
    if memory::free_frames() != before {
        return Err("frames are missing".into());
    }
    Ok(())
}

/// Starts every other CPU: the loader enters here, with its number.
fn enter(index: u32) -> ! {
    // SAFETY: this CPU has no block yet.
    unsafe { Cpu::reset() };
    if let Err(error) = cpu::start(index) {
        panic!("{error}");
    }
    work();
    console::halt()
}

/// Makes boxes, puts each into the inbox of the next CPU, and frees the one that was in it; and in
/// the end drains this CPU's caches.
fn work() {
    Cpu::with(|here| {
        let next = CPUS.on((here.index() + 1) % CPUS.len() as u32, &INBOX);
        for number in 0..BOXES {
            if let Some(next) = next {
                let made = Box::new([number; 8]);
                let found = next.lock().replace(made);
                assert!(found.is_none_or(|found| found.iter().all(|word| *word == found[0])));
            }
        }
    });
    heap::drain();
    Cpu::with(|here| here.get(&IS_DONE).store(true, Ordering::Release));
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    say!("{info}");
    console::end(Outcome::Panicked)
}
