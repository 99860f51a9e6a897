//! Page tables, built over memory that exists only where tables are, checked and then corrupted.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ptr::NonNull;

use muster_boot::{Kind, MemoryEntry, hhdm_regions};
use muster_frames::{FRAME_SIZE, Frame, PhysAddr, PhysRange};
use muster_paging::{
    Access, Cache, Census, Exclusion, Features, FrameSource, Leaf, Levels, Mismatch, PageSize,
    PartlyMapped, PhysicalMemory, Plan, PlanError, Region, Rights, Step, TableError, TableView,
    Tables, TablesOf, Target, VirtAddr, VirtRange,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::changes::Alone;
use crate::maps::{HALF_4, HALF_5, memory_map};
use crate::oracle::oracle;
use crate::owner::{FrameAllocator, OwnedFrame, Owner};
use crate::ram::Ram;
use crate::scarce;
use crate::shown::{Shown, shown};
use crate::walker::{Seen, joined, walk};

/// Far above all memory in the random maps, so that a stray pointer to a table cannot pass for one
/// to memory.
const TABLES_FROM: u64 = 1 << 36;

const GIB: Features = Features {
    gigabyte_pages: true,
};
const NO_GIB: Features = Features {
    gigabyte_pages: false,
};

const REGION: Region = Region {
    name: "region",
    virt: VirtAddr::new(HALF_4),
    phys: PhysAddr::new(0x4000_0000),
    length: 0x4000,
    access: Access::ReadWrite,
    cache: Cache::WriteBack,
    largest: PageSize::Size1GiB,
};

fn new_tables(ram: &Ram, levels: Levels, features: Features) -> Tables<&Ram> {
    Tables::new(ram, levels, features, ram).unwrap()
}

/// Maps a region that may be unmapped.
pub fn map<M: PhysicalMemory>(
    tables: &mut Tables<M>,
    region: &Region,
    frames: &impl FrameSource,
) -> Result<(), PartlyMapped> {
    // SAFETY: nobody uses the addresses, and no CPU has these tables.
    unsafe { tables.map(region, frames) }
}

/// Maps a region for good.
pub fn map_permanently<M: PhysicalMemory>(
    tables: &mut Tables<M>,
    region: &Region,
    frames: &impl FrameSource,
) -> Result<(), PartlyMapped> {
    // SAFETY: as for `map`.
    unsafe { tables.map_permanently(region, frames) }
}

/// Maps a page.
pub fn map_page(
    tables: &mut Tables<&Ram>,
    virt: u64,
    number: u64,
    access: Access,
    frames: &Ram,
) -> Result<(), TableError> {
    let frame = Frame::from_number(number).unwrap();
    // SAFETY: as for `map`.
    unsafe { tables.map_page(VirtAddr::new(virt), frame, access, Cache::WriteBack, frames) }
}

fn build<'a>(ram: &'a Ram, plan: &Plan, features: Features) -> Tables<&'a Ram> {
    let mut tables = new_tables(ram, plan.levels(), features);
    for region in plan.regions() {
        map_permanently(&mut tables, region, ram).unwrap();
    }
    tables
}

fn plan_of(regions: &[Region]) -> Plan {
    let mut plan = Plan::new(Levels::Four, 52);
    for region in regions {
        plan.add(*region).unwrap();
    }
    plan
}

/// A machine: its map, where its HHDM is, and what its CPU can do.
#[derive(Clone, Debug)]
struct Machine {
    entries: Vec<MemoryEntry>,
    levels: Levels,
    offset: u64,
    features: Features,
    largest: PageSize,
}

fn machine(count: std::ops::Range<usize>) -> impl Strategy<Value = Machine> {
    let setting = (
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(&PageSize::ALL[1..]),
    );
    let slide = prop_oneof![
        8 => (0..64u64).prop_map(|n| n * PageSize::Size1GiB.bytes()),
        1 => (0..64u64).prop_map(|n| n * PageSize::Size2MiB.bytes()),
    ];
    (setting, slide).prop_flat_map(move |((five, gigabyte_pages, largest), slide)| {
        let (levels, half) = if five {
            (Levels::Five, HALF_5)
        } else {
            (Levels::Four, HALF_4)
        };
        memory_map(count.clone(), largest).prop_map(move |entries| Machine {
            entries,
            levels,
            offset: half + slide,
            features: Features { gigabyte_pages },
            largest,
        })
    })
}

/// Returns the physical memory of a kernel image: the machine's first executable, or a part of it.
fn image(machine: &Machine) -> Option<PhysRange> {
    let mut entries = machine.entries.iter();
    let entry = entries.find(|entry| entry.kind == Kind::ExecutableAndModules)?;
    let range = entry.range.covering_frames();
    PhysRange::new(range.start(), range.len().min(4 << 20))
}

fn plan(machine: &Machine) -> Plan {
    let mut plan = Plan::new(machine.levels, 52);
    let image = image(machine);
    if let Some(text) = image {
        plan.add(Region {
            name: "text",
            virt: VirtAddr::new(0xffff_ffff_8000_0000),
            phys: text.start(),
            length: text.len(),
            access: Access::ReadExecute,
            cache: Cache::WriteBack,
            largest: PageSize::Size2MiB,
        })
        .unwrap();
    }
    for region in hhdm_regions(
        &machine.entries,
        VirtAddr::new(machine.offset),
        machine.largest,
        image.as_slice(),
    )
    .unwrap()
    {
        plan.add(region).unwrap();
    }
    plan
}

fn leaves(tables: &Tables<&Ram>) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    tables.walk(&mut |leaf| leaves.push(leaf)).unwrap();
    leaves
}

fn as_seen(leaf: &Leaf) -> Seen {
    Seen {
        virt: leaf.virt.get(),
        phys: leaf.phys.get(),
        bytes: leaf.size.bytes(),
        access: leaf.access().unwrap(),
        cache: leaf.cache().unwrap(),
    }
}

