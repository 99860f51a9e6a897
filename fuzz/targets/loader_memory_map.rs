//! The loader's memory map: what any firmware reports, and what the loader takes out of it.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use muster_loader::memory_map::{CAPACITY, Entry, Kind, MapError, MemoryMap, PAGE};

#[derive(Arbitrary, Debug)]
struct Input {
    reported: Vec<Reported>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Reported {
    base: Number,
    length: Number,
    kind: Reportable,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Reportable {
    Usable,
    Reserved,
    AcpiReclaimable,
    AcpiNvs,
    Bad,
}

/// A number that is often a whole page, and often small enough to be near others.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Pages(u8),
    ManyPages(u16, u8),
    Bytes(u16),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Allocate {
        bytes: Number,
        align: u8,
        below: Number,
        is_executable: bool,
    },
    Claim {
        start: Number,
        length: Number,
        is_executable: bool,
    },
    MakeAwkward,
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Pages(pages) => u64::from(pages) * PAGE,
            Self::ManyPages(pages, shift) => (u64::from(pages) * PAGE) << (shift % 40),
            Self::Bytes(bytes) => u64::from(bytes) * 17,
            Self::Any(number) => number,
        }
    }
}

impl Reported {
    fn entry(self) -> Entry {
        Entry {
            base: self.base.value(),
            length: self.length.value(),
            kind: match self.kind {
                Reportable::Usable => Kind::Usable,
                Reportable::Reserved => Kind::Reserved,
                Reportable::AcpiReclaimable => Kind::AcpiReclaimable,
                Reportable::AcpiNvs => Kind::AcpiNvs,
                Reportable::Bad => Kind::Bad,
            },
        }
    }
}

fn taker(is_executable: bool) -> Kind {
    if is_executable {
        Kind::Executable
    } else {
        Kind::Loader
    }
}

/// What the protocol promises of every map.
fn check(map: &MemoryMap) {
    let entries = map.entries();
    assert!(entries.len() <= CAPACITY);
    assert!(entries.is_sorted_by_key(|entry| entry.base));
    // The ends of all entries before.
    let mut end = 0;
    let mut end_of_whole = 0;
    for entry in entries {
        let is_whole = matches!(entry.kind, Kind::Usable | Kind::Loader);
        assert!(entry.length > 0);
        assert!(
            !is_whole || (entry.base | entry.length).is_multiple_of(PAGE),
            "{entry:x?}"
        );
        assert!(
            entry.base >= if is_whole { end } else { end_of_whole },
            "{entry:x?}"
        );
        end = end.max(entry.end());
        if is_whole {
            end_of_whole = entry.end();
        }
    }
}

fn bytes_of(map: &MemoryMap, kinds: &[Kind]) -> u128 {
    let entries = map.entries().iter();
    let those = entries.filter(|entry| kinds.contains(&entry.kind));
    those.map(|entry| u128::from(entry.length)).sum()
}

fuzz_target!(|input: Input| {
    let reported: Vec<Entry> = input.reported.iter().map(|entry| entry.entry()).collect();
    let mut map = match MemoryMap::from_firmware(reported.iter().copied()) {
        Ok(map) => map,
        Err(error) => return assert_eq!(error, MapError::Full),
    };
    check(&map);
    let holds = |range: std::ops::Range<u64>| {
        reported.iter().any(|entry| {
            let end = entry.base.saturating_add(entry.length);
            entry.kind == Kind::Usable && entry.base <= range.start && range.end <= end
        })
    };
    for entry in map
        .entries()
        .iter()
        .filter(|entry| entry.kind == Kind::Usable)
    {
        assert!(holds(entry.base..entry.end()), "nobody reported {entry:x?}");
    }
    for step in input.steps {
        let before = map.clone();
        let taken = match step {
            Step::Allocate {
                bytes,
                align,
                below,
                is_executable,
            } => {
                let (bytes, below) = (bytes.value(), below.value());
                let align = PAGE << (align % 52);
                let kind = taker(is_executable);
                map.allocate(bytes, align, below, kind).map(|base| {
                    assert!(base.is_multiple_of(align) && base > 0);
                    let end = base + bytes.max(1).next_multiple_of(PAGE);
                    assert!(end <= below && map.is_taken(&(base..end)));
                    assert!(!before.is_taken(&(base..end)) && holds(base..end));
                })
            }
            Step::Claim {
                start,
                length,
                is_executable,
            } => {
                let start = start.value();
                let end = start.saturating_add(length.value());
                map.claim(start..end, taker(is_executable))
            }
            Step::MakeAwkward => {
                if map.make_awkward().is_err() {
                    // The loader refuses to go on.
                    return;
                }
                check(&map);
                continue;
            }
        };
        check(&map);
        match taken {
            Ok(()) => {
                let all = [Kind::Usable, Kind::Loader, Kind::Executable];
                assert_eq!(bytes_of(&map, &all), bytes_of(&before, &all));
            }
            Err(error) => assert_eq!(map.entries(), before.entries(), "{error}"),
        }
    }
});
