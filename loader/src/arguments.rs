//! The command line: which words are the loader's, and what they ask for.

use core::fmt;

use heapless::Vec;

/// What every word for the loader begins with. All others are the kernel's.
const PREFIX: &str = "loader.";

/// The word after which all others are for the kernel's client, as `muster-arguments` has it.
const CLIENT: &str = "--";

/// The most APIC ids that one word may list.
const MAX_IDS: usize = 64;

/// The most registers that one word may list.
const MAX_REGISTERS: usize = 16;

/// What a CPU is to be sent to the kernel with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OddRegister {
    /// The CPU's APIC id; `None` for all CPUs.
    pub apic_id: Option<u32>,
    /// The MSR's number.
    pub register: u32,
    /// Its value.
    pub value: u64,
}

/// Something the loader can refuse to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The higher-half direct map's base.
    Hhdm,
    /// The memory map.
    MemoryMap,
    /// The other CPUs.
    Mp,
    /// The ACPI root pointer.
    Rsdp,
    /// The kernel's command line.
    CommandLine,
    /// Where the kernel lies.
    ExecutableAddress,
    /// Stacks of a chosen size.
    StackSize,
    /// The loader's name.
    BootloaderInfo,
    /// A choice of paging mode.
    PagingMode,
    /// The base revision tag.
    BaseRevision,
}

impl Feature {
    const NAMES: [(&str, Self); 10] = [
        ("hhdm", Self::Hhdm),
        ("memory-map", Self::MemoryMap),
        ("mp", Self::Mp),
        ("rsdp", Self::Rsdp),
        ("cmdline", Self::CommandLine),
        ("executable-address", Self::ExecutableAddress),
        ("stack-size", Self::StackSize),
        ("bootloader-info", Self::BootloaderInfo),
        ("paging-mode", Self::PagingMode),
        ("base-revision", Self::BaseRevision),
    ];

    fn from_name(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, feature)| feature)
    }
}

/// What the loader's words ask for. By default: no fault at all.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// APIC ids of CPUs that are never started.
    pub unstarted: Vec<u32, MAX_IDS>,
    /// APIC ids of CPUs that are started and listed, but never released.
    pub silent: Vec<u32, MAX_IDS>,
    /// APIC ids of two CPUs each of which is listed under the other's.
    pub swapped: Option<(u32, u32)>,
    /// Registers that CPUs have other values in than a loader would leave, in the order in which they
    /// are written.
    pub odd_registers: Vec<OddRegister, MAX_REGISTERS>,
    /// The highest base revision to admit to.
    pub revision: Option<u64>,
    /// Give the kernel an awkward memory map.
    pub awkward_memory_map: bool,
    /// Move the direct map's base.
    pub random_hhdm: bool,
    /// Page-table levels to choose before the kernel's own wish, 4 or 5, within the
    /// limits it sets.
    pub levels: Option<u64>,
    /// Say on the serial line what is going on.
    pub verbose: bool,
    denied: Vec<Feature, { Feature::NAMES.len() }>,
}

/// A word that the loader does not understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentError<'line> {
    /// Begins with `loader.`, but is none of its words.
    Unknown(&'line str),
    /// A known word with a value that it can't have.
    BadValue {
        /// The word up to the equals sign.
        word: &'line str,
        /// What stands after it.
        value: &'line str,
    },
    /// More APIC ids in one word than the loader keeps.
    TooManyIds(&'line str),
    /// More registers than the loader keeps.
    TooManyRegisters(&'line str),
}

impl fmt::Display for ArgumentError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "unknown word `{word}`")?,
            Self::BadValue { word, value } => write!(f, "bad value `{value}` for `{word}`")?,
            Self::TooManyIds(word) => write!(f, "more than {MAX_IDS} APIC ids in `{word}`")?,
            Self::TooManyRegisters(word) => {
                write!(f, "more than {MAX_REGISTERS} registers in `{word}`")?;
            }
        }
        f.write_str(
            "; the loader's words are loader.unstarted=APICID[,..] loader.silent=APICID[,..] \
             loader.swapped=APICID,APICID loader.msr=APICID|all:MSR:VALUE[,..] \
             loader.deny=FEATURE[,..] loader.revision=N loader.memory-map=awkward \
             loader.hhdm=random loader.levels=4|5 loader.verbose; FEATURE is one of",
        )?;
        Feature::NAMES
            .iter()
            .try_for_each(|(name, _)| write!(f, " {name}"))
    }
}

