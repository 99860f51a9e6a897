//! Threads as CPUs that call each other, all at once.
#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use muster_percpu::{DEPTH, Exchange, SendError};

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
                    others.clone().for_each(|target| call.send(target).unwrap());
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
    assert_eq!(call.send(2), Err(SendError::NoSuchCpu { target: 2 }));
    assert!(!call.take_back(2));
    assert!(call.is_done());
}

#[test]
fn a_cpu_is_called_until_it_takes_the_call_or_the_caller_takes_it_back() {
    let exchange = Exchange::new(2);
    let is_called = || [0, 1, 2].map(|cpu| exchange.is_called(cpu));
    let call = exchange.call(0, ()).unwrap();
    assert_eq!(is_called(), [false; 3]);
    call.send(1).unwrap();
    assert_eq!(is_called(), [false, true, false]);
    assert!(exchange.serve(1, |()| assert_eq!(is_called(), [false; 3])));
    call.send(1).unwrap();
    assert_eq!(is_called(), [false, true, false]);
    assert!(call.take_back(1));
    assert_eq!(is_called(), [false; 3]);
}

#[test]
fn calls_may_be_served_within_a_call() {
    let exchange = Exchange::new(3);
    let calls = [0, 1].map(|caller| {
        let call = exchange.call(caller, caller).unwrap();
        call.send(2).unwrap();
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
        exchange.call(0, work).unwrap().send(1).unwrap();
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
    (0..299).for_each(|target| call.send(target).unwrap());
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
    let call = |caller: usize| exchange.call(caller, caller).unwrap().send(7).unwrap();
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

#[test]
fn nobody_waits_for_more_than_all_that_each_other_may_have_under_way() {
    let exchange = Exchange::new(3);
    let busy: Vec<_> = (0..DEPTH).filter_map(|_| exchange.call(0, 0)).collect();
    let call = exchange.call(1, 1).unwrap();
    for call in busy.iter().chain([&call]) {
        call.send(2).unwrap();
    }
    let mut before = 0;
    while !call.is_done() {
        assert!(exchange.serve(2, |caller| before += usize::from(caller == 0)));
        // Whoever is served calls again.
        busy.iter().for_each(|call| _ = call.send(2));
    }
    assert_eq!(before, DEPTH);
}

#[test]
fn a_call_is_not_sent_where_it_is_under_way() {
    let refused = Err(SendError::AlreadySent { target: 1 });
    let exchange = Exchange::new(2);
    let call = exchange.call(0, "first").unwrap();
    call.send(1).unwrap();
    assert_eq!(call.send(1), refused);
    assert!(exchange.serve(1, |_| {
        // No answer in time, and too late to take it back: the caller tries once more.
        assert!(!call.take_back(1));
        assert_eq!(call.send(1), refused);
    }));
    assert!(call.is_done() && !exchange.is_called(1));
    drop(call);
    let second = exchange.call(0, "second").unwrap();
    assert!(!exchange.serve(1, |_| unreachable!("it was sent to nobody")));
    assert!(second.is_done());
    let text = SendError::AlreadySent { target: 1 }.to_string();
    assert!(text.contains("CPU 1") && text.contains("take it back"));
    let text = SendError::NoSuchCpu { target: 9 }.to_string();
    assert!(text.contains("CPU 9"));
}

#[test]
fn a_call_may_be_sent_again_where_it_is_done_or_taken_back() {
    let exchange = Exchange::new(2);
    let call = exchange.call(0, ()).unwrap();
    for _ in 0..3 {
        call.send(1).unwrap();
        assert!(call.take_back(1));
        assert!(!exchange.serve(1, |()| unreachable!()));
        call.send(1).unwrap();
        assert!(!call.is_done());
        assert!(exchange.serve(1, |()| ()));
        assert!(call.is_done());
    }
}

/// The words of a call must all be equal, whoever sends and serves however often by whatever number.
#[test]
fn no_call_is_torn_whoever_says_he_is_which_cpu() {
    let exchange = &Exchange::<[usize; 64]>::new(2);
    let callers = &AtomicUsize::new(2);
    let sent: usize = thread::scope(|scope| {
        let sent = [0, 1].map(|number| {
            scope.spawn(move || {
                let mut sent = 0;
                for round in 0..ROUNDS {
                    let Some(call) = exchange.call(0, [2 * round + number; 64]) else {
                        continue;
                    };
                    sent += (0..3).filter(|_| call.send(1).is_ok()).count();
                    // Every other one is left.
                    while round % 2 == 0 && !call.is_done() {
                        thread::yield_now();
                    }
                }
                callers.fetch_sub(1, Ordering::Release);
                sent
            })
        });
        let served = [0, 1].map(|_| {
            scope.spawn(|| {
                let mut served = 0;
                loop {
                    let is_over = callers.load(Ordering::Acquire) == 0;
                    while exchange.serve(1, |work| assert_eq!(work, [work[0]; 64])) {
                        served += 1;
                    }
                    if is_over {
                        return served;
                    }
                    thread::yield_now();
                }
            })
        });
        let sent: usize = sent.into_iter().map(|caller| caller.join().unwrap()).sum();
        let served: usize = served.into_iter().map(|cpu| cpu.join().unwrap()).sum();
        assert_eq!(sent, served);
        sent
    });
    assert!(sent > ROUNDS);
}

#[test]
fn a_call_that_panics_is_done() {
    let exchange = Exchange::new(2);
    for _ in 0..2 * DEPTH {
        let call = exchange.call(0, "die").unwrap();
        call.send(1).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            exchange.serve(1, |_| {
                assert!(!call.is_done());
                panic!("died")
            })
        }));
        assert!(panicked.is_err());
        assert!(call.is_done() && !exchange.is_called(1));
    }
}
