//! A command line, read.

use core::fmt;
use core::str::FromStr;

use crate::named::named;
use crate::values::{Fault, Heap, LogLevel, Mishap, Output, Reclaim, Step, Workloads};

/// What a run is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The workloads of the stress.
    pub stress: Workloads,
    /// How long the stress lasts, all workloads together, in milliseconds.
    pub stress_millis: u64,
    /// The seed of everything random.
    pub seed: u64,
    /// How many CPUs may come online, at least 1; the loader's list counts if it is shorter.
    pub cpus: usize,
    /// How long the roll call waits for the APs, in milliseconds.
    pub deadline_millis: u64,
    /// The heap that serves the kernel.
    pub heap: Heap,
    /// What becomes of the loader's memory.
    pub reclaim: Reclaim,
    /// What the serial port shows.
    pub log: LogLevel,
    /// What is written besides the log for people.
    pub output: Output,
    /// Whether addresses of the kernel are shown where nothing went wrong.
    pub show_addresses: bool,
    /// A fault to bring about, to see it reported.
    pub fault: Option<Fault>,
    /// Whether to do what is typed at the serial port instead of the stress.
    pub monitor: bool,
    /// What happens to the last AP on its way up, and where.
    pub mishap: Option<(Mishap, Step)>,
    /// The request for frames that is refused, counted from 1.
    pub frames_fail: Option<u64>,
    /// Whether CPUs send each other NMIs during the stress.
    pub nmis: bool,
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
            heap: Heap::Magazines,
            reclaim: Reclaim::Yes,
            log: LogLevel::Info,
            output: Output::Text,
            show_addresses: false,
            fault: None,
            monitor: false,
            mishap: None,
            frames_fail: None,
            nmis: false,
            #[cfg(feature = "bench")]
            bench: None,
        }
    }
}

named! {
    /// What stands before a word's `=`.
    pub(crate) enum Key {
        Stress = "stress",
        Seconds = "seconds",
        Seed = "seed",
        Cpus = "cpus",
        Deadline = "deadline",
        Heap = "heap",
        Reclaim = "reclaim",
        Log = "log",
        Output = "output",
        ShowAddresses = "show-addresses",
        Fault = "fault",
        Monitor = "monitor",
        Die = Mishap::Die.name(),
        Fall = Mishap::Fall.name(),
        Late = Mishap::Late.name(),
        FramesFail = "frames-fail",
        Nmis = "nmis",
    }
}

/// The keys of the benchmarks' words, for a kernel without them.
#[cfg(any(test, not(feature = "bench")))]
const BENCH_KEYS: [&str; 7] = [
    "bench",
    "allocators",
    "on",
    "rounds",
    "time",
    "measure",
    "format",
];

/// A word that the kernel does not understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl core::error::Error for ArgumentError<'_> {}

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
            match Key::parse(key) {
                Some(known) => arguments
                    .take(known, value)
                    .ok_or(ArgumentError::Value { key, value })?,
                None => arguments.take_bench(word, key, value)?,
            }
        }
        Ok(arguments)
    }

    fn take(&mut self, key: Key, value: &str) -> Option<()> {
        match key {
            Key::Stress => self.stress = Workloads::parse(value)?,
            Key::Seconds => self.stress_millis = millis(value)?,
            Key::Seed => self.seed = number(value)?,
            Key::Cpus => self.cpus = number(value).filter(|&cpus| cpus > 0)?,
            Key::Deadline => {
                self.deadline_millis = number(value).filter(|&millis| millis <= LONGEST)?;
            }
            Key::Heap => self.heap = Heap::parse(value)?,
            Key::Reclaim => self.reclaim = Reclaim::parse(value)?,
            Key::Log => self.log = LogLevel::parse(value)?,
            Key::Output => self.output = Output::parse(value)?,
            Key::ShowAddresses => self.show_addresses = yes_or_no(value)?,
            Key::Fault => self.fault = Some(Fault::parse(value)?),
            Key::Monitor => self.monitor = yes_or_no(value)?,
            Key::Die => self.mishap = Some((Mishap::Die, Step::parse(value)?)),
            Key::Fall => self.mishap = Some((Mishap::Fall, Step::parse(value)?)),
            Key::Late => self.mishap = Some((Mishap::Late, Step::parse(value)?)),
            Key::FramesFail => {
                self.frames_fail = Some(number(value).filter(|&request| request > 0)?);
            }
            Key::Nmis => self.nmis = yes_or_no(value)?,
        }
        Some(())
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
        Err(if BENCH_KEYS.contains(&key) {
            ArgumentError::NoBench(key)
        } else {
            ArgumentError::Unknown(word)
        })
    }
}

