//! Calls: every CPU calls the others, one, some and all, with interrupts enabled and disabled, and
//! all at once; the closures count on the caller's stack, and use the heap on top of the code that
//! they interrupt.

use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use muster::internals::arch::clock::Deadline;
use muster::internals::smp::call::{self, Targets, Uses, Work};
use muster::internals::smp::{cpu, online};
use x86_64::instructions::interrupts;

use super::worker::Worker;

/// How long a CPU may take to answer, in milliseconds: a virtual one may be off its host core.
const TIMEOUT: u64 = 60_000;

/// The number of calls that no CPU waited for, and the number of them that were served. Relaxed: counts,
/// which are compared again until they are equal, when no CPU calls any more.
static LEFT: AtomicU64 = AtomicU64::new(0);
static SERVED: AtomicU64 = AtomicU64::new(0);

/// Runs the workload on this CPU.
pub fn run(worker: &mut Worker<'_>) {
    work(worker);
    worker.wait_for_all();
    settle(worker);
}

/// Calls until the time is up.
pub fn work(worker: &mut Worker<'_>) {
    let own = cpu::with(|here| here.index());
    loop {
        let one = worker.random.below(worker.cpus);
        let one = worker.other(one).map_or(own, |(index, _)| index);
        let is_even = |index: u32| index.is_multiple_of(2);
        let targets = match worker.random.below(4) {
            0 => Targets::One(one),
            1 => Targets::Others,
            2 => Targets::Where(&is_even),
            _ => Targets::All,
        };
        let expected = online::cpus()
            .filter(|&(index, _)| match targets {
                Targets::One(_) => index == one,
                Targets::Others => index != own,
                Targets::Where(_) => is_even(index),
                Targets::All => true,
            })
            .count();
        // Relaxed below: the end of the call publishes the count.
        let served = AtomicUsize::new(0);
        let work = |index| {
            use_heap(index);
            served.fetch_add(1, Ordering::Relaxed);
        };
        let result = if worker.random.below(2) == 0 {
            interrupts::without_interrupts(|| call::insist(Uses::Heap, targets, TIMEOUT, &work))
        } else {
            call::insist(Uses::Heap, targets, TIMEOUT, &work)
        };
        worker.tally.operations += 1;
        // The call has waited for all of them: none counts from here on.
        let served = served.into_inner();
        if result.is_err() || served != expected {
            worker.tally.corrupt += 1;
            log::error!("{served} of {expected} CPUs served a call: {result:?}");
        }
        leave(one);
        if worker.is_over() {
            break;
        }
    }
}

/// Waits, on the first CPU, until all calls that were left are served, once no CPU calls.
pub fn settle(worker: &mut Worker<'_>) {
    if worker.slot == 0 {
        let all = || SERVED.load(Ordering::Relaxed) == LEFT.load(Ordering::Relaxed);
        let deadline = Deadline::after_millis(TIMEOUT);
        while !all() && !deadline.passed() {
            call::relax();
        }
        if !all() {
            worker.tally.corrupt += 1;
            log::error!("{SERVED:?} of {LEFT:?} calls that were left were served");
        }
    }
}

/// Allocates and frees, on top of the interrupted code, where memory may be out.
fn use_heap(index: u32) {
    let mut block = Vec::new();
    if block.try_reserve_exact(16).is_ok() {
        block.resize(16, index);
        drop(black_box(block));
    }
}

/// Calls, and does not wait; if too many such calls are under way, it does not call.
fn leave(one: u32) {
    const WORK: &Work<'static> = &|_| {
        SERVED.fetch_add(1, Ordering::Relaxed);
    };
    // Counted first, so that never more are served than there are.
    LEFT.fetch_add(1, Ordering::Relaxed);
    match call::begin(Targets::One(one), TIMEOUT, WORK) {
        Ok(pending) => pending.leave(),
        Err(_) => {
            LEFT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