/// Returns how many entries the map has.
fn check(machine: &Machine) -> Result<usize, TestCaseError> {
    let plan = plan(machine);
    let ram = Ram::new(TABLES_FROM);
    let tables = build(&ram, &plan, machine.features);

    let census = tables.verify(&plan).unwrap();
    let bytes: u64 = plan.regions().iter().map(|region| region.length).sum();
    prop_assert_eq!(census.bytes, bytes);
    prop_assert_eq!(census.tables, ram.frames().len());
    prop_assert_eq!(tables.table_count(), census.tables);
    prop_assert!(machine.features.gigabyte_pages || census.pages_1gib == 0);

    let leaves = leaves(&tables);
    prop_assert!(leaves.is_sorted_by_key(|leaf| leaf.virt));
    for leaf in &leaves {
        // The page could not have been larger.
        let region = plan.region_at(leaf.virt).unwrap();
        for size in PageSize::ALL {
            if size <= leaf.size || size > region.largest {
                continue;
            }
            if size == PageSize::Size1GiB && !machine.features.gigabyte_pages {
                continue;
            }
            let virt = region.virt.get();
            let start = leaf.virt.get() / size.bytes() * size.bytes();
            let fits = start >= virt
                && start - virt + size.bytes() <= region.length
                && region.phys.get() % size.bytes() == virt % size.bytes();
            prop_assert!(!fits, "{} could have been {}", leaf, size);
        }
    }

    // The CPU sees what the plan says, in any pieces.
    let seen = walk(&ram, tables.root().start().get(), machine.levels.count());
    let as_walked: Vec<_> = leaves.iter().map(as_seen).collect();
    prop_assert_eq!(&seen, &as_walked);
    let planned = plan.regions().iter().map(|region| Seen {
        virt: region.virt.get(),
        phys: region.phys.get(),
        bytes: region.length,
        access: region.access,
        cache: region.cache,
    });
    prop_assert_eq!(joined(seen), joined(planned));

    // Nothing executable is writable anywhere. (Only the HHDM is writable, so no two writable
    // pages map the same memory.)
    let mut writable: Vec<_> = leaves.iter().filter(|leaf| leaf.rights.writable).collect();
    writable.sort_by_key(|leaf| leaf.phys);
    for executable in leaves.iter().filter(|leaf| leaf.rights.executable) {
        let end = executable.phys + executable.size.bytes();
        let below = writable[..writable.partition_point(|leaf| leaf.phys < end)].last();
        let apart = below.is_none_or(|leaf| leaf.phys + leaf.size.bytes() <= executable.phys);
        prop_assert!(apart, "{} is writable by {:?}", executable, below);
    }
    let sum = |is_counted: fn(&Rights) -> bool| {
        let counted = leaves.iter().filter(|leaf| is_counted(&leaf.rights));
        counted.map(|leaf| leaf.size.bytes()).sum::<u64>()
    };
    let expected = Exclusion {
        executable: sum(|rights| rights.executable),
        writable: sum(|rights| rights.writable),
    };
    prop_assert_eq!(tables.verify_exclusion(), Ok(expected));

    // At every border of the map, the HHDM shows what the map alone says.
    let image = image(machine);
    for entry in &machine.entries {
        for border in [entry.range.start().get(), entry.range.end().get()] {
            for phys in [
                border.saturating_sub(FRAME_SIZE),
                border.saturating_sub(1),
                border,
            ] {
                let found = tables.translate(VirtAddr::new(machine.offset + phys));
                let expected = match shown(
                    &machine.entries,
                    image.as_slice(),
                    phys / FRAME_SIZE * FRAME_SIZE,
                ) {
                    Shown::Not => None,
                    Shown::Memory => Some((Access::ReadWrite, Cache::WriteBack)),
                    Shown::Protected => Some((Access::ReadOnly, Cache::WriteBack)),
                    Shown::Framebuffer => Some((Access::ReadWrite, Cache::WriteCombining)),
                };
                prop_assert_eq!(
                    found.map(|found| (found.phys.get(), found.leaf.access(), found.leaf.cache())),
                    expected.map(|(access, cache)| (phys, Some(access), Some(cache))),
                    "at {:#x}",
                    phys
                );
            }
        }
    }
    Ok(machine.entries.len())
}

/// The kinds of memory maps that the random ones must cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trait {
    Hole,
    ReservedOverlap,
    OverOneOfAnotherKind,
    Beyond4GiB,
    Beyond1TiB,
    OnePage,
    UnalignedReserved,
    Hundreds,
    OnePageHole,
    LargePage,
}

fn traits(machine: &Machine) -> BTreeSet<Trait> {
    let entries = &machine.entries;
    let is_handed_out = |kind| matches!(kind, Kind::Usable | Kind::BootloaderReclaimable);
    let reserved: Vec<_> = entries
        .iter()
        .filter(|entry| !is_handed_out(entry.kind))
        .collect();
    let mut sorted: Vec<_> = entries.iter().map(|entry| entry.range).collect();
    sorted.sort();
    let gaps = || {
        sorted
            .iter()
            .zip(sorted.iter().skip(1))
            .filter_map(|(low, high)| high.start().get().checked_sub(low.end().get()))
    };
    let overlaps = |entry: &&&MemoryEntry, kinds: fn(Kind) -> bool| {
        entries.iter().any(|other| {
            !std::ptr::eq(other, **entry) && kinds(other.kind) && other.range.overlaps(entry.range)
        })
    };
    let has = [
        (Trait::Hole, gaps().any(|gap| gap > 0)),
        (Trait::OnePageHole, gaps().any(|gap| gap == FRAME_SIZE)),
        (
            Trait::ReservedOverlap,
            reserved.iter().any(|entry| {
                overlaps(&entry, |kind| {
                    !matches!(kind, Kind::Usable | Kind::BootloaderReclaimable)
                })
            }),
        ),
        (
            Trait::OverOneOfAnotherKind,
            reserved
                .iter()
                .any(|entry| overlaps(&entry, |kind| kind == Kind::Usable)),
        ),
        (
            Trait::Beyond4GiB,
            sorted
                .iter()
                .any(|range| range.start() >= PhysAddr::new(1 << 32)),
        ),
        (
            Trait::Beyond1TiB,
            sorted
                .iter()
                .any(|range| range.start() >= PhysAddr::new(1 << 40)),
        ),
        (
            Trait::OnePage,
            sorted.iter().any(|range| range.len() == FRAME_SIZE),
        ),
        (
            Trait::UnalignedReserved,
            reserved
                .iter()
                .any(|entry| entry.range != entry.range.covering_frames()),
        ),
        (Trait::Hundreds, entries.len() >= 200),
        (
            Trait::LargePage,
            sorted.iter().any(|range| range.len() >= 1 << 30),
        ),
    ];
    has.into_iter()
        .filter(|(_, has)| *has)
        .map(|(which, _)| which)
        .collect()
}

