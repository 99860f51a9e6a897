//! Builds Muster, boots it in QEMU, watches it, and tells the truth about how
//! it ended. `just` calls this; it works alone as well.
//!
//! The kernel speaks to the runner in four ways: by its log on the serial
//! line (`line`), by QEMU's exit status (`session`), by each CPU's own log
//! on QEMU's debug console (`boot_log`), and by events on a second serial line
//! (`events`).
//!
//! From the top down, each of these imports those below it, and none above:
//!
//! - `recipes`: what each recipe of `just` does; only this file imports it.
//! - `cases`: the boot tests, as data. The recipe `test-kernel` boots them (`recipes::suite`).
//! - `arguments` and `emulators`, which import each other: the options of a run, and the machine that it is
//!   booted on.
//! - the library (`lib.rs`): watches one run (`session`), and reads what it wrote.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it panics where nobody reads"
)]

mod arguments;
mod cases;
mod commands;
mod emulators;
mod images;
mod limine;
mod recipes;
mod screen;
mod terminal;
mod toolchain;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use clap::error::ErrorKind;
use muster_arguments::RUNNER;
use muster_runner::{boot_log, events, figures, line, session, symbols, workspace};

use crate::arguments::{ArgumentError, Boot, Build, MONITOR};
use crate::commands::{Command, WrongWord};
use crate::emulators::requirements::{self, Unmet};
use crate::images::NoLoader;
use crate::limine::{Limine, NotInstalled};
use crate::recipes::linux::NoLinux;
use crate::recipes::{
    bench, check, coverage, debugger, examples, fuzz, models, oracles, outputs, report, run, soak,
    suite,
};
use crate::screen::Screen;
use crate::session::Interrupt;
use crate::toolchain::NoToolchain;

/// The exit status for arguments that make no sense, and for things to install.
const USAGE: u8 = 2;

/// The exit status where nobody reads the output any more, as shells have it (128 + SIGPIPE).
const UNREAD: u8 = 141;

fn main() -> ExitCode {
    let name = env::args_os().nth(1).unwrap_or_default();
    let refuse = |message: &str| {
        complain(&commands::answer(name.to_str(), message));
        ExitCode::from(USAGE)
    };
    let done = match commands::parse(env::args_os()) {
        Ok(command) => perform(command),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                print(&error.to_string())
            }
            _ => return refuse(&commands::message(&error)),
        },
    };
    let error = match done {
        Ok(code) => return code,
        Err(error) => error,
    };
    let is_unread = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    if error
        .chain()
        .any(|cause| cause.downcast_ref().is_some_and(is_unread))
    {
        return ExitCode::from(UNREAD);
    }
    let message = format!("{error:#}");
    if error.is::<ArgumentError>() || error.is::<WrongWord>() {
        return refuse(&message);
    }
    complain(&format!("muster: {}", message.trim_end()));
    let is_refusal = error.is::<NotInstalled>()
        || error.is::<NoLinux>()
        || error.is::<Unmet>()
        || error.is::<NoToolchain>()
        || error.is::<NoLoader>();
    match is_refusal {
        true => ExitCode::from(USAGE),
        false => ExitCode::FAILURE,
    }
}

/// Writes a message to standard error.
fn complain(message: &str) {
    // Where nobody reads it, the exit status says it alone.
    let _ = writeln!(io::stderr(), "{message}");
}

