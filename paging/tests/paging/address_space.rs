//! Each byte of a small machine's memory: whose it is, where it is shown, and how, worked out by
//! painting the entries of its memory map onto an array, byte by byte.

use std::cell::RefCell;
use std::collections::HashSet;
use std::mem::{Discriminant, discriminant};

use muster_boot::{Kind, MemoryEntry, hhdm_regions};
use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};
use muster_paging::{
    Access, Cache, Features, Levels, PageSize, Plan, PlanError, Region, Tables, VirtAddr,
};
use proptest::prelude::*;

use crate::maps::{HALF_4, HALF_5};
use crate::oracle::oracle;
use crate::owner::{Owner, physical_map};
use crate::ram::Ram;
use crate::tables::map_permanently;

const FRAME: usize = FRAME_SIZE as usize;
const FRAMES: usize = 12;
const BYTES: usize = FRAMES * FRAME;

/// The kinds that the entries give a byte.
#[derive(Clone, Default)]
struct Painted {
    /// Kinds of all entries that have it.
    kinds: Vec<Kind>,
    is_protected: bool,
}

fn paint(entries: &[MemoryEntry], read_only: &[PhysRange]) -> Vec<Painted> {
    let mut bytes = vec![Painted::default(); BYTES];
    for entry in entries {
        for byte in entry.range.start().get()..entry.range.end().get() {
            bytes[byte as usize].kinds.push(entry.kind);
        }
    }
    for range in read_only {
        for byte in range.start().get()..range.end().get() {
            bytes[byte as usize].is_protected = true;
        }
    }
    bytes
}

fn whose(kind: Kind) -> Owner {
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

/// Returns the owner of each byte of a frame.
fn owners(frame: &[Painted], is_first: bool) -> Vec<Option<Owner>> {
    let strongest = |byte: &Painted| byte.kinds.iter().copied().max().map(whose);
    let owners: Vec<_> = frame.iter().map(strongest).collect();
    let is_whole = owners.iter().all(|owner| *owner == owners[0]);
    let corrected = |owner: Option<Owner>| match owner {
        Some(Owner::Free | Owner::Loader) if !is_whole => Some(Owner::Reserved),
        Some(Owner::Free | Owner::Loader) if is_first => Some(Owner::NullFrame),
        owner => owner,
    };
    owners.into_iter().map(corrected).collect()
}

/// Returns how the direct map shows a frame, if it does.
fn shown(frame: &[Painted]) -> Option<(Access, Cache)> {
    let has = |kinds: &[Kind]| {
        frame
            .iter()
            .any(|byte| byte.kinds.iter().any(|kind| kinds.contains(kind)))
    };
    let is_protected = frame.iter().any(|byte| byte.is_protected);
    let memory = match is_protected {
        true => (Access::ReadOnly, Cache::WriteBack),
        false => (Access::ReadWrite, Cache::WriteBack),
    };
    if has(&[Kind::ExecutableAndModules]) {
        Some(memory)
    } else if has(&[Kind::Framebuffer]) {
        Some((Access::ReadWrite, Cache::WriteCombining))
    } else if has(&[
        Kind::AcpiReclaimable,
        Kind::AcpiNvs,
        Kind::ReservedMapped,
        Kind::Reserved,
        Kind::Bad,
    ]) {
        None
    } else {
        let is_whole = frame.iter().all(|byte| !byte.kinds.is_empty());
        is_whole.then_some(memory)
    }
}

fn range() -> impl Strategy<Value = PhysRange> {
    let border = || prop_oneof![0..=BYTES, (0..=FRAMES).prop_map(|frame| frame * FRAME)];
    (border(), border()).prop_filter_map("empty", |(one, other)| {
        PhysRange::from_bounds(
            PhysAddr::new(one.min(other) as u64),
            PhysAddr::new(one.max(other) as u64),
        )
    })
}

/// Entries of all kinds with any borders, in any order, that overlap at will, except where a map
/// would be refused for it.
fn entries() -> impl Strategy<Value = Vec<MemoryEntry>> {
    let kind = prop_oneof![
        3 => Just(Kind::Usable),
        1 => Just(Kind::BootloaderReclaimable),
        4 => prop::sample::select(&Kind::ALL[2..]),
    ];
    prop::collection::vec((range(), kind), 0..10).prop_map(|entries| {
        let mut sound: Vec<MemoryEntry> = Vec::new();
        for (range, kind) in entries {
            let is_handed_out = |kind| matches!(kind, Kind::Usable | Kind::BootloaderReclaimable);
            let clashes = |other: &MemoryEntry| {
                is_handed_out(other.kind)
                    && range.start() < other.range.end()
                    && other.range.start() < range.end()
            };
            if !is_handed_out(kind) || !sound.iter().any(clashes) {
                sound.push(MemoryEntry { range, kind });
            }
        }
        sound
    })
}

fn check_bytes(entries: &[MemoryEntry], read_only: &[PhysRange]) -> Result<usize, TestCaseError> {
    let map = physical_map(entries).unwrap();
    let mut plan = Plan::new(Levels::Four, 40);
    for region in hhdm_regions(
        entries,
        VirtAddr::new(HALF_4),
        PageSize::Size2MiB,
        read_only,
    )
    .unwrap()
    {
        plan.add(region).unwrap();
    }
    let ram = Ram::new(1 << 24);
    let features = Features::default();
    let mut tables = Tables::new(&ram, Levels::Four, features, &ram).unwrap();
    for region in plan.regions() {
        map_permanently(&mut tables, region, &ram).unwrap();
    }

    let painted = paint(entries, read_only);
    for (number, frame) in painted.chunks(FRAME).enumerate() {
        let shown = shown(frame);
        for (offset, owner) in owners(frame, number == 0).into_iter().enumerate() {
            let phys = (number * FRAME + offset) as u64;
            let virt = HALF_4 + phys;
            prop_assert_eq!(map.owner_of(PhysAddr::new(phys)), owner, "byte {:#x}", phys);
            let planned = plan.region_at(VirtAddr::new(virt)).map(|region| {
                let offset = virt - region.virt.get();
                (region.phys + offset, region.access, region.cache)
            });
            let expected = shown.map(|(access, cache)| (PhysAddr::new(phys), access, cache));
            prop_assert_eq!(planned, expected, "byte {:#x}", phys);
            if offset.is_multiple_of(64) || offset == FRAME - 1 {
                let mapped = tables.translate(VirtAddr::new(virt)).map(|found| {
                    let leaf = found.leaf;
                    (found.phys, leaf.access().unwrap(), leaf.cache().unwrap())
                });
                prop_assert_eq!(mapped, expected, "byte {:#x}", phys);
            }
        }
    }
    for (low, high) in plan.regions().iter().zip(plan.regions().iter().skip(1)) {
        let touch = low.virt + low.length == high.virt;
        prop_assert!(!touch || (low.access, low.cache) != (high.access, high.cache));
    }
    for phys in [BYTES as u64, 1 << 21, 1 << 30, 1 << 39] {
        prop_assert_eq!(map.owner_of(PhysAddr::new(phys)), None);
        prop_assert_eq!(plan.region_at(VirtAddr::new(HALF_4 + phys)), None);
        prop_assert_eq!(tables.translate(VirtAddr::new(HALF_4 + phys)), None);
    }
    Ok(BYTES)
}

#[test]
fn each_byte_is_whose_and_shown_as_the_model_says() {
    let values = (entries(), prop::collection::vec(range(), 0..2));
    oracle(
        "bytes of memory maps",
        96,
        values,
        |(entries, read_only)| check_bytes(&entries, &read_only),
    );
}

/// Regions are named by their places.
const NAMES: [&str; 16] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15",
];

