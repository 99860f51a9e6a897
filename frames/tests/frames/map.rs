//! The physical map against a model that keeps every granule's owner in an array.

use muster_boot::{Kind, MemoryEntry};
use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};
use proptest::prelude::*;

use crate::oracle::oracle;
use crate::owner::{AssignError, Owner, PhysicalMap, physical_map};

/// All borders in the random maps are multiples of this.
const GRANULE: u64 = 512;
const GRANULES: u64 = 24 * FRAME_SIZE / GRANULE;

fn granules(range: PhysRange) -> std::ops::Range<usize> {
    (range.start().get() / GRANULE) as usize..range.end().get().div_ceil(GRANULE) as usize
}

fn range() -> impl Strategy<Value = PhysRange> {
    let length = prop_oneof![1..6u64, 1..60u64, (1..8u64).prop_map(|frames| frames * 8)];
    let start = prop_oneof![0..GRANULES, (0..GRANULES / 8).prop_map(|frame| frame * 8)];
    (start, length).prop_filter_map("too long", |(start, length)| {
        let end = start + length;
        (end <= GRANULES).then(|| {
            PhysRange::from_bounds(PhysAddr::new(start * GRANULE), PhysAddr::new(end * GRANULE))
        })?
    })
}

fn entries(kinds: &'static [Kind], count: usize) -> impl Strategy<Value = Vec<MemoryEntry>> {
    let entry = (range(), prop::sample::select(kinds));
    prop::collection::vec(
        entry.prop_map(|(range, kind)| MemoryEntry { range, kind }),
        0..count,
    )
}

/// Allocatable entries that do not overlap, and others that may, in any order.
fn sound_entries() -> impl Strategy<Value = Vec<MemoryEntry>> {
    let allocatable = entries(
        &[Kind::Usable, Kind::Usable, Kind::BootloaderReclaimable],
        8,
    );
    let others = entries(&Kind::ALL[2..], 8);
    (allocatable, others)
        .prop_map(|(allocatable, others)| {
            let mut sound: Vec<MemoryEntry> = Vec::new();
            for entry in allocatable {
                if sound.iter().all(|other| !other.range.overlaps(entry.range)) {
                    sound.push(entry);
                }
            }
            sound.extend(others);
            sound
        })
        .prop_shuffle()
}

fn owner(kind: Kind) -> Owner {
    match kind {
        Kind::Usable => Owner::Free,
        Kind::BootloaderReclaimable => Owner::Loader,
        Kind::ExecutableAndModules => Owner::Kernel,
        Kind::AcpiReclaimable => Owner::AcpiReclaimable,
        Kind::Framebuffer => Owner::Framebuffer,
        Kind::AcpiNvs => Owner::AcpiNvs,
        Kind::ReservedMapped | Kind::Reserved => Owner::Reserved,
        Kind::Bad => Owner::Bad,
    }
}

fn model(entries: &[MemoryEntry]) -> Vec<Option<Owner>> {
    let mut owners: Vec<Option<Owner>> = (0..GRANULES)
        .map(|granule| {
            let kinds = entries
                .iter()
                .filter(|entry| entry.range.contains(PhysAddr::new(granule * GRANULE)));
            kinds.map(|entry| entry.kind).max().map(owner)
        })
        .collect();
    for (number, frame) in owners
        .chunks_mut((FRAME_SIZE / GRANULE) as usize)
        .enumerate()
    {
        for allocatable in [Owner::Free, Owner::Loader] {
            let whole = frame.iter().all(|owner| *owner == Some(allocatable));
            let instead = match (whole, number) {
                (true, 0) => Owner::NullFrame,
                (true, _) => continue,
                (false, _) => Owner::Reserved,
            };
            for owner in frame
                .iter_mut()
                .filter(|owner| **owner == Some(allocatable))
            {
                *owner = Some(instead);
            }
        }
    }
    owners
}