/// Does what is asked for.
fn perform(command: Command) -> Result<ExitCode> {
    match command {
        Command::RunSmp(asked) => {
            run::command(&arguments::parse(&asked.words)?, &Interrupt::watch()?)
        }
        Command::Boot { kernel, asked } => {
            let run = arguments::parse(&asked.words)?;
            run::boot_kernel(&kernel, &run, &Interrupt::watch()?)
        }
        Command::Cargo {
            subcommand,
            arguments,
        } => examples::cargo(&subcommand, &arguments),
        Command::TestClient => examples::test_client(),
        Command::Monitor(mut asked) => {
            arguments::leave_to("monitor", &["monitor"], &asked.words)?;
            asked.words.push(MONITOR.into());
            run::command(&arguments::parse(&asked.words)?, &Interrupt::watch()?)
        }
        Command::Report(asked) => report::command(&asked.words, &Interrupt::watch()?),
        Command::Top { once, asked } => top(once, &asked.words),
        Command::BootLog { cpu } => {
            let screen = Screen::new();
            let log = boot_log::read(&workspace::boot_log(), cpu)?;
            log.lines().try_for_each(|text| screen.line(text))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Debug(asked) => {
            debugger::command(&arguments::parse(&asked.words)?, &Interrupt::watch()?)
        }
        Command::DebugServer(asked) => {
            debugger::wait(&arguments::parse(&asked.words)?, &Interrupt::watch()?)
        }
        Command::Arguments => print(&arguments::help()),
        Command::Build => {
            let client = images::build_client()?;
            let images = images::build(Build::Plain)?;
            let sized = [
                (
                    "the kernel with the self-test",
                    images.kernel,
                    images.bootable,
                ),
                (
                    "without it, and a small client",
                    client.kernel,
                    client.bootable,
                ),
            ];
            for (what, kernel, bootable) in sized {
                let kib = fs::metadata(&bootable)?.len().div_ceil(1024);
                print(&format!(
                    "{}: {what}, {kib} KiB\n",
                    workspace::shown(&kernel)
                ))?;
            }
            print(&format!("{}\n", workspace::shown(&images.loader)))
        }
        Command::Iso(asked) => iso(&asked.words),
        Command::Client(asked) => examples::client(&asked.words, &Interrupt::watch()?),
        Command::Floor(asked) => examples::floor(&asked.words, &Interrupt::watch()?),
        Command::BookOutputs(asked) => outputs::command(&asked, &Interrupt::watch()?),
        Command::Check => check::command(),
        Command::Models(asked) => models::command(&asked.words),
        Command::Oracles { times } => oracles::command(times),
        Command::Seed => oracles::print_seed("test-host").map(|()| ExitCode::SUCCESS),
        Command::Coverage => coverage::command(),
        Command::Fuzz(asked) => fuzz::command(&asked.words),
        Command::TestKernel(asked) => suite::command(&asked, &Interrupt::watch()?),
        Command::Matrix(asked) => suite::matrix(&asked, &Interrupt::watch()?),
        Command::Soak(asked) => soak::command(&asked.words, &Interrupt::watch()?),
        Command::Bench(asked) => bench::command(&asked.words, &Interrupt::watch()?),
    }
}

fn print(text: &str) -> Result<ExitCode> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Has the program in `view/` boot the kernel and draw it; all is built before there is a picture.
fn top(is_once: bool, words: &[String]) -> Result<ExitCode> {
    arguments::leave_to("top", &["monitor", "output", "events"], words)?;
    // Those of the stress are for the viewer, which types them at the prompt.
    let is_typed = |word: &&String| word.starts_with("stress=") || word.starts_with("seconds=");
    let (typed, rest): (Vec<_>, Vec<_>) = words.iter().partition(is_typed);
    arguments::parse(&typed)?;
    ensure!(
        !typed.contains(&&"stress=none".into()),
        WrongWord("there is nothing to watch with stress=none: leave it out".into())
    );
    let own = [MONITOR, "output=json", "events=-"];
    let rest: Vec<_> = rest.into_iter().map(String::as_str).chain(own).collect();
    requirements::check(&arguments::parse(&rest)?)?;
    ensure!(
        is_once || io::stdout().is_terminal(),
        WrongWord(
            "the standard output is no terminal; `just top --once` prints one picture anywhere"
                .into()
        )
    );
    images::build(Build::Plain)?;
    let mut top = toolchain::viewer("muster-top")?;
    top.args(is_once.then_some("--once")).args(words);
    toolchain::finish(top)
}

/// The runner's options that are about a disc.
const ON_DISC: [&str; 2] = ["boot", "resolution"];

/// Writes a disc image.
fn iso(words: &[String]) -> Result<ExitCode> {
    let (paths, options): (Vec<_>, Vec<_>) =
        words.iter().cloned().partition(|word| !word.contains('='));
    let image = match paths.as_slice() {
        [] => workspace::target().join("muster.iso"),
        [path] if path.contains(['/', '.']) => PathBuf::from(path),
        [path] => bail!(WrongWord(format!(
            "`{path}` is neither an option nor a path, which has a `.` or a `/` in it"
        ))),
        [_, path, ..] => bail!(WrongWord(format!(
            "`{path}` is a second path: leave one out"
        ))),
    };
    let run = arguments::parse(&arguments::with_defaults(&["boot=limine"], &options))?;
    let is_from_disc = run.boot == Boot::Limine;
    ensure!(
        is_from_disc,
        WrongWord("a disc needs boot=limine: leave `boot=embedded` out".into())
    );
    let is_of_machine = |name| arguments::is_in(RUNNER, name) && !ON_DISC.contains(&name);
    let mut names = options
        .iter()
        .filter_map(|word| Some(word.split_once('=')?.0));
    if let Some(name) = names.find(|name| is_of_machine(name)) {
        bail!(WrongWord(format!(
            "{name}= does nothing on a disc, which takes the kernel's options and resolution=: leave it out"
        )));
    }
    let folder = image.parent().filter(|folder| *folder != Path::new(""));
    if let Some(missing) = folder.filter(|folder| !folder.is_dir()) {
        bail!(WrongWord(format!(
            "no folder `{}`: name one that is there",
            missing.display()
        )));
    }
    ensure!(
        !image.is_dir(),
        WrongWord(format!(
            "`{}` is a folder: name a file in it",
            image.display()
        ))
    );
    let limine = Limine::find()?;
    let images = images::build(run.build)?;
    let good_for = limine
        .write_disc(&images.bootable, &run, &image)
        .with_context(|| format!("cannot make {}", image.display()))?;
    print(&format!("{}: {good_for}\n", workspace::shown(&image)))
}
