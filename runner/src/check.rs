//! `check`: clippy with the workspace's lints, warnings denied.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::toolchain::{self, Toolchain};

/// The packages that are checked as they are built for a host.
const HOST_PACKAGES: [&str; 8] = [
    "muster-percpu",
    "muster-memory",
    "muster-heap",
    "muster-arguments",
    "muster-machine",
    "muster-boot",
    "muster-bench",
    "muster-runner",
];

/// Checks the two images for the bare target, and the host's crates with their
/// tests.
///
/// # Errors
/// If no toolchain serves, or Cargo does not start.
pub fn command() -> Result<ExitCode> {
    let mut images = Toolchain::choose()?.bare_metal("clippy");
    images.args(["--package", "muster", "--package", "muster-loader"]);
    let mut bench = Toolchain::choose()?.bare_metal("clippy");
    bench.args(["--package", "muster", "--features", "bench"]);
    let mut host = toolchain::host_cargo();
    host.args(["clippy", "--all-targets"]);
    for library in HOST_PACKAGES {
        host.args(["--package", library]);
    }
    let mut loader = toolchain::host_cargo();
    loader.args(["clippy", "--package", "muster-loader", "--lib", "--tests"]);
    for clippy in [images, bench, host, loader] {
        if !passes(clippy)? {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn passes(mut clippy: Command) -> Result<bool> {
    clippy.args(["--", "--deny", "warnings"]);
    let program = clippy.get_program().to_owned();
    let status = clippy
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(status.success())
}
