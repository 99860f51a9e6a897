//! QEMU's command line.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::arguments::{Drive, Run};

/// A QEMU machine type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// The i440FX of 1996.
    Pc,
    /// The Q35 of 2009, with PCI Express.
    Q35,
    /// QEMU's own, without PCI.
    Microvm,
}

impl Machine {
    /// Returns the machine of a name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pc" => Self::Pc,
            "q35" => Self::Q35,
            "microvm" => Self::Microvm,
            _ => return None,
        })
    }

    fn qemu_name(self) -> &'static str {
        match self {
            Self::Pc => "pc",
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        }
    }
}

/// The minimal firmware that QEMU brings with it.
const QBOOT: &str = "/usr/share/qemu/qboot.rom";

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceleration {
    /// KVM if this host has it, else TCG.
    Auto,
    /// QEMU's translator, one host thread for each CPU.
    Tcg,
    /// The translator in one host thread: the CPUs take turns, and one that waits passes its on.
    /// Where they are many times the host's it is several times as fast.
    Turns,
    /// The host's CPU.
    Kvm,
    /// The translator in one host thread, with a clock that counts instructions.
    Icount,
}

impl Acceleration {
    /// Returns the acceleration of a name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "auto" => Self::Auto,
            "tcg" => Self::Tcg,
            "turns" => Self::Turns,
            "kvm" => Self::Kvm,
            "icount" => Self::Icount,
            _ => return None,
        })
    }

    /// Returns whether it is KVM.
    pub fn is_kvm(self) -> bool {
        match self {
            Self::Auto => host_has_kvm(),
            Self::Kvm => true,
            Self::Tcg | Self::Turns | Self::Icount => false,
        }
    }

    fn qemu_name(self) -> &'static str {
        match self {
            Self::Turns | Self::Icount => "tcg,thread=single",
            _ if self.is_kvm() => "kvm",
            _ => "tcg,thread=multi",
        }
    }
}

