//! Random values held against a model, and counted.

use std::cell::Cell;
use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// How many times as many cases as usual are tried: set by `just oracles`.
const TIMES: &str = "ORACLE_TIMES";

/// Runs `check`, which answers how many steps it took, on random values, and prints what was tried.
pub fn oracle<S>(
    name: &str,
    cases: u32,
    values: S,
    check: impl Fn(S::Value) -> Result<usize, TestCaseError>,
) where
    S: Strategy,
    S::Value: Debug,
{
    let times = std::env::var(TIMES).map_or(1, |times| times.parse().unwrap());
    let steps = Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: cases * times,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&values, |value| {
        steps.set(steps.get() + check(value)?);
        Ok(())
    });
    println!(
        "oracle: {name}: {} cases, {} steps",
        cases * times,
        steps.get()
    );
    if let Err(error) = result {
        panic!("{error}");
    }
}
