//! The ACPI MADT: the CPUs that the machine says it has, its I/O APICs, and where its NMIs and other
//! interrupts arrive; and of the FADT, where its timer is.
//!
//! Firmware gets lengths, pointers and checksums wrong, so each of them is checked before it is
//! used. Section and table numbers are those of ACPI 6.5.

use core::fmt;

mod fadt;
pub(crate) mod fixture;
mod interrupts;
mod madt;

pub use fadt::PmTimer;
pub use interrupts::{InterruptEntry, IoApic, NmiSource, SignalFlags, SourceOverride};
pub use madt::{Cpu, Madt, NmiLine};

/// Gives the bytes of physical memory.
pub trait Firmware {
    /// Bytes that stay as they are while they are held.
    type Bytes: AsRef<[u8]>;

    /// Returns the `length` bytes from physical address `start`, exactly; `None` where there is no firmware
    /// memory to read.
    fn bytes(&self, start: u64, length: usize) -> Option<Self::Bytes>;
}

/// The root pointer (5.2.5.3): its signature, the part that its first checksum covers, its whole
/// length, and what stands where in it.
const RSDP_SIGNATURE: &[u8] = b"RSD PTR ";
const RSDP_V1_LENGTH: usize = 20;
const RSDP_LENGTH: usize = 36;
const RSDP_REVISION: usize = 15;
const RSDP_RSDT: usize = 16;
const RSDP_XSDT: usize = 24;

/// Where a BIOS has the root pointer (5.2.5.1): at a multiple of 16 in the first KiB of the extended
/// BIOS data area, whose real-mode segment the BIOS data area tells at this address, or in the
/// read-only memory below 1 MiB.
const EBDA_SEGMENT: u64 = 0x40e;
const EBDA_LENGTH: usize = 1024;
const BIOS_START: u64 = 0xe_0000;
const BIOS_LENGTH: usize = 0x2_0000;
const RSDP_ALIGN: usize = 16;

/// The header of every other table (5.2.6): its length, and where its own length stands in it after
/// its signature.
const HEADER_LENGTH: usize = 36;
const TABLE_LENGTH: usize = 4;

/// No table is longer, in bytes; a length beyond is a broken one.
const MAX_TABLE: usize = 1024 * 1024;

/// Why the MADT, or what it says, is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadtError {
    /// There is no sound root pointer at the address.
    Rsdp(u64),
    /// A table at the address can't be read, or its length or checksum is wrong.
    Table(u64),
    /// There is no MADT.
    Missing,
    /// The MADT's entries don't add up to its length.
    Entries,
    /// An entry of the MADT is shorter, in bytes, than its type has it.
    Short {
        /// Its type.
        kind: u8,
        /// How long it is.
        length: usize,
        /// How long it must be.
        min_length: usize,
    },
}

impl fmt::Display for MadtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsdp(at) => write!(f, "there is no ACPI root pointer at {at:#x}"),
            Self::Table(at) => write!(f, "the ACPI table at {at:#x} is broken or out of reach"),
            Self::Missing => write!(f, "the machine has no ACPI MADT"),
            Self::Entries => write!(f, "the entries of the ACPI MADT don't add up to its length"),
            Self::Short {
                kind,
                length,
                min_length,
            } => write!(
                f,
                "an entry of type {kind} in the ACPI MADT has {length} bytes and must have {min_length}: update \
                 the firmware"
            ),
        }
    }
}

impl core::error::Error for MadtError {}

/// Searches for the root pointer where a BIOS has it, and returns its physical address.
pub fn search_rsdp(firmware: &impl Firmware) -> Option<u64> {
    let segment = firmware.bytes(EBDA_SEGMENT, 2);
    let ebda = segment.and_then(|bytes| number(bytes.as_ref(), 0, 2));
    let areas = [
        (ebda.unwrap_or(0) << 4, EBDA_LENGTH),
        (BIOS_START, BIOS_LENGTH),
    ];
    areas
        .into_iter()
        .filter(|&(start, _)| start != 0)
        .find_map(|(start, length)| {
            let bytes = firmware.bytes(start, length)?;
            let chunks = bytes.as_ref().chunks_exact(RSDP_ALIGN);
            // A root pointer is longer than the places are apart, so it is read again.
            let mut places = (start..).step_by(RSDP_ALIGN).zip(chunks);
            let found = places.find(|&(at, chunk)| {
                chunk.starts_with(RSDP_SIGNATURE) && sound_rsdp(firmware, at).is_some()
            });
            found.map(|(at, _)| at)
        })
}

