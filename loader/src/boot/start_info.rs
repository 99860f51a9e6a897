//! What QEMU hands over: the PVH start info (Xen's
//! `public/arch-x86/hvm/start_info.h`).

use core::fmt;

use muster_loader::memory_map::{Entry, Kind};

use super::physical;

// The structures are packed because firmware aligns them as it likes: qboot puts
// the modules' list on a multiple of 4.

/// `HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;

#[repr(C, packed)]
struct Raw {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Raw>() == 56);

#[repr(C, packed)]
struct RawModule {
    address: u64,
    size: u64,
    command_line: u64,
    reserved: u64,
}
const _: () = assert!(size_of::<RawModule>() == 32);

#[repr(C, packed)]
struct RawRange {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<RawRange>() == 24);

/// The start info's answers. They lie in memory that the firmware calls
/// usable, so they are read before the loader allocates any.
#[derive(Clone, Copy)]
pub struct StartInfo {
    /// The first module, the kernel's file.
    pub kernel: Option<&'static [u8]>,
    /// The command line, without the final NUL. It may be in the way of what
    /// the loader allocates: copy it.
    pub command_line: &'static [u8],
    /// Physical address of the ACPI root pointer, if known.
    pub rsdp: Option<u64>,
    ranges: &'static [RawRange],
}

/// What is wrong with the start info.
#[derive(Clone, Copy, Debug)]
pub enum StartInfoError {
    /// Not entered by PVH.
    NotPvh,
    /// Version 0 of the structure, or an empty list.
    NoMemoryMap,
}

impl fmt::Display for StartInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPvh => "not started by PVH; use qemu-system-x86_64 -kernel",
            Self::NoMemoryMap => "QEMU's start info has no memory map",
        })
    }
}

/// The longest command line that is looked at, in bytes.
const MAX_LINE: u64 = 64 * 1024;

impl StartInfo {
    /// Reads the start info at a physical address.
    ///
    /// # Errors
    /// [`StartInfoError`].
    ///
    /// # Safety
    /// The address came in EBX from a PVH entry, and nothing has been written
    /// to memory outside the loader's image since, nor is until the last use
    /// of the result but for `kernel`.
    pub unsafe fn read(address: u64) -> Result<Self, StartInfoError> {
        // SAFETY: PVH puts the structure there, and it is not written to.
        let raw = unsafe { physical::slice::<Raw>(address, 1) }
            .and_then(<[Raw]>::first)
            .filter(|raw| raw.magic == MAGIC)
            .ok_or(StartInfoError::NotPvh)?;
        let (entries, count) = (raw.memory_map, u64::from(raw.memory_map_entries));
        // SAFETY: as above; the list is there from version 1 on.
        let ranges = unsafe { physical::slice::<RawRange>(entries, count) }
            .filter(|ranges| raw.version >= 1 && !ranges.is_empty())
            .ok_or(StartInfoError::NoMemoryMap)?;
        // SAFETY: as above.
        let modules = unsafe { physical::slice::<RawModule>(raw.modules, raw.module_count.into()) };
        let kernel = modules.and_then(<[RawModule]>::first).and_then(|module| {
            // SAFETY: as above; `kernel` lies in memory that the loader never
            // allocates.
            unsafe { physical::slice::<u8>(module.address, module.size) }
        });
        let reach = MAX_LINE.min(physical::LIMIT - raw.command_line.min(physical::LIMIT));
        // SAFETY: as above; the line ends at its NUL, and what follows is
        // memory, or at least mapped.
        let command_line = unsafe { physical::slice::<u8>(raw.command_line, reach) }
            .and_then(|line| line.split(|&byte| byte == 0).next())
            .unwrap_or_default();
        let rsdp = (raw.rsdp != 0).then_some(raw.rsdp);
        Ok(Self {
            kernel,
            command_line,
            rsdp,
            ranges,
        })
    }

    /// Returns the memory map, in E820's terms (ACPI 6.5, table 15.4).
    pub fn memory(&self) -> impl Iterator<Item = Entry> + Clone {
        self.ranges.iter().map(|range| Entry {
            base: range.address,
            length: range.size,
            kind: match range.kind {
                1 => Kind::Usable,
                3 => Kind::AcpiReclaimable,
                4 => Kind::AcpiNvs,
                5 => Kind::Bad,
                _ => Kind::Reserved,
            },
        })
    }
}
