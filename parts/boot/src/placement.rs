//! Where the loader put the kernel.

use core::ops::Range;

use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};

use muster_paging::VirtAddr;

use crate::error::BootError;

/// Where the loader put the image: one offset for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The physical memory the image takes, in whole frames.
    pub range: PhysRange,
    /// Virtual address of the image's first page.
    pub virtual_: VirtAddr,
}

impl Placement {
    /// Checks the loader's two bases against the addresses that the image was linked at, in whole
    /// pages.
    ///
    /// # Errors
    ///
    /// [`BootError::Image`].
    pub fn check(
        virtual_: VirtAddr,
        physical: PhysAddr,
        linked: Range<VirtAddr>,
    ) -> Result<Self, BootError> {
        let length = linked.end.checked_sub(linked.start).unwrap_or(0);
        PhysRange::new(physical, length)
            .filter(|_| virtual_ == linked.start && physical.is_multiple_of(FRAME_SIZE))
            .map(|range| Self { range, virtual_ })
            .ok_or(BootError::Image {
                virtual_,
                physical,
                linked: linked.start,
            })
    }

    /// Returns the physical address behind an address inside the image.
    pub fn physical_of(&self, virtual_: VirtAddr) -> PhysAddr {
        self.range.start() + (virtual_ - self.virtual_)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKED: Range<VirtAddr> =
        VirtAddr::new(0xffff_ffff_8000_0000)..VirtAddr::new(0xffff_ffff_8020_0000);

    #[test]
    fn an_image_that_is_where_it_was_linked_has_one_offset() {
        let placement = Placement::check(LINKED.start, PhysAddr::new(0x7000), LINKED).unwrap();
        assert_eq!(
            placement.range,
            PhysRange::new(PhysAddr::new(0x7000), 0x20_0000).unwrap()
        );
        assert_eq!(
            placement.physical_of(LINKED.start + 0x1234),
            PhysAddr::new(0x8234)
        );
    }

    #[test]
    fn an_image_elsewhere_or_in_memory_that_can_not_be_is_refused() {
        for (virtual_, physical) in [
            (LINKED.start + 0x1000, PhysAddr::new(0x7000)),
            (LINKED.start, PhysAddr::new(0x7001)),
            (LINKED.start, PhysAddr::new(!0xfff)),
            (LINKED.start, PhysAddr::new((1 << 52) - 0x1000)),
        ] {
            let error = BootError::Image {
                virtual_,
                physical,
                linked: LINKED.start,
            };
            assert_eq!(Placement::check(virtual_, physical, LINKED), Err(error));
        }
    }
}
