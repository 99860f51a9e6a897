//! The state of each CPU, checked: its own block, stack and GDT, the tables and the IDT of all, and
//! the control registers as set; and its identity.

use alloc::format;
use alloc::string::String;
use core::fmt;

use muster_events::Phase;
use muster_machine::identity::Difference;
use muster_paging::VirtAddr;
use muster_percpu::Register;
use x86_64::instructions::tables::{sgdt, sidt};

use crate::arch::clock;
use crate::arch::control::{self, Features, Registers};
use crate::boot::addresses;
use crate::boot::stack::Slot;
use crate::mm::shared;
use crate::smp::cpu::{self, Gs};
use crate::smp::identity::{self, IDENTITY};
use crate::smp::progress::PROGRESS;
use crate::smp::snapshot::{SNAPSHOT, Snapshot, SnapshotValues};
use crate::smp::{jobs, lapic, online};

/// How long a CPU may take to read its own state, in milliseconds.
const TIMEOUT: u64 = 10_000;

/// Returns the first entry of its local vector table that is not as set.
fn odd_entry(snapshot: &Snapshot) -> Option<lapic::LvtEntry> {
    let entries = snapshot.entries().zip(lapic::LvtEntry::names());
    entries
        .map(|((found, wanted), name)| lapic::LvtEntry {
            name,
            found,
            wanted,
        })
        .find(|entry| entry.found != entry.wanted)
}

/// Returns the first deviation in the state of CPU `index`.
fn find_deviation(snapshot: &Snapshot, index: u32) -> Option<Deviation> {
    let mut differences = differences(index);
    if let Some(first) = differences.next() {
        return Some(Deviation::Identity(first, differences.count()));
    }
    Aspect::ALL
        .into_iter()
        .find(|aspect| !is_right(snapshot, index, *aspect))
        .map(|aspect| match aspect {
            Aspect::Registers => match odd_entry(snapshot) {
                Some(entry) => Deviation::Entry(entry),
                None => Deviation::Register {
                    found: snapshot.registers(),
                    wanted: snapshot.wanted(),
                },
            },
            _ => Deviation::Place(aspect),
        })
}

/// Returns whether an aspect of CPU `index` is as it should be.
fn is_right(snapshot: &Snapshot, index: u32, aspect: Aspect) -> bool {
    let others = || online::cpus().filter(|&(other, _)| other != index);
    match aspect {
        Aspect::Stack => {
            let here = snapshot.stack();
            Slot::of(index).main().contains(here)
        }
        Aspect::Block => {
            cpu::get(index).is_some_and(|block| VirtAddr::from_ptr(block) == snapshot.block())
        }
        Aspect::Gdt => others().all(|(_, other)| other.get(&SNAPSHOT).gdt() != snapshot.gdt()),
        Aspect::Idt => others().all(|(_, other)| other.get(&SNAPSHOT).idt() == snapshot.idt()),
        Aspect::Tables => snapshot.cr3() == shared::get().root(),
        Aspect::Registers => {
            snapshot.registers() == snapshot.wanted()
                && odd_entry(snapshot).is_none()
                && differences(index).next().is_none()
        }
    }
}

/// A part of a CPU's state that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aspect {
    Stack,
    Block,
    Gdt,
    Idt,
    Tables,
    Registers,
}

impl Aspect {
    const ALL: [Self; 6] = [
        Self::Stack,
        Self::Block,
        Self::Gdt,
        Self::Idt,
        Self::Tables,
        Self::Registers,
    ];

    /// Returns the table's entry for a right one: whose it is.
    fn mark(self) -> &'static str {
        match self {
            Self::Stack | Self::Block | Self::Gdt => "own",
            Self::Idt | Self::Tables => "all",
            Self::Registers => "set",
        }
    }
}

/// A part of a CPU's state that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deviation {
    Place(Aspect),
    Register {
        found: Registers,
        wanted: Registers,
    },
    Entry(lapic::LvtEntry),
    /// The first register, and how many there are besides.
    Identity(Difference, usize),
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(Aspect::Stack) => f.write_str("runs on a stack that is not its own"),
            Self::Place(Aspect::Block) => f.write_str("has a block that is not its own"),
            Self::Place(Aspect::Gdt) => f.write_str("has the GDT of another CPU"),
            Self::Place(Aspect::Idt) => f.write_str("has another IDT than the others"),
            Self::Place(Aspect::Tables) => f.write_str("runs on other tables than all"),
            Self::Place(Aspect::Registers) => f.write_str("has other control registers than set"),
            Self::Identity(first, 0) => first.fmt(f),
            Self::Identity(first, 1) => write!(f, "{first}, and another register differs"),
            Self::Identity(first, others) => {
                write!(f, "{first}, and {others} other registers differ")
            }
            Self::Register { found, wanted } => found.fmt_difference(wanted, f),
            Self::Entry(lapic::LvtEntry {
                name,
                found,
                wanted,
            }) => write!(
                f,
                "has {found:#x} in its local APIC for {name} instead of {wanted:#x}"
            ),
        }
    }
}

