//! What a run needs of this host and of the emulator, checked before anything is built or started.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::hint::black_box;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::arguments::{Boot, Run};
use crate::emulators::emulator::{Emulator, Kind};
use crate::emulators::machine::{Acceleration, Machine, host_has_virtualisation};
use crate::emulators::topology::{Topology, TopologyError};
use crate::limine::Limine;

/// The most CPUs of Bochs, of whose 64 timers each CPU takes three and the devices the rest (Bochs 2.7 to
/// 3.0, `BX_MAX_TIMERS`).
const MAX_BOCHS_CPUS: u32 = 15;

/// The last APIC id without the x2APIC: 255 is all CPUs (Intel SDM, volume 3, 11.6.1).
const LAST_XAPIC_ID: u128 = 254;

/// The QEMU whose translator has the x2APIC, and whose Q35 takes more CPUs.
const X2APIC_SINCE: u32 = 9;

const KVM: &str = "/dev/kvm";

/// A requirement that this host or the emulator does not meet.
#[derive(Debug)]
pub enum Unmet {
    /// A topology that contradicts itself.
    Topology(Cpus, TopologyError),
    /// More CPUs than the machine has at most.
    Cpus {
        /// What is asked for.
        cpus: Cpus,
        /// The most.
        max: u32,
        /// The machine.
        machine: String,
    },
    /// APIC ids that need the x2APIC, on a QEMU without it.
    X2Apic {
        /// What is asked for.
        cpus: Cpus,
        /// The last id.
        last_id: u128,
        /// The emulator.
        emulator: Emulator,
    },
    /// More memory than the host gives to one program.
    Memory {
        /// What is asked for.
        memory: String,
        /// The host's memory with its swap space, in KiB.
        host: u64,
    },
    /// The host's KVM can't be used.
    Kvm(io::Error),
    /// The host's KVM can be opened, and its CPU has not what KVM needs: a virtual machine, mostly.
    NoVirtualisation,
    /// QEMU is built without KVM.
    QemuWithoutKvm(Emulator),
}

/// A number of CPUs or a topology, as it is asked for.
#[derive(Clone, Debug)]
pub struct Cpus(String);

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.parse::<u64>() {
            Ok(cpus) => write!(f, "{cpus} CPUs"),
            Err(_) => write!(f, "smp={}", self.0),
        }
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topology(cpus, error) => write!(f, "{cpus}: {error}"),
            Self::Cpus { cpus, max, machine } => {
                write!(f, "{cpus}: {machine} has at most {max} CPUs: ask for fewer")
            }
            Self::X2Apic {
                cpus,
                last_id,
                emulator,
            } => write!(
                f,
                "{cpus}: the last APIC id is {last_id}, and {emulator} without KVM has ids up to \
                 {LAST_XAPIC_ID}: ask for fewer CPUs, or name QEMU {X2APIC_SINCE} or newer (qemu=PATH)"
            ),
            Self::Memory { memory, host } => write!(
                f,
                "mem={memory}: the host does not give a program that much, it has {:.1} GiB with its \
                 swap space: ask for less, or have it promise more (sysctl vm.overcommit_memory=1)",
                *host as f64 / f64::from(1 << 20)
            ),
            Self::Kvm(error) => match error.kind() {
                ErrorKind::NotFound => write!(
                    f,
                    "accel=kvm: this host has no {KVM}: load the module kvm_intel or kvm_amd, or leave \
                     accel= out"
                ),
                ErrorKind::PermissionDenied => write!(
                    f,
                    "accel=kvm: you may not open {KVM}: join its group (sudo usermod -aG kvm $USER) and \
                     log in again, or leave accel= out"
                ),
                _ => write!(
                    f,
                    "accel=kvm: {KVM} can't be opened ({error}): leave accel= out"
                ),
            },
            Self::NoVirtualisation => write!(
                f,
                "accel=kvm: this host's CPU has neither VMX nor SVM (flags in /proc/cpuinfo), without which \
                 {KVM} is of no use: switch them on in the firmware or the hypervisor, or leave accel= out"
            ),
            Self::QemuWithoutKvm(emulator) => write!(
                f,
                "accel=kvm: this {emulator} is built without KVM: name another one (qemu=PATH), or \
                 leave accel= out"
            ),
        }
    }
}

impl std::error::Error for Unmet {}

