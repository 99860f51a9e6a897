//! The ACPI MADT: the CPUs that the machine says it has, and where its NMIs arrive; and of the FADT, where
//! its timer is.
//!
//! Firmware gets lengths, pointers and checksums wrong, so each of them is checked before it is
//! used. Section and table numbers are those of ACPI 6.5.

use core::fmt;

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

/// The MADT (5.2.12): its signature, and where its entries begin, after the header, the local APIC's
/// address and flags.
const MADT_SIGNATURE: &[u8] = b"APIC";
const MADT_ENTRIES: usize = 44;

/// The FADT (5.2.9, table 5.9): its signature, and what stands where in it: the I/O port of the
/// power-management timer, how many bytes there are of it, flags, and the same port as a generic address,
/// which counts where there is one. Flag bits: the timer has 32 bits rather than 24.
const FADT_SIGNATURE: &[u8] = b"FACP";
const FADT_PM_TIMER: usize = 76;
const FADT_PM_TIMER_LENGTH: usize = 91;
const FADT_FLAGS: usize = 112;
const FADT_PM_TIMER_ADDRESS: usize = 208;
const TIMER_IS_32_BIT: u64 = 1 << 8;
const PM_TIMER_LENGTH: u64 = 4;

/// A generic address (5.2.3.2): in which space it is, and the address; and the number of I/O ports' space.
const ADDRESS_SPACE: usize = 0;
const ADDRESS: usize = 4;
const SYSTEM_IO: u64 = 1;

/// Its entries: the length of what all of them begin with, a type and a length; and the two types
/// that tell of a CPU (table 5.21, 5.2.12.2, 5.2.12.12).
const ENTRY_HEADER: usize = 2;
const LOCAL_APIC: u8 = 0;
const LOCAL_X2APIC: u8 = 9;

/// The ids of the two that no CPU has: they mean all of them (Intel SDM vol. 3A, 11.6.2.1, 11.12.9).
const NO_APIC: u32 = 0xff;
const NO_X2APIC: u32 = 0xffff_ffff;

/// And the two that say at which line of which local APICs NMIs arrive (5.2.12.7, 5.2.12.13), by the
/// CPU's number in ACPI's namespace; the number that means all CPUs; and in the flags (table 5.26), the
/// polarity, of which this value means active low.
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC_NMI: u8 = 10;
const ALL_APICS: u64 = 0xff;
const ALL_X2APICS: u64 = 0xffff_ffff;
const POLARITY: u64 = 0b11;
const ACTIVE_LOW: u64 = 0b11;

/// Flags of both (table 5.23): the CPU is ready for use; it is not, but can be made so.
const ENABLED: u32 = 1 << 0;
const ONLINE_CAPABLE: u32 = 1 << 1;

/// No table is longer, in bytes; a length beyond is a broken one.
const MAX_TABLE: usize = 1024 * 1024;

/// Why there is no list of CPUs.
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

impl core::error::Error for MadtError {}

/// A CPU as the MADT has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its number in ACPI's namespace.
    pub acpi_id: u32,
    /// Its local APIC's id.
    pub lapic_id: u32,
    flags: u32,
}

impl Cpu {
    /// Returns whether it is ready for use: a loader that starts the machine's CPUs has to start
    /// it.
    pub const fn is_enabled(&self) -> bool {
        self.flags & ENABLED != 0
    }

    /// Returns whether it may be started: exactly one of the flags is set, as the second is reserved where
    /// the first is set.
    pub const fn may_be_started(&self) -> bool {
        self.is_enabled() != (self.flags & ONLINE_CAPABLE != 0)
    }

