//! The kernel's events: a file that begins with a line of the runner's own, is followed while it grows,
//! and must be of the schema to the last line.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use muster_events::{Event, Outcome, Record, Run, SCHEMA};

use crate::workspace::{root, shown};

/// How often a file that grows is looked at.
const TICK: Duration = Duration::from_millis(20);

/// Begins a file with what the kernel can't know: the command by which a person has the run again, and
/// what it runs on.
///
/// # Errors
/// If the file cannot be written.
pub fn begin(file: &Path, command: &str, qemu: &Command) -> Result<()> {
    let words = [qemu.get_program()].into_iter().chain(qemu.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let record = Record {
        us: 0,
        by: None,
        event: Event::Run(Run {
            schema: SCHEMA,
            command: command.into(),
            qemu: typed(words.iter().map(AsRef::as_ref)).into(),
            qemu_version: version_of(qemu).unwrap_or_default().into(),
            host_cpu: host_cpu().unwrap_or_default().into(),
            host_cpus: thread::available_parallelism().map_or(1, usize::from) as u32,
            started: humantime::format_rfc3339_seconds(SystemTime::now())
                .to_string()
                .into(),
            revision: revision().unwrap_or_default().into(),
        }),
    };
    let line = serde_json::to_string(&record).context("cannot tell of the run")?;
    fs::write(file, line + "\n").with_context(|| format!("cannot write {}", shown(file)))
}

/// Formats words as a person types them in a shell: quoted where they must be.
pub fn typed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let is_plain = |word: &str| {
        let is_harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"=,.:/@%+-_".contains(&byte);
        !word.is_empty() && word.bytes().all(is_harmless)
    };
    let words = words.into_iter().map(|word| match is_plain(word) {
        true => word.into(),
        // A NUL can't be typed, nor be an argument.
        false => shlex::try_quote(word).unwrap_or_default(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns QEMU's version, of `QEMU emulator version 7.2.22 (Debian …)`.
fn version_of(qemu: &Command) -> Option<String> {
    let output = Command::new(qemu.get_program())
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (_, version) = text.lines().next()?.split_once("version ")?;
    Some(version.into())
}

/// Returns Git's description of the source.
fn revision() -> Option<String> {
    let output = Command::new("git")
        .args([
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ])
        .current_dir(root())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let told = output.status.success().then_some(output.stdout)?;
    Some(String::from_utf8(told).ok()?.trim_end().into())
}

/// Returns the name of the host's CPU.
fn host_cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().into())
}

/// Gives each line of a file that grows, until it is over and all are given. A line without its end is
/// not one yet.
///
/// # Errors
/// If the file cannot be read, or the first one of `each`.
pub fn follow(
    file: &Path,
    is_over: &AtomicBool,
    mut each: impl FnMut(&str) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = BufReader::new(File::open(file)?);
    let mut line = Vec::new();
    loop {
        // Looked at before the file: what is written until it is over is then there to be read.
        let is_last = is_over.load(Ordering::Acquire);
        while file.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            each(String::from_utf8_lossy(&line).trim_end())?;
            line.clear();
        }
        if is_last {
            return Ok(());
        }
        thread::sleep(TICK);
    }
}

/// What is wrong with a file of events.
#[derive(Debug)]
pub enum EventsError {
    /// A line, counted from 1, is not of the schema.
    Malformed(usize, serde_json::Error),
    /// A line, counted from 1, is not written as the kernel writes it.
    Spelling(usize),
    /// The first line is not the runner's, or the second not the kernel's.
    Beginning,
    /// The last line is not the verdict, or there is another one.
    NoEnd,
    /// The verdict's outcome or status, and QEMU's exit status.
    Verdict(Outcome, i32, Option<i32>),
}

impl fmt::Display for EventsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(number, error) => write!(f, "event {number} is none: {error}"),
            Self::Spelling(number) => {
                write!(f, "event {number} is not what its own type would write")
            }
            Self::Beginning => f.write_str("the events don't begin with run and start"),
            Self::NoEnd => f.write_str("the events don't end with the one verdict"),
            Self::Verdict(outcome, told, status) => write!(
                f,
                "the verdict's event says {outcome:?} and status {told}, QEMU's is {status:?}"
            ),
        }
    }
}

