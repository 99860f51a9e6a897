//! A CPU that serves, and handlers that serve in between: by the trap flag of x86-64, whose trap is a
//! signal.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    reason = "a test that finds nothing to unwrap must fail"
)]

use std::arch::asm;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use muster_cross_cpu::{Call, CallQueue, MAX_CALLS};

/// The handler has its turn once in this many instructions: not compiled for speed, a store alone takes more.
const STRIDE: usize = 8;

/// The signal of a trap (signal(7)).
const SIGTRAP: i32 = 5;

/// Nobody has served CPU 2's call yet.
const NONE: usize = usize::MAX;

static QUEUE: LazyLock<CallQueue<usize>> = LazyLock::new(|| CallQueue::new(3));
/// Traps since the last start, and the one at which the handler serves.
static TRAPS: AtomicUsize = AtomicUsize::new(0);
static AT: AtomicUsize = AtomicUsize::new(NONE);
/// Calls of CPU 1 that were served, and those of them before CPU 2's.
static SERVED: AtomicUsize = AtomicUsize::new(0);
static BEFORE: AtomicUsize = AtomicUsize::new(NONE);

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

extern "C" fn trap(_: i32) {
    if TRAPS.fetch_add(1, Relaxed) == AT.load(Relaxed) {
        QUEUE.serve(0, note);
    }
}

fn note(caller: usize) {
    match caller {
        2 => BEFORE.store(SERVED.load(Relaxed), Relaxed),
        _ => drop(SERVED.fetch_add(1, Relaxed)),
    }
}

fn serve_with_traps() {
    TRAPS.store(0, Relaxed);
    // SAFETY: sets the trap flag by way of the stack; the signal's handler runs on the same stack, below the red zone,
    // and touches nothing but statics.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    QUEUE.serve(0, note);
    // SAFETY: as above, the other way round.
    unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
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
    AT.store(at, Relaxed);
    serve_with_traps();
    AT.store(NONE, Relaxed);
    let had_turn = TRAPS.load(Relaxed) > at;
    while BEFORE.load(Relaxed) == NONE {
        // As soon as a call is done, CPU 1 calls again.
        for call in &calls {
            let _ = call.send(0);
        }
        QUEUE.serve(0, note);
    }
    for call in &calls {
        call.cancel(0);
    }
    (BEFORE.load(Relaxed), had_turn)
}

#[test]
fn a_handler_that_serves_takes_no_caller_s_turn() {
    // SAFETY: the handler may run at any instruction: it uses atomics, and `serve`, which says so.
    unsafe { signal(SIGTRAP, trap) };
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
