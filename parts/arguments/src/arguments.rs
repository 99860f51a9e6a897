//! A command line, read.

use crate::form::millis;
use crate::options::{BENCH, KERNEL, OptionError, OptionInfo};
use crate::values::{ApFault, Fault, Heap, LogLevel, Output, Reclaim, Step, Workloads};

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
    /// A fault to inject, to see it reported.
    pub fault: Option<Fault>,
    /// Whether to do what is typed at the serial port instead of the stress.
    pub monitor: bool,
    /// The fault of the last AP during bring-up, and its phase.
    pub ap_fault: Option<(ApFault, Step)>,
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
            ap_fault: None,
            frames_fail: None,
            nmis: false,
            #[cfg(feature = "bench")]
            bench: None,
        }
    }
}

impl Arguments {
    /// Reads a command line. Of an option given twice the last one counts.
    ///
    /// # Errors
    ///
    /// [`OptionError`], of the first word that is not understood.
    pub fn parse(line: &str) -> Result<Self, OptionError<'_>> {
        let mut arguments = Self::default();
        for word in line.split_ascii_whitespace() {
            let (option, value) = find(word)?;
            arguments
                .take(option.name, value)
                .ok_or(OptionError::Value { option, value })?;
        }
        Ok(arguments)
    }

    fn take(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "stress" => self.stress = Workloads::parse(value)?,
            "seconds" => self.stress_millis = millis(value)?,
            "seed" => self.seed = value.parse().ok()?,
            "cpus" => self.cpus = value.parse().ok()?,
            "deadline" => self.deadline_millis = value.parse().ok()?,
            "heap" => self.heap = Heap::parse(value)?,
            "reclaim" => self.reclaim = Reclaim::parse(value)?,
            "log" => self.log = LogLevel::parse(value)?,
            "output" => self.output = Output::parse(value)?,
            "show-addresses" => self.show_addresses = value == "yes",
            "fault" => self.fault = Some(Fault::parse(value)?),
            "monitor" => self.monitor = value == "yes",
            "frames-fail" => self.frames_fail = Some(value.parse().ok()?),
            "nmis" => self.nmis = value == "yes",
            _ => match ApFault::parse(name) {
                Some(ap_fault) => self.ap_fault = Some((ap_fault, Step::parse(value)?)),
                None => self.take_bench(name, value)?,
            },
        }
        Some(())
    }

    #[cfg(feature = "bench")]
    fn take_bench(&mut self, name: &str, value: &str) -> Option<()> {
        let options = self.bench.get_or_insert_default();
        options.take(name, value)
    }

    #[cfg(not(feature = "bench"))]
    fn take_bench(&self, _name: &str, _value: &str) -> Option<()> {
        None
    }
}

#[cfg(feature = "bench")]
fn find(word: &str) -> Result<(&'static OptionInfo, &str), OptionError<'_>> {
    OptionInfo::find(word, &[KERNEL, BENCH])
}

/// Finds an option of the kernel's, and distinguishes one of the benchmarks' from a slip.
#[cfg(not(feature = "bench"))]
fn find(word: &str) -> Result<(&'static OptionInfo, &str), OptionError<'_>> {
    OptionInfo::find(word, &[KERNEL]).map_err(|error| match error {
        OptionError::Unknown { name, .. } if BENCH.iter().any(|option| option.name == name) => {
            OptionError::NoBench(name)
        }
        other => other,
    })
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
                    fault=unresponsive-ap monitor=yes ap-halt=stack ap-fault=block ap-delay=online frames-fail=7 nmis=yes ";
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
            fault: Some(Fault::UnresponsiveAp),
            monitor: true,
            ap_fault: Some((ApFault::Delay, Step::Online)),
            frames_fail: Some(7),
            nmis: true,
            #[cfg(feature = "bench")]
            bench: None,
        };
        assert_eq!(Arguments::parse(line), Ok(expected));
        for option in KERNEL {
            assert!(line.contains(&format!("{}=", option.name)));
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
    fn every_fault_of_an_ap_can_be_injected_at_every_step() {
        for (&ap_fault, &step) in ApFault::ALL
            .iter()
            .flat_map(|ap_fault| Step::ALL.iter().map(move |step| (ap_fault, step)))
        {
            let line = format!("{}={}", ap_fault.name(), step.name());
            assert_eq!(
                Arguments::parse(&line).unwrap().ap_fault,
                Some((ap_fault, step))
            );
        }
    }

    #[test]
    fn a_word_that_is_no_option_is_named() {
        for word in [
            "",
            "=",
            "=1",
            "speed=1",
            "Seed=1",
            "fault-panic=1",
            "stress",
        ] {
            let error = Arguments::parse(word).err();
            assert_eq!(error.is_none(), word.is_empty(), "{word}");
        }
        let error = Arguments::parse("seed=1 speed=2 seed=x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown option `speed`, did you mean `seed`?"
        );
        let error = Arguments::parse("mem=2G").unwrap_err();
        assert!(error.to_string().starts_with("unknown option `mem`"));
    }

    #[test]
    fn every_option_refuses_what_is_not_of_its_form() {
        for option in KERNEL {
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
        assert_eq!((options.rounds, arguments.seed), (3, 2));
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
        fn numbers_are_taken_as_they_are(seed: u64, cpus in 1usize.., millis in 1..=31_536_000_u64) {
            let line = format!("seed={seed} cpus={cpus} deadline={millis} seconds={}.{:03}",
                millis / 1000, millis % 1000);
            let arguments = Arguments::parse(&line).unwrap();
            prop_assert_eq!((arguments.seed, arguments.cpus), (seed, cpus));
            prop_assert_eq!(arguments.deadline_millis, millis);
            prop_assert_eq!(arguments.stress_millis, millis);
        }
    }
}
