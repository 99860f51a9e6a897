//! The events of CPUs: their bring-up, the roll call, the cost of calls and shootdowns, and the interrupts that
//! they took.

use serde::{Deserialize, Serialize};

use crate::memory::Address;

/// The steps of a CPU's bring-up, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// Parked by the loader, not yet released.
    Parked,
    /// Released: sent to the kernel's entry, not yet seen.
    Released,
    /// In the kernel's entry, on the loader's stack and tables.
    Entered,
    /// The per-CPU block is registered.
    Block,
    /// Control registers and PAT are the kernel's.
    Control,
    /// The kernel's tables are loaded.
    Tables,
    /// On its own stack.
    Stack,
    /// GDT, TSS and IDT are its own.
    Descriptors,
    /// At the BSP's disposal.
    Online,
}

impl Phase {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::Parked,
        Self::Released,
        Self::Entered,
        Self::Block,
        Self::Control,
        Self::Tables,
        Self::Stack,
        Self::Descriptors,
        Self::Online,
    ];

    /// Returns the name of the phase, in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Released => "released",
            Self::Entered => "entered",
            Self::Block => "block",
            Self::Control => "control",
            Self::Tables => "tables",
            Self::Stack => "stack",
            Self::Descriptors => "descriptors",
            Self::Online => "online",
        }
    }
}

/// How far one CPU has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Its index.
    pub cpu: u32,
    /// Its local APIC's id.
    pub lapic: u32,
    /// Whether it is at work.
    pub online: bool,
    /// The last phase that it reached.
    pub phase: Phase,
    /// When it reached which.
    pub reached_us: Reached,
    /// How far its time-stamp counter is ahead of the BSP's, in nanoseconds; `None` for the BSP, and if it
    /// was not measured.
    #[serde(default)]
    pub tsc_ahead_ns: Option<i64>,
    /// By how many nanoseconds that may be off.
    #[serde(default)]
    pub tsc_error_ns: Option<u64>,
    /// Its main stack's top; null unless addresses are shown.
    pub stack_top: Option<Address>,
    /// Its block, from GS base; null while it has none, and as above.
    pub block: Option<Address>,
    /// The physical address of its root table, from CR3; null until it has reported it, and as above.
    pub tables: Option<Address>,
}

/// When a CPU reached which phase, in microseconds since the kernel's entry; null if it did not, and for
/// what is not there for the BSP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    /// Told where to go.
    pub released: Option<u64>,
    /// In the kernel.
    pub entered: Option<u64>,
    /// With its block.
    pub block: Option<u64>,
    /// With its control registers.
    pub control: Option<u64>,
    /// On the kernel's tables.
    pub tables: Option<u64>,
    /// On its own stack.
    pub stack: Option<u64>,
    /// With its own GDT, TSS and IDT.
    pub descriptors: Option<u64>,
    /// At work.
    pub online: Option<u64>,
}

/// How the roll call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roll {
    /// CPUs at work.
    pub online: u32,
    /// CPUs that should be.
    pub expected: u32,
    /// CPUs that `cpus=` leaves with the loader.
    pub left_out: u32,
    /// When all were released, in microseconds since the kernel's entry.
    pub released_us: u64,
    /// From then until the last one was at work.
    pub took_us: u64,
    /// How long they were waited for, at most.
    pub deadline_ms: u64,
}

/// A CPU that should be at work and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absent {
    /// Its index; null if the loader lost it, so that it has none.
    pub cpu: Option<u32>,
    /// Its local APIC's id.
    pub lapic: u32,
    /// The last phase that it reached; null if the loader lost it.
    pub phase: Option<Phase>,
}

/// What is measured at each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    /// A call to one idle CPU, and back.
    CallOne,
    /// A call to all others, idle, and back.
    CallAll,
    /// A page that loses or gets a right, on all CPUs, while the others are idle.
    ShootdownIdle,
    /// The same while they are at work.
    ShootdownBusy,
}

/// What something costs that CPUs do to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// What was measured.
    pub of: Measured,
    /// How many other CPUs took part.
    pub others: u32,
    /// The median.
    pub median_ns: u64,
    /// How often it was measured.
    pub rounds: u32,
}

/// How many interrupts of each kind one CPU has taken, by the reading that its
/// [`AccountCpu`](crate::AccountCpu) is of: its `interrupts` is the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interrupts {
    /// The CPU.
    pub cpu: u32,
    /// By its own timer.
    pub timer: u64,
    /// By another CPU.
    pub wake_up: u64,
    /// By a device, through an I/O APIC.
    #[serde(default)]
    pub device: u64,
    /// By its local APIC, of an error.
    pub error: u64,
    /// Such as went away before they were taken.
    pub spurious: u64,
    /// NMIs that did not end the run.
    pub nmi: u64,
    /// Such as nobody asked for.
    pub unexpected: u64,
}
