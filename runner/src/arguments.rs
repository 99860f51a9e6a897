//! The arguments of a run, `[CPUS] [key=value…]`: one table holds every key with
//! its form, and reads, checks and explains it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use muster_arguments::{Fault, Heap, LogLevel, Output, Reclaim, Step, Workload};
use muster_runner::pause::Pause;

use crate::bochs;
use crate::emulator::Kind;
use crate::machine::{Acceleration, Machine};

/// The CPUs of a run that names none.
const DEFAULT_CPUS: u32 = 8;

/// The most CPUs that a QEMU machine takes (q35 and microvm; pc has 255).
const MOST_CPUS: u32 = 288;

/// A run without `timeout=` may take this long beyond the stress itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same on Bochs, whose time goes as many times slower than the host's as it has CPUs, or worse.
const BOCHS_TIMEOUT: Duration = Duration::from_secs(600);

/// How long the kernel's stress lasts when no `seconds=` says so.
const DEFAULT_STRESS: Duration = Duration::from_secs(8);

/// How long benchmarks may take that no `timeout=` limits: with `rounds=` and `time=`
/// they take what they are given.
const BENCH_PATIENCE: Duration = Duration::from_secs(3600);

/// The memory of a machine for benchmarks: each allocator has an arena of its own.
const BENCH_MEMORY: &str = "1G";

/// The word that asks the kernel for its prompt.
pub const MONITOR: &str = "monitor=yes";

/// The least memory of a machine, in bytes. With less, QEMU's firmware finds no place for itself, and
/// stands still or resets without a word.
const MIN_MEMORY: u64 = 2 * 1024 * 1024;

/// What puts the kernel into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// Muster's own loader, by QEMU's `-kernel`. Bochs has nothing like it.
    Embedded,
    /// The Limine bootloader, from a disc image.
    Limine,
}

/// The firmware of a run from disc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// QEMU's SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

/// What a disc image is put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// A CD drive.
    Cd,
    /// A USB stick.
    Usb,
}

/// What is in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// All that it needs.
    Plain,
    /// And the benchmarks.
    Bench,
}

/// Where the kernel's events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// Nowhere: none are asked for.
    Nowhere,
    /// To a file beside the log.
    File,
    /// There, and to the standard output, of which the log keeps out.
    Stdout,
}

/// One run of the kernel, as asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The emulator.
    pub emulator: Kind,
    /// QEMU's `-smp`, or Bochs' `count`: a number of CPUs, or a topology.
    pub smp: String,
    /// QEMU's `-m`.
    pub memory: String,
    /// QEMU's machine type.
    pub machine: Machine,
    /// QEMU's `-cpu`, or Bochs' `model`.
    pub cpu: String,
    /// What executes the guest's instructions.
    pub acceleration: Acceleration,
    /// What puts the kernel into memory.
    pub boot: Boot,
    /// The firmware of a run from disc.
    pub firmware: Firmware,
    /// What a disc image is put into.
    pub drive: Drive,
    /// What Limine is to set the screen to, if not to what it finds.
    pub resolution: Option<String>,
    /// The run is a hang if it takes longer. It has no limit while a person is at its prompt.
    pub time_limit: Option<Duration>,
    /// QEMU itself.
    pub qemu: PathBuf,
    /// Bochs itself.
    pub bochs: PathBuf,
    /// What is in the kernel.
    pub build: Build,
    /// Where the kernel's events go.
    pub events: Events,
    /// A CPU that is stopped for a while.
    pub pause: Option<Pause>,
    /// Further arguments for QEMU.
    pub qemu_arguments: Vec<String>,
    /// The kernel's command line, the loader's words included.
    pub words: Vec<String>,
    /// All that was asked for, as it was.
    pub arguments: Vec<String>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            emulator: Kind::Qemu,
            smp: DEFAULT_CPUS.to_string(),
            memory: "512M".into(),
            machine: Machine::Q35,
            cpu: "max".into(),
            acceleration: Acceleration::Auto,
            boot: Boot::Embedded,
            firmware: Firmware::Bios,
            drive: Drive::Cd,
            resolution: None,
            time_limit: Some(DEFAULT_STRESS + PATIENCE),
            qemu: "qemu-system-x86_64".into(),
            bochs: "bochs".into(),
            build: Build::Plain,
            events: Events::Nowhere,
            pause: None,
            qemu_arguments: Vec::new(),
            words: Vec::new(),
            arguments: Vec::new(),
        }
    }
}