impl Arguments {
    /// Reads the loader's words from a command line.
    ///
    /// # Errors
    /// [`ArgumentError`] names the first word that is wrong.
    pub fn parse(line: &str) -> Result<Self, ArgumentError<'_>> {
        let mut arguments = Self::default();
        for word in line
            .split_ascii_whitespace()
            .take_while(|&word| word != CLIENT)
            .filter(|word| word.starts_with(PREFIX))
        {
            arguments.apply(word)?;
        }
        Ok(arguments)
    }

    /// Returns whether the kernel must go without `feature`.
    pub fn denies(&self, feature: Feature) -> bool {
        self.denied.contains(&feature)
    }

    fn apply<'line>(&mut self, word: &'line str) -> Result<(), ArgumentError<'line>> {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let bad_value = ArgumentError::BadValue { word: name, value };
        match name {
            "loader.unstarted" => add_ids(&mut self.unstarted, name, value)?,
            "loader.silent" => add_ids(&mut self.silent, name, value)?,
            "loader.swapped" => {
                let ids = value
                    .split_once(',')
                    .and_then(|(first, second)| Some((first.parse().ok()?, second.parse().ok()?)));
                self.swapped = Some(ids.ok_or(bad_value)?);
            }
            "loader.msr" => {
                for part in value.split(',') {
                    let odd = odd_register(part).ok_or(bad_value)?;
                    let added = self.odd_registers.push(odd);
                    added.map_err(|_| ArgumentError::TooManyRegisters(name))?;
                }
            }
            "loader.deny" => {
                for name in value.split(',') {
                    let feature = Feature::from_name(name).ok_or(bad_value)?;
                    if !self.denies(feature) {
                        // Never full: there is room for each feature once.
                        let _ = self.denied.push(feature);
                    }
                }
            }
            "loader.revision" => self.revision = Some(value.parse().map_err(|_| bad_value)?),
            "loader.memory-map" if value == "awkward" => self.awkward_memory_map = true,
            "loader.hhdm" if value == "random" => self.random_hhdm = true,
            "loader.levels" if value == "4" => self.levels = Some(4),
            "loader.levels" if value == "5" => self.levels = Some(5),
            "loader.memory-map" | "loader.hhdm" | "loader.levels" => return Err(bad_value),
            "loader.verbose" if word == name => self.verbose = true,
            _ => return Err(ArgumentError::Unknown(word)),
        }
        Ok(())
    }
}

/// Returns the words that are not the loader's, in their order.
pub fn kernel_words(line: &str) -> impl Iterator<Item = &str> {
    let mut is_of_client = false;
    line.split_ascii_whitespace().filter(move |&word| {
        is_of_client |= word == CLIENT;
        is_of_client || !word.starts_with(PREFIX)
    })
}

fn add_ids<'line>(
    ids: &mut Vec<u32, MAX_IDS>,
    word: &'line str,
    value: &'line str,
) -> Result<(), ArgumentError<'line>> {
    for id in value.split(',') {
        let id = id
            .parse()
            .map_err(|_| ArgumentError::BadValue { word, value })?;
        ids.push(id).map_err(|_| ArgumentError::TooManyIds(word))?;
    }
    Ok(())
}

/// Reads `APICID:MSR:VALUE`, the latter two in hexadecimal.
fn odd_register(part: &str) -> Option<OddRegister> {
    let mut numbers = part.splitn(3, ':');
    let apic_id = match numbers.next()? {
        "all" => None,
        id => Some(id.parse().ok()?),
    };
    let mut hexadecimal = || u64::from_str_radix(numbers.next()?.strip_prefix("0x")?, 16).ok();
    Some(OddRegister {
        apic_id,
        register: hexadecimal()?.try_into().ok()?,
        value: hexadecimal()?,
    })
}