/// Returns the registers in which CPU `index` differs from the BSP, or from what the loader says of
/// it.
fn differences(index: u32) -> impl Iterator<Item = Difference> {
    cpu::get(index)
        .into_iter()
        .flat_map(identity::differences_of)
}

/// Records this CPU's state and identity.
pub fn record_here() {
    cpu::with(|here| {
        here.get(&IDENTITY).record(lapic::registered_id);
        record(here.block());
    });
}

/// Reads this CPU's registers into its [`SNAPSHOT`]. Called by the CPU itself, before it
/// reports that it is online, which publishes this; and again in a job.
pub fn record(block: &cpu::Block) {
    let here = 0u8;
    block.get(&SNAPSHOT).store(&SnapshotValues {
        block: VirtAddr::from_ptr(Gs::load()),
        cr3: control::loaded_tables(),
        gdt: VirtAddr::new(sgdt().base.as_u64()),
        idt: VirtAddr::new(sidt().base.as_u64()),
        stack: VirtAddr::from_ptr(&raw const here),
        found: Registers::read(),
        wanted: Registers::wanted(&Features::detect()),
    });
    let entries = lapic::LvtEntry::all();
    block
        .get(&SNAPSHOT)
        .store_entries(entries.map(|entry| (entry.found, entry.wanted)));
}

/// Writes the CPU's bring-up to its own journal.
pub fn log_own(index: u32, block: &cpu::Block) {
    for phase in Phase::ALL {
        if let Some(stamp) = block.get(&PROGRESS).stamp(phase) {
            let micros = clock::micros_since_entry(stamp);
            let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
            log::debug!(target: "roll", "{} at {seconds}.{micros:06}", phase.name());
        }
    }
    lapic::log_mode();
    if !addresses::are_shown() {
        return;
    }
    for stack in Slot::of(index).stacks() {
        log::debug!(target: "roll", "{}: {:#x} to {:#x}", stack.name, stack.bottom, stack.top);
    }
    log::debug!(target: "roll", "block at {:#x}, tables at {:#x}", block.get(&SNAPSHOT).block(), block.get(&SNAPSHOT).cr3());
}

/// Logs the state of each online CPU, with each deviation.
pub fn log_all() {
    log::info!(target: "roll", "what each CPU runs with:");
    log::info!(target: "roll", "cpu stack block gdt idt cr3 reg protection");
    for (index, cpu) in online::cpus() {
        let [stack, block, gdt, idt, tables, registers] = Aspect::ALL.map(|aspect| {
            if is_right(cpu.get(&SNAPSHOT), index, aspect) {
                aspect.mark()
            } else {
                "BAD"
            }
        });
        log::info!(
            target: "roll",
            "{index:>3} {stack:<5} {block:<5} {gdt} {idt} {tables} {registers} {}",
            cpu.get(&SNAPSHOT).registers().protection()
        );
        if let Some(deviation) = find_deviation(cpu.get(&SNAPSHOT), index) {
            log::error!(target: "roll", "CPU {index} {deviation}");
        }
    }
    if addresses::are_shown() {
        log::info!(target: "roll", "cpu stack top        block            cr3");
        for (index, cpu) in online::cpus() {
            let top = Slot::of(index).main().top;
            let (block, cr3) = (cpu.get(&SNAPSHOT).block(), cpu.get(&SNAPSHOT).cr3());
            log::info!(target: "roll", "{index:>3} {top:016x} {block:016x} {cr3:x}");
        }
    }
}

/// Checks each CPU's state once more. Called on the BSP, between jobs.
///
/// # Errors
///
/// The first deviation, in words.
pub fn check() -> Result<(), String> {
    jobs::all(TIMEOUT, &|_| record_here());
    match online::cpus()
        .find_map(|(index, block)| Some((index, find_deviation(block.get(&SNAPSHOT), index)?)))
    {
        Some((index, deviation)) => Err(format!("CPU {index} {deviation}")),
        None => Ok(()),
    }
}
