//! The events of a run's start: the command, the host and the machine.

use alloc::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What the runner knows of the run, and the kernel does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run<'a> {
    /// The [`SCHEMA`](crate::SCHEMA) of the runner's own lines.
    pub schema: u32,
    /// What a person types to have the run again.
    pub command: Cow<'a, str>,
    /// QEMU's whole command line, as for a shell.
    pub qemu: Cow<'a, str>,
    /// QEMU's version; empty if it reports none.
    pub qemu_version: Cow<'a, str>,
    /// The host's CPU, by its own name; empty if it reports none.
    pub host_cpu: Cow<'a, str>,
    /// How many CPUs the host has.
    pub host_cpus: u32,
    /// When it was started, in UTC, such as `2026-11-25T19:30:00Z`.
    pub started: Cow<'a, str>,
    /// What Git calls the source's revision, with `-dirty` if it was changed since; empty if Git does not
    /// tell.
    pub revision: Cow<'a, str>,
}

/// What the kernel found when it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start<'a> {
    /// The [`SCHEMA`](crate::SCHEMA) of this and all lines after it.
    pub schema: u32,
    /// The kernel's version.
    pub version: Cow<'a, str>,
    /// The loader's name and version.
    pub loader: Cow<'a, str>,
    /// The kernel's command line.
    pub command_line: Cow<'a, str>,
    /// CPUs that the loader lists.
    pub cpus: u32,
    /// Bytes of memory that the loader calls usable.
    pub usable_bytes: u64,
    /// Microseconds from the machine's reset to the kernel's entry.
    pub before_entry_us: u64,
    /// The time-stamp counter's rate.
    pub tsc_hz: u64,
    /// Whether it counts at that rate whatever the CPU's clock does, and while the CPU halts. `None` in what
    /// was written before this was said.
    #[serde(default)]
    pub tsc_invariant: Option<bool>,
    /// What of its CPU the kernel uses.
    pub features: Features,
}

/// What of its CPUs the kernel uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    /// Pages that can't be executed.
    pub no_execute: bool,
    /// Pages of 1 GiB.
    pub gigabyte_pages: bool,
    /// Ring 0 can be kept from executing user pages.
    pub smep: bool,
    /// Ring 0 can be kept from touching user pages.
    pub smap: bool,
    /// User code can be kept from reading descriptor-table addresses.
    pub umip: bool,
    /// Width of a physical address, in bits.
    pub physical_bits: u8,
    /// Levels of page tables.
    pub levels: u8,
}
