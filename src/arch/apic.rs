//! How a CPU reaches the registers of its local APIC, in whichever mode it is.

use core::sync::atomic::{AtomicU64, Ordering};

use muster_frames::PhysAddr;
use muster_machine::lapic::{BASE_ENABLED, BASE_X2APIC, Register};
use muster_paging::VirtAddr;
use muster_percpu::InterruptSafe;
use x86_64::registers::model_specific::{ApicBase, Msr};

use super::control;

/// How many entries of the local vector table are set on every CPU, at most.
pub const ENTRY_COUNT: usize = 7;

/// Where the xAPIC's registers are mapped; 0 until they are. Stored with Release after [`ROOTS`], which a
/// CPU reads, Relaxed, once it has Acquired this.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// The root tables in which they are.
static ROOTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Returns the physical address of the xAPIC's page: `None` in x2APIC mode, which needs none, and where
/// this CPU's local APIC is switched off.
pub fn physical_base() -> Option<PhysAddr> {
    let (frame, flags) = ApicBase::read_raw();
    let is_xapic = flags & (BASE_ENABLED | BASE_X2APIC) == BASE_ENABLED;
    is_xapic.then(|| PhysAddr::new(frame.start_address().as_u64()))
}

/// Records where the xAPIC's page is mapped, in the tables with these roots.
///
/// # Safety
///
/// The page is mapped there, uncached, for good, in the tables with either root.
pub unsafe fn mapped_at(virtual_: VirtAddr, roots: [PhysAddr; 2]) {
    for (slot, root) in ROOTS.iter().zip(roots) {
        // Relaxed: published by the store below, and always the same.
        slot.store(root.get(), Ordering::Relaxed);
    }
    REGISTERS.store(virtual_.get(), Ordering::Release);
}

/// Returns whether this CPU runs on tables that map the xAPIC's page. Asked once [`REGISTERS`] was
/// acquired.
fn is_on_tables() -> bool {
    let loaded = control::loaded_tables();
    ROOTS
        .iter()
        .any(|root| root.load(Ordering::Relaxed) == loaded.get())
}

/// This CPU's APIC registers, where they are to be reached. Only this file makes one.
#[derive(Debug, Clone, Copy)]
pub struct ApicRegisters(RegisterLocation);

#[derive(Debug, Clone, Copy)]
enum RegisterLocation {
    /// In MSRs.
    Msrs,
    /// In a page, mapped at this address.
    Page(usize),
}

/// How one CPU reaches the registers of its local APIC, once it has switched it on: IA32_APIC_BASE says
/// so, but to read it is an exit to the hypervisor in a virtual machine, and interrupts are ended often.
pub struct Mode(AtomicU64);

// SAFETY: an atomic.
unsafe impl InterruptSafe for Mode {}

impl Mode {
    /// Not known yet.
    const UNKNOWN: u64 = 0;
    /// In MSRs. Any other number is the address of the page.
    const X2APIC: u64 = 1;

    /// Creates one that is not known yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(Self::UNKNOWN))
    }

    /// Records it. Called by its own CPU, on the kernel's tables, which it never leaves, nor its
    /// mode.
    pub fn note(&self, registers: ApicRegisters) {
        let mode = match registers.0 {
            RegisterLocation::Msrs => Self::X2APIC,
            RegisterLocation::Page(base) => base as u64,
        };
        // Relaxed: only this CPU reads it, an NMI in between as it was or as it is.
        self.0.store(mode, Ordering::Relaxed);
    }

    /// Returns where they are, once that is recorded.
    pub fn registers(&self) -> Option<ApicRegisters> {
        // Relaxed: as for `note`.
        match self.0.load(Ordering::Relaxed) {
            Self::UNKNOWN => None,
            Self::X2APIC => Some(ApicRegisters(RegisterLocation::Msrs)),
            base => Some(ApicRegisters(RegisterLocation::Page(base as usize))),
        }
    }
}

impl ApicRegisters {
    /// Finds out how this CPU reaches them, from its own registers. Returns `None` where the page is not
    /// mapped: before it is at all, and on an AP that still runs on the loader's tables.
    pub fn find() -> Option<Self> {
        match ApicBase::read_raw().1 & (BASE_ENABLED | BASE_X2APIC) {
            BASE_ENABLED => {}
            0 | BASE_X2APIC => return None,
            _ => return Some(Self(RegisterLocation::Msrs)),
        }
        Some(REGISTERS.load(Ordering::Acquire))
            .filter(|&base| base != 0 && is_on_tables())
            .map(|base| Self(RegisterLocation::Page(base as usize)))
    }

    /// Returns whether they are MSRs, as in x2APIC mode.
    pub fn are_msrs(self) -> bool {
        matches!(self.0, RegisterLocation::Msrs)
    }

    /// Writes a register.
    ///
    /// # Safety
    ///
    /// This CPU, or another one that the write sends a command to, has a handler for each interrupt
    /// that it causes.
    pub unsafe fn write(self, register: Register, value: u32) {
        match self.0 {
            // SAFETY: the mode was read from this CPU, so the MSR exists; its effects are the
            // caller's promise.
            RegisterLocation::Msrs => unsafe {
                Msr::new(register.msr()).write(u64::from(value));
            },
            // SAFETY: `mapped_at` was given the page's address in the kernel's tables,
            // mapped uncached and never unmapped; the register is 32-bit, aligned,
            // within the page, and this CPU's own.
            RegisterLocation::Page(base) => unsafe {
                core::ptr::with_exposed_provenance_mut::<u32>(base + register.offset() as usize)
                    .write_volatile(value);
            },
        }
    }

    /// Reads a register.
    pub fn read(self, register: Register) -> u32 {
        self.read_nth(register, 0)
    }

    /// Reads the register that lies `number` after `register`, of the eight that hold bits of
    /// vectors.
    pub fn read_nth(self, register: Register, number: u32) -> u32 {
        let number = number.min(7);
        match self.0 {
            // SAFETY: as for `write`; reading has no side effect. The registers of vectors are next to
            // one another.
            RegisterLocation::Msrs => unsafe { Msr::new(register.msr() + number).read() as u32 },
            // SAFETY: as for `write`; and 16 bytes apart.
            RegisterLocation::Page(base) => unsafe {
                let offset = register.offset() as usize + 16 * number as usize;
                core::ptr::with_exposed_provenance::<u32>(base + offset).read_volatile()
            },
        }
    }
}