#[test]
fn tables_hold_the_plan_as_the_model_says() {
    let seen = RefCell::new(BTreeSet::new());
    let check = |machine: Machine| {
        seen.borrow_mut().extend(traits(&machine));
        check(&machine)
    };
    oracle("tables of maps with few entries", 96, machine(1..16), check);
    oracle(
        "tables of maps with hundreds of entries",
        6,
        machine(200..400),
        check,
    );
    let seen = seen.take();
    assert_eq!(seen.len(), 10, "only of these kinds: {seen:?}");
}

/// Returns the bits of a present entry whose every change is a fault: present, writable, PWT, PCD, PAT
/// or page size, the address, and no-execute. (A leaf's user bit alone grants the user nothing.)
fn meaningful_bits() -> impl Strategy<Value = u32> {
    let flag = prop::sample::select(&[0u32, 1, 3, 4, 7, 63][..]);
    prop_oneof![2 => flag, 1 => 12..52u32]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_corruption_goes_unnoticed(
        machine in machine(1..8),
        flips in prop::collection::vec((any::<Index>(), meaningful_bits()), 12),
        strays in prop::collection::vec((any::<Index>(), any::<bool>(), any::<bool>()), 6),
    ) {
        let plan = plan(&machine);
        prop_assume!(!plan.regions().is_empty());
        let ram = Ram::new(TABLES_FROM);
        let tables = build(&ram, &plan, machine.features);
        // SAFETY: the same tables with as many levels, and none is given back.
        let found =
            unsafe { TableView::new(&ram, machine.levels, machine.features, tables.root()) };
        let census = tables.verify(&plan);
        prop_assert!(census.is_ok());
        prop_assert_eq!(&found.verify(&plan), &census);

        let slots = ram.frames().into_iter().flat_map(|frame| (0..512).map(move |i| (frame, i)));
        let (present, absent): (Vec<_>, Vec<_>) =
            slots.partition(|&(frame, index)| ram.entry(frame, index) & 1 != 0);

        for (place, bit) in flips {
            let &(frame, index) = place.get(&present);
            let entry = ram.entry(frame, index);
            ram.set_entry(frame, index, entry ^ 1 << bit);
            let message = format!("bit {bit} of {entry:#x}");
            prop_assert!(tables.verify(&plan).is_err(), "{}", message);
            prop_assert!(found.verify(&plan).is_err(), "{}", message);
            ram.set_entry(frame, index, entry);
        }
        for (place, large, writable) in strays {
            let &(frame, index) = place.get(&absent);
            let large = if large { 1 << 7 } else { 0 };
            let flags = 1 | u64::from(writable) << 1 | large | 1 << 63;
            ram.set_entry(frame, index, 0x8000_0000 | flags);
            prop_assert!(tables.verify(&plan).is_err());
            prop_assert!(found.verify(&plan).is_err());
            ram.set_entry(frame, index, 0);
        }
        prop_assert_eq!(tables.verify(&plan), census);
    }

    #[test]
    fn garbage_neither_faults_nor_loops(
        entries in prop::collection::vec((0..512usize, any::<u64>()), 0..64),
        five: bool,
        virt: u64,
    ) {
        let ram = Ram::new(TABLES_FROM);
        let levels = if five { Levels::Five } else { Levels::Four };
        let tables = new_tables(&ram, levels, GIB);
        for (index, entry) in entries {
            ram.set_entry(tables.root().start().get(), index, entry);
        }
        let mut count = 0;
        let walked = tables.walk(&mut |_| count += 1);
        prop_assert!(walked.is_err() || count == 0);
        prop_assert!(tables.verify(&Plan::new(levels, 52)).is_err() || walked == Ok(1));
        prop_assert_eq!(tables.translate(levels.canonical(VirtAddr::new(virt))), None);
    }
}

#[test]
fn a_window_grows_page_by_page() {
    let ram = Ram::new(TABLES_FROM);
    let mut tables = new_tables(&ram, Levels::Four, NO_GIB);
    let window = 0xffff_ff40_0000_0000;
    tables.reserve(600).unwrap();
    let mut map = |page: u64, number| {
        let virt = window + page * FRAME_SIZE;
        map_page(&mut tables, virt, number, Access::ReadWrite, &ram)
    };
    for page in 0..600 {
        map(page, 1000 - page).unwrap();
    }
    let virt = window + 5 * FRAME_SIZE;
    assert_eq!(
        map(5, 7),
        Err(TableError::AlreadyMapped {
            virt: VirtAddr::new(virt)
        })
    );
    // Root, levels 3 and 2, and two of level 1.
    assert_eq!(tables.table_count(), 5);
    let translation = tables.translate(VirtAddr::new(virt + 0x123)).unwrap();
    assert_eq!(translation.phys, PhysAddr::new(995 * FRAME_SIZE + 0x123));
    assert_eq!(translation.leaf.virt, VirtAddr::new(virt));
    assert_eq!(translation.leaf.last(), VirtAddr::new(virt + 0xfff));
    assert_eq!(
        tables.translate(VirtAddr::new(window + 600 * FRAME_SIZE)),
        None
    );
    assert_eq!(tables.translate(VirtAddr::new(0x8000_0000_0000)), None);
    assert_eq!(leaves(&tables).len(), 600);
    assert_eq!(tables.levels(), Levels::Four);
    assert!(format!("{tables:?}").contains("built: 5"));

    let misaligned = map_page(&mut tables, window + 8, 1, Access::ReadOnly, &ram);
    assert!(matches!(
        misaligned,
        Err(TableError::Region(PlanError::Misaligned { .. }))
    ));
}

