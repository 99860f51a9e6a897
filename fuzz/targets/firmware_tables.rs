//! The firmware's tables: the way to the MADT over any memory, and over memory that is mostly right; and where
//! interrupts arrive by what it says.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use muster_machine::acpi::{
    Firmware, InterruptEntry, IoApic, Madt, NmiSource, SignalFlags, SourceOverride, search_rsdp,
};
use muster_machine::io_apic::Signal;
use muster_machine::routing::{Route, Routing};

/// Where the memory begins: where a BIOS has the root pointer.
const START: u64 = 0xe_0000;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Raw {
        at: u16,
        bytes: &'a [u8],
    },
    Built(Built<'a>),
    /// A MADT with nothing wrong on the way to it.
    Madt(Vec<Entry<'a>>),
}

#[derive(Arbitrary, Debug)]
struct Built<'a> {
    revision: u8,
    tables: Vec<Table<'a>>,
    /// What the table of tables holds.
    pointers: Vec<Pointer>,
    /// What is wrong on the way to it.
    flaws: Option<Flaws>,
}

#[derive(Arbitrary, Debug)]
struct Flaws {
    root: Pointer,
    root_sum: bool,
    rsdp_sum: bool,
    /// Bytes to change in the end.
    changes: Vec<(u16, u8)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Pointer {
    ToRoot,
    /// To one of the tables, if there are any.
    To(u8),
    Raw(u64),
}

#[derive(Arbitrary, Debug)]
struct Table<'a> {
    is_madt: bool,
    body: Vec<Entry<'a>>,
    flaws: Option<TableFlaws>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct TableFlaws {
    length: Option<u32>,
    /// By how much the sum of its bytes is wrong.
    sum: u8,
}

#[derive(Arbitrary, Debug)]
enum Entry<'a> {
    LocalApic {
        id: u8,
        flags: u8,
    },
    LocalX2Apic {
        id: u32,
        flags: u8,
    },
    Other {
        kind: u8,
        body: &'a [u8],
    },
    Raw(&'a [u8]),
    IoApic {
        page: u8,
        first_gsi: Gsi,
    },
    SourceOverride {
        bus: bool,
        irq: u8,
        gsi: Gsi,
        flags: u8,
    },
    NmiSource {
        gsi: Gsi,
    },
}

/// A global system interrupt: a small one, or one of the last.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Gsi(i8);

impl Gsi {
    fn number(self) -> u32 {
        i32::from(self.0).cast_unsigned()
    }
}

struct Memory<'a>(&'a [u8]);

impl<'a> Firmware for Memory<'a> {
    type Bytes = &'a [u8];

    fn bytes(&self, start: u64, length: usize) -> Option<&'a [u8]> {
        let offset = usize::try_from(start.checked_sub(START)?).ok()?;
        self.0.get(offset..)?.get(..length)
    }
}

/// Makes bytes sum to this by the one at an offset.
fn correct(bytes: &mut [u8], offset: usize, to: u8) {
    bytes[offset] = 0;
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[offset] = to.wrapping_sub(sum);
}

fn table(signature: &[u8; 4], body: &[u8], flaws: Option<TableFlaws>) -> Vec<u8> {
    let mut table = signature.to_vec();
    let length = flaws.and_then(|flaws| flaws.length);
    let length = length.unwrap_or(36 + body.len() as u32);
    table.extend(length.to_le_bytes());
    table.resize(36, 0);
    table.extend(body);
    correct(&mut table, 9, flaws.map_or(0, |flaws| flaws.sum));
    table
}

