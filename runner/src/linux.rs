//! `bench linux`: Debian's Linux 6.1 in the machine that Muster runs in, its
//! allocators beside Muster's, in boots that alternate.
//!
//! The machine holds a kernel, an initial file system and nothing else: our
//! module (`bench/linux/muster_bench.c`), which measures while it is inserted,
//! and the program that inserts it (`bench/linux/init.c`).

use std::env;
use std::fmt;
use std::fs;
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cpio::NewcBuilder;

use crate::arguments::{self, ArgumentError, Boot, Build, Run};
use crate::boot_log::BootLog;
use crate::figures::{self, Comparison, Figure, Measure, Sitting};
use crate::images::{self, Images};
use crate::machine::{self, Acceleration, Machine, Medium};
use crate::requirements;
use crate::run;
use crate::session::{self, Interrupt, Launch, Rules, Verdict};
use crate::symbols::Symbols;
use crate::workspace::{self, shown};

/// The module's name for what it measures.
const LINUX: &str = "linux-6.1";
/// The name of our own heap in its benchmark's JSON.
const MUSTER: &str = "muster";

/// The module, its Kbuild file and its source.
const MODULE: &str = "muster_bench.ko";
const MODULE_SOURCES: [&str; 2] = ["Kbuild", "muster_bench.c"];

/// The most CPUs that the module has room for.
const MOST_CPUS: u32 = 64;

/// The workloads of the module, by their names in our own benchmark, and the
/// rounds that it takes.
const BENCHES: &str = "churn,mixed,larson,xfree,frame-pair,frame-bulk";
const WORKLOADS: u32 = 6;
const MOST_ROUNDS: u32 = 99;

/// Linux's command line in any case: its log on the serial line without
/// timestamps, which would tear the figures' lines, and an end, not a hang, if
/// it panics.
const WORDS: &str = "console=ttyS0 loglevel=6 printk.time=0 panic=-1";

/// The memory of the machine: as much as Muster's own benchmark has.
const MEMORY: &str = "1G";

/// How long Linux takes to boot on a slow host, and with instructions counted.
const TIMEOUT: Duration = Duration::from_secs(120);
const COUNTING_TIMEOUT: Duration = Duration::from_secs(600);

/// Something that is needed to build for, and boot, Linux 6.1 is missing.
#[derive(Debug, PartialEq, Eq)]
pub enum NoLinux {
    /// No image in this folder.
    Image(PathBuf),
    /// The newest image has this version, but none has headers.
    Headers(String),
    /// A program.
    Program(&'static str),
}

impl fmt::Display for NoLinux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(folder) => {
                write!(f, "no kernel of Debian 12 in {}", folder.display())?;
            }
            Self::Headers(version) => write!(f, "no headers of Linux {version}")?,
            Self::Program(name) => write!(f, "no {name}")?,
        }
        f.write_str(
            "\nTo measure Linux, get Debian 12's kernel and what builds a module for it:\n  \
             apt-get install linux-image-amd64 linux-headers-amd64 make gcc libc6-dev\n\
             A kernel that should not be in /boot can be unpacked elsewhere:\n  \
             apt-get download linux-image-VERSION-amd64 && dpkg -x linux-image-*.deb FOLDER\n  \
             LINUX_DIR=FOLDER before the command",
        )
    }
}

impl std::error::Error for NoLinux {}

/// How Linux is told to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    /// Without mitigations, and without memory zeroed when it is allocated.
    Bare,
    /// As Debian sets it up.
    Default,
}

impl Setting {
    /// Its name, and its words on Linux's command line.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Bare => ("bare", "mitigations=off init_on_alloc=0 init_on_free=0"),
            Self::Default => ("default", ""),
        }
    }
}

/// What to measure, and how.
#[derive(Debug, PartialEq)]
struct Options {
    measure: Measure,
    setting: Setting,
    /// Rounds in a boot.
    rounds: u32,
    /// Milliseconds of a workload in a round.
    time: u32,
    boots: u32,
    is_json: bool,
    /// The machine.
    run: Run,
}

