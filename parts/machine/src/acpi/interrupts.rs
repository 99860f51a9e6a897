//! The MADT's entries of interrupts: its I/O APICs, where ISA's interrupts arrive at them, and which of
//! their inputs are NMIs.

use super::MadtError;
use crate::io_apic::{Polarity, Signal, Trigger};

/// The types of the three (table 5.21).
const IO_APIC: u8 = 1;
const SOURCE_OVERRIDE: u8 = 2;
const NMI_SOURCE: u8 = 3;

/// The bus of a source override, the only one that there is (5.2.12.5).
const ISA: u8 = 0;

/// An I/O APIC (5.2.12.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its id, as ACPI has it.
    pub id: u8,
    /// The physical address of its registers.
    pub address: u32,
    /// The global system interrupt (GSI) of its first input. The others follow.
    pub first_gsi: u32,
}

/// An ISA interrupt that does not arrive at the GSI of its own number, or not as ISA's do (5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceOverride {
    /// ISA's number of the interrupt.
    pub irq: u8,
    /// The GSI where it arrives.
    pub gsi: u32,
    /// How it is signalled.
    pub flags: SignalFlags,
}

/// An input of an I/O APIC that is an NMI, and no device's (5.2.12.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NmiSource {
    /// The GSI where it arrives.
    pub gsi: u32,
    /// How it is signalled.
    pub flags: SignalFlags,
}

/// How an interrupt is signalled, as an entry says it (table 5.26).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalFlags(pub u16);

impl SignalFlags {
    /// Returns the signal, with what the flags leave to the bus as `bus` has it; `None` for a reserved
    /// value.
    pub const fn signal(self, bus: Signal) -> Option<Signal> {
        let polarity = match self.0 & 0b11 {
            0b00 => bus.polarity,
            0b01 => Polarity::ActiveHigh,
            0b11 => Polarity::ActiveLow,
            _ => return None,
        };
        let trigger = match self.0 >> 2 & 0b11 {
            0b00 => bus.trigger,
            0b01 => Trigger::Edge,
            0b11 => Trigger::Level,
            _ => return None,
        };
        Some(Signal { polarity, trigger })
    }
}

/// An entry that says something of interrupts from I/O APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptEntry {
    /// See [`IoApic`].
    IoApic(IoApic),
    /// See [`SourceOverride`].
    SourceOverride(SourceOverride),
    /// See [`NmiSource`].
    NmiSource(NmiSource),
}