/// Returns a part of the address space between places where something is mapped, or nearly.
fn window(machine: &Machine, tables: &Tables<&Ram>, ends: [(Index, u32, u64); 2]) -> VirtRange {
    let leaves = leaves(tables);
    let levels = u32::from(machine.levels.count());
    let [first, second] = ends.map(|(index, level, pages)| {
        let near = match leaves.is_empty() {
            true => HALF_4,
            false => index.get(&leaves).virt.get(),
        };
        // Where the span of a table's entry begins, of some level, or a page beside it.
        let bits = 12 + 9 * (level % levels);
        let border = near >> bits << bits;
        border.wrapping_add(pages * FRAME_SIZE) | HALF_5
    });
    let (start, end) = (first.min(second), first.max(second));
    VirtRange::new(VirtAddr::new(start), (end - start).max(FRAME_SIZE)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_second_root_reaches_all_but_a_window(
        machine in machine(1..30),
        ends in any::<[(Index, u32, bool); 2]>(),
        left in 0_usize..12,
    ) {
        let ends = ends.map(|(index, bit, beside)| (index, bit, u64::from(beside)));
        let ram = Ram::new(TABLES_FROM);
        let mut tables = build(&ram, &plan(&machine), machine.features);
        let window = window(&machine, &tables, ends);
        let all = leaves(&tables);
        let before = ram.frames();
        let is_cut = |leaf: &Leaf| {
            window.contains(leaf.virt) != window.contains(leaf.last())
                || leaf.virt < window.start() && window.last() < leaf.last()
        };
        ram.left.set(left);
        let second = tables.root_without(window, &ram);
        match second {
            Ok(second) => {
                prop_assert!(!all.iter().any(is_cut));
                prop_assert_eq!(second.tables, ram.frames().len() - before.len());
                let outside = all.iter().filter(|leaf| !window.contains(leaf.virt));
                let expected: Vec<_> = outside.map(as_seen).collect();
                let levels = machine.levels.count();
                prop_assert_eq!(walk(&ram, second.root.start().get(), levels), expected);
                // No table for anything in the window is shared.
                for frame in before {
                    let is_shared = reaches(&ram, second.root.start().get(), levels, frame);
                    let covers = span(&ram, tables.root().start().get(), levels, frame);
                    let meets = covers.is_some_and(|(first, last)| {
                        first <= window.last().get() && window.start() <= VirtAddr::new(last)
                    });
                    prop_assert!(!(is_shared && meets), "{frame:#x} is shared");
                }
            }
            Err(error) => {
                let is_right = match error {
                    TableError::OutOfFrames => ram.left.get() == left,
                    TableError::AlreadyMapped { virt } => all
                        .iter()
                        .any(|leaf| leaf.virt == virt && is_cut(leaf)),
                    _ => false,
                };
                prop_assert!(is_right, "{}", error);
                prop_assert_eq!(ram.frames(), before);
            }
        }
        // The former mappings are unchanged.
        prop_assert_eq!(leaves(&tables), all);
    }
}

/// Returns the first and last address that a table is for, if it is reached from this root.
fn span(ram: &Ram, root: u64, levels: u8, frame: u64) -> Option<(u64, u64)> {
    fn search(ram: &Ram, at: u64, level: u8, from: u64, frame: u64) -> Option<(u64, u8)> {
        if at == frame {
            return Some((from, level));
        }
        let below = (0..512)
            .filter(|_| level > 1)
            .map(|index| (index, ram.entry(at, index)));
        let tables = below.filter(|(_, entry)| entry & 1 != 0 && entry & 1 << 7 == 0);
        let mut spans = tables.filter_map(|(index, entry)| {
            let from = from | (index as u64) << (12 + 9 * (level - 1));
            search(ram, entry & 0x000f_ffff_ffff_f000, level - 1, from, frame)
        });
        spans.next()
    }

    let (from, level) = search(ram, root, levels, 0, frame)?;
    let bits = 12 + 9 * u32::from(levels);
    let first = ((from << (64 - bits)) as i64 >> (64 - bits)) as u64;
    // A root is for both halves: here the upper one alone is played with.
    let bits = 12 + 9 * u32::from(level);
    Some((first, first | ((1 << bits) - 1)))
}

fn reaches(ram: &Ram, root: u64, levels: u8, frame: u64) -> bool {
    span(ram, root, levels, frame).is_some()
}

#[test]
fn nothing_present_is_overwritten() {
    let ram = Ram::new(TABLES_FROM);
    let mut tables = new_tables(&ram, Levels::Four, GIB);
    let large = PageSize::Size1GiB.bytes();
    let region = Region {
        length: large,
        ..REGION
    };
    map(&mut tables, &region, &ram).unwrap();
    let before = leaves(&tables);
    assert_eq!(before.len(), 1);

    // Below a large page, at it, and a large page over a table.
    let small = Region {
        virt: VirtAddr::new(HALF_4 + 0x5000),
        length: 0x1000,
        ..REGION
    };
    let error = map(&mut tables, &small, &ram).unwrap_err().error;
    assert_eq!(
        error,
        TableError::AlreadyMapped {
            virt: VirtAddr::new(HALF_4 + 0x5000)
        }
    );
    assert!(map(&mut tables, &region, &ram).is_err());
    let beside = Region {
        virt: VirtAddr::new(HALF_4 + large),
        length: 0x1000,
        ..REGION
    };
    map(&mut tables, &beside, &ram).unwrap();
    let over = Region {
        length: large,
        ..beside
    };
    let error = map(&mut tables, &over, &ram).unwrap_err().error;
    assert_eq!(error.to_string(), "0xffff800040000000 is mapped already");
    assert_eq!(leaves(&tables)[0], before[0]);
    assert_eq!(leaves(&tables).len(), 2);
}

#[test]
fn the_first_address_in_use_is_named() {
    let ram = Ram::new(TABLES_FROM);
    let mut tables = new_tables(&ram, Levels::Four, GIB);
    let at = |offset| VirtAddr::new(HALF_4 + offset);
    let page = |offset| Region {
        virt: at(offset),
        length: FRAME_SIZE,
        ..REGION
    };
    let pages = [0x20_5000, 0x20_9000, 0x60_0000];
    for offset in pages {
        map(&mut tables, &page(offset), &ram).unwrap();
    }
    // Over the table of the first two pages, and over the one that leads to all tables of pages.
    let [small, large] = [PageSize::Size2MiB, PageSize::Size1GiB].map(|size| Region {
        virt: VirtAddr::new(at(0x20_5000).get() & !(size.bytes() - 1)),
        length: size.bytes(),
        ..REGION
    });
    let refused = |tables: &mut Tables<_>, region| map(tables, region, &ram).unwrap_err();
    let (mut by_small, mut by_large) = (Vec::new(), Vec::new());
    let unmappings = pages.map(|offset| {
        by_small.push(refused(&mut tables, &small));
        by_large.push(refused(&mut tables, &large));
        let range = VirtRange::new(at(offset), FRAME_SIZE).unwrap();
        // SAFETY: nobody uses what these tables map.
        unsafe { tables.unmap(range) }.unwrap()
    });
    for unmapping in unmappings {
        by_large.push(refused(&mut tables, &large));
        let unmapped = unmapping.flush(&Alone);
        tables.complete(unmapped, &ram, &mut |_| ()).unwrap();
    }
    // Only now, as a forgotten flush would hide why it failed.
    let in_use = pages.map(|offset| TableError::AlreadyMapped { virt: at(offset) });
    let unflushed = pages.map(|offset| TableError::Unflushed { virt: at(offset) });
    let expected = [in_use[0], in_use[1], unflushed[0]].map(PartlyMapped::from);
    assert_eq!(by_small, expected);
    let expected = [in_use, unflushed].map(|errors| errors.map(PartlyMapped::from));
    assert_eq!(by_large, expected.concat());
    map(&mut tables, &large, &ram).unwrap();
}

#[test]
fn running_out_of_frames_is_an_answer() {
    let ram = Ram::new(TABLES_FROM);
    ram.left.set(0);
    let none = Tables::new(&ram, Levels::Five, GIB, &ram);
    assert_eq!(none.unwrap_err(), TableError::OutOfFrames);
    ram.left.set(3);
    let mut tables = new_tables(&ram, Levels::Five, GIB);
    let error = map(&mut tables, &REGION, &ram).unwrap_err().error;
    assert!(error.to_string().contains("no frame is left"));
    assert_eq!(tables.translate(REGION.virt), None);
    // The frames that were available are not kept: two were free, and four are needed.
    assert_eq!((ram.left.get(), tables.table_count()), (2, 1));
    ram.left.set(4);
    map(&mut tables, &REGION, &ram).unwrap();
    assert_eq!(tables.table_count(), 5);
}

/// Physical memory from this address on.
const MEMORY: u64 = 0x10_0000;

/// All of it, in one piece.
struct Piece(NonNull<[[u64; 512]]>);

// SAFETY: the pages are a live, leaked allocation aligned to 4096, of which frames follow each other
// (1, 2), and which nobody uses but tables (3).
unsafe impl PhysicalMemory for Piece {
    fn pointer(&self, phys: PhysAddr) -> Option<NonNull<u8>> {
        let page = phys.get().checked_sub(MEMORY)? / FRAME_SIZE;
        let is_there = page < self.0.len() as u64;
        // SAFETY: within the pages.
        is_there.then(|| unsafe { self.0.cast::<[u64; 512]>().add(page as usize).cast() })
    }
}

#[test]
fn the_frame_allocator_s_frames_become_tables_and_come_back() {
    #[repr(C, align(4096))]
    struct Pages([[u64; 512]; 8]);

    let pages = Box::leak(Box::new(Pages([[0; 512]; 8])));
    let free = [PhysRange::new(PhysAddr::new(MEMORY), 8 * FRAME_SIZE).unwrap()];
    let storage = Box::leak(Box::new_uninit_slice(2));
    // SAFETY: nothing else uses the pages, which were just leaked, and the records are no part of them.
    let frames = unsafe { FrameAllocator::new(free.into_iter(), [].into_iter(), storage) }.unwrap();
    let source = TablesOf {
        frames: &frames,
        owner: Owner::PageTables,
    };
    let memory = Piece(NonNull::from(&mut pages.0[..]));
    let mut tables = Tables::new(memory, Levels::Four, GIB, &source).unwrap();
    let counted = || frames.totals()[Owner::PageTables] / FRAME_SIZE;
    assert_eq!(counted(), 1);
    map(&mut tables, &REGION, &source).unwrap();
    assert_eq!((counted(), tables.table_count()), (4, 4));
    // Three more tables elsewhere, and then two for which there is but one frame.
    let elsewhere = Region {
        virt: VirtAddr::new(0x1000),
        ..REGION
    };
    map(&mut tables, &elsewhere, &&source).unwrap();
    let further = Region {
        virt: VirtAddr::new(HALF_4 + (1 << 30)),
        ..REGION
    };
    let error = map(&mut tables, &further, &&source).unwrap_err();
    assert_eq!(error.error, TableError::OutOfFrames);
    assert_eq!((counted(), frames.free_frames()), (7, 1));

    let range = VirtRange::new(REGION.virt, REGION.length).unwrap();
    // SAFETY: nobody uses what these tables map.
    let unmapping = unsafe { tables.unmap(range) }.unwrap();
    tables
        .complete(unmapping.flush(&Alone), &source, &mut |_| ())
        .unwrap();
    assert_eq!((counted(), tables.table_count()), (4, 4));
}

#[test]
fn a_table_that_cannot_be_reached_is_an_error() {
    let ram = Ram::new(TABLES_FROM);
    struct Elsewhere(Owner);

    impl FrameSource for Elsewhere {
        type Owner = Owner;

        fn owner(&self) -> Owner {
            Owner::PageTables
        }

        fn take(&self) -> Option<OwnedFrame> {
            let frame = Frame::from_number(77).unwrap();
            // SAFETY: the frame is no memory that anybody can reach.
            Some(unsafe { OwnedFrame::from_raw(frame, self.0) })
        }

        fn give_back(&self, frame: OwnedFrame) {
            assert_eq!(frame.into_raw().number(), 77);
        }
    }

    let error = Tables::new(&ram, Levels::Four, GIB, &Elsewhere(Owner::PageTables)).unwrap_err();
    assert_eq!(
        error,
        TableError::Unreachable {
            phys: PhysAddr::new(77 * FRAME_SIZE)
        }
    );
    assert!(error.to_string().contains("0x4d000 cannot be reached"));

    let owner = Owner::Heap;
    let error = Tables::new(&ram, Levels::Four, GIB, &Elsewhere(owner)).unwrap_err();
    assert_eq!(error, TableError::WrongOwner { owner: owner as u8 });
    assert!(error.to_string().contains("a frame of owner 5"));

    let mut tables = new_tables(&ram, Levels::Four, GIB);
    let root = tables.root().start();
    for (entry, phys) in [((77 * FRAME_SIZE) | 3, 77 * FRAME_SIZE), (3, 0)] {
        ram.set_entry(root.get(), 256, entry);
        let error = map(&mut tables, &REGION, &ram).unwrap_err().error;
        assert_eq!(
            error,
            TableError::Unreachable {
                phys: PhysAddr::new(phys)
            }
        );
        assert_eq!(tables.translate(REGION.virt), None);
        let error = tables.walk(&mut |_| ()).unwrap_err();
        assert_eq!(
            error,
            Mismatch::Unreachable {
                virt: VirtAddr::new(HALF_4),
                phys: PhysAddr::new(phys)
            }
        );
        assert!(error.to_string().contains("cannot be reached"));
    }
}

#[test]
fn a_table_too_many_is_noticed() {
    let region = Region {
        length: 0x1000,
        ..REGION
    };
    let plan = plan_of(&[region]);
    let ram = Ram::new(TABLES_FROM);
    let tables = build(&ram, &plan, GIB);
    // An empty table maps nothing, but nobody built it into these.
    let empty = new_tables(&ram, Levels::Four, GIB).root().start();
    ram.set_entry(tables.root().start().get(), 511, empty.get() | 3);
    let error = tables.verify(&plan).unwrap_err();
    assert_eq!(
        error,
        Mismatch::Tables {
            expected: 4,
            found: 5
        }
    );
    assert!(error.to_string().contains("4 tables were built, but 5"));

    // A table that is lost is one too few.
    let nothing = plan_of(&[]);
    ram.set_entry(tables.root().start().get(), 511, 0);
    ram.set_entry(tables.root().start().get(), 256, 0);
    assert_eq!(
        tables.verify(&nothing),
        Err(Mismatch::Tables {
            expected: 4,
            found: 1
        })
    );
}

#[test]
fn a_mismatch_says_what_and_where() {
    let text = Region {
        access: Access::ReadExecute,
        largest: PageSize::Size4KiB,
        ..REGION
    };
    let data = Region {
        virt: VirtAddr::new(HALF_4 + 0x4000),
        phys: PhysAddr::new(0x5000_0000),
        length: 0x1000,
        ..REGION
    };
    let plan = plan_of(&[text, data]);
    let other = |regions: &[Region], words: &str| {
        let ram = Ram::new(TABLES_FROM);
        let error = build(&ram, &plan_of(regions), GIB)
            .verify(&plan)
            .unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("the page tables are wrong: "),
            "{message}"
        );
        assert!(message.contains(words), "{message}");
        error
    };
    let error = other(&[text], "0xffff800000004000 is not mapped");
    assert_eq!(
        error,
        Mismatch::Missing {
            region: data,
            virt: data.virt
        }
    );
    let error = other(&[data], "0xffff800000000000 is not mapped");
    assert_eq!(
        error,
        Mismatch::Missing {
            region: text,
            virt: text.virt
        }
    );
    let stray = Region {
        virt: VirtAddr::new(0x1000),
        length: 0x1000,
        ..REGION
    };
    assert!(matches!(
        other(&[stray], "is in no region"),
        Mismatch::Stray { .. }
    ));
    let stray = Region {
        virt: VirtAddr::new(HALF_4 + 0x9000),
        phys: PhysAddr::new(0),
        ..REGION
    };
    assert!(matches!(
        other(&[text, data, stray], "is in no region"),
        Mismatch::Stray { .. }
    ));
    let elsewhere = Region {
        phys: PhysAddr::new(0x6000_0000),
        ..data
    };
    let error = other(&[text, elsewhere], "should map 0x50000000");
    assert!(matches!(
        error,
        Mismatch::Address {
            expected,
            ..
        } if expected == PhysAddr::new(0x5000_0000)
    ));
    let readable = Region {
        access: Access::ReadOnly,
        ..data
    };
    let error = other(&[text, readable], "r-- WB is not as in region");
    assert!(matches!(error, Mismatch::Access { .. }));
    let device = Region {
        cache: Cache::Uncached,
        ..data
    };
    let error = other(&[text, device], "rw- UC is not as in region");
    assert!(matches!(error, Mismatch::Cache { .. }));
    let large = Region {
        length: 0x20_0000,
        ..REGION
    };
    assert!(matches!(
        other(&[large], "2 MiB page"),
        Mismatch::TooLarge { .. }
    ));

    let ram = Ram::new(TABLES_FROM);
    let tables = new_tables(&ram, Levels::Five, GIB);
    let error = tables.verify(&plan).unwrap_err();
    assert_eq!(
        error,
        Mismatch::Levels {
            expected: Levels::Four,
            found: Levels::Five
        }
    );
    assert!(error.to_string().ends_with("5 levels instead of 4"));
}

