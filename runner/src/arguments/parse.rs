//! How arguments become a run, by the table of options.

use std::ops::RangeInclusive;
use std::time::Duration;

use muster_arguments::{BENCH, Form, KERNEL, LOADER, OptionInfo, Output, RUNNER, SELFTEST, millis};

use super::contradictions::{self, Asked};
use super::error::ArgumentError;
use super::run::{Boot, Build, DEFAULT_STRESS, Drive, Events, Firmware, MAX_CPUS, Run, TIMEOUT};
use crate::emulators::bochs;
use crate::emulators::emulator::Kind;
use crate::emulators::machine::{Acceleration, Machine};

/// The same on Bochs, whose time goes as many times slower than the host's as it has CPUs, or worse.
const BOCHS_TIMEOUT: Duration = Duration::from_secs(600);

/// How long benchmarks may take that no `timeout=` limits: with `rounds=` and `time=`
/// they take what they are given.
const BENCH_TIMEOUT: Duration = Duration::from_secs(3600);

/// The memory of a machine for benchmarks: each allocator has an arena of its own.
const BENCH_MEMORY: &str = "1G";

/// Options that mean nothing on Bochs.
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

impl Run {
    /// Takes an option of the runner's own. `None`: its value is not what the option is about.
    fn take(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "mem" => self.memory = value.into(),
            "machine" if value == "bochs" => self.emulator = Kind::Bochs,
            "machine" => self.machine = Machine::named(value)?,
            "cpu" => self.cpu = value.into(),
            "smp" => self.smp = value.into(),
            "accel" => self.acceleration = Acceleration::named(value)?,
            "boot" => {
                self.boot = match value {
                    "embedded" => Boot::Embedded,
                    _ => Boot::Limine,
                }
            }
            "firmware" => {
                self.firmware = match value {
                    "bios" => Firmware::Bios,
                    _ => Firmware::Uefi,
                }
            }
            "drive" => {
                self.drive = match value {
                    "cd" => Drive::Cd,
                    _ => Drive::Usb,
                }
            }
            "resolution" => {
                let numbers = value.split('x');
                let are_numbers = numbers.clone().all(|number| number.parse::<u16>().is_ok());
                let is_one = are_numbers && (2..=3).contains(&numbers.count());
                self.resolution = Some(Some(value.into()).filter(|_| is_one)?);
            }
            "timeout" => self.time_limit = Some(Duration::from_millis(millis(value)?)),
            "pause" => self.pause = Some(value.parse().ok()?),
            "qemu" => self.qemu = value.into(),
            "bochs" => self.bochs = value.into(),
            "events" => {
                self.events = match value {
                    "file" => Events::File,
                    _ => Events::Stdout,
                }
            }
            "client" => self.client_words = value.into(),
            "qemu-args" => self.qemu_arguments = shlex::split(value)?,
            _ => return None,
        }
        Some(())
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Reads a whole number, the value of an option that no table has.
///
/// # Errors
/// [`ArgumentError::Option`] if it is none, or out of the range.
pub fn number<T: TryFrom<u64>>(
    name: &str,
    value: &str,
    range: RangeInclusive<u64>,
) -> Result<T, ArgumentError> {
    let form = Form::Number(*range.start(), *range.end());
    let number = value.parse().ok().filter(|_| form.admits(value));
    let number = number.and_then(|number: u64| T::try_from(number).ok());
    number.ok_or_else(|| ArgumentError::bad_value(name, value, form))
}

/// Returns whether an option of this name is in a table.
pub fn is_in(table: &[OptionInfo], name: &str) -> bool {
    table.iter().any(|option| option.name == name)
}

/// Reads the arguments of a run.
///
/// # Errors
/// [`ArgumentError`] for the first argument that makes no sense.
pub fn parse<A: AsRef<str>>(arguments: &[A]) -> Result<Run, ArgumentError> {
    let mut run = Run::default();
    let mut given: Vec<(&str, &str)> = Vec::new();
    let mut time_limit_given = false;
    let mut stress = DEFAULT_STRESS;
    let mut output_is_json = false;
    for argument in arguments {
        let argument = argument.as_ref();
        if is_digits(argument) {
            take_cpus(&mut run, argument)?;
            run.arguments.push(argument.into());
            note(&mut given, "CPUS", argument)?;
            continue;
        }
        let (option, value) =
            OptionInfo::find(argument, &[RUNNER, KERNEL, SELFTEST, BENCH, LOADER])
                .map_err(|error| ArgumentError::Option(error.to_string()))?;
        note(&mut given, option.name, value)?;
        run.arguments.push(argument.into());
        if is_in(RUNNER, option.name) {
            run.take(option.name, value)
                .ok_or_else(|| ArgumentError::bad_value(option.name, value, option.form))?;
        } else {
            run.words.push(argument.into());
        }
        if is_in(BENCH, option.name) {
            run.build = Build::Bench;
        }
        match option.name {
            "timeout" => time_limit_given = true,
            "seconds" => stress = Duration::from_millis(millis(value).unwrap_or_default()),
            "output" => output_is_json = value == Output::Json.name(),
            _ => {}
        }
    }
    let seen: Vec<_> = given.iter().map(|&(name, _)| name).collect();
    if output_is_json && run.events == Events::Nowhere {
        run.events = Events::File;
    }
    if !time_limit_given {
        run.time_limit = match run.build {
            _ if run.is_monitored() => None,
            Build::Plain => Some(
                stress
                    + match run.emulator {
                        Kind::Qemu => TIMEOUT,
                        Kind::Bochs => BOCHS_TIMEOUT,
                    },
            ),
            Build::Bench => Some(BENCH_TIMEOUT),
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
    let asked = Asked {
        run: &run,
        given: &given,
    };
    match contradictions::find(&asked) {
        Some(why) => Err(ArgumentError::Contradiction(why)),
        None => Ok(run),
    }
}

fn take_cpus(run: &mut Run, argument: &str) -> Result<(), ArgumentError> {
    match argument.parse() {
        Ok(cpus) if (1..=MAX_CPUS).contains(&cpus) => run.smp = cpus.to_string(),
        _ => return Err(ArgumentError::BadCpus(argument.into())),
    }
    Ok(())
}

/// Takes note of an option that may be given once.
fn note<'a>(
    given: &mut Vec<(&'static str, &'a str)>,
    name: &'static str,
    value: &'a str,
) -> Result<(), ArgumentError> {
    if given.iter().any(|&(other, _)| other == name) {
        return Err(ArgumentError::Repeated(name.into()));
    }
    given.push((name, value));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

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
    fn a_person_has_time() {
        let run = parse(&["heap=checked", "monitor=yes"]).unwrap();
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
        let unknown = ArgumentError::Option("unknown option `fast`".into());
        assert_eq!(error(&["fast"]), unknown);
        assert_eq!(
            error(&["sterss=all"]).to_string(),
            "unknown option `sterss`, did you mean `stress`?"
        );
        assert_eq!(error(&["0"]), ArgumentError::BadCpus("0".into()));
        assert_eq!(
            error(&["99999999999"]),
            ArgumentError::BadCpus("99999999999".into())
        );
        for word in ["-8", "8x", "+8"] {
            assert!(matches!(error(&[word]), ArgumentError::Option(_)), "{word}");
        }
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
            "mem=512",
            "mem=1M",
            "mem=2048K",
            "mem=3071K",
            "mem=2MM",
            "mem=99999999999T",
        ] {
            assert!(
                matches!(error(&[argument]), ArgumentError::Option(_)),
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
    fn every_option_of_the_runner_is_taken() {
        for option in RUNNER {
            let value = match option.name {
                "resolution" => "1024x768",
                "timeout" => "1.5",
                "pause" => "1:5",
                _ => option.form.names().next().unwrap_or("64M"),
            };
            assert_eq!(
                Run::default().take(option.name, value),
                Some(()),
                "{}",
                option.name
            );
        }
    }
}
