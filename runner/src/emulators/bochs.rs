//! Bochs: its configuration, its start, and what its end says of the kernel's.
//!
//! It interprets every instruction, all CPUs in turns in one thread, and its time is a count of
//! instructions: the same run again is the same to the instruction. It has what QEMU's translator has not:
//! x2APIC mode, the TSC deadline, PCID and INVPCID, and MTRRs that mean something.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use muster_runner::boot_log;
use muster_runner::session::Launch;
use muster_runner::workspace::shown;

use crate::arguments::Run;
use crate::emulators::emulator::Known;
use crate::limine::NotInstalled;

/// The model of its CPUs if none is named.
pub const DEFAULT_CPU: &str = "corei7_haswell_4770";

/// Where packages and `make install` put its firmware.
const FOLDERS: [&str; 2] = ["/usr/share/bochs", "/usr/local/share/bochs"];

/// The BIOS, and the VGA BIOS by its newer and its older name.
const BIOS: &str = "BIOS-bochs-latest";
const VGA_BIOS: [&str; 2] = ["VGABIOS-lgpl-latest.bin", "VGABIOS-lgpl-latest"];

/// How many instructions make a second of the machine's. Few: what waits for time, as firmware does, waits
/// for less.
const INSTRUCTIONS_PER_SECOND: u32 = 10_000_000;

/// The machine's time at its start, in seconds since 1970: the same in every run.
const START: u32 = 946_684_800;

/// The most memory of the guest's that Bochs holds in memory of its own, in MiB (Bochs 2.7, `memory:`).
const MAX_HOST_MEMORY: u64 = 2048;

/// Displays that need no window: none at all, or a terminal that nobody looks at.
const DISPLAYS: [&str; 2] = ["nogui", "term"];

/// The end of its message of a triple fault.
const TRIPLE_FAULT: &str = "exception with no resolution";

/// The beginning of the line after which it says why it ends, and what it says if the kernel asked for it.
const ENDS: &str = "Bochs is exiting";
const SHUT_DOWN: &str = "shutdown requested";

/// What it complains of in its log that is no kernel's fault: its CPUs have machine checks by CPUID, and
/// lack IA32_MCG_CAP; and its end, when a kernel asks for it.
const EXPECTED: [&str; 2] = ["RDMSR: Unknown register 0x179", SHUT_DOWN];

/// Its log, in the folder of a run.
const LOG: &str = "bochs.log";

/// A Bochs program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bochs {
    program: PathBuf,
    /// The line in which it reports its version, and the version.
    pub reported: String,
    pub version: String,
    /// One of [`DISPLAYS`].
    display: &'static str,
    /// What starts it in its debugger, if it was built with one.
    debugger: Option<&'static [&'static str]>,
    firmware: BiosImages,
}

/// Its BIOS and its VGA BIOS.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BiosImages {
    bios: PathBuf,
    vga_bios: PathBuf,
}

impl BiosImages {
    /// Finds it in the folder of `BXSHARE`, as Bochs does, or where packages put it.
    fn find() -> Result<Self, NotInstalled> {
        let own = env::var_os("BXSHARE").map(PathBuf::from);
        let mut folders = own.into_iter().chain(FOLDERS.map(PathBuf::from));
        let found = folders.find_map(|folder| {
            let names = VGA_BIOS.map(|name| folder.join(name));
            Some(Self {
                bios: Some(folder.join(BIOS)).filter(|bios| bios.is_file())?,
                vga_bios: names.into_iter().find(|name| name.is_file())?,
            })
        });
        found.ok_or(NotInstalled::BochsFirmware)
    }
}

impl Bochs {
    /// Asks a program for its version and what it can do. Each program is asked once.
    ///
    /// # Errors
    /// [`NotInstalled`] if there is no such program, or it has no firmware or no display that needs no
    /// window; or if the program is not Bochs.
    pub fn find(program: &Path) -> Result<Self> {
        static KNOWN: Known<Bochs> = Known::new();
        KNOWN.get(program, Self::ask)
    }

