//! `client` and `floor`: build and boot the examples: the least client of the kernel, and another kernel on
//! Muster's libraries.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::arguments;
use crate::commands::WrongWord;
use crate::emulators::requirements;
use crate::images::{self, FLOOR};
use crate::recipes::run;
use crate::screen::Screen;
use crate::session::{Interrupt, PASSED};
use crate::workspace;

/// Boots it on the machine that the arguments ask for. Success only if it says so by its status.
///
/// # Errors
/// If it does not build, the arguments make no sense, or QEMU does not start.
pub fn command(package: &str, arguments: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    let screen = Screen::new();
    let passed = boot(package, arguments, interrupt, &mut |text| screen.line(text))?;
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

/// Boots it, shows each line that it writes, and says whether it passed.
///
/// # Errors
/// As for [`command`].
pub fn boot(
    package: &str,
    arguments: &[impl AsRef<str>],
    interrupt: &Interrupt,
    show: &mut dyn FnMut(&str) -> std::io::Result<()>,
) -> Result<bool> {
    let run = arguments::parse(arguments)?;
    // The floor has no command line.
    let is_of_kernel = |word: &&String| package == FLOOR && !word.starts_with("loader.");
    if let Some(word) = run.words.iter().find(is_of_kernel) {
        bail!(WrongWord(format!(
            "{word} does nothing in the example, which takes the machine's options: leave it out"
        )));
    }
    requirements::check(&run)?;
    let folder = workspace::target().join("example-log");
    let (outcome, _) = run::boot(
        &run,
        &images::build_example(package)?,
        &folder,
        interrupt,
        show,
        None,
        None,
    )?;
    Ok(outcome.status() == Some(PASSED))
}
