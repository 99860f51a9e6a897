//! The higher-half direct map.

use alloc::vec::Vec;
use core::ptr::NonNull;

use muster_frames::{PhysAddr, PhysRange};
use muster_paging::{Access, Cache, PhysicalMemory, Region, VirtAddr};

/// The higher-half direct map: the physical memory that it maps, and where.
#[derive(Debug, Clone, Copy)]
pub struct Hhdm {
    /// The address of physical 0 there.
    pub(super) base: VirtAddr,
    /// Sorted, apart from one another.
    ranges: &'static [PhysRange],
}

impl Hhdm {
    /// Creates the map, at `base`, of the part of `aliases` that is writable and cached as
    /// write-back.
    ///
    /// # Safety
    ///
    /// The loader's tables and the kernel's map all of it there, for good.
    pub(super) unsafe fn new(base: VirtAddr, aliases: &[Region]) -> Self {
        let ranges = (aliases.iter())
            .filter(|region| region.cache == Cache::WriteBack && region.access == Access::ReadWrite)
            .filter_map(Region::physical)
            .collect::<Vec<_>>()
            .leak();
        Self { base, ranges }
    }
}

// SAFETY: the ranges are memory that the loader's tables and the kernel's map
// writable at this base for good, as `new` asks.
unsafe impl PhysicalMemory for Hhdm {
    fn pointer(&self, phys: PhysAddr) -> Option<NonNull<u8>> {
        let after = self.ranges.partition_point(|range| range.start() <= phys);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        if !range.contains(phys) {
            return None;
        }
        NonNull::new((self.base + phys.get()).as_mut_ptr())
    }
}
