//! `test`: boots every case, and compares its end and its words with what is
//! expected.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use muster_events::Record;
use regex_lite::Regex;

use crate::account;
use crate::arguments::{self, Build, Events};
use crate::bochs;
use crate::boot_log::{self, Which};
use crate::camera::Camera;
use crate::cases::{self, Case, Debugged, Limit, matrix};
use crate::commands::{Listed, WrongWord};
use crate::debugger::{self, NoGdb};
use crate::emulator::{Emulator, Kind};
use crate::events;
use crate::images::{self, Images};
use crate::limine::NotInstalled;
use crate::line::Line;
use crate::outputs;
use crate::run;
use crate::screen::Screen;
use crate::script::Script;
use crate::session::{Interrupt, Typist, Verdict};
use crate::workspace::{self, shown};

/// A machine of the tests has more CPUs than most hosts. Two at a time is what
/// hosts bear whose own CPUs are more than two.
const SIDE_BY_SIDE: usize = 2;

/// What came of a case.
enum Report {
    /// What it took, how many boots it was, and figures to tell.
    Ok {
        time: Duration,
        boots: usize,
        figures: Vec<String>,
    },
    Skipped(String),
    Failed {
        why: String,
        /// What to type to have it again.
        arguments: Vec<String>,
        log: PathBuf,
        tail: Vec<String>,
    },
}

/// The cases of every test run.
///
/// # Errors
/// If the images do not build, or nobody reads the output.
pub fn command(asked: &Listed, interrupt: &Interrupt) -> Result<ExitCode> {
    let cases: Vec<Case> = cases::all().copied().collect();
    run_all("test-kernel", &cases, asked, interrupt)
}

/// The cases that are about machines, those that take minutes included.
///
/// # Errors
/// As [`command`].
pub fn matrix(asked: &Listed, interrupt: &Interrupt) -> Result<ExitCode> {
    let cases: Vec<Case> = matrix::all().collect();
    run_all("matrix", &cases, asked, interrupt)
}

/// Splits the words of `test` into the arguments that name emulators, which every case gets, and the
/// filters.
fn emulators_and_filters(words: &[String]) -> (Vec<String>, Vec<String>) {
    words
        .iter()
        .cloned()
        .partition(|word| word.starts_with("qemu=") || word.starts_with("bochs="))
}

/// Selects of the arguments that name emulators those that a case gets.
fn emulators_of(case: &Case, emulators: &[String]) -> Vec<String> {
    let prefix = match case.arguments.contains(&ON) {
        true => "bochs=",
        false => "qemu=",
    };
    let all = emulators.iter();
    all.filter(|word| word.starts_with(prefix))
        .cloned()
        .collect()
}