    fn ask(program: &Path) -> Result<Self> {
        let ask = |words: &[&str]| -> Result<String> {
            let mut bochs = Command::new(program);
            let output = bochs.args(words).stdin(Stdio::null()).output();
            let output = match output {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Err(NotInstalled::Bochs(program.into()).into());
                }
                Err(error) => bail!(
                    "{} does not start ({error}): name the program of Bochs: bochs=PATH",
                    program.display()
                ),
                Ok(output) => output,
            };
            let text = [output.stdout, output.stderr].concat();
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        let help = ask(&["--help"])?;
        let (reported, version) = version(&help).with_context(|| {
            format!(
                "{} is not Bochs, by what it says to `--help`: name the program of Bochs: bochs=PATH",
                program.display()
            )
        })?;
        let has = |option: &str| {
            let mut lines = help.lines();
            lines.any(|line| line.split_whitespace().next() == Some(option))
        };
        let mut display = None;
        for name in DISPLAYS {
            let line = format!("display_library: {name}");
            let answer = ask(&["-n", &line, "--help", "features"])?;
            if !answer.contains("not available") {
                display = Some(name);
                break;
            }
        }
        Ok(Self {
            program: program.into(),
            reported,
            version,
            display: display.ok_or(NotInstalled::BochsDisplay)?,
            debugger: match (has("-rc"), has("-debugger")) {
                (true, true) => Some(&["-debugger", "-rc"]),
                (true, false) => Some(&["-rc"]),
                (false, _) => None,
            },
            firmware: BiosImages::find()?,
        })
    }

    /// Prepares a run from a disc image. Its files are written into `folder`; what the machine writes to
    /// its debug console goes to the file `console`.
    ///
    /// # Errors
    /// If a file can't be written, or there is no socket.
    pub fn launch(&self, run: &Run, image: &Path, console: &Path, folder: &Path) -> Result<Launch> {
        let write = |name: &str, text: &str| {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", shown(&file)))?;
            Ok::<_, anyhow::Error>(file)
        };
        let serial = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no socket for Bochs")?;
        let port = serial.local_addr()?.port();
        let log = folder.join(LOG);
        let file = write("bochsrc", &self.configuration(run, image, port, &log))?;
        let output = File::create(console);
        let output = output.with_context(|| format!("cannot write {}", shown(console)))?;

        let mut bochs = Command::new(&self.program);
        bochs.arg("-q").arg("-f").arg(file);
        // Without its debugger, which 2.7 starts in and 3.0 if asked to, several CPUs run in a loop that
        // takes a breakpoint again and again in its own handler: after an exception it looks for one at
        // the instruction before (Bochs 3.0, main.cc and cpu/event.cc: `prev_rip`).
        if let Some(words) = self.debugger {
            let commands = write("bochs-commands", "continue\n")?;
            bochs.args(words).arg(commands);
        }
        // The debug console is its standard output, into which no terminal's codes belong.
        bochs.env("TERM", "dumb").stdout(output);
        let console = console.to_owned();
        let status = move |own, complaints: &[String]| {
            let dump = fs::read(&console).unwrap_or_default();
            status(own, &dump, complaints)
        };
        let launch = Launch::apart("bochs", bochs, serial, is_complaint, status);
        let told = format!("Bochs can't be asked; its own log: {}", shown(&log));
        Ok(launch.with_postmortem(move |_| vec![told]))
    }