impl Entry<'_> {
    fn bytes(&self) -> Vec<u8> {
        match *self {
            Self::LocalApic { id, flags } => vec![0, 8, !id, id, flags, 0, 0, 0],
            Self::LocalX2Apic { id, flags } => {
                let mut entry = vec![9, 16, 0, 0];
                entry.extend(id.to_le_bytes());
                entry.extend([flags, 0, 0, 0]);
                entry.extend((!id).to_le_bytes());
                entry
            }
            Self::Other { kind, body } => {
                let body = &body[..body.len().min(253)];
                let mut entry = vec![kind, body.len() as u8 + 2];
                entry.extend(body);
                entry
            }
            Self::Raw(bytes) => bytes.into(),
            Self::IoApic { page, first_gsi } => {
                let mut entry = vec![1, 12, page, 0, 0, page, 0xc0, 0xfe];
                entry.extend(first_gsi.number().to_le_bytes());
                entry
            }
            Self::SourceOverride {
                bus,
                irq,
                gsi,
                flags,
            } => {
                let mut entry = vec![2, 10, bus.into(), irq % 20];
                entry.extend(gsi.number().to_le_bytes());
                entry.extend([flags, 0]);
                entry
            }
            Self::NmiSource { gsi } => {
                let mut entry = vec![3, 8, 0, 0];
                entry.extend(gsi.number().to_le_bytes());
                entry
            }
        }
    }

    /// What it says of interrupts.
    fn interrupts(&self) -> Option<InterruptEntry> {
        Some(match *self {
            Self::IoApic { page, first_gsi } => InterruptEntry::IoApic(IoApic {
                id: page,
                address: 0xfec0_0000 + u32::from(page) * 0x100,
                first_gsi: first_gsi.number(),
            }),
            // Of ISA's bus.
            Self::SourceOverride {
                bus: false,
                irq,
                gsi,
                flags,
            } => {
                let irq = irq % 20;
                let flags = SignalFlags(flags.into());
                InterruptEntry::SourceOverride(SourceOverride {
                    irq,
                    gsi: gsi.number(),
                    flags,
                })
            }
            Self::NmiSource { gsi } => {
                let flags = SignalFlags(0);
                InterruptEntry::NmiSource(NmiSource {
                    gsi: gsi.number(),
                    flags,
                })
            }
            _ => return None,
        })
    }

    /// The CPU it stands for, if its type is one of the two, and its id not the one that no CPU has.
    fn cpu(&self) -> Option<(u32, u8)> {
        match *self {
            Self::LocalApic { id, flags } if id != u8::MAX => Some((id.into(), flags)),
            Self::LocalX2Apic { id, flags } if id != u32::MAX => Some((id, flags)),
            _ => None,
        }
    }

    /// Whether it is well-formed and stands for no more than it seems to.
    fn is_plain(&self) -> bool {
        match self {
            Self::Other { kind, .. } => !matches!(kind, 0..=3 | 9),
            Self::Raw(bytes) => bytes.is_empty(),
            _ => true,
        }
    }
}

