//! A command line, read.

use crate::options::{BENCH, KERNEL, OptionError, OptionInfo, SELFTEST};
#[cfg(feature = "selftest")]
use crate::selftest::SelfTest;
use crate::values::{Heap, LogLevel, Output, Reclaim};

/// What a run is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
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
    /// What the self-test is asked to do.
    #[cfg(feature = "selftest")]
    pub selftest: SelfTest,
    /// The benchmarks to run instead of the stress.
    #[cfg(feature = "bench")]
    pub bench: Option<muster_bench::Options>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            cpus: usize::MAX,
            deadline_millis: 2_000,
            heap: Heap::Magazines,
            reclaim: Reclaim::Yes,
            log: LogLevel::Info,
            output: Output::Text,
            show_addresses: false,
            #[cfg(feature = "selftest")]
            selftest: SelfTest::default(),
            #[cfg(feature = "bench")]
            bench: None,
        }
    }
}

impl Arguments {
    /// Reads a command line, up to what is the [client's](client_words). Of an option given twice the last one
    /// counts.
    ///
    /// # Errors
    ///
    /// [`OptionError`], of the first word that is not understood.
    pub fn parse(line: &str) -> Result<Self, OptionError<'_>> {
        let mut arguments = Self::default();
        for word in kernel_words(line) {
            let (option, value) = find(word)?;
            arguments
                .take(option.name, value)
                .ok_or(OptionError::Value { option, value })?;
        }
        Ok(arguments)
    }

    fn take(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "cpus" => self.cpus = value.parse().ok()?,
            "deadline" => self.deadline_millis = value.parse().ok()?,
            "heap" => self.heap = Heap::parse(value)?,
            "reclaim" => self.reclaim = Reclaim::parse(value)?,
            "log" => self.log = LogLevel::parse(value)?,
            "output" => self.output = Output::parse(value)?,
            "show-addresses" => self.show_addresses = value == "yes",
            _ => self.take_selftest(name, value)?,
        }
        Some(())
    }

    #[cfg(feature = "selftest")]
    fn take_selftest(&mut self, name: &str, value: &str) -> Option<()> {
        match is_in(BENCH, name) {
            true => self.take_bench(name, value),
            false => self.selftest.take(name, value),
        }
    }

    #[cfg(not(feature = "selftest"))]
    fn take_selftest(&self, _name: &str, _value: &str) -> Option<()> {
        None
    }

    #[cfg(feature = "bench")]
    fn take_bench(&mut self, name: &str, value: &str) -> Option<()> {
        let options = self.bench.get_or_insert_default();
        options.take(name, value)
    }

    #[cfg(all(feature = "selftest", not(feature = "bench")))]
    fn take_bench(&self, _name: &str, _value: &str) -> Option<()> {
        None
    }
}

/// The word of a command line after which all others are the client's, whatever they are.
const CLIENT: &str = "--";

/// Returns the words of a command line that are the kernel's.
fn kernel_words(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split_ascii_whitespace();
    words.take_while(|&word| word != CLIENT)
}

/// Returns the words of a command line that are the client's: all behind the first `--`.
pub fn client_words(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split_ascii_whitespace();
    words.skip_while(|&word| word != CLIENT).skip(1)
}

/// The tables of the options that a kernel with these features has.
const TABLES: &[&[OptionInfo]] = &[
    KERNEL,
    #[cfg(feature = "selftest")]
    SELFTEST,
    #[cfg(feature = "bench")]
    BENCH,
];