    /// Returns its configuration (Bochs user manual, "The configuration file bochsrc").
    fn configuration(&self, run: &Run, image: &Path, port: u16, log: &Path) -> String {
        let Self {
            display,
            firmware: BiosImages { bios, vga_bios },
            ..
        } = self;
        let [bios, vga_bios, image, log] = [bios, vga_bios, image, log].map(|path| path.display());
        let guest = run.memory_bytes().unwrap_or_default() >> 20;
        let host = guest.min(MAX_HOST_MEMORY);
        let Run { cpu, smp, .. } = run;
        let mwait_is_nop = u8::from(self.oversleeps());
        // A register that it does not know is read as 0 and complained of: the alternative is a fault, by
        // which no kernel would come up that goes by CPUID (see `EXPECTED`).
        format!(
            "display_library: {display}\n\
             romimage: file=\"{bios}\", options=fastboot\n\
             vgaromimage: file=\"{vga_bios}\"\n\
             vga: extension=none\n\
             memory: guest={guest}, host={host}\n\
             cpu: model={cpu}, count={smp}, ips={INSTRUCTIONS_PER_SECOND}\n\
             cpu: reset_on_triple_fault=0, ignore_bad_msrs=1, mwait_is_nop={mwait_is_nop}\n\
             clock: sync=none, time0={START}\n\
             ata0-master: type=cdrom, path=\"{image}\", status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=socket-client, dev=127.0.0.1:{port}\n\
             port_e9_hack: enabled=1\n\
             log: \"{log}\"\n\
             panic: action=fatal\n\
             error: action=report\n\
             info: action=ignore\n\
             debug: action=ignore\n"
        )
    }

