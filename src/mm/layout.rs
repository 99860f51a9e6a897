//! The plan of all permanent mappings: where, and with which rights and cache type.

use alloc::vec::Vec;

use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};
use muster_machine::mtrr::Mtrrs;
use muster_paging::{Access, Cache, Levels, PageSize, Plan, Region};

use super::build_error::BuildError;
use super::hhdm::Hhdm;
use crate::arch::apic;
use crate::arch::control::Features;
use crate::boot::limine::Boot;
use crate::boot::{image, window};

/// Plans the HHDM, the image and the local APIC. The stacks are added when they have frames.
///
/// # Errors
///
/// [`BuildError`], if the loader's addresses can't be used.
pub fn plan(
    boot: &Boot,
    features: &Features,
    levels: Levels,
    mtrrs: Option<&Mtrrs<'_>>,
) -> Result<(Plan, Hhdm), BuildError> {
    let mut plan = Plan::new(levels, u32::from(features.physical_bits));
    let largest = if features.gigabyte_pages {
        PageSize::Size1GiB
    } else {
        PageSize::Size2MiB
    };
    let read_only = image::sections()
        .into_iter()
        .filter(|section| section.access != Access::ReadWrite)
        .filter_map(|section| {
            PhysRange::new(boot.image.physical_of(section.start), section.length())
        })
        .collect::<Vec<_>>();
    let aliases = muster_boot::hhdm_regions(&boot.memory.entries, boot.hhdm, largest, &read_only)?;
    // SAFETY: the aliases are of memory that the loader maps at its HHDM, by the protocol, and the plan has
    // each of them at the same address (below); neither is ever unmapped.
    let hhdm = unsafe { Hhdm::new(boot.hhdm, &aliases) };
    let pieces = aliases.into_iter().flat_map(|region| {
        let borders = mtrrs.into_iter().flat_map(move |mtrrs| {
            let ranges = mtrrs.ranges(region.phys.get()..region.phys.get() + region.length);
            ranges.map(|(range, _)| PhysAddr::new(range.end))
        });
        region.cut_at(borders)
    });
    for region in pieces {
        if region.virt + (region.length - 1) >= window::ALL.start {
            return Err(BuildError::HhdmInTheWay(boot.hhdm.get()));
        }
        plan.add(region)?;
    }
    for section in image::sections() {
        plan.add(Region {
            name: section.name,
            virt: section.start,
            phys: boot.image.physical_of(section.start),
            length: section.length(),
            access: section.access,
            cache: Cache::WriteBack,
            largest: PageSize::Size2MiB,
        })?;
    }
    if let Some(phys) = apic::physical_base() {
        plan.add(Region {
            name: "local APIC",
            virt: window::DEVICES.start,
            phys,
            length: FRAME_SIZE,
            access: Access::ReadWrite,
            cache: Cache::Uncached,
            largest: PageSize::Size4KiB,
        })?;
    }
    Ok((plan, hhdm))
}