/// Finds the first table with this signature through the root pointer at physical address `rsdp`.
fn find<F: Firmware>(firmware: &F, rsdp: u64, signature: &[u8]) -> Result<F::Bytes, MadtError> {
    let (root, width) = root_table(firmware, rsdp)?;
    let root = table(firmware, root)?;
    let pointers = root.as_ref().get(HEADER_LENGTH..).unwrap_or_default();
    // A broken pointer on the way is passed over: the table may be sound all the same.
    let found = pointers
        .chunks_exact(width)
        .filter_map(|pointer| number(pointer, 0, width))
        .find(|&at| {
            firmware
                .bytes(at, HEADER_LENGTH)
                .is_some_and(|header| header.as_ref().starts_with(signature))
        })
        .ok_or(MadtError::Missing)?;
    table(firmware, found)
}

/// Returns the address of the table of tables, and how wide the addresses in it are.
fn root_table(firmware: &impl Firmware, rsdp: u64) -> Result<(u64, usize), MadtError> {
    let broken = MadtError::Rsdp(rsdp);
    let bytes = sound_rsdp(firmware, rsdp).ok_or(broken)?;
    let bytes = bytes.as_ref();
    let revision = number(bytes, RSDP_REVISION, 1).ok_or(broken)?;
    let rsdt = number(bytes, RSDP_RSDT, 4).ok_or(broken)?;
    // Revision 0 (ACPI 1.0) ends with the RSDT's address; all others have an XSDT as
    // well, which some firmware leaves null.
    let xsdt = match firmware.bytes(rsdp, RSDP_LENGTH) {
        Some(bytes) if revision > 0 => number(bytes.as_ref(), RSDP_XSDT, 8).unwrap_or(0),
        _ => 0,
    };
    Ok(if xsdt != 0 { (xsdt, 8) } else { (rsdt, 4) })
}

/// Returns the part of a root pointer that all revisions have, if there is one at the address.
fn sound_rsdp<F: Firmware>(firmware: &F, at: u64) -> Option<F::Bytes> {
    let bytes = firmware.bytes(at, RSDP_V1_LENGTH)?;
    let is_sound = bytes.as_ref().starts_with(RSDP_SIGNATURE) && sums_to_zero(bytes.as_ref());
    is_sound.then_some(bytes)
}

/// Reads a whole table, and checks its length and checksum.
fn table<F: Firmware>(firmware: &F, at: u64) -> Result<F::Bytes, MadtError> {
    let header = firmware.bytes(at, HEADER_LENGTH);
    header
        .and_then(|header| number(header.as_ref(), TABLE_LENGTH, 4))
        .map(|length| length as usize)
        .filter(|length| (HEADER_LENGTH..=MAX_TABLE).contains(length))
        .and_then(|length| firmware.bytes(at, length))
        .filter(|bytes| sums_to_zero(bytes.as_ref()))
        .ok_or(MadtError::Table(at))
}

