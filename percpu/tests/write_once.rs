//! Threads as CPUs that write one cell.
#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{self, Arc};
use std::thread;

use muster_percpu::WriteOnce;

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
fn the_first_value_counts_and_is_dropped_once() {
    let cells: Vec<WriteOnce<Arc<usize>>> = (0..ROUNDS).map(|_| WriteOnce::default()).collect();
    assert_eq!(format!("{:?}", cells[0]), "WriteOnce(None)");
    let texts = [Arc::new(1), Arc::new(2)];
    let leave = |text: usize| {
        let (cells, texts) = (&cells, &texts);
        move |round: usize| {
            let has_set = cells[round].set(|| texts[text].clone());
            // The writer sees its own value; the other one may see none yet.
            let read = cells[round].get().map(|read| **read);
            assert!(!has_set || read == Some(text + 1));
            has_set
        }
    };
    let results = race(leave(0), leave(1));
    for (cell, (one, other)) in cells.iter().zip(&results) {
        assert_ne!(one, other);
        assert_eq!(cell.get().map(|read| **read), Some(1 + usize::from(*other)));
    }
    let count: usize = texts.iter().map(|text| Arc::strong_count(text) - 1).sum();
    assert_eq!(count, ROUNDS);
    drop(cells);
    assert!(texts.iter().all(|text| Arc::strong_count(text) == 1));
}

#[test]
fn a_value_whose_writer_never_returns_is_never_seen() {
    let cell = WriteOnce::new();
    let failed = catch_unwind(AssertUnwindSafe(|| {
        cell.set(|| -> Cell<u8> { panic!("died") })
    }));
    assert!(failed.is_err());
    assert!(cell.get().is_none());
    assert!(!cell.set(|| Cell::new(1)));
    assert!(cell.get().is_none());
}