    /// Reads an entry of a CPU; returns `None` if it is of something else, or has the id that no CPU
    /// has: firmware lists sockets and threads that are not there in that way. The entry is as long as
    /// it says.
    fn of(entry: &[u8]) -> Result<Option<Self>, MadtError> {
        let short = MadtError::Entries;
        let (cpu, nobody) = match entry.first() {
            Some(&LOCAL_APIC) => (
                Self {
                    acpi_id: number(entry, 2, 1).ok_or(short)? as u32,
                    lapic_id: number(entry, 3, 1).ok_or(short)? as u32,
                    flags: number(entry, 4, 4).ok_or(short)? as u32,
                },
                NO_APIC,
            ),
            Some(&LOCAL_X2APIC) => (
                Self {
                    lapic_id: number(entry, 4, 4).ok_or(short)? as u32,
                    flags: number(entry, 8, 4).ok_or(short)? as u32,
                    acpi_id: number(entry, 12, 4).ok_or(short)? as u32,
                },
                NO_X2APIC,
            ),
            _ => return Ok(None),
        };
        Ok(Some(cpu).filter(|cpu| cpu.lapic_id != nobody))
    }
}

/// A line of local APICs at which NMIs arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NmiLine {
    /// The CPU whose local APIC it is, by its number in ACPI's namespace; `None` for all.
    pub acpi_id: Option<u32>,
    /// Which line: 0 for LINT0, 1 for LINT1.
    pub lint: u8,
    /// Whether a low level means an NMI.
    pub is_active_low: bool,
}

impl NmiLine {
    /// Returns what an entry says of NMIs; `None` if it is of something else, or names a line that no
    /// local APIC has.
    fn of(entry: &[u8]) -> Option<Self> {
        let (flags, id, all, lint) = match *entry.first()? {
            LOCAL_APIC_NMI => (number(entry, 3, 2)?, number(entry, 2, 1)?, ALL_APICS, 5),
            LOCAL_X2APIC_NMI => (number(entry, 2, 2)?, number(entry, 4, 4)?, ALL_X2APICS, 8),
            _ => return None,
        };
        Some(Self {
            acpi_id: (id != all).then_some(id as u32),
            lint: number(entry, lint, 1).filter(|&lint| lint < 2)? as u8,
            is_active_low: flags & POLARITY == ACTIVE_LOW,
        })
    }
}

/// A MADT that was looked through: its checksum is right, and its entries add up to its length.
#[derive(Clone, Copy, Debug)]
pub struct Madt<Bytes>(Bytes);

impl<Bytes: AsRef<[u8]>> Madt<Bytes> {
    /// Finds the MADT through the root pointer at physical address `rsdp`.
    ///
    /// # Errors
    ///
    /// If the way there, or the table, is broken anywhere.
    pub fn find(firmware: &impl Firmware<Bytes = Bytes>, rsdp: u64) -> Result<Self, MadtError> {
        let madt = Self(find(firmware, rsdp, MADT_SIGNATURE)?);
        entries(madt.0.as_ref()).try_for_each(|entry| Cpu::of(entry?).map(drop))?;
        Ok(madt)
    }

    /// Returns all CPUs, in the table's order. One may be listed twice, as a local APIC and as an
    /// x2APIC.
    pub fn cpus(&self) -> impl Iterator<Item = Cpu> + Clone {
        entries(self.0.as_ref()).filter_map(|entry| Cpu::of(entry.ok()?).ok()?)
    }
}

impl<Bytes: AsRef<[u8]>> Madt<Bytes> {
    /// Returns the lines at which NMIs arrive at the CPU with this LAPIC id, in the table's order.
    pub fn nmi_lines(&self, lapic_id: u32) -> impl Iterator<Item = NmiLine> {
        let mut cpus = self.cpus();
        let acpi_id = cpus.find_map(|cpu| (cpu.lapic_id == lapic_id).then_some(cpu.acpi_id));
        entries(self.0.as_ref())
            .filter_map(|entry| NmiLine::of(entry.ok()?))
            .filter(move |line| line.acpi_id.is_none() || line.acpi_id == acpi_id)
    }
}

/// The ACPI power-management timer (4.8.3.3): a counter that goes up at
/// [`PM_TIMER_HZ`](crate::time::PM_TIMER_HZ), and wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// The I/O port from which its 32 bits are read.
    pub port: u16,
    /// How many of them count.
    pub bits: u32,
}

