//! Every option of a run, in one table: its name, the form of its value, and its meaning. The kernel, the
//! runner, the help, the monitor and the book have it from here.

use core::fmt;

use crate::form::Form;
use crate::nearest::nearest;
use crate::values::{ApFault, Fault, Heap, LogLevel, Output, Reclaim, Step, Workload};

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionInfo {
    /// Its name: what stands before the `=`.
    pub name: &'static str,
    /// The form of its value.
    pub form: Form,
    /// What it means, in few words; in parentheses what counts without it.
    pub meaning: &'static str,
}

/// The most names that an error lists.
const MAX_NAMES: usize = 10;

/// Where those of an option with more of them are listed.
const LISTED: &str = "`just arguments` lists the names that it takes";

/// What is wrong with a word of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionError<'a> {
    /// No option has this name.
    Unknown {
        /// The name, or the whole word if there is no `=` in it.
        name: &'a str,
        /// The option that was probably meant.
        nearest: Option<&'static str>,
    },
    /// An option stands without a value.
    NoValue(&'static OptionInfo),
    /// A value is not of its option's form.
    Value {
        /// The option.
        option: &'static OptionInfo,
        /// The value as given.
        value: &'a str,
    },
    /// An option of the self-test, for a kernel that is built without it.
    NoSelfTest(&'a str),
    /// An option of the benchmarks, for a kernel that is built without them.
    NoBench(&'a str),
}

impl OptionInfo {
    /// Finds the option of some tables that a word sets, and gives its value, which is of its form.
    ///
    /// # Errors
    ///
    /// [`OptionError`], never `NoSelfTest` or `NoBench`.
    pub fn find<'a>(
        word: &'a str,
        tables: &[&'static [Self]],
    ) -> Result<(&'static Self, &'a str), OptionError<'a>> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let options = || tables.iter().copied().flatten();
        let Some(option) = options().find(|option| option.name == name) else {
            return Err(OptionError::Unknown {
                name,
                nearest: nearest(name, options().map(|option| option.name)),
            });
        };
        match value {
            None if option.form == Form::Flag => Ok((option, "")),
            None => Err(OptionError::NoValue(option)),
            Some(value) if option.form.admits(value) && option.form != Form::Flag => {
                Ok((option, value))
            }
            Some(value) => Err(OptionError::Value { option, value }),
        }
    }
}

impl fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, nearest } => {
                write!(f, "unknown option `{name}`")?;
                did_you_mean(*nearest, f)
            }
            Self::NoValue(OptionInfo { name, form, .. }) => {
                write!(f, "`{name}` needs a value, `{name}=`: ")?;
                match form.names().count() > MAX_NAMES {
                    true => f.write_str(LISTED),
                    false => write!(f, "{form}"),
                }
            }
            Self::Value { option, value } => {
                write!(f, "invalid value `{value}` for `{}`", option.name)?;
                let wrong = value.split(',').find(|part| !option.form.admits(part));
                match wrong.and_then(|part| nearest(part, option.form.names())) {
                    None if option.form.names().count() > MAX_NAMES => {
                        write!(f, ": {LISTED}")
                    }
                    None => write!(f, ": must be {}", option.form),
                    meant => did_you_mean(meant, f),
                }
            }
            Self::NoSelfTest(name) => write!(
                f,
                "`{name}` is an option of the self-test, which this kernel is built without: build it \
                 with `--features selftest`, as `just run-smp` does"
            ),
            Self::NoBench(name) => write!(
                f,
                "`{name}` is an option of the benchmarks, which this kernel is built without: build it \
                 with `--features bench`, as `just bench` does"
            ),
        }
    }
}

impl core::error::Error for OptionError<'_> {}

fn did_you_mean(meant: Option<&str>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match meant {
        Some(meant) => write!(f, ", did you mean `{meant}`?"),
        None => Ok(()),
    }
}

const fn option(name: &'static str, form: Form, meaning: &'static str) -> OptionInfo {
    OptionInfo {
        name,
        form,
        meaning,
    }
}

const YES_OR_NO: Form = Form::OneOf(&["yes", "no"]);

/// A number that is not 0.
const COUNT: Form = Form::Number(1, u64::MAX);

/// The least memory of a machine, in bytes. With less than 2 MiB QEMU's firmware finds no place for itself,
/// and with 2 MiB QEMU puts the kernel's file where the loader is: both end without a word. From 3 MiB on
/// the loader says that memory is too little, if it is.
const MIN_MEMORY: u64 = 3 << 20;

/// The longest deadline, in milliseconds: more than any AP needs to report.
const MAX_DEADLINE: u64 = 365 * 24 * 60 * 60;

