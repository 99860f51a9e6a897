//! How a run ended, and what became of the kernel.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use muster_events::Outcome as Status;

use crate::line::{self, Level, LogLine};
use crate::symbols::Symbols;

/// How many of the last lines a failure shows.
pub(super) const TAIL: usize = 30;

/// The kernel's exit statuses.
pub const PASSED: i32 = Status::Passed.status();
const FAILED: i32 = Status::Failed.status();
const REFUSED: i32 = Status::Refused.status();
const PANICKED: i32 = Status::Fault.status();

/// What became of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All it did was right, and it said so in words and by its status.
    Passed,
    /// It found a discrepancy.
    Failed,
    /// It did not start: a loader's answer or a word of the command line is
    /// not what it needs.
    Refused,
    /// A panic or a CPU exception.
    Panicked,
    /// The machine reset: a triple fault.
    Reset,
    /// It did not end in time.
    Hung,
    /// The user ended the run.
    Interrupted,
    /// The emulator itself failed, or ended in a way that the kernel did not ask for.
    Broken,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Refused => "REFUSED to start",
            Self::Panicked => "PANICKED",
            Self::Reset => "RESET",
            Self::Hung => "HUNG",
            Self::Interrupted => "interrupted",
            Self::Broken => "EMULATOR FAILED",
        })
    }
}

/// How the emulator ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Exited(ExitStatus),
    TimedOut(Duration),
    Interrupted,
}

/// What the serial line said, as far as the end of the run needs it.
#[derive(Debug, Default)]
pub(super) struct Record {
    last_of_cpu: BTreeMap<u32, String>,
    pub(super) first_error: Option<String>,
    pub(super) verdict: Option<String>,
    roll: Option<(String, Duration)>,
    pub(super) complaints: Vec<String>,
    tail: VecDeque<String>,
}

impl Record {
    /// Returns whether no CPU has said anything.
    pub(super) fn is_silent(&self) -> bool {
        self.last_of_cpu.is_empty()
    }

    pub(super) fn take(&mut self, text: &str, since_start: Duration) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(text.into());
        // The symbols of what was inlined stand on lines of their own.
        let first = text.lines().next().unwrap_or_default();
        let Some(line) = LogLine::parse(first) else {
            // Our loader says nothing but, in one line, why it does not start the kernel.
            if text.starts_with("loader: ") {
                self.first_error.get_or_insert_with(|| text.into());
            }
            return;
        };
        self.last_of_cpu.insert(line.cpu, text.into());
        if let Some(verdict) = line.message.strip_prefix("verdict: ") {
            self.verdict = Some(verdict.into());
        } else if line.level == Level::Error && !line.message.is_empty() {
            self.first_error.get_or_insert_with(|| line.message.into());
        }
        if let Some(roll) = line.message.strip_prefix("roll: ")
            && self.roll.is_none()
        {
            // What follows a comma is the kernel's own measure.
            let roll = roll.split(',').next().unwrap_or(roll);
            self.roll = Some((roll.into(), since_start));
        }
    }
}

/// A run that is over.
#[derive(Debug)]
pub struct Outcome {
    pub(super) ending: Ending,
    pub(super) record: Record,
    /// From the emulator's start to its end.
    pub elapsed: Duration,
}

impl Outcome {
    /// Makes the outcome of a run with this output on the serial line and this status.
    pub fn of(serial: &[u8], status: ExitStatus, symbols: &Symbols) -> Self {
        let mut record = Record::default();
        for raw in serial.split_inclusive(|&byte| byte == b'\n') {
            record.take(&symbols.annotate(&line::plain(raw)), Duration::ZERO);
        }
        Self {
            ending: Ending::Exited(status),
            record,
            elapsed: Duration::ZERO,
        }
    }

    /// Returns the verdict on the kernel, and why, in words.
    pub fn verdict(&self) -> (Verdict, String) {
        let said = self.record.verdict.as_deref();
        let why = || said.map(|said| said.strip_prefix("failed: ").unwrap_or(said).to_owned());
        let error = || self.record.first_error.clone();
        match self.ending {
            Ending::Interrupted => (Verdict::Interrupted, "by a signal".into()),
            Ending::TimedOut(limit) => (
                Verdict::Hung,
                format!("no end within {} s", limit.as_secs_f64()),
            ),
            Ending::Exited(status) => match (status.code(), said) {
                (Some(PASSED), Some("passed")) => (Verdict::Passed, String::new()),
                (Some(PASSED), Some(said)) => (
                    Verdict::Failed,
                    format!("the status says passed, the log says {said}"),
                ),
                (Some(PASSED), None) => (
                    Verdict::Failed,
                    "the status says passed, but the log has no verdict".into(),
                ),
                (Some(code @ (FAILED | REFUSED | PANICKED)), _) => {
                    let verdict = match code {
                        FAILED => Verdict::Failed,
                        REFUSED => Verdict::Refused,
                        _ => Verdict::Panicked,
                    };
                    let reason = why().or_else(error);
                    (
                        verdict,
                        reason.unwrap_or_else(|| "the log does not say why".into()),
                    )
                }
                (Some(0), _) => (
                    Verdict::Reset,
                    "the machine reset or switched itself off (a triple fault?)".into(),
                ),
                (Some(status), _) => {
                    let complaint = self.record.complaints.last();
                    let why = complaint.map_or(String::new(), |why| format!(": {why}"));
                    (Verdict::Broken, format!("status {status}{why}"))
                }
                (None, _) => {
                    let signal = status.signal().unwrap_or_default();
                    (Verdict::Broken, format!("ended by signal {signal}"))
                }
            },
        }
    }

    /// Returns the kernel's exit status, or the emulator's own, unless it was killed.
    pub fn status(&self) -> Option<i32> {
        match self.ending {
            Ending::Exited(status) => status.code(),
            _ => None,
        }
    }

    /// Returns the roll call's answer, and when it came after the emulator's start.
    pub fn roll(&self) -> Option<(&str, Duration)> {
        self.record
            .roll
            .as_ref()
            .map(|(text, time)| (text.as_str(), *time))
    }

    /// Returns the last line of each CPU.
    pub fn last_lines(&self) -> impl Iterator<Item = &str> {
        self.record.last_of_cpu.values().map(String::as_str)
    }

    /// Returns the last lines of the log.
    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.record.tail.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn an_error_without_words_is_no_reason() {
        let serial = b"   0.1 0 ERROR panic\n   0.2 0 ERROR panic    no memory\r\n";
        let symbols = Symbols::of(Path::new("/nonexistent"));
        let verdict = |serial| {
            let status = ExitStatus::from_raw(PANICKED << 8);
            Outcome::of(serial, status, &symbols).verdict()
        };
        let panicked = |why: &str| (Verdict::Panicked, why.into());
        assert_eq!(verdict(&serial[..]), panicked("no memory"));
        assert_eq!(verdict(&serial[..21]), panicked("the log does not say why"));
    }
}
