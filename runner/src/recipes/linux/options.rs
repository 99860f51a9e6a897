//! What is measured, and on which machine.

use std::time::Duration;

use super::MUSTER;
use crate::arguments::{self, ArgumentError, Boot, Build, Run};
use crate::emulators::machine::{Acceleration, Machine};
use crate::figures::Measure;

/// The most CPUs that the module has room for.
const MAX_CPUS: u32 = 64;

/// The workloads of the module, by their names in our own benchmark, and the
/// rounds that it takes.
const BENCHES: &str = "churn,mixed,larson,xfree,frame-pair,frame-bulk";
const WORKLOADS: u32 = 6;
const MAX_ROUNDS: u32 = 99;

/// Linux's command line in any case: its log on the serial line without
/// timestamps, which would tear the figures' lines, and an end, not a hang, if
/// it panics.
const WORDS: &str = "console=ttyS0 loglevel=6 printk.time=0 panic=-1";

/// The memory of the machine: as much as Muster's own benchmark has.
const MEMORY: &str = "1G";

/// How long Linux takes to boot on a slow host, and with instructions counted.
const TIMEOUT: Duration = Duration::from_secs(120);
const COUNTING_TIMEOUT: Duration = Duration::from_secs(600);

/// Linux's options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Without mitigations, and without memory zeroed when it is allocated.
    Bare,
    /// As Debian sets it up.
    Default,
}

impl Setting {
    /// Returns its name, and its words on Linux's command line.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Bare => ("bare", "mitigations=off init_on_alloc=0 init_on_free=0"),
            Self::Default => ("default", ""),
        }
    }
}

/// What to measure, and how.
#[derive(Debug, PartialEq)]
pub struct Options {
    pub measure: Measure,
    pub setting: Setting,
    /// Rounds in a boot.
    rounds: u32,
    /// Milliseconds of a workload in a round.
    time: u32,
    pub boots: u32,
    pub is_json: bool,
    /// The machine.
    pub run: Run,
}

