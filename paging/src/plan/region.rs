//! A range of virtual memory, and what it maps.

use crate::virt_addr::VirtAddr;
use core::fmt;

use super::{Access, Cache, Levels, PageSize, PlanError};
use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};

/// One range of virtual memory that maps one range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its name in messages.
    pub name: &'static str,
    /// The first virtual address; a multiple of [`FRAME_SIZE`].
    pub virt: VirtAddr,
    /// The physical address it maps; a multiple of [`FRAME_SIZE`].
    pub phys: PhysAddr,
    /// Bytes; a multiple of [`FRAME_SIZE`], not 0.
    pub length: u64,
    /// The rights of the kernel to it.
    pub access: Access,
    /// Its cache type.
    pub cache: Cache,
    /// The largest pages it may be mapped with.
    pub largest: PageSize,
}

impl Region {
    /// Returns the last virtual address; none if that overflows. (One past it may be 2^64.)
    pub(crate) fn last(&self) -> Option<VirtAddr> {
        self.virt.checked_add(self.length.checked_sub(1)?)
    }

    /// Returns whether the virtual address lies in the region.
    pub fn contains(&self, virt: VirtAddr) -> bool {
        virt.checked_sub(self.virt)
            .is_some_and(|offset| offset < self.length)
    }

    /// Cuts the region at these physical addresses, which ascend, so that no large page of what comes of it
    /// crosses one. An address outside it, or that is no multiple of [`FRAME_SIZE`], cuts nothing.
    ///
    /// Intel SDM vol. 3, 12.11.9 "Large Page Size Considerations": a large page must lie in memory that the
    /// MTRRs give one type.
    ///
    /// ```
    /// use muster_frames::PhysAddr;
    /// use muster_paging::{Access, Cache, PageSize, Region, VirtAddr};
    ///
    /// let region = Region {
    ///     name: "HHDM",
    ///     virt: VirtAddr::new(0xffff_8000_0010_0000),
    ///     phys: PhysAddr::new(0x10_0000),
    ///     length: 0x40_0000,
    ///     access: Access::ReadWrite,
    ///     cache: Cache::WriteBack,
    ///     largest: PageSize::Size2MiB,
    /// };
    /// let pieces = region.cut_at([0x1000, 0x10_0000, 0x30_0000, 0x50_0000].map(PhysAddr::new));
    /// let pieces: Vec<_> = pieces.map(|piece| (piece.virt.get(), piece.phys.get(), piece.length)).collect();
    /// assert_eq!(pieces, [
    ///     (0xffff_8000_0010_0000, 0x10_0000, 0x20_0000),
    ///     (0xffff_8000_0030_0000, 0x30_0000, 0x20_0000),
    /// ]);
    /// ```
    pub fn cut_at(self, borders: impl IntoIterator<Item = PhysAddr>) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        let mut borders = borders.into_iter();
        core::iter::from_fn(move || {
            let whole = rest.take()?;
            let inside = |&border: &PhysAddr| {
                border.is_multiple_of(FRAME_SIZE)
                    && border > whole.phys
                    && border - whole.phys < whole.length
            };
            // A region that goes on beyond the last address stays in one piece, so that it is refused.
            let cut = (borders.find(inside)).and_then(|border| {
                let length = border - whole.phys;
                Some((border, length, whole.virt.checked_add(length)?))
            });
            let Some((border, length, virt)) = cut else {
                return Some(whole);
            };
            rest = Some(Self {
                virt,
                phys: border,
                length: whole.length - length,
                ..whole
            });
            Some(Self { length, ..whole })
        })
    }

    /// Returns the physical memory it maps; `None` if it is empty or beyond what can exist.
    pub fn physical(&self) -> Option<PhysRange> {
        PhysRange::new(self.phys, self.length)
    }

    /// Checks a region by itself.
    ///
    /// # Errors
    ///
    /// [`PlanError::Empty`], [`PlanError::Misaligned`], [`PlanError::NotCanonical`] or
    /// [`PlanError::BeyondPhysical`].
    pub fn check(&self, levels: Levels) -> Result<(), PlanError> {
        let Self {
            name,
            virt,
            phys,
            length,
            ..
        } = *self;
        if length == 0 {
            return Err(PlanError::Empty { name });
        }
        if !(virt.get() | phys.get() | length).is_multiple_of(FRAME_SIZE) {
            return Err(PlanError::Misaligned {
                name,
                virt,
                phys,
                length,
            });
        }
        // Both ends canonical and in the same half: the hole between the halves is excluded.
        let upper_bit = levels.bits() - 1;
        let fits = self.last().is_some_and(|last| {
            levels.is_canonical(virt)
                && levels.is_canonical(last)
                && virt.get() >> upper_bit == last.get() >> upper_bit
        });
        if !fits {
            return Err(PlanError::NotCanonical {
                name,
                virt,
                length,
                bits: levels.bits(),
            });
        }
        if self.physical().is_none() {
            return Err(PlanError::BeyondPhysical {
                name,
                phys,
                length,
                bits: 52,
            });
        }
        Ok(())
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self.last(), other.last()) {
            (Some(last), Some(other_last)) => self.virt <= other_last && other.virt <= last,
            _ => false,
        }
    }

    /// Returns whether the two map some physical memory in common.
    pub(super) fn aliases(&self, other: &Self) -> bool {
        match (self.physical(), other.physical()) {
            (Some(physical), Some(other_physical)) => physical.overlaps(other_physical),
            _ => false,
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            virt,
            phys,
            length,
            access,
            cache,
            ..
        } = self;
        write!(
            f,
            "{name}: {virt} -> {phys}, {length:#x} bytes, {access} {cache}"
        )
    }
}