#[cfg(test)]
mod tests {
    use super::{ArgumentError, Arguments, Feature, OddRegister, kernel_words};

    #[test]
    fn the_kernel_gets_its_words_and_the_loader_its_own() {
        let line = " stress=all loader.silent=3,4  seed=7 loader.hhdm=random ";
        assert_eq!(
            kernel_words(line).collect::<Vec<_>>(),
            ["stress=all", "seed=7"]
        );
        let arguments = Arguments::parse(line).unwrap();
        assert_eq!(arguments.silent, [3, 4]);
        assert!(arguments.random_hhdm);
        assert!(!arguments.verbose && !arguments.awkward_memory_map);
        assert_eq!(arguments.levels, None);
        let arguments = Arguments::parse("loader.levels=5").unwrap();
        assert_eq!(arguments.levels, Some(5));
    }

    #[test]
    fn the_client_gets_its_words_whatever_they_are() {
        let line = "loader.verbose seed=7 -- loader.levels=6 seed=x";
        let words: Vec<_> = kernel_words(line).collect();
        assert_eq!(words, ["seed=7", "--", "loader.levels=6", "seed=x"]);
        assert_eq!(Arguments::parse(line).unwrap().levels, None);
    }

    #[test]
    fn cpus_can_be_swapped_and_registers_set() {
        let line = "loader.swapped=1,2 loader.msr=3:0x277:0x7,all:0x2ff:0xffffffffffffffff";
        let arguments = Arguments::parse(line).unwrap();
        assert_eq!(arguments.swapped, Some((1, 2)));
        let odd = |apic_id, register, value| OddRegister {
            apic_id,
            register,
            value,
        };
        assert_eq!(
            arguments.odd_registers,
            [odd(Some(3), 0x277, 7), odd(None, 0x2ff, u64::MAX)]
        );
        let line = format!("loader.msr=1:0x1:0x1{}", ",1:0x1:0x1".repeat(16));
        assert_eq!(
            Arguments::parse(&line).unwrap_err(),
            ArgumentError::TooManyRegisters("loader.msr")
        );
    }

    #[test]
    fn every_feature_can_be_denied() {
        for (name, feature) in Feature::NAMES {
            let line = format!("loader.deny={name},hhdm,{name}");
            let arguments = Arguments::parse(&line).unwrap();
            assert!(arguments.denies(feature) && arguments.denies(Feature::Hhdm));
        }
        assert!(!Arguments::parse("").unwrap().denies(Feature::Mp));
    }

    #[test]
    fn wrong_words_are_named_and_the_right_ones_listed() {
        for word in ["loader.", "loader.foo", "loader.foo=1", "loader.verbose=1"] {
            assert_eq!(
                Arguments::parse(word).unwrap_err(),
                ArgumentError::Unknown(word)
            );
        }
        for (word, value) in [
            ("loader.deny", "hhdm,fun"),
            ("loader.deny", ""),
            ("loader.silent", "1,,2"),
            ("loader.unstarted", "-1"),
            ("loader.swapped", "1"),
            ("loader.swapped", "1,2,3"),
            ("loader.msr", "1:0x277"),
            ("loader.msr", "1:277:0x1"),
            ("loader.msr", "1:0x277:0x1:0x2"),
            ("loader.msr", "1:0x123456789:0x1"),
            ("loader.msr", "any:0x277:0x1"),
            ("loader.revision", "three"),
            ("loader.memory-map", "odd"),
            ("loader.hhdm", ""),
        ] {
            let line = format!("{word}={value}");
            let error = Arguments::parse(&line).unwrap_err();
            assert_eq!(error, ArgumentError::BadValue { word, value });
            let message = error.to_string();
            assert!(message.contains(value) && message.contains("loader.memory-map=awkward"));
            assert!(message.contains("executable-address"));
        }
    }

    #[test]
    fn a_word_can_list_only_so_many_cpus() {
        let line = format!("loader.silent=1{}", ",2".repeat(super::MAX_IDS));
        assert_eq!(
            Arguments::parse(&line).unwrap_err(),
            ArgumentError::TooManyIds("loader.silent")
        );
    }
}