fn check(map: &PhysicalMap, model: &[Option<Owner>]) -> Result<(), TestCaseError> {
    for granule in 0..GRANULES {
        for addr in [granule * GRANULE, (granule + 1) * GRANULE - 1] {
            prop_assert_eq!(
                map.owner_of(PhysAddr::new(addr)),
                model[granule as usize],
                "at {:#x}",
                addr
            );
        }
    }
    let mut last: Option<(PhysRange, Owner)> = None;
    for (range, owner) in map.iter() {
        if let Some((last_range, last_owner)) = last {
            prop_assert!(last_range.end() <= range.start());
            prop_assert!(
                last_range.end() != range.start() || last_owner != owner,
                "not merged"
            );
        }
        last = Some((range, owner));
    }
    let totals = map.totals();
    for owner in Owner::all() {
        let bytes = model.iter().filter(|o| **o == Some(owner)).count() as u64 * GRANULE;
        prop_assert_eq!(totals[owner], bytes);
        prop_assert_eq!(map.ranges(owner).map(PhysRange::len).sum::<u64>(), bytes);
    }
    prop_assert_eq!(
        totals.sum(),
        totals.iter().map(|(_, bytes)| bytes).sum::<u64>()
    );
    prop_assert_eq!(
        totals.sum(),
        model.iter().flatten().count() as u64 * GRANULE
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_byte_has_the_owner_the_model_says(entries in sound_entries()) {
        let map = physical_map(&entries).unwrap();
        check(&map, &model(&entries))?;
        for owner in [Owner::Free, Owner::Loader] {
            for range in map.ranges(owner) {
                prop_assert_eq!(range.whole_frames(), Some(range));
                prop_assert!(range.start() != PhysAddr::new(0));
            }
        }
    }

    #[test]
    fn overlapping_allocatable_entries_are_named(
        entries in entries(&[Kind::Usable, Kind::BootloaderReclaimable, Kind::Reserved], 6),
    ) {
        let allocatable: Vec<_> =
            entries.iter().filter(|entry| entry.kind != Kind::Reserved).collect();
        let overlap = allocatable.iter().enumerate().any(|(place, entry)| {
            allocatable[place + 1..].iter().any(|other| other.range.overlaps(entry.range))
        });
        match physical_map(&entries) {
            Ok(map) => {
                prop_assert!(!overlap);
                check(&map, &model(&entries))?;
            }
            Err(error) => {
                prop_assert!(overlap);
                let ((first, _), (second, _)) = (error.first, error.second);
                prop_assert!(first.overlaps(second) && first.start() <= second.start());
                let is_given = |of| entries.iter().any(|entry| (entry.range, owner(entry.kind)) == of);
                prop_assert!(is_given(error.first) && is_given(error.second));
            }
        }
    }
}

fn check_moves(
    entries: &[MemoryEntry],
    moves: Vec<(PhysRange, Owner, Owner)>,
) -> Result<usize, TestCaseError> {
    let count = moves.len();
    let mut map = physical_map(entries).unwrap();
    let mut model = model(entries);
    let sum = map.totals().sum();
    for (range, from, to) in moves {
        let part = &mut model[granules(range)];
        let wrong = part.iter().position(|owner| *owner != Some(from));
        let in_frames = [Owner::Free, Owner::Loader];
        let borders = [range.start(), range.end()];
        let inside = borders
            .into_iter()
            .find(|border| !border.is_multiple_of(FRAME_SIZE));
        let expected = match (wrong, inside) {
            (Some(place), _) => Err(AssignError::NotOwned {
                range,
                from,
                to,
                at: range.start() + place as u64 * GRANULE,
                found: part[place],
            }),
            (None, Some(at)) if in_frames.contains(&from) || in_frames.contains(&to) => {
                Err(AssignError::InsideFrame {
                    range,
                    from,
                    to,
                    at,
                })
            }
            (None, _) if in_frames.contains(&to) && range.start() == PhysAddr::new(0) => {
                Err(AssignError::NullFrame { range, to })
            }
            (None, _) => {
                part.fill(Some(to));
                Ok(())
            }
        };
        prop_assert_eq!(map.assign(range, from, to), expected);
        check(&map, &model)?;
        for owner in in_frames {
            for range in map.ranges(owner) {
                prop_assert_eq!(range.whole_frames(), Some(range));
                prop_assert!(range.start() != PhysAddr::new(0));
            }
        }
        prop_assert_eq!(map.totals().sum(), sum);
    }
    Ok(count)
}

#[test]
fn memory_changes_hands_as_in_the_model() {
    let from = || prop::sample::select(&Owner::ALL[..4]);
    let to = || prop::sample::select(Owner::ALL);
    let change = prop_oneof![
        4 => (range(), from(), to()),
        // From the owner of frame 0, and back.
        1 => (
            prop::sample::select(&[GRANULE, FRAME_SIZE][..])
                .prop_map(|end| PhysRange::from_bounds(PhysAddr::new(0), PhysAddr::new(end)).unwrap()),
            prop::sample::select(&[Owner::NullFrame, Owner::Kernel][..]),
            to(),
        ),
    ];
    let values = (sound_entries(), prop::collection::vec(change, 0..24));
    oracle(
        "memory that changes hands",
        512,
        values,
        |(entries, moves)| check_moves(&entries, moves),
    );
}

fn entry(start: u64, end: u64, kind: Kind) -> MemoryEntry {
    MemoryEntry {
        range: PhysRange::from_bounds(PhysAddr::new(start), PhysAddr::new(end)).unwrap(),
        kind,
    }
}

#[test]
fn messages_name_the_memory_and_its_owners() {
    let error = physical_map(&[
        entry(0x3000, 0x9000, Kind::BootloaderReclaimable),
        entry(0x1000, 0x4000, Kind::Usable),
    ])
    .unwrap_err();
    let message = error.to_string();
    assert!(message.contains("0x1000..0x4000 (free) overlaps 0x3000..0x9000 (loader)"));

    let mut map = physical_map(&[entry(0x1000, 0x4000, Kind::Usable)]).unwrap();
    let range = PhysRange::from_bounds(PhysAddr::new(0x2000), PhysAddr::new(0x5000)).unwrap();
    let error = map.assign(range, Owner::Free, Owner::Heap).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot give 0x2000..0x5000 from free to heap: 0x4000 belongs to nobody the memory map \
         knows"
    );
    let range = PhysRange::from_bounds(PhysAddr::new(0x2000), PhysAddr::new(0x3000)).unwrap();
    map.assign(range, Owner::Free, Owner::Stacks).unwrap();
    let error = map.assign(range, Owner::Free, Owner::Heap).unwrap_err();
    assert!(error.to_string().ends_with("0x2000 belongs to stacks"));
    let range = PhysRange::from_bounds(PhysAddr::new(0x1000), PhysAddr::new(0x1010)).unwrap();
    let error = map.assign(range, Owner::Free, Owner::Heap).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot give 0x1000..0x1010 from free to heap: 0x1010 lies inside a frame, and free memory is \
         whole frames: give all of the frame"
    );
    let mut map = physical_map(&[entry(0, 0x4000, Kind::Usable)]).unwrap();
    let range = PhysRange::from_bounds(PhysAddr::new(0), PhysAddr::new(0x1000)).unwrap();
    let error = map
        .assign(range, Owner::NullFrame, Owner::Loader)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot give 0x0..0x1000 to loader: frame 0 is never handed out: give what lies above it"
    );
}

