//! What a CPU runs with: its own block, stack and GDT, the tables and the IDT of all, and the control
//! registers as they should be; and whether it is the CPU that it should be.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use muster_machine::identity::Difference;
use muster_percpu::Register;
use x86_64::instructions::tables::{sgdt, sidt};

use crate::arch::apic::ENTRY_COUNT;
use crate::arch::control::{self, Features, Registers};
use crate::boot::stack::Slot;
use crate::mm::shared;
use crate::smp::cpu::{self, Gs};
use crate::smp::{crew, lapic};

/// How long a CPU may take to look at itself, in milliseconds.
const PATIENCE: u64 = 10_000;

/// What a CPU runs with, as read from its own registers.
pub struct Home {
    block: AtomicU64,
    cr3: AtomicU64,
    gdt: AtomicU64,
    idt: AtomicU64,
    stack: AtomicU64,
    /// The control registers as they are, and as this CPU's own features ask for.
    found: [AtomicU64; Registers::COUNT],
    wanted: [AtomicU64; Registers::COUNT],
    /// The entries of the local vector table, in their order: as they are in the upper half, and as
    /// they were set in the lower one.
    entries: [AtomicU64; ENTRY_COUNT],
}

impl Home {
    /// Nothing is known of it yet.
    pub const fn new() -> Self {
        Self {
            block: AtomicU64::new(0),
            cr3: AtomicU64::new(0),
            gdt: AtomicU64::new(0),
            idt: AtomicU64::new(0),
            stack: AtomicU64::new(0),
            found: [const { AtomicU64::new(0) }; Registers::COUNT],
            wanted: [const { AtomicU64::new(0) }; Registers::COUNT],
            entries: [const { AtomicU64::new(0) }; ENTRY_COUNT],
        }
    }

    /// Reads this CPU's registers. Called by the CPU itself, before it reports that it is online, which
    /// publishes this; and again in an order.
    pub fn record(&self) {
        let here = 0u8;
        let places = [
            (&self.block, Gs::load().addr() as u64),
            (&self.cr3, control::loaded_tables()),
            (&self.gdt, sgdt().base.as_u64()),
            (&self.idt, sidt().base.as_u64()),
            (&self.stack, (&raw const here).addr() as u64),
        ];
        for (place, value) in places {
            place.store(value, Ordering::Relaxed);
        }
        let registers = [
            (&self.found, Registers::read()),
            (&self.wanted, Registers::wanted(&Features::detect())),
        ];
        for (places, registers) in registers {
            for (place, value) in places.iter().zip(registers.values()) {
                place.store(value, Ordering::Relaxed);
            }
        }
        for (place, entry) in self.entries.iter().zip(lapic::Entry::all()) {
            let value = u64::from(entry.found) << 32 | u64::from(entry.wanted);
            place.store(value, Ordering::Relaxed);
        }
    }

    /// Reads the root of this CPU's tables alone, after they were loaded again.
    pub fn record_tables(&self) {
        // Relaxed, as all of it: the report that follows publishes it.
        self.cr3.store(control::loaded_tables(), Ordering::Relaxed);
    }

    /// The address of its block, from GS base.
    pub fn block(&self) -> u64 {
        self.block.load(Ordering::Relaxed)
    }

