//! A memory map becomes owners, a plan, and page tables, which are walked: what they map is checked
//! against a naive model of the map.
#![no_main]

#[path = "../../frames/tests/frames/owner.rs"]
mod owner;

#[path = "../../paging/tests/paging/ram.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod ram;
#[path = "../../paging/tests/paging/shown.rs"]
mod shown;

use std::collections::BTreeSet;
use std::mem::MaybeUninit;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use muster_boot::{Kind, MemoryEntry, hhdm_regions};
use muster_frames::{FRAME_SIZE, FrameInfo, PhysAddr, PhysRange};
use muster_paging::{
    Access, Cache, Features, Levels, PageSize, Plan, PlanError, Region, TableError, Tables,
    VirtAddr,
};

use crate::owner::{FrameAllocator, Owner, PhysicalMap, physical_map};
use crate::ram::Ram;
use crate::shown::{Shown, shown};

#[derive(Arbitrary, Debug)]
struct Input {
    entries: Vec<Entry>,
    /// In units of 2 MiB, from the low end of the higher half on.
    offset: u32,
    has_five_levels: bool,
    has_gigabyte_pages: bool,
    physical_bits: u8,
    largest: u8,
    /// Parts of entries, by their places.
    read_only: Vec<(u8, u16, u16)>,
    /// How many page tables there is memory for.
    tables: u8,
}

/// An entry, by where the one before it ends.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Entry {
    step: Step,
    length: Length,
    kind: u8,
    /// Bytes by which an entry that need not be in whole frames reaches out of them.
    before: u16,
    after: u16,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Touch,
    Frames(u8),
    Back(u8),
    Align2MiB,
    Align1GiB,
    Jump(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Frames(u8),
    Large(u8, u8),
    Huge(u8, u16),
}

impl Input {
    fn entries(&self) -> Vec<MemoryEntry> {
        let mut at: u64 = 0;
        let entries = self.entries.iter().take(100).filter_map(|entry| {
            let start = match entry.step {
                Step::Touch => at,
                Step::Frames(frames) => at + u64::from(frames) * FRAME_SIZE,
                Step::Back(frames) => at.saturating_sub(u64::from(frames) * FRAME_SIZE),
                Step::Align2MiB => at.next_multiple_of(PageSize::Size2MiB.bytes()),
                Step::Align1GiB => at.next_multiple_of(PageSize::Size1GiB.bytes()),
                Step::Jump(power) => at + (1 << (power % 52)),
            };
            let frames = match entry.length {
                Length::Frames(frames) => u64::from(frames) + 1,
                Length::Large(pages, more) => (u64::from(pages) << 9) + u64::from(more),
                Length::Huge(pages, more) => (u64::from(pages % 4) << 18) + u64::from(more),
            };
            let kind = Kind::ALL[usize::from(entry.kind) % Kind::ALL.len()];
            let is_whole = matches!(kind, Kind::Usable | Kind::BootloaderReclaimable);
            let reach = |bytes: u16| if is_whole { 0 } else { u64::from(bytes) };
            let end = start + frames * FRAME_SIZE;
            let start = start.saturating_sub(reach(entry.before));
            let range = PhysRange::from_bounds(
                PhysAddr::new(start),
                PhysAddr::new(end + reach(entry.after)),
            )?;
            at = end;
            Some(MemoryEntry { range, kind })
        });
        entries.collect()
    }

    fn offset(&self, levels: Levels) -> u64 {
        let half: u64 = match levels {
            Levels::Four => 0xffff_8000_0000_0000,
            Levels::Five => 0xff00_0000_0000_0000,
        };
        half.wrapping_add(u64::from(self.offset) * PageSize::Size2MiB.bytes())
    }

    fn read_only(&self, entries: &[MemoryEntry]) -> Vec<PhysRange> {
        let ranges = self.read_only.iter().take(8);
        ranges
            .filter_map(|&(place, skip, length)| {
                let entry = entries.get(usize::from(place) % entries.len().max(1))?;
                PhysRange::new(entry.range.start() + u64::from(skip), length.into())
            })
            .collect()
    }
}

