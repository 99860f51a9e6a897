//! The firmware's ACPI tables, where they lie.

use core::fmt;

use muster_loader::memory_map::MemoryMap;
use muster_machine::acpi::{self, Firmware, Madt, MadtError};

use super::physical;

/// Why the CPUs are not known.
#[derive(Clone, Copy, Debug)]
pub enum FirmwareError {
    /// No ACPI root pointer, where QEMU or the BIOS would have put it.
    NoRsdp,
    /// The tables are damaged, or there is no MADT.
    NoMadt(MadtError),
}

impl fmt::Display for FirmwareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel asks for the other CPUs, but ")?;
        match self {
            Self::NoRsdp => {
                f.write_str("there is no ACPI root pointer to find them by; start QEMU with ACPI")
            }
            Self::NoMadt(error) => error.fmt(f),
        }
    }
}

/// The memory of the BIOS and of ACPI: all that the loader has not taken.
#[derive(Clone, Copy, Debug)]
pub struct FirmwareMemory<'map>(&'map MemoryMap);

impl<'map> FirmwareMemory<'map> {
    /// Creates a view of the memory that is not taken yet.
    ///
    /// # Safety
    /// The loader writes to no memory but what it has taken out of the map.
    pub const unsafe fn new(map: &'map MemoryMap) -> Self {
        Self(map)
    }

    /// Returns the physical address of the root pointer: what the start info says, or what
    /// a search of the BIOS area finds.
    pub fn rsdp(self, told: Option<u64>) -> Option<u64> {
        told.or_else(|| acpi::search_rsdp(&self))
    }

    /// Finds the MADT, by the root pointer.
    ///
    /// # Errors
    /// [`FirmwareError`].
    pub fn madt(self, rsdp: Option<u64>) -> Result<Madt<&'map [u8]>, FirmwareError> {
        let rsdp = rsdp.ok_or(FirmwareError::NoRsdp)?;
        Madt::find(&self, rsdp).map_err(FirmwareError::NoMadt)
    }
}

impl<'map> Firmware for FirmwareMemory<'map> {
    type Bytes = &'map [u8];

    fn bytes(&self, start: u64, length: usize) -> Option<&'map [u8]> {
        let end = start.checked_add(length as u64)?;
        if self.0.is_taken(&(start..end)) {
            return None;
        }
        // SAFETY: any byte will do. The loader has not taken the memory, so nothing else in it
        // refers to it, nor writes there (promised to `new`); and it takes none while the map is
        // borrowed.
        unsafe { physical::slice(start, length as u64) }
    }
}