    /// What the CPU itself uses without being told, and the address of each.
    pub fn places(&self) -> [(&'static str, u64); 4] {
        [
            ("block", &self.block),
            ("GDT", &self.gdt),
            ("IDT", &self.idt),
            ("stack", &self.stack),
        ]
        .map(|(what, address)| (what, address.load(Ordering::Relaxed)))
    }

    /// The physical address of its root table, from CR3.
    pub fn cr3(&self) -> u64 {
        self.cr3.load(Ordering::Relaxed)
    }

    /// The control registers as they are.
    pub fn registers(&self) -> Registers {
        Registers::from_values(
            self.found
                .each_ref()
                .map(|value| value.load(Ordering::Relaxed)),
        )
    }

    fn wanted(&self) -> Registers {
        Registers::from_values(
            self.wanted
                .each_ref()
                .map(|value| value.load(Ordering::Relaxed)),
        )
    }

    /// The first entry of its local vector table that is not as set.
    fn odd_entry(&self) -> Option<lapic::Entry> {
        let names = lapic::Entry::names();
        let mut entries = self.entries.iter().zip(names).map(|(value, name)| {
            let value = value.load(Ordering::Relaxed);
            lapic::Entry {
                name,
                found: (value >> 32) as u32,
                wanted: value as u32,
            }
        });
        entries.find(|entry| entry.found != entry.wanted)
    }

    /// The first thing about CPU `index` that is not as it should be.
    fn find_deviation(&self, index: u32) -> Option<Deviation> {
        let mut differences = differences(index);
        if let Some(first) = differences.next() {
            return Some(Deviation::Identity(first, differences.count()));
        }
        Aspect::ALL
            .into_iter()
            .find(|aspect| !self.is_right(index, *aspect))
            .map(|aspect| match aspect {
                Aspect::Registers => match self.odd_entry() {
                    Some(entry) => Deviation::Entry(entry),
                    None => Deviation::Register {
                        found: self.registers(),
                        wanted: self.wanted(),
                    },
                },
                _ => Deviation::Place(aspect),
            })
    }

    /// Whether an aspect of CPU `index` is as it should be.
    fn is_right(&self, index: u32, aspect: Aspect) -> bool {
        let others = || crew::members().filter(|&(other, _)| other != index);
        let gdt = |home: &Self| home.gdt.load(Ordering::Relaxed);
        let idt = |home: &Self| home.idt.load(Ordering::Relaxed);
        match aspect {
            Aspect::Stack => {
                let here = self.stack.load(Ordering::Relaxed);
                Slot::of(index).main().contains(here)
            }
            Aspect::Block => cpu::DIRECTORY.get(index).is_some_and(|shared| {
                let shared = (&raw const *shared).addr() as u64;
                (self.block()..self.block() + size_of::<cpu::Block>() as u64).contains(&shared)
            }),
            Aspect::Gdt => others().all(|(_, other)| gdt(&other.home) != gdt(self)),
            Aspect::Idt => others().all(|(_, other)| idt(&other.home) == idt(self)),
            Aspect::Tables => self.cr3() == shared::get().root(),
            Aspect::Registers => {
                self.registers() == self.wanted()
                    && self.odd_entry().is_none()
                    && differences(index).next().is_none()
            }
        }
    }
}

/// What can be right or wrong about what a CPU runs with.
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

    /// Whose it is, if it is right.
    fn mark(self) -> &'static str {
        match self {
            Self::Stack | Self::Block | Self::Gdt => "own",
            Self::Idt | Self::Tables => "all",
            Self::Registers => "set",
        }
    }
}

/// Something about a CPU that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deviation {
    Place(Aspect),
    Register {
        found: Registers,
        wanted: Registers,
    },
    Entry(lapic::Entry),
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
            Self::Entry(lapic::Entry {
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

/// Returns the registers in which CPU `index` is not what it should be.
fn differences(index: u32) -> impl Iterator<Item = Difference> {
    let shared = cpu::DIRECTORY.get(index);
    shared.into_iter().flat_map(cpu::Shared::differences)
}

/// Has this CPU look at itself.
pub fn record_here() {
    cpu::with(|here| {
        here.shared().identity.record(lapic::registered_id);
        here.shared().home.record();
    });
}

/// Prints what each CPU at work runs with, and how far it is what it should be.
pub fn tell() {
    log::info!(target: "roll", "what each CPU runs with:");
    log::info!(target: "roll", "cpu stack block gdt idt cr3 reg protection");
    for (index, shared) in crew::members() {
        let [stack, block, gdt, idt, tables, registers] = Aspect::ALL.map(|aspect| {
            if shared.home.is_right(index, aspect) {
                aspect.mark()
            } else {
                "BAD"
            }
        });
        log::info!(
            target: "roll",
            "{index:>3} {stack:<5} {block:<5} {gdt} {idt} {tables} {registers} {}",
            shared.home.registers().protection()
        );
        if let Some(deviation) = shared.home.find_deviation(index) {
            log::error!(target: "roll", "CPU {index} {deviation}");
        }
    }
    if crate::boot::addresses::are_shown() {
        log::info!(target: "roll", "cpu stack top        block            cr3");
        for (index, shared) in crew::members() {
            let top = Slot::of(index).main().top;
            let (block, cr3) = (shared.home.block(), shared.home.cr3());
            log::info!(target: "roll", "{index:>3} {top:016x} {block:016x} {cr3:x}");
        }
    }
}

/// Has each CPU look at itself once more. Called on the BSP, between orders.
///
/// # Errors
///
/// The first thing that is not as it should be, in words.
pub fn check() -> Result<(), String> {
    crew::all(PATIENCE, &|_| record_here());
    match crew::members()
        .find_map(|(index, shared)| Some((index, shared.home.find_deviation(index)?)))
    {
        Some((index, deviation)) => Err(format!("CPU {index} {deviation}")),
        None => Ok(()),
    }
}
