//! `test-kernel`: boots every case, and compares its end and its words with what is
//! expected.

mod account;
mod emulators;
mod expectation;
mod tally;
mod trial;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, bail};

use self::emulators::{emulators_and_filters, emulators_named, missing};
use self::tally::Counts;
use self::trial::{Builds, TrialResult, examine};
use crate::cases::{self, Case, matrix};
use crate::commands::{Listed, WrongWord};
use crate::screen::Screen;
use crate::session::Interrupt;

/// A machine of the tests has more CPUs than most hosts. Two at a time is what
/// hosts bear whose own CPUs are more than two.
const SIDE_BY_SIDE: usize = 2;

/// Returns the cases of every test run.
///
/// # Errors
/// If the images do not build, or nobody reads the output.
pub fn command(asked: &Listed, interrupt: &Interrupt) -> Result<ExitCode> {
    let cases: Vec<Case> = cases::all().copied().collect();
    run_all("test-kernel", &cases, asked, interrupt)
}

/// Returns the cases that are about machines, those that take minutes included.
///
/// # Errors
/// As [`command`].
pub fn matrix(asked: &Listed, interrupt: &Interrupt) -> Result<ExitCode> {
    let cases: Vec<Case> = matrix::all().collect();
    run_all("matrix", &cases, asked, interrupt)
}

/// Runs, or lists, the cases whose name contains one of the filters among the words, or all.
/// Succeeds if there was one and none failed.
fn run_all(
    recipe: &str,
    cases: &[Case],
    asked: &Listed,
    interrupt: &Interrupt,
) -> Result<ExitCode> {
    let screen = Screen::new();
    let names = cases.iter().map(|case| case.name);
    let (emulators, filters) = emulators_and_filters(&asked.words);
    // Every name contains an empty one, which nobody means.
    let is_of_none = |filter: &&String| {
        filter.is_empty() || !names.clone().any(|name| name.contains(filter.as_str()))
    };
    if let Some(filter) = filters.iter().find(is_of_none) {
        let lists = format!("`just {recipe} --list` lists them");
        let parts = names.flat_map(|name| [name].into_iter().chain(name.split('-')));
        bail!(WrongWord::unknown("boot test", filter, parts, &lists));
    }
    let chosen: Vec<&Case> = cases
        .iter()
        .filter(|case| {
            filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter))
        })
        .collect();
    if asked.list {
        let names: Vec<_> = chosen.iter().map(|case| case.name).collect();
        screen.note(&names.join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let on = match emulators_named(&chosen, &emulators)? {
        names if names.is_empty() => names,
        names => format!(" on {names}"),
    };
    writeln!(io::stdout(), "{} cases{on}", chosen.len())?;
    let builds = Builds::of(&chosen)?;
    let workers = match thread::available_parallelism() {
        Ok(cpus) if cpus.get() > SIDE_BY_SIDE => SIDE_BY_SIDE,
        _ => 1,
    };
    // Relaxed: a count alone; the cases are there before the threads.
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(Counts::default());
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                if interrupt.came() {
                    break;
                }
                let report = match missing(case, &emulators)? {
                    Some(why) => TrialResult::Skipped(why),
                    None => examine(case, &emulators, &builds, interrupt),
                };
                if let Ok(mut counts) = counts.lock() {
                    counts.add(case, &report, screen)?;
                }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .collect::<Result<()>>()
    })?;
    let counts = counts.into_inner().unwrap_or_default();
    writeln!(io::stdout(), "\n{} configurations booted{on}", counts.boots)?;
    writeln!(io::stdout(), "{}", counts.line())?;
    Ok(
        match counts.failed == 0 && counts.passed > 0 && !interrupt.came() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        },
    )
}

#[cfg(test)]
mod example {
    use crate::cases::Case;
    use crate::session::Verdict;

    /// A case for the tests of its parts.
    pub const CASE: Case = Case {
        name: "example",
        arguments: &["2"],
        sweep: None,
        types: &[],
        ends: &[Verdict::Passed],
        says: &["2 of 2", "verdict: passed$"],
        never: &["ERROR"],
        hides: &["secret"],
        shows: &[],
        since_qemu: 0,
        debugged: None,
        limits: &[],
        tells: &["log"],
    };
}

#[cfg(test)]
mod tests {
    use crate::cases;

    #[test]
    fn cases_that_tell_are_asked_to_and_tell_what_there_is() {
        for case in cases::all().filter(|case| !case.tells.is_empty()) {
            assert!(case.arguments.contains(&"output=json"), "{}", case.name);
            for name in case.tells {
                assert!(muster_events::Event::NAMES.contains(name), "{name}");
            }
        }
    }
}