/// Checks a whole file of events against the schema, and its verdict against QEMU's exit status.
/// Returns them.
///
/// # Errors
/// [`EventsError`], the first thing that is.
pub fn check(text: &str, status: Option<i32>) -> Result<Vec<Record<'static>>, EventsError> {
    let mut records = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let record =
            muster_events::read(line).map_err(|error| EventsError::Malformed(number, error))?;
        if serde_json::to_string(&record).ok().as_deref() != Some(line) {
            return Err(EventsError::Spelling(number));
        }
        records.push(record);
    }
    let events: Vec<_> = records.iter().map(|record| &record.event).collect();
    let [Event::Run(_), Event::Start(_), .., last] = events[..] else {
        return Err(EventsError::Beginning);
    };
    let is_verdict = |event: &&&Event<'_>| matches!(event, Event::Verdict(_));
    let Event::Verdict(verdict) = last else {
        return Err(EventsError::NoEnd);
    };
    if events.iter().filter(is_verdict).count() != 1 || !text.ends_with('\n') {
        return Err(EventsError::NoEnd);
    }
    if Some(verdict.status) != status || verdict.outcome.status() != verdict.status {
        return Err(EventsError::Verdict(
            verdict.outcome,
            verdict.status,
            status,
        ));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const RUN: &str = r#"{"us":0,"by":null,"event":"run","schema":1,"command":"just run-smp","qemu":"qemu","qemu_version":"7","host_cpu":"x","host_cpus":2,"started":"","revision":""}"#;
    const START: &str = r#"{"us":1,"by":0,"event":"start","schema":1,"version":"0","loader":"l","command_line":"","cpus":1,"usable_bytes":1,"before_entry_us":1,"tsc_hz":1,"tsc_invariant":true,"features":{"no_execute":true,"gigabyte_pages":true,"smep":true,"smap":true,"umip":true,"physical_bits":40,"levels":4}}"#;
    const LOG: &str = r#"{"us":2,"by":3,"event":"log","level":"info","target":"roll","text":"hi"}"#;
    const PASSED: &str =
        r#"{"us":3,"by":0,"event":"verdict","outcome":"passed","status":33,"reason":null}"#;

    fn checked(lines: &[&str], status: Option<i32>) -> String {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        match check(&text, status) {
            Ok(records) => format!("{} events", records.len()),
            Err(wrong) => wrong.to_string(),
        }
    }

    #[test]
    fn whole_files_are_right_or_their_fault_is_told() {
        let right = [RUN, START, LOG, PASSED];
        assert_eq!(checked(&right, Some(33)), "4 events");
        assert!(checked(&right, Some(35)).contains("status 33"));
        assert!(checked(&right, None).contains("None"));
        assert!(checked(&right[1..], Some(33)).contains("begin"));
        assert!(checked(&[RUN, START, LOG], Some(33)).contains("end"));
        assert!(checked(&[RUN, START, PASSED, PASSED], Some(33)).contains("end"));
        assert!(check(&right.join("\n"), Some(33)).is_err());
        let unknown = LOG.replace("\"text\"", "\"more\":1,\"text\"");
        let missing = LOG.replace("\"target\":\"roll\",", "");
        let event = LOG.replace("\"log\"", "\"gol\"");
        let cut = &LOG[..40];
        let mixed = [&LOG[..40], PASSED].concat();
        for wrong in [&unknown, &missing, &event, cut, &mixed, "", "words"] {
            let said = checked(&[RUN, START, wrong, PASSED], Some(33));
            assert!(said.starts_with("event 3 is none"), "{wrong}: {said}");
        }
        let spaced = LOG.replace(",\"by\"", ", \"by\"");
        let said = checked(&[RUN, START, &spaced, PASSED], Some(33));
        assert!(said.contains("own type"), "{said}");
        let other = PASSED.replace("passed", "failed");
        assert!(checked(&[RUN, START, &other], Some(33)).contains("Failed"));
    }

    #[test]
    fn words_can_be_typed_again() {
        let words = [
            "just", "mem=2G", "a b", "it's", "", "$x", "-cpu", "max,-nx", "é",
        ];
        let line = typed(words);
        assert!(line.starts_with("just mem=2G 'a b' "), "{line}");
        let again: Vec<_> = words.iter().map(|&word| word.into()).collect();
        assert_eq!(shlex::split(&line), Some(again));
    }

    #[test]
    fn a_run_begins_with_its_command() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("events.jsonl");
        let mut qemu = Command::new("/nonexistent/qemu");
        qemu.args(["-append", "a b"]);
        begin(&file, "just run-smp 2 output=json", &qemu).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let record = muster_events::read(text.trim_end()).unwrap();
        let Event::Run(run) = record.event else {
            panic!("{text}");
        };
        assert_eq!(run.command, "just run-smp 2 output=json");
        assert_eq!(run.qemu, "/nonexistent/qemu -append 'a b'");
        assert!(run.host_cpus > 0);
    }

    #[test]
    fn a_file_is_followed_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        let is_over = AtomicBool::new(false);
        let mut lines = Vec::new();
        follow(&path, &is_over, |line| {
            lines.push(line.to_owned());
            if lines.len() == 1 {
                // The rest comes when the first was seen.
                file.write_all(b"o\nthree\nhalf")?;
                is_over.store(true, Ordering::Release);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        let refused = follow(&path, &is_over, |_| Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
