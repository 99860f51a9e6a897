//! The firmware's ACPI tables: the root pointer, and the table of CPUs.

use core::fmt;
use core::ptr::NonNull;

use acpi::madt::Madt;
use acpi::rsdp::Rsdp;
use acpi::{AcpiError, AcpiHandler, AcpiTables, PhysicalMapping};

use super::{exit, physical};

/// Why the CPUs are not known.
#[derive(Debug)]
pub enum FirmwareError {
    /// No ACPI root pointer, where QEMU or the BIOS would have put it.
    NoRsdp,
    /// The tables are damaged, or there is no MADT.
    NoMadt(AcpiError),
}

impl fmt::Display for FirmwareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRsdp => f.write_str(
                "the kernel asks for the other CPUs, but there is no ACPI root pointer to find \
                 them by; start QEMU with ACPI",
            ),
            Self::NoMadt(error) => {
                write!(
                    f,
                    "the kernel asks for the other CPUs, but ACPI has no MADT: {error:?}"
                )
            }
        }
    }
}

/// The physical address of the root pointer: what the start info says, or what
/// a search of the BIOS area finds.
///
/// # Safety
/// The memory of the BIOS and of ACPI is as the firmware left it.
pub unsafe fn rsdp(told: Option<u64>) -> Option<u64> {
    told.or_else(|| {
        // SAFETY: QEMU's machines without a pointer in the start info have a
        // BIOS, or zeroes, in the places that are searched.
        let found = unsafe { Rsdp::search_for_on_bios(Identity) }.ok()?;
        Some(found.physical_start() as u64)
    })
}

/// The bytes of the MADT.
///
/// # Errors
/// [`FirmwareError`].
///
/// # Safety
/// As for [`rsdp`], which `rsdp` comes from.
pub unsafe fn madt(rsdp: Option<u64>) -> Result<&'static [u8], FirmwareError> {
    let rsdp = rsdp.ok_or(FirmwareError::NoRsdp)?;
    // SAFETY: the address is the root pointer's; its checksum is checked.
    let tables = unsafe { AcpiTables::from_rsdp(Identity, rsdp as usize) };
    let madt = tables
        .and_then(|tables| tables.find_table::<Madt>())
        .map_err(FirmwareError::NoMadt)?;
    let (address, length) = (madt.physical_start() as u64, madt.region_length() as u64);
    // SAFETY: the table is as long as its header says, and its checksum was
    // right; the loader never allocates ACPI's memory.
    unsafe { physical::slice(address, length) }.ok_or(FirmwareError::NoMadt(
        AcpiError::TableMissing(acpi::sdt::Signature::MADT),
    ))
}

/// Maps nothing, because the boot tables do.
#[derive(Clone)]
struct Identity;

impl AcpiHandler for Identity {
    unsafe fn map_physical_region<T>(
        &self,
        physical_address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let reachable = physical_address
            .checked_add(size)
            .is_some_and(|end| end as u64 <= physical::LIMIT);
        let pointer = core::ptr::with_exposed_provenance_mut::<T>(physical_address);
        match NonNull::new(pointer).filter(|_| reachable) {
            // SAFETY: the first 4 GiB are mapped at their own addresses as
            // long as the loader runs.
            Some(pointer) => unsafe {
                PhysicalMapping::new(physical_address, pointer, size, size, Self)
            },
            None => exit::refuse(format_args!(
                "an ACPI table at {physical_address:#x} is out of the loader's reach"
            )),
        }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}
