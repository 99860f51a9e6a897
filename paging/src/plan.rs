//! The mapping plan: which virtual memory maps which physical memory, and how.
//!
//! A [`Plan`] is data: it can be printed, tested, and compared with the tables built from it
//! ([`Tables::verify`](crate::Tables::verify)).

mod attributes;
mod error;
mod levels;
mod region;

use crate::virt_addr::VirtAddr;
use alloc::vec::Vec;

pub(crate) use attributes::pat_index;
pub use attributes::{Access, Cache, PAT, PageSize};
pub use error::PlanError;
pub use levels::Levels;
pub use region::Region;

/// The plan of all that is to be mapped.
///
/// It proves that regions consist of whole pages and of addresses that exist; no virtual address is in
/// two of them; no physical memory is writable in one and executable in another, or cached in two ways.
/// It does not prove that the physical memory is there and is what the region's name says.
///
/// ```
/// use muster_frames::PhysAddr;
/// use muster_paging::{Access, Cache, Levels, PageSize, Plan, PlanError, Region, VirtAddr};
///
/// let text = Region {
///     name: "text",
///     virt: VirtAddr::new(0xffff_ffff_8000_0000),
///     phys: PhysAddr::new(0x20_0000),
///     length: 0x1000,
///     access: Access::ReadExecute,
///     cache: Cache::WriteBack,
///     largest: PageSize::Size2MiB,
/// };
/// let mut plan = Plan::new(Levels::Four, 40);
/// plan.add(text)?;
/// let virt = VirtAddr::new(0x1000);
/// let alias = Region { name: "alias", virt, access: Access::ReadWrite, ..text };
/// assert_eq!(plan.add(alias), Err(PlanError::WritableAlias { name: "alias", with: "text" }));
/// assert_eq!(plan.region_at(text.virt + 0xfff), Some(&text));
/// # Ok::<(), PlanError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    levels: Levels,
    physical_bits: u32,
    regions: Vec<Region>,
}

impl Plan {
    /// Creates an empty plan for tables of `levels` levels on a CPU whose physical addresses have
    /// `physical_bits` bits (MAXPHYADDR, CPUID 8000_0008h EAX bits 7–0; more than 52 counts as 52).
    pub const fn new(levels: Levels, physical_bits: u32) -> Self {
        let physical_bits = if physical_bits > 52 {
            52
        } else {
            physical_bits
        };
        Self {
            levels,
            physical_bits,
            regions: Vec::new(),
        }
    }

    /// Returns how many levels the tables have.
    pub const fn levels(&self) -> Levels {
        self.levels
    }

    /// Takes a region in.
    ///
    /// # Errors
    ///
    /// See [`PlanError`]; the plan is unchanged then.
    pub fn add(&mut self, region: Region) -> Result<(), PlanError> {
        let name = region.name;
        region.check(self.levels)?;
        if region
            .physical()
            .is_none_or(|physical| physical.end().get() > 1 << self.physical_bits)
        {
            return Err(PlanError::BeyondPhysical {
                name,
                phys: region.phys,
                length: region.length,
                bits: self.physical_bits,
            });
        }
        for other in &self.regions {
            let with = other.name;
            if region.overlaps(other) {
                return Err(PlanError::Overlap {
                    name,
                    with,
                    virt: region.virt.max(other.virt),
                });
            }
            if !region.aliases(other) {
                continue;
            }
            if matches!(
                (region.access, other.access),
                (Access::ReadWrite, Access::ReadExecute) | (Access::ReadExecute, Access::ReadWrite)
            ) {
                return Err(PlanError::WritableAlias { name, with });
            }
            if region.cache != other.cache {
                return Err(PlanError::CacheAlias { name, with });
            }
        }
        let bytes = (self.regions.len() + 1) * size_of::<Region>();
        self.regions
            .try_reserve(1)
            .map_err(|_| PlanError::OutOfMemory { name, bytes })?;
        let place = self
            .regions
            .partition_point(|other| other.virt < region.virt);
        self.regions.insert(place, region);
        Ok(())
    }

    /// Returns the regions, sorted by virtual address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Returns the region that the virtual address lies in.
    pub fn region_at(&self, virt: VirtAddr) -> Option<&Region> {
        let after = self.regions.partition_point(|region| region.virt <= virt);
        self.regions
            .get(after.checked_sub(1)?)
            .filter(|region| region.contains(virt))
    }
}
