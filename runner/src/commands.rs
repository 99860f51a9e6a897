//! The command line: a command for each of `just`'s recipes, by its name, and what is said of a wrong one.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use muster_arguments::{Form, nearest};

use crate::arguments;
use crate::boot_log::Which;

/// How the help of a command is laid out.
const HELP: &str = "{about}\n\nusage: {usage}{after-help}\n";

/// Build Muster, boot it, watch it, and measure it
#[derive(Debug, Parser)]
#[command(
    name = "just",
    bin_name = "just",
    disable_help_subcommand = true,
    after_help = "Installed, for a kernel built on Muster: muster-runner boot KERNEL, which is Cargo's runner;\n\
                  muster-runner cargo SUBCOMMAND, Cargo where rustup has no target for kernels"
)]
pub enum Command {
    /// Boot the kernel in QEMU, and watch it to its end
    #[command(override_usage = "just run-smp [CPUS] [key=value…]", after_help = arguments::help())]
    RunSmp(Words),
    /// Boot a kernel built on Muster, an ELF file, and watch it to its end: Cargo's `runner`
    #[command(
        hide = true,
        override_usage = "muster-runner boot KERNEL [CPUS] [key=value…]",
        after_help = arguments::help()
    )]
    Boot {
        /// The ELF file.
        kernel: PathBuf,
        #[command(flatten)]
        asked: Words,
    },
    /// Run Cargo here by the toolchain that builds Muster, also where rustup has no target for a kernel
    #[command(
        hide = true,
        override_usage = "muster-runner cargo SUBCOMMAND [ARGUMENT…]"
    )]
    Cargo {
        /// What Cargo is to do.
        subcommand: OsString,
        /// The rest.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Boot the kernel to a prompt on its serial line
    #[command(override_usage = "just monitor [CPUS] [key=value…]", after_help = arguments::help())]
    Monitor(Words),
    /// Boot, stress and measure, and write target/report.html; or only write it of files of events
    #[command(
        override_usage = "just report [quick] [CPUS] [key=value…] | EVENTS.jsonl…",
        after_help = arguments::help()
    )]
    Report(Words),
    /// Watch the CPUs at work under stress=WORKLOADS (soak) for seconds=N, in a terminal, or print one picture
    #[command(override_usage = "just top [--once] [CPUS] [key=value…]", after_help = arguments::help())]
    Top {
        /// Print one picture, and end.
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        asked: Words,
    },
    /// Show the last run's log of one CPU, or all of it
    #[command(override_usage = "just boot-log [CPU|all]")]
    BootLog {
        /// Whose.
        #[arg(default_value = "all")]
        cpu: Which,
    },
    /// Boot the kernel under GDB, stopped before its first instruction
    #[command(override_usage = "just debug [CPUS] [key=value…]", after_help = arguments::help())]
    Debug(Words),
    /// Boot the kernel stopped, for a debugger that comes by itself
    #[command(override_usage = "just debug-server [CPUS] [key=value…]", after_help = arguments::help())]
    DebugServer(Words),
    /// List every option of a run
    Arguments,
    /// Build the kernel and the loader
    Build,
    /// Write a disc image for a real machine, target/muster.iso, with the kernel's options
    #[command(override_usage = "just iso [PATH] [key=value…]", after_help = arguments::help())]
    Iso(Words),
    /// Boot the least client of the kernel
    #[command(override_usage = "just client [CPUS] [key=value…]", after_help = arguments::help())]
    Client(Words),
    /// Build and boot the least client from outside the tree, by an installed runner and loader
    TestClient,
    /// Boot the book's example of another kernel on Muster's libraries
    #[command(override_usage = "just floor [CPUS] [key=value…]", after_help = arguments::help())]
    Floor(Words),
    /// Write again what the book shows of the kernel's output
    #[command(override_usage = "just book-outputs [--list] [NAME…]")]
    BookOutputs(Listed),
    /// Check spelling, dependencies, and clippy and rustdoc with warnings denied
    Check,
    /// Run what CPUs share under loom, in every order, and make the mistakes in mistakes/, each to be found
    ///
    /// With names, make only the mistakes that have a MISTAKE in their names.
    #[command(override_usage = "just models [MISTAKE…]")]
    Models(Words),
    /// Check the libraries against naive models, at random, with TIMES as many cases as usual
    Oracles {
        /// How many times.
        #[arg(default_value = "1", value_parser = positive)]
        times: u32,
    },
    /// Say what random tests start from
    #[command(hide = true)]
    Seed,
    /// Run the libraries' tests, and see that they run enough of the libraries' lines
    Coverage,
    /// Fuzz what comes from outside: a few seconds of each TARGET, the same each time
    ///
    /// With seconds=N each goes on for so long from where it was last.
    #[command(override_usage = "just fuzz [TARGET…] [seconds=N] [seed=N]")]
    Fuzz(Words),
    /// Boot the kernel in every way it must survive: the boot tests with a FILTER in their name, or all
    #[command(override_usage = "just test-kernel [--list] [qemu=PATH] [bochs=PATH] [FILTER…]")]
    TestKernel(Listed),
    /// Boot it on every machine it must come up on
    #[command(override_usage = "just matrix [--list] [qemu=PATH] [FILTER…]")]
    Matrix(Listed),
    /// Everything at once, for ten minutes if none are given, from a seed that is printed
    #[command(
        override_usage = "just soak [CPUS] [minutes=N] [seed=N] [key=value…]",
        after_help = arguments::help()
    )]
    Soak(Words),
    /// Measure Muster's allocators beside others, in the kernel on its CPUs
    ///
    /// instructions          count them, in the kernel
    /// host|memory|latency   on this host's threads
    /// linux [instructions]  beside kmalloc and alloc_page of Linux 6.1 in the same QEMU,
    ///                       with rounds=, time=, format=, boots=N and linux=bare|default
    #[command(
        verbatim_doc_comment,
        override_usage = "just bench [host|linux|instructions|memory|latency] [CPUS] [key=value…]",
        after_help = arguments::help()
    )]
    Bench(Words),
}

