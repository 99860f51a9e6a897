//! The plan's rules, by example.

use muster_boot::{Kind, MemoryEntry, hhdm_regions};
use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};
use muster_paging::{Access, Cache, Levels, PageSize, Plan, PlanError, Region, VirtAddr};
use proptest::collection::btree_set;
use proptest::prelude::*;

use crate::maps::{HALF_4, HALF_5};
use crate::scarce;

const REGION: Region = Region {
    name: "region",
    virt: VirtAddr::new(HALF_4),
    phys: PhysAddr::new(0x10_0000),
    length: 0x4000,
    access: Access::ReadWrite,
    cache: Cache::WriteBack,
    largest: PageSize::Size1GiB,
};

proptest! {
    #[test]
    fn no_piece_has_a_border_inside_and_all_of_them_are_the_region(
        first in 0..64u64,
        pages in 1..64u64,
        borders in btree_set(0..0x8_0000u64, 0..12),
        aligned in any::<bool>(),
    ) {
        let region = Region {
            phys: PhysAddr::new(first * FRAME_SIZE),
            length: pages * FRAME_SIZE,
            ..REGION
        };
        let borders: Vec<_> = (borders.into_iter())
            .map(|border| if aligned { border & !(FRAME_SIZE - 1) } else { border })
            .collect();
        let counts = |border: &u64| border.is_multiple_of(FRAME_SIZE);
        let mut offset = 0;
        for piece in region.cut_at(borders.iter().copied().map(PhysAddr::new)) {
            let expected = Region {
                virt: region.virt + offset,
                phys: region.phys + offset,
                length: piece.length,
                ..region
            };
            prop_assert_eq!(piece, expected);
            prop_assert!(piece.length > 0);
            let end = piece.phys + piece.length;
            prop_assert!(borders.iter().filter(|border| counts(border)).all(|&at| at <= piece.phys.get() || at >= end.get()));
            offset += piece.length;
            prop_assert!(offset == region.length || borders.contains(&end.get()), "cut for nothing");
        }
        prop_assert_eq!(offset, region.length);
    }
}

#[test]
fn no_memory_for_a_region_is_an_error() {
    let mut plan = Plan::new(Levels::Four, 40);
    let at = |virt| Region { virt, ..REGION };
    let error = scarce::with_blocks_up_to(0, || plan.add(REGION).unwrap_err());
    let bytes = size_of::<Region>();
    assert_eq!(
        error,
        PlanError::OutOfMemory {
            name: "region",
            bytes
        }
    );
    assert!(error.to_string().contains("give it a larger boot arena"));
    assert_eq!(plan.regions(), []);

    // There is room for some more, and those stay as they are when it is used up.
    plan.add(REGION).unwrap();
    let mut virt = HALF_4;
    let (before, error) = loop {
        virt += REGION.length;
        let before = plan.regions().to_vec();
        if let Some(error) =
            scarce::with_blocks_up_to(0, || plan.add(at(VirtAddr::new(virt))).err())
        {
            break (before, error);
        }
    };
    assert_eq!(plan.regions(), before);
    let bytes = (plan.regions().len() + 1) * size_of::<Region>();
    assert!(matches!(error, PlanError::OutOfMemory { bytes: told, .. } if told == bytes));
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
            virt: VirtAddr::new(HALF_4 + 8),
            ..REGION
        },
        "whole 4096-byte pages",
    );
    refused(
        Region {
            phys: PhysAddr::new(0x10_0200),
            ..REGION
        },
        "0x100200",
    );

    refused(
        Region {
            virt: VirtAddr::new(HALF_5),
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
            virt: VirtAddr::new(virt),
            length,
            ..REGION
        };
        assert!(matches!(
            region.check(Levels::Four),
            Err(PlanError::NotCanonical { .. })
        ));
    }

    let beyond = Region {
        phys: PhysAddr::new((1 << 40) - 0x1000),
        ..REGION
    };
    assert!(matches!(
        plan.add(beyond),
        Err(PlanError::BeyondPhysical { bits: 40, .. })
    ));
    assert!(beyond.check(Levels::Four).is_ok());
    let beyond = Region {
        phys: PhysAddr::new((1 << 52) - 0x1000),
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
        virt: VirtAddr::new(0xffff_ffff_ffff_f000),
        length: 0x1000,
        ..REGION
    };
    let middle = Region {
        virt: VirtAddr::new(0x7fff_ffff_f000),
        length: 0x1000,
        ..REGION
    };
    let bottom = Region {
        virt: VirtAddr::new(0),
        ..REGION
    };
    for region in [top, bottom, middle] {
        plan.add(region).unwrap();
    }
    assert_eq!(plan.region_at(VirtAddr::new(u64::MAX)), Some(&top));
    assert_eq!(plan.region_at(VirtAddr::new(0x3fff)), Some(&bottom));
    assert_eq!(plan.region_at(VirtAddr::new(0x4000)), None);
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
        virt: VirtAddr::new(HALF_4 + 0x10_0000),
        phys: PhysAddr::new(0x10_3000),
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
        phys: PhysAddr::new(0x10_7000),
        virt: VirtAddr::new(HALF_4 + 0x20_0000),
        ..REGION
    };
    plan.add(beside).unwrap();
    let error = plan.add(Region {
        virt: VirtAddr::new(HALF_4 - 0x1000),
        phys: PhysAddr::new(0),
        ..REGION
    });
    assert!(error.is_err());
    let error = plan
        .add(Region {
            virt: VirtAddr::new(HALF_4 + 0x3000),
            phys: PhysAddr::new(0),
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
        range: PhysRange::new(PhysAddr::new(1 << 50), 0x1000).unwrap(),
        kind: Kind::Usable,
    }];
    let error = hhdm_regions(&entries, VirtAddr::new(HALF_4), PageSize::Size4KiB, &[]).unwrap_err();
    assert!(matches!(
        error,
        PlanError::NotCanonical { name: "HHDM", .. }
    ));
    let regions = hhdm_regions(&entries, VirtAddr::new(HALF_5), PageSize::Size4KiB, &[]).unwrap();
    assert_eq!(Plan::new(Levels::Five, 52).add(regions[0]), Ok(()));
    assert!(Plan::new(Levels::Four, 52).add(regions[0]).is_err());
}

#[test]
fn framebuffers_and_images_take_whole_frames() {
    let entry = |start, end, kind| MemoryEntry {
        range: PhysRange::from_bounds(PhysAddr::new(start), PhysAddr::new(end)).unwrap(),
        kind,
    };
    let entries = [
        entry(0x1000, 0x8000, Kind::Usable),
        entry(0x8800, 0x9800, Kind::ExecutableAndModules),
        entry(0x9800, 0xb400, Kind::Framebuffer),
        entry(0xb400, 0xd000, Kind::Reserved),
    ];
    let regions = hhdm_regions(&entries, VirtAddr::new(HALF_4), PageSize::Size2MiB, &[]).unwrap();
    let bounds: Vec<_> = regions
        .iter()
        .map(|r| (r.phys.get(), (r.phys + r.length).get(), r.cache))
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

#[test]
fn a_region_that_no_plan_takes_has_no_piece_that_one_does() {
    let beyond = Region {
        virt: VirtAddr::new(!0xfff),
        length: 0x2000,
        ..REGION
    };
    let refused = Err(PlanError::NotCanonical {
        name: "region",
        virt: beyond.virt,
        length: beyond.length,
        bits: 48,
    });
    assert_eq!(beyond.check(Levels::Four), refused);
    let pieces: Vec<_> = beyond.cut_at([REGION.phys + 0x1000]).collect();
    assert_eq!(pieces, [beyond]);
}