/// The runner's own options: the machine, and how it is run.
pub const RUNNER: &[OptionInfo] = &[
    option(
        "mem",
        Form::Size(MIN_MEMORY),
        "memory of the machine (512M)",
    ),
    option(
        "machine",
        Form::OneOf(&["pc", "q35", "microvm", "bochs"]),
        "machine type of QEMU (q35), or Bochs, by Limine",
    ),
    option(
        "cpu",
        Form::Text("a model of QEMU's, such as max,-pdpe1gb, or of Bochs', such as ryzen"),
        "CPU (max; on Bochs corei7_haswell_4770)",
    ),
    option(
        "smp",
        Form::Text("QEMU's -smp, such as 8,sockets=2, or Bochs' count, such as 2:4:1"),
        "topology, for CPUS",
    ),
    option(
        "accel",
        Form::OneOf(&["auto", "tcg", "kvm", "turns", "icount"]),
        "acceleration (auto); icount counts instructions",
    ),
    option(
        "boot",
        Form::OneOf(&["embedded", "limine"]),
        "boot path (embedded)",
    ),
    option(
        "firmware",
        Form::OneOf(&["bios", "uefi"]),
        "for boot=limine (bios)",
    ),
    option("drive", Form::OneOf(&["cd", "usb"]), "for boot=limine (cd)"),
    option(
        "resolution",
        Form::Text("pixels and bits, such as 1920x1080 or 1024x768x24"),
        "of the screen, for boot=limine",
    ),
    option(
        "timeout",
        Form::Seconds,
        "a longer run is a hang (60 + seconds=; Bochs: 600 +)",
    ),
    option(
        "pause",
        Form::Text("CPU:SECONDS, whole numbers"),
        "stop a CPU from outside, once the stress runs",
    ),
    option("qemu", Form::Text("a path"), "QEMU (qemu-system-x86_64)"),
    option(
        "bochs",
        Form::Text("a path"),
        "Bochs (bochs), for machine=bochs",
    ),
    option(
        "events",
        Form::OneOf(&["file", "-"]),
        "of output=json: beside the log, or also stdout (file)",
    ),
    option(
        "qemu-args",
        Form::Text("arguments, quoted as in a shell"),
        "more for QEMU",
    ),
    option(
        "client",
        Form::Text("words"),
        "for the client, behind `--` on the command line",
    ),
];

/// The kernel's options.
pub const KERNEL: &[OptionInfo] = &[
    option("cpus", COUNT, "the most CPUs to use (all)"),
    option(
        "deadline",
        Form::Number(0, MAX_DEADLINE),
        "milliseconds for all CPUs to report (2000)",
    ),
    option("log", Form::OneOf(LogLevel::NAMES), "log level (info)"),
    option(
        "output",
        Form::OneOf(Output::NAMES),
        "json: events for programs, too (text)",
    ),
    option(
        "show-addresses",
        YES_OR_NO,
        "whether the log shows the kernel's (no)",
    ),
    option(
        "heap",
        Form::OneOf(Heap::NAMES),
        "the heap under stress (magazines)",
    ),
    option(
        "reclaim",
        Form::OneOf(Reclaim::NAMES),
        "whether loader memory is reclaimed (yes)",
    ),
];

/// The self-test's options, for a kernel that has it.
pub const SELFTEST: &[OptionInfo] = &[
    option(
        "stress",
        Form::OneOrSome(&["all", "none"], Workload::NAMES),
        "workloads (all)",
    ),
    option(
        "seconds",
        Form::Seconds,
        "length of all workloads together (8)",
    ),
    option(
        "seed",
        Form::Number(0, u64::MAX),
        "seed of everything random (1)",
    ),
    option(
        "fault",
        Form::OneOf(Fault::NAMES),
        "what to do wrong, to see it reported",
    ),
    option("monitor", YES_OR_NO, "a prompt on the serial line (no)"),
    option(
        ApFault::Halt.name(),
        Form::OneOf(Step::NAMES),
        "where in bring-up the last AP halts for good",
    ),
    option(
        ApFault::Fault.name(),
        Form::OneOf(Step::NAMES),
        "where it takes an exception",
    ),
    option(
        ApFault::Delay.name(),
        Form::OneOf(Step::NAMES),
        "where it waits until it has been given up",
    ),
    option(
        "frames-fail",
        COUNT,
        "the request for frames that is refused, from 1",
    ),
    option(
        "nmis",
        YES_OR_NO,
        "whether CPUs send each other NMIs under stress (no)",
    ),
];

/// The benchmarks' options, for a kernel that has them.
pub const BENCH: &[OptionInfo] = &[
    option(
        "bench",
        Form::OneOrSome(
            &["all", "heaps", "frames"],
            &[
                "churn",
                "mixed",
                "larson",
                "xfree",
                "sh8bench",
                "mstress",
                "cache-scratch",
                "cache-thrash",
                "realloc",
                "large",
                "frame-pair",
                "frame-random",
                "frame-bulk",
                "frame-repeat",
                "frame-fragmentation",
            ],
        ),
        "workloads (all)",
    ),
    option(
        "allocators",
        Form::Text("names, by commas"),
        "allocators to compare (all)",
    ),
    option(
        "on",
        Form::Numbers(1),
        "numbers of CPUs to compare on (1,2,4,8)",
    ),
    option(
        "rounds",
        Form::Number(1, MAX_BENCH),
        "rounds of which medians are taken (5)",
    ),
    option(
        "time",
        Form::Number(1, MAX_BENCH),
        "milliseconds of each measurement (100)",
    ),
    option(
        "measure",
        Form::OneOf(&["time", "instructions"]),
        "what is measured (time)",
    ),
    option(
        "format",
        Form::OneOf(&["table", "json"]),
        "of the figures (table)",
    ),
];

