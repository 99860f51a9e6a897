//! Commands: what can be said, what it means, and what is wrong with what was said.

use core::fmt;

use muster_arguments::{Fault, Workload, Workloads, millis, named, nearest};

named! {
    /// The first word of a command.
    pub enum Verb {
        /// What there is to say.
        Help = "help",
        /// Who is at work, and with what.
        Cpus = "cpus",
        /// How the CPUs came up.
        Roll = "roll",
        /// What makes a CPU the one that it should be.
        Registers = "registers",
        /// A CPU's journal.
        Log = "log",
        /// Whose the machine's memory is.
        Mem = "mem",
        /// The way of an address through the tables.
        Map = "map",
        /// The frame allocator.
        Frames = "frames",
        /// The heap.
        Heap = "heap",
        /// The whole account.
        Account = "account",
        /// Puts the other CPUs to work.
        Stress = "stress",
        /// Shows the work as it goes on.
        Watch = "watch",
        /// Ends the work.
        Stop = "stop",
        /// Calls CPUs.
        Call = "call",
        /// Has all CPUs flush a page.
        Shootdown = "shootdown",
        /// Brings a fault about.
        Fault = "fault",
        /// Runs benchmarks.
        Bench = "bench",
        /// Ends the run.
        Off = "off",
    }
}

impl Verb {
    /// Returns its aliases, which people know from elsewhere.
    pub const fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Help => &["?", "h"],
            Self::Off => &["quit", "exit", "q", "poweroff"],
            _ => &[],
        }
    }

    /// Returns the command that a word stands for, in upper or lower case.
    pub fn of(word: &str) -> Option<Self> {
        let is_it = |name: &&str| name.eq_ignore_ascii_case(word);
        find(Self::ALL, Self::NAMES, word).or_else(|| {
            let mut verbs = Self::ALL.iter().copied();
            verbs.find(|verb| verb.aliases().iter().any(is_it))
        })
    }

    /// Returns the words that it takes first, in two lists; none, if it takes a number or nothing.
    pub const fn choices(self) -> [&'static [&'static str]; 2] {
        match self {
            Self::Help => [Self::NAMES, &[]],
            Self::Stress => [Workload::NAMES, &[ALL]],
            Self::Call => [&[ALL], &[]],
            Self::Fault => [Fault::NAMES, &[]],
            _ => [&[], &[]],
        }
    }

    /// Returns its usage.
    pub const fn usage(self) -> &'static str {
        match self {
            Self::Help => "help [COMMAND]",
            Self::Registers => "registers CPU",
            Self::Log => "log CPU",
            Self::Map => "map ADDRESS",
            Self::Stress => "stress WORKLOADS [SECONDS]",
            Self::Call => "call CPU|all",
            Self::Fault => "fault KIND",
            Self::Bench => "bench [KEY=VALUE...]",
            _ => self.name(),
        }
    }

    /// Returns what it does, in one line.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Help => "this, or one command in full",
            Self::Cpus => "each CPU, and what it is doing",
            Self::Roll => "how the CPUs came up, phase by phase",
            Self::Registers => "a CPU's registers that must be as the BSP's",
            Self::Log => "a CPU's own journal",
            Self::Mem => "whose the machine's memory is",
            Self::Map => "an address's way through the page tables",
            Self::Frames => "free frames, and those in CPUs' caches",
            Self::Heap => "what the heap holds, and how it has served",
            Self::Account => "what each CPU has and did, and that it adds up",
            Self::Stress => "put the other CPUs to work",
            Self::Watch => "see them work, until a key is pressed",
            Self::Stop => "have them finish, and see what they did",
            Self::Call => "what it takes to call a CPU and hear from it",
            Self::Shootdown => "what it takes to change a page on all CPUs",
            Self::Fault => "do something wrong, to see it reported: ends the run",
            Self::Bench => "Muster's allocators beside others",
            Self::Off => "end the run, with the account and a verdict",
        }
    }

    /// Returns its details, line by line.
    pub const fn details(self) -> &'static [&'static str] {
        match self {
            Self::Help => &[
                "Tab completes commands and what they take; twice, it lists the choices.",
                "The arrows, Home, End, and Ctrl-A, E, K, U, W edit; up and down recall. Ctrl-C",
                "drops the line; Ctrl-D deletes, or asks whether to end the run if there is none.",
                "COMMAND is one of:",
            ],
            Self::Cpus => &[
                "What it is doing: idle, at work, or answering a call. The last column is",
                "what it has done in the current workload.",
            ],
            Self::Registers => &[
                "As they were when the CPU came, or in the last audit: its local APIC, how it",
                "caches memory (MTRRs), what is added to its TSC, and its id in its APIC.",
            ],
            Self::Log => {
                &["The CPU is called and copies it; of one that is not at work it is read."]
            }
            Self::Map => &[
                "ADDRESS is hexadecimal, with or without 0x. A line for each level: level,",
                "table[index], entry, its flags, and what it leads to. r, w and x are what all",
                "levels together allow; WB, WC and UC are write-back, write-combining, uncached.",
            ],
            Self::Stress => &[
                "WORKLOADS is all, or some by commas. With SECONDS, all of them together take so",
                "long, one after the other; without, they take turns until `stop`. The prompt",
                "stays: see `watch`, `cpus` and `account`. The workloads are:",
            ],
            Self::Watch => {
                &["Once a second, for each CPU: operations, interrupts, calls, flushes."]
            }
            Self::Call => &["The median of many. It answers under stress, too; later, perhaps."],
            Self::Shootdown => {
                &["A page's rights change, on all CPUs; those that sleep are spared."]
            }
            Self::Fault => {
                &["Not while the others are under stress: `stop` first. KIND is one of:"]
            }
            Self::Bench => &[
                "In a kernel with the benchmarks in it: `just monitor rounds=5`. The words are",
                "bench=, allocators=, on=, rounds=, time=, measure=, format=: `just arguments`.",
            ],
            _ => &[],
        }
    }
}

