//! Builds Muster, boots it in QEMU, watches it, and tells the truth about how
//! it ended. `just` calls this; it works alone as well.
//!
//! The kernel speaks to the runner in four ways: by its log on the serial
//! line (`line`), by QEMU's exit status (`session`), by each CPU's own log
//! on QEMU's debug console (`boot_log`), and by events on a second serial line
//! (`events`).

mod account;
mod arguments;
mod bench;
mod bochs;
mod camera;
mod cases;
mod check;
mod contradictions;
mod coverage;
mod debugger;
mod emulator;
mod faults;
mod floor;
mod fuzz;
mod images;
mod limine;
mod linux;
mod listing;
mod machine;
mod matrix;
mod on_bochs;
mod outputs;
mod picture;
mod report;
mod requirements;
mod run;
mod screen;
mod script;
mod soak;
mod suite;
mod terminal;
mod toolchain;
mod topology;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use muster_runner::{boot_log, events, figures, line, session, symbols, workspace};

use crate::arguments::{ArgumentError, Build, MONITOR};
use crate::limine::{Limine, NotInstalled};
use crate::linux::NoLinux;
use crate::requirements::Unmet;
use crate::screen::Screen;
use crate::session::Interrupt;
use crate::toolchain::NoToolchain;

/// The exit status for arguments that make no sense, and for things to install.
const USAGE: u8 = 2;

const COMMANDS: &str = "\
commands:
  build                      build the kernel and the loader
  run [CPUS] [key=value…]    boot the kernel in QEMU, and watch it to its end
  monitor [CPUS] [key=value…]
                             boot the kernel to a prompt on its serial line
  top [CPUS] [key=value…] [--once]
                             the CPUs at work, in a terminal, or one picture
  test [qemu=PATH] [bochs=PATH] [FILTER…]
                             the boot tests whose name contains a FILTER
  matrix [qemu=PATH] [FILTER…]
                             the same, of all machines that the kernel must come up on
  bench [WHAT] [CPUS] [key=value…]
                             the benchmarks in the kernel; WHAT may be
                             instructions, to count them in the kernel, or
                             host, memory or latency, on this host's threads
  bench linux [instructions] [CPUS] [key=value…]
                             Linux 6.1's kmalloc and alloc_page beside Muster's
                             heap and frames in the same QEMU, with rounds=, time=,
                             format=, boots=N and linux=bare|default
  report [quick] [CPUS] [key=value…]
                             the stress and the benchmarks, and a page of what
                             they told (target/report.html); or that of files of
                             events: report EVENTS.jsonl…
  iso [PATH] [key=value…]    write a disc image for a real machine, with the
                             kernel's words (target/muster.iso)
  soak [CPUS] [minutes=N] [key=value…]
                             everything at once, for ten minutes if none are
                             named, from a seed that is told
  floor [CPUS] [key=value…]  the book's example of another kernel
  book-outputs [NAME…]       write what the book shows of the kernel's words anew
  boot-log CPU|all           the last run's log of one CPU, or all of it
  debug [CPUS] [key=value…]  boot the kernel under GDB
  debug-server [CPUS] [key=value…]
                             the same, for a debugger that comes by itself
  fuzz [TARGET…] [seconds=N] [seed=N]
                             what comes from outside, made up by libFuzzer: a few
                             seconds of each TARGET, the same each time, or seconds=
                             of each from where it was last
  check                      spelling, dependencies, and clippy and rustdoc with
                             warnings denied, for kernel and host crates
  coverage                   how many of the libraries' lines their tests run
";

fn main() -> ExitCode {
    let mut arguments = Vec::new();
    for argument in env::args_os().skip(1) {
        match argument.into_string() {
            Ok(argument) => arguments.push(argument),
            Err(argument) => {
                eprintln!("muster: {} is not UTF-8", argument.display());
                return ExitCode::from(USAGE);
            }
        }
    }
    match dispatch(&arguments) {
        Ok(code) => code,
        Err(error) => {
            let is_usage = error.is::<ArgumentError>()
                || error.is::<NotInstalled>()
                || error.is::<NoLinux>()
                || error.is::<Unmet>()
                || error.is::<NoToolchain>();
            eprintln!("muster: {}", format!("{error:#}").trim_end());
            if is_usage {
                ExitCode::from(USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<ExitCode> {
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", arguments),
    };
    match command {
        "build" => {
            let images = images::build(Build::Plain)?;
            for image in [images.kernel, images.loader] {
                println!("{}", workspace::shown(&image));
            }
            Ok(ExitCode::SUCCESS)
        }
        "run" => run::command(&arguments::parse(rest)?, &Interrupt::watch()?),
        "monitor" => {
            let words: Vec<_> = rest.iter().map(String::as_str).collect();
            let run = arguments::parse(&[words.as_slice(), &[MONITOR]].concat())?;
            run::command(&run, &Interrupt::watch()?)
        }
        "top" => top(rest),
        "bench" => bench::command(rest, &Interrupt::watch()?),
        "report" => report::command(rest, &Interrupt::watch()?),
        "fuzz" => fuzz::command(rest),
        "soak" => soak::command(rest, &Interrupt::watch()?),
        "test" => suite::command(rest, &Interrupt::watch()?),
        "matrix" => suite::matrix(rest, &Interrupt::watch()?),
        "iso" => iso(rest),
        "boot-log" => {
            let which = rest.first().map_or("all", String::as_str);
            let screen = Screen::new();
            for text in boot_log::read(&workspace::boot_log(), which)?.lines() {
                screen.line(text)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        "floor" => floor::command(rest, &Interrupt::watch()?),
        "book-outputs" => outputs::command(rest, &Interrupt::watch()?),
        "debug" => debugger::command(&arguments::parse(rest)?, &Interrupt::watch()?),
        "debug-server" => debugger::wait(&arguments::parse(rest)?, &Interrupt::watch()?),
        "check" => check::command(),
        "coverage" => coverage::command(),
        "help" | "--help" | "-h" => {
            println!("{COMMANDS}{}", arguments::help());
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprint!("muster: no such command: {command}\n\n{COMMANDS}");
            Ok(ExitCode::from(USAGE))
        }
    }
}

/// Has the program in `view/` boot the kernel and draw it; what has to be built is built before there is
/// a picture.
fn top(arguments: &[String]) -> Result<ExitCode> {
    images::build(Build::Plain)?;
    let mut cargo = toolchain::view_cargo("run");
    cargo.args(["--quiet", "--package", "muster-top", "--"]);
    let status = cargo.args(arguments).status();
    let code = status.context("cannot start Cargo")?.code();
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Writes a disc image.
fn iso(arguments: &[String]) -> Result<ExitCode> {
    let (paths, keys): (Vec<_>, Vec<_>) = arguments.iter().partition(|word| !word.contains('='));
    let image = match paths.as_slice() {
        [] => workspace::target().join("muster.iso"),
        [path] => PathBuf::from(path),
        _ => return Err(anyhow!("iso writes one image, at one path")),
    };
    let limine = Limine::find()?;
    let boot = ["boot=limine".to_owned()];
    let words: Vec<_> = boot.iter().chain(keys).collect();
    let run = arguments::parse(&words)?;
    let images = images::build(run.build)?;
    let good_for = limine
        .write_disc(&images.bootable, &run, &image)
        .with_context(|| format!("cannot make {}", image.display()))?;
    println!("{}: {good_for}", workspace::shown(&image));
    Ok(ExitCode::SUCCESS)
}