impl Run {
    /// Whether the kernel gives a prompt.
    pub fn is_monitored(&self) -> bool {
        self.words.iter().any(|word| word == MONITOR)
    }

    /// Returns the machine's memory in bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        size(&self.memory)
    }
}

/// Arguments that make no sense. Shown with the list of those that do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentError {
    /// No such key.
    UnknownKey(String),
    /// A key with a value that is not of its form.
    BadValue {
        /// The argument as given.
        argument: String,
        /// What the value must look like.
        form: String,
    },
    /// A number of CPUs that no machine has.
    BadCpus(String),
    /// Neither a number nor `key=value`.
    NotUnderstood(String),
    /// The same key, or the number of CPUs, more than once.
    Repeated(String),
    /// Two arguments that exclude each other.
    Contradiction(&'static str),
    /// A key that means nothing on Bochs.
    ForQemu(String),
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey(argument) => write!(f, "no such key: {argument}")?,
            Self::BadValue { argument, form } => write!(f, "{argument}: must be {form}")?,
            Self::BadCpus(cpus) => write!(f, "{cpus} CPUs: must be 1 to {MOST_CPUS}")?,
            Self::NotUnderstood(argument) => {
                write!(f, "{argument}: neither a number of CPUs nor key=value")?;
            }
            Self::Repeated(what) => write!(f, "{what} is given twice")?,
            Self::Contradiction(why) => f.write_str(why)?,
            Self::ForQemu(name) => write!(f, "{name}= is for QEMU, not for machine=bochs")?,
        }
        writeln!(f, "\n")?;
        f.write_str(&help())
    }
}

impl std::error::Error for ArgumentError {}

/// Who reads a key, and how the runner takes the ones that are its own.
#[derive(Clone, Copy)]
enum Reader {
    /// The runner; gives `None` for a bad value.
    Runner(fn(&mut Run, &str) -> Option<()>),
    /// The kernel: passed on as it is.
    Kernel,
    /// The benchmarks: passed on as it is, to a kernel that has them.
    Bench,
    /// The loader: passed on as it is.
    Loader,
}

/// What a value looks like.
#[derive(Clone, Copy)]
enum Form {
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// One or several of these words, or of numbers if there are none.
    ListOf(&'static [&'static str]),
    /// A word without a value.
    Flag,
    /// `all`, `none`, or one or several of these words.
    AllNoneOr(&'static [&'static str]),
    /// A whole number.
    Number,
    /// Seconds, with at most three decimals; not 0.
    Seconds,
    /// A number and a unit.
    Size,
    /// Any text, described.
    Text(&'static str),
}

/// One key of the table.
struct Key {
    name: &'static str,
    form: Form,
    meaning: &'static str,
    reader: Reader,
}

impl Key {
    /// Its name as it is written on the command line.
    fn written(&self) -> String {
        match self.form {
            Form::Flag => self.name.into(),
            _ => format!("{}=", self.name),
        }
    }

    /// Adds its name and meaning, and below them its form.
    fn explain(&self, text: &mut String) {
        *text += &format!("  {:<18} {}\n", self.written(), self.meaning);
        let mut line = String::new();
        for word in self.form.to_string().split_inclusive([' ', '|']) {
            if FORM_COLUMN + line.len() + word.trim_end().len() > 80 {
                *text += &format!("{:FORM_COLUMN$}{}\n", "", line.trim_end());
                line.clear();
            }
            line += word;
        }
        *text += &format!("{:FORM_COLUMN$}{}\n", "", line.trim_end());
    }
}

/// Where a key's meaning and form begin in the help.
const FORM_COLUMN: usize = 21;

/// Keys that mean nothing on Bochs.
const FOR_QEMU: [&str; 9] = [
    "accel",
    "firmware",
    "drive",
    "resolution",
    "pause",
    "qemu",
    "qemu-args",
    "events",
    "output",
];

const FEATURES: &[&str] = &[
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
];

