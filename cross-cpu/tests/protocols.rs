//! Threads as CPUs that join late, wait for one another, and become idle.
#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use muster_cross_cpu::{Admission, Barrier, Broadcast, Idle, Outcome};

const ROUNDS: usize = 400;

/// Runs two CPUs' parts of a round at once, and answers what they say of each round.
fn race<A: Send, B: Send>(
    one: impl Fn(usize) -> A + Sync,
    other: impl Fn(usize) -> B + Sync,
) -> Vec<(A, B)> {
    let barrier = sync::Barrier::new(2);
    let rounds = || {
        (0..ROUNDS).inspect(|_| {
            barrier.wait();
        })
    };
    thread::scope(|scope| {
        let others = scope.spawn(|| rounds().map(&other).collect::<Vec<_>>());
        let ones: Vec<_> = rounds().map(&one).collect();
        ones.into_iter().zip(others.join().unwrap()).collect()
    })
}

#[test]
fn a_cpu_joins_or_is_given_up() {
    let admissions: Vec<_> = (0..ROUNDS).map(|_| Admission::default()).collect();
    assert!(
        admissions
            .iter()
            .all(|cpu| cpu.outcome() == Outcome::Pending)
    );
    let results = race(
        |round| admissions[round].join(),
        |round| {
            let given_up = admissions[round].give_up();
            (given_up, admissions[round].outcome())
        },
    );
    for (cpu, (joined, (given_up, outcome))) in admissions.iter().zip(results) {
        assert_ne!(joined, given_up);
        let expected = if joined {
            Outcome::Joined
        } else {
            Outcome::GivenUp
        };
        assert_eq!((outcome, cpu.outcome()), (expected, expected));
        assert_eq!(cpu.join(), joined, "it was decided before");
        assert!(!cpu.give_up());
        assert_eq!(format!("{cpu:?}"), format!("Admission({expected:?})"));
    }
}

#[test]
fn of_a_change_and_a_cpu_that_joins_one_sees_the_other() {
    let changes: Vec<_> = (0..ROUNDS).map(|_| AtomicUsize::new(0)).collect();
    let admissions: Vec<_> = (0..ROUNDS).map(|_| Admission::new()).collect();
    let results = race(
        |round| admissions[round].join() && changes[round].load(Ordering::Relaxed) == 0,
        |round| {
            changes[round].store(1, Ordering::Relaxed);
            Admission::fence();
            admissions[round].outcome() == Outcome::Pending
        },
    );
    for (is_unaware, is_overlooked) in results {
        assert!(!(is_unaware && is_overlooked));
    }
}

#[test]
fn an_idle_cpu_owes_exactly_what_was_deferred() {
    let idle = Idle::default();
    assert_eq!(format!("{idle:?}"), "Idle(busy)");
    let results = race(
        |_| {
            idle.enter();
            thread::yield_now();
            idle.exit(|| ())
        },
        |_| idle.defer(),
    );
    assert!(results.iter().all(|(owes, deferred)| owes == deferred));
    assert!(!idle.is_idle());
    idle.enter();
    assert_eq!(format!("{idle:?}"), "Idle(idle)");
    assert!(idle.defer() && idle.defer());
    assert_eq!(format!("{idle:?}"), "Idle(idle, work deferred)");
    assert!(idle.is_idle());
    assert!(idle.exit(|| ()));
    assert!(!idle.exit(|| ()) && !idle.defer());
}

#[test]
fn what_was_deferred_is_owed_until_it_is_done() {
    let idle = Idle::new();
    idle.enter();
    assert!(idle.defer());
    let unwound = std::panic::catch_unwind(|| idle.exit(|| panic!("it is not done")));
    assert!(unwound.is_err());
    idle.enter();
    let mut is_done = false;
    assert!(idle.exit(|| is_done = true) && is_done);
    assert!(!idle.exit(|| ()));
}

/// A handler that comes before the work is done must not go on without it.
#[test]
fn a_handler_in_the_midst_of_what_was_deferred_does_it_as_well() {
    let idle = Idle::new();
    idle.enter();
    assert!(idle.defer());
    let mut done = 0;
    let is_owed = idle.exit(|| {
        assert!(!idle.is_idle() && !idle.defer());
        assert!(idle.exit(|| done += 1));
        done += 1;
    });
    assert_eq!((is_owed, done), (true, 2));
    assert!(!idle.exit(|| done += 1) && !idle.is_idle());
}

/// Such a handler may be idle again before it ends, and its own work may unwind.
#[test]
fn what_unwound_in_a_handler_is_not_taken_for_done_by_what_it_interrupted() {
    let idle = Idle::new();
    idle.enter();
    assert!(idle.defer());
    let mut flushes = 0;
    idle.exit(|| {
        flushes += 1;
        // It is done, and comes to its end only after this handler.
        assert!(idle.exit(|| flushes += 1));
        idle.enter();
        assert!(idle.defer());
        let exit = AssertUnwindSafe(|| idle.exit(|| panic!("it is not done")));
        assert!(catch_unwind(exit).is_err());
    });
    assert_eq!(format!("{idle:?}"), "Idle(busy)");
    assert!(!idle.is_idle() && !idle.defer());
    assert!(idle.exit(|| flushes += 1), "it is owed: {flushes}");
    assert_eq!(flushes, 3);
    assert!(!idle.exit(|| flushes += 1));
}