impl Options {
    /// `[instructions] [CPUS] [key=value…]`; keys that are not the benchmark's
    /// are the machine's.
    fn parse(words: &[String]) -> Result<Self, ArgumentError> {
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
                ("rounds", _) => options.rounds = number(MOST_ROUNDS)?,
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

    /// The numbers of CPUs to measure with: powers of two.
    fn cpus(&self) -> Vec<u32> {
        let count = self.run.smp.split(',').next().unwrap_or_default();
        let count: u32 = count.parse().unwrap_or_default();
        let powers = (0..).map(|power| 1 << power);
        powers
            .take_while(|&cpus| cpus <= count.min(MOST_CPUS))
            .collect()
    }

    /// A longer boot is a hang.
    fn time_limit(&self) -> Duration {
        if self.measure == Measure::Instructions {
            return COUNTING_TIMEOUT;
        }
        let workloads = self.rounds * WORKLOADS * self.cpus().len() as u32;
        // A host with fewer CPUs than the machine is late with every timer.
        TIMEOUT + 4 * workloads * Duration::from_millis(self.time.into())
    }

    /// Linux's command line; what follows `--` is for init.
    fn words(&self) -> String {
        let cpus: Vec<_> = self.cpus().iter().map(u32::to_string).collect();
        let (_, setting) = self.setting.words();
        let what = match self.measure {
            Measure::Pairs => format!("rounds={} time={}", self.rounds, self.time),
            Measure::Instructions => "instructions=1".into(),
        };
        format!("{WORDS} {setting} -- cpus={} {what}", cpus.join(","))
    }

    /// The run of our own kernel that does the same.
    fn muster(&self) -> Run {
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

/// Measures Linux and Muster in turn, and compares them.
///
/// # Errors
/// [`NoLinux`] if something is not installed, before anything is done;
/// [`ArgumentError`]; or if a kernel does not build, boot or come to its end.
pub fn command(words: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    let options = Options::parse(words)?;
    let linux = Linux::find()?;
    let comparison = compare(&options, &linux, interrupt)?;
    if options.is_json {
        write!(io::stdout(), "{}", comparison.json())?;
    } else {
        writeln!(io::stdout(), "{}", headline(&options, &linux))?;
        write!(io::stdout(), "{}", comparison.table())?;
    }
    match comparison.failures() {
        0 => Ok(ExitCode::SUCCESS),
        failures => {
            writeln!(
                io::stderr(),
                "muster: {failures} allocations failed: give the machine more memory, mem="
            )?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn headline(options: &Options, linux: &Linux) -> String {
    let (setting, _) = options.setting.words();
    let boots = match options.boots {
        1 => "one boot each".into(),
        boots => format!("median of {boots} boots each"),
    };
    format!(
        "{}: Linux {} ({setting}) and Muster, {boots}",
        options.measure, linux.version
    )
}

/// Boots Linux and Muster in turn.
fn compare(options: &Options, linux: &Linux, interrupt: &Interrupt) -> Result<Comparison> {
    requirements::check(&options.run)?;
    let medium = linux.build(options)?;
    let muster = options.muster();
    let images = images::build(muster.build)?;
    let mut sittings = Vec::new();
    for boot in 1..=options.boots {
        let of = format!("boot {boot} of {}", options.boots);
        writeln!(io::stderr(), "Linux, {of}")?;
        let reference = linux.measure(options, &medium, interrupt)?;
        writeln!(io::stderr(), "Muster, {of}")?;
        let own = measure_muster(&muster, &images, options.measure, interrupt)?;
        sittings.push(Sitting { reference, own });
    }
    Ok(Comparison {
        measure: options.measure,
        reference: LINUX,
        own: MUSTER,
        sittings,
    })
}

/// Boots our own kernel once, and reads the figures.
///
/// # Errors
/// If QEMU does not start, or the kernel does not pass.
fn measure_muster(
    run: &Run,
    images: &Images,
    measure: Measure,
    interrupt: &Interrupt,
) -> Result<Vec<Figure>> {
    let folder = workspace::boot_log();
    let (outcome, _) = run::boot(run, images, &folder, interrupt, &mut |_| Ok(()), None, None)?;
    let (verdict, reason) = outcome.verdict();
    if verdict != Verdict::Passed {
        bail!("Muster's benchmark {verdict}: {reason}; its log: just boot-log");
    }
    let log = read(&folder.join("all.log"))?;
    let figures = figures::read(&String::from_utf8_lossy(&log), MUSTER, measure)?;
    if figures.is_empty() {
        bail!("Muster's benchmark gave no figures; its log: just boot-log");
    }
    Ok(figures)
}

/// Linux 6.1 as Debian 12 packages it.
#[derive(Debug)]
struct Linux {
    /// As in its files' names, such as `6.1.0-56-amd64`.
    version: String,
    image: PathBuf,
    /// What modules are built in.
    headers: PathBuf,
}

impl Linux {
    /// Finds the newest one that has headers, its image in `/boot` or that of
    /// the folder `LINUX_DIR`.
    ///
    /// # Errors
    /// [`NoLinux`] if an image, its headers or a program is missing.
    fn find() -> Result<Self, NoLinux> {
        let root = env::var_os("LINUX_DIR").filter(|folder| !folder.is_empty());
        let folder = root.map_or_else(|| "/".into(), PathBuf::from).join("boot");
        let mut versions: Vec<_> = fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| version(entry.ok()?.file_name().to_str()?))
            .collect();
        versions.sort();
        let Some((_, newest)) = versions.last().cloned() else {
            return Err(NoLinux::Image(folder));
        };
        let linux = versions.into_iter().rev().find_map(|(_, version)| {
            let headers = Path::new("/lib/modules").join(&version).join("build");
            headers.join("Makefile").exists().then(|| Self {
                image: folder.join(format!("vmlinuz-{version}")),
                headers,
                version,
            })
        });
        let linux = linux.ok_or(NoLinux::Headers(newest))?;
        match ["make", "cc"].iter().find(|name| !is_in_path(name)) {
            Some(program) => Err(NoLinux::Program(program)),
            None => Ok(linux),
        }
    }

    /// Builds module and init, and puts them into an initial file system.
    ///
    /// # Errors
    /// If something does not build.
    fn build(&self, options: &Options) -> Result<Medium> {
        let sources = workspace::root().join("bench").join("linux");
        // Kbuild writes beside its sources, and a module is for one version.
        let folder = workspace::target().join("linux").join(&self.version);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for name in MODULE_SOURCES {
            images::write_if_changed(&folder.join(name), &read(&sources.join(name))?)?;
        }
        let mut make = Command::new("make");
        // What a shell or an outer make has set is not for this kernel.
        for name in ["ARCH", "CROSS_COMPILE", "MAKEFLAGS", "MAKELEVEL"] {
            make.env_remove(name);
        }
        make.arg("-C").arg(&self.headers).arg("modules");
        make.arg(format!("M={}", folder.display()));
        finish(make)?;
        let init = folder.join("init");
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-Wall", "-Wextra", "-static", "-o"]);
        compiler.arg(&init).arg(sources.join("init.c"));
        finish(compiler)?;

        let initramfs = folder.join("initramfs");
        let files = [
            ("init", read(&init)?),
            (MODULE, read(&folder.join(MODULE))?),
        ];
        let archive = archive(&files).context("cannot make an initial file system")?;
        fs::write(&initramfs, archive)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        Ok(Medium::Linux {
            image: self.image.clone(),
            initramfs,
            words: options.words(),
        })
    }

    /// Boots once, and reads the figures.
    ///
    /// # Errors
    /// If QEMU does not start, or Linux does not come to its end.
    fn measure(
        &self,
        options: &Options,
        medium: &Medium,
        interrupt: &Interrupt,
    ) -> Result<Vec<Figure>> {
        let folder = workspace::target().join("linux").join("boot-log");
        let mut log = BootLog::create(&folder)?;
        let qemu = machine::command(&options.run, medium, &log.debug_console());
        let mut show = |line: &str| -> io::Result<()> {
            if line.starts_with("qemu: ") {
                writeln!(io::stderr(), "{line}")?;
            } else if let Some(news) = line.strip_prefix("muster_bench: round ") {
                writeln!(io::stderr(), "  round {news}")?;
            }
            Ok(())
        };
        let outcome = session::run(
            Launch::qemu(qemu),
            Rules {
                limit: options.run.time_limit,
                pause: None,
            },
            interrupt,
            &Symbols::of(&self.image),
            &mut log,
            &mut show,
            None,
        )?;
        let text = fs::read_to_string(log.all())
            .with_context(|| format!("cannot read {}", shown(&log.all())))?;
        if outcome.status() != Some(session::PASSED) {
            if interrupt.came() {
                bail!("interrupted");
            }
            let why = match outcome.status() {
                Some(0) => "it panicked, or has too little memory, mem=".into(),
                Some(status) => format!("QEMU's status is {status}"),
                None => format!(
                    "no end within {:?}, timeout= gives it more",
                    outcome.elapsed
                ),
            };
            let last: Vec<_> = outcome.tail().map(|line| format!("  {line}\n")).collect();
            bail!(
                "Linux did not measure to the end: {why}; its last lines:\n{}the whole log: {}",
                last.concat(),
                shown(&log.all())
            );
        }
        let figures = figures::read(&text, LINUX, options.measure)?;
        if figures.is_empty() {
            bail!("Linux gave no figures; its log: {}", shown(&log.all()));
        }
        Ok(figures)
    }
}

/// The version in the name of an image that Debian 12 builds for PCs, behind
/// the number that grows with it. Kernels for clouds and with real-time
/// preemption are others: `vmlinuz-6.1.0-56-rt-amd64`.
fn version(name: &str) -> Option<(u32, String)> {
    let version = name.strip_prefix("vmlinuz-")?;
    let number = version.strip_prefix("6.1.0-")?.strip_suffix("-amd64")?;
    Some((number.parse().ok()?, version.into()))
}

fn is_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Runs a compiler to its end. What it has to say is said only if it fails.
fn finish(mut command: Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            program.display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// An initial file system of programs, in the format of
/// Documentation/driver-api/early-userspace/buffer-format.rst.
fn archive(files: &[(&str, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let entries = files.iter().map(|(name, content)| {
        // A regular file that may be executed.
        (NewcBuilder::new(name).mode(0o100_755), Cursor::new(content))
    });
    cpio::write_cpio(entries, Vec::new())
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

    #[test]
    fn only_kernels_for_pcs_count() {
        let found = version("vmlinuz-6.1.0-56-amd64");
        assert_eq!(found, Some((56, "6.1.0-56-amd64".into())));
        for name in [
            "vmlinuz-6.1.0-56-rt-amd64",
            "vmlinuz-6.1.0-56-cloud-amd64",
            "vmlinuz-6.12.0-3-amd64",
            "vmlinuz-6.1.0-56-arm64",
            "config-6.1.0-56-amd64",
        ] {
            assert_eq!(version(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_install() {
        for missing in [
            NoLinux::Image("/boot".into()),
            NoLinux::Headers("6.1.0-56-amd64".into()),
            NoLinux::Program("make"),
        ] {
            let text = missing.to_string();
            assert!(text.contains("apt-get install linux-image-amd64 linux-headers-amd64"));
        }
    }

    #[test]
    fn the_archive_holds_the_files() {
        let files = [("init", b"\x7fELF".to_vec()), ("a.ko", vec![7; 5])];
        let mut rest = Cursor::new(archive(&files).unwrap());
        for (name, content) in &files {
            let mut reader = cpio::NewcReader::new(&mut rest).unwrap();
            assert_eq!(reader.entry().name(), *name);
            assert_eq!(reader.entry().mode(), 0o100_755);
            let mut found = Vec::new();
            io::Read::read_to_end(&mut reader, &mut found).unwrap();
            assert_eq!(found, *content);
            reader.finish().unwrap();
        }
        assert!(cpio::NewcReader::new(rest).unwrap().entry().is_trailer());
    }
}