/// Returns whether KVM would really accelerate. In some virtual machines /dev/kvm
/// opens although the CPU has no virtualisation left to give: there QEMU would
/// fail, or KVM be emulated in turn.
fn host_has_kvm() -> bool {
    host_has_virtualisation()
        && OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

/// Returns whether the host's CPU has the extensions that KVM needs.
pub fn host_has_virtualisation() -> bool {
    has_virtualisation(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// What the machine boots from.
#[derive(Debug)]
pub enum Medium {
    /// The loader as QEMU's kernel, the kernel as its initial RAM disk.
    Embedded {
        /// The loader's image.
        loader: PathBuf,
        /// The kernel's image.
        kernel: PathBuf,
    },
    /// Linux, as QEMU's kernel.
    Linux {
        /// Its compressed image.
        image: PathBuf,
        /// Its initial file system.
        initramfs: PathBuf,
        /// Its command line.
        words: String,
    },
    /// A disc image.
    Disc {
        /// The image.
        image: PathBuf,
        /// Arguments that put the firmware in place; none for SeaBIOS.
        firmware: Vec<OsString>,
    },
}

/// Makes QEMU's command for a run. The serial line is QEMU's standard output; the CPUs' own logs
/// are written to `debug_console`.
pub fn command(run: &Run, medium: &Medium, debug_console: &Path) -> Command {
    let mut qemu = Command::new(&run.qemu);
    // No default devices: firmware would look for something to boot on them.
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-monitor",
        "none",
    ]);
    qemu.args([
        "-M",
        run.machine.qemu_name(),
        "-accel",
        run.acceleration.qemu_name(),
    ]);
    let mut cpu = run.cpu.clone();
    if run.acceleration == Acceleration::Icount {
        // One nanosecond of the guest's time for each instruction, and none for idling.
        qemu.args(["-icount", "shift=0,sleep=off"]);
        // From QEMU 9 on the translator has the x2APIC, but an access to its timer's registers, which
        // are MSRs, ends QEMU with "Bad icount read": the clock may be read only by an instruction that
        // ends its block of translated code, and RDMSR and WRMSR do not.
        cpu += ",-x2apic";
    }
    qemu.args(["-cpu", &cpu, "-smp", &run.smp, "-m", &run.memory]);
    // Its threads have names then, by which `pause=` knows them.
    qemu.args(["-name", "muster,debug-threads=on"]);
    // A reset (a triple fault) ends QEMU rather than booting again.
    qemu.args(["-no-reboot", "-serial", "stdio"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    qemu.arg("-debugcon").arg(prefixed("file:", debug_console));
    match medium {
        Medium::Embedded { loader, kernel } => {
            start_without_disc(&mut qemu, loader, kernel, &run.command_line());
        }
        Medium::Linux {
            image,
            initramfs,
            words,
        } => start_without_disc(&mut qemu, image, initramfs, words),
        Medium::Disc { image, firmware } => {
            qemu.args(["-vga", "std"]).args(firmware);
            match run.drive {
                Drive::Cd => qemu.args(["-boot", "d", "-cdrom"]).arg(image),
                Drive::Usb => qemu
                    .arg("-drive")
                    .arg(prefixed("if=none,id=stick,format=raw,file=", image))
                    .args(["-device", "qemu-xhci"])
                    .args(["-device", "usb-storage,drive=stick,bootindex=0"]),
            };
        }
    }
    qemu.args(&run.qemu_arguments);
    qemu
}

/// Adds a second serial port, COM2, whose bytes are added to a file. Of the machines' own, microvm has
/// but one, so it is a device of the ISA bus, which all have.
pub fn add_second_port(qemu: &mut Command, file: &Path) {
    qemu.arg("-chardev")
        .arg(prefixed("file,id=events,append=on,path=", file));
    qemu.args(["-device", "isa-serial,iobase=0x2f8,irq=3,chardev=events"]);
}

/// Adds a kernel that QEMU itself puts into memory.
fn start_without_disc(qemu: &mut Command, kernel: &Path, initrd: &Path, words: &str) {
    // Such a kernel needs no firmware but for its tables, and SeaBIOS takes
    // several times as long to get there, more so with many CPUs. On microvm it also
    // puts them where QEMU puts the initial RAM disk: at the end of memory.
    if Path::new(QBOOT).exists() {
        qemu.args(["-bios", QBOOT]);
    }
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    qemu.arg("-append").arg(words);
}

/// Returns an option value that ends in a path. QEMU takes a comma in it as the next
/// option unless it is doubled.
pub fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut value = OsString::from(prefix);
    match path.to_str() {
        Some(path) => value.push(path.replace(',', ",,")),
        None => value.push(path),
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(run: &Run) -> String {
        let medium = Medium::Embedded {
            loader: "/l".into(),
            kernel: "/k".into(),
        };
        line_of(run, &medium)
    }

    fn line_of(run: &Run, medium: &Medium) -> String {
        let command = command(run, medium, Path::new("/tmp/a,b"));
        command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_run_reaches_qemu() {
        let words = [
            "16",
            "mem=2G",
            "machine=pc",
            "accel=tcg",
            "stress=churn",
            "seed=1",
        ];
        let line = line(&crate::arguments::parse(&words).unwrap());
        for part in [
            "-M pc ",
            "-smp 16 ",
            "-m 2G ",
            "-accel tcg,thread=multi ",
            "-kernel /l -initrd /k -append stress=churn seed=1",
            "-debugcon file:/tmp/a,,b ",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn every_machine_has_the_firmware_that_keeps_off_the_initial_ram_disk() {
        if !Path::new(QBOOT).exists() {
            return;
        }
        for machine in ["pc", "q35", "microvm"] {
            let words = ["1".into(), format!("machine={machine}")];
            let line = line(&crate::arguments::parse(&words).unwrap());
            assert!(line.contains(&format!("-bios {QBOOT} ")), "{line}");
        }
    }

    #[test]
    fn instructions_are_counted_in_one_thread() {
        let line = line(&crate::arguments::parse(&["1", "accel=icount"]).unwrap());
        assert!(line.contains("-accel tcg,thread=single -icount shift=0,sleep=off "));
    }

    #[test]
    fn instructions_are_counted_without_the_x2apic() {
        let words = ["1", "accel=icount", "cpu=Haswell"];
        let counted = line(&crate::arguments::parse(&words).unwrap());
        assert!(counted.contains("-cpu Haswell,-x2apic "), "{counted}");
        let other = line(&crate::arguments::parse(&["1", "accel=tcg"]).unwrap());
        assert!(other.contains("-cpu max "), "{other}");
    }

    #[test]
    fn linux_gets_the_same_machine() {
        let run = crate::arguments::parse(&["4", "mem=1G", "accel=tcg"]).unwrap();
        let medium = Medium::Linux {
            image: "/z".into(),
            initramfs: "/i".into(),
            words: "quiet -- x=1".into(),
        };
        let line = line_of(&run, &medium);
        for part in [
            "-accel tcg,thread=multi -cpu max -smp 4 -m 1G ",
            "-kernel /z -initrd /i -append quiet -- x=1",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn own_arguments_come_last() {
        let run = crate::arguments::parse(&["qemu-args=-append 'a b'"]).unwrap();
        assert!(line(&run).ends_with("-append a b"));
    }

    #[test]
    fn virtualisation_is_a_whole_flag() {
        assert!(has_virtualisation("model name : x\nflags\t\t: fpu vmx de"));
        assert!(has_virtualisation("flags : svm"));
        assert!(!has_virtualisation(
            "flags : fpu svm_lock\nvmx flags : vnmi"
        ));
        assert!(!has_virtualisation(""));
    }
}