/// Checks that a run can be booted here.
///
/// # Errors
/// [`Unmet`]; or if the emulator is not installed, or the boot is by Limine, and that is not.
pub fn check(run: &Run) -> Result<()> {
    let emulator = Emulator::of(run)?;
    check_cpus(run, &emulator)?;
    if run.emulator == Kind::Qemu {
        check_memory(run)?;
    }
    if run.acceleration == Acceleration::Kvm {
        check_kvm(Path::new(KVM))?;
        if !host_has_virtualisation() {
            return Err(Unmet::NoVirtualisation.into());
        }
        if !has_kvm(&run.qemu)? {
            return Err(Unmet::QemuWithoutKvm(emulator).into());
        }
    }
    if run.boot == Boot::Limine {
        Limine::find()?;
    }
    Ok(())
}

/// Checks the number of CPUs against what the machine has at most.
fn check_cpus(run: &Run, emulator: &Emulator) -> Result<(), Unmet> {
    let cpus = Cpus(run.smp.clone());
    let topology = Topology::parse(&run.smp, run.emulator);
    let topology = topology.map_err(|error| Unmet::Topology(cpus.clone(), error))?;
    let is_before_x2apic = run.emulator == Kind::Qemu && emulator.major() < X2APIC_SINCE;
    let (max, machine) = match (run.emulator, run.machine) {
        (Kind::Bochs, _) => (MAX_BOCHS_CPUS, "machine=bochs"),
        (Kind::Qemu, Machine::Pc) => (255, "machine=pc"),
        (Kind::Qemu, Machine::Microvm) => (288, "machine=microvm"),
        (Kind::Qemu, Machine::Q35) if is_before_x2apic => (288, "machine=q35"),
        // QEMU 9 and newer differ.
        (Kind::Qemu, Machine::Q35) => (u32::MAX, "machine=q35"),
    };
    if topology.max_cpus > max.into() {
        let machine = format!("{machine} ({emulator})");
        return Err(Unmet::Cpus { cpus, max, machine });
    }
    let last_id = topology.last_id;
    if is_before_x2apic && last_id > LAST_XAPIC_ID && !run.acceleration.is_kvm() {
        return Err(Unmet::X2Apic {
            cpus,
            last_id,
            emulator: emulator.clone(),
        });
    }
    Ok(())
}

/// Checks that QEMU could have the machine's memory, unless it has it by arguments of its own.
fn check_memory(run: &Run) -> Result<(), Unmet> {
    let has_own = |word: &String| word.contains("memory-backend");
    if run.qemu_arguments.iter().any(has_own) || run.memory_bytes().is_none_or(can_be_reserved) {
        return Ok(());
    }
    Err(Unmet::Memory {
        memory: run.memory.clone(),
        host: host_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
    })
}

/// Returns whether the system gives a program this much memory in one piece, as QEMU asks for it. It may
/// promise more than it has.
fn can_be_reserved(bytes: u64) -> bool {
    let mut memory = Vec::<u8>::new();
    let reserved =
        usize::try_from(bytes).is_ok_and(|bytes| memory.try_reserve_exact(bytes).is_ok());
    // Or the compiler would leave out memory that nobody uses, and take it for reserved.
    black_box(&memory);
    reserved
}

/// Adds up the host's memory and swap space, in KiB (proc(5), `/proc/meminfo`).
fn host_memory(meminfo: &str) -> u64 {
    let total = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
        ["MemTotal", "SwapTotal"].contains(&name).then_some(value)
    };
    meminfo.lines().filter_map(total).sum()
}

/// Checks that the host's KVM can be opened.
fn check_kvm(device: &Path) -> Result<(), Unmet> {
    let opened = OpenOptions::new().read(true).write(true).open(device);
    opened.map(drop).map_err(Unmet::Kvm)
}

