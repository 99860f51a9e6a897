//! The plan's rules, and the HHDM against a model that looks at one frame at a time.

use muster_memory::{
    Access, Cache, FRAME_SIZE, Kind, Levels, MemoryEntry, PageSize, PhysRange, Plan, PlanError,
    Region, hhdm,
};
use proptest::prelude::*;

use crate::maps::{HALF_4, HALF_5, Shown, shown};

const REGION: Region = Region {
    name: "region",
    virt: HALF_4,
    phys: 0x10_0000,
    length: 0x4000,
    access: Access::ReadWrite,
    cache: Cache::WriteBack,
    largest: PageSize::Size1GiB,
};

const SPAN: u64 = 40 * FRAME_SIZE;

/// Entries of every kind in a small span, with any borders, overlapping at will.
fn dense_map() -> impl Strategy<Value = Vec<MemoryEntry>> {
    let border = || prop_oneof![0..SPAN, (0..SPAN / FRAME_SIZE).prop_map(|n| n * FRAME_SIZE)];
    let entry = (border(), border(), prop::sample::select(&Kind::ALL[..]));
    let entry = entry.prop_filter_map("empty", |(one, other, kind)| {
        let range = PhysRange::from_bounds(one.min(other), one.max(other))?;
        Some(MemoryEntry { range, kind })
    });
    prop::collection::vec(entry, 0..10)
}

