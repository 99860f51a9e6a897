//! What a comparison is asked for: `key=value` words, the same in the kernel and on a host.

use alloc::string::String;
use alloc::vec::Vec;

use crate::workloads::Workload;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Pairs a second.
    Time,
    /// Instructions for a pair, on a machine that counts them.
    Instructions,
}

/// The format of figures.
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
    /// The format of figures.
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

impl Options {
    /// Sets one option. `None`: there is none of this name, or the value is not of its form; nothing has
    /// changed then.
    pub fn take(&mut self, name: &str, value: &str) -> Option<()> {
        let number = |least| value.parse().ok().filter(|&number: &u32| number >= least);
        match name {
            "bench" => self.workloads = workloads(value)?,
            "allocators" => {
                let are_names = !value.split(',').any(str::is_empty);
                self.allocators =
                    are_names.then(|| value.split(',').map(String::from).collect())?;
            }
            "on" => {
                let numbers = value.split(',').map(|number| number.parse().ok());
                let numbers = numbers.map(|number| number.filter(|&number| number > 0));
                self.cpus = numbers.collect::<Option<_>>()?;
            }
            "rounds" => self.rounds = number(1)? as usize,
            "time" => self.millis = u64::from(number(1)?),
            "measure" => {
                self.measure = match value {
                    "time" => Measure::Time,
                    "instructions" => Measure::Instructions,
                    _ => return None,
                }
            }
            "format" => {
                self.format = match value {
                    "table" => Format::Table,
                    "json" => Format::Json,
                    _ => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Returns whether an allocator of this name is asked for.
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
            assert_eq!(options.take(key, value), Some(()), "{key}");
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
        assert_eq!(options.take("bench", "frames"), Some(()));
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
            assert_eq!(options.take(key, value), None, "{key}");
        }
        assert_eq!(options.take("seconds", "1"), None);
        assert_eq!(options, Options::default());
    }
}