/// Where the address space has ends, and some place in the midst.
const PLACES: [u64; 7] = [
    0,
    0x7fff_ffff_c000,
    HALF_4,
    HALF_4 + (1 << 40),
    0x00ff_ffff_ffff_c000,
    HALF_5,
    0xffff_ffff_ffff_a000,
];

const PHYSICAL_BITS: u32 = 36;

fn region() -> impl Strategy<Value = Region> {
    let distance =
        || prop_oneof![12 => (-4..12i64).prop_map(|page| page * 4096), 1 => -5000..5000i64];
    let virt = (prop::sample::select(&PLACES[..]), distance());
    let phys = (
        prop_oneof![10 => Just(0x10_0000), 2 => prop::sample::select(&[1 << PHYSICAL_BITS, 1 << 52][..])],
        distance(),
    );
    // How far it is from one half of the address space to the other.
    let hole = prop::sample::select(&[HALF_4 - (1 << 47), HALF_5 - (1 << 56)][..]);
    let length = prop_oneof![
        12 => (1..6u64).prop_map(|pages| pages * 4096),
        1 => 0..9000u64,
        1 => Just(0),
        1 => (hole, 0..12u64).prop_map(|(hole, pages)| hole + pages * 4096),
    ];
    let access = [Access::ReadOnly, Access::ReadWrite, Access::ReadExecute];
    let cache = [Cache::WriteBack, Cache::WriteCombining, Cache::Uncached];
    let how = (
        prop::sample::select(access.to_vec()),
        prop_oneof![6 => Just(cache[0]), 2 => prop::sample::select(cache.to_vec())],
        prop::sample::select(&PageSize::ALL[..]),
    );
    let place = |(place, distance): (u64, i64)| place.wrapping_add_signed(distance);
    (virt, phys, length, how).prop_map(move |(virt, phys, length, (access, cache, largest))| {
        Region {
            name: "",
            virt: VirtAddr::new(place(virt)),
            phys: PhysAddr::new(place(phys)),
            length,
            access,
            cache,
            largest,
        }
    })
}

