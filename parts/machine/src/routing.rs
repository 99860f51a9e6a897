//! Where a device's interrupt arrives: from ISA's interrupts (IRQs) and global system interrupts (GSIs) to
//! inputs of I/O APICs, as the MADT has it (ACPI 6.5, 5.2.12.3, 5.2.12.5, 5.2.13).
//!
//! What a firmware gets wrong costs the interrupts that it is wrong about: looking one of them up is an
//! error, and all others have their routes. Only where it is not known which those are there is no
//! [`Routing`] at all.

use core::fmt;

use crate::acpi::{InterruptEntry, IoApic, MadtError, SourceOverride};
use crate::io_apic::{Destination, Entry, IoApicError, Signal};

/// How many interrupts ISA has (5.2.12.5).
const ISA_IRQS: u8 = 16;

/// An I/O APIC's registers begin at a multiple of this (Intel 82093AA, 3.1.1: 0xfec0_xy00), and so lie in one
/// page.
const ALIGN: u32 = 0x100;

/// How many of each there may be: more than any machine has, and few enough to be in an array.
const MAX_IO_APICS: usize = 64;
const MAX_OVERRIDES: usize = 32;
const MAX_NMIS: usize = 32;

/// Why there is no routing, or no route for an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingError {
    /// An entry of the MADT is damaged.
    Madt(MadtError),
    /// The MADT has more entries of a kind than there is room for.
    TooMany {
        /// What they are of.
        kind: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// An I/O APIC's registers can't be at this address.
    Address(u32),
    /// An I/O APIC is listed twice, with other GSIs.
    ListedTwice {
        /// The address of its registers.
        address: u32,
        /// The first GSI, by either entry.
        first_gsis: [u32; 2],
    },
    /// ISA has no IRQ of this number.
    NotIsa(u8),
    /// Nobody can tell where this IRQ arrives, as two overrides of it differ.
    OverriddenTwice(u8),
    /// The override of an IRQ has reserved flags.
    Flags {
        /// The IRQ.
        irq: u8,
        /// The flags.
        flags: u16,
    },
    /// An IRQ has no GSI: another one arrives at that of its number.
    Displaced {
        /// The IRQ.
        irq: u8,
        /// The IRQ that arrives there.
        by: u8,
    },
    /// Two IRQs arrive at one GSI, and are signalled in two ways.
    Shared {
        /// The GSI.
        gsi: u32,
        /// The two.
        irqs: [u8; 2],
    },
    /// A GSI is an NMI.
    Nmi(u32),
    /// No I/O APIC has this GSI.
    NoIoApic(u32),
    /// Two I/O APICs have a GSI.
    TwoIoApics {
        /// The GSI.
        gsi: u32,
        /// The addresses of their registers.
        addresses: [u32; 2],
    },
}