#[test]
fn entries_the_cpu_rejects_are_malformed() {
    let large = Region {
        length: PageSize::Size1GiB.bytes(),
        ..REGION
    };
    let plan = plan_of(&[large]);
    let ram = Ram::new(TABLES_FROM);
    let mut tables = build(&ram, &plan, GIB);
    let level_3 = ram.frames()[1];
    let entry = ram.entry(level_3, 0);
    assert_eq!(
        tables
            .translate(VirtAddr::new(HALF_4 + 0x123))
            .unwrap()
            .phys,
        PhysAddr::new(0x4000_0123)
    );

    // A reserved address bit of a 1 GiB page; then a large page in the root.
    ram.set_entry(level_3, 0, entry | 1 << 20);
    let error = tables.verify(&plan).unwrap_err();
    assert!(matches!(
        error,
        Mismatch::Malformed {
            virt,
            level: 3,
            ..
        } if virt.get() == HALF_4
    ));
    assert!(error.to_string().contains("which the CPU rejects"));
    assert_eq!(tables.translate(VirtAddr::new(HALF_4)), None);
    assert!(map(&mut tables, &REGION, &ram).is_err());
    ram.set_entry(level_3, 0, entry);

    let root = tables.root().start();
    let pointer = ram.entry(root.get(), 256);
    ram.set_entry(root.get(), 256, pointer | 1 << 7);
    let error = tables.verify(&plan).unwrap_err();
    assert!(matches!(
        error,
        Mismatch::Malformed {
            virt,
            level: 4,
            ..
        } if virt.get() == HALF_4
    ));

    // A pointer that denies writes, though all rights belong to the leaf.
    ram.set_entry(root.get(), 256, pointer & !2);
    let error = tables.verify(&plan).unwrap_err();
    assert!(matches!(
        error,
        Mismatch::TableEntry {
            virt,
            level: 4,
            ..
        } if virt.get() == HALF_4
    ));
    assert!(error.to_string().contains("level 4 entry"));
    let leaf = tables.translate(VirtAddr::new(HALF_4)).unwrap().leaf;
    assert_eq!(leaf.access(), Some(Access::ReadOnly));
}