impl Built<'_> {
    /// The table that a pointer leads to.
    fn table(&self, pointer: Pointer) -> Option<usize> {
        match pointer {
            Pointer::To(index) => usize::from(index).checked_rem(self.tables.len()),
            Pointer::ToRoot | Pointer::Raw(_) => None,
        }
    }

    /// Puts the root pointer first, the table it leads to next, and then all others.
    fn memory(&self) -> Vec<u8> {
        let width = if self.revision == 0 { 4 } else { 8 };
        let root_at = START + 48;
        let mut at = root_at + (36 + width * self.pointers.len() as u64).next_multiple_of(16);
        let tables: Vec<Vec<u8>> = self.tables.iter().map(Table::bytes).collect();
        let mut places = Vec::new();
        for table in &tables {
            places.push(at);
            at += (table.len() as u64).next_multiple_of(16);
        }
        let address = |pointer: Pointer| match pointer {
            Pointer::ToRoot => root_at,
            Pointer::To(_) => self.table(pointer).map_or(0, |index| places[index]),
            Pointer::Raw(address) => address,
        };
        let flaws = self.flaws.as_ref();
        let pointers = self.pointers.iter().map(|&pointer| address(pointer));
        let pointers = pointers.flat_map(|at| at.to_le_bytes().into_iter().take(width as usize));
        let flawed_sum = flaws.is_some_and(|flaws| flaws.root_sum);
        let flawed_sum = flawed_sum.then_some(TableFlaws {
            length: None,
            sum: 1,
        });
        let root = table(b"XSDT", &pointers.collect::<Vec<_>>(), flawed_sum);

        let mut rsdp = b"RSD PTR \0muster".to_vec();
        rsdp.push(self.revision);
        let to_root = address(flaws.map_or(Pointer::ToRoot, |flaws| flaws.root)).to_le_bytes();
        rsdp.extend(if width == 4 { &to_root[..4] } else { &[0; 4] });
        correct(&mut rsdp, 8, flaws.map_or(0, |flaws| flaws.rsdp_sum.into()));
        rsdp.extend(36_u32.to_le_bytes());
        rsdp.extend(to_root);
        rsdp.resize(48, 0);

        let mut memory = rsdp;
        for table in std::iter::once(&root).chain(&tables) {
            memory.extend(table);
            memory.resize(memory.len().next_multiple_of(16), 0);
        }
        let length = memory.len();
        for &(place, byte) in flaws.iter().flat_map(|flaws| &flaws.changes) {
            memory[usize::from(place) % length] ^= byte;
        }
        memory
    }

    /// What must be found, or that no MADT must be; `None` if that can't be known here.
    fn expected(&self) -> Option<Option<Found>> {
        let flaws = self.flaws.as_ref();
        if flaws.is_some_and(|flaws| !flaws.changes.is_empty()) {
            return None;
        }
        if flaws.is_some_and(|flaws| flaws.rsdp_sum) {
            return Some(None);
        }
        match flaws.map_or(Pointer::ToRoot, |flaws| flaws.root) {
            Pointer::ToRoot if flaws.is_some_and(|flaws| flaws.root_sum) => return Some(None),
            Pointer::ToRoot => {}
            _ => return None,
        }
        let mut pointers = self.pointers.iter();
        if pointers
            .clone()
            .any(|pointer| matches!(pointer, Pointer::Raw(_)))
        {
            return None;
        }
        let madt = pointers.find_map(|&pointer| {
            let table = self.tables.get(self.table(pointer)?)?;
            table.is_madt.then_some(table)
        });
        let Some(madt) = madt else {
            return Some(None);
        };
        match madt.flaws {
            Some(TableFlaws {
                length: Some(_), ..
            }) => return None,
            Some(TableFlaws { sum: 1.., .. }) => return Some(None),
            _ => {}
        }
        let is_plain = madt.body.iter().all(Entry::is_plain);
        is_plain.then(|| {
            Some(Found {
                cpus: madt.body.iter().filter_map(Entry::cpu).collect(),
                interrupts: madt.body.iter().filter_map(Entry::interrupts).collect(),
            })
        })
    }
}

impl Table<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut body = vec![0; 8];
        for entry in &self.body {
            body.extend(entry.bytes());
        }
        let signature = if self.is_madt { b"APIC" } else { b"FACP" };
        table(signature, &body, self.flaws)
    }
}

/// What a MADT says.
#[derive(Debug, PartialEq)]
struct Found {
    /// Each CPU's LAPIC id and flags.
    cpus: Vec<(u32, u8)>,
    /// All but entries that are too short.
    interrupts: Vec<InterruptEntry>,
}

fn found(memory: &[u8], rsdp: u64) -> Option<Found> {
    let madt = match Madt::find(&Memory(memory), rsdp) {
        Ok(madt) => madt,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return None;
        }
    };
    let cpus = madt.cpus().map(|cpu| {
        let flags = match (cpu.is_enabled(), cpu.may_be_started()) {
            (false, false) => 0,
            (true, true) => 1,
            (false, true) => 2,
            (true, false) => 3,
        };
        (cpu.lapic_id, flags)
    });
    let interrupts: Vec<_> = madt.interrupt_entries().filter_map(Result::ok).collect();
    match Routing::new(madt.interrupt_entries(), pins) {
        Ok(routing) => look_up(&interrupts, &routing),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    Some(Found {
        cpus: cpus.collect(),
        interrupts,
    })
}

/// Any number of inputs of an I/O APIC.
fn pins(io_apic: IoApic) -> u8 {
    io_apic.id % 121
}

