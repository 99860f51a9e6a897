//! The firmware's tables: mapped when they are read, and not for longer.

use alloc::vec::Vec;
use core::cell::RefCell;

use muster_frames::{Frame, PhysAddr, PhysRange};
use muster_machine::acpi::{Firmware, IoApic, Madt, MadtError, NmiLine, PmTimer};
use muster_machine::routing::{Routing, RoutingError};
use muster_paging::{Access, Cache};

use super::mapping::Mapping;
use super::{physical, shared};
use crate::boot::limine::Boot;
use crate::boot::owner::Owner;
use crate::smp::lapic;

/// Reads the MADT.
///
/// # Errors
///
/// [`MadtError`], if it is damaged, or there is none.
pub fn madt(boot: &Boot) -> Result<Madt<Vec<u8>>, MadtError> {
    let rsdp = boot.rsdp.ok_or(MadtError::Missing)?;
    Madt::find(&FirmwareTables::new(), rsdp)
}

/// Returns the lines of this CPU's local APIC at which NMIs arrive, as the MADT has them; without one, as
/// on every PC, the second.
pub fn nmi_lines(boot: &Boot) -> Vec<NmiLine> {
    let lines: Option<Vec<_>> =
        (madt(boot).ok()).map(|madt| madt.nmi_lines(lapic::own_id()).collect());
    lines.unwrap_or_else(|| {
        Vec::from([NmiLine {
            acpi_id: None,
            lint: 1,
            is_active_low: false,
        }])
    })
}

/// Returns where devices' interrupts arrive, as the MADT has it. `pins` returns the number of inputs of each
/// I/O APIC, 0 for one that can't be used.
///
/// # Errors
///
/// [`RoutingError`], if the MADT is damaged, or there is none.
pub fn routing(boot: &Boot, pins: impl FnMut(IoApic) -> u8) -> Result<Routing, RoutingError> {
    let madt = madt(boot).map_err(RoutingError::Madt)?;
    Routing::new(madt.interrupt_entries(), pins)
}

/// Returns where the ACPI timer is, if there is one.
pub fn pm_timer(boot: &Boot) -> Option<PmTimer> {
    PmTimer::find(&FirmwareTables::new(), boot.rsdp?)
}

/// The firmware's tables that have been read. They are unmapped when this is dropped.
struct FirmwareTables {
    /// Whole pages, each with where it is mapped.
    mapped: RefCell<Vec<(PhysRange, Mapping)>>,
}

impl FirmwareTables {
    /// Creates a set without any.
    fn new() -> Self {
        Self {
            mapped: RefCell::new(Vec::new()),
        }
    }
}

impl Firmware for FirmwareTables {
    type Bytes = Vec<u8>;

    /// Maps the bytes and copies them: firmware tables lie in memory that the HHDM does not map.
    fn bytes(&self, start: u64, length: usize) -> Option<Vec<u8>> {
        let range = PhysRange::new(PhysAddr::new(start), length as u64)?;
        let pages = range.covering_frames();
        let mut mapped = self.mapped.borrow_mut();
        if !mapped.iter().any(|(known, _)| known.encloses(pages)) {
            // A null pointer is none.
            if pages.start() == PhysAddr::default() || !pages.frames().all(may_be_firmware) {
                return None;
            }
            // SAFETY: the firmware has tables there, or nothing that a read could disturb
            // (`may_be_firmware`); the page tables refuse memory that is mapped as a device
            // already.
            let mapping =
                unsafe { Mapping::physical(pages, Access::ReadOnly, Cache::WriteBack) }.ok()?;
            mapped.push((pages, mapping));
        }
        let (known, mapping) = mapped.iter().find(|(known, _)| known.encloses(pages))?;
        let offset = (range.start() - known.start()) as usize;
        // SAFETY: every page of the range is mapped, and stays so while `mapped` is borrowed.
        // Firmware may write there at the same time, so each byte is read once, as a volatile, and
        // only the copy is used.
        Some(
            (offset..offset + length)
                .map(|at| unsafe { mapping.start().add(at).read_volatile() })
                .collect(),
        )
    }
}

/// Returns whether a frame may hold a firmware table: memory that the map leaves to the firmware,
/// or the first megabyte, of which maps often say nothing.
fn may_be_firmware(frame: Frame) -> bool {
    match shared::get().map().owner_of(frame.start()) {
        Some(owner) => {
            matches!(
                owner,
                Owner::Reserved | Owner::AcpiReclaimable | Owner::AcpiNvs
            )
        }
        None => frame.start() < physical::LEGACY_END,
    }
}
