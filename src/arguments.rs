//! The kernel's command line: `key=value` words.

use core::fmt;

use log::LevelFilter;

use crate::fault::Fault;
use crate::heap;
use crate::reclaim;
use crate::stress::{Workload, Workloads};

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// The workloads of the stress.
    pub stress: Workloads,
    /// How long the stress lasts, all workloads together, in milliseconds.
    pub stress_millis: u64,
    /// The seed of everything random.
    pub seed: u64,
    /// How many CPUs may come online; the loader's list counts if it is shorter.
    pub cpus: usize,
    /// How long the roll call waits for the APs, in milliseconds.
    pub deadline_millis: u64,
    /// The heap that serves the kernel.
    pub heap: heap::Choice,
    /// What becomes of the loader's memory.
    pub reclaim: reclaim::Choice,
    /// What the serial port shows.
    pub log: LevelFilter,
    /// A fault to bring about, to see it reported.
    pub fault: Option<Fault>,
    /// The benchmarks to run instead of the stress.
    #[cfg(feature = "bench")]
    pub bench: Option<muster_bench::Options>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            stress: Workloads::all(),
            stress_millis: 8_000,
            seed: 1,
            cpus: usize::MAX,
            deadline_millis: 2_000,
            heap: heap::Choice::Only(heap::Kind::Magazines),
            reclaim: reclaim::Choice::Yes,
            log: LevelFilter::Info,
            fault: None,
            #[cfg(feature = "bench")]
            bench: None,
        }
    }
}

/// The words the kernel knows, for people.
const HELP: [&str; 14] = [
    "the words are:",
    "stress=all, none, or some of",
    "  churn,mixed,handover,growth,interrupts,timer,",
    "  calls,mappings,exhaustion",
    "seconds=N, of all workloads together; seed=N",
    "cpus=N, at most; deadline=MILLISECONDS, for the APs",
    "heap=magazines, linked-list or compare",
    "reclaim=yes, no or poison, the loader's memory",
    "log=error, warn, info, debug or trace",
    "fault=panic-bsp, panic-ap, panic-two, panic-all,",
    "  null-read, stack-overflow, write-text,",
    "  execute-heap, unmapped-read, protected-write,",
    "  mapping-overflow, deaf-ap, lock-order,",
    "  call-locked or panic-in-call",
];

/// Those of a kernel with the benchmarks.
#[cfg(feature = "bench")]
const BENCH_HELP: [&str; 8] = muster_bench::HELP;
#[cfg(not(feature = "bench"))]
const BENCH_HELP: [&str; 0] = [];

/// The words the kernel knows, line by line.
pub fn help() -> impl Iterator<Item = &'static str> {
    HELP.into_iter().chain(BENCH_HELP)
}

/// A word that the kernel does not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgumentError<'a> {
    /// The key is not known, or the word has no `=`.
    Unknown(&'a str),
    /// The key is known, the value is not of its form.
    Value {
        /// The key.
        key: &'a str,
        /// The value as given.
        value: &'a str,
    },
    /// A word of the benchmarks', which this kernel is built without.
    #[cfg(not(feature = "bench"))]
    NoBench(&'a str),
}

impl fmt::Display for ArgumentError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "unknown word `{word}` on the command line"),
            Self::Value { key, value } => write!(f, "`{value}` is no value for `{key}`"),
            #[cfg(not(feature = "bench"))]
            Self::NoBench(key) => write!(
                f,
                "`{key}` is for a kernel with the benchmarks in it, and this one is without: \
                 build it with `--features bench`, as `just bench` does"
            ),
        }
    }
}

impl Arguments {
    /// Reads a command line. Of a key given twice the last one counts.
    ///
    /// # Errors
    ///
    /// The first word that is not understood.
    pub fn parse(line: &str) -> Result<Self, ArgumentError<'_>> {
        let mut arguments = Self::default();
        for word in line.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').ok_or(ArgumentError::Unknown(word))?;
            let bad = || ArgumentError::Value { key, value };
            match key {
                "stress" => arguments.stress = workloads(value).ok_or_else(bad)?,
                "seconds" => arguments.stress_millis = millis(value).ok_or_else(bad)?,
                "seed" => arguments.seed = value.parse().map_err(|_| bad())?,
                "cpus" => {
                    let cpus = value.parse().map_err(|_| bad())?;
                    arguments.cpus = Some(cpus).filter(|&cpus| cpus > 0).ok_or_else(bad)?;
                }
                "deadline" => {
                    let millis = value.parse().map_err(|_| bad())?;
                    arguments.deadline_millis = Some(millis)
                        .filter(|&millis| millis <= LONGEST)
                        .ok_or_else(bad)?;
                }
                "log" => {
                    let level: LevelFilter = value.parse().map_err(|_| bad())?;
                    arguments.log = Some(level)
                        .filter(|&level| level != LevelFilter::Off)
                        .ok_or_else(bad)?;
                }
                "heap" => arguments.heap = heap::Choice::parse(value).ok_or_else(bad)?,
                "reclaim" => {
                    arguments.reclaim = reclaim::Choice::parse(value).ok_or_else(bad)?;
                }
                "fault" => arguments.fault = Some(Fault::parse(value).ok_or_else(bad)?),
                _ => arguments.take_bench(word, key, value)?,
            }
        }
        Ok(arguments)
    }

    /// Takes note of a word that can only be the benchmarks'.
    #[cfg(feature = "bench")]
    fn take_bench<'a>(
        &mut self,
        word: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> Result<(), ArgumentError<'a>> {
        let mut options = self.bench.take().unwrap_or_default();
        options.take(key, value).map_err(|error| match error {
            muster_bench::WordError::Unknown => ArgumentError::Unknown(word),
            muster_bench::WordError::Value => ArgumentError::Value { key, value },
        })?;
        self.bench = Some(options);
        Ok(())
    }

    /// Tells a word that could be the benchmarks' from any other.
    #[cfg(not(feature = "bench"))]
    fn take_bench<'a>(
        &self,
        word: &'a str,
        key: &'a str,
        _value: &str,
    ) -> Result<(), ArgumentError<'a>> {
        Err(match key {
            "bench" | "allocators" | "on" | "rounds" | "time" | "measure" | "format" => {
                ArgumentError::NoBench(key)
            }
            _ => ArgumentError::Unknown(word),
        })
    }
}

fn workloads(list: &str) -> Option<Workloads> {
    match list {
        "all" => Some(Workloads::all()),
        "none" => Some(Workloads::none()),
        _ => list
            .split(',')
            .try_fold(Workloads::none(), |workloads, name| {
                Some(workloads.with(Workload::parse(name)?))
            }),
    }
}

/// The longest stress, in seconds: a year.
const LONGEST: u64 = 365 * 24 * 60 * 60;

/// Seconds with up to three decimals, in milliseconds: the kernel has no
/// floating point.
fn millis(seconds: &str) -> Option<u64> {
    let (whole, decimals) = seconds.split_once('.').unwrap_or((seconds, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let whole = whole.parse().ok().filter(|&whole: &u64| whole <= LONGEST)?;
    let thousandths = decimals
        .bytes()
        .chain(*b"000")
        .take(3)
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(whole * 1000 + thousandths)
}
