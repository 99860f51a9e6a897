//! Threads as CPUs that call each other, all at once.
#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use muster_percpu::{DEPTH, Exchange};

const CPUS: usize = 6;
const ROUNDS: usize = 2_000;

/// The address of what lies on the caller's stack.
type Frame = usize;

fn serve(exchange: &Exchange<Frame>, cpu: usize) {
    // SAFETY: the caller keeps its frame until all that took the call are done.
    while exchange.serve(cpu, |frame| unsafe {
        (*std::ptr::with_exposed_provenance::<AtomicUsize>(frame)).fetch_add(1, Ordering::Relaxed);
    }) {}
}

#[test]
fn all_call_all_and_take_some_back() {
    let exchange = &Exchange::<Frame>::new(CPUS);
    let barrier = &Barrier::new(CPUS);
    let left = &AtomicUsize::new(CPUS);
    thread::scope(|scope| {
        for own in 0..CPUS {
            scope.spawn(move || {
                barrier.wait();
                for round in 0..ROUNDS {
                    let carried_out = AtomicUsize::new(0);
                    let frame = (&raw const carried_out).expose_provenance();
                    let call = exchange.call(own, frame).unwrap();
                    let others = (0..CPUS).filter(|&target| target != own);
                    others.clone().for_each(|target| assert!(call.send(target)));
                    // Whom it does not want to wait for.
                    let back = match (round + own) % 3 {
                        0 => others.filter(|&target| call.take_back(target)).count(),
                        _ => 0,
                    };
                    while !call.is_done() {
                        serve(exchange, own);
                        thread::yield_now();
                    }
                    assert_eq!(call.open().count(), 0);
                    drop(call);
                    assert_eq!(carried_out.load(Ordering::Relaxed), CPUS - 1 - back);
                }
                left.fetch_sub(1, Ordering::Release);
                while left.load(Ordering::Acquire) > 0 {
                    serve(exchange, own);
                    thread::yield_now();
                }
            });
        }
    });
}

#[test]
fn calls_nest_so_deep_and_no_deeper() {
    let exchange = Exchange::new(2);
    let calls: Vec<_> = (0..DEPTH)
        .map(|work| exchange.call(0, work).unwrap())
        .collect();
    assert!(exchange.call(0, 9).is_none());
    assert!(exchange.call(2, 9).is_none());
    drop(calls);
    let call = exchange.call(0, 9).unwrap();
    assert!(!call.send(2));
    assert!(!call.take_back(2));
    assert!(call.is_done());
}

#[test]
fn a_cpu_is_called_until_it_takes_the_call_or_the_caller_takes_it_back() {
    let exchange = Exchange::new(2);
    let is_called = || [0, 1, 2].map(|cpu| exchange.is_called(cpu));
    let call = exchange.call(0, ()).unwrap();
    assert_eq!(is_called(), [false; 3]);
    assert!(call.send(1));
    assert_eq!(is_called(), [false, true, false]);
    assert!(exchange.serve(1, |()| assert_eq!(is_called(), [false; 3])));
    assert!(call.send(1));
    assert_eq!(is_called(), [false, true, false]);
    assert!(call.take_back(1));
    assert_eq!(is_called(), [false; 3]);
}

#[test]
fn calls_may_be_served_within_a_call() {
    let exchange = Exchange::new(3);
    let calls = [0, 1].map(|caller| {
        let call = exchange.call(caller, caller).unwrap();
        assert!(call.send(2));
        call
    });
    let order = Cell::new(0);
    assert!(exchange.serve(2, |outer| {
        assert!(exchange.serve(2, |inner| {
            assert_ne!(outer, inner);
            order.set(order.get() + 1);
        }));
        // The inner one is done, the outer one is not.
        assert_eq!(calls[1 - outer].open().collect::<Vec<_>>(), []);
        assert_eq!(calls[outer].open().collect::<Vec<_>>(), [2]);
    }));
    assert!(!exchange.serve(2, |_| unreachable!()));
    assert_eq!(order.get(), 1);
    assert!(calls.iter().all(|call| call.is_done()));
}

#[test]
fn a_call_that_is_left_keeps_its_slot_until_it_is_done() {
    let exchange = Exchange::new(2);
    for work in 0..DEPTH {
        assert!(exchange.call(0, work).unwrap().send(1));
    }
    assert!(exchange.call(0, 9).is_none());
    let mut sum = 0;
    assert!(exchange.serve(1, |work| sum += work));
    assert!(exchange.call(0, 9).unwrap().is_done());
    while exchange.serve(1, |work| sum += work) {}
    assert_eq!(sum, 6);
}

#[test]
fn more_cpus_than_a_word_has_bits() {
    let exchange = Exchange::new(300);
    let call = exchange.call(299, ()).unwrap();
    (0..299).for_each(|target| assert!(call.send(target)));
    for target in 0..299 {
        assert_eq!(call.open().count(), 299 - target);
        assert!(exchange.serve(target, |()| {}));
        assert!(!exchange.serve(target, |()| {}));
    }
    assert!(call.is_done());
}

#[test]
fn callers_take_turns() {
    let exchange = Exchange::<usize>::new(80);
    // The first and the last of all, and some on the way, who call again as soon as they are served.
    let callers = [0, 1, 15, 16, 40, 79];
    let call = |caller: usize| assert!(exchange.call(caller, caller).unwrap().send(7));
    callers.into_iter().for_each(call);
    let mut turns = Vec::new();
    for _ in 0..3 * callers.len() {
        let mut served = None;
        assert!(exchange.serve(7, |caller| served = Some(caller)));
        let served = served.unwrap();
        turns.push(served);
        call(served);
    }
    assert_eq!(turns, [callers; 3].concat());
}