const KEYS: &[Key] = &[
    runner(
        "mem",
        Form::Size,
        "memory of the machine (512M)",
        |run, value| {
            run.memory = value.into();
            Some(())
        },
    ),
    runner(
        "machine",
        Form::OneOf(&["pc", "q35", "microvm", "bochs"]),
        "machine type of QEMU (q35), or Bochs, by Limine",
        |run, value| {
            match Machine::named(value) {
                Some(machine) => run.machine = machine,
                None if value == "bochs" => run.emulator = Kind::Bochs,
                None => return None,
            }
            Some(())
        },
    ),
    runner(
        "cpu",
        Form::Text("a model of QEMU's, such as max,-pdpe1gb, or of Bochs', such as ryzen"),
        "CPU (max; on Bochs corei7_haswell_4770)",
        |run, value| {
            run.cpu = value.into();
            Some(())
        },
    ),
    runner(
        "smp",
        Form::Text("QEMU's -smp, such as 8,sockets=2, or Bochs' count, such as 2:4:1"),
        "topology, for CPUS",
        |run, value| {
            run.smp = value.into();
            Some(())
        },
    ),
    runner(
        "accel",
        Form::OneOf(&["auto", "tcg", "kvm", "turns", "icount"]),
        "acceleration (auto); icount counts instructions",
        |run, value| {
            run.acceleration = Acceleration::named(value)?;
            Some(())
        },
    ),
    runner(
        "boot",
        Form::OneOf(&["embedded", "limine"]),
        "boot path (embedded)",
        |run, value| {
            run.boot = match value {
                "embedded" => Boot::Embedded,
                "limine" => Boot::Limine,
                _ => return None,
            };
            Some(())
        },
    ),
    runner(
        "firmware",
        Form::OneOf(&["bios", "uefi"]),
        "for boot=limine (bios)",
        |run, value| {
            run.firmware = match value {
                "bios" => Firmware::Bios,
                "uefi" => Firmware::Uefi,
                _ => return None,
            };
            Some(())
        },
    ),
    runner(
        "drive",
        Form::OneOf(&["cd", "usb"]),
        "for boot=limine (cd)",
        |run, value| {
            run.drive = match value {
                "cd" => Drive::Cd,
                "usb" => Drive::Usb,
                _ => return None,
            };
            Some(())
        },
    ),
    runner(
        "resolution",
        Form::Text("pixels and bits, such as 1920x1080 or 1024x768x24"),
        "of the screen, for boot=limine",
        |run, value| {
            let numbers = value.split('x');
            let are_numbers = numbers.clone().all(|number| number.parse::<u16>().is_ok());
            let is_one = are_numbers && (2..=3).contains(&numbers.count());
            run.resolution = Some(value.into()).filter(|_| is_one);
            run.resolution.is_some().then_some(())
        },
    ),
    runner(
        "timeout",
        Form::Seconds,
        "a longer run is a hang (60 + seconds=; Bochs: 600 +)",
        |run, value| {
            run.time_limit = Some(duration(value)?);
            Some(())
        },
    ),
    runner(
        "pause",
        Form::Text("CPU:SECONDS, whole ones"),
        "stop a CPU from outside, once the stress runs",
        |run, value| {
            run.pause = Some(value.parse().ok()?);
            Some(())
        },
    ),
    runner(
        "qemu",
        Form::Text("a path"),
        "QEMU (qemu-system-x86_64)",
        |run, value| {
            run.qemu = value.into();
            Some(())
        },
    ),
    runner(
        "bochs",
        Form::Text("a path"),
        "Bochs (bochs), for machine=bochs",
        |run, value| {
            run.bochs = value.into();
            Some(())
        },
    ),
    runner(
        "events",
        Form::OneOf(&["file", "-"]),
        "of output=json: beside the log, or also stdout (file)",
        |run, value| {
            run.events = match value {
                "file" => Events::File,
                "-" => Events::Stdout,
                _ => return None,
            };
            Some(())
        },
    ),
    runner(
        "qemu-args",
        Form::Text("arguments, quoted as in a shell"),
        "more for QEMU",
        |run, value| {
            run.qemu_arguments = shlex::split(value)?;
            Some(())
        },
    ),
    kernel(
        "stress",
        Form::AllNoneOr(Workload::NAMES),
        "workloads (all)",
    ),
    kernel(
        "seconds",
        Form::Seconds,
        "length of all workloads together (8)",
    ),
    kernel("seed", Form::Number, "seed of everything random (1)"),
    kernel("cpus", Form::Number, "use at most so many CPUs"),
    kernel(
        "deadline",
        Form::Number,
        "milliseconds for all CPUs to report (2000)",
    ),
    kernel("log", Form::OneOf(LogLevel::NAMES), "log level (info)"),
    kernel(
        "output",
        Form::OneOf(Output::NAMES),
        "json: events for programs, too (text)",
    ),
    kernel(
        "show-addresses",
        Form::OneOf(&["yes", "no"]),
        "whether the log shows the kernel's (no)",
    ),
    kernel(
        "heap",
        Form::OneOf(Heap::NAMES),
        "the heap under stress (magazines)",
    ),
    kernel(
        "reclaim",
        Form::OneOf(Reclaim::NAMES),
        "whether loader memory is reclaimed (yes)",
    ),
    kernel(
        "fault",
        Form::OneOf(Fault::NAMES),
        "what to do wrong, to see it reported",
    ),
    kernel(
        "monitor",
        Form::OneOf(&["yes", "no"]),
        "a prompt on the serial line (no)",
    ),
    kernel(
        "die",
        Form::OneOf(Step::NAMES),
        "where on its way up the last AP halts for good",
    ),
    kernel(
        "fall",
        Form::OneOf(Step::NAMES),
        "where it takes an exception",
    ),
    kernel(
        "late",
        Form::OneOf(Step::NAMES),
        "where it waits until it has been given up",
    ),
    kernel(
        "frames-fail",
        Form::Number,
        "the request for frames that is refused, from 1",
    ),
    kernel(
        "nmis",
        Form::OneOf(&["yes", "no"]),
        "whether CPUs send each other NMIs under stress (no)",
    ),
    bench(
        "bench",
        Form::ListOf(&[
            "all",
            "heaps",
            "frames",
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
        ]),
        "workloads (all)",
    ),
    bench(
        "allocators",
        Form::Text("names, by commas"),
        "allocators to compare (all)",
    ),
    bench(
        "on",
        Form::ListOf(&[]),
        "numbers of CPUs to compare on (1,2,4,8)",
    ),
    bench(
        "rounds",
        Form::Number,
        "rounds of which medians are taken (5)",
    ),
    bench(
        "time",
        Form::Number,
        "milliseconds of each measurement (100)",
    ),
    bench(
        "measure",
        Form::OneOf(&["time", "instructions"]),
        "what is measured (time)",
    ),
    bench(
        "format",
        Form::OneOf(&["table", "json"]),
        "of the figures (table)",
    ),
    loader(
        "loader.unstarted",
        Form::ListOf(&[]),
        "APIC ids of CPUs never started",
    ),
    loader(
        "loader.silent",
        Form::ListOf(&[]),
        "APIC ids of CPUs that never leave the loader",
    ),
    loader(
        "loader.swapped",
        Form::ListOf(&[]),
        "APIC ids of two CPUs, each listed under the other's",
    ),
    loader(
        "loader.msr",
        Form::Text("APICID|all:MSR:VALUE, several by commas"),
        "registers in which CPUs are odd",
    ),
    loader(
        "loader.deny",
        Form::ListOf(FEATURES),
        "features left unanswered",
    ),
    loader(
        "loader.revision",
        Form::Number,
        "newest base revision supported",
    ),
    loader(
        "loader.memory-map",
        Form::OneOf(&["awkward"]),
        "a memory map in odd pieces",
    ),
    loader(
        "loader.hhdm",
        Form::OneOf(&["random"]),
        "the HHDM at a random base",
    ),
    loader(
        "loader.levels",
        Form::OneOf(&["4", "5"]),
        "levels of page tables, where the CPU has them",
    ),
    loader(
        "loader.verbose",
        Form::Flag,
        "every step of the loader's in the log",
    ),
];

