//! The local APIC, as far as stopping other CPUs needs it.

use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::CpuId;
use x86_64::registers::model_specific::{ApicBase, Msr};

use crate::clock::Deadline;

/// IA32_APIC_BASE: x2APIC mode is on (Intel SDM vol. 3A, 11.12.1).
const ENABLED_X2APIC: u64 = 1 << 10;

/// Interrupt command register, x2APIC mode (Intel SDM vol. 3A, table 11-6).
const X2APIC_ICR: u32 = 0x830;

/// Interrupt command register, low and high half, as byte offsets in the
/// xAPIC's page (Intel SDM vol. 3A, table 11-1).
const XAPIC_ICR_LOW: usize = 0x300;
const XAPIC_ICR_HIGH: usize = 0x310;

/// ICR: delivery mode NMI, level assert (Intel SDM vol. 3A, 11.6.1).
const NMI: u32 = 0b100 << 8 | 1 << 14;

/// ICR: delivery status, set while the last interrupt is still on its way.
const PENDING: u32 = 1 << 12;

/// Where the xAPIC's registers are mapped; 0 until they are.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// Physical address of the xAPIC's page, or `None` in x2APIC mode, which needs none.
pub fn physical_base() -> Option<u64> {
    let (frame, flags) = ApicBase::read_raw();
    (flags & ENABLED_X2APIC == 0).then(|| frame.start_address().as_u64())
}

/// Tells where the xAPIC's page is mapped, once it is.
pub fn mapped_at(virtual_: u64) {
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

/// Sends an NMI to one CPU. Says whether it could be sent.
pub fn send_nmi(lapic_id: u32) -> bool {
    if ApicBase::read_raw().1 & ENABLED_X2APIC != 0 {
        let command = u64::from(lapic_id) << 32 | u64::from(NMI);
        // SAFETY: the MSR exists in x2APIC mode, which was just read. An NMI has a
        // handler on every CPU that is ever named here (`stop` sees to it).
        unsafe { Msr::new(X2APIC_ICR).write(command) };
        return true;
    }
    let base = REGISTERS.load(Ordering::Acquire);
    if base == 0 || lapic_id > 0xff {
        return false;
    }
    let low = core::ptr::with_exposed_provenance_mut::<u32>(base as usize + XAPIC_ICR_LOW);
    let high = core::ptr::with_exposed_provenance_mut::<u32>(base as usize + XAPIC_ICR_HIGH);
    // SAFETY: (1) `mapped_at` was given the page's address in the kernel's tables,
    // mapped uncached and never unmapped; (2) both registers are 32-bit, aligned,
    // and this CPU's own; (3) interrupts are off, so no one writes the high half
    // in between; (4) the NMI itself: as above.
    unsafe {
        high.write_volatile(lapic_id << 24);
        low.write_volatile(NMI);
        let deadline = Deadline::after_millis(1);
        while low.read_volatile() & PENDING != 0 {
            if deadline.passed() {
                return false;
            }
        }
    }
    true
}
