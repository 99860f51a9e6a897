//! Firmware memory that tests write tables into.

#![cfg(test)]

use super::{
    Firmware, HEADER_LENGTH, InterruptEntry, Madt, MadtError, RSDP_ALIGN, RSDP_LENGTH,
    RSDP_REVISION, RSDP_SIGNATURE,
};

/// Firmware memory from an address on.
pub(super) struct Memory {
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
}

impl Firmware for &Memory {
    type Bytes = Vec<u8>;

    fn bytes(&self, start: u64, length: usize) -> Option<Vec<u8>> {
        let offset = usize::try_from(start.checked_sub(self.start)?).ok()?;
        Some(self.bytes.get(offset..)?.get(..length)?.into())
    }
}

pub(super) const START: u64 = 0xe_0000;

impl Memory {
    pub(super) fn new() -> Self {
        let bytes = Vec::new();
        Self {
            start: START,
            bytes,
        }
    }

    /// Adds bytes at a multiple of 16, and gives their address.
    pub(super) fn add(&mut self, bytes: &[u8]) -> u64 {
        let offset = self.bytes.len().next_multiple_of(RSDP_ALIGN);
        self.bytes.resize(offset, 0xee);
        self.bytes.extend(bytes);
        self.start + offset as u64
    }

    /// Adds a table.
    pub(super) fn add_table(&mut self, signature: &[u8; 4], body: &[u8]) -> u64 {
        let mut table = signature.to_vec();
        table.extend(((HEADER_LENGTH + body.len()) as u32).to_le_bytes());
        table.resize(HEADER_LENGTH, 0);
        table.extend(body);
        correct(&mut table, 9);
        self.add(&table)
    }

    pub(super) fn add_madt(&mut self, entries: &[&[u8]]) -> u64 {
        self.add_table(b"APIC", &[&[0; 8], entries.concat().as_slice()].concat())
    }

    /// Adds the table of tables, and a root pointer to it.
    pub(super) fn add_root(&mut self, revision: u8, tables: &[u64]) -> u64 {
        let (rsdt, xsdt) = match revision {
            0 => {
                let pointers = tables.iter().map(|at| (*at as u32).to_le_bytes());
                let pointers = pointers.collect::<Vec<_>>().concat();
                (self.add_table(b"RSDT", &pointers), 0)
            }
            _ => {
                let pointers = tables.iter().map(|at| at.to_le_bytes());
                let pointers = pointers.collect::<Vec<_>>().concat();
                (0, self.add_table(b"XSDT", &pointers))
            }
        };
        self.add(&root_pointer(revision, rsdt, xsdt))
    }

    pub(super) fn put(&mut self, address: u64, bytes: &[u8]) {
        let offset = (address - self.start) as usize;
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Returns the byte at an address.
    pub(super) fn at(&mut self, address: u64) -> &mut u8 {
        &mut self.bytes[(address - self.start) as usize]
    }

    pub(super) fn lapic_ids(&self, rsdp: u64) -> Result<Vec<u32>, MadtError> {
        let madt = Madt::find(&self, rsdp)?;
        Ok(madt.cpus().map(|cpu| cpu.lapic_id).collect())
    }
}

pub(super) fn root_pointer(revision: u8, rsdt: u64, xsdt: u64) -> Vec<u8> {
    let mut rsdp = RSDP_SIGNATURE.to_vec();
    rsdp.resize(RSDP_REVISION, 0);
    rsdp.push(revision);
    rsdp.extend((rsdt as u32).to_le_bytes());
    correct(&mut rsdp, 8);
    rsdp.extend((RSDP_LENGTH as u32).to_le_bytes());
    rsdp.extend(xsdt.to_le_bytes());
    rsdp.resize(RSDP_LENGTH, 0);
    rsdp
}

/// Makes bytes sum to zero by the one at an offset.
pub(super) fn correct(bytes: &mut [u8], offset: usize) {
    bytes[offset] = 0;
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[offset] = sum.wrapping_neg();
}

pub(super) const APIC_5: &[u8] = &[0, 8, 1, 5, 1, 0, 0, 0];
pub(super) const X2APIC_256: &[u8] = &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0];
pub(super) const IO_APIC: &[u8] = &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];

/// The entries of QEMU 7.2's MADT for `-machine pc` and for `q35`, with `-smp 2`.
pub(crate) const QEMU_PC: &[&[u8]] = &[
    &[0, 8, 0, 0, 1, 0, 0, 0],
    &[0, 8, 1, 1, 1, 0, 0, 0],
    IO_APIC,
    &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
    &[2, 10, 0, 5, 5, 0, 0, 0, 13, 0],
    &[2, 10, 0, 9, 9, 0, 0, 0, 13, 0],
    &[2, 10, 0, 10, 10, 0, 0, 0, 13, 0],
    &[2, 10, 0, 11, 11, 0, 0, 0, 13, 0],
    &[4, 6, 255, 0, 0, 1],
];

/// The same for `microvm`.
pub(crate) const QEMU_MICROVM: &[&[u8]] = &[
    &[0, 8, 0, 0, 1, 0, 0, 0],
    &[0, 8, 1, 1, 1, 0, 0, 0],
    IO_APIC,
    &[1, 12, 1, 0, 0, 0, 0xc1, 0xfe, 24, 0, 0, 0],
    &[4, 6, 255, 0, 0, 1],
];

/// Returns what a MADT with these entries says of interrupts.
pub(crate) fn interrupt_entries(entries: &[&[u8]]) -> Vec<Result<InterruptEntry, MadtError>> {
    let mut memory = Memory::new();
    let madt = memory.add_madt(entries);
    let rsdp = memory.add_root(2, &[madt]);
    let madt = Madt::find(&&memory, rsdp).unwrap();
    madt.interrupt_entries().collect()
}