/// Asks QEMU whether it is built with KVM.
fn has_kvm(qemu: &Path) -> Result<bool> {
    let mut command = Command::new(qemu);
    let output = command
        .args(["-accel", "help"])
        .stdin(Stdio::null())
        .output();
    let output = output.with_context(|| format!("cannot start {}", qemu.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().any(|line| line.trim() == "kvm"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::parse;

    /// Returns the error of a run of these CPUs on an emulator of this version.
    fn cpus(words: &[&str], version: &str) -> String {
        let run = parse(words).unwrap();
        let emulator = Emulator::read(&format!("QEMU emulator version {version}")).unwrap();
        match check_cpus(&run, &emulator) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn cpus_that_the_machine_does_not_have_are_refused() {
        for (words, version, expected) in [
            (
                &["256", "accel=tcg"][..],
                "7.2.22",
                "256 CPUs: the last APIC id is 255, and QEMU 7.2.22 without KVM has ids up to 254: ask \
                 for fewer CPUs, or name QEMU 9 or newer (qemu=PATH)",
            ),
            (
                &["smp=240,sockets=80,cores=3,threads=1", "accel=tcg"],
                "8.2.2",
                "smp=240,sockets=80,cores=3,threads=1: the last APIC id is 318, and QEMU 8.2.2",
            ),
            (
                &["smp=2,maxcpus=256", "accel=turns"],
                "7.2.22",
                "smp=2,maxcpus=256: the last APIC id is 255",
            ),
            (
                &["256", "machine=pc"],
                "10.0.13",
                "256 CPUs: machine=pc (QEMU 10.0.13) has at most 255 CPUs: ask for fewer",
            ),
            (
                &["smp=300"],
                "7.2.22",
                "300 CPUs: machine=q35 (QEMU 7.2.22) has at most 288 CPUs",
            ),
            (
                &["smp=300", "machine=microvm"],
                "10.0.13",
                "300 CPUs: machine=microvm (QEMU 10.0.13) has at most 288 CPUs",
            ),
            (
                &["16", "machine=bochs"],
                "1",
                "16 CPUs: machine=bochs (QEMU 1) has at most 15 CPUs",
            ),
            (
                &["smp=8,sockets=3"],
                "7.2.22",
                "smp=8,sockets=3: its sockets, cores and threads make 6 CPUs, not 8",
            ),
            (&["smp=0"], "7.2.22", "0 CPUs: `0` must be a number"),
        ] {
            let said = cpus(words, version);
            assert!(said.starts_with(expected), "{words:?}: {said}");
            assert_eq!(said.lines().count(), 1);
        }
    }

    #[test]
    fn cpus_that_the_machine_has_are_not() {
        for (words, version) in [
            (&["255", "machine=pc", "accel=tcg"][..], "7.2.22"),
            (&["255", "accel=turns"], "7.2.22"),
            (&["288", "accel=tcg"], "9.0.0"),
            (&["288", "accel=kvm"], "7.2.22"),
            (&["smp=1000"], "10.0.13"),
            (&["15", "machine=bochs"], "1"),
        ] {
            assert_eq!(cpus(words, version), "", "{words:?}");
        }
    }

    #[test]
    fn memory_that_the_host_does_not_give_is_refused() {
        let check = |words: &[&str]| check_memory(&parse(words).unwrap());
        assert!(check(&["mem=64M"]).is_ok());
        // More than the addresses of a program.
        let error = check(&["mem=200T"]).unwrap_err().to_string();
        assert!(
            error.starts_with("mem=200T: the host does not give a program that much, it has "),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
        let own = "qemu-args=-object memory-backend-file,id=m,size=200T,mem-path=/m";
        assert!(check(&["mem=200T", own]).is_ok());
    }

    #[test]
    fn the_host_s_memory_is_read() {
        let meminfo = "MemTotal:       24683820 kB\nMemFree:  9 kB\nSwapTotal:  1000 kB\nX: 1\n";
        assert_eq!(host_memory(meminfo), 24_684_820);
    }

    #[test]
    fn a_kvm_that_cannot_be_used_is_refused() {
        let error = |path: &str| check_kvm(Path::new(path)).unwrap_err().to_string();
        assert!(error("/nonexistent/kvm").contains("this host has no /dev/kvm: load"));
        let denied = Unmet::Kvm(ErrorKind::PermissionDenied.into()).to_string();
        assert!(denied.contains("you may not open /dev/kvm: join its group"));
        // A folder.
        assert!(error("/").contains("(Is a directory (os error 21)): leave accel= out"));
        assert!(check_kvm(Path::new("/dev/null")).is_ok());
        assert!(
            Unmet::NoVirtualisation
                .to_string()
                .ends_with("or leave accel= out")
        );
    }

    #[test]
    fn a_qemu_without_kvm_is_known_by_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let qemu = folder.path().join("qemu");
        let answers = |accelerators: &str| {
            use std::os::unix::fs::PermissionsExt;
            fs::write(&qemu, format!("#!/bin/sh\nprintf '{accelerators}'\n")).unwrap();
            fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
            has_kvm(&qemu).unwrap()
        };
        let heading = "Accelerators supported in QEMU binary:\\n";
        assert!(answers(&format!("{heading}tcg\\nkvm\\n")));
        assert!(!answers(&format!("{heading}tcg\\n")));
    }
}
