//! `bench`: Muster's allocators beside others, in the kernel, on this host or in Linux.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::arguments;
use crate::linux;
use crate::run;
use crate::session::Interrupt;
use crate::{toolchain, workspace};

/// The workloads whose instructions are counted if none are named.
const COUNTED: &str = "bench=churn,mixed,frame-pair,frame-bulk";

/// Runs the benchmarks that `what` names and the rest of the arguments describe.
///
/// # Errors
/// If the arguments make no sense, or there is nothing to run.
pub fn command(words: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    match words.split_first() {
        Some((what, rest)) if ["host", "memory", "latency"].contains(&what.as_str()) => {
            on_host(what, rest)
        }
        Some((what, rest)) if what == "instructions" => {
            let own = ["1", "accel=icount", "measure=instructions", COUNTED];
            in_kernel(&own, rest, interrupt)
        }
        Some((what, rest)) if what == "linux" => linux::command(rest, interrupt),
        _ => in_kernel(&["bench=all"], words, interrupt),
    }
}

/// Boots a kernel that has the benchmarks.
fn in_kernel(own: &[&str], words: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    let words = arguments::with_defaults(own, words);
    run::command(&arguments::parse(&words)?, interrupt)
}

/// Runs the host's program, which has allocators in C and C++ to build first.
fn on_host(what: &str, words: &[String]) -> Result<ExitCode> {
    let mut cargo = toolchain::host_cargo();
    cargo.args(["run", "--quiet", "--release"]);
    cargo.args(["--manifest-path", "bench/host/Cargo.toml", "--target-dir"]);
    cargo.arg(workspace::target().join("bench-host"));
    cargo.arg("--").arg(what).args(words);
    let status = cargo.status().context("cannot start Cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
