//! Options that exclude each other, or of which one takes away what the other is about: a table of rules.

use crate::arguments::{Boot, Drive, Firmware, Run};
use crate::emulator::Kind;
use crate::machine::Machine;

/// What a run is asked for.
pub struct Asked<'a> {
    /// The run as it would be.
    pub run: &'a Run,
    /// The options that are given, with their values, and the number of CPUs as `CPUS`.
    pub given: &'a [(&'static str, &'a str)],
}

impl Asked<'_> {
    /// Returns whether an option is given.
    fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Returns an option's value, if it is given.
    fn value(&self, name: &str) -> Option<&str> {
        let mut given = self.given.iter();
        given.find_map(|&(option, value)| (option == name).then_some(value))
    }

    fn is_on_bochs(&self) -> bool {
        self.run.emulator == Kind::Bochs
    }

    fn is_embedded(&self) -> bool {
        self.run.boot == Boot::Embedded
    }
}

/// Returns whether a run is so, and so is not to be had.
type Condition = fn(&Asked<'_>) -> bool;

/// What is not to be had, and why.
const EXCLUDED: &[(Condition, &str)] = &[
    (
        |asked| asked.has("CPUS") && asked.has("smp"),
        "CPUS and smp= exclude each other",
    ),
    (
        |asked| asked.has("events") && asked.value("output") != Some("json"),
        "events= needs output=json",
    ),
    (
        |asked| asked.has("bochs") && !asked.is_on_bochs(),
        "bochs= needs machine=bochs",
    ),
    (
        |asked| asked.is_on_bochs() && asked.is_embedded(),
        "machine=bochs needs boot=limine",
    ),
    (
        |asked| {
            let is_whole = |bytes: u64| bytes.is_multiple_of(1 << 20);
            asked.is_on_bochs() && !asked.run.memory_bytes().is_some_and(is_whole)
        },
        "machine=bochs needs mem= in whole MiB",
    ),
    (
        |asked| asked.is_embedded() && asked.run.firmware == Firmware::Uefi,
        "firmware=uefi needs boot=limine",
    ),
    (
        |asked| asked.is_embedded() && asked.run.drive == Drive::Usb,
        "drive=usb needs boot=limine",
    ),
    (
        |asked| asked.is_embedded() && asked.has("resolution"),
        "resolution= needs boot=limine",
    ),
    (
        |asked| !asked.is_embedded() && asked.run.machine == Machine::Microvm,
        "boot=limine needs a disc, which machine=microvm does not have",
    ),
    (
        |asked| {
            !asked.is_embedded()
                && asked
                    .given
                    .iter()
                    .any(|(name, _)| name.starts_with("loader."))
        },
        "loader.* words need boot=embedded",
    ),
];

/// Finds the first contradiction in what is asked for, and says what it is.
pub fn find(asked: &Asked<'_>) -> Option<String> {
    let mut rules = EXCLUDED.iter();
    let (_, why) = rules.find(|(is_excluded, _)| is_excluded(asked))?;
    Some((*why).into())
}
