//! The snapshot of a CPU's state, which the CPU reads from its own registers and all may read.

use core::sync::atomic::{AtomicU64, Ordering};

use muster_frames::PhysAddr;
use muster_paging::VirtAddr;
use muster_percpu::cpu_local;

use crate::arch::apic::ENTRY_COUNT;
use crate::arch::control::{self, Registers};

cpu_local! {
    /// The CPU's state, as last read.
    pub shared static SNAPSHOT: Snapshot = Snapshot::new();
}

/// A CPU's state, as read from its own registers. Relaxed throughout: the report that the CPU is online, or the
/// end of the job in which it was read, publishes it.
pub struct Snapshot {
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

/// The values of a snapshot.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotValues {
    /// The address of its block, from GS base.
    pub block: VirtAddr,
    /// CR3.
    pub cr3: PhysAddr,
    /// The address of its GDT.
    pub gdt: VirtAddr,
    /// The address of its IDT.
    pub idt: VirtAddr,
    /// An address on its stack.
    pub stack: VirtAddr,
    /// The control registers as they are.
    pub found: Registers,
    /// And as this CPU's own features ask for.
    pub wanted: Registers,
}

impl Snapshot {
    /// Creates a snapshot of zeros.
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

    /// Stores the values, but for the entries of the local vector table. Called by the CPU itself.
    pub fn store(&self, reading: &SnapshotValues) {
        // Relaxed, as all of it: the report that follows publishes it.
        let cells = [
            (&self.block, reading.block.get()),
            (&self.cr3, reading.cr3.get()),
            (&self.gdt, reading.gdt.get()),
            (&self.idt, reading.idt.get()),
            (&self.stack, reading.stack.get()),
        ];
        for (cell, value) in cells {
            cell.store(value, Ordering::Relaxed);
        }
        let registers = [(&self.found, reading.found), (&self.wanted, reading.wanted)];
        for (cells, registers) in registers {
            for (cell, value) in cells.iter().zip(registers.values()) {
                cell.store(value, Ordering::Relaxed);
            }
        }
    }

    /// Stores the entries of its local vector table, in their order, each as it is and as it was set.
    pub fn store_entries(&self, entries: impl Iterator<Item = (u32, u32)>) {
        for (cell, (found, wanted)) in self.entries.iter().zip(entries) {
            let value = u64::from(found) << 32 | u64::from(wanted);
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Returns the entries of its local vector table, each as it is and as it was set.
    pub fn entries(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.entries.iter().map(|value| {
            let value = value.load(Ordering::Relaxed);
            ((value >> 32) as u32, value as u32)
        })
    }

    /// Returns the address of its GDT.
    pub fn gdt(&self) -> VirtAddr {
        VirtAddr::new(self.gdt.load(Ordering::Relaxed))
    }

    /// Returns the address of its IDT.
    pub fn idt(&self) -> VirtAddr {
        VirtAddr::new(self.idt.load(Ordering::Relaxed))
    }

    /// Returns an address on its stack.
    pub fn stack(&self) -> VirtAddr {
        VirtAddr::new(self.stack.load(Ordering::Relaxed))
    }

    /// Reads the root of this CPU's tables alone, after they were loaded again.
    pub fn record_tables(&self) {
        // Relaxed, as all of it: the report that follows publishes it.
        self.cr3
            .store(control::loaded_tables().get(), Ordering::Relaxed);
    }

    /// Returns the address of its block, from GS base.
    pub fn block(&self) -> VirtAddr {
        VirtAddr::new(self.block.load(Ordering::Relaxed))
    }

    /// Returns the name and the address of each object that the CPU itself uses by its registers.
    pub fn addresses(&self) -> [(&'static str, VirtAddr); 4] {
        [
            ("block", &self.block),
            ("GDT", &self.gdt),
            ("IDT", &self.idt),
            ("stack", &self.stack),
        ]
        .map(|(what, address)| (what, VirtAddr::new(address.load(Ordering::Relaxed))))
    }

    /// Returns the physical address of its root table, from CR3.
    pub fn cr3(&self) -> PhysAddr {
        PhysAddr::new(self.cr3.load(Ordering::Relaxed))
    }

    /// Returns the control registers as they are.
    pub fn registers(&self) -> Registers {
        Registers::from_values(
            self.found
                .each_ref()
                .map(|value| value.load(Ordering::Relaxed)),
        )
    }

    /// Returns the control registers as its own features ask for.
    pub fn wanted(&self) -> Registers {
        Registers::from_values(
            self.wanted
                .each_ref()
                .map(|value| value.load(Ordering::Relaxed)),
        )
    }
}