fn protected() -> impl Strategy<Value = Vec<PhysRange>> {
    let range = (0..SPAN, 1..4 * FRAME_SIZE);
    prop::collection::vec(
        range.prop_map(|(at, len)| PhysRange::new(at, len).unwrap()),
        0..3,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn hhdm_shows_exactly_what_the_protocol_says(
        entries in dense_map(),
        read_only in protected(),
    ) {
        let regions = hhdm(&entries, HALF_4, PageSize::Size2MiB, &read_only).unwrap();
        let mut plan = Plan::new(Levels::Four, 52);
        for region in &regions {
            plan.add(*region).unwrap();
        }
        for phys in (0..SPAN + 2 * FRAME_SIZE).step_by(FRAME_SIZE as usize) {
            let region = plan.region_at(HALF_4 + phys);
            let found = region.map(|region| {
                assert_eq!(region.virt - HALF_4, region.phys);
                (region.access, region.cache)
            });
            let expected = match shown(&entries, &read_only, phys) {
                Shown::Not => None,
                Shown::Memory => Some((Access::ReadWrite, Cache::WriteBack)),
                Shown::Protected => Some((Access::ReadOnly, Cache::WriteBack)),
                Shown::Framebuffer => Some((Access::ReadWrite, Cache::WriteCombining)),
            };
            prop_assert_eq!(found, expected, "frame {:#x}", phys);
        }
        for (low, high) in plan.regions().iter().zip(plan.regions().iter().skip(1)) {
            let touch = low.virt + low.length == high.virt;
            prop_assert!(!touch || (low.access, low.cache) != (high.access, high.cache));
        }
    }

    #[test]
    fn regions_overlap_exactly_if_they_share_a_page(
        bounds in prop::collection::vec((0..64u64, 1..16u64), 1..16),
    ) {
        let mut plan = Plan::new(Levels::Five, 52);
        let mut pages = [None; 80];
        for (place, (start, count)) in bounds.into_iter().enumerate() {
            let virt = HALF_5 + start * FRAME_SIZE;
            let region = Region { virt, length: count * FRAME_SIZE, ..REGION };
            let claimed = &mut pages[start as usize..(start + count) as usize];
            let added = plan.add(region);
            if claimed.iter().any(Option::is_some) {
                let refused = matches!(added, Err(PlanError::Overlap { .. }));
                prop_assert!(refused, "{:?}", added);
            } else {
                prop_assert_eq!(added, Ok(()));
                claimed.fill(Some((place, region)));
            }
        }
        for (page, claimed) in pages.iter().enumerate() {
            let virt = HALF_5 + page as u64 * FRAME_SIZE + 0xabc;
            prop_assert_eq!(plan.region_at(virt), claimed.as_ref().map(|(_, region)| region));
        }
        prop_assert!(plan.regions().is_sorted_by_key(|region| region.virt));
    }
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let mut plan = Plan::new(Levels::Four, 40);
    let mut refused = |region: Region, words: &str| {
        let error = plan.add(region).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(
        Region {
            length: 0,
            ..REGION
        },
        "is empty",
    );
    refused(
        Region {
            length: 0x1800,
            ..REGION
        },
        "0x1800 bytes",
    );
    refused(
        Region {
            virt: HALF_4 + 8,
            ..REGION
        },
        "whole 4096-byte pages",
    );
    refused(
        Region {
            phys: 0x10_0200,
            ..REGION
        },
        "0x100200",
    );

    refused(
        Region {
            virt: HALF_5,
            ..REGION
        },
        "48-bit virtual address space",
    );
    for (virt, length) in [
        (HALF_4 - 0x1000, 0x1000),
        (HALF_4 - 0x1000, 0x2000),
        (0x7fff_ffff_f000, 0x2000),
        (0x8000_0000_0000, 0x1000),
        (0x7fff_ffff_f000, HALF_4 - 0x7fff_ffff_f000 + 0x1000),
        (0xffff_ffff_ffff_f000, 0x2000),
        (HALF_5, 0x1000),
    ] {
        let region = Region {
            virt,
            length,
            ..REGION
        };
        assert!(matches!(
            region.check(Levels::Four),
            Err(PlanError::NotCanonical { .. })
        ));
    }

    let beyond = Region {
        phys: (1 << 40) - 0x1000,
        ..REGION
    };
    assert!(matches!(
        plan.add(beyond),
        Err(PlanError::BeyondPhysical { bits: 40, .. })
    ));
    assert!(beyond.check(Levels::Four).is_ok());
    let beyond = Region {
        phys: (1 << 52) - 0x1000,
        ..REGION
    };
    let error = Plan::new(Levels::Four, 64).add(beyond).unwrap_err();
    assert!(error.to_string().contains("have 52 bits"), "{error}");
    assert!(plan.regions().is_empty());
}

#[test]
fn the_ends_of_the_address_space_can_be_mapped() {
    let mut plan = Plan::new(Levels::Four, 52);
    let top = Region {
        virt: 0xffff_ffff_ffff_f000,
        length: 0x1000,
        ..REGION
    };
    let middle = Region {
        virt: 0x7fff_ffff_f000,
        length: 0x1000,
        ..REGION
    };
    let bottom = Region { virt: 0, ..REGION };
    for region in [top, bottom, middle] {
        plan.add(region).unwrap();
    }
    assert_eq!(plan.region_at(u64::MAX), Some(&top));
    assert_eq!(plan.region_at(0x3fff), Some(&bottom));
    assert_eq!(plan.region_at(0x4000), None);
    assert_eq!(plan.regions(), [bottom, middle, top]);
    assert_eq!(plan.levels(), Levels::Four);
}

#[test]
fn aliases_must_agree() {
    let text = Region {
        name: "text",
        access: Access::ReadExecute,
        ..REGION
    };
    let alias = Region {
        name: "alias",
        virt: HALF_4 + 0x10_0000,
        phys: 0x10_3000,
        ..REGION
    };
    let mut plan = Plan::new(Levels::Four, 52);
    plan.add(text).unwrap();
    let error = plan.add(alias).unwrap_err();
    assert_eq!(
        error,
        PlanError::WritableAlias {
            name: "alias",
            with: "text"
        }
    );
    assert!(
        error
            .to_string()
            .contains("make the writable one read-only")
    );
    let alias = Region {
        access: Access::ReadOnly,
        ..alias
    };
    let device = Region {
        cache: Cache::Uncached,
        ..alias
    };
    let error = plan.add(device).unwrap_err();
    assert_eq!(
        error,
        PlanError::CacheAlias {
            name: "alias",
            with: "text"
        }
    );
    assert!(error.to_string().contains("different cache types"));
    plan.add(alias).unwrap();
    let beside = Region {
        phys: 0x10_7000,
        virt: HALF_4 + 0x20_0000,
        ..REGION
    };
    plan.add(beside).unwrap();
    let error = plan.add(Region {
        virt: HALF_4 - 0x1000,
        phys: 0,
        ..REGION
    });
    assert!(error.is_err());
    let error = plan
        .add(Region {
            virt: HALF_4 + 0x3000,
            phys: 0,
            ..REGION
        })
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("\"text\" both claim 0xffff800000003000"),
        "{error}"
    );
}

#[test]
fn an_hhdm_that_leaves_the_address_space_is_refused() {
    let entries = [MemoryEntry {
        range: PhysRange::new(1 << 50, 0x1000).unwrap(),
        kind: Kind::Usable,
    }];
    let error = hhdm(&entries, HALF_4, PageSize::Size4KiB, &[]).unwrap_err();
    assert!(matches!(
        error,
        PlanError::NotCanonical { name: "HHDM", .. }
    ));
    let regions = hhdm(&entries, HALF_5, PageSize::Size4KiB, &[]).unwrap();
    assert_eq!(Plan::new(Levels::Five, 52).add(regions[0]), Ok(()));
    assert!(Plan::new(Levels::Four, 52).add(regions[0]).is_err());
}

#[test]
fn framebuffers_and_images_take_whole_frames() {
    let entry = |start, end, kind| MemoryEntry {
        range: PhysRange::from_bounds(start, end).unwrap(),
        kind,
    };
    let entries = [
        entry(0x1000, 0x8000, Kind::Usable),
        entry(0x8800, 0x9800, Kind::ExecutableAndModules),
        entry(0x9800, 0xb400, Kind::Framebuffer),
        entry(0xb400, 0xd000, Kind::Reserved),
    ];
    let regions = hhdm(&entries, HALF_4, PageSize::Size2MiB, &[]).unwrap();
    let bounds: Vec<_> = regions
        .iter()
        .map(|r| (r.phys, r.phys + r.length, r.cache))
        .collect();
    assert_eq!(
        bounds,
        [
            (0x1000, 0xa000, Cache::WriteBack),
            (0xa000, 0xc000, Cache::WriteCombining)
        ]
    );
}

#[test]
fn messages_are_short() {
    assert_eq!(
        Region {
            access: Access::ReadExecute,
            cache: Cache::Uncached,
            ..REGION
        }
        .to_string(),
        "region: 0xffff800000000000 -> 0x100000, 0x4000 bytes, r-x UC"
    );
    assert_eq!(
        format!("{} {}", Access::ReadOnly, Cache::WriteCombining),
        "r-- WC"
    );
    assert_eq!(format!("{:>6}|", PageSize::Size2MiB), " 2 MiB|");
    assert_eq!(
        PageSize::ALL.map(PageSize::bytes),
        [1 << 12, 1 << 21, 1 << 30]
    );
    for cache in [Cache::WriteBack, Cache::WriteCombining, Cache::Uncached] {
        assert_eq!(Cache::from_pat_index(cache.pat_index()), Some(cache));
    }
    assert_eq!(Cache::from_pat_index(1), None);
    // Bit 7 in a 4 KiB entry, bit 12 in a large one; PWT is bit 3, PCD bit 4.
    assert_eq!(
        Cache::WriteCombining.bits(PageSize::Size4KiB),
        1 << 7 | 1 << 3
    );
    assert_eq!(
        Cache::WriteCombining.bits(PageSize::Size1GiB),
        1 << 12 | 1 << 3
    );
    assert_eq!(Cache::Uncached.bits(PageSize::Size2MiB), 1 << 4 | 1 << 3);
}
