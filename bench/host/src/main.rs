//! Allocators side by side on this host, threads for CPUs:
//! `muster-bench-host host|memory|latency [key=value…]`.
//!
//! To count instructions from outside, with `valgrind --tool=callgrind
//! --toggle-collect='*heaps::churn*'` say: `muster-bench-host count ALLOCATOR WORKLOAD STEPS`.

mod contenders;
mod latency;
mod memory;
mod threads;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use muster_arguments::{BENCH, OptionInfo};
use muster_bench::report::Console;
use muster_bench::{Course, Measure, Options, Room, Workload, compare};

use threads::Threads;

/// The exit status for arguments that make no sense, as the runner has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // Where nobody reads the output any more, this ends as other programs do.
    // SAFETY: nothing else runs yet, and the default action is no handler that could be at fault.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let words: Vec<_> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster: {error}");
            ExitCode::from(USAGE)
        }
    }
}

fn run(words: &[String]) -> Result<(), String> {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match &words[..] {
        ["memory", rest @ ..] => memory::compare(&options(rest)?),
        ["latency", rest @ ..] => latency::compare(&options(rest)?),
        // For `memory`, which asks for it in a process of its own.
        ["resident", name] => {
            let bytes = memory::resident(name).ok_or(format!("{name}: out of memory"))?;
            println!("{bytes}");
        }
        ["count", allocator, workload, steps] => count(allocator, workload, steps)?,
        ["host", rest @ ..] => {
            let options = options(rest)?;
            if options.measure == Measure::Instructions {
                return Err("instructions are counted in the kernel".into());
            }
            let frames = contenders::MusterFrameArena::new();
            let contenders = contenders::all(&frames);
            let contenders: Vec<_> = contenders.iter().map(|contender| &**contender).collect();
            let machine = Threads::new(options.cpus.iter().copied().max().unwrap_or(1));
            compare(&machine, &contenders, &options, &mut Screen)
                .map_err(|problem| problem.to_string())?;
        }
        _ => return Err("the first word must be host, memory or latency".into()),
    }
    Ok(())
}

/// Reads the options: by default on as many threads as the host has CPUs, and on one.
fn options(words: &[&str]) -> Result<Options, String> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options::default();
    options.cpus.retain(|&number| number <= cpus);
    options.rounds = 7;
    for word in words {
        let (option, value) =
            OptionInfo::find(word, &[BENCH]).map_err(|error| error.to_string())?;
        let taken = options.take(option.name, value);
        taken.ok_or(format!("{word}: must be {}", option.form))?;
    }
    Ok(options)
}

fn count(allocator: &str, workload: &str, steps: &str) -> Result<(), String> {
    let workload = Workload::parse(workload).ok_or(format!("{workload}: no such workload"))?;
    let steps = steps
        .parse()
        .map_err(|_| format!("{steps}: not a number"))?;
    let frames = contenders::MusterFrameArena::new();
    let contenders = contenders::all(&frames);
    let contender = contenders
        .iter()
        .find(|contender| contender.name() == allocator && contender.takes_part(workload))
        .ok_or(format!("{allocator}: no such allocator"))?;
    let course = Course {
        machine: &Threads::new(1),
        room: &Room::new(1),
        cpus: 1,
        limit: muster_bench::meter::Limit::Steps(steps),
    };
    contender.run(workload, &course);
    Ok(())
}

/// Standard output, and progress for whoever watches.
struct Screen;

impl Console for Screen {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        println!("{text}");
    }

    fn progress(&mut self, text: fmt::Arguments<'_>) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
            std::io::stderr().flush().ok();
        }
    }
}
