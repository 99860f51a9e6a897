//! The local APIC: interrupts from one CPU to another.

use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::CpuId;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::{ApicBase, Msr};

use crate::clock::Deadline;
use crate::shared;

/// IA32_APIC_BASE: x2APIC mode is on (Intel SDM vol. 3A, 11.12.1).
const ENABLED_X2APIC: u64 = 1 << 10;

/// Registers, as byte offsets in the xAPIC's page (Intel SDM vol. 3A, table 11-1).
/// In x2APIC mode they are MSRs: [`X2APIC_BASE`] and a sixteenth of the offset.
const EOI: usize = 0x0b0;
const SPURIOUS: usize = 0x0f0;
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;

/// MSR of the x2APIC's register at offset 0 (Intel SDM vol. 3A, table 11-6).
const X2APIC_BASE: u32 = 0x800;

/// Spurious-interrupt register: the APIC is on (Intel SDM vol. 3A, figure 11-23).
const SOFTWARE_ENABLE: u32 = 1 << 8;

/// ICR: fixed delivery or NMI, level assert (Intel SDM vol. 3A, 11.6.1).
const FIXED: u32 = 1 << 14;
const NMI: u32 = 0b100 << 8 | 1 << 14;

/// The xAPIC id that means every CPU (Intel SDM vol. 3A, 11.6.2.1).
const XAPIC_BROADCAST: u32 = 0xff;

/// ICR: delivery status, set while the last interrupt is still on its way.
const PENDING: u32 = 1 << 12;

/// The interrupt that wakes a halted CPU. It says nothing more: the CPU looks
/// for itself what there is to do.
pub const WAKE_VECTOR: u8 = 0xf0;

/// The interrupt a CPU gets when another one went away before it was taken. Its
/// low four bits are all set, as the first APICs have it (Intel SDM vol. 3A, 11.9).
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Where the xAPIC's registers are mapped; 0 until they are.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// Physical address of the xAPIC's page, or `None` in x2APIC mode, which needs none.
pub fn physical_base() -> Option<u64> {
    let (frame, flags) = ApicBase::read_raw();
    (flags & ENABLED_X2APIC == 0).then(|| frame.start_address().as_u64())
}

/// Tells where the xAPIC's page is mapped, once it is.
///
/// # Safety
///
/// The page is mapped there, uncached, in the tables of every CPU that uses this
/// module from now on.
pub unsafe fn mapped_at(virtual_: u64) {
    REGISTERS.store(virtual_, Ordering::Release);
}

/// The LAPIC id of the CPU this runs on, from CPUID: it needs no mapping and
/// so works at any time.
pub fn own_id() -> u32 {
    let cpuid = CpuId::new();
    let topology = cpuid
        .get_extended_topology_info()
        .and_then(|mut levels| levels.next())
        .map(|level| level.x2apic_id());
    let initial = || {
        cpuid
            .get_feature_info()
            .map(|leaf| u32::from(leaf.initial_local_apic_id()))
    };
    topology.or_else(initial).unwrap_or(0)
}

/// Switches this CPU's APIC on, to take [`WAKE_VECTOR`].
pub fn enable() {
    if let Some(registers) = Registers::get() {
        registers.write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
    }
}

/// Ends the interrupt in service on this CPU.
pub fn end_of_interrupt() {
    if let Some(registers) = Registers::get() {
        registers.write(EOI, 0);
    }
}

/// Sends an NMI to one CPU. Says whether it could be sent.
pub fn send_nmi(lapic_id: u32) -> bool {
    send(lapic_id, NMI)
}

/// Wakes one CPU if it is halted. Says whether it could be.
pub fn wake(lapic_id: u32) -> bool {
    send(lapic_id, FIXED | u32::from(WAKE_VECTOR))
}

fn send(lapic_id: u32, command: u32) -> bool {
    match Registers::get() {
        Some(Registers::X2Apic) => {
            let command = u64::from(lapic_id) << 32 | u64::from(command);
            // SAFETY: the MSR exists in x2APIC mode. The interrupt is an NMI or the wake
            // vector, and every CPU that is ever named here has handlers for both
            // (`stop` and `crew` see to it). The fences: this write, unlike one to the
            // xAPIC's page, does not wait for earlier stores (Intel SDM vol. 3A,
            // 11.12.3), and the other CPU is to see what it is woken for.
            unsafe {
                core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
                Msr::new(X2APIC_BASE + (ICR_LOW as u32 >> 4)).write(command)
            };
            true
        }
        Some(registers) if lapic_id < XAPIC_BROADCAST => {
            let sent = || {
                let deadline = Deadline::after_millis(1);
                while registers.read(ICR_LOW) & PENDING != 0 {
                    if deadline.passed() {
                        return false;
                    }
                }
                true
            };
            // So that no handler writes the high half in between.
            interrupts::without_interrupts(|| {
                sent() && {
                    registers.write(ICR_HIGH, lapic_id << 24);
                    registers.write(ICR_LOW, command);
                    sent()
                }
            })
        }
        _ => false,
    }
}

/// Where this CPU's APIC registers are.
#[derive(Debug, Clone, Copy)]
enum Registers {
    /// In MSRs.
    X2Apic,
    /// In a page, mapped at this address.
    XApic(usize),
}

impl Registers {
    /// `None` where the page is not mapped: before it is at all, and on an AP that
    /// still runs on the loader's tables.
    fn get() -> Option<Self> {
        if ApicBase::read_raw().1 & ENABLED_X2APIC != 0 {
            return Some(Self::X2Apic);
        }
        Some(REGISTERS.load(Ordering::Acquire))
            .filter(|&base| base != 0 && shared::is_loaded())
            .map(|base| Self::XApic(base as usize))
    }

    fn write(self, register: usize, value: u32) {
        match self {
            // SAFETY: the mode was read from this CPU, so the MSR exists; the registers
            // written here (EOI, spurious, ICR) have no effect on memory of their own.
            Self::X2Apic => unsafe {
                Msr::new(X2APIC_BASE + (register as u32 >> 4)).write(u64::from(value));
            },
            // SAFETY: `mapped_at` was given the page's address in the kernel's tables,
            // mapped uncached and never unmapped; the register is 32-bit, aligned,
            // within the page, and this CPU's own.
            Self::XApic(base) => unsafe {
                core::ptr::with_exposed_provenance_mut::<u32>(base + register)
                    .write_volatile(value);
            },
        }
    }

    fn read(self, register: usize) -> u32 {
        match self {
            // SAFETY: as for `write`; reading has no side effect.
            Self::X2Apic => unsafe { Msr::new(X2APIC_BASE + (register as u32 >> 4)).read() as u32 },
            // SAFETY: as for `write`.
            Self::XApic(base) => unsafe {
                core::ptr::with_exposed_provenance::<u32>(base + register).read_volatile()
            },
        }
    }
}