/// Returns the address of each page of a region, and of its frame.
fn pages(region: &Region) -> Vec<(u128, u128)> {
    (0..u128::from(region.length))
        .step_by(FRAME)
        .map(|offset| {
            (
                u128::from(region.virt.get()) + offset,
                u128::from(region.phys.get()) + offset,
            )
        })
        .collect()
}

/// Returns whether a plan with these regions takes another, or why not, page by page.
fn expected(taken: &[Region], region: &Region, levels: Levels) -> Result<(), PlanError> {
    let Region {
        name,
        virt,
        phys,
        length,
        ..
    } = *region;
    if length == 0 {
        return Err(PlanError::Empty { name });
    }
    if [virt.get(), phys.get(), length]
        .iter()
        .any(|number| number % FRAME_SIZE != 0)
    {
        return Err(PlanError::Misaligned {
            name,
            virt,
            phys,
            length,
        });
    }
    let bits = levels.bits();
    let half = 1u128 << (bits - 1);
    let low = 0..half;
    let high = (1u128 << 64) - half..1 << 64;
    let start = u128::from(virt.get());
    let end = start + u128::from(length);
    let all_in = |half: &std::ops::Range<u128>| half.contains(&start) && end <= half.end;
    if !all_in(&low) && !all_in(&high) {
        return Err(PlanError::NotCanonical {
            name,
            virt,
            length,
            bits,
        });
    }
    for bits in [52, PHYSICAL_BITS] {
        if u128::from(phys.get()) + u128::from(length) > 1 << bits {
            return Err(PlanError::BeyondPhysical {
                name,
                phys,
                length,
                bits,
            });
        }
    }
    let pages_of = pages(region);
    let mut taken = taken.to_vec();
    taken.sort_by_key(|other| other.virt);
    for other in &taken {
        let with = other.name;
        let of_other = pages(other);
        let shared = pages_of
            .iter()
            .find(|(virt, _)| of_other.iter().any(|(taken, _)| taken == virt));
        if let Some((virt, _)) = shared {
            return Err(PlanError::Overlap {
                name,
                with,
                virt: VirtAddr::new(*virt as u64),
            });
        }
        if !pages_of
            .iter()
            .any(|(_, phys)| of_other.iter().any(|(_, shown)| shown == phys))
        {
            continue;
        }
        let accesses = [region.access, other.access];
        if accesses.contains(&Access::ReadWrite) && accesses.contains(&Access::ReadExecute) {
            return Err(PlanError::WritableAlias { name, with });
        }
        if region.cache != other.cache {
            return Err(PlanError::CacheAlias { name, with });
        }
    }
    Ok(())
}

fn check_plan(
    levels: Levels,
    regions: Vec<Region>,
    seen: &RefCell<HashSet<Discriminant<PlanError>>>,
) -> Result<usize, TestCaseError> {
    let steps = regions.len();
    let mut plan = Plan::new(levels, PHYSICAL_BITS);
    let mut taken: Vec<Region> = Vec::new();
    for (mut region, name) in regions.into_iter().zip(NAMES) {
        region.name = name;
        let expected = expected(&taken, &region, levels);
        prop_assert_eq!(plan.add(region), expected);
        match expected {
            Ok(()) => taken.push(region),
            Err(error) => {
                seen.borrow_mut().insert(discriminant(&error));
            }
        }
    }
    taken.sort_by_key(|region| region.virt);
    prop_assert_eq!(plan.regions(), &taken[..]);
    for place in PLACES {
        for page in -8..20i64 {
            let virt = place.wrapping_add_signed(page * 4096);
            let shows = |region: &&Region| {
                pages(region)
                    .iter()
                    .any(|(page, _)| *page == u128::from(virt))
            };
            for virt in [virt, virt + 4095] {
                prop_assert_eq!(
                    plan.region_at(VirtAddr::new(virt)),
                    taken.iter().find(shows)
                );
            }
        }
    }
    Ok(steps)
}

#[test]
fn a_plan_takes_what_the_model_takes() {
    let levels = prop::sample::select(&[Levels::Four, Levels::Five][..]);
    let regions = prop::collection::vec(region(), 1..=NAMES.len());
    let seen = RefCell::default();
    oracle(
        "plans of regions",
        512,
        (levels, regions),
        |(levels, regions)| check_plan(levels, regions, &seen),
    );
    assert_eq!(seen.take().len(), 7, "some error never came up");
}
