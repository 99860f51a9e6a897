//! `bench`: Muster's allocators beside others, in the kernel, on this host or in Linux.

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};

use crate::arguments;
use crate::commands::WrongWord;
use crate::recipes::linux;
use crate::recipes::run;
use crate::session::Interrupt;
use crate::{toolchain, workspace};

/// The workloads whose instructions are counted if none are named.
const COUNTED: &str = "bench=churn,mixed,frame-pair,frame-bulk";

/// The benchmarks that are not those of all allocators in the kernel, by time.
const KINDS: [&str; 5] = ["host", "linux", "instructions", "memory", "latency"];

/// Runs the benchmarks that `what` names and the rest of the arguments describe.
///
/// # Errors
/// If the arguments make no sense, or there is nothing to run.
pub fn command(words: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    let is_name = |word: &String| {
        let is_number = word.starts_with(|first: char| first.is_ascii_digit());
        !is_number && !word.contains('=') && arguments::parse(&[word]).is_err()
    };
    let Some((what, rest)) = words.split_first().filter(|(what, _)| is_name(what)) else {
        return in_kernel(&["bench=all"], words, interrupt);
    };
    match what.as_str() {
        "host" | "memory" | "latency" => on_host(what, rest),
        "instructions" => {
            let own = ["1", "accel=icount", "measure=instructions", COUNTED];
            in_kernel(&own, rest, interrupt)
        }
        "linux" => linux::command(rest, interrupt),
        _ => {
            let lists = format!("must be one of {}", KINDS.join(", "));
            bail!(WrongWord::unknown("kind of benchmark", what, KINDS, &lists));
        }
    }
}

/// Boots a kernel that has the benchmarks.
fn in_kernel(own: &[&str], words: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    let words = arguments::with_defaults(own, words);
    run::command(&arguments::parse(&words)?, interrupt)
}

/// Runs the host's program, which has allocators in C and C++ to build first.
fn on_host(what: &str, words: &[String]) -> Result<ExitCode> {
    ensure!(
        !words.contains(&"measure=instructions".into()),
        WrongWord("instructions are counted in the kernel: `just bench instructions`".into())
    );
    arguments::parse(words)?;
    let (others, _) = arguments::part(words);
    if let Some(other) = others.first() {
        bail!(WrongWord(format!(
            "`{other}`: `just bench {what}` takes the benchmarks' options alone"
        )));
    }
    let mut cargo = toolchain::host_cargo();
    cargo.args(["run", "--quiet", "--release"]);
    cargo.args(["--manifest-path", "bench/host/Cargo.toml", "--target-dir"]);
    cargo.arg(workspace::target().join("bench-host"));
    cargo.arg("--").arg(what).args(words);
    toolchain::finish(cargo)
}