/// Whom to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// One CPU, by its index.
    One(u32),
    /// All but the one that calls.
    All,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Tell about one command, or list all.
    Help(Option<Verb>),
    /// List the CPUs.
    Cpus,
    /// Tell the roll call again.
    Roll,
    /// Show a CPU's registers that must be as the BSP's.
    Registers(u32),
    /// Tell a CPU's journal.
    Log(u32),
    /// Tell whose the memory is.
    Mem,
    /// Tell an address's way.
    Map(u64),
    /// Tell of the frames.
    Frames,
    /// Tell of the heap.
    Heap,
    /// Draw the account up.
    Account,
    /// Put the other CPUs to work.
    Stress {
        /// At what; not nothing.
        workloads: Workloads,
        /// For how long, in milliseconds; until `stop`, if there is none.
        millis: Option<u64>,
    },
    /// Show them at work.
    Watch,
    /// Have them finish.
    Stop,
    /// Call, and report what it takes.
    Call(Whom),
    /// Shoot a page down, and report what it takes.
    Shootdown,
    /// Bring about a fault.
    Fault(Fault),
    /// Run the benchmarks that these words ask for.
    Bench(&'a str),
    /// End the run.
    Off,
}

/// What is named by one of a list of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Verb`].
    Command,
    /// A [`Workload`], or all.
    Workload,
    /// A [`Fault`].
    Fault,
}

impl Kind {
    /// Returns the command that takes it and, in `help`, lists it; and what it is called.
    const fn words(self) -> (Verb, &'static str) {
        match self {
            Self::Command => (Verb::Help, "command"),
            Self::Workload => (Verb::Stress, "workload"),
            Self::Fault => (Verb::Fault, "fault"),
        }
    }
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError<'a> {
    /// A word is none of its kind.
    Unknown {
        /// What it should name.
        kind: Kind,
        /// The word as given.
        word: &'a str,
    },
    /// A command has less than it needs.
    Missing(Verb),
    /// A word is not what the command takes there.
    Value {
        /// The command.
        verb: Verb,
        /// The word as given.
        value: &'a str,
        /// What it should be.
        expected: &'static str,
    },
    /// A command has more than it takes.
    Surplus {
        /// The command.
        verb: Verb,
        /// The first word too many.
        word: &'a str,
    },
}

