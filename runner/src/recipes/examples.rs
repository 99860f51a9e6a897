//! `client`, `test-client` and `floor`: build and boot the examples: the least client of the kernel, and
//! another kernel on Muster's libraries.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::arguments;
use crate::commands::WrongWord;
use crate::emulators::requirements;
use crate::images;
use crate::recipes::run;
use crate::screen::Screen;
use crate::session::{Interrupt, PASSED};
use crate::toolchain::{self, Toolchain};
use crate::workspace;

/// Boots the client on the machine that the arguments ask for. Success only if it passed.
///
/// # Errors
/// If it does not build, the arguments make no sense, or QEMU does not start.
pub fn client(arguments: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    let run = arguments::parse(arguments)?;
    requirements::check(&run)?;
    let folder = workspace::target().join("client-log");
    run::watch(&run, &images::build_client()?, &folder, interrupt).map(run::code)
}

/// Boots the client as its owner does: from a folder outside the tree, by `cargo run`, with the runner and
/// the loader installed.
///
/// # Errors
/// If something does not build, or does not start.
pub fn test_client() -> Result<ExitCode> {
    let outside = tempfile::tempdir().context("cannot make a folder")?;
    let tools = outside.path().join("tools");
    let client = outside.path().join("client");
    let from = workspace::root().join("examples/client");
    for file in [
        "Cargo.toml",
        "Cargo.lock",
        ".cargo/config.toml",
        "src/main.rs",
    ] {
        copy(&from.join(file), &client.join(file))?;
    }
    let manifest = client.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)?;
    let root = workspace::root().display().to_string();
    let moved = text.replace("path = \"../..\"", &format!("path = \"{root}\""));
    ensure!(
        moved != text,
        "{} names no path of Muster's",
        from.display()
    );
    fs::write(&manifest, moved)?;

    let toolchain = Toolchain::choose()?;
    let mut runner = toolchain::host_cargo();
    // As it is built already; a user leaves the two options out.
    runner.args(["install", "--debug", "--target-dir"]);
    runner.arg(workspace::target());
    runner.args(["--quiet", "--locked", "--path", "runner", "--root"]);
    succeed(runner.arg(&tools))?;
    let mut loader = toolchain.bare_metal("install");
    loader.args(["--quiet", "--locked", "--path", "loader", "--root"]);
    succeed(loader.arg(&tools))?;

    let mut cargo = toolchain.outside(OsStr::new("run"), &client);
    cargo.env("PATH", toolchain::with_first(&tools.join("bin")));
    if cargo.status().context("cannot start Cargo")?.success() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!(
        "the client failed: it is left, with its log, in {}",
        outside.keep().display()
    );
}

/// Runs Cargo in the current folder, by the toolchain that builds Muster.
///
/// # Errors
/// If there is none, or it does not start.
pub fn cargo(subcommand: &OsStr, arguments: &[OsString]) -> Result<ExitCode> {
    let mut cargo = Toolchain::choose()?.outside(subcommand, Path::new("."));
    let status = cargo
        .args(arguments)
        .status()
        .context("cannot start Cargo")?;
    Ok(match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        None => ExitCode::FAILURE,
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().context("cannot start Cargo")?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

/// Boots the floor on the machine that the arguments ask for. Success only if it says so by its status.
///
/// # Errors
/// If it does not build, the arguments make no sense, or QEMU does not start.
pub fn floor(arguments: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    let screen = Screen::new();
    let passed = boot_floor(arguments, interrupt, &mut |text| screen.line(text))?;
    screen.news(
        passed,
        if passed {
            "muster: passed"
        } else {
            "muster: FAILED"
        },
    )?;
    Ok(match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Boots the floor, shows each line that it writes, and says whether it passed.
///
/// # Errors
/// As for [`floor`].
pub fn boot_floor(
    arguments: &[impl AsRef<str>],
    interrupt: &Interrupt,
    show: &mut dyn FnMut(&str) -> std::io::Result<()>,
) -> Result<bool> {
    let run = arguments::parse(arguments)?;
    // It has no command line.
    let is_of_kernel = |word: &&String| !word.starts_with("loader.");
    if let Some(word) = run.words.iter().find(is_of_kernel) {
        bail!(WrongWord(format!(
            "{word} does nothing in the example, which takes the machine's options: leave it out"
        )));
    }
    requirements::check(&run)?;
    let folder = workspace::target().join("example-log");
    let (outcome, _) = run::boot(
        &run,
        &images::build_floor()?,
        &folder,
        interrupt,
        show,
        None,
        None,
    )?;
    Ok(outcome.status() == Some(PASSED))
}