const fn runner(
    name: &'static str,
    form: Form,
    meaning: &'static str,
    take: fn(&mut Run, &str) -> Option<()>,
) -> Key {
    Key {
        name,
        form,
        meaning,
        reader: Reader::Runner(take),
    }
}

const fn kernel(name: &'static str, form: Form, meaning: &'static str) -> Key {
    Key {
        name,
        form,
        meaning,
        reader: Reader::Kernel,
    }
}

const fn bench(name: &'static str, form: Form, meaning: &'static str) -> Key {
    Key {
        name,
        form,
        meaning,
        reader: Reader::Bench,
    }
}

const fn loader(name: &'static str, form: Form, meaning: &'static str) -> Key {
    Key {
        name,
        form,
        meaning,
        reader: Reader::Loader,
    }
}

impl Form {
    fn admits(self, value: &str) -> bool {
        match self {
            Self::OneOf(words) => words.contains(&value),
            Self::ListOf([]) => value.split(',').all(is_number),
            Self::ListOf(words) => value.split(',').all(|word| words.contains(&word)),
            Self::AllNoneOr(words) => {
                ["all", "none"].contains(&value) || Self::ListOf(words).admits(value)
            }
            Self::Flag => value.is_empty(),
            Self::Number => is_number(value),
            Self::Seconds => duration(value).is_some_and(|duration| !duration.is_zero()),
            Self::Size => size(value).is_some_and(|bytes| bytes >= MIN_MEMORY),
            Self::Text(_) => !value.is_empty(),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneOf(words) => f.write_str(&words.join("|")),
            Self::ListOf([]) => f.write_str("N[,N…]"),
            Self::ListOf(words) => write!(f, "one or more, by commas, of {}", words.join("|")),
            Self::AllNoneOr(words) => write!(f, "all|none|{}, several by commas", words.join("|")),
            Self::Flag => f.write_str("alone, without a value"),
            Self::Number => f.write_str("a whole number"),
            Self::Seconds => f.write_str("seconds above 0, such as 30 or 0.125"),
            Self::Size => f.write_str("2M or more, with its unit, such as 64M or 6G"),
            Self::Text(what) => f.write_str(what),
        }
    }
}