/// Bit 7 is reserved at that level then.
#[test]
fn a_page_of_1_gib_is_malformed_where_the_cpu_has_none() {
    let large = Region {
        length: PageSize::Size1GiB.bytes(),
        ..REGION
    };
    let plan = plan_of(&[large]);
    let ram = Ram::new(TABLES_FROM);
    let root = build(&ram, &plan, GIB).root();
    // SAFETY: the root of tables with four levels, which do not change.
    let view = |features| unsafe { TableView::new(&ram, Levels::Four, features, root) };
    assert_eq!(view(GIB).verify(&plan).unwrap().pages_1gib, 1);

    let rejecting = view(NO_GIB);
    assert_eq!(rejecting.translate(large.virt), None);
    let target = rejecting.path(large.virt).last().map(|step| step.target);
    assert_eq!(target, Some(Target::Malformed));
    let walked = rejecting.walk(&mut |_| ()).map(|_| Census::default());
    for found in [walked, rejecting.verify(&plan)] {
        assert!(matches!(found, Err(Mismatch::Malformed { level: 3, .. })));
    }
}

#[test]
fn rights_are_what_every_level_grants() {
    let ram = Ram::new(TABLES_FROM);
    let region = Region {
        length: 0x1000,
        access: Access::ReadExecute,
        ..REGION
    };
    let tables = build(&ram, &plan_of(&[region]), GIB);
    let leaf = tables.translate(VirtAddr::new(HALF_4)).unwrap().leaf;
    assert_eq!(
        leaf.to_string(),
        "4 KiB page 0xffff800000000000 -> 0x40000000, r-x WB"
    );

    // As a loader might map it: writable, executable, write-through, and the user's.
    let [root, level_1, level_2, level_3] = ram.frames()[..] else {
        panic!("a page is mapped by four tables");
    };
    for (frame, index) in [(root, 256), (level_3, 0), (level_2, 0)] {
        ram.set_entry(frame, index, ram.entry(frame, index) | 4);
        let refused = tables.verify(&plan_of(&[region])).unwrap_err();
        assert!(matches!(refused, Mismatch::TableEntry { .. }));
    }
    ram.set_entry(level_1, 0, ram.entry(level_1, 0) | 2 | 4 | 8);
    let leaf = tables.translate(VirtAddr::new(HALF_4)).unwrap().leaf;
    assert_eq!(
        leaf.to_string(),
        "4 KiB page 0xffff800000000000 -> 0x40000000, rwx user PAT 1"
    );
    assert_eq!((leaf.access(), leaf.cache()), (None, None));
}