/// The most rounds, and the longest measurement.
const MAX_BENCH: u64 = u32::MAX as u64;

/// The loader's options.
pub const LOADER: &[OptionInfo] = &[
    option(
        "loader.unstarted",
        Form::Numbers(0),
        "APIC ids of CPUs never started",
    ),
    option(
        "loader.silent",
        Form::Numbers(0),
        "APIC ids of CPUs that never leave the loader",
    ),
    option(
        "loader.swapped",
        Form::Numbers(0),
        "APIC ids of two CPUs, each listed under the other's",
    ),
    option(
        "loader.msr",
        Form::Text("APICID|all:MSR:VALUE, several by commas"),
        "registers in which CPUs are odd",
    ),
    option(
        "loader.deny",
        Form::OneOrSome(
            &[],
            &[
                "hhdm",
                "memory-map",
                "mp",
                "rsdp",
                "cmdline",
                "executable-address",
                "stack-size",
                "bootloader-info",
                "paging-mode",
                "base-revision",
            ],
        ),
        "features left unanswered",
    ),
    option(
        "loader.revision",
        Form::Number(0, u64::MAX),
        "newest base revision supported",
    ),
    option(
        "loader.memory-map",
        Form::OneOf(&["awkward"]),
        "a memory map in odd pieces",
    ),
    option(
        "loader.hhdm",
        Form::OneOf(&["random"]),
        "the HHDM at a random base",
    ),
    option(
        "loader.levels",
        Form::OneOf(&["4", "5"]),
        "levels of page tables, where the CPU has them",
    ),
    option(
        "loader.verbose",
        Form::Flag,
        "every step of the loader's in the log",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn message(word: &str) -> String {
        let tables = [RUNNER, KERNEL, SELFTEST, BENCH, LOADER];
        OptionInfo::find(word, &tables).unwrap_err().to_string()
    }

    #[test]
    fn each_option_is_found_by_its_name_alone() {
        let mut names = Vec::new();
        for option in [RUNNER, KERNEL, SELFTEST, BENCH, LOADER].concat() {
            assert!(!names.contains(&option.name), "{} twice", option.name);
            names.push(option.name);
        }
        assert!(names.contains(&"stress") && names.contains(&"loader.verbose"));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (word, expected) in [
            (
                "stres=all",
                "unknown option `stres`, did you mean `stress`?",
            ),
            ("stres", "unknown option `stres`, did you mean `stress`?"),
            ("SEED=1", "unknown option `SEED`, did you mean `seed`?"),
            (
                "loader.silnt=3",
                "unknown option `loader.silnt`, did you mean `loader.silent`?",
            ),
            ("quickly", "unknown option `quickly`"),
            ("=1", "unknown option ``"),
            ("seed", "`seed` needs a value, `seed=`: a whole number"),
            (
                "bench",
                "`bench` needs a value, `bench=`: `just arguments` lists the names that it takes",
            ),
            (
                "seed=x",
                "invalid value `x` for `seed`: must be a whole number",
            ),
            (
                "cpus=0",
                "invalid value `0` for `cpus`: must be a whole number from 1",
            ),
            (
                "stress=churn,mixd",
                "invalid value `churn,mixd` for `stress`, did you mean `mixed`?",
            ),
            (
                "fault=heat",
                "invalid value `heat` for `fault`: `just arguments` lists the names that it takes",
            ),
            (
                "log=debug1",
                "invalid value `debug1` for `log`, did you mean `debug`?",
            ),
            (
                "log=",
                "invalid value `` for `log`: must be error|warn|info|debug|trace",
            ),
            (
                "loader.verbose=1",
                "invalid value `1` for `loader.verbose`: must be without a value",
            ),
        ] {
            assert_eq!(message(word), expected, "{word}");
        }
    }

    #[test]
    fn any_value_of_a_form_is_found() {
        for (word, name, value) in [
            ("seed=7", "seed", "7"),
            ("stress=all", "stress", "all"),
            ("qemu-args=-d int", "qemu-args", "-d int"),
            ("cpu=max,+x=y", "cpu", "max,+x=y"),
            ("loader.verbose", "loader.verbose", ""),
        ] {
            let tables = [RUNNER, KERNEL, SELFTEST, BENCH, LOADER];
            let (option, found) = OptionInfo::find(word, &tables).unwrap();
            assert_eq!((option.name, found), (name, value));
        }
    }

    #[cfg(feature = "bench")]
    #[test]
    fn the_workloads_of_the_benchmarks_are_theirs() {
        let names = muster_bench::Workload::ALL.map(muster_bench::Workload::name);
        let Some(Form::OneOrSome(_, listed)) = BENCH.first().map(|option| option.form) else {
            panic!("bench= is the first");
        };
        assert_eq!(listed, names);
    }
}