impl fmt::Display for CommandError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { kind, word } => {
                let (verb, name) = kind.words();
                write!(f, "unknown {name} `{word}`")?;
                let names = verb.choices().into_iter().flatten();
                let aliases = Verb::ALL.iter().filter(|_| *kind == Kind::Command);
                let aliases = aliases.flat_map(|verb| verb.aliases());
                match (nearest(word, names.chain(aliases).copied()), kind) {
                    (Some(name), _) => write!(f, ", did you mean `{name}`?"),
                    (None, Kind::Command) => write!(f, "; `help` lists them"),
                    (None, _) => write!(f, "; `help {verb}` lists them"),
                }
            }
            Self::Missing(verb) => {
                write!(f, "`{verb}` needs more: {}", verb.usage())
            }
            Self::Value {
                verb,
                value,
                expected,
            } => write!(f, "`{verb}` takes {expected}, not `{value}`"),
            Self::Surplus { verb, word } => {
                write!(f, "`{}` is all, and there is `{word}`", verb.usage())
            }
        }
    }
}

impl core::error::Error for CommandError<'_> {}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl<'a> Command<'a> {
    /// Reads a line. `None`: it is empty.
    ///
    /// # Errors
    ///
    /// [`CommandError`], the first thing that is wrong.
    pub fn parse(line: &'a str) -> Result<Option<Self>, CommandError<'a>> {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else {
            return Ok(None);
        };
        let unknown = |kind, word| CommandError::Unknown { kind, word };
        let verb = Verb::of(first).ok_or(unknown(Kind::Command, first))?;
        if verb == Verb::Bench {
            let rest = line.trim_ascii_start().get(first.len()..);
            return Ok(Some(Self::Bench(rest.unwrap_or_default().trim_ascii())));
        }
        let value = |value, expected| CommandError::Value {
            verb,
            value,
            expected,
        };
        let command = match verb {
            Verb::Help => {
                let about = |word| Verb::of(word).ok_or(unknown(Kind::Command, word));
                Self::Help(words.next().map(about).transpose()?)
            }
            Verb::Cpus => Self::Cpus,
            Verb::Roll => Self::Roll,
            Verb::Mem => Self::Mem,
            Verb::Frames => Self::Frames,
            Verb::Heap => Self::Heap,
            Verb::Account => Self::Account,
            Verb::Watch => Self::Watch,
            Verb::Stop => Self::Stop,
            Verb::Shootdown => Self::Shootdown,
            Verb::Off => Self::Off,
            Verb::Registers | Verb::Log => {
                let word = words.next().ok_or(CommandError::Missing(verb))?;
                let cpu = word.parse().ok();
                let cpu = cpu.ok_or(value(word, "the number of a CPU"))?;
                match verb {
                    Verb::Log => Self::Log(cpu),
                    _ => Self::Registers(cpu),
                }
            }
            Verb::Map => {
                let word = words.next().ok_or(CommandError::Missing(verb))?;
                let address = address(word).ok_or(value(word, "a hexadecimal address"));
                Self::Map(address?)
            }
            Verb::Stress => {
                let word = words.next().ok_or(CommandError::Missing(verb))?;
                let workloads = workloads(word).map_err(|name| unknown(Kind::Workload, name))?;
                let seconds = |word| {
                    let millis = millis(word).filter(|&millis| millis > 0);
                    millis.ok_or(value(word, "seconds, such as 30 or 0.5"))
                };
                Self::Stress {
                    workloads,
                    millis: words.next().map(seconds).transpose()?,
                }
            }
            Verb::Call => {
                let word = words.next().ok_or(CommandError::Missing(verb))?;
                let one = || word.parse().ok().map(Whom::One);
                let is_all = word.eq_ignore_ascii_case(ALL);
                let whom = if is_all { Some(Whom::All) } else { one() };
                Self::Call(whom.ok_or(value(word, "the number of a CPU, or all"))?)
            }
            Verb::Fault => {
                let word = words.next().ok_or(CommandError::Missing(verb))?;
                let fault = find(Fault::ALL, Fault::NAMES, word);
                Self::Fault(fault.ok_or(unknown(Kind::Fault, word))?)
            }
            Verb::Bench => Self::Bench(""),
        };
        match words.next() {
            Some(word) => Err(CommandError::Surplus { verb, word }),
            None => Ok(Some(command)),
        }
    }
}