/// Work that a handler has done is not owed, though what it interrupted unwinds.
#[test]
fn what_a_handler_has_done_is_done_even_if_what_it_interrupted_unwinds() {
    let idle = Idle::new();
    idle.enter();
    assert!(idle.defer());
    let exit = AssertUnwindSafe(|| {
        idle.exit(|| {
            assert!(idle.exit(|| ()));
            panic!("a handler has done it");
        })
    });
    assert!(catch_unwind(exit).is_err());
    assert!(!idle.exit(|| ()));
}

#[test]
fn each_job_runs_once_at_each_slot() {
    const CPUS: usize = 4;
    let broadcast = &Broadcast::new(CPUS);
    let sums = &[const { AtomicUsize::new(0) }; CPUS];
    thread::scope(|scope| {
        for (slot, sum) in sums.iter().enumerate() {
            scope.spawn(move || {
                let mut next = 1;
                while next <= ROUNDS {
                    let had_job = broadcast.has_job(slot);
                    let ran = broadcast.run(slot, |job: usize| {
                        assert_eq!(job, next);
                        sum.store(sum.load(Ordering::Relaxed) + job, Ordering::Relaxed);
                        next += 1;
                    });
                    assert!(ran || !had_job);
                    thread::yield_now();
                }
            });
        }
        for job in 1..=ROUNDS {
            assert!(broadcast.submit(job));
            while let Some(late) = broadcast.first_unfinished() {
                assert!(late < CPUS);
                thread::yield_now();
            }
            // Its effects are visible.
            let all = job * (job + 1) / 2;
            assert!(sums.iter().all(|sum| sum.load(Ordering::Relaxed) == all));
        }
    });
    assert!(!broadcast.has_job(0) && !broadcast.has_job(CPUS));
    assert!(!broadcast.run(CPUS, |_| unreachable!()));
}

#[test]
fn of_jobs_submitted_at_once_or_too_early_none_is_lost() {
    let broadcast = Broadcast::new(1);
    let results = race(
        |round| {
            let submitted = broadcast.submit(2 * round);
            let mut ran = Vec::new();
            while broadcast.run(0, |job| ran.push(job)) {}
            (submitted, ran)
        },
        |round| broadcast.submit(2 * round + 1),
    );
    let mut ran: Vec<usize> = Vec::new();
    let mut submitted = Vec::new();
    for (round, ((one, jobs), other)) in results.into_iter().enumerate() {
        submitted.extend(one.then_some(2 * round));
        submitted.extend(other.then_some(2 * round + 1));
        ran.extend(jobs);
    }
    while broadcast.run(0, |job| ran.push(job)) {}
    ran.sort_unstable();
    submitted.sort_unstable();
    assert_eq!(ran, submitted);
    assert!(broadcast.is_done());
}

#[test]
fn a_barrier_releases_all_together_and_shows_what_each_did() {
    const CPUS: usize = 4;
    let barrier = &Barrier::new(CPUS);
    assert_eq!(format!("{barrier:?}"), format!("Barrier(0 of {CPUS})"));
    let steps = &[const { AtomicUsize::new(0) }; CPUS];
    thread::scope(|scope| {
        for own in 0..CPUS {
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    steps[own].store(round, Ordering::Relaxed);
                    let arrival = barrier.arrive();
                    while !arrival.is_released() {
                        thread::yield_now();
                    }
                    for step in steps {
                        let step = step.load(Ordering::Relaxed);
                        assert!(step == round || step == round + 1, "{step} in {round}");
                    }
                }
            });
        }
    });
    assert_eq!((barrier.cpus(), barrier.waiting()), (CPUS, 0));
}

#[test]
fn an_arrival_is_released_by_its_own_barrier() {
    let (alone, with_another) = (Barrier::new(1), Barrier::new(2));
    let _ = alone.arrive();
    let (there, here) = (alone.arrive(), with_another.arrive());
    assert!(there.is_released() && !here.is_released());
    let _ = with_another.arrive();
    assert!(here.is_released());
}

#[test]
#[should_panic(expected = "a barrier needs at least one CPU, and got 0")]
fn a_barrier_for_nobody_is_refused() {
    // The first CPU to come would wait for ever.
    let _ = Barrier::new(0);
}

#[test]
fn a_job_that_panics_at_a_slot_is_done_there() {
    let broadcast = Broadcast::new(2);
    for job in 0..3 {
        assert!(broadcast.submit(job));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            broadcast.run(1, |_| panic!("died"));
        }));
        assert!(panicked.is_err());
        assert!(!broadcast.run(1, |_| unreachable!("once")));
        assert_eq!(broadcast.first_unfinished(), Some(0));
        assert!(broadcast.run(0, |submitted| assert_eq!(submitted, job)));
        assert!(broadcast.is_done());
    }
}

#[test]
fn a_cpu_that_becomes_idle_twice_still_owes_what_was_deferred() {
    let idle = Idle::new();
    idle.enter();
    assert!(idle.defer());
    idle.enter();
    assert!(idle.exit(|| ()));
    idle.enter();
    idle.enter();
    assert!(idle.is_idle() && !idle.exit(|| ()));
}
