//! Random values checked against a model, and counted.

use std::cell::Cell;
use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// How many times as many new cases as usual are tried: set by `just oracles`.
const TIMES: &str = "ORACLE_TIMES";

/// The seed that half of the cases come from every time, so that a change is compared on the same.
const FIXED_SEED: u64 = 0;

/// Runs `check`, which returns how many steps it took, on random values: half of them the same every
/// time, half from the seed that proptest takes from `PROPTEST_RNG_SEED`, which `just` sets, or from
/// one of its own. Prints what was tried.
///
/// # Panics
///
/// If a value fails. The message has the seed, and how to try the same again.
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
    let new_seed = match Config::default().rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => new_seed(),
    };
    for (seed, cases) in [(FIXED_SEED, cases / 2), (new_seed, cases / 2 * times)] {
        let steps = Cell::new(0);
        let mut runner = TestRunner::new(Config {
            cases,
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            ..Config::default()
        });
        let result = runner.run(&values, |value| {
            steps.set(steps.get() + check(value)?);
            Ok(())
        });
        println!(
            "oracle: {name}, seed {seed}: {cases} cases, {} steps",
            steps.get()
        );
        if let Err(error) = result {
            panic!(
                "{name}, seed {seed} (the same again: just seed={seed} oracles {times}): {error}"
            );
        }
    }
}

/// Returns a seed that differs from run to run.
fn new_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