/// Names the emulators that boot the cases, with their versions; one that is not installed is left out,
/// for its cases are skipped.
///
/// # Errors
/// If QEMU is to boot one and is not installed, or a program is another one.
fn emulators_named(cases: &[&Case], emulators: &[String]) -> Result<String> {
    let mut names = Vec::new();
    for on_bochs in [false, true] {
        let mut cases = cases.iter();
        let Some(case) = cases.find(|case| case.arguments.contains(&ON) == on_bochs) else {
            continue;
        };
        let machine = on_bochs.then_some(ON.to_owned());
        let words: Vec<_> = (emulators_of(case, emulators).into_iter())
            .chain(machine)
            .collect();
        match Emulator::of(&arguments::parse(&words)?) {
            Ok(emulator) => names.push(emulator.to_string()),
            Err(error) if error.is::<NotInstalled>() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names.join(" and "))
}

/// The argument of a case on Bochs.
const ON: &str = "machine=bochs";

/// Runs, or lists, the cases whose name contains one of the filters among the words, or all. Success
/// if there was one and none failed.
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
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(Counts::default());
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                if interrupt.came() {
                    break;
                }
                let report = match missing(case, &emulators)? {
                    Some(why) => Report::Skipped(why),
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

#[derive(Debug, Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Boots of the cases that passed.
    boots: usize,
}

impl Counts {
    fn add(&mut self, case: &Case, report: &Report, screen: Screen) -> Result<()> {
        match report {
            Report::Ok {
                time,
                boots,
                figures,
            } => {
                self.passed += 1;
                self.boots += boots;
                writeln!(
                    io::stdout(),
                    "ok      {:<28} {:>6.2} s",
                    case.name,
                    time.as_secs_f64()
                )?;
                for figure in figures {
                    writeln!(io::stdout(), "        {figure}")?;
                }
            }
            Report::Skipped(why) => {
                self.skipped += 1;
                writeln!(io::stdout(), "skipped {:<28} {why}", case.name)?;
            }
            Report::Failed {
                why,
                arguments,
                log,
                tail,
            } => {
                self.failed += 1;
                screen.news(false, &format!("FAILED  {:<28} {why}", case.name))?;
                for text in tail {
                    screen.line(text)?;
                }
                let arguments = events::typed(arguments.iter().map(String::as_str));
                writeln!(io::stdout(), "        the whole log: {}", shown(log))?;
                writeln!(io::stdout(), "        once more: just run-smp {arguments}")?;
            }
        }
        Ok(())
    }

    /// The closing line.
    fn line(&self) -> String {
        let line = format!("{} passed, {} failed", self.passed, self.failed);
        match self.skipped {
            0 => line,
            skipped => format!("{line}, {skipped} skipped"),
        }
    }
}

/// Returns why the emulator that is to boot a case can't, if it can't.
///
/// # Errors
/// If QEMU is not installed, or the program is another one.
fn missing(case: &Case, emulators: &[String]) -> Result<Option<String>> {
    if case.since_qemu == 0 {
        return Ok(None);
    }
    let run = arguments::parse(&emulators_of(case, emulators))?;
    Ok(unsupported(case, &Emulator::qemu(&run.qemu)?))
}

/// Returns why this emulator can't boot the case, if it can't.
fn unsupported(case: &Case, emulator: &Emulator) -> Option<String> {
    let since = case.since_qemu;
    (emulator.major() < since)
        .then(|| format!("needs QEMU {since} or newer (qemu=PATH); this is {emulator}"))
}

/// Boots a case, as often as it has arguments, and compares.
fn examine(case: &Case, emulators: &[String], builds: &Builds, interrupt: &Interrupt) -> Report {
    let folder = workspace::target().join("test-log").join(case.name);
    let (mut time, mut boots, mut figures) = (Duration::ZERO, 0, Vec::new());
    let mut unseen = case.ends.to_vec();
    let emulators = emulators_of(case, emulators);
    for mut arguments in case.boots() {
        arguments.extend_from_slice(&emulators);
        let failed = |why, tail| Report::Failed {
            why,
            arguments: arguments.clone(),
            log: folder.join("all.log"),
            tail,
        };
        let trial = match attempt(case, &arguments, builds, &folder, interrupt) {
            Ok(trial) => trial,
            Err(error) if error.is::<NoGdb>() => {
                return Report::Skipped("no GDB (gdb)".into());
            }
            Err(error) => {
                return match error.downcast_ref::<NotInstalled>() {
                    Some(NotInstalled::Limine(_)) => {
                        Report::Skipped("no Limine files (LIMINE_DIR)".into())
                    }
                    Some(old @ NotInstalled::OldLimine { .. }) => Report::Skipped(old.to_string()),
                    Some(NotInstalled::LimineTool) => Report::Skipped("no limine tool".into()),
                    Some(NotInstalled::Ovmf) => Report::Skipped("no UEFI firmware (ovmf)".into()),
                    Some(NotInstalled::Bochs(_)) => Report::Skipped("no Bochs (bochs)".into()),
                    Some(NotInstalled::BochsFirmware) => {
                        Report::Skipped("no BIOS of Bochs (bochsbios, vgabios)".into())
                    }
                    Some(NotInstalled::BochsDisplay) => {
                        Report::Skipped("no terminal display of Bochs (bochs-term)".into())
                    }
                    None => failed(format!("{error:#}"), Vec::new()),
                };
            }
        };
        if let Some(why) = trial.mismatch {
            return failed(why, trial.tail);
        }
        time += trial.time;
        boots += 1;
        figures = trial.figures;
        unseen.retain(|&verdict| verdict != trial.verdict);
    }
    if let Some(verdict) = unseen.first() {
        return Report::Failed {
            why: format!("none of {boots} boots {verdict}"),
            arguments: (case.arguments.iter().copied().map(str::to_owned))
                .chain(emulators.iter().cloned())
                .collect(),
            log: folder.join("all.log"),
            tail: Vec::new(),
        };
    }
    Report::Ok {
        time,
        boots,
        figures,
    }
}

/// What came of one boot.
struct Trial {
    verdict: Verdict,
    mismatch: Option<String>,
    time: Duration,
    figures: Vec<String>,
    /// The last lines, and if it hung the last line of each CPU.
    tail: Vec<String>,
}

fn attempt(
    case: &Case,
    arguments: &[String],
    builds: &Builds,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<Trial> {
    let mut run = arguments::parse(arguments)?;
    let camera = (!case.shows.is_empty()).then(|| Camera::new(folder));
    let camera = camera.transpose()?;
    (run.qemu_arguments).extend(camera.iter().flat_map(Camera::arguments));
    let images = builds
        .images(run.build)
        .context("its kernel is not built")?;
    let mut script = Script::new(case.types, camera.as_ref())?;
    let typist = (!case.types.is_empty()).then_some(&mut script as &mut dyn Typist);
    let show = &mut |_: &str| Ok(());
    let kernel = &images.kernel;
    let boot = |run: &_| run::boot(run, images, folder, interrupt, show, typist, None);
    let booted = debugger::alongside(case.asks(), &mut run, kernel, folder, boot);
    let (outcome, cpus) = booted?;
    let mut journals = cpus
        .into_iter()
        .map(|cpu| boot_log::read(folder, Which::Cpu(cpu)))
        .collect::<Result<String>>()?;
    let text = fs::read_to_string(folder.join("all.log")).context("cannot read the log")?;
    let (verdict, reason) = outcome.verdict();
    let hung = verdict == Verdict::Hung;
    let last = outcome.last_lines().filter(|_| hung);
    let unsaid = script
        .missing()
        .map(|says| format!("the next line waits for {says}"));
    let wrong_events = match run.events {
        Events::Nowhere => None,
        _ => {
            let text = fs::read_to_string(boot_log::events(folder));
            let text = text.context("cannot read the events")?;
            journals += &text;
            match events::check(&text, outcome.status()) {
                Ok(records) => {
                    let account = account::check_events(&records).err();
                    untold(case, &records).or(account.map(|wrong| format!("{wrong:#}")))
                }
                Err(wrong) => Some(wrong.to_string()),
            }
        }
    };
    let unshown = match &camera {
        Some(camera) => unmatched(case.shows, &camera.text()?)?,
        None => None,
    };
    let unshown = unshown.map(|pattern| format!("the screen does not show {pattern}"));
    let unanswered = match &case.debugged {
        Some(debugged) => unanswered(debugged, folder, &text)?,
        None => None,
    };
    let mismatch = mismatch(case, verdict, &reason, &text, &journals)?;
    let account = match verdict {
        Verdict::Passed => account::check_log(&text).err(),
        _ => None,
    };
    let account = account.map(|wrong| format!("the account: {wrong:#}"));
    let complaint = match run.emulator {
        Kind::Bochs => bochs::complaint(folder)?,
        Kind::Qemu => None,
    };
    let complaint = complaint.map(|line| format!("Bochs says {line}"));
    let all = [
        mismatch,
        unsaid,
        unshown,
        unanswered,
        wrong_events,
        account,
        complaint,
    ];
    let all = all.into_iter().flatten();
    let why = all.collect::<Vec<_>>().join("; ");
    let mismatch = match why.is_empty() {
        true => outputs::stale(case.name, folder)?,
        false => Some(why),
    };
    Ok(Trial {
        verdict,
        mismatch,
        time: outcome.elapsed,
        figures: figures(case, &text).collect(),
        tail: outcome.tail().chain(last).map(str::to_owned).collect(),
    })
}

/// The kernels that the chosen cases boot.
struct Builds {
    plain: Option<Images>,
    bench: Option<Images>,
}

impl Builds {
    fn of(cases: &[&Case]) -> Result<Self> {
        let mut runs = Vec::new();
        for arguments in cases.iter().flat_map(|case| case.boots()) {
            runs.push(arguments::parse(&arguments)?.build);
        }
        let made = |build| match runs.contains(&build) {
            true => images::build(build).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            bench: made(Build::Bench)?,
            plain: made(Build::Plain)?,
        })
    }

    fn images(&self, build: Build) -> Option<&Images> {
        match build {
            Build::Plain => self.plain.as_ref(),
            Build::Bench => self.bench.as_ref(),
        }
    }
}

/// How many instructions the log says that Muster takes for a pair.
fn instructions(bench: &str, log: &str) -> Option<f64> {
    log.lines().find_map(|text| {
        let mut words = Line::parse(text)?.message.split_whitespace();
        (words.next()? == bench && words.next()? == "muster").then_some(())?;
        words.next()?.parse().ok()
    })
}

/// The figures that the case has limits for, in words.
fn figures<'a>(case: &'a Case, log: &'a str) -> impl Iterator<Item = String> + 'a {
    case.limits.iter().filter_map(|Limit { bench, most }| {
        let taken = instructions(bench, log)?;
        Some(format!(
            "{bench:<12} {taken:>8.2} instructions a pair, at most {most}"
        ))
    })
}

/// An event that the run should have told and did not.
fn untold(case: &Case, records: &[Record<'_>]) -> Option<String> {
    let is_told = |name: &str| records.iter().any(|record| record.event.name() == name);
    let untold = case.tells.iter().find(|name| !is_told(name))?;
    Some(format!("no event of the run is a {untold}"))
}

/// What GDB should have said and did not.
fn unanswered(debugged: &Debugged, folder: &Path, log: &str) -> Result<Option<String>> {
    let words =
        fs::read_to_string(folder.join(debugger::WORDS)).context("cannot read GDB's words")?;
    if let Some(pattern) = unmatched(debugged.answers, &words)? {
        return Ok(Some(format!("GDB does not say {pattern}")));
    }
    for pattern in debugged.agrees {
        let pattern = Regex::new(pattern)?;
        let said: Vec<_> = (log.lines())
            .filter_map(|line| Some(pattern.captures(line)?.get(1)?.as_str()))
            .collect();
        if said.is_empty() {
            return Ok(Some(format!("the log does not say {pattern}")));
        }
        if let Some(other) = said.into_iter().find(|said| !words.contains(said)) {
            return Ok(Some(format!("the log says {other}, and GDB does not")));
        }
    }
    Ok(None)
}

/// The first of the regular expressions that the text does not match.
fn unmatched<'a>(patterns: &[&'a str], text: &str) -> Result<Option<&'a str>> {
    for pattern in patterns {
        if !Regex::new(pattern)?.is_match(text) {
            return Ok(Some(pattern));
        }
    }
    Ok(None)
}

