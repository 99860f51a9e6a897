//! Threads as CPUs that call each other, all at once.
#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use muster_cross_cpu::{CallQueue, MAX_CALLS, SendError};

const CPUS: usize = 6;
const ROUNDS: usize = 2_000;

/// The address of what lies on the caller's stack.
type Frame = usize;

fn serve(queue: &CallQueue<Frame>, cpu: usize) {
    // SAFETY: the caller keeps its frame until all that took the call are done.
    while queue.serve(cpu, |frame| unsafe {
        (*std::ptr::with_exposed_provenance::<AtomicUsize>(frame)).fetch_add(1, Ordering::Relaxed);
    }) {}
}

#[test]
fn all_call_all_and_cancel_some() {
    let queue = &CallQueue::<Frame>::new(CPUS);
    let barrier = &Barrier::new(CPUS);
    let left = &AtomicUsize::new(CPUS);
    thread::scope(|scope| {
        for own in 0..CPUS {
            scope.spawn(move || {
                barrier.wait();
                for round in 0..ROUNDS {
                    let carried_out = AtomicUsize::new(0);
                    let frame = (&raw const carried_out).expose_provenance();
                    let call = queue.call(own, frame).unwrap();
                    let others = (0..CPUS).filter(|&target| target != own);
                    others.clone().for_each(|target| call.send(target).unwrap());
                    // The targets that it does not want to wait for.
                    let cancelled = match (round + own) % 3 {
                        0 => others.filter(|&target| call.cancel(target)).count(),
                        _ => 0,
                    };
                    while !call.is_done() {
                        serve(queue, own);
                        thread::yield_now();
                    }
                    assert_eq!(call.pending().count(), 0);
                    drop(call);
                    assert_eq!(carried_out.load(Ordering::Relaxed), CPUS - 1 - cancelled);
                }
                left.fetch_sub(1, Ordering::Release);
                while left.load(Ordering::Acquire) > 0 {
                    serve(queue, own);
                    thread::yield_now();
                }
            });
        }
    });
}

#[test]
fn calls_nest_so_deep_and_no_deeper() {
    let queue = CallQueue::new(2);
    let calls: Vec<_> = (0..MAX_CALLS)
        .map(|work| queue.call(0, work).unwrap())
        .collect();
    assert!(queue.call(0, 9).is_none());
    assert!(queue.call(2, 9).is_none());
    drop(calls);
    let call = queue.call(0, 9).unwrap();
    assert_eq!(call.send(2), Err(SendError::NoSuchCpu { target: 2 }));
    assert!(!call.cancel(2));
    assert!(call.is_done());
}

#[test]
fn a_cpu_is_called_until_it_takes_the_call_or_the_caller_cancels_it() {
    let queue = CallQueue::new(2);
    let is_called = || [0, 1, 2].map(|cpu| queue.is_called(cpu));
    let call = queue.call(0, ()).unwrap();
    assert_eq!(is_called(), [false; 3]);
    call.send(1).unwrap();
    assert_eq!(is_called(), [false, true, false]);
    assert!(queue.serve(1, |()| assert_eq!(is_called(), [false; 3])));
    call.send(1).unwrap();
    assert_eq!(is_called(), [false, true, false]);
    assert!(call.cancel(1));
    assert!(!call.cancel(1), "twice");
    assert!(!call.cancel(0), "it was not sent there");
    assert_eq!(is_called(), [false; 3]);
}

#[test]
fn calls_may_be_served_within_a_call() {
    let queue = CallQueue::new(3);
    let calls = [0, 1].map(|caller| {
        let call = queue.call(caller, caller).unwrap();
        call.send(2).unwrap();
        call
    });
    let order = Cell::new(0);
    assert!(queue.serve(2, |outer| {
        assert!(queue.serve(2, |inner| {
            assert_ne!(outer, inner);
            order.set(order.get() + 1);
        }));
        // The inner one is done, the outer one is not.
        assert_eq!(calls[1 - outer].pending().collect::<Vec<_>>(), []);
        assert_eq!(calls[outer].pending().collect::<Vec<_>>(), [2]);
    }));
    assert!(!queue.serve(2, |_| unreachable!()));
    assert_eq!(order.get(), 1);
    assert!(calls.iter().all(|call| call.is_done()));
}

#[test]
fn a_detached_call_keeps_its_slot_until_it_is_done() {
    let queue = CallQueue::new(2);
    for work in 0..MAX_CALLS {
        queue.call(0, work).unwrap().send(1).unwrap();
    }
    assert!(queue.call(0, 9).is_none());
    let mut sum = 0;
    assert!(queue.serve(1, |work| sum += work));
    assert!(queue.call(0, 9).unwrap().is_done());
    while queue.serve(1, |work| sum += work) {}
    assert_eq!(sum, 6);
}