/// Looks up where interrupts arrive, and follows each route back to what the entries say.
fn look_up(entries: &[InterruptEntry], routing: &Routing) {
    let io_apics: Vec<_> = routing.io_apics().collect();
    let has = |(io_apic, pins): &(IoApic, u8), gsi: u32| {
        let first = u64::from(io_apic.first_gsi);
        (first..first + u64::from(*pins)).contains(&gsi.into())
    };
    for entry in entries {
        if let InterruptEntry::IoApic(listed) = entry {
            let mut same = io_apics
                .iter()
                .filter(|(io_apic, _)| io_apic.address == listed.address);
            assert!(
                same.next()
                    .is_some_and(|(io_apic, _)| io_apic.first_gsi == listed.first_gsi)
            );
            assert!(same.next().is_none());
        }
    }
    let sources = || {
        entries.iter().filter_map(|entry| match entry {
            InterruptEntry::SourceOverride(source) => Some(source),
            _ => None,
        })
    };
    let check = |route: &Route, asked: Signal| {
        let gsi = route.gsi;
        let those: Vec<_> = io_apics
            .iter()
            .filter(|io_apic| has(io_apic, gsi))
            .collect();
        let [(io_apic, _)] = those[..] else {
            panic!("not one has GSI {gsi}: {those:?}");
        };
        assert_eq!(io_apics[route.io_apic].0, *io_apic);
        assert_eq!(gsi - io_apic.first_gsi, route.pin.into());
        let is_it = |entry: &_| matches!(entry, InterruptEntry::NmiSource(nmi) if nmi.gsi == gsi);
        assert!(!entries.iter().any(is_it), "GSI {gsi} is an NMI");
        let mut expected = asked;
        for source in sources().filter(|source| source.gsi == gsi) {
            assert_eq!(source.flags.signal(Signal::ISA), Some(route.signal));
            assert!(sources().all(|other| other.irq != source.irq || other == source));
            expected = route.signal;
        }
        assert_eq!(route.signal, expected);
    };
    for irq in 0..=u8::MAX {
        match routing.isa(irq) {
            Ok(route) => {
                check(&route, Signal::ISA);
                match sources().find(|source| source.irq == irq) {
                    Some(source) => assert_eq!(route.gsi, source.gsi),
                    None => {
                        assert_eq!(route.gsi, irq.into());
                        assert!(!sources().any(|source| source.gsi == route.gsi));
                    }
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let borders = io_apics.iter().flat_map(|(io_apic, pins)| {
        let first = io_apic.first_gsi;
        let end = first.wrapping_add((*pins).into());
        [first.wrapping_sub(1), first, end.wrapping_sub(1), end]
    });
    for gsi in borders.chain(sources().map(|source| source.gsi)) {
        match routing.gsi(gsi, Signal::PCI) {
            Ok(route) => check(&route, Signal::PCI),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn check(built: &Built) {
    let found = found(&built.memory(), START);
    if let Some(expected) = built.expected() {
        let expected = expected.map(|mut expected| {
            expected.cpus.iter_mut().for_each(|(_, flags)| *flags &= 3);
            expected
        });
        assert_eq!(found, expected);
    }
}

fuzz_target!(|input: Input| {
    match input {
        Input::Raw { at, bytes } => {
            let rsdp = START + u64::from(at);
            let found = found(bytes, rsdp);
            if let Some(searched) = search_rsdp(&Memory(bytes)) {
                assert!(searched >= START && searched.is_multiple_of(16));
            }
            // An entry takes eight bytes at least.
            let count = |found: Found| found.cpus.len() + found.interrupts.len();
            assert!(found.is_none_or(|found| count(found) <= bytes.len() / 8));
        }
        Input::Built(built) => check(&built),
        Input::Madt(body) => check(&Built {
            revision: 2,
            tables: vec![Table {
                is_madt: true,
                body,
                flaws: None,
            }],
            pointers: vec![Pointer::To(0)],
            flaws: None,
        }),
    }
});