fn is_number(text: &str) -> bool {
    is_digits(text) && text.parse::<u64>().is_ok()
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the bytes that QEMU takes a size for: a number without a unit counts MiB.
fn size(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let shift = match text.strip_prefix(number)? {
        "K" => 10,
        "" | "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let number = number.parse::<u64>().ok().filter(|_| is_digits(number))?;
    number.checked_mul(1 << shift)
}

/// Seconds as the kernel reads them too.
fn duration(seconds: &str) -> Option<Duration> {
    let (whole, decimals) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let formed = is_digits(whole) && is_digits(decimals) && decimals.len() <= 3;
    Duration::try_from_secs_f64(seconds.parse().ok().filter(|_| formed)?).ok()
}

/// Every argument, with its form and meaning, in lines of at most 80 columns.
pub fn help() -> String {
    let mut text =
        format!("arguments: [CPUS] [key=value…]\n  CPUS: 1 to {MOST_CPUS} ({DEFAULT_CPUS})\n");
    let runners = KEYS
        .iter()
        .filter(|key| matches!(key.reader, Reader::Runner(_)));
    let kernels = KEYS
        .iter()
        .filter(|key| matches!(key.reader, Reader::Kernel));
    let benches = KEYS
        .iter()
        .filter(|key| matches!(key.reader, Reader::Bench));
    let loaders = KEYS
        .iter()
        .filter(|key| matches!(key.reader, Reader::Loader));
    text += "of the machine and its run:\n";
    runners.for_each(|key| key.explain(&mut text));
    text += "of the kernel:\n";
    kernels.for_each(|key| key.explain(&mut text));
    text += "of the benchmarks:\n";
    benches.for_each(|key| key.explain(&mut text));
    text += "of the loader, to play a bad one:\n";
    loaders.for_each(|key| key.explain(&mut text));
    text
}

/// Reads the arguments of a run.
///
/// # Errors
/// [`ArgumentError`] for the first argument that makes no sense.
pub fn parse<A: AsRef<str>>(arguments: &[A]) -> Result<Run, ArgumentError> {
    let mut run = Run::default();
    let mut seen: Vec<&str> = Vec::new();
    let mut time_limit_given = false;
    let mut stress = DEFAULT_STRESS;
    let mut output_is_json = false;
    for argument in arguments {
        let argument = argument.as_ref();
        if argument.starts_with(|first: char| first.is_ascii_digit()) {
            take_cpus(&mut run, argument)?;
            run.arguments.push(argument.into());
            note(&mut seen, "CPUS")?;
            continue;
        }
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return Err(match argument.contains('=') {
                true => ArgumentError::UnknownKey(argument.into()),
                false => ArgumentError::NotUnderstood(argument.into()),
            });
        };
        note(&mut seen, key.name)?;
        run.arguments.push(argument.into());
        let bad = || ArgumentError::BadValue {
            argument: argument.into(),
            form: key.form.to_string(),
        };
        let admitted = key.form.admits(value);
        match key.reader {
            _ if !admitted => return Err(bad()),
            Reader::Runner(take) => take(&mut run, value).ok_or_else(bad)?,
            Reader::Kernel | Reader::Loader => run.words.push(argument.into()),
            Reader::Bench => {
                run.build = Build::Bench;
                run.words.push(argument.into());
            }
        }
        match key.name {
            "timeout" => time_limit_given = true,
            "seconds" => stress = duration(value).ok_or_else(bad)?,
            "output" => output_is_json = value == Output::Json.name(),
            _ => {}
        }
    }
    if output_is_json && run.events == Events::Nowhere {
        run.events = Events::File;
    }
    if !time_limit_given {
        run.time_limit = match run.build {
            _ if run.is_monitored() => None,
            Build::Plain => Some(
                stress
                    + match run.emulator {
                        Kind::Qemu => PATIENCE,
                        Kind::Bochs => BOCHS_TIMEOUT,
                    },
            ),
            Build::Bench => Some(BENCH_PATIENCE),
        };
    }
    if run.build == Build::Bench && !seen.contains(&"mem") {
        run.memory = BENCH_MEMORY.into();
    }
    if run.emulator == Kind::Bochs {
        // It boots from discs alone.
        if !seen.contains(&"boot") {
            run.boot = Boot::Limine;
        }
        if !seen.contains(&"cpu") {
            run.cpu = bochs::DEFAULT_CPU.into();
        }
    }
    let is_for_qemu = |name: &&&str| FOR_QEMU.contains(name);
    if let Some(name) = (seen.iter().find(is_for_qemu)).filter(|_| run.emulator == Kind::Bochs) {
        return Err(ArgumentError::ForQemu((*name).into()));
    }
    let is_whole = run
        .memory_bytes()
        .is_some_and(|bytes| bytes % (1 << 20) == 0);
    let contradiction = if seen.contains(&"CPUS") && seen.contains(&"smp") {
        "CPUS and smp= exclude each other"
    } else if seen.contains(&"events") && !output_is_json {
        "events= needs output=json"
    } else if seen.contains(&"bochs") && run.emulator != Kind::Bochs {
        "bochs= needs machine=bochs"
    } else if run.emulator == Kind::Bochs && run.boot != Boot::Limine {
        "machine=bochs needs boot=limine"
    } else if run.emulator == Kind::Bochs && !is_whole {
        "machine=bochs needs mem= in whole MiB"
    } else if run.boot == Boot::Embedded && run.firmware == Firmware::Uefi {
        "firmware=uefi needs boot=limine"
    } else if run.boot == Boot::Embedded && run.drive == Drive::Usb {
        "drive=usb needs boot=limine"
    } else if run.boot == Boot::Embedded && run.resolution.is_some() {
        "resolution= needs boot=limine"
    } else if run.boot == Boot::Limine && run.machine == Machine::Microvm {
        "boot=limine needs a disc, which machine=microvm does not have"
    } else if run.boot == Boot::Limine && seen.iter().any(|name| name.starts_with("loader.")) {
        "loader.* words need boot=embedded"
    } else {
        return Ok(run);
    };
    Err(ArgumentError::Contradiction(contradiction))
}

/// Parts what is asked for of two runs: the arguments of the one under stress, and of the one of the
/// benchmarks. Those of the machine are for both, as are those that nobody knows, for [`parse`] to name.
pub fn part(arguments: &[String]) -> (Vec<String>, Vec<String>) {
    let mut parts = (Vec::new(), Vec::new());
    for argument in arguments {
        let name = argument
            .split_once('=')
            .map_or(&**argument, |(name, _)| name);
        let key = KEYS.iter().find(|key| key.name == name);
        let (is_of_stress, is_of_bench) = match key.map(|key| key.reader) {
            Some(Reader::Kernel) => (true, false),
            Some(Reader::Bench) => (false, true),
            Some(Reader::Runner(_) | Reader::Loader) | None => (true, true),
        };
        if is_of_stress {
            parts.0.push(argument.clone());
        }
        if is_of_bench {
            parts.1.push(argument.clone());
        }
    }
    parts
}

/// A command's own words and the user's, whose go before the command's for the same key.
pub fn with_defaults(own: &[impl AsRef<str>], words: &[String]) -> Vec<String> {
    let key = |word: &str| word.split_once('=').map_or("", |(key, _)| key).to_owned();
    let given: Vec<_> = words.iter().map(|word| key(word)).collect();
    let own = own.iter().map(AsRef::as_ref);
    let own = own.filter(|word| !given.contains(&key(word)));
    own.map(String::from).chain(words.iter().cloned()).collect()
}

fn take_cpus(run: &mut Run, argument: &str) -> Result<(), ArgumentError> {
    if !is_digits(argument) {
        return Err(ArgumentError::NotUnderstood(argument.into()));
    }
    match argument.parse() {
        Ok(cpus) if (1..=MOST_CPUS).contains(&cpus) => run.smp = cpus.to_string(),
        _ => return Err(ArgumentError::BadCpus(argument.into())),
    }
    Ok(())
}

fn note(seen: &mut Vec<&'static str>, name: &'static str) -> Result<(), ArgumentError> {
    if seen.contains(&name) {
        return Err(ArgumentError::Repeated(name.into()));
    }
    seen.push(name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(parse::<&str>(&[]), Ok(Run::default()));
        assert_eq!(Run::default().time_limit, Some(Duration::from_secs(68)));
    }

    #[test]
    fn the_issue_s_example_is_read() {
        let run = parse(&["8", "stress=mixed", "seconds=30", "mem=2G"]).unwrap();
        assert_eq!((run.smp.as_str(), run.memory.as_str()), ("8", "2G"));
        assert_eq!(run.words, ["stress=mixed", "seconds=30"]);
        assert_eq!(run.time_limit, Some(Duration::from_secs(90)));
    }

    #[test]
    fn every_runner_key_is_taken() {
        let run = parse(&[
            "machine=microvm",
            "cpu=max,-pdpe1gb",
            "smp=4,sockets=2",
            "accel=tcg",
            "boot=embedded",
            "firmware=bios",
            "timeout=1.5",
            "pause=3:5",
            "qemu=/bin/true",
            "qemu-args=-d int -D 'a b'",
            "seconds=100",
        ])
        .unwrap();
        assert_eq!(run.machine, Machine::Microvm);
        assert_eq!(run.cpu, "max,-pdpe1gb");
        assert_eq!(run.smp, "4,sockets=2");
        assert_eq!(run.acceleration, Acceleration::Tcg);
        assert_eq!(run.time_limit, Some(Duration::from_millis(1500)));
        assert_eq!(run.pause, "3:5".parse().ok());
        assert_eq!(run.qemu, PathBuf::from("/bin/true"));
        assert_eq!(run.qemu_arguments, ["-d", "int", "-D", "a b"]);
        let run = parse(&["boot=limine", "firmware=uefi", "log=debug"]).unwrap();
        assert_eq!((run.boot, run.firmware), (Boot::Limine, Firmware::Uefi));
    }

    #[test]
    fn bochs_is_a_machine_with_defaults_of_its_own() {
        let run = parse(&["4", "machine=bochs", "stress=none"]).unwrap();
        assert_eq!((run.emulator, run.boot), (Kind::Bochs, Boot::Limine));
        assert_eq!(
            (run.smp.as_str(), run.cpu.as_str()),
            ("4", bochs::DEFAULT_CPU)
        );
        assert_eq!(run.memory_bytes(), Some(512 << 20));
        assert_eq!(run.time_limit, Some(Duration::from_secs(608)));
        let words = [
            "cpu=ryzen",
            "machine=bochs",
            "bochs=/b",
            "smp=2:2:1",
            "timeout=9",
        ];
        let run = parse(&words).unwrap();
        assert_eq!((run.cpu.as_str(), run.smp.as_str()), ("ryzen", "2:2:1"));
        assert_eq!(run.bochs, PathBuf::from("/b"));
        assert_eq!(run.time_limit, Some(Duration::from_secs(9)));
        for word in ["accel=tcg", "pause=1:1", "output=json", "qemu-args=-S"] {
            let error = parse(&["machine=bochs", word]).unwrap_err();
            assert!(
                matches!(error, ArgumentError::ForQemu(_)),
                "{word}: {error}"
            );
        }
        assert_eq!(parse(&["machine=pc"]).unwrap().emulator, Kind::Qemu);
    }

    #[test]
    fn kernel_and_loader_words_are_passed_on_in_order() {
        let words = [
            "loader.deny=hhdm,mp",
            "seed=42",
            "loader.silent=3,5",
            "stress=churn,exhaustion",
            "loader.memory-map=awkward",
            "loader.verbose",
        ];
        assert_eq!(parse(&words).unwrap().words, words);
    }

    #[test]
    fn a_word_of_the_benchmarks_asks_for_their_kernel() {
        let run = parse(&["bench=mixed,frame-pair", "on=1,8"]).unwrap();
        assert_eq!((run.build, run.memory.as_str()), (Build::Bench, "1G"));
        assert_eq!(run.words, ["bench=mixed,frame-pair", "on=1,8"]);
        let run = parse(&["rounds=3", "mem=2G", "timeout=5"]).unwrap();
        assert_eq!((run.build, run.memory.as_str()), (Build::Bench, "2G"));
        assert_eq!(run.time_limit, Some(Duration::from_secs(5)));
        assert_eq!(parse(&["stress=all"]).unwrap().build, Build::Plain);
    }

    #[test]
    fn the_benchmarks_words_are_not_for_the_stress() {
        let words = [
            "4",
            "seconds=2",
            "on=1,4",
            "mem=2G",
            "loader.verbose",
            "nonsense",
        ];
        let (stress, bench) = part(&words.map(String::from));
        assert_eq!(
            stress,
            ["4", "seconds=2", "mem=2G", "loader.verbose", "nonsense"]
        );
        assert_eq!(
            bench,
            ["4", "on=1,4", "mem=2G", "loader.verbose", "nonsense"]
        );
    }

    #[test]
    fn a_person_has_time() {
        let run = parse(&["seconds=5", "monitor=yes"]).unwrap();
        assert!(run.is_monitored());
        assert_eq!(run.time_limit, None);
        let run = parse(&["timeout=30", "monitor=yes"]).unwrap();
        assert_eq!(run.time_limit, Some(Duration::from_secs(30)));
        assert!(!parse(&["monitor=no"]).unwrap().is_monitored());
    }

    #[test]
    fn events_go_to_a_file_unless_told_otherwise() {
        let of = |arguments: &[&str]| parse(arguments).unwrap().events;
        assert_eq!(of(&["output=text"]), Events::Nowhere);
        assert_eq!(of(&["output=json"]), Events::File);
        assert_eq!(of(&["events=-", "output=json"]), Events::Stdout);
        let run = parse(&["4", "output=json", "events=-"]).unwrap();
        assert_eq!(run.words, ["output=json"]);
        assert_eq!(run.arguments, ["4", "output=json", "events=-"]);
    }

    #[test]
    fn wrong_arguments_are_told_apart() {
        let error = |arguments: &[&str]| parse(arguments).unwrap_err();
        assert_eq!(
            error(&["sterss=all"]),
            ArgumentError::UnknownKey("sterss=all".into())
        );
        assert_eq!(error(&["0"]), ArgumentError::BadCpus("0".into()));
        assert_eq!(
            error(&["99999999999"]),
            ArgumentError::BadCpus("99999999999".into())
        );
        assert_eq!(
            error(&["fast"]),
            ArgumentError::NotUnderstood("fast".into())
        );
        assert_eq!(error(&["-8"]), ArgumentError::NotUnderstood("-8".into()));
        assert_eq!(error(&["8", "4"]), ArgumentError::Repeated("CPUS".into()));
        assert_eq!(
            error(&["mem=1G", "mem=2G"]),
            ArgumentError::Repeated("mem".into())
        );
        for argument in [
            "mem=much",
            "mem=0",
            "machine=isapc",
            "accel=hvf",
            "seconds=-1",
            "seconds=0",
            "seconds=inf",
            "timeout=NaN",
            "stress=chrun",
            "bench=chrun",
            "stress=",
            "fault=panic",
            "log=verbose",
            "seed=0x2a",
            "seconds=1e3",
            "seconds=0.0001",
            "seconds=.5",
            "stress=all,churn",
            "loader.verbose=1",
            "loader.deny=hhdm,everything",
            "loader.silent=a",
            "loader.hhdm=0",
            "qemu-args='unclosed",
            "cpu=",
            "pause=3",
            "mem=1",
            "mem=1M",
            "mem=2047K",
            "mem=2MM",
            "mem=99999999999T",
        ] {
            assert!(
                matches!(error(&[argument]), ArgumentError::BadValue { .. }),
                "{argument}"
            );
        }
        for arguments in [
            &["8", "smp=8,sockets=2"][..],
            &["firmware=uefi"],
            &["drive=usb"],
            &["resolution=640x480"],
            &["boot=limine", "machine=microvm"],
            &["boot=limine", "loader.hhdm=random"],
            &["events=-"],
            &["output=text", "events=file"],
            &["bochs=/bin/bochs"],
            &["machine=bochs", "boot=embedded"],
            &["machine=bochs", "mem=6500K"],
            &["machine=bochs", "loader.hhdm=random"],
        ] {
            assert!(
                matches!(error(arguments), ArgumentError::Contradiction(_)),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn the_help_lists_every_key_in_80_columns() {
        let help = help();
        for key in KEYS {
            assert!(
                help.contains(&format!("  {} ", key.written())),
                "{}",
                key.name
            );
        }
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(
            parse(&["nonsense=1"])
                .unwrap_err()
                .to_string()
                .contains("stress=")
        );
    }
}