#[test]
fn the_path_of_an_address_is_what_the_cpu_reads() {
    let ram = Ram::new(0x100);
    let page = Region {
        virt: VirtAddr::new(HALF_4 + 0x5000),
        length: 0x1000,
        cache: Cache::Uncached,
        ..REGION
    };
    let large = Region {
        virt: VirtAddr::new(HALF_4 + 0x40_0000),
        phys: PhysAddr::new(0x6000_0000),
        length: 0x20_0000,
        access: Access::ReadExecute,
        ..REGION
    };
    let tables = build(&ram, &plan_of(&[page, large]), GIB);
    let path = |virt| tables.path(virt).collect::<Vec<Step>>();
    let [root, level_1, level_2, level_3] = ram.frames()[..] else {
        panic!("both pages are mapped by the same four tables");
    };

    let found = path(page.virt + 0x123);
    let places: Vec<_> = found
        .iter()
        .map(|step| (step.level, step.table.get(), step.index, step.target))
        .collect();
    let leaf = tables.translate(page.virt).unwrap().leaf;
    assert_eq!(leaf.virt, page.virt);
    assert_eq!(
        places,
        [
            (4, root, 256, Target::Table(PhysAddr::new(level_3))),
            (3, level_3, 0, Target::Table(PhysAddr::new(level_2))),
            (2, level_2, 0, Target::Table(PhysAddr::new(level_1))),
            (1, level_1, 5, Target::Page(leaf)),
        ]
    );
    let words: Vec<_> = found.iter().map(Step::to_string).collect();
    assert_eq!(
        words[0],
        "4 0x100000[256] 0x0000000000103023 P W A -> table 0x103000"
    );
    assert_eq!(
        words[3],
        "1 0x101000[5] 0x800000004000007b P W PWT PCD A D NX -> 4 KiB page, rw- UC"
    );

    let last = |virt| path(virt).last().copied().unwrap();
    assert_eq!(
        last(large.virt + 0x1f_ffff).to_string(),
        "2 0x102000[2] 0x00000000600000a1 P A -> 2 MiB page, r-x WB"
    );
    let nothing = last(VirtAddr::new(HALF_4 + 0x7000));
    assert_eq!((nothing.level, nothing.target), (1, Target::Nothing));
    assert!(
        nothing
            .to_string()
            .ends_with("[7] 0x0000000000000000 -> nothing")
    );
    assert_eq!(last(VirtAddr::new(0)).level, 4);
    assert_eq!(path(VirtAddr::new(0x8000_0000_0000)), []);

    // To a table that is nowhere, and to none.
    for entry in [(77 * FRAME_SIZE) | 3, 3] {
        ram.set_entry(level_2, 0, entry);
        assert_eq!(
            last(page.virt).target,
            Target::Table(PhysAddr::new(entry & !3))
        );
        assert_eq!(path(page.virt).len(), 3);
    }
    ram.set_entry(level_3, 0, 0xfff | level_2);
    assert_eq!(last(page.virt).target, Target::Malformed);
}

