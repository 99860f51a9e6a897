//! The ACPI MADT's list of CPUs: what the machine says it has, to hold against
//! what the loader brought.
//!
//! The tables' layouts are the `acpi` crate's. The walk is not: a firmware gets
//! lengths wrong, and the crate believes every one of them.

use alloc::vec::Vec;
use core::fmt;

use acpi::AcpiTable;
use acpi::madt::{EntryHeader, LocalApicEntry, LocalX2ApicEntry, Madt};
use acpi::rsdp::Rsdp;
use acpi::sdt::{SdtHeader, Signature};

/// The root pointer's signature (ACPI 6.5, 5.2.5.3).
const RSDP_SIGNATURE: [u8; 8] = *b"RSD PTR ";

/// The part of the root pointer that its first checksum covers (ibid.).
const RSDP_V1_LENGTH: usize = 20;

/// Where in it the revision and the RSDT's address stand (ibid.).
const RSDP_REVISION: usize = 15;
const RSDP_RSDT: usize = 16;

/// Entry types (ACPI 6.5, table 5.21).
const LOCAL_APIC: u8 = 0;
const LOCAL_X2APIC: u8 = 9;

/// Local APIC flags: bit 0, the CPU is ready for use (ACPI 6.5, table 5.23).
const ENABLED: u32 = 1 << 0;

/// No table is longer; a length beyond is a broken one.
const LONGEST_TABLE: usize = 1024 * 1024;

/// Gives the bytes at a physical address, or `None` where there is no firmware
/// memory to read.
pub trait Firmware {
    /// A copy of `length` bytes from physical address `start`.
    fn bytes(&self, start: u64, length: usize) -> Option<Vec<u8>>;
}

/// Why there is no list of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadtError {
    /// There is no sound root pointer at the address.
    Rsdp(u64),
    /// A table at the address can't be read, or its length or checksum is wrong.
    Table(u64),
    /// There is no MADT.
    Missing,
    /// The MADT's entries don't add up to its length.
    Entries,
}

impl fmt::Display for MadtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsdp(at) => write!(f, "there is no ACPI root pointer at {at:#x}"),
            Self::Table(at) => write!(f, "the ACPI table at {at:#x} is broken or out of reach"),
            Self::Missing => write!(f, "the machine has no ACPI MADT"),
            Self::Entries => write!(f, "the entries of the ACPI MADT don't add up to its length"),
        }
    }
}

/// The LAPIC ids of all CPUs that the MADT calls ready for use, in its order.
///
/// # Errors
///
/// If the way from the root pointer at physical address `rsdp` to the MADT's last
/// entry is broken anywhere.
pub fn lapic_ids(firmware: &impl Firmware, rsdp: u64) -> Result<Vec<u32>, MadtError> {
    let madt = find_madt(firmware, rsdp)?;
    let mut rest = madt.get(size_of::<Madt>()..).ok_or(MadtError::Entries)?;
    let mut ids = Vec::new();
    while !rest.is_empty() {
        let header = view::<EntryHeader>(rest).ok_or(MadtError::Entries)?;
        let length = usize::from(header.length);
        if length < size_of::<EntryHeader>() {
            return Err(MadtError::Entries);
        }
        let (entry, after) = rest.split_at_checked(length).ok_or(MadtError::Entries)?;
        let cpu = match header.entry_type {
            LOCAL_APIC => {
                let cpu = view::<LocalApicEntry>(entry).ok_or(MadtError::Entries)?;
                Some((u32::from(cpu.apic_id), cpu.flags))
            }
            LOCAL_X2APIC => {
                let cpu = view::<LocalX2ApicEntry>(entry).ok_or(MadtError::Entries)?;
                Some((cpu.x2apic_id, cpu.flags))
            }
            _ => None,
        };
        // A CPU may stand there twice, as a local APIC and as an x2APIC.
        if let Some((id, flags)) = cpu
            && flags & ENABLED != 0
            && !ids.contains(&id)
        {
            ids.push(id);
        }
        rest = after;
    }
    Ok(ids)
}

