//! One run of the kernel, as asked for.

use std::path::PathBuf;
use std::time::Duration;

use muster_arguments::bytes;
use muster_runner::pause::Pause;

use crate::emulators::emulator::Kind;
use crate::emulators::machine::{Acceleration, Machine};

/// The CPUs of a run that names none.
pub const DEFAULT_CPUS: u32 = 8;

/// The most CPUs that a QEMU machine takes (q35 and microvm; pc has 255).
pub const MAX_CPUS: u32 = 288;

/// A run without `timeout=` may take this long beyond the stress itself.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// How long the kernel's stress lasts when no `seconds=` says so.
pub const DEFAULT_STRESS: Duration = Duration::from_secs(8);

/// The word that asks the kernel for its prompt.
pub const MONITOR: &str = "monitor=yes";

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
    /// The part of it that is the client's.
    pub client_words: String,
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
            time_limit: Some(DEFAULT_STRESS + TIMEOUT),
            qemu: "qemu-system-x86_64".into(),
            bochs: "bochs".into(),
            build: Build::Plain,
            events: Events::Nowhere,
            pause: None,
            qemu_arguments: Vec::new(),
            words: Vec::new(),
            client_words: String::new(),
            arguments: Vec::new(),
        }
    }
}

impl Run {
    /// Returns the kernel's command line.
    pub fn command_line(&self) -> String {
        let mut line = self.words.join(" ");
        if !self.client_words.is_empty() {
            line += " -- ";
            line += &self.client_words;
        }
        line.trim_start().into()
    }

    /// Returns whether the kernel gives a prompt.
    pub fn is_monitored(&self) -> bool {
        self.words.iter().any(|word| word == MONITOR)
    }

    /// Returns the machine's memory in bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        bytes(&self.memory)
    }
}