/// In the place of a CPU's number, or of a workload: every one.
const ALL: &str = "all";

/// Returns the value of a name, in upper or lower case.
fn find<T: Copy>(values: &[T], names: &[&str], word: &str) -> Option<T> {
    let mut named = values.iter().zip(names);
    let (value, _) = named.find(|(_, name)| name.eq_ignore_ascii_case(word))?;
    Some(*value)
}

/// Reads names of workloads, by commas.
///
/// # Errors
///
/// The first that is none.
fn workloads(list: &str) -> Result<Workloads, &str> {
    list.split(',').try_fold(Workloads::none(), |set, name| {
        if name.eq_ignore_ascii_case(ALL) {
            return Ok(Workloads::all().iter().fold(set, Workloads::with));
        }
        let workload = find(Workload::ALL, Workload::NAMES, name).ok_or(name)?;
        Ok(set.with(workload))
    })
}

/// Parses a hexadecimal number, with or without its mark.
fn address(word: &str) -> Option<u64> {
    let digits = word.strip_prefix("0x").unwrap_or(word);
    // `from_str_radix` takes a sign.
    let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number.then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A line for each verb, and what is made of it.
    const LINES: &[(&str, Command<'static>)] = &[
        ("help", Command::Help(None)),
        (" help  map ", Command::Help(Some(Verb::Map))),
        ("cpus", Command::Cpus),
        ("roll", Command::Roll),
        ("registers 2", Command::Registers(2)),
        ("log 3", Command::Log(3)),
        ("mem", Command::Mem),
        (
            "map 0xFFFF800000001000",
            Command::Map(0xffff_8000_0000_1000),
        ),
        ("map 0", Command::Map(0)),
        ("frames", Command::Frames),
        ("heap", Command::Heap),
        ("account", Command::Account),
        (
            "stress mixed",
            Command::Stress {
                workloads: Workloads::none().with(Workload::Mixed),
                millis: None,
            },
        ),
        (
            "stress soak,churn 0.25",
            Command::Stress {
                workloads: Workloads::none().with(Workload::Soak).with(Workload::Churn),
                millis: Some(250),
            },
        ),
        ("watch", Command::Watch),
        ("stop", Command::Stop),
        ("call 0", Command::Call(Whom::One(0))),
        ("call all", Command::Call(Whom::All)),
        ("shootdown", Command::Shootdown),
        ("fault panic-ap", Command::Fault(Fault::PanicAp)),
        ("bench", Command::Bench("")),
        (
            "  bench  bench=mixed on=1 ",
            Command::Bench("bench=mixed on=1"),
        ),
        ("off", Command::Off),
    ];

    #[test]
    fn words_that_people_try_are_taken() {
        for line in ["quit", "exit", "q", "poweroff", " Quit ", "OFF"] {
            assert_eq!(Command::parse(line), Ok(Some(Command::Off)), "{line}");
        }
        for line in ["?", "h", "HELP"] {
            assert_eq!(Command::parse(line), Ok(Some(Command::Help(None))));
        }
        let about_off = Command::Help(Some(Verb::Off));
        assert_eq!(Command::parse("h exit"), Ok(Some(about_off)));
        assert_eq!(Command::parse("Cpus"), Ok(Some(Command::Cpus)));
        let line = "FAULT Panic-AP";
        assert_eq!(
            Command::parse(line),
            Ok(Some(Command::Fault(Fault::PanicAp)))
        );
        assert_eq!(
            Command::parse("Call ALL"),
            Ok(Some(Command::Call(Whom::All)))
        );
    }

    #[test]
    fn no_two_commands_share_a_word() {
        for &verb in Verb::ALL {
            for word in [verb.name()].iter().chain(verb.aliases()) {
                assert_eq!(Verb::of(word), Some(verb), "{word}");
                assert_eq!(Verb::of(&word.to_uppercase()), Some(verb), "{word}");
            }
        }
    }

    #[test]
    fn all_workloads_are_more_than_one_in_any_case() {
        for (list, expected) in [
            ("all", Workloads::all()),
            ("ALL", Workloads::all()),
            ("soak,All", Workloads::all().with(Workload::Soak)),
            ("Churn", Workloads::none().with(Workload::Churn)),
        ] {
            let line = format!("stress {list}");
            let expected = Command::Stress {
                workloads: expected,
                millis: None,
            };
            assert_eq!(Command::parse(&line), Ok(Some(expected)));
        }
    }

    #[test]
    fn every_command_is_read() {
        for (line, command) in LINES {
            assert_eq!(Command::parse(line), Ok(Some(*command)), "{line}");
        }
        for verb in Verb::ALL {
            let begins = |line: &str| line.trim().split(' ').next() == Some(verb.name());
            assert!(LINES.iter().any(|(line, _)| begins(line)), "{verb}");
        }
        assert_eq!(Command::parse(" \t"), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_told_in_words() {
        for (line, words) in [
            ("cpu", "unknown command `cpu`, did you mean `cpus`?"),
            ("stres", "unknown command `stres`, did you mean `stress`?"),
            ("STRES", "unknown command `STRES`, did you mean `stress`?"),
            ("qiut", "unknown command `qiut`, did you mean `quit`?"),
            ("x", "unknown command `x`; `help` lists them"),
            ("xyzzy", "unknown command `xyzzy`; `help` lists them"),
            (
                "help stres",
                "unknown command `stres`, did you mean `stress`?",
            ),
            ("help xyzzy", "unknown command `xyzzy`; `help` lists them"),
            ("cpus 3", "`cpus` is all, and there is `3`"),
            ("help map me", "`help [COMMAND]` is all, and there is `me`"),
            ("log", "`log` needs more: log CPU"),
            ("log -1", "`log` takes the number of a CPU, not `-1`"),
            ("log 1 2", "`log CPU` is all, and there is `2`"),
            ("map", "`map` needs more: map ADDRESS"),
            ("map 0x", "`map` takes a hexadecimal address, not `0x`"),
            ("map +1", "`map` takes a hexadecimal address, not `+1`"),
            (
                "map 10000000000000000",
                "`map` takes a hexadecimal address, not `10000000000000000`",
            ),
            (
                "stress mixd",
                "unknown workload `mixd`, did you mean `mixed`?",
            ),
            (
                "stress mixed,chrun 3",
                "unknown workload `chrun`, did you mean `churn`?",
            ),
            (
                "stress churn,",
                "unknown workload ``; `help stress` lists them",
            ),
            (
                "stress xyzzy",
                "unknown workload `xyzzy`; `help stress` lists them",
            ),
            (
                "stress mixed 0",
                "`stress` takes seconds, such as 30 or 0.5, not `0`",
            ),
            (
                "stress mixed forever",
                "`stress` takes seconds, such as 30 or 0.5, not `forever`",
            ),
            ("call", "`call` needs more: call CPU|all"),
            (
                "call me",
                "`call` takes the number of a CPU, or all, not `me`",
            ),
            (
                "fault panic-pa",
                "unknown fault `panic-pa`, did you mean `panic-ap`?",
            ),
            (
                "fault xyzzy",
                "unknown fault `xyzzy`; `help fault` lists them",
            ),
        ] {
            let error = Command::parse(line).unwrap_err();
            assert_eq!(error.to_string(), words, "{line}");
        }
    }

    #[test]
    fn help_fits_on_a_terminal() {
        for &verb in Verb::ALL {
            assert!(verb.usage().starts_with(verb.name()));
            assert!(verb.usage().len() <= 26, "{verb}");
            assert!(28 + verb.about().len() <= 80, "{verb}");
            for line in verb.details() {
                assert!(line.len() <= 80, "{line}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in "([a-z]{1,5} ?[-a-z0-9,.]{0,9} ?|\\PC){0,4}") {
            if let Err(error) = Command::parse(&line) {
                let message = error.to_string();
                let quoted: Vec<_> = message.split('`').collect();
                prop_assert!(quoted.len() >= 3);
            }
        }

        #[test]
        fn addresses_are_taken_as_they_are(address: u64) {
            for line in [format!("map {address:#x}"), format!("map {address:X}")] {
                prop_assert_eq!(Command::parse(&line), Ok(Some(Command::Map(address))));
            }
        }
    }
}