/// The first way in which a run was not as expected.
fn mismatch(
    case: &Case,
    verdict: Verdict,
    reason: &str,
    log: &str,
    journals: &str,
) -> Result<Option<String>> {
    if !case.ends.contains(&verdict) {
        let ends: Vec<_> = case.ends.iter().map(Verdict::to_string).collect();
        let ends = ends.join(" or ");
        return Ok(Some(format!("{verdict} instead of {ends}: {reason}")));
    }
    if let Some(pattern) = unmatched(case.says, log)? {
        return Ok(Some(format!("the log does not say {pattern}")));
    }
    for pattern in case.never {
        if let Some(found) = Regex::new(pattern)?.find(log) {
            let line = log
                .get(..found.start())
                .map_or(0, |before| before.lines().count());
            return Ok(Some(format!(
                "the log says {pattern} (line {})",
                line.max(1)
            )));
        }
    }
    for pattern in case.hidden() {
        let pattern = Regex::new(pattern)?;
        for (what, text) in [("the log", log), ("a journal", journals)] {
            if let Some(line) = text.lines().find(|line| pattern.is_match(line)) {
                return Ok(Some(format!("{what} shows what it should hide: {line}")));
            }
        }
    }
    for Limit { bench, most } in case.limits {
        match instructions(bench, log) {
            Some(taken) if taken <= *most => {}
            Some(taken) => {
                return Ok(Some(format!(
                    "{bench} takes {taken:.2} instructions a pair, more than {most}"
                )));
            }
            None => {
                return Ok(Some(format!("the log has no instructions for {bench}")));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: Case = Case {
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

    fn compared(verdict: Verdict, log: &str) -> Option<String> {
        mismatch(&CASE, verdict, "why", log, "").unwrap()
    }

    #[test]
    fn end_and_words_must_both_be_right() {
        assert_eq!(compared(Verdict::Passed, "2 of 2\nverdict: passed"), None);
        assert!(
            compared(Verdict::Hung, "2 of 2\nverdict: passed")
                .unwrap()
                .contains("HUNG")
        );
        assert!(
            compared(Verdict::Passed, "verdict: passed")
                .unwrap()
                .contains("2 of 2")
        );
        let said = compared(Verdict::Passed, "2 of 2\n ERROR\nverdict: passed").unwrap();
        assert!(said.contains("ERROR (line 2)"), "{said}");
    }

    #[test]
    fn what_is_hidden_is_in_no_journal_either() {
        let log = "2 of 2\nverdict: passed";
        let compared = |log, journals| mismatch(&CASE, Verdict::Passed, "", log, journals).unwrap();
        assert_eq!(compared(log, "nothing\nis here"), None);
        let said = compared(log, "nothing\na secret is").unwrap();
        assert!(
            said.contains("a journal") && said.contains("a secret is"),
            "{said}"
        );
        let said = compared("a secret\n2 of 2\nverdict: passed", "").unwrap();
        assert!(said.contains("the log"), "{said}");
    }

    #[test]
    fn instructions_have_a_limit() {
        let case = Case {
            says: &[],
            limits: &[Limit {
                bench: "mixed",
                most: 60.0,
            }],
            ..CASE
        };
        let log = |number| {
            format!(
                "  1.0 0 INFO  bench   mixed   talc   12.00\n\
                 \x20 1.1 0 INFO  bench   mixed   muster   {number}\n"
            )
        };
        let compared = |log: &str| mismatch(&case, Verdict::Passed, "", log, "").unwrap();
        assert_eq!(compared(&log("60.00")), None);
        assert!(compared(&log("60.01")).unwrap().contains("60.01"));
        assert!(compared(&log("")).unwrap().contains("no instructions"));
        assert_eq!(figures(&case, &log("59.25")).count(), 1);
    }

    #[test]
    fn emulators_are_no_filters() {
        let words = ["panic", "qemu=/opt/qemu", "bochs=/b", "cpus-8"].map(str::to_owned);
        let (emulators, filters) = emulators_and_filters(&words);
        assert_eq!(emulators, ["qemu=/opt/qemu", "bochs=/b"]);
        assert_eq!(filters, ["panic", "cpus-8"]);
        assert_eq!(emulators_of(&CASE, &emulators), ["qemu=/opt/qemu"]);
        for case in cases::bochs::CASES {
            assert_eq!(
                emulators_of(case, &emulators),
                ["bochs=/b"],
                "{}",
                case.name
            );
        }
    }

    #[test]
    fn what_an_emulator_is_too_old_for_is_skipped_with_the_reason() {
        let seven = Emulator::read("QEMU emulator version 7.2.22 (Debian)").unwrap();
        assert_eq!(unsupported(&CASE, &seven), None);
        let case = Case {
            since_qemu: 9,
            ..CASE
        };
        let why = unsupported(&case, &seven).unwrap();
        assert!(
            why.contains("QEMU 9") && why.contains("QEMU 7.2.22"),
            "{why}"
        );
        let ten = Emulator::read("QEMU emulator version 10.0.13").unwrap();
        assert_eq!(unsupported(&case, &ten), None);
    }

    #[test]
    fn events_are_missed() {
        let line = r#"{"us":0,"by":0,"event":"log","level":"info","target":"a","text":"b"}"#;
        let told = [muster_events::read(line).unwrap()];
        assert_eq!(untold(&CASE, &told), None);
        assert!(untold(&CASE, &[]).unwrap().contains("log"));
    }

    #[test]
    fn cases_that_tell_are_asked_to_and_tell_what_there_is() {
        for case in cases::all().filter(|case| !case.tells.is_empty()) {
            assert!(case.arguments.contains(&"output=json"), "{}", case.name);
            for name in case.tells {
                assert!(muster_events::Event::NAMES.contains(name), "{name}");
            }
        }
    }

    #[test]
    fn the_closing_line_counts() {
        let counts = Counts {
            passed: 3,
            failed: 1,
            skipped: 0,
            boots: 5,
        };
        assert_eq!(counts.line(), "3 passed, 1 failed");
        assert_eq!(
            Counts {
                skipped: 2,
                ..counts
            }
            .line(),
            "3 passed, 1 failed, 2 skipped"
        );
    }
}