#[test]
fn a_census_reads_well() {
    let census = Census {
        pages_4kib: 3,
        pages_2mib: 2,
        pages_1gib: 1,
        tables: 9,
        bytes: 0x4040_3000,
    };
    assert_eq!(
        census.to_string(),
        "0x40403000 bytes in 1 pages of 1 GiB, 2 of 2 MiB, 3 of 4 KiB, by 9 tables"
    );
}

#[test]
fn no_two_tables_share_a_frame() {
    let regions = [0u64, 1 << 30, 1 << 39, 1 << 40].map(|distance| Region {
        virt: VirtAddr::new(HALF_4 + distance),
        length: 0x3000,
        ..REGION
    });
    let ram = Ram::new(TABLES_FROM);
    let tables = build(&ram, &plan_of(&regions), GIB);
    let mut pointers = BTreeSet::new();
    for frame in ram.frames() {
        for index in 0..512 {
            let entry = ram.entry(frame, index);
            if entry & 1 != 0 && entry >> 12 & 0xff_ffff_ffff >= TABLES_FROM {
                assert!(pointers.insert(entry >> 12 & 0xff_ffff_ffff));
            }
        }
    }
    assert_eq!(pointers.len() + 1, tables.table_count());
}

proptest! {
    /// A second address at which code, or a part of it, can be written, in pages of another size: the
    /// tables refuse it, and if memory was overwritten and has it nevertheless, it is found.
    #[test]
    fn code_that_can_be_written_at_another_address_is_found(
        text in (0..512_u64, 1..600_u64),
        alias in (0..1200_u64, 1..600_u64),
        sizes in (prop::sample::select(&PageSize::ALL), prop::sample::select(&PageSize::ALL)),
        is_writable in any::<bool>(),
    ) {
        let base = 0x4000_0000;
        let region = |virt, (first, pages): (u64, u64), access, largest| Region {
            virt: VirtAddr::new(virt + first * FRAME_SIZE),
            phys: PhysAddr::new(base + first * FRAME_SIZE),
            length: pages * FRAME_SIZE,
            access,
            largest,
            ..REGION
        };
        let ram = Ram::new(TABLES_FROM);
        let mut tables = new_tables(&ram, Levels::Four, GIB);
        let code = region(HALF_4, text, Access::ReadExecute, sizes.0);
        let other = region(HALF_4 + (1 << 39), alias, Access::ReadOnly, sizes.1);
        let writable = Region { access: Access::ReadWrite, ..other };
        map(&mut tables, &code, &ram).unwrap();
        let overlaps = text.0 < alias.0 + alias.1 && alias.0 < text.0 + text.1;
        // The first of them.
        let first = PhysAddr::new(base + text.0.max(alias.0) * FRAME_SIZE);
        if overlaps {
            let refused = map(&mut tables, &writable, &ram).unwrap_err();
            prop_assert_eq!(refused.bytes, 0);
            let TableError::Alias(alias) = refused.error else {
                panic!("{}", refused);
            };
            prop_assert_eq!(alias.memory.start(), first);
        }
        map(&mut tables, &other, &ram).unwrap();
        let mut virt = other.virt;
        while is_writable && virt < other.virt + other.length {
            let step = tables.path(virt).last().unwrap();
            let Target::Page(leaf) = step.target else {
                panic!("{} is mapped", virt);
            };
            ram.set_entry(step.table.get(), step.index, step.entry | 2);
            virt = leaf.last() + 1;
        }
        match tables.verify_exclusion() {
            Ok(exclusion) => {
                prop_assert!(!(overlaps && is_writable));
                let writable = if is_writable { alias.1 * FRAME_SIZE } else { 0 };
                let executable = text.1 * FRAME_SIZE;
                prop_assert_eq!(exclusion, Exclusion { executable, writable });
            }
            Err(Mismatch::WritableCode { leaf }) => {
                prop_assert!(overlaps && is_writable);
                prop_assert!((leaf.phys..leaf.phys + leaf.size.bytes()).contains(&first));
                prop_assert!(leaf.virt >= VirtAddr::new(HALF_4 + (1 << 39)));
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

/// Code in two pieces, the higher one first and mapped twice, and what can be written between them.
fn code_in_pieces(ram: &Ram) -> Tables<&Ram> {
    let mut tables = new_tables(ram, Levels::Four, GIB);
    for (place, (phys, length, access)) in (0..).zip([
        (0x8000, 0x2000, Access::ReadExecute),
        (0x3000, 0x1000, Access::ReadExecute),
        (0x9000, 0x2000, Access::ReadExecute),
        (0x4000, 0x4000, Access::ReadWrite),
        (0x2000, 0x1000, Access::ReadWrite),
    ]) {
        let region = Region {
            virt: VirtAddr::new(HALF_4 + (place << 21)),
            phys: PhysAddr::new(phys),
            length,
            access,
            ..REGION
        };
        map(&mut tables, &region, ram).unwrap();
    }
    tables
}

#[test]
fn what_can_be_written_is_found_in_any_piece_of_code() {
    for code in [None, Some(0x3000), Some(0x8000), Some(0x9000), Some(0xa000)] {
        let ram = Ram::new(TABLES_FROM);
        let tables = code_in_pieces(&ram);
        let step = tables
            .path(VirtAddr::new(HALF_4 + (3 << 21)))
            .last()
            .unwrap();
        if let Some(code) = code {
            ram.set_entry(step.table.get(), step.index, step.entry & !0x4000 | code);
        }
        let (executable, writable) = (0x5000, 0x5000);
        let expected = Exclusion {
            executable,
            writable,
        };
        match tables.verify_exclusion() {
            Ok(found) => assert_eq!((code, found), (None, expected)),
            Err(Mismatch::WritableCode { leaf }) => assert_eq!(Some(leaf.phys.get()), code),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn no_memory_to_look_for_writable_code_is_an_error() {
    let ram = Ram::new(TABLES_FROM);
    let tables = code_in_pieces(&ram);
    let error = scarce::with_blocks_up_to(0, || tables.verify_exclusion().err()).unwrap();
    assert_eq!(error, Mismatch::OutOfMemory { bytes: 16 });
    let message = "the heap has no 16 bytes to record what can be executed: free some memory";
    assert_eq!(error.to_string(), message);
}
