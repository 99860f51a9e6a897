//! `check`: what tools find without running anything: clippy and rustdoc with warnings denied, spelling, what
//! Muster depends on, what its rooms import of each other, its words, that a kernel without the self-test
//! has none of it, and that the patches in `mistakes/` apply.

mod imports;
mod rooms;
mod source;
mod symbols;
mod table;
mod types;
mod words;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::recipes::models;
use crate::toolchain::{self, Toolchain};
use crate::workspace;

/// The packages that are checked as they are built for a host.
const HOST_PACKAGES: [&str; 15] = [
    "muster-sync",
    "muster-percpu",
    "muster-percpu-elsewhere",
    "muster-cross-cpu",
    "muster-frames",
    "muster-paging",
    "muster-heap",
    "muster-arguments",
    "muster-monitor",
    "muster-screen",
    "muster-machine",
    "muster-boot",
    "muster-events",
    "muster-bench",
    "muster-runner",
];

/// Those that are made for the bare target.
const IMAGES: [&str; 3] = ["muster", "muster-loader", "muster-floor"];

/// The workspaces, each with a lock file of its own, by their folders.
const WORKSPACES: [&str; 5] = ["", "bench/host", CLIENT, "fuzz", VIEW];

/// The one of the least client, which is built from there, by its own configuration.
const CLIENT: &str = "examples/client";

/// The one of what draws.
const VIEW: &str = "view";

/// Checks everything that can be checked without running it.
///
/// # Errors
/// If no toolchain serves, or a tool does not start.
pub fn command() -> Result<ExitCode> {
    if !rooms::are_in_order()? || !words::are_right()? || !mistakes_can_be_made()? {
        return Ok(ExitCode::FAILURE);
    }
    let mut steps = vec![spelling()];
    for folder in WORKSPACES {
        steps.push(unused_dependencies(folder));
        let mut deny = deny(folder);
        deny.args(["check", "-D", "warnings"]);
        // What may be in one workspace need not be in the others.
        deny.args([
            "-A",
            "license-exception-not-encountered",
            "-A",
            "unmatched-skip",
        ]);
        deny.args(["licenses", "bans", "sources"]);
        steps.push(deny);
    }
    steps.extend(clippy()?);
    steps.extend(documentation()?);
    for step in steps {
        if !passes(step)? {
            return Ok(ExitCode::FAILURE);
        }
    }
    if !symbols::are_in_order()? {
        return Ok(ExitCode::FAILURE);
    }
    is_free_of_advisories().map(|is_free| match is_free {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Prints what is wrong with the patches in `mistakes/`. Returns whether each applies to the sources, and
/// names models that are there.
fn mistakes_can_be_made() -> Result<bool> {
    let problems = models::problems(workspace::root())?;
    for problem in &problems {
        writeln!(io::stderr(), "{problem}")?;
    }
    Ok(problems.is_empty())
}

/// Returns the images for the bare target, and the host's crates with their tests.
fn clippy() -> Result<Vec<Command>> {
    let mut images = Toolchain::choose()?.bare_metal("clippy");
    images.args(IMAGES.map(|package| ["--package", package]).concat());
    let mut selftests = Vec::new();
    for feature in ["selftest", "bench"] {
        let mut selftest = Toolchain::choose()?.bare_metal("clippy");
        selftest.args(["--package", "muster", "--features", feature]);
        selftests.push(selftest);
    }
    let mut host = toolchain::host_cargo();
    host.args(["clippy", "--all-targets"]);
    for package in HOST_PACKAGES {
        host.args(["--package", package]);
    }
    let mut loader = toolchain::host_cargo();
    loader.args(["clippy", "--package", "muster-loader", "--lib", "--tests"]);
    let mut view = toolchain::view_cargo("clippy");
    view.arg("--all-targets");
    let client =
        (Toolchain::choose()?).outside(OsStr::new("clippy"), &workspace::root().join(CLIENT));
    let mut steps = vec![images, host, loader, view, client];
    steps.extend(selftests);
    for step in &mut steps {
        step.args(["--", "--deny", "warnings"]);
    }
    Ok(steps)
}

/// Returns the documentation of the images and the host's crates, private items included.
fn documentation() -> Result<Vec<Command>> {
    let mut images = Toolchain::choose()?.bare_metal("doc");
    images.args(IMAGES.map(|package| ["--package", package]).concat());
    let mut internals = Toolchain::choose()?.bare_metal("doc");
    internals.args(["--package", "muster", "--lib", "--features", "bench"]);
    // The library and its client have one name, for which `cargo doc` leaves the client out.
    let mut client = Toolchain::choose()?.bare_metal("rustdoc");
    client.args([
        "--package",
        "muster",
        "--bin",
        "muster",
        "--features",
        "bench",
    ]);
    let mut host = toolchain::host_cargo();
    host.args(["doc", "--all-features"]);
    for package in HOST_PACKAGES {
        host.args(["--package", package]);
    }
    let view = toolchain::view_cargo("doc");
    let mut steps = vec![images, internals, host, view];
    for step in &mut steps {
        step.args(["--no-deps", "--document-private-items"]);
    }
    client.args(["--", "--document-private-items"]);
    steps.push(client);
    for step in &mut steps {
        step.env("RUSTDOCFLAGS", "--deny warnings");
    }
    Ok(steps)
}

fn spelling() -> Command {
    let mut typos = Command::new("typos");
    typos.current_dir(workspace::root());
    typos
}

fn unused_dependencies(folder: &str) -> Command {
    let mut shear = toolchain::host_cargo();
    shear.args(["shear", "--deny-warnings"]).arg(path(folder));
    shear
}

/// Makes `cargo deny` for the workspace in this folder.
fn deny(folder: &str) -> Command {
    let mut deny = toolchain::host_cargo();
    deny.args(["deny", "--workspace", "--manifest-path"]);
    deny.arg(path(folder).join("Cargo.toml"));
    deny.arg("--config").arg(path("deny.toml"));
    deny
}

/// Returns whether nobody has warned of a dependency, as far as that can be known here.
fn is_free_of_advisories() -> Result<bool> {
    let fetched = deny(WORKSPACES[0]).args(["fetch", "db"]).output()?;
    if !fetched.status.success() {
        let words = String::from_utf8_lossy(&fetched.stderr);
        let why = words.lines().rfind(|line| !line.trim().is_empty());
        writeln!(
            io::stdout(),
            "advisories skipped, for want of RustSec's database: {}",
            why.unwrap_or("cargo deny does not say why")
        )?;
        return Ok(true);
    }
    for folder in WORKSPACES {
        let mut deny = deny(folder);
        deny.args(["check", "--disable-fetch", "-D", "warnings", "advisories"]);
        if !passes(deny)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn path(relative: &str) -> PathBuf {
    workspace::root().join(relative)
}

fn passes(mut step: Command) -> Result<bool> {
    let program = step.get_program().to_owned();
    let status = step.status().with_context(|| {
        format!(
            "cannot start {}, which ./bootstrap installs",
            program.display()
        )
    })?;
    Ok(status.success())
}