impl fmt::Display for RoutingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Madt(error) => return error.fmt(f),
            Self::TooMany { kind, max } => write!(
                f,
                "the ACPI MADT has more than {max} {kind}: raise the limit in muster-machine's routing.rs"
            ),
            Self::Address(address) => write!(
                f,
                "the ACPI MADT has an I/O APIC at {address:#x}, and must have a multiple of {ALIGN:#x} other than 0"
            ),
            Self::ListedTwice {
                address,
                first_gsis: [first, second],
            } => write!(
                f,
                "the ACPI MADT lists the I/O APIC at {address:#x} twice, with GSIs from {first} and from {second}"
            ),
            Self::NotIsa(irq) => write!(
                f,
                "ISA has no IRQ {irq}: use one from 0 to {}, or a GSI",
                ISA_IRQS - 1
            ),
            Self::OverriddenTwice(irq) => write!(
                f,
                "the ACPI MADT has two source overrides for IRQ {irq}, and they differ"
            ),
            Self::Flags { irq, flags } => write!(
                f,
                "the ACPI MADT's source override for IRQ {irq} has the reserved flags {flags:#x}"
            ),
            Self::Displaced { irq, by } => write!(
                f,
                "IRQ {irq} arrives nowhere, as IRQ {by} arrives at GSI {irq}: use another IRQ"
            ),
            Self::Shared {
                gsi,
                irqs: [first, second],
            } => write!(
                f,
                "the ACPI MADT has IRQ {first} and IRQ {second} arrive at GSI {gsi}, and be signalled in two ways"
            ),
            Self::Nmi(gsi) => write!(f, "GSI {gsi} is an NMI, and no device's: use another GSI"),
            Self::NoIoApic(gsi) => write!(f, "no I/O APIC has GSI {gsi}: use another GSI"),
            Self::TwoIoApics {
                gsi,
                addresses: [first, second],
            } => write!(
                f,
                "the ACPI MADT has GSI {gsi} at the I/O APICs at {first:#x} and at {second:#x}"
            ),
        }?;
        // What a kernel can do nothing about.
        match self {
            Self::Address(_)
            | Self::ListedTwice { .. }
            | Self::OverriddenTwice(_)
            | Self::Flags { .. }
            | Self::Shared { .. }
            | Self::TwoIoApics { .. } => f.write_str(": update the firmware"),
            _ => Ok(()),
        }
    }
}

impl core::error::Error for RoutingError {}

/// Where an interrupt arrives, and how it is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The GSI.
    pub gsi: u32,
    /// The I/O APIC, by its index in [`Routing::io_apics`].
    pub io_apic: usize,
    /// Its input.
    pub pin: u8,
    /// How the input signals.
    pub signal: Signal,
}

impl Route {
    /// Returns what the I/O APIC must have for this input, to send an interrupt of this vector to one CPU.
    ///
    /// # Errors
    ///
    /// [`IoApicError::Vector`] for a vector below 32, an exception's, and for 255.
    pub const fn entry(&self, vector: u8, to: Destination) -> Result<Entry, IoApicError> {
        Entry::fixed(vector, self.signal, to)
    }
}

/// Where every interrupt arrives. It needs the MADT no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Each with the number of its inputs.
    io_apics: [Option<(IoApic, u8)>; MAX_IO_APICS],
    overrides: [Option<SourceOverride>; MAX_OVERRIDES],
    nmis: [Option<u32>; MAX_NMIS],
}

impl Routing {
    /// Reads a MADT's entries ([`Madt::interrupt_entries`](crate::acpi::Madt::interrupt_entries)), and asks
    /// of each I/O APIC how many inputs it has, which is told by its registers alone
    /// ([`Controller::pins`](crate::io_apic::Controller::pins)); 0 for one that can't be used. Of one that is
    /// listed twice it is asked once.
    ///
    /// # Errors
    ///
    /// If an entry is too short, if the address of an I/O APIC is impossible, or has two ranges of GSIs, or
    /// if there are more entries than there is room for.
    pub fn new(
        entries: impl IntoIterator<Item = Result<InterruptEntry, MadtError>>,
        mut pins: impl FnMut(IoApic) -> u8,
    ) -> Result<Self, RoutingError> {
        let mut routing = Self {
            io_apics: [None; MAX_IO_APICS],
            overrides: [None; MAX_OVERRIDES],
            nmis: [None; MAX_NMIS],
        };
        for entry in entries {
            match entry.map_err(RoutingError::Madt)? {
                InterruptEntry::IoApic(io_apic) => {
                    if routing.is_new(io_apic)? {
                        let with_pins = (io_apic, pins(io_apic));
                        add(&mut routing.io_apics, with_pins, "I/O APICs")?;
                    }
                }
                InterruptEntry::SourceOverride(source) => {
                    if !routing.overrides.contains(&Some(source)) {
                        add(&mut routing.overrides, source, "source overrides")?;
                    }
                }
                InterruptEntry::NmiSource(nmi) => {
                    if !routing.nmis.contains(&Some(nmi.gsi)) {
                        add(&mut routing.nmis, nmi.gsi, "NMI sources")?;
                    }
                }
            }
        }
        Ok(routing)
    }

