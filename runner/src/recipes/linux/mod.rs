//! `bench linux`: Debian's Linux 6.1 in the machine that Muster runs in, its
//! allocators beside Muster's, in boots that alternate.
//!
//! The machine holds a kernel, an initial file system and nothing else: our
//! module (`bench/linux/muster_bench.c`), which measures while it is inserted,
//! and the program that inserts it (`bench/linux/init.c`).

mod debian;
mod options;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

pub use debian::NoLinux;

use self::debian::Linux;
use self::options::Options;
use crate::arguments::Run;
use crate::emulators::requirements;
use crate::figures::{self, Comparison, Figure, Measure, Sitting};
use crate::images::{self, Images};
use crate::recipes::run;
use crate::session::{Interrupt, Verdict};
use crate::workspace;

/// The module's name for what it measures.
const LINUX: &str = "linux-6.1";
/// The name of our own heap in its benchmark's JSON.
const MUSTER: &str = "muster";

/// Measures Linux and Muster in turn, and compares them.
///
/// # Errors
/// [`NoLinux`] if something is not installed, before anything is done;
/// [`ArgumentError`]; or if a kernel does not build, boot or come to its end.
pub fn command(words: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    let options = Options::parse(words)?;
    let linux = Linux::find()?;
    let comparison = compare(&options, &linux, interrupt)?;
    if options.is_json {
        write!(io::stdout(), "{}", comparison.json())?;
    } else {
        writeln!(io::stdout(), "{}", headline(&options, &linux))?;
        write!(io::stdout(), "{}", comparison.table())?;
    }
    match comparison.failures() {
        0 => Ok(ExitCode::SUCCESS),
        failures => {
            writeln!(
                io::stderr(),
                "muster: {failures} allocations failed: give the machine more memory, mem="
            )?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn headline(options: &Options, linux: &Linux) -> String {
    let (setting, _) = options.setting.words();
    let boots = match options.boots {
        1 => "one boot each".into(),
        boots => format!("median of {boots} boots each"),
    };
    format!(
        "{}: Linux {} ({setting}) and Muster, {boots}",
        options.measure, linux.version
    )
}

/// Boots Linux and Muster in turn.
fn compare(options: &Options, linux: &Linux, interrupt: &Interrupt) -> Result<Comparison> {
    requirements::check(&options.run)?;
    let medium = linux.build(options)?;
    let muster = options.muster();
    let images = images::build(muster.build)?;
    let mut sittings = Vec::new();
    for boot in 1..=options.boots {
        let of = format!("boot {boot} of {}", options.boots);
        writeln!(io::stderr(), "Linux, {of}")?;
        let reference = linux.measure(options, &medium, interrupt)?;
        writeln!(io::stderr(), "Muster, {of}")?;
        let own = measure_muster(&muster, &images, options.measure, interrupt)?;
        sittings.push(Sitting { reference, own });
    }
    Ok(Comparison {
        measure: options.measure,
        reference: LINUX,
        own: MUSTER,
        sittings,
    })
}

/// Boots our own kernel once, and reads the figures.
///
/// # Errors
/// If QEMU does not start, or the kernel does not pass.
fn measure_muster(
    run: &Run,
    images: &Images,
    measure: Measure,
    interrupt: &Interrupt,
) -> Result<Vec<Figure>> {
    let folder = workspace::boot_log();
    let (outcome, _) = run::boot(run, images, &folder, interrupt, &mut |_| Ok(()), None, None)?;
    let (verdict, reason) = outcome.verdict();
    if verdict != Verdict::Passed {
        bail!("Muster's benchmark {verdict}: {reason}; its log: just boot-log");
    }
    let log = read(&folder.join("all.log"))?;
    let figures = figures::read(&String::from_utf8_lossy(&log), MUSTER, measure)?;
    if figures.is_empty() {
        bail!("Muster's benchmark gave no figures; its log: just boot-log");
    }
    Ok(figures)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