impl PmTimer {
    /// Finds the timer that the FADT names to which the root pointer at physical address `rsdp` leads.
    /// `None` if there is none, as where all hardware is reduced to what ACPI needs, if it lies in memory,
    /// or if anything on the way there is broken.
    pub fn find(firmware: &impl Firmware, rsdp: u64) -> Option<Self> {
        let fadt = find(firmware, rsdp, FADT_SIGNATURE).ok()?;
        let fadt = fadt.as_ref();
        if number(fadt, FADT_PM_TIMER_LENGTH, 1)? != PM_TIMER_LENGTH {
            return None;
        }
        let generic = fadt.get(FADT_PM_TIMER_ADDRESS..).and_then(|generic| {
            let (space, address) = (
                number(generic, ADDRESS_SPACE, 1)?,
                number(generic, ADDRESS, 8)?,
            );
            Some((space, address)).filter(|&(_, address)| address != 0)
        });
        let port = match generic {
            Some((SYSTEM_IO, port)) => port,
            Some(_) => return None,
            None => number(fadt, FADT_PM_TIMER, 4)?,
        };
        let bits = match number(fadt, FADT_FLAGS, 4)? & TIMER_IS_32_BIT {
            0 => 24,
            _ => 32,
        };
        let port = u16::try_from(port).ok().filter(|&port| port != 0)?;
        Some(Self { port, bits })
    }
}

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