/// Where something could change: in the frames around both ends of every range.
fn places(ranges: impl Iterator<Item = PhysRange>) -> Vec<u64> {
    let mut places: Vec<u64> = ranges
        .flat_map(|range| [range.start().get(), range.end().get()])
        .flat_map(|at| [at.saturating_sub(FRAME_SIZE), at, at + FRAME_SIZE])
        .map(|at| at / FRAME_SIZE * FRAME_SIZE)
        .filter(|&at| PhysRange::new(PhysAddr::new(at), FRAME_SIZE).is_some())
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

fn is_allocatable(entry: &MemoryEntry) -> bool {
    matches!(entry.kind, Kind::Usable | Kind::BootloaderReclaimable)
}

/// Whose a byte is, by the entries alone.
fn naive_owner(entries: &[MemoryEntry], at: u64) -> Option<Owner> {
    let kind_at = |at| {
        let there = entries
            .iter()
            .filter(|entry| entry.range.contains(PhysAddr::new(at)));
        there.map(|entry| entry.kind).max()
    };
    let owner = match kind_at(at)? {
        Kind::Usable => Owner::Free,
        Kind::BootloaderReclaimable => Owner::Loader,
        Kind::ExecutableAndModules => return Some(Owner::Kernel),
        Kind::AcpiReclaimable => return Some(Owner::AcpiReclaimable),
        Kind::Framebuffer => return Some(Owner::Framebuffer),
        Kind::AcpiNvs => return Some(Owner::AcpiNvs),
        Kind::ReservedMapped | Kind::Reserved => return Some(Owner::Reserved),
        Kind::Bad => return Some(Owner::Bad),
    };
    // It is handed out if all of its frame is the same owner's.
    let kind = kind_at(at);
    let frame = PhysRange::new(PhysAddr::new(at / FRAME_SIZE * FRAME_SIZE), FRAME_SIZE)?;
    let borders = entries
        .iter()
        .flat_map(|entry| [entry.range.start().get(), entry.range.end().get()]);
    let inside = borders.filter(|&border| frame.contains(PhysAddr::new(border)));
    let is_whole = inside
        .chain([frame.start().get()])
        .all(|at| kind_at(at) == kind);
    match (is_whole, frame.start().get()) {
        (false, _) => Some(Owner::Reserved),
        (true, 0) => Some(Owner::NullFrame),
        (true, _) => Some(owner),
    }
}

fn check_owners(entries: &[MemoryEntry]) {
    let first_overlap = entries.iter().enumerate().find(|(index, entry)| {
        let mut later = entries.iter().skip(index + 1);
        is_allocatable(entry)
            && later.any(|other| is_allocatable(other) && other.range.overlaps(entry.range))
    });
    let map = match physical_map(entries) {
        Ok(map) => map,
        Err(error) => {
            assert!(error.first.0.overlaps(error.second.0));
            assert!(first_overlap.is_some());
            return;
        }
    };
    assert!(first_overlap.is_none());
    for entry in entries {
        let (start, end) = (entry.range.start().get(), entry.range.end().get());
        let first = start / FRAME_SIZE * FRAME_SIZE;
        let last = (end - 1) / FRAME_SIZE * FRAME_SIZE;
        for at in [first, start.saturating_sub(1), start, last, end - 1, end] {
            assert_eq!(
                map.owner_of(PhysAddr::new(at)),
                naive_owner(entries, at),
                "{at:#x}"
            );
        }
    }
    check_frames(&map);
}

/// What the frame allocator hands out is free by the map, and all of it comes out once.
fn check_frames(map: &PhysicalMap) {
    let free = || map.ranges(Owner::Free);
    let bytes: u64 = free().map(PhysRange::len).sum();
    if bytes > 1024 * FRAME_SIZE {
        return;
    }
    let needed = FrameInfo::needed(free());
    let records = Box::into_raw(Box::<[_]>::new_uninit_slice(needed));
    {
        // SAFETY: the allocator that gets it goes before it is freed.
        let records: &'static mut [MaybeUninit<_>] = unsafe { &mut *records };
        // SAFETY: nothing uses the memory of these frames, which is none.
        if let Ok(frames) = unsafe { FrameAllocator::new(free(), std::iter::empty(), records) } {
            let mut taken = BTreeSet::new();
            while let Some(owned) = frames.allocate(Owner::Heap) {
                let frame = owned.into_raw();
                assert!(taken.insert(frame), "twice: {frame}");
                assert_eq!(map.owner_of(frame.start()), Some(Owner::Free));
                assert_eq!(frames.owner_of(frame), Some(Owner::Heap));
            }
            assert_eq!(taken.len() as u64 * FRAME_SIZE, bytes);
            assert_eq!(frames.totals()[Owner::Heap], bytes);
        } else {
            assert_eq!(bytes, 0);
        }
    }
    // SAFETY: from `Box::into_raw` above; what used it is gone.
    drop(unsafe { Box::from_raw(records) });
}

fn check_page(tables: &Tables<&Ram>, hhdm: VirtAddr, phys: PhysAddr, expected: Shown) {
    let Some(virt) = hhdm.checked_add(phys.get()) else {
        return;
    };
    let found = tables.translate(virt).map(|found| {
        assert_eq!(found.phys, phys, "{virt}");
        (found.leaf.access(), found.leaf.cache())
    });
    let expected = match expected {
        Shown::Not => None,
        Shown::Memory => Some((Some(Access::ReadWrite), Some(Cache::WriteBack))),
        Shown::Protected => Some((Some(Access::ReadOnly), Some(Cache::WriteBack))),
        Shown::Framebuffer => Some((Some(Access::ReadWrite), Some(Cache::WriteCombining))),
    };
    assert_eq!(found, expected, "{virt} -> {phys}");
}

fuzz_target!(|input: Input| {
    let entries = input.entries();
    let read_only = input.read_only(&entries);
    let of_entries = entries.iter().map(|entry| entry.range);
    let places = places(of_entries.chain(read_only.iter().copied()));
    check_owners(&entries);

    let levels = if input.has_five_levels {
        Levels::Five
    } else {
        Levels::Four
    };
    let hhdm = VirtAddr::new(input.offset(levels));
    let largest = PageSize::ALL[usize::from(input.largest) % PageSize::ALL.len()];
    let regions = match hhdm_regions(&entries, hhdm, largest, &read_only) {
        Ok(regions) => regions,
        Err(error) => {
            assert!(matches!(error, PlanError::NotCanonical { .. }), "{error}");
            let end = entries.iter().map(|entry| entry.range.end()).max();
            assert!(end.is_some_and(|end| hhdm.checked_add(end.get()).is_none()));
            return;
        }
    };
    let bits = u32::from(input.physical_bits % 60);
    let mut plan = Plan::new(levels, bits);
    for &region in &regions {
        if let Err(error) = plan.add(region) {
            // Regions of one direct map never contradict each other.
            match error {
                PlanError::NotCanonical { .. } => {
                    let last = region.virt.checked_add(region.length - 1);
                    assert!(
                        last.is_none_or(|last| !levels.is_canonical(last)),
                        "{error}"
                    );
                }
                PlanError::BeyondPhysical { .. } => {
                    assert!((region.phys + region.length).get() > 1 << bits, "{error}");
                }
                _ => panic!("{error}"),
            }
            return;
        }
    }

    let ram = Ram::new(1 << 38);
    ram.left.set(usize::from(input.tables % 64) + 1);
    let features = Features {
        gigabyte_pages: input.has_gigabyte_pages,
    };
    let tables = Tables::new(&ram, levels, features, &ram);
    let mut tables = tables.unwrap_or_else(|error| panic!("no root: {error}"));
    for region in plan.regions() {
        // SAFETY: nobody uses what these tables map.
        if let Err(partly) = unsafe { tables.map_permanently(region, &ram) } {
            assert_eq!(partly.error, TableError::OutOfFrames);
            assert!(partly.bytes < region.length);
            assert!(tables.translate(region.virt + partly.bytes).is_none());
            assert!(tables.verify(&plan).is_err());
            return;
        }
    }
    let census = match tables.verify(&plan) {
        Ok(census) => census,
        Err(mismatch) => panic!("{mismatch}"),
    };
    let lengths = |regions: &[Region]| regions.iter().map(|region| region.length).sum::<u64>();
    assert_eq!(census.bytes, lengths(&regions));
    assert_eq!(census.tables, ram.frames().len());
    for phys in places {
        check_page(
            &tables,
            hhdm,
            PhysAddr::new(phys),
            shown(&entries, &read_only, phys),
        );
    }
});
