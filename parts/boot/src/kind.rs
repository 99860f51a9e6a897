//! The kinds of memory in the loader's map, and whose memory of each kind is.

use alloc::vec::Vec;
use core::fmt;

use muster_frames::{MapError, Owner, PhysRange, PhysicalMap};

/// The kind of a range of physical memory, as the boot loader reports it: the kinds of the Limine boot
/// protocol's memory map.
///
/// Declared from the least to the most restrictive; where entries overlap, the greater wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Free memory.
    Usable,
    /// The loader's: its answers, stacks and tables. Free once nothing uses them any more.
    BootloaderReclaimable,
    /// The kernel's image and the modules loaded with it.
    ExecutableAndModules,
    /// ACPI tables; free once they have been read.
    AcpiReclaimable,
    /// A linear framebuffer.
    Framebuffer,
    /// The firmware's; must be kept across sleep states.
    AcpiNvs,
    /// Reserved, but the protocol's newer revisions map it.
    ReservedMapped,
    /// Not to be touched.
    Reserved,
    /// Memory with defects.
    Bad,
}

impl Kind {
    /// All kinds, from the least to the most restrictive.
    pub const ALL: [Self; 9] = [
        Self::Usable,
        Self::BootloaderReclaimable,
        Self::ExecutableAndModules,
        Self::AcpiReclaimable,
        Self::Framebuffer,
        Self::AcpiNvs,
        Self::ReservedMapped,
        Self::Reserved,
        Self::Bad,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Usable => "usable",
            Self::BootloaderReclaimable => "bootloader reclaimable",
            Self::ExecutableAndModules => "executable and modules",
            Self::AcpiReclaimable => "ACPI reclaimable",
            Self::Framebuffer => "framebuffer",
            Self::AcpiNvs => "ACPI NVS",
            Self::ReservedMapped => "reserved, mapped",
            Self::Reserved => "reserved",
            Self::Bad => "bad",
        })
    }
}

/// One entry of a boot loader's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEntry {
    /// The bytes that it describes.
    pub range: PhysRange,
    /// Their kind.
    pub kind: Kind,
}

impl fmt::Display for MemoryEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.range, self.kind)
    }
}

/// Makes the physical map out of the loader's entries, in any order; `owner` says whose memory of a kind is: of
/// usable memory [`Owner::FREE`], and of bootloader-reclaimable memory [`Owner::LATER`].
///
/// Where entries overlap, the more restrictive kind wins, to the byte.
///
/// # Errors
///
/// [`MapError`], if two usable or bootloader-reclaimable entries overlap, as the protocol guarantees that they don't.
///
/// # Aborts
///
/// As [`PhysicalMap::new`].
pub fn physical_map<O: Owner>(
    entries: &[MemoryEntry],
    owner: impl Fn(Kind) -> O,
) -> Result<PhysicalMap<O>, MapError<O>> {
    let mut sorted: Vec<_> = entries.to_vec();
    sorted.sort_by_key(|entry| entry.kind);
    PhysicalMap::new(sorted.iter().map(|entry| (entry.range, owner(entry.kind))))
}

#[cfg(test)]
mod tests {
    use muster_frames::SoleOwner;

    use muster_frames::PhysAddr;

    use super::*;

    fn owner(kind: Kind) -> SoleOwner {
        match kind {
            Kind::Usable => SoleOwner::Free,
            Kind::BootloaderReclaimable => SoleOwner::Later,
            Kind::ExecutableAndModules | Kind::Framebuffer | Kind::AcpiNvs => SoleOwner::Used,
            _ => SoleOwner::Rest,
        }
    }

    #[test]
    fn every_kind_has_a_name_of_its_own_and_the_order_of_the_list() {
        let mut names: Vec<_> = Kind::ALL
            .iter()
            .map(alloc::string::ToString::to_string)
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
        assert!(Kind::ALL.is_sorted());
    }

    #[test]
    fn the_more_restrictive_kind_wins_in_any_order() {
        let range = PhysRange::from_bounds(PhysAddr::new(0x1000), PhysAddr::new(0x3000)).unwrap();
        for (place, &kind) in Kind::ALL.iter().enumerate().skip(1) {
            let weaker = MemoryEntry {
                range,
                kind: Kind::ALL[place - 1],
            };
            let stronger = MemoryEntry { range, kind };
            for entries in [[weaker, stronger], [stronger, weaker]] {
                match physical_map(&entries, owner) {
                    Ok(map) => assert_eq!(map.owner_of(PhysAddr::new(0x1000)), Some(owner(kind))),
                    Err(error) => {
                        assert_eq!((kind, error.first.0), (Kind::BootloaderReclaimable, range))
                    }
                }
            }
        }
    }
}
