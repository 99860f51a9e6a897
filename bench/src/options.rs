//! What a comparison is asked for: `key=value` words, the same in the kernel and on a host.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::workloads::Workload;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Pairs a second.
    Time,
    /// Instructions for a pair, on a machine that counts them.
    Instructions,
}

/// How figures are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// In tables.
    Table,
    /// In lines of JSON.
    Json,
}

/// What a comparison is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The workloads, in this order.
    pub workloads: Vec<Workload>,
    /// The names of the allocators; all, if empty.
    pub allocators: Vec<String>,
    /// The numbers of CPUs.
    pub cpus: Vec<usize>,
    /// How often everything is measured.
    pub rounds: usize,
    /// How long each measurement takes, in milliseconds.
    pub millis: u64,
    /// What is measured.
    pub measure: Measure,
    /// How figures are told.
    pub format: Format,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workloads: Workload::ALL.into(),
            allocators: Vec::new(),
            cpus: [1, 2, 4, 8].into(),
            rounds: 5,
            millis: 100,
            measure: Measure::Time,
            format: Format::Table,
        }
    }
}

/// A word of another key, which someone else may know, or with a value that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordError {
    /// Not a key of the benchmarks'.
    Unknown,
    /// Not a value for this key.
    Value,
}

/// The words, for people.
pub const HELP: [&str; 8] = [
    "bench=all, frames, heaps or some of churn,mixed,larson,",
    "  xfree,sh8bench,mstress,cache-scratch,cache-thrash,",
    "  realloc,large,frame-pair,frame-random,frame-bulk,",
    "  frame-repeat,frame-fragmentation",
    "allocators=NAME,...; on=N,... numbers of CPUs",
    "rounds=N; time=MILLISECONDS of each measurement",
    "measure=time or instructions",
    "format=table or json",
];

impl Options {
    /// Takes note of one word.
    ///
    /// # Errors
    ///
    /// [`WordError`]; nothing has changed then.
    pub fn take(&mut self, key: &str, value: &str) -> Result<(), WordError> {
        let number = |least| {
            let number = value.parse().ok().filter(|&number: &u32| number >= least);
            number.ok_or(WordError::Value)
        };
        match key {
            "bench" => self.workloads = workloads(value).ok_or(WordError::Value)?,
            "allocators" => {
                if value.split(',').any(str::is_empty) {
                    return Err(WordError::Value);
                }
                self.allocators = value.split(',').map(String::from).collect();
            }
            "on" => {
                let numbers = value.split(',').map(|number| number.parse().ok());
                let numbers = numbers.map(|number| number.filter(|&number| number > 0));
                self.cpus = numbers.collect::<Option<_>>().ok_or(WordError::Value)?;
            }
            "rounds" => self.rounds = number(1)? as usize,
            "time" => self.millis = u64::from(number(1)?),
            "measure" => {
                self.measure = match value {
                    "time" => Measure::Time,
                    "instructions" => Measure::Instructions,
                    _ => return Err(WordError::Value),
                }
            }
            "format" => {
                self.format = match value {
                    "table" => Format::Table,
                    "json" => Format::Json,
                    _ => return Err(WordError::Value),
                }
            }
            _ => return Err(WordError::Unknown),
        }
        Ok(())
    }

    /// Whether an allocator of this name is asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.allocators.is_empty() || self.allocators.iter().any(|wanted| wanted == name)
    }
}

fn workloads(list: &str) -> Option<Vec<Workload>> {
    let all = Workload::ALL.into_iter();
    match list {
        "all" => Some(all.collect()),
        "heaps" => Some(all.filter(|workload| !workload.is_of_frames()).collect()),
        "frames" => Some(all.filter(|workload| workload.is_of_frames()).collect()),
        _ => list.split(',').map(Workload::parse).collect(),
    }
}

impl fmt::Display for WordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no word of the benchmarks'",
            Self::Value => "not of its form",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        let mut options = Options::default();
        for (key, value) in [
            ("bench", "mixed,frame-pair"),
            ("allocators", "talc,muster"),
            ("on", "1,8"),
            ("rounds", "3"),
            ("time", "250"),
            ("measure", "instructions"),
            ("format", "json"),
        ] {
            assert_eq!(options.take(key, value), Ok(()), "{key}");
        }
        let expected = Options {
            workloads: [Workload::Mixed, Workload::FramePair].into(),
            allocators: ["talc".into(), "muster".into()].into(),
            cpus: [1, 8].into(),
            rounds: 3,
            millis: 250,
            measure: Measure::Instructions,
            format: Format::Json,
        };
        assert_eq!(options, expected);
        assert!(options.wants("talc") && !options.wants("rlsf"));
        assert!(Options::default().wants("rlsf"));
        assert_eq!(options.take("bench", "frames"), Ok(()));
        assert_eq!(options.workloads.len(), 5);
    }

    #[test]
    fn wrong_words_change_nothing() {
        let mut options = Options::default();
        for (key, value) in [
            ("bench", ""),
            ("bench", "all,mixed"),
            ("bench", "chrun"),
            ("allocators", "talc,"),
            ("on", "0"),
            ("on", "1,"),
            ("rounds", "0"),
            ("rounds", "-1"),
            ("time", "0"),
            ("measure", "heat"),
            ("format", "xml"),
        ] {
            assert_eq!(options.take(key, value), Err(WordError::Value), "{key}");
        }
        assert_eq!(options.take("seconds", "1"), Err(WordError::Unknown));
        assert_eq!(options, Options::default());
    }

    #[test]
    fn the_help_names_every_workload() {
        let help = HELP.concat();
        for workload in Workload::ALL {
            assert!(help.contains(workload.name()), "{}", workload.name());
        }
    }
}