fn find_madt(firmware: &impl Firmware, rsdp: u64) -> Result<Vec<u8>, MadtError> {
    let bytes = firmware
        .bytes(rsdp, RSDP_V1_LENGTH)
        .ok_or(MadtError::Rsdp(rsdp))?;
    if !bytes.starts_with(&RSDP_SIGNATURE) || !sums_to_zero(&bytes) {
        return Err(MadtError::Rsdp(rsdp));
    }
    // Revision 0 (ACPI 1.0) ends with the RSDT's address; all others have an XSDT as
    // well, which some firmware leaves null.
    let revision = bytes.get(RSDP_REVISION).copied().unwrap_or(0);
    let rsdt = number(bytes.get(RSDP_RSDT..).unwrap_or_default());
    let xsdt = match firmware.bytes(rsdp, size_of::<Rsdp>()) {
        Some(bytes) if revision > 0 => view::<Rsdp>(&bytes).map_or(0, Rsdp::xsdt_address),
        _ => 0,
    };
    let (root, width) = if xsdt != 0 { (xsdt, 8) } else { (rsdt, 4) };
    let root = table(firmware, root)?;
    let pointers = root.get(size_of::<SdtHeader>()..).unwrap_or_default();
    // A broken pointer on the way is passed over: the MADT may be sound all the same.
    pointers
        .chunks_exact(width)
        .map(number)
        .filter(|&at| header(firmware, at).is_ok_and(|header| header.signature == Madt::SIGNATURE))
        .map(|at| table(firmware, at))
        .next()
        .unwrap_or(Err(MadtError::Missing))
}

fn header(firmware: &impl Firmware, at: u64) -> Result<SdtHeader, MadtError> {
    let bytes = firmware
        .bytes(at, size_of::<SdtHeader>())
        .ok_or(MadtError::Table(at))?;
    view::<SdtHeader>(&bytes)
        .copied()
        .ok_or(MadtError::Table(at))
}

/// A whole table, with its length and checksum looked at.
fn table(firmware: &impl Firmware, at: u64) -> Result<Vec<u8>, MadtError> {
    let length = header(firmware, at)?.length as usize;
    if !(size_of::<SdtHeader>()..=LONGEST_TABLE).contains(&length) {
        return Err(MadtError::Table(at));
    }
    firmware
        .bytes(at, length)
        .filter(|bytes| sums_to_zero(bytes))
        .ok_or(MadtError::Table(at))
}

/// Every ACPI structure sums to zero, byte by byte.
fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Structures of plain bytes: any bit pattern is one, at any address.
///
/// # Safety
///
/// The type is `repr(C, packed)` and made of integers (or arrays of them) only.
unsafe trait Plain {}

// SAFETY: the crate declares each of them `repr(C, packed)`, of integers only.
unsafe impl Plain for Rsdp {}
// SAFETY: likewise; `Signature` is an array of four bytes.
unsafe impl Plain for SdtHeader {}
// SAFETY: likewise.
unsafe impl Plain for EntryHeader {}
// SAFETY: likewise.
unsafe impl Plain for LocalApicEntry {}
// SAFETY: likewise.
unsafe impl Plain for LocalX2ApicEntry {}

const _: () = assert!(
    align_of::<Rsdp>() == 1
        && align_of::<SdtHeader>() == 1
        && align_of::<EntryHeader>() == 1
        && align_of::<LocalApicEntry>() == 1
        && align_of::<LocalX2ApicEntry>() == 1
        && size_of::<Signature>() == 4
);

/// The structure at the start of `bytes`, if they are enough for one.
fn view<T: Plain>(bytes: &[u8]) -> Option<&T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: (1) the slice is as long as a `T`; (2) `T` has alignment 1 and takes any
    // bit pattern (`Plain`, and the assertion above); (3) the result borrows from
    // the slice.
    Some(unsafe { &*bytes.as_ptr().cast::<T>() })
}