/// Finds an option, and distinguishes one that this kernel is built without from a slip.
fn find(word: &str) -> Result<(&'static OptionInfo, &str), OptionError<'_>> {
    OptionInfo::find(word, TABLES).map_err(|error| match error {
        OptionError::Unknown { name, .. } if is_in(SELFTEST, name) => OptionError::NoSelfTest(name),
        OptionError::Unknown { name, .. } if is_in(BENCH, name) => OptionError::NoBench(name),
        other => other,
    })
}

fn is_in(table: &[OptionInfo], name: &str) -> bool {
    table.iter().any(|option| option.name == name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    #[cfg(feature = "selftest")]
    use crate::values::{ApFault, Fault, Step, Workload, Workloads};

    #[test]
    fn the_kernels_own_options_are_read_without_the_selftest() {
        let line = "cpus=3 deadline=250 heap=compare reclaim=poison log=trace output=json show-addresses=yes";
        let read = Arguments::parse(line).unwrap();
        assert_eq!((read.deadline_millis, read.show_addresses), (250, true));
    }

    #[test]
    fn what_is_behind_two_dashes_is_the_clients() {
        let line = "cpus=2 -- cpus=3 colour=red  -- -v";
        assert_eq!(Arguments::parse(line).unwrap().cpus, 2);
        let words: Vec<_> = client_words(line).collect();
        assert_eq!(words, ["cpus=3", "colour=red", "--", "-v"]);
        for line in ["", "cpus=2", "cpus=2 --", "--"] {
            assert_eq!(client_words(line).next(), None);
        }
    }

    #[cfg(feature = "selftest")]
    #[test]
    fn every_word_is_read() {
        let line = " stress=timer,churn seconds=1.5\tseed=18446744073709551615 cpus=3 \
                    deadline=250 heap=compare reclaim=poison log=trace output=json show-addresses=yes \
                    fault=unresponsive-ap monitor=yes ap-halt=stack ap-fault=block ap-delay=online frames-fail=7 nmis=yes ";
        let expected = Arguments {
            cpus: 3,
            deadline_millis: 250,
            heap: Heap::Compare,
            reclaim: Reclaim::Poison,
            log: LogLevel::Trace,
            output: Output::Json,
            show_addresses: true,
            selftest: SelfTest {
                stress: Workloads::none()
                    .with(Workload::Churn)
                    .with(Workload::Timer),
                stress_millis: 1_500,
                seed: u64::MAX,
                fault: Some(Fault::UnresponsiveAp),
                monitor: true,
                ap_fault: Some((ApFault::Delay, Step::Online)),
                frames_fail: Some(7),
                nmis: true,
            },
            #[cfg(feature = "bench")]
            bench: None,
        };
        assert_eq!(Arguments::parse(line), Ok(expected));
        for option in [KERNEL, SELFTEST].concat() {
            assert!(line.contains(&format!("{}=", option.name)));
        }
    }

    #[test]
    fn nothing_asks_for_nothing_and_the_last_word_counts() {
        assert_eq!(Arguments::parse(""), Ok(Arguments::default()));
        let arguments = Arguments::parse("deadline=1 cpus=2 deadline=3").unwrap();
        assert_eq!((arguments.deadline_millis, arguments.cpus), (3, 2));
    }

    #[cfg(feature = "selftest")]
    #[test]
    fn every_fault_can_be_asked_for() {
        for &fault in Fault::ALL {
            let line = format!("fault={}", fault.name());
            assert_eq!(Arguments::parse(&line).unwrap().selftest.fault, Some(fault));
        }
    }

    #[cfg(feature = "selftest")]
    #[test]
    fn every_fault_of_an_ap_can_be_injected_at_every_step() {
        for (&ap_fault, &step) in ApFault::ALL
            .iter()
            .flat_map(|ap_fault| Step::ALL.iter().map(move |step| (ap_fault, step)))
        {
            let line = format!("{}={}", ap_fault.name(), step.name());
            assert_eq!(
                Arguments::parse(&line).unwrap().selftest.ap_fault,
                Some((ap_fault, step))
            );
        }
    }

    #[test]
    fn a_word_that_is_no_option_is_named() {
        for word in ["", "=", "=1", "log1=1", "Log=1", "log-level=1", "log"] {
            let error = Arguments::parse(word).err();
            assert_eq!(error.is_none(), word.is_empty(), "{word}");
        }
        let error = Arguments::parse("cpus=1 cpu=2 cpus=x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown option `cpu`, did you mean `cpus`?"
        );
        let error = Arguments::parse("mem=2G").unwrap_err();
        assert!(error.to_string().starts_with("unknown option `mem`"));
    }

    #[test]
    fn every_option_refuses_what_is_not_of_its_form() {
        for option in TABLES.iter().copied().flatten() {
            if is_in(BENCH, option.name) {
                continue;
            }
            let values: &[&str] = match option.name {
                "stress" => &["all,churn", "chrun", "churn,"],
                "seconds" => &["1e3", "forever", "0"],
                "seed" => &["-1", "0x2a", "18446744073709551616"],
                "cpus" | "frames-fail" => &["0", "-1"],
                "deadline" => &["31536001", "1.5"],
                "heap" => &["both", "list"],
                "log" => &["off", "INFO"],
                "output" => &["xml", "JSON"],
                _ => &["maybe", "1"],
            };
            for &value in values.iter().chain(&["", "all=none"]) {
                let line = format!("{}={value}", option.name);
                let error = Arguments::parse(&line).unwrap_err();
                assert_eq!(error, OptionError::Value { option, value });
            }
        }
    }

    #[cfg(not(feature = "selftest"))]
    #[test]
    fn options_of_the_self_test_are_distinguished_from_others() {
        for option in SELFTEST {
            let line = format!("{}=1", option.name);
            let error = Arguments::parse(&line).unwrap_err();
            assert_eq!(error, OptionError::NoSelfTest(option.name));
            assert!(error.to_string().contains("--features selftest"));
        }
    }

    #[cfg(not(feature = "bench"))]
    #[test]
    fn options_of_the_benchmarks_are_told_from_others() {
        for option in BENCH {
            let line = format!("{}=1", option.name);
            let error = Arguments::parse(&line).unwrap_err();
            assert_eq!(error, OptionError::NoBench(option.name));
            assert!(error.to_string().contains("just bench"));
        }
    }

    #[cfg(feature = "bench")]
    #[test]
    fn options_of_the_benchmarks_are_passed_on() {
        assert_eq!(Arguments::parse("seed=1").unwrap().bench, None);
        let arguments = Arguments::parse("rounds=3 seed=2 bench=mixed").unwrap();
        let options = arguments.bench.unwrap();
        assert_eq!((options.rounds, arguments.selftest.seed), (3, 2));
        assert_eq!(options.workloads, [muster_bench::Workload::Mixed]);
        let line = "bench=frames allocators=talc,rlsf on=1,8 rounds=3 time=4294967295 \
                    measure=instructions format=json";
        assert!(Arguments::parse(line).is_ok());
        for option in BENCH {
            assert!(
                line.contains(&format!("{}=", option.name)),
                "{}",
                option.name
            );
            let line = format!("{}=", option.name);
            let expected = OptionError::Value { option, value: "" };
            assert_eq!(Arguments::parse(&line), Err(expected));
        }
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
        fn numbers_are_taken_as_they_are(cpus in 1usize.., millis in 1..=31_536_000_u64) {
            let arguments = Arguments::parse(&format!("cpus={cpus} deadline={millis}")).unwrap();
            prop_assert_eq!((arguments.cpus, arguments.deadline_millis), (cpus, millis));
        }

        #[cfg(feature = "selftest")]
        #[test]
        fn numbers_of_the_self_test_are_taken_as_they_are(seed: u64, millis in 1..=31_536_000_u64) {
            let line = format!("seed={seed} seconds={}.{:03}", millis / 1000, millis % 1000);
            let selftest = Arguments::parse(&line).unwrap().selftest;
            prop_assert_eq!((selftest.seed, selftest.stress_millis), (seed, millis));
        }
    }
}