impl InterruptEntry {
    /// Returns what an entry of the MADT says of interrupts; `None` if it is of something else, or of
    /// another bus than ISA. The entry is as long as it says.
    ///
    /// # Errors
    ///
    /// [`MadtError::Short`] if it is shorter than its type.
    pub(super) fn of(entry: &[u8]) -> Result<Option<Self>, MadtError> {
        let word = u32::from_le_bytes;
        let short = |kind, min_length| MadtError::Short {
            kind,
            length: entry.len(),
            min_length,
        };
        match *entry {
            [IO_APIC, _, id, _, a, b, c, d, e, f, g, h, ..] => Ok(Some(Self::IoApic(IoApic {
                id,
                address: word([a, b, c, d]),
                first_gsi: word([e, f, g, h]),
            }))),
            [SOURCE_OVERRIDE, _, bus, irq, a, b, c, d, e, f, ..] => {
                let source = SourceOverride {
                    irq,
                    gsi: word([a, b, c, d]),
                    flags: SignalFlags(u16::from_le_bytes([e, f])),
                };
                Ok((bus == ISA).then_some(Self::SourceOverride(source)))
            }
            [NMI_SOURCE, _, a, b, c, d, e, f, ..] => Ok(Some(Self::NmiSource(NmiSource {
                flags: SignalFlags(u16::from_le_bytes([a, b])),
                gsi: word([c, d, e, f]),
            }))),
            [IO_APIC, ..] => Err(short(IO_APIC, 12)),
            [SOURCE_OVERRIDE, ..] => Err(short(SOURCE_OVERRIDE, 10)),
            [NMI_SOURCE, ..] => Err(short(NMI_SOURCE, 8)),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{APIC_5, QEMU_MICROVM, QEMU_PC, interrupt_entries as read};
    use super::*;

    const fn io_apic(id: u8, address: u32, first_gsi: u32) -> Result<InterruptEntry, MadtError> {
        Ok(InterruptEntry::IoApic(IoApic {
            id,
            address,
            first_gsi,
        }))
    }

    const fn source(irq: u8, gsi: u32, flags: u16) -> Result<InterruptEntry, MadtError> {
        let flags = SignalFlags(flags);
        Ok(InterruptEntry::SourceOverride(SourceOverride {
            irq,
            gsi,
            flags,
        }))
    }

    #[test]
    fn qemu_s_machines_say_where_interrupts_arrive() {
        let pc = [
            io_apic(0, 0xfec0_0000, 0),
            source(0, 2, 0),
            source(5, 5, 0b1101),
            source(9, 9, 0b1101),
            source(10, 10, 0b1101),
            source(11, 11, 0b1101),
        ];
        assert_eq!(read(QEMU_PC), pc);
        let microvm = [io_apic(0, 0xfec0_0000, 0), io_apic(1, 0xfec1_0000, 24)];
        assert_eq!(read(QEMU_MICROVM), microvm);
    }

    #[test]
    fn every_byte_of_a_number_counts() {
        let entries = read(&[
            &[
                1, 12, 0x11, 0xee, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99,
            ],
            &[2, 10, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77],
            &[3, 8, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66],
        ]);
        let nmi = InterruptEntry::NmiSource(NmiSource {
            gsi: 0x6655_4433,
            flags: SignalFlags(0x2211),
        });
        let expected = [
            io_apic(0x11, 0x5544_3322, 0x9988_7766),
            source(0x11, 0x5544_3322, 0x7766),
            Ok(nmi),
        ];
        assert_eq!(entries, expected);
    }

    #[test]
    fn short_entries_are_errors_of_their_own_and_longer_ones_are_read() {
        let entries: [(&[u8], usize); 3] = [
            (&[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0], 12),
            (&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0], 10),
            (&[3, 8, 0, 0, 2, 0, 0, 0], 8),
        ];
        for (entry, min_length) in entries {
            for length in 2..min_length {
                let mut short = entry[..length].to_vec();
                short[1] = length as u8;
                let kind = entry[0];
                let found = read(&[&short, APIC_5, entry]);
                assert_eq!(found.len(), 2);
                let error = MadtError::Short {
                    kind,
                    length,
                    min_length,
                };
                assert_eq!(found[0], Err(error));
                let words = format!(
                    "an entry of type {kind} in the ACPI MADT has {length} bytes and must have \
                     {min_length}: update the firmware"
                );
                assert_eq!(error.to_string(), words);
                assert!(found[1].is_ok());
            }
            let mut long = [entry, &[0xee; 3]].concat();
            long[1] += 3;
            assert_eq!(read(&[&long]), read(&[entry]));
        }
    }

    #[test]
    fn entries_of_another_bus_or_of_cpus_are_passed_over() {
        assert_eq!(read(&[APIC_5, &[2, 10, 1, 0, 2, 0, 0, 0, 0, 0]]), []);
    }

    #[test]
    fn flags_say_how_an_interrupt_is_signalled() {
        let signal = |flags, bus| {
            let signal = SignalFlags(flags).signal(bus)?;
            Some((signal.polarity, signal.trigger))
        };
        let (high, low) = (Polarity::ActiveHigh, Polarity::ActiveLow);
        let (edge, level) = (Trigger::Edge, Trigger::Level);
        for (flags, isa, pci) in [
            (0b0000, (high, edge), (low, level)),
            (0b0001, (high, edge), (high, level)),
            (0b0011, (low, edge), (low, level)),
            (0b0100, (high, edge), (low, edge)),
            (0b1100, (high, level), (low, level)),
            (0b1111, (low, level), (low, level)),
            (0xfff5, (high, edge), (high, edge)),
        ] {
            assert_eq!(signal(flags, Signal::ISA), Some(isa), "{flags:#b}");
            assert_eq!(signal(flags, Signal::PCI), Some(pci), "{flags:#b}");
        }
        for flags in [0b0010, 0b1000, 0b1010, 0b1110, 0b1011] {
            assert_eq!(signal(flags, Signal::ISA), None, "{flags:#b}");
        }
    }
}