/// Words that the command reads by itself.
#[derive(Args, Debug)]
pub struct Words {
    /// The words.
    pub words: Vec<String>,
}

/// Names of things that can be listed.
#[derive(Args, Debug)]
pub struct Listed {
    /// List the names.
    #[arg(long)]
    pub list: bool,
    /// The words.
    pub words: Vec<String>,
}

fn positive(text: &str) -> Result<u32, String> {
    let form = Form::Number(1, u32::MAX.into());
    let number = text.parse().ok().filter(|_| form.admits(text));
    number.ok_or_else(|| format!("must be {form}"))
}

fn parser() -> clap::Command {
    Command::command().mut_subcommands(|command| command.help_template(HELP))
}

/// Reads the command line. Wherever `help`, `-h` or `--help` stands in it, it asks for help, whatever else
/// is there.
///
/// # Errors
/// If it makes no sense, or asks for help.
pub fn parse(line: impl Iterator<Item = OsString>) -> Result<Command, clap::Error> {
    let mut line: Vec<_> = line.collect();
    let is_help = |word: &OsString| ["help", "-h", "--help"].iter().any(|help| word == help);
    if let Some(index) = line.iter().skip(1).position(is_help) {
        // After the command, if there is one.
        line.truncate(if index == 0 { 1 } else { 2 });
        line.push("--help".into());
    }
    let matches = parser().try_get_matches_from(line)?;
    Command::from_arg_matches(&matches)
}

/// Returns what a wrong command line is answered with: the usage of the command of this name, where its
/// options are listed, and, last, the message, in one line whatever has been typed.
pub fn answer(name: Option<&str>, message: &str) -> String {
    let mut parser = parser();
    parser.build();
    let command = match name.and_then(|name| parser.find_subcommand_mut(name)) {
        Some(command) => command,
        None => &mut parser,
    };
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let options = match command.get_after_help() {
        Some(_) => "       `just arguments` lists the options\n",
        None => "",
    };
    format!("usage: {usage}\n{options}muster: {}", printable(message))
}

/// Escapes the control characters in a text: what was typed neither breaks a line nor moves a cursor.
fn printable(text: &str) -> String {
    let mut printable = String::new();
    for character in text.chars() {
        match character.is_control() {
            true => printable.extend(character.escape_default()),
            false => printable.push(character),
        }
    }
    printable
}

/// Returns in one line what clap finds wrong.
pub fn message(error: &clap::Error) -> String {
    let text = error.to_string();
    let what = text.lines().next().unwrap_or_default();
    let mut what = what.trim_start_matches("error: ").replace('\'', "`");
    if let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg)
        && error.kind() == ErrorKind::MissingRequiredArgument
    {
        what += &format!(" {}", missing.join(" "));
    }
    let kinds = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand];
    match kinds.into_iter().find_map(|kind| error.get(kind)) {
        Some(ContextValue::String(meant)) => format!("{what}, did you mean `{meant}`?"),
        Some(ContextValue::Strings(all)) => match all.first() {
            Some(meant) => format!("{what}, did you mean `{meant}`?"),
            None => what,
        },
        _ => what,
    }
}

/// A word on the command line that its command can't take: what is wrong with it, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub struct WrongWord(pub String);

impl WrongWord {
    /// Describes an unknown name, with `lists` as the way to see all.
    pub fn unknown<'a>(
        what: &str,
        word: &str,
        names: impl IntoIterator<Item = &'a str>,
        lists: &str,
    ) -> Self {
        Self(match nearest(word, names) {
            Some(name) => format!("unknown {what} `{word}`, did you mean `{name}`?"),
            None => format!("unknown {what} `{word}`: {lists}"),
        })
    }
}

impl fmt::Display for WrongWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongWord {}
