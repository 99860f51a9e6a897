//! `oracles`: the libraries against naive models, at random.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::commands::WrongWord;
use crate::toolchain;

/// Where proptest finds what to start from; `just` sets it.
const SEED: &str = "PROPTEST_RNG_SEED";

/// Says what random tests start from, and how to have them again.
///
/// # Errors
/// If that is no seed, or nobody reads it.
pub fn print_seed(recipe: &str) -> Result<()> {
    let Some(seed) = env::var_os(SEED) else {
        return Ok(());
    };
    let seed = seed.to_string_lossy();
    if seed.parse::<u64>().is_err() {
        bail!(WrongWord(format!(
            "invalid value `{seed}` for `seed`: must be a whole number"
        )));
    }
    writeln!(
        io::stdout(),
        "random tests start from seed {seed}; the same again: just seed={seed} {recipe}"
    )?;
    Ok(())
}

/// Runs the tests with this number of times as many cases as usual.
///
/// # Errors
/// If the seed is none, or Cargo does not start.
pub fn command(times: u32) -> Result<ExitCode> {
    print_seed("oracles")?;
    let mut cargo = toolchain::host_cargo();
    cargo.arg("test");
    for library in ["frames", "paging", "heap"] {
        cargo.args(["--package", &format!("muster-{library}"), "--test", library]);
    }
    cargo.args(["--", "--nocapture", "model"]);
    cargo.env("ORACLE_TIMES", times.to_string());
    toolchain::finish(cargo)
}