    /// Returns whether APs that wait by MONITOR and MWAIT are never woken, but for the last: so until 2.8.
    fn oversleeps(&self) -> bool {
        let mut numbers = self
            .version
            .split('.')
            .map(|number| number.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        (next(), next()) < (2, 8)
    }
}

/// Finds the line that reports the version, and the version.
fn version(help: &str) -> Option<(String, String)> {
    let mut lines = help.lines().map(str::trim);
    let (line, version) =
        lines.find_map(|line| Some((line, line.strip_prefix("Bochs x86 Emulator ")?)))?;
    Some((line.into(), version.into()))
}

/// Returns the first thing that it complains of in its log, such as a register that its CPUs do not have.
///
/// # Errors
/// If there is no log.
pub fn complaint(folder: &Path) -> Result<Option<String>> {
    let log = folder.join(LOG);
    let text = fs::read_to_string(&log).with_context(|| format!("no {}", shown(&log)))?;
    Ok(text
        .lines()
        .find(|line| is_unexpected(line))
        .map(str::to_owned))
}

/// Returns whether a line of its log is an error (`e[`) or a panic (`p[`), and an unexpected one.
fn is_unexpected(line: &str) -> bool {
    let level = line.trim_start_matches(|character: char| character.is_ascii_digit());
    let is_error = level.starts_with("e[") || level.starts_with("p[");
    is_error && !EXPECTED.iter().any(|end| line.ends_with(end))
}

/// Returns whether a line of its standard error is a complaint, and not what it says at each start and end.
fn is_complaint(line: &str) -> bool {
    // Levels of its log, after a number of ticks: `00000000000i[PLUGIN] …`.
    let level = line.trim_start_matches(|character: char| character.is_ascii_digit());
    let is_information = level.len() < line.len() && level.starts_with("i[");
    let is_frame = line.trim_matches('=').is_empty();
    let is_banner = line.starts_with("Bochs connected to screen")
        || line.starts_with(ENDS)
        || line.ends_with(SHUT_DOWN);
    !(is_information || is_frame || is_banner)
}

/// Returns the kernel's exit status, which it left on the debug console; without one that of a reset if
/// there was a triple fault, or else the emulator's own.
fn status(own: ExitStatus, console: &[u8], complaints: &[String]) -> ExitStatus {
    let exited = |code: i32| ExitStatus::from_raw(code << 8);
    match boot_log::status(console) {
        Some(code) => exited(code),
        None if complaints.iter().any(|line| line.contains(TRIPLE_FAULT)) => exited(0),
        None => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bochs(version: &str) -> Bochs {
        Bochs {
            program: "/b".into(),
            reported: String::new(),
            version: version.into(),
            display: "term",
            debugger: None,
            firmware: BiosImages {
                bios: "/s/BIOS".into(),
                vga_bios: "/s/VGA".into(),
            },
        }
    }

    #[test]
    fn the_run_reaches_the_configuration() {
        let words = ["6", "machine=bochs", "cpu=ryzen", "mem=3G"];
        let run = crate::arguments::parse(&words).unwrap();
        let text = bochs("3.0").configuration(&run, Path::new("/a b.iso"), 7, Path::new("/l"));
        for part in [
            "model=ryzen, count=6,",
            "memory: guest=3072, host=2048\n",
            "romimage: file=\"/s/BIOS\", ",
            "path=\"/a b.iso\"",
            "dev=127.0.0.1:7\n",
            "mwait_is_nop=0\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let text = bochs("2.7").configuration(&run, Path::new("/a"), 7, Path::new("/l"));
        assert!(text.contains("mwait_is_nop=1\n"));
    }

    #[test]
    fn versions_are_read_and_compared() {
        let help = "Usage: bochs\n=====\n      Bochs x86 Emulator 2.7\n  Built from SVN\n";
        let (reported, number) = version(help).unwrap();
        assert_eq!((&*reported, &*number), ("Bochs x86 Emulator 2.7", "2.7"));
        assert_eq!(version("QEMU emulator version 7.2.22"), None);
        for (number, oversleeps) in [
            ("2.6.11", true),
            ("2.7", true),
            ("2.8", false),
            ("3.0", false),
        ] {
            assert_eq!(bochs(number).oversleeps(), oversleeps, "{number}");
        }
    }

    #[test]
    fn the_log_is_searched_for_what_a_kernel_did_wrong() {
        for line in [
            "00108613930e[CPU0  ] RDMSR: Unknown register 0x179",
            "00354818355p[UNMAP ] >>PANIC<< Shutdown port: shutdown requested",
            "00000000000i[PCI   ] i440FX PMC write",
        ] {
            assert!(!is_unexpected(line), "{line}");
        }
        for line in [
            "00108613930e[CPU0  ] RDMSR: Unknown register 0x17a",
            "00108613930e[CPU0  ] WRMSR: Unknown register 0x179",
            "00108613930p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution",
        ] {
            assert!(is_unexpected(line), "{line}");
        }
    }

    #[test]
    fn only_complaints_are_complaints() {
        for line in [
            "00000000000i[PLUGIN] loaded plugin libbx_vga.so",
            "",
            "========================================================================",
            "Bochs connected to screen \"/dev/pts/0\"",
            "Bochs is exiting with the following message:",
            "[UNMAP ] Shutdown port: shutdown requested",
        ] {
            assert!(!is_complaint(line), "{line}");
        }
        for line in [
            "[CPU0  ] exception(): 3rd (13) exception with no resolution",
            "00000000000e[SIM   ] notify called",
            "cannot open",
        ] {
            assert!(is_complaint(line), "{line}");
        }
    }

    #[test]
    fn the_kernel_s_status_goes_before_the_emulator_s() {
        let own = ExitStatus::from_raw(1 << 8);
        let code = |console: &[u8], complaints: &[String]| status(own, console, complaints).code();
        assert_eq!(code(b"=== cpu 0\n=== status 39\n", &[]), Some(39));
        assert_eq!(code(b"=== cpu 0\n", &[]), Some(1));
        let fault = ["[CPU1 ] exception(): 3rd (14) exception with no resolution".into()];
        assert_eq!(code(b"", &fault), Some(0));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Bochs::find(Path::new("/nonexistent/bochs")).unwrap_err();
        assert!(matches!(
            error.downcast_ref(),
            Some(NotInstalled::Bochs(program)) if program == Path::new("/nonexistent/bochs")
        ));
        let error = Bochs::find(Path::new("/bin/true")).unwrap_err();
        assert!(error.to_string().contains("is not Bochs"), "{error}");
    }
}