/// Returns whether the bytes sum to zero, as those of every ACPI structure do.
fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// Returns the little-endian number of up to eight bytes that stands at an offset.
fn number(bytes: &[u8], offset: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(offset..)?.get(..length)?;
    let joined = bytes.iter().rev();
    Some(joined.fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fixture::{APIC_5, Memory, START, root_pointer};
    use super::*;

    #[test]
    fn broken_tables_on_the_way_are_passed_over_and_broken_ones_named() {
        let mut memory = Memory::new();
        let broken = memory.add_table(b"FACP", &[1, 2, 3]);
        *memory.at(broken + 38) ^= 1;
        let madt = memory.add_madt(&[APIC_5]);
        let rsdp = memory.add_root(2, &[0, u64::MAX, 0x10, broken, madt]);
        assert_eq!(memory.lapic_ids(rsdp), Ok(vec![5]));

        *memory.at(madt + 50) ^= 1;
        assert_eq!(memory.lapic_ids(rsdp), Err(MadtError::Table(madt)));
        *memory.at(madt + 50) ^= 1;
        for length in [0, 35, 200, 255] {
            let was = std::mem::replace(memory.at(madt + 4), length);
            assert_eq!(memory.lapic_ids(rsdp), Err(MadtError::Table(madt)));
            *memory.at(madt + 4) = was;
        }
        *memory.at(rsdp) = b'r';
        assert_eq!(memory.lapic_ids(rsdp), Err(MadtError::Rsdp(rsdp)));
        assert_eq!(memory.lapic_ids(0), Err(MadtError::Rsdp(0)));
        assert_eq!(search_rsdp(&&memory), None);
        let rsdp = memory.add_root(0, &[broken]);
        assert_eq!(memory.lapic_ids(rsdp), Err(MadtError::Missing));
        let rsdp = memory.add_root(2, &[]);
        *memory.at(rsdp + 24) ^= 8;
        assert!(matches!(memory.lapic_ids(rsdp), Err(MadtError::Table(_))));
    }

    #[test]
    fn the_extended_bios_data_area_is_searched_first() {
        let mut memory = Memory {
            start: EBDA_SEGMENT,
            bytes: vec![0; 2 << 20],
        };
        let rsdp = root_pointer(2, 0, 0);
        let ends = [
            (0x9_fc30, Some(0x9_fc30)),
            (BIOS_START + 0x1_ffd0, Some(0x9_fc30)),
        ];
        memory.put(EBDA_SEGMENT, &0x9fc0_u16.to_le_bytes());
        assert_eq!(search_rsdp(&&memory), None);
        for (at, found) in ends {
            memory.put(at, &rsdp);
            assert_eq!(search_rsdp(&&memory), found);
        }
        // One that is broken is passed over, and so is an area that is not there.
        *memory.at(0x9_fc30 + 9) ^= 1;
        assert_eq!(search_rsdp(&&memory), Some(BIOS_START + 0x1_ffd0));
        memory.put(EBDA_SEGMENT, &[0xff; 2]);
        assert_eq!(search_rsdp(&&memory), Some(BIOS_START + 0x1_ffd0));
    }

    proptest! {
        #[test]
        fn whatever_is_changed_the_cpus_are_the_same_or_an_error_is_told(
            cpus in prop::collection::vec((any::<u32>(), any::<bool>()), 0..20),
            revision in 0_u8..3,
            change in prop::option::of((any::<prop::sample::Index>(), 1_u8..)),
        ) {
            let mut memory = Memory::new();
            let entries: Vec<Vec<u8>> = cpus.iter().map(|&(id, is_x2apic)| match is_x2apic {
                true => [&[9, 16, 0, 0][..], &id.to_le_bytes(), &[1, 0, 0, 0, 0, 0, 0, 0]].concat(),
                false => vec![0, 8, 0, id as u8, 1, 0, 0, 0],
            }).collect();
            let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
            let madt = memory.add_madt(&entries);
            let rsdp = memory.add_root(revision, &[madt]);
            let expected: Vec<u32> = cpus.iter()
                .map(|&(id, is_x2apic)| if is_x2apic { (id, u32::MAX) } else { (id & 0xff, 0xff) })
                .filter(|(id, nobody)| id != nobody)
                .map(|(id, _)| id)
                .collect();
            match change {
                None => prop_assert_eq!(memory.lapic_ids(rsdp), Ok(expected)),
                // One byte: every checksum it counts in tells.
                Some((place, by)) => {
                    let place = place.index(memory.bytes.len());
                    memory.bytes[place] ^= by;
                    if let Ok(ids) = memory.lapic_ids(rsdp) {
                        prop_assert_eq!(ids, expected);
                    }
                }
            }
        }

        #[test]
        fn any_memory_is_read_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            at in 0_u64..200,
        ) {
            let memory = Memory { start: START, bytes };
            prop_assert!(memory.lapic_ids(START + at).is_err());
            prop_assert_eq!(search_rsdp(&&memory), None);
        }
    }
}