fn yes_or_no(value: &str) -> Option<bool> {
    match value {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn number<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

/// The longest stress, in seconds: a year. The same number of milliseconds is more than any AP
/// needs to report.
const LONGEST: u64 = 365 * 24 * 60 * 60;

/// Seconds with up to three decimals, in milliseconds: the kernel has no
/// floating point. `None`: it is no such number, or more than a year.
pub fn millis(seconds: &str) -> Option<u64> {
    let (whole, decimals) = seconds.split_once('.').unwrap_or((seconds, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let whole = number(whole).filter(|&whole: &u64| whole <= LONGEST)?;
    let thousandths = decimals
        .bytes()
        .chain(*b"000")
        .take(3)
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(whole * 1000 + thousandths)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::values::Workload;

    #[test]
    fn every_word_is_read() {
        let line = " stress=timer,churn seconds=1.5\tseed=18446744073709551615 cpus=3 \
                    deadline=250 heap=compare reclaim=poison log=trace output=json show-addresses=yes \
                    fault=deaf-ap monitor=yes die=stack fall=block late=online frames-fail=7 nmis=yes ";
        let expected = Arguments {
            stress: Workloads::none()
                .with(Workload::Churn)
                .with(Workload::Timer),
            stress_millis: 1_500,
            seed: u64::MAX,
            cpus: 3,
            deadline_millis: 250,
            heap: Heap::Compare,
            reclaim: Reclaim::Poison,
            log: LogLevel::Trace,
            output: Output::Json,
            show_addresses: true,
            fault: Some(Fault::DeafAp),
            monitor: true,
            mishap: Some((Mishap::Late, Step::Online)),
            frames_fail: Some(7),
            nmis: true,
            #[cfg(feature = "bench")]
            bench: None,
        };
        assert_eq!(Arguments::parse(line), Ok(expected));
        for key in Key::ALL {
            assert!(line.contains(&format!("{}=", key.name())));
        }
    }

    #[test]
    fn nothing_asks_for_nothing_and_the_last_word_counts() {
        assert_eq!(Arguments::parse(""), Ok(Arguments::default()));
        let arguments = Arguments::parse("seed=1 cpus=2 seed=3").unwrap();
        assert_eq!((arguments.seed, arguments.cpus), (3, 2));
    }

    #[test]
    fn every_fault_can_be_asked_for() {
        for &fault in Fault::ALL {
            let line = format!("fault={}", fault.name());
            assert_eq!(Arguments::parse(&line).unwrap().fault, Some(fault));
        }
    }

    #[test]
    fn every_mishap_can_happen_at_every_step() {
        for (&mishap, &step) in Mishap::ALL
            .iter()
            .flat_map(|mishap| Step::ALL.iter().map(move |step| (mishap, step)))
        {
            let line = format!("{}={}", mishap.name(), step.name());
            assert_eq!(
                Arguments::parse(&line).unwrap().mishap,
                Some((mishap, step))
            );
        }
    }

    #[test]
    fn seconds_have_up_to_three_decimals() {
        for (seconds, expected) in [
            ("0", Some(0)),
            ("2", Some(2_000)),
            ("2.", Some(2_000)),
            ("0.5", Some(500)),
            ("1.25", Some(1_250)),
            ("1.005", Some(1_005)),
            ("31536000", Some(31_536_000_000)),
            ("31536001", None),
            ("18446744073709551616", None),
            ("0.0001", None),
            (".5", None),
            ("1.-5", None),
            ("1e3", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(millis(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn a_word_that_is_none_is_named() {
        for word in [
            "stress",
            "",
            "=",
            "=1",
            "speed=1",
            "Seed=1",
            "fault-panic=1",
        ] {
            let error = Arguments::parse(word).err();
            let expected = (!word.is_empty()).then_some(ArgumentError::Unknown(word));
            assert_eq!(error, expected);
        }
        let error = Arguments::parse("seed=1 speed=2 seed=x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown word `speed=2` on the command line"
        );
    }

    #[test]
    fn a_value_that_is_none_is_named_with_its_key() {
        for key in Key::ALL {
            let values: &[&str] = match key {
                Key::Stress => &["all,churn", "chrun"],
                Key::Seconds => &["1e3", "forever"],
                Key::Seed => &["-1", "0x2a", "18446744073709551616"],
                Key::Cpus => &["0", "-1"],
                Key::Deadline => &["31536001", "1.5"],
                Key::Heap => &["both", "list"],
                Key::Reclaim => &["maybe"],
                Key::Log => &["off", "INFO"],
                Key::Output => &["xml", "JSON"],
                Key::ShowAddresses => &["1", "true"],
                Key::Fault => &["panic", "PanicBsp"],
                Key::Monitor => &["true", "YES"],
                Key::Die | Key::Fall | Key::Late => &["parked", "Stack"],
                Key::FramesFail => &["0", "-1"],
                Key::Nmis => &["maybe", "1"],
            };
            for value in values.iter().copied().chain(["", "all=none"]) {
                let line = format!("{}={value}", key.name());
                let error = Arguments::parse(&line).unwrap_err();
                let key = key.name();
                assert_eq!(error, ArgumentError::Value { key, value });
                let words = format!("`{value}` is no value for `{key}`");
                assert_eq!(error.to_string(), words);
            }
        }
    }

    #[cfg(not(feature = "bench"))]
    #[test]
    fn words_of_the_benchmarks_are_told_from_others() {
        for key in BENCH_KEYS {
            let line = format!("{key}=1");
            let error = Arguments::parse(&line).unwrap_err();
            assert_eq!(error, ArgumentError::NoBench(key));
            assert!(error.to_string().contains("just bench"));
        }
    }

    #[cfg(feature = "bench")]
    #[test]
    fn words_of_the_benchmarks_are_handed_on() {
        assert_eq!(Arguments::parse("seed=1").unwrap().bench, None);
        let arguments = Arguments::parse("rounds=3 seed=2 bench=mixed").unwrap();
        let options = arguments.bench.unwrap();
        assert_eq!((options.rounds, arguments.seed), (3, 2));
        assert_eq!(options.workloads, [muster_bench::Workload::Mixed]);
        for key in BENCH_KEYS {
            let line = format!("{key}=");
            let expected = ArgumentError::Value { key, value: "" };
            assert_eq!(Arguments::parse(&line), Err(expected));
            assert!(muster_bench::HELP.concat().contains(&line));
        }
        let keys = muster_bench::HELP.concat().matches('=').count();
        assert_eq!(keys, BENCH_KEYS.len());
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_its_word_named(line in "([a-z]{0,9}=?[-a-z0-9,.]{0,9} ?|\\PC){0,6}") {
            if let Err(error) = Arguments::parse(&line) {
                let message = error.to_string();
                prop_assert!(line.contains(message.split('`').nth(1).unwrap()));
            }
        }

        #[test]
        fn numbers_are_taken_as_they_are(seed: u64, cpus in 1usize.., millis in 0..=LONGEST) {
            let line = format!("seed={seed} cpus={cpus} deadline={millis} seconds={}.{:03}",
                millis / 1000, millis % 1000);
            let arguments = Arguments::parse(&line).unwrap();
            prop_assert_eq!((arguments.seed, arguments.cpus), (seed, cpus));
            prop_assert_eq!(arguments.deadline_millis, millis);
            prop_assert_eq!(arguments.stress_millis, millis);
        }
    }
}
