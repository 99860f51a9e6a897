//! `report`: boots, stresses and measures, and has it drawn as one page.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::arguments::{self, ArgumentError};
use crate::boot_log;
use crate::commands::WrongWord;
use crate::emulators::requirements;
use crate::images;
use crate::recipes::run;
use crate::screen::Screen;
use crate::session::{Interrupt, Verdict};
use crate::toolchain;
use crate::workspace::{self, shown};

/// The word that asks for much less of everything.
const QUICK: &str = "quick";

/// The word that asks for instructions in the place of time.
const COUNTED: &str = "measure=instructions";

/// What is asked of the kernel under stress: as much as a run has without a word.
const STRESS: [&str; 1] = ["output=json"];
const QUICK_STRESS: [&str; 2] = ["output=json", "seconds=1"];

/// What is measured: of the heaps what most kernels do most, and of the frames.
const BENCH: [&str; 2] = [
    "output=json",
    "bench=churn,mixed,larson,xfree,frame-pair,frame-bulk",
];
const QUICK_BENCH: [&str; 4] = [
    "output=json",
    "bench=mixed,frame-pair",
    "rounds=1",
    "time=20",
];

/// The arguments of the two runs.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    stress: Vec<String>,
    bench: Vec<String>,
}

impl Report {
    fn parse(words: &[String]) -> Result<Self, ArgumentError> {
        arguments::leave_to("report", &["monitor", "output", "events"], words)?;
        let is_quick = words.iter().any(|word| word == QUICK);
        // Instructions are counted once, on one CPU.
        let is_counted = words.iter().any(|word| word == COUNTED);
        let is_of_time = |word: &String| {
            let names = ["on=", "rounds=", "time="];
            names.iter().any(|name| word.starts_with(name))
        };
        let words: Vec<_> = words
            .iter()
            .filter(|word| *word != QUICK)
            .cloned()
            .collect();
        let (stress, bench) = arguments::part(&words);
        let own = match is_quick {
            true => (&QUICK_STRESS[..], &QUICK_BENCH[..]),
            false => (&STRESS[..], &BENCH[..]),
        };
        let stress = arguments::with_defaults(own.0, &stress);
        let on = on(&arguments::parse(&stress)?.smp);
        let own: Vec<_> = own
            .1
            .iter()
            .map(|word| (*word).to_owned())
            .chain(on)
            .filter(|word| !(is_counted && is_of_time(word)))
            .collect();
        let bench = arguments::with_defaults(&own, &bench);
        arguments::parse(&bench)?;
        Ok(Self { stress, bench })
    }
}

/// Returns the numbers of CPUs to measure on: powers of two, and all. None for a machine of which QEMU alone knows
/// how many it has.
fn on(smp: &str) -> Option<String> {
    let all: u32 = smp.split(',').next()?.parse().ok()?;
    let powers = (0..).map(|power| 1 << power);
    let powers = powers.take_while(|&cpus| cpus < all);
    let numbers: Vec<_> = powers.chain([all]).map(|cpus| cpus.to_string()).collect();
    Some(format!("on={}", numbers.join(",")))
}

/// Runs what the arguments ask for, and writes `target/report.html` of the runs' events, however they
/// ended. Success only if both passed. Where the arguments are files of events, it is written of these.
///
/// # Errors
/// If the arguments make no sense, there is nothing to boot, QEMU does not start, or the page can't be
/// written.
pub fn command(words: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    if let Some(files) = files(words) {
        if let Some(missing) = files.iter().find(|file| !file.is_file()) {
            let why = "a run with output=json leaves one, and says where";
            bail!(WrongWord(format!("no file `{}`: {why}", shown(missing))));
        }
        write(&files)?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = Report::parse(words)?;
    let folder = workspace::target().join("report");
    let mut files = Vec::new();
    let mut worst = Verdict::Passed;
    for (name, words) in [("stress", &report.stress), ("bench", &report.bench)] {
        let folder = folder.join(name);
        let run = arguments::parse(words)?;
        requirements::check(&run)?;
        let verdict = run::watch(&run, &images::build(run.build)?, &folder, interrupt)?;
        if verdict == Verdict::Interrupted {
            return Ok(run::code(verdict));
        }
        if worst == Verdict::Passed {
            worst = verdict;
        }
        files.push(boot_log::events(&folder));
    }
    write(&files)?;
    Ok(run::code(worst))
}

/// Returns the files of events that the words are, if they are.
fn files(words: &[String]) -> Option<Vec<PathBuf>> {
    let are_files = !words.is_empty() && words.iter().all(|word| word.ends_with(".jsonl"));
    let here = |word| std::path::absolute(word).ok();
    are_files.then(|| words.iter().filter_map(here).collect())
}

/// Has the page drawn by the program in `view/`, which is built first if need be, and prints where it
/// is.
fn write(files: &[PathBuf]) -> Result<()> {
    let page = workspace::target().join("report.html");
    let status = toolchain::viewer("muster-report")?
        .arg(&page)
        .args(files)
        .status();
    if !status.context("cannot start Cargo")?.success() {
        bail!("{} was not written", shown(&page));
    }
    Ok(Screen::new().note(&format!("        report: {}", shown(&page)))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Report, ArgumentError> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        Report::parse(&words)
    }

    #[test]
    fn each_run_has_its_own_words_and_the_machine_s() {
        let report = of(&["6", "rounds=2", "seconds=3", "mem=2G", "bench=churn"]).unwrap();
        assert_eq!(report.stress, ["output=json", "6", "seconds=3", "mem=2G"]);
        let bench = [
            "output=json",
            "on=1,2,4,6",
            "6",
            "rounds=2",
            "mem=2G",
            "bench=churn",
        ];
        assert_eq!(report.bench, bench);
    }

    #[test]
    fn a_quick_one_does_less_unless_told_otherwise() {
        let report = of(&["quick", "2", "time=5"]).unwrap();
        assert_eq!(report.stress, ["output=json", "seconds=1", "2"]);
        assert!(report.bench.contains(&"rounds=1".into()));
        assert!(report.bench.contains(&"on=1,2".into()));
        assert!(!report.bench.contains(&"time=20".into()));
    }

    #[test]
    fn instructions_are_counted_without_options_of_time() {
        for words in [
            &["measure=instructions"][..],
            &["quick", "measure=instructions"],
        ] {
            let bench = of(words).unwrap().bench;
            assert!(bench.contains(&"measure=instructions".into()), "{bench:?}");
        }
        assert!(of(&["measure=instructions", "rounds=2"]).is_err());
    }

    #[test]
    fn every_number_of_cpus_is_measured_with() {
        assert_eq!(on("1").unwrap(), "on=1");
        assert_eq!(on("8").unwrap(), "on=1,2,4,8");
        assert_eq!(on("12,sockets=2").unwrap(), "on=1,2,4,8,12");
        assert_eq!(on("cpus=4"), None);
    }

    #[test]
    fn files_are_drawn_as_they_are() {
        let of =
            |words: &[&str]| files(&words.iter().map(|word| (*word).into()).collect::<Vec<_>>());
        assert_eq!(of(&["/a/b.jsonl", "/c.jsonl"]).unwrap().len(), 2);
        assert_eq!(of(&["/a/b.jsonl", "8"]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn what_makes_no_sense_is_an_error_before_anything_runs() {
        for words in [
            &["slow"][..],
            &["time=much"],
            &["4", "8"],
            &["stress=bench"],
            &["monitor=yes"],
            &["output=text"],
        ] {
            assert!(of(words).is_err(), "{words:?}");
        }
    }
}