#[test]
fn more_cpus_than_a_word_has_bits() {
    let queue = CallQueue::new(300);
    let call = queue.call(299, ()).unwrap();
    (0..299).for_each(|target| call.send(target).unwrap());
    for target in 0..299 {
        assert_eq!(call.pending().count(), 299 - target);
        assert!(queue.serve(target, |()| {}));
        assert!(!queue.serve(target, |()| {}));
    }
    assert!(call.is_done());
}

#[test]
fn callers_take_turns() {
    let queue = CallQueue::<usize>::new(80);
    // The first and the last of all, and some on the way, who call again as soon as they are served.
    let callers = [0, 1, 15, 16, 40, 79];
    let call = |caller: usize| queue.call(caller, caller).unwrap().send(7).unwrap();
    callers.into_iter().for_each(call);
    let mut turns = Vec::new();
    for _ in 0..3 * callers.len() {
        let mut served = None;
        assert!(queue.serve(7, |caller| served = Some(caller)));
        let served = served.unwrap();
        turns.push(served);
        call(served);
    }
    assert_eq!(turns, [callers; 3].concat());
}

#[test]
fn nobody_waits_for_more_than_all_that_each_other_may_have_under_way() {
    let queue = CallQueue::new(3);
    let busy: Vec<_> = (0..MAX_CALLS).filter_map(|_| queue.call(0, 0)).collect();
    let call = queue.call(1, 1).unwrap();
    for call in busy.iter().chain([&call]) {
        call.send(2).unwrap();
    }
    let mut before = 0;
    while !call.is_done() {
        assert!(queue.serve(2, |caller| before += usize::from(caller == 0)));
        // Each caller that is served calls again.
        busy.iter().for_each(|call| _ = call.send(2));
    }
    assert_eq!(before, MAX_CALLS);
}

#[test]
fn a_call_is_not_sent_where_it_is_under_way() {
    let refused = Err(SendError::AlreadySent { target: 1 });
    let queue = CallQueue::new(2);
    let call = queue.call(0, "first").unwrap();
    call.send(1).unwrap();
    assert_eq!(call.send(1), refused);
    assert!(queue.serve(1, |_| {
        // No answer in time, and too late to cancel it: the caller tries once more.
        assert!(!call.cancel(1));
        assert_eq!(call.send(1), refused);
    }));
    assert!(call.is_done() && !queue.is_called(1));
    drop(call);
    let second = queue.call(0, "second").unwrap();
    assert!(!queue.serve(1, |_| unreachable!("it was sent to nobody")));
    assert!(second.is_done());
    let text = SendError::AlreadySent { target: 1 }.to_string();
    assert!(text.contains("CPU 1") && text.contains("cancel it"));
    let text = SendError::NoSuchCpu { target: 9 }.to_string();
    assert!(text.contains("CPU 9"));
}

#[test]
fn a_call_may_be_sent_again_where_it_is_done_or_cancelled() {
    let queue = CallQueue::new(2);
    let call = queue.call(0, ()).unwrap();
    for _ in 0..3 {
        call.send(1).unwrap();
        assert!(call.cancel(1));
        assert!(!queue.serve(1, |()| unreachable!()));
        call.send(1).unwrap();
        assert!(!call.is_done());
        assert!(queue.serve(1, |()| ()));
        assert!(call.is_done());
    }
}

/// The words of a call must all be equal, whoever sends and serves however often by whatever number.
#[test]
fn no_call_is_torn_whoever_says_he_is_which_cpu() {
    let queue = &CallQueue::<[usize; 64]>::new(2);
    let callers = &AtomicUsize::new(2);
    let sent: usize = thread::scope(|scope| {
        let sent = [0, 1].map(|number| {
            scope.spawn(move || {
                let mut sent = 0;
                for round in 0..ROUNDS {
                    let Some(call) = queue.call(0, [2 * round + number; 64]) else {
                        continue;
                    };
                    sent += (0..3).filter(|_| call.send(1).is_ok()).count();
                    // Every other one is detached.
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
                    while queue.serve(1, |work| assert_eq!(work, [work[0]; 64])) {
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
    let queue = CallQueue::new(2);
    for _ in 0..2 * MAX_CALLS {
        let call = queue.call(0, "die").unwrap();
        call.send(1).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            queue.serve(1, |_| {
                assert!(!call.is_done());
                panic!("died")
            })
        }));
        assert!(panicked.is_err());
        assert!(call.is_done() && !queue.is_called(1));
    }
}
