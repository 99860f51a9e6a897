//! A CPU that serves calls or runs a job, and handlers that do so in between: by the trap flag of x86-64, whose trap is
//! a signal.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    reason = "a test that finds nothing to unwrap must fail"
)]

use std::arch::asm;
use std::cell::Cell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use muster_cross_cpu::{Broadcast, Call, CallQueue, MAX_CALLS};

/// The handler has its turn once in this many instructions: not compiled for speed, a store alone takes more.
const STRIDE: usize = 8;

/// The signal of a trap (signal(7)).
const SIGTRAP: i32 = 5;

/// Nobody has served CPU 2's call yet.
const NONE: usize = usize::MAX;

static QUEUE: LazyLock<CallQueue<usize>> = LazyLock::new(|| CallQueue::new(3));
static BROADCAST: LazyLock<Broadcast<()>> = LazyLock::new(|| Broadcast::new(1));
/// Calls of CPU 1 that were served, and those of them before CPU 2's.
static SERVED: AtomicUsize = AtomicUsize::new(0);
static BEFORE: AtomicUsize = AtomicUsize::new(NONE);

thread_local! {
    /// Traps since the last start, the one at which the handler has its turn, and what it does.
    static TRAPS: Cell<usize> = const { Cell::new(0) };
    static AT: Cell<usize> = const { Cell::new(NONE) };
    static HANDLER: Cell<fn()> = const { Cell::new(|| ()) };
}

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

extern "C" fn trap(_: i32) {
    if TRAPS.replace(TRAPS.get() + 1) == AT.get() {
        HANDLER.get()();
    }
}

/// Runs this code, and a handler at the instruction of this number in it. Returns whether there are as many.
fn interrupt<R>(at: usize, handler: fn(), code: impl FnOnce() -> R) -> (R, bool) {
    HANDLER.set(handler);
    AT.set(at);
    TRAPS.set(0);
    // SAFETY: the handler may run at any instruction: it uses what this thread has in cells, and functions that say so.
    unsafe { signal(SIGTRAP, trap) };
    // SAFETY: sets the trap flag by way of the stack; the signal's handler runs on the same stack, below the red zone.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    let result = code();
    // SAFETY: as above, the other way round.
    unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
    (result, TRAPS.get() > at)
}

fn note(caller: usize) {
    match caller {
        2 => BEFORE.store(SERVED.load(Relaxed), Relaxed),
        _ => drop(SERVED.fetch_add(1, Relaxed)),
    }
}

fn serve() {
    QUEUE.serve(0, note);
}

/// Returns how many calls of CPU 1, which always has as many as it may, are served before CPU 2's, and whether the
/// handler had its turn.
fn calls_before(at: usize) -> (usize, bool) {
    while QUEUE.serve(0, |_| ()) {}
    // CPU 1's first call is next.
    let first = QUEUE.call(0, 0).unwrap();
    first.send(0).unwrap();
    assert!(QUEUE.serve(0, |_| ()));

    let calls: Vec<Call<'_, usize>> = (0..MAX_CALLS).map(|_| QUEUE.call(1, 1).unwrap()).collect();
    let other = QUEUE.call(2, 2).unwrap();
    other.send(0).unwrap();
    calls.iter().for_each(|call| call.send(0).unwrap());
    SERVED.store(0, Relaxed);
    BEFORE.store(NONE, Relaxed);
    let ((), had_turn) = interrupt(at, serve, serve);
    while BEFORE.load(Relaxed) == NONE {
        // As soon as a call is done, CPU 1 calls again.
        for call in &calls {
            let _ = call.send(0);
        }
        serve();
    }
    for call in &calls {
        call.cancel(0);
    }
    (BEFORE.load(Relaxed), had_turn)
}

#[test]
fn a_handler_that_serves_takes_no_caller_s_turn() {
    let mut at = 0;
    loop {
        let (before, had_turn) = calls_before(at);
        assert!(
            before <= MAX_CALLS,
            "{before} calls, by a handler at instruction {at}"
        );
        if !had_turn {
            break;
        }
        at += STRIDE;
    }
    assert!(at > 10 * STRIDE, "there were no traps");
}

#[test]
fn a_handler_that_runs_a_job_does_not_hide_the_next_one() {
    fn run_and_submit() {
        if BROADCAST.run(0, |()| ()) {
            // As another CPU does that has waited for this job.
            assert!(BROADCAST.submit(()));
        }
    }
    LazyLock::force(&BROADCAST);
    let mut turns = 0;
    loop {
        while BROADCAST.run(0, |()| ()) {}
        assert!(BROADCAST.submit(()));
        let (ran, had_turn) = interrupt(turns, run_and_submit, || BROADCAST.run(0, |()| ()));
        assert!(
            ran || !BROADCAST.has_job(0),
            "by a handler at instruction {turns}"
        );
        if !had_turn {
            break;
        }
        turns += 1;
    }
    assert!(turns > 10, "there were no traps");
}