/// Returns the entries of a MADT, up to the first that is cut off or has an impossible length.
fn entries(madt: &[u8]) -> impl Iterator<Item = Result<&[u8], MadtError>> + Clone {
    let mut rest = madt.get(MADT_ENTRIES..);
    core::iter::from_fn(move || {
        let bytes = match rest {
            Some([]) => return None,
            Some(bytes) => bytes,
            // Too short for what comes before its entries.
            None => &[],
        };
        // An entry shorter than its own header would never end.
        let length = bytes.get(1).map_or(0, |&length| usize::from(length));
        let entry = bytes.split_at_checked(length);
        let entry = entry.filter(|(entry, _)| entry.len() >= ENTRY_HEADER);
        rest = Some(entry.map_or(&[], |(_, after)| after));
        Some(entry.map(|(entry, _)| entry).ok_or(MadtError::Entries))
    })
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

    use super::*;

    /// Firmware memory from an address on.
    struct Memory {
        start: u64,
        bytes: Vec<u8>,
    }

    impl Firmware for &Memory {
        type Bytes = Vec<u8>;

        fn bytes(&self, start: u64, length: usize) -> Option<Vec<u8>> {
            let offset = usize::try_from(start.checked_sub(self.start)?).ok()?;
            Some(self.bytes.get(offset..)?.get(..length)?.into())
        }
    }

    const START: u64 = 0xe_0000;

    impl Memory {
        fn new() -> Self {
            let bytes = Vec::new();
            Self {
                start: START,
                bytes,
            }
        }

        /// Adds bytes at a multiple of 16, and gives their address.
        fn add(&mut self, bytes: &[u8]) -> u64 {
            let offset = self.bytes.len().next_multiple_of(RSDP_ALIGN);
            self.bytes.resize(offset, 0xee);
            self.bytes.extend(bytes);
            self.start + offset as u64
        }

        /// Adds a table.
        fn add_table(&mut self, signature: &[u8; 4], body: &[u8]) -> u64 {
            let mut table = signature.to_vec();
            table.extend(((HEADER_LENGTH + body.len()) as u32).to_le_bytes());
            table.resize(HEADER_LENGTH, 0);
            table.extend(body);
            correct(&mut table, 9);
            self.add(&table)
        }

        fn add_madt(&mut self, entries: &[&[u8]]) -> u64 {
            self.add_table(b"APIC", &[&[0; 8], entries.concat().as_slice()].concat())
        }

        /// Adds the table of tables, and a root pointer to it.
        fn add_root(&mut self, revision: u8, tables: &[u64]) -> u64 {
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

        fn put(&mut self, address: u64, bytes: &[u8]) {
            let offset = (address - self.start) as usize;
            self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
        }

        /// Returns the byte at an address.
        fn at(&mut self, address: u64) -> &mut u8 {
            &mut self.bytes[(address - self.start) as usize]
        }

        fn lapic_ids(&self, rsdp: u64) -> Result<Vec<u32>, MadtError> {
            let madt = Madt::find(&self, rsdp)?;
            Ok(madt.cpus().map(|cpu| cpu.lapic_id).collect())
        }
    }

    fn root_pointer(revision: u8, rsdt: u64, xsdt: u64) -> Vec<u8> {
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
    fn correct(bytes: &mut [u8], offset: usize) {
        bytes[offset] = 0;
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[offset] = sum.wrapping_neg();
    }

    const APIC_5: &[u8] = &[0, 8, 1, 5, 1, 0, 0, 0];
    const X2APIC_256: &[u8] = &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0];
    const IO_APIC: &[u8] = &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];

    #[test]
    fn the_cpus_are_found_in_both_kinds_of_entry_by_either_root_table() {
        for revision in [0, 2] {
            let mut memory = Memory::new();
            let other = memory.add_table(b"FACP", &[1, 2, 3]);
            let madt = memory.add_madt(&[APIC_5, IO_APIC, X2APIC_256]);
            let second = memory.add_madt(&[]);
            let rsdp = memory.add_root(revision, &[other, madt, second]);
            let madt = Madt::find(&&memory, rsdp).unwrap();
            let cpus: Vec<_> = madt.cpus().map(|cpu| (cpu.acpi_id, cpu.lapic_id)).collect();
            assert_eq!(cpus, [(1, 5), (9, 0x100)]);
            memory.bytes.resize(BIOS_LENGTH, 0);
            assert_eq!(search_rsdp(&&memory), Some(rsdp));
        }
    }

    #[test]
    fn flags_say_which_cpus_to_start() {
        let mut memory = Memory::new();
        let entries = [0, 1, 2, 3].map(|flags| [0, 8, 0, flags, flags, 0, 0, 0]);
        let madt = memory.add_madt(&entries.each_ref().map(|entry| entry.as_slice()));
        let rsdp = memory.add_root(2, &[madt]);
        let madt = Madt::find(&&memory, rsdp).unwrap();
        let those = |accept: fn(&Cpu) -> bool| {
            let cpus = madt.cpus().filter(accept);
            cpus.map(|cpu| cpu.lapic_id).collect::<Vec<_>>()
        };
        assert_eq!(those(Cpu::is_enabled), [1, 3]);
        assert_eq!(those(Cpu::may_be_started), [1, 2]);
    }

    #[test]
    fn entries_that_stand_for_no_cpu_are_passed_over() {
        let mut memory = Memory::new();
        let madt = memory.add_madt(&[
            &[0, 8, 1, 0xff, 1, 0, 0, 0],
            APIC_5,
            &[9, 16, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 7, 0, 0, 0],
            // An x2APIC's id like any other.
            &[9, 16, 0, 0, 0xff, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0],
        ]);
        let rsdp = memory.add_root(2, &[madt]);
        assert_eq!(memory.lapic_ids(rsdp), Ok(vec![5, 0xff]));
    }

    #[test]
    fn nmis_arrive_where_the_madt_says() {
        let mut memory = Memory::new();
        let madt = memory.add_madt(&[
            APIC_5,
            X2APIC_256,
            &[4, 6, 0xff, 0, 0, 1],
            &[4, 6, 1, 0b0111, 0, 0],
            // No such line; cut off.
            &[4, 6, 0xff, 0, 0, 2],
            &[4, 3, 0xff],
            &[10, 12, 0b1111, 0, 9, 0, 0, 0, 1, 0, 0, 0],
            &[10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        ]);
        let rsdp = memory.add_root(2, &[madt]);
        let madt = Madt::find(&&memory, rsdp).unwrap();
        let lines = |lapic_id| -> Vec<_> {
            let lines = madt.nmi_lines(lapic_id);
            lines.map(|line| (line.lint, line.is_active_low)).collect()
        };
        assert_eq!(lines(5), [(1, false), (0, true), (0, false)]);
        assert_eq!(lines(0x100), [(1, false), (1, true), (0, false)]);
        assert_eq!(lines(7), [(1, false), (0, false)]);
    }

    /// What a FADT says after its header.
    struct Fadt {
        port: u32,
        length: u8,
        flags: u32,
        generic: Option<(u8, u64)>,
    }

    impl Fadt {
        fn timer(&self) -> Option<PmTimer> {
            let length = if self.generic.is_some() { 244 } else { 116 };
            let mut body = vec![0; length - HEADER_LENGTH];
            let mut put = |at: usize, bytes: &[u8]| {
                body[at - HEADER_LENGTH..][..bytes.len()].copy_from_slice(bytes);
            };
            put(76, &self.port.to_le_bytes());
            put(91, &[self.length]);
            put(112, &self.flags.to_le_bytes());
            if let Some((space, address)) = self.generic {
                put(208, &[space, 32, 0, 3]);
                put(212, &address.to_le_bytes());
            }
            let mut memory = Memory::new();
            let madt = memory.add_madt(&[]);
            let fadt = memory.add_table(b"FACP", &body);
            let rsdp = memory.add_root(2, &[madt, fadt]);
            let found = PmTimer::find(&&memory, rsdp);
            *memory.at(fadt + 76) ^= 1;
            assert_eq!(PmTimer::find(&&memory, rsdp), None, "the checksum is wrong");
            found
        }
    }

    const FADT: Fadt = Fadt {
        port: 0x608,
        length: 4,
        flags: 0xa5,
        generic: None,
    };

    #[test]
    fn the_timer_is_where_the_fadt_says() {
        let timer = |port, bits| Some(PmTimer { port, bits });
        assert_eq!(FADT.timer(), timer(0x608, 24));
        let long = Fadt {
            flags: 0x1a5,
            ..FADT
        };
        assert_eq!(long.timer(), timer(0x608, 32));
        let generic = |space, address| Fadt {
            generic: Some((space, address)),
            ..FADT
        };
        assert_eq!(generic(1, 0xb008).timer(), timer(0xb008, 24));
        assert_eq!(generic(1, 0).timer(), timer(0x608, 24));
        // In memory; no port; none at all.
        assert_eq!(generic(0, 0xfed0_8000).timer(), None);
        assert_eq!(generic(1, 0x1_0608).timer(), None);
        assert_eq!(Fadt { port: 0, ..FADT }.timer(), None);
        assert_eq!(Fadt { length: 0, ..FADT }.timer(), None);
        assert_eq!(PmTimer::find(&&Memory::new(), START), None);
    }

    #[test]
    fn a_short_fadt_has_no_timer() {
        for length in [HEADER_LENGTH, 76, 80, 92, 115] {
            let mut body = vec![0; length - HEADER_LENGTH];
            if let Some(timer_length) = body.get_mut(91 - HEADER_LENGTH) {
                *timer_length = 4;
            }
            let mut memory = Memory::new();
            let fadt = memory.add_table(b"FACP", &body);
            let rsdp = memory.add_root(0, &[fadt]);
            assert_eq!(PmTimer::find(&&memory, rsdp), None);
        }
    }

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
    fn entries_that_do_not_add_up_are_an_error() {
        for bad in [
            &[0, 0][..],
            &[0, 1],
            &[0, 200, 1],
            &[0],
            &[0, 4, 1, 1],
            &[9, 15],
        ] {
            let mut memory = Memory::new();
            let madt = memory.add_madt(&[APIC_5, bad, &[0; 11]]);
            let rsdp = memory.add_root(2, &[madt]);
            assert_eq!(memory.lapic_ids(rsdp), Err(MadtError::Entries), "{bad:?}");
        }
        let mut memory = Memory::new();
        let madt = memory.add_table(b"APIC", &[0; 7]);
        let rsdp = memory.add_root(2, &[madt]);
        assert_eq!(memory.lapic_ids(rsdp), Err(MadtError::Entries));
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