#[test]
fn every_owner_has_a_name_of_its_own() {
    let mut owners: Vec<String> = Owner::ALL.iter().map(Owner::to_string).collect();
    owners.sort();
    owners.dedup();
    assert_eq!(owners.len(), Owner::ALL.len());
    assert_eq!(format!("{:>12}|", Owner::Heap), "        heap|");
}

#[test]
fn the_top_of_physical_memory_is_not_lost() {
    let top = muster_frames::PHYSICAL_LIMIT;
    let map = physical_map(&[
        entry(0, 0x1000, Kind::BootloaderReclaimable),
        entry(top - PhysAddr::new(0x3000), top.get(), Kind::Usable),
        entry(top - PhysAddr::new(1), top.get(), Kind::Bad),
    ])
    .unwrap();
    assert_eq!(map.owner_of(PhysAddr::new(0)), Some(Owner::NullFrame));
    assert_eq!(
        map.owner_of(PhysAddr::new(top - PhysAddr::new(1))),
        Some(Owner::Bad)
    );
    assert_eq!(
        map.owner_of(PhysAddr::new(top - PhysAddr::new(2))),
        Some(Owner::Reserved)
    );
    assert_eq!(map.totals()[Owner::Free], 0x2000);
    assert_eq!(map.owner_of(PhysAddr::new(u64::MAX)), None);
}
