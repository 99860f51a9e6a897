//! The MADT: the CPUs that the machine says it has, where its NMIs arrive, and the way to its entries of
//! interrupts.

use super::{Firmware, InterruptEntry, MadtError, find, number};

/// The MADT (5.2.12): its signature, and where its entries begin, after the header, the local APIC's
/// address and flags.
const MADT_SIGNATURE: &[u8] = b"APIC";
const MADT_ENTRIES: usize = 44;

/// Its entries: the length of what all of them begin with, a type and a length; and the two types
/// that describe a CPU (table 5.21, 5.2.12.2, 5.2.12.12).
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

    /// Returns what the table says of interrupts from I/O APICs, in its order. An entry that is too short is
    /// an error, and does not end the list: which interrupt it was for is not known.
    pub fn interrupt_entries(&self) -> impl Iterator<Item = Result<InterruptEntry, MadtError>> {
        entries(self.0.as_ref()).filter_map(|entry| InterruptEntry::of(entry.ok()?).transpose())
    }
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

#[cfg(test)]
mod tests {
    use super::super::fixture::{APIC_5, IO_APIC, Memory, X2APIC_256};
    use super::super::{BIOS_LENGTH, search_rsdp};
    use super::*;

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
}