    /// Returns the I/O APICs in the table's order, each with the number of its inputs.
    pub fn io_apics(&self) -> impl Iterator<Item = (IoApic, u8)> {
        self.io_apics.iter().flatten().copied()
    }

    /// Returns where an IRQ of ISA's arrives: at the GSI of its number, as ISA's interrupts are signalled,
    /// but for what the MADT says otherwise.
    ///
    /// ACPI's own interrupt (the FADT's `SCI_INT`) is level-triggered and active low where the MADT says
    /// nothing of it (5.2.9): it is looked up by its GSI.
    ///
    /// # Errors
    ///
    /// [`RoutingError`], for this IRQ.
    pub fn isa(&self, irq: u8) -> Result<Route, RoutingError> {
        if irq >= ISA_IRQS {
            return Err(RoutingError::NotIsa(irq));
        }
        let mut overrides = self.overrides.iter().flatten();
        let own = overrides.find(|source| source.irq == irq);
        let gsi = own.map_or(u32::from(irq), |own| own.gsi);
        match (own, self.isa_at(gsi)?) {
            (None, Some((by, _))) => Err(RoutingError::Displaced { irq, by }),
            (_, Some((_, signal))) => self.route(gsi, signal),
            (_, None) => self.route(gsi, Signal::ISA),
        }
    }

    /// Returns where a GSI arrives. It is signalled as its device does, [`Signal::PCI`] for an INTx line, unless
    /// the MADT has an IRQ of ISA's arrive there, and says how.
    ///
    /// # Errors
    ///
    /// [`RoutingError`], for this GSI.
    pub fn gsi(&self, gsi: u32, signal: Signal) -> Result<Route, RoutingError> {
        let isa = self.isa_at(gsi)?;
        self.route(gsi, isa.map_or(signal, |(_, signal)| signal))
    }

    /// Returns whether an I/O APIC was not listed before.
    fn is_new(&self, io_apic: IoApic) -> Result<bool, RoutingError> {
        let address = io_apic.address;
        if address == 0 || !address.is_multiple_of(ALIGN) {
            return Err(RoutingError::Address(address));
        }
        let listed = self
            .io_apics()
            .find(|(listed, _)| listed.address == address);
        match listed {
            Some((listed, _)) if listed.first_gsi != io_apic.first_gsi => {
                Err(RoutingError::ListedTwice {
                    address,
                    first_gsis: [listed.first_gsi, io_apic.first_gsi],
                })
            }
            listed => Ok(listed.is_none()),
        }
    }

    /// Returns the first IRQ that has an override which has it arrive at a GSI, and how it is signalled.
    fn isa_at(&self, gsi: u32) -> Result<Option<(u8, Signal)>, RoutingError> {
        let overrides = || self.overrides.iter().flatten();
        let mut found = None;
        for source in overrides().filter(|source| source.gsi == gsi) {
            let irq = source.irq;
            if overrides().any(|other| other.irq == irq && other != source) {
                return Err(RoutingError::OverriddenTwice(irq));
            }
            let flags = source.flags;
            let signal = flags.signal(Signal::ISA).ok_or(RoutingError::Flags {
                irq,
                flags: flags.0,
            })?;
            match found {
                None => found = Some((irq, signal)),
                Some((first, known)) if known != signal => {
                    let irqs = [first, irq];
                    return Err(RoutingError::Shared { gsi, irqs });
                }
                Some(_) => {}
            }
        }
        Ok(found)
    }