impl Options {
    /// Parses `[instructions] [CPUS] [key=value…]`; options that are not the benchmark's are the
    /// machine's.
    pub fn parse(words: &[String]) -> Result<Self, ArgumentError> {
        let (measure, words) = match words.split_first() {
            Some((first, rest)) if first == "instructions" => (Measure::Instructions, rest),
            _ => (Measure::Pairs, words),
        };
        let mut options = Self {
            measure,
            setting: Setting::Bare,
            rounds: 5,
            time: 60,
            // Instructions are the same in every boot.
            boots: if measure == Measure::Pairs { 3 } else { 1 },
            is_json: false,
            run: Run::default(),
        };
        let mut of_machine = Vec::new();
        let mut seen = Vec::new();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                of_machine.push(word);
                continue;
            };
            let bad = |form: &str| ArgumentError::bad_value(key, value, form);
            let number = |max: u32| arguments::number(key, value, 1..=max.into());
            match (key, value) {
                ("linux", "bare") => options.setting = Setting::Bare,
                ("linux", "default") => options.setting = Setting::Default,
                ("linux", _) => return Err(bad("bare|default")),
                ("rounds", _) => options.rounds = number(MAX_ROUNDS)?,
                ("time", _) => options.time = number(60_000)?,
                ("boots", _) => options.boots = number(99)?,
                ("format", "table") => options.is_json = false,
                ("format", "json") => options.is_json = true,
                ("format", _) => return Err(bad("table|json")),
                _ => {
                    of_machine.push(word);
                    continue;
                }
            }
            if seen.contains(&key) {
                return Err(ArgumentError::Repeated(key.into()));
            }
            seen.push(key);
        }
        options.run = arguments::parse(&of_machine)?;
        if !options.run.words.is_empty() || options.run.boot == Boot::Limine {
            return Err(ArgumentError::Contradiction(
                "Linux takes the machine's arguments alone, and boots without a disc".into(),
            ));
        }
        if options.run.machine == Machine::Microvm {
            return Err(ArgumentError::Contradiction(
                "Debian's Linux knows no clock of machine=microvm".into(),
            ));
        }
        if options.cpus().is_empty() {
            return Err(ArgumentError::Contradiction(
                "smp= must begin with the number of CPUs".into(),
            ));
        }
        if measure == Measure::Instructions {
            options.run.smp = "1".into();
            options.run.acceleration = Acceleration::Icount;
        }
        let is_given = |key| of_machine.iter().any(|word| word.starts_with(key));
        if !is_given("mem=") {
            options.run.memory = MEMORY.into();
        }
        if !is_given("timeout=") {
            options.run.time_limit = Some(options.time_limit());
        }
        Ok(options)
    }

    /// Returns the numbers of CPUs to measure with: powers of two.
    fn cpus(&self) -> Vec<u32> {
        let count = self.run.smp.split(',').next().unwrap_or_default();
        let count: u32 = count.parse().unwrap_or_default();
        let powers = (0..).map(|power| 1 << power);
        powers
            .take_while(|&cpus| cpus <= count.min(MAX_CPUS))
            .collect()
    }

    /// Returns the timeout of the boot.
    fn time_limit(&self) -> Duration {
        if self.measure == Measure::Instructions {
            return COUNTING_TIMEOUT;
        }
        let workloads = self.rounds * WORKLOADS * self.cpus().len() as u32;
        // A host with fewer CPUs than the machine is late with every timer.
        TIMEOUT + 4 * workloads * Duration::from_millis(self.time.into())
    }

    /// Returns Linux's command line; the part after `--` is for init.
    pub fn words(&self) -> String {
        let cpus: Vec<_> = self.cpus().iter().map(u32::to_string).collect();
        let (_, setting) = self.setting.words();
        let what = match self.measure {
            Measure::Pairs => format!("rounds={} time={}", self.rounds, self.time),
            Measure::Instructions => "instructions=1".into(),
        };
        format!("{WORDS} {setting} -- cpus={} {what}", cpus.join(","))
    }

    /// Returns the run of our own kernel that does the same.
    pub fn muster(&self) -> Run {
        let cpus: Vec<_> = self.cpus().iter().map(u32::to_string).collect();
        let mut words = vec![
            format!("bench={BENCHES}"),
            format!("allocators={MUSTER}"),
            "format=json".into(),
        ];
        words.extend(match self.measure {
            Measure::Pairs => vec![
                format!("on={}", cpus.join(",")),
                format!("rounds={}", self.rounds),
                format!("time={}", self.time),
            ],
            Measure::Instructions => vec!["measure=instructions".into()],
        });
        Run {
            build: Build::Bench,
            words,
            ..self.run.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, ArgumentError> {
        let words: Vec<_> = words.iter().map(|word| String::from(*word)).collect();
        Options::parse(&words)
    }

    #[test]
    fn nothing_given_is_the_default() {
        let options = parse(&[]).unwrap();
        assert_eq!((options.rounds, options.time, options.boots), (5, 60, 3));
        assert_eq!(options.cpus(), [1, 2, 4, 8]);
        let machine = Run {
            time_limit: options.run.time_limit,
            memory: "1G".into(),
            ..Run::default()
        };
        assert_eq!(options.run, machine);
        let words = options.words();
        assert!(words.contains(" mitigations=off init_on_alloc=0 init_on_free=0 "));
        assert!(
            words.ends_with(" -- cpus=1,2,4,8 rounds=5 time=60"),
            "{words}"
        );
    }

    #[test]
    fn every_argument_is_taken() {
        let options = parse(&[
            "12",
            "linux=default",
            "rounds=3",
            "time=20",
            "boots=1",
            "format=json",
            "mem=2G",
            "timeout=9",
        ])
        .unwrap();
        assert_eq!(options.cpus(), [1, 2, 4, 8]);
        assert_eq!(options.run.memory, "2G");
        assert_eq!(options.run.time_limit, Some(Duration::from_secs(9)));
        assert!(options.is_json && options.boots == 1);
        assert!(!options.words().contains("mitigations"));
        assert!(options.words().ends_with(" rounds=3 time=20"));
        let muster = options.muster();
        assert_eq!((muster.build, muster.memory.as_str()), (Build::Bench, "2G"));
        let words = [
            "bench=churn,mixed,larson,xfree,frame-pair,frame-bulk",
            "allocators=muster",
            "format=json",
            "on=1,2,4,8",
            "rounds=3",
            "time=20",
        ];
        assert_eq!(muster.words, words);
        assert_eq!(arguments::parse(&muster.words).unwrap().words, words);
    }

    #[test]
    fn instructions_are_counted_on_one_cpu() {
        let options = parse(&["instructions", "8", "linux=default"]).unwrap();
        assert_eq!(options.run.smp, "1");
        assert_eq!(options.run.acceleration, Acceleration::Icount);
        assert!(options.words().ends_with(" -- cpus=1 instructions=1"));
        assert_eq!((options.boots, options.setting), (1, Setting::Default));
    }

    #[test]
    fn wrong_arguments_are_told_apart() {
        for words in [
            "linux=fast",
            "rounds=0",
            "rounds=100",
            "time=x",
            "boots=-1",
            "boots=+1",
            "format=xml",
        ] {
            assert!(
                matches!(parse(&[words]), Err(ArgumentError::Option(_))),
                "{words}"
            );
        }
        for words in [
            &["seconds=3"][..],
            &["boot=limine"],
            &["machine=microvm"],
            &["bench=churn"],
            &["smp=cpus=8"],
        ] {
            assert!(
                matches!(parse(words), Err(ArgumentError::Contradiction(_))),
                "{words:?}"
            );
        }
        assert_eq!(
            parse(&["time=1", "time=2"]),
            Err(ArgumentError::Repeated("time".into()))
        );
        assert_eq!(
            parse(&["instruction"]),
            Err(ArgumentError::Option("unknown option `instruction`".into()))
        );
    }
}