    /// Finds the one I/O APIC that has a GSI.
    fn route(&self, gsi: u32, signal: Signal) -> Result<Route, RoutingError> {
        if self.nmis.contains(&Some(gsi)) {
            return Err(RoutingError::Nmi(gsi));
        }
        let mut inputs = self
            .io_apics()
            .enumerate()
            .filter_map(|(index, (io_apic, pins))| {
                let pin = u8::try_from(gsi.checked_sub(io_apic.first_gsi)?).ok()?;
                (pin < pins).then_some((index, pin, io_apic.address))
            });
        match (inputs.next(), inputs.next()) {
            (None, _) => Err(RoutingError::NoIoApic(gsi)),
            (Some((io_apic, pin, _)), None) => Ok(Route {
                gsi,
                io_apic,
                pin,
                signal,
            }),
            (Some((.., first)), Some((.., second))) => {
                let addresses = [first, second];
                Err(RoutingError::TwoIoApics { gsi, addresses })
            }
        }
    }
}

/// Adds to the items at the start of a list.
fn add<T>(list: &mut [Option<T>], item: T, kind: &'static str) -> Result<(), RoutingError> {
    let max = list.len();
    let mut places = list.iter_mut();
    let free = places.find(|place| place.is_none());
    *free.ok_or(RoutingError::TooMany { kind, max })? = Some(item);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::acpi::fixture::{QEMU_MICROVM, QEMU_PC, interrupt_entries};
    use crate::acpi::{NmiSource, SignalFlags};
    use crate::io_apic::{DestinationWidth, Polarity, Trigger};

    const HIGH_LEVEL: Signal = Signal {
        polarity: Polarity::ActiveHigh,
        trigger: Trigger::Level,
    };

    const fn io_apic(address: u32, first_gsi: u32) -> InterruptEntry {
        let id = 0;
        InterruptEntry::IoApic(IoApic {
            id,
            address,
            first_gsi,
        })
    }

    const fn source(irq: u8, gsi: u32, flags: u16) -> InterruptEntry {
        let flags = SignalFlags(flags);
        InterruptEntry::SourceOverride(SourceOverride { irq, gsi, flags })
    }

    const fn nmi(gsi: u32) -> InterruptEntry {
        let flags = SignalFlags(0);
        InterruptEntry::NmiSource(NmiSource { gsi, flags })
    }

    /// Each I/O APIC has 24 inputs.
    fn routing(entries: &[InterruptEntry]) -> Result<Routing, RoutingError> {
        Routing::new(entries.iter().copied().map(Ok), |_| 24)
    }

    const FIRST: u32 = 0xfec0_0000;
    const SECOND: u32 = 0xfec1_0000;

    #[test]
    fn isa_s_interrupts_arrive_on_qemu_s_pc_as_it_wires_them() {
        let routing = Routing::new(interrupt_entries(QEMU_PC), |_| 24).unwrap();
        assert_eq!(routing.io_apics().count(), 1);
        for irq in 0..16 {
            let route = routing.isa(irq);
            if irq == 2 {
                let error = RoutingError::Displaced { irq: 2, by: 0 };
                assert_eq!(route, Err(error));
                continue;
            }
            let pin = if irq == 0 { 2 } else { irq };
            let signal = match irq {
                5 | 9 | 10 | 11 => HIGH_LEVEL,
                _ => Signal::ISA,
            };
            let expected = Route {
                gsi: pin.into(),
                io_apic: 0,
                pin,
                signal,
            };
            assert_eq!(route, Ok(expected));
            // By its GSI it is the same, whatever is asked for: but for what the MADT says nothing of.
            let found = routing.gsi(pin.into(), Signal::PCI).unwrap();
            let says_nothing = !matches!(irq, 0 | 5 | 9 | 10 | 11);
            let signal = if says_nothing { Signal::PCI } else { signal };
            assert_eq!(found, Route { signal, ..expected });
        }
        let route = routing.gsi(23, Signal::PCI).unwrap();
        assert_eq!((route.pin, route.signal), (23, Signal::PCI));
        let error = RoutingError::NoIoApic(24);
        assert_eq!(routing.gsi(24, Signal::PCI), Err(error));
    }

    #[test]
    fn qemu_s_microvm_has_a_second_io_apic() {
        let mut asked = Vec::new();
        let routing = Routing::new(interrupt_entries(QEMU_MICROVM), |io_apic| {
            asked.push(io_apic.address);
            24
        });
        let routing = routing.unwrap();
        assert_eq!(asked, [FIRST, SECOND]);
        for (gsi, io_apic, pin) in [(0, 0, 0), (2, 0, 2), (23, 0, 23), (24, 1, 0), (47, 1, 23)] {
            let route = routing.gsi(gsi, Signal::ISA).unwrap();
            assert_eq!((route.io_apic, route.pin), (io_apic, pin));
        }
        let error = RoutingError::NoIoApic(48);
        assert_eq!(routing.gsi(48, Signal::ISA), Err(error));
        assert_eq!(routing.isa(2).unwrap().pin, 2);
    }

    #[test]
    fn a_route_becomes_an_entry() {
        let routing = routing(&[io_apic(FIRST, 0), source(5, 20, 0b1111)]).unwrap();
        let to = Destination::new(3, DestinationWidth::Bits8).unwrap();
        let route = routing.isa(5).unwrap();
        assert_eq!(route.pin, 20);
        let entry = route.entry(0x40, to).unwrap();
        assert_eq!(entry, Entry::fixed(0x40, Signal::PCI, to).unwrap());
        assert_eq!(route.entry(0x1f, to), Err(IoApicError::Vector(0x1f)));
    }

    #[test]
    fn what_a_firmware_gets_wrong_is_told_in_words() {
        let one = io_apic(FIRST, 0);
        let wrong = routing(&[
            one,
            io_apic(SECOND, 20),
            nmi(13),
            source(3, 8, 0),
            source(3, 9, 0),
            source(4, 17, 0b0010),
            source(6, 18, 0),
            source(7, 18, 0b1111),
        ])
        .unwrap();
        for (route, words) in [
            (
                wrong.isa(16),
                "ISA has no IRQ 16: use one from 0 to 15, or a GSI",
            ),
            (
                wrong.isa(3),
                "the ACPI MADT has two source overrides for IRQ 3, and they differ: update the firmware",
            ),
            (
                wrong.isa(9),
                "the ACPI MADT has two source overrides for IRQ 3, and they differ: update the firmware",
            ),
            (
                wrong.gsi(17, Signal::PCI),
                "the ACPI MADT's source override for IRQ 4 has the reserved flags 0x2: update the firmware",
            ),
            (
                wrong.isa(6),
                "the ACPI MADT has IRQ 6 and IRQ 7 arrive at GSI 18, and be signalled in two ways: update the \
                 firmware",
            ),
            (
                wrong.isa(13),
                "GSI 13 is an NMI, and no device's: use another GSI",
            ),
            (
                wrong.gsi(23, Signal::PCI),
                "the ACPI MADT has GSI 23 at the I/O APICs at 0xfec00000 and at 0xfec10000: update the firmware",
            ),
            (
                wrong.gsi(44, Signal::PCI),
                "no I/O APIC has GSI 44: use another GSI",
            ),
        ] {
            assert_eq!(route.unwrap_err().to_string(), words);
        }
        // All others have their routes.
        assert_eq!(wrong.isa(12).map(|route| route.pin), Ok(12));
        assert_eq!(wrong.gsi(43, Signal::PCI).map(|route| route.pin), Ok(23));
        let displaced = routing(&[one, source(0, 2, 0)]).unwrap().isa(2);
        let words = "IRQ 2 arrives nowhere, as IRQ 0 arrives at GSI 2: use another IRQ";
        assert_eq!(displaced.unwrap_err().to_string(), words);

        for (entries, words) in [
            (
                [one, io_apic(FIRST, 24)],
                "the ACPI MADT lists the I/O APIC at 0xfec00000 twice, with GSIs from 0 and from 24: update the \
                 firmware",
            ),
            (
                [one, io_apic(0, 24)],
                "the ACPI MADT has an I/O APIC at 0x0, and must have a multiple of 0x100 other than 0: update \
                 the firmware",
            ),
            (
                [one, io_apic(0xfec0_0080, 24)],
                "the ACPI MADT has an I/O APIC at 0xfec00080, and must have a multiple of 0x100 other than 0: \
                 update the firmware",
            ),
        ] {
            assert_eq!(routing(&entries).unwrap_err().to_string(), words);
        }
        let short = MadtError::Short {
            kind: 2,
            length: 9,
            min_length: 10,
        };
        let error = Routing::new([Ok(one), Err(short)], |_| 24).unwrap_err();
        assert_eq!(error, RoutingError::Madt(short));
        assert_eq!(error.to_string(), short.to_string());
    }

    #[test]
    fn what_is_listed_twice_in_the_same_way_is_there_once() {
        let entries = [
            io_apic(FIRST, 0),
            source(9, 20, 0b1111),
            nmi(3),
            // IRQs that share a line.
            source(10, 20, 0b1111),
        ];
        let twice = [entries, entries].concat();
        assert_eq!(routing(&twice), routing(&entries));
        let routing = routing(&twice).unwrap();
        assert_eq!(routing.isa(9), routing.isa(10));
        assert_eq!(routing.isa(9).unwrap().signal, Signal::PCI);
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        type Make = fn(u32) -> InterruptEntry;
        let kinds: [(Make, usize, &str); 3] = [
            (|n| io_apic(FIRST + n * 0x1000, n * 24), 64, "I/O APICs"),
            (|n| source(n as u8, n, 0), 32, "source overrides"),
            (nmi, 32, "NMI sources"),
        ];
        for (make, max, kind) in kinds {
            let entries: Vec<_> = (0..=max as u32).map(make).collect();
            assert!(routing(&entries[..max]).is_ok());
            let error = routing(&entries).unwrap_err();
            assert_eq!(error, RoutingError::TooMany { kind, max });
            let words = format!(
                "the ACPI MADT has more than {max} {kind}: raise the limit in muster-machine's routing.rs"
            );
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn gsis_end_where_numbers_do() {
        let routing = routing(&[io_apic(FIRST, u32::MAX - 1)]).unwrap();
        let pin = |gsi| routing.gsi(gsi, Signal::PCI).map(|route| route.pin);
        assert_eq!(pin(u32::MAX), Ok(1));
        assert_eq!(pin(u32::MAX - 1), Ok(0));
        assert_eq!(pin(0), Err(RoutingError::NoIoApic(0)));
    }

    /// What a careless reader makes of a MADT: tables of all that is said of each GSI.
    #[derive(Default)]
    struct Model {
        inputs: BTreeMap<u32, Vec<(usize, u8)>>,
        /// By GSI: which IRQs arrive there, and the flags.
        arrivals: BTreeMap<u32, BTreeSet<(u8, u16)>>,
        nmis: BTreeSet<u32>,
    }

    impl Model {
        /// Returns the route, or all that there is to say against it.
        fn find(
            &self,
            gsi: u32,
            irq: Option<u8>,
            asked: Signal,
        ) -> Result<Route, Vec<&'static str>> {
            let mut objections = Vec::new();
            let none = BTreeSet::new();
            let arrivals = self.arrivals.get(&gsi).unwrap_or(&none);
            let irqs: BTreeSet<u8> = arrivals.iter().map(|(irq, _)| *irq).collect();
            let everywhere = self.arrivals.values().flatten();
            if irqs
                .iter()
                .any(|irq| everywhere.clone().filter(|(other, _)| other == irq).count() > 1)
            {
                objections.push("twice");
            }
            if arrivals
                .iter()
                .any(|(_, flags)| flags & 3 == 2 || flags >> 2 & 3 == 2)
            {
                objections.push("flags");
            }
            if irq.is_some_and(|irq| !irqs.is_empty() && !irqs.contains(&irq)) {
                objections.push("displaced");
            }
            let signals: Vec<_> = arrivals
                .iter()
                .map(|(_, flags)| (flags & 3 == 3, flags >> 2 & 3 == 3))
                .collect();
            if signals.iter().any(|signal| *signal != signals[0]) {
                objections.push("shared");
            }
            if self.nmis.contains(&gsi) {
                objections.push("nmi");
            }
            let inputs = self.inputs.get(&gsi).map_or(&[][..], Vec::as_slice);
            match inputs.len() {
                0 => objections.push("none"),
                1 => {}
                _ => objections.push("two"),
            }
            if !objections.is_empty() {
                return Err(objections);
            }
            let signal = match signals.first() {
                None => asked,
                Some(&(is_low, is_level)) => Signal {
                    polarity: [Polarity::ActiveHigh, Polarity::ActiveLow][usize::from(is_low)],
                    trigger: [Trigger::Edge, Trigger::Level][usize::from(is_level)],
                },
            };
            let (io_apic, pin) = inputs[0];
            Ok(Route {
                gsi,
                io_apic,
                pin,
                signal,
            })
        }
    }

    /// Returns the objection that an error makes.
    fn objection(error: RoutingError) -> &'static str {
        match error {
            RoutingError::OverriddenTwice(_) => "twice",
            RoutingError::Flags { .. } => "flags",
            RoutingError::Displaced { .. } => "displaced",
            RoutingError::Shared { .. } => "shared",
            RoutingError::Nmi(_) => "nmi",
            RoutingError::NoIoApic(_) => "none",
            RoutingError::TwoIoApics { .. } => "two",
            other => panic!("{other}"),
        }
    }

    proptest! {
        #[test]
        fn every_interrupt_arrives_where_the_model_has_it(
            io_apics in prop::collection::vec((0_u32..30, 0_u8..12), 0..4),
            sources in prop::collection::vec(
                // Mostly one for each IRQ, and mostly with flags that mean something.
                (0_u8..20, 0_u32..30, prop_oneof![9 => prop::sample::select(vec![0_u16, 13, 15, 5]), 1 => 0_u16..16]),
                0..6,
            ),
            nmis in prop::collection::vec(0_u32..30, 0..2),
        ) {
            let mut model = Model::default();
            let mut entries = Vec::new();
            for (index, &(first, pins)) in io_apics.iter().enumerate() {
                entries.push(io_apic(FIRST + index as u32 * 0x1000, first));
                for pin in 0..pins {
                    model.inputs.entry(first + u32::from(pin)).or_default().push((index, pin));
                }
            }
            for &(irq, gsi, flags) in &sources {
                entries.push(source(irq, gsi, flags));
                model.arrivals.entry(gsi).or_default().insert((irq, flags));
            }
            for &gsi in &nmis {
                entries.push(nmi(gsi));
                model.nmis.insert(gsi);
            }
            let pins = |io_apic: IoApic| io_apics[(io_apic.address - FIRST) as usize / 0x1000].1;
            let routing = Routing::new(entries.into_iter().map(Ok), pins).unwrap();

            let same = |found: Result<Route, RoutingError>, expected: Result<Route, Vec<_>>| {
                match (found, expected) {
                    (Ok(found), Ok(expected)) => prop_assert_eq!(found, expected),
                    (Err(error), Err(objections)) => {
                        prop_assert!(objections.contains(&objection(error)), "{}", error);
                        prop_assert!(!error.to_string().is_empty());
                    }
                    (found, expected) => prop_assert!(false, "{found:?}, {expected:?}"),
                }
                Ok(())
            };
            for gsi in 0..45 {
                same(routing.gsi(gsi, Signal::PCI), model.find(gsi, None, Signal::PCI))?;
            }
            for irq in 0..16 {
                let mut gsis = sources.iter().filter(|(of, ..)| *of == irq).map(|(_, gsi, _)| *gsi);
                let gsi = gsis.next().unwrap_or(irq.into());
                same(routing.isa(irq), model.find(gsi, Some(irq), Signal::ISA))?;
            }
        }
    }
}
