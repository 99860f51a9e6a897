//! Ranges of virtual memory.

use core::fmt;

use muster_frames::FRAME_SIZE;

use crate::virt_addr::VirtAddr;

/// A non-empty range of virtual memory, in whole pages of 4 KiB. It may end with the last address
/// there is.
///
/// It says nothing about what is mapped there, nor whether the CPU accepts the addresses.
///
/// ```
/// use muster_paging::{VirtAddr, VirtRange};
///
/// let range = VirtRange::new(VirtAddr::new(0xffff_ffff_ffff_e000), 0x2000).unwrap();
/// assert_eq!(range.last().get(), u64::MAX);
/// assert_eq!(VirtRange::new(VirtAddr::new(0x1000), 0), None);
/// assert_eq!(VirtRange::new(VirtAddr::new(0x1800), 0x1000), None);
/// assert_eq!(VirtRange::new(VirtAddr::new(0xffff_ffff_ffff_f000), 0x2000), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VirtRange {
    start: VirtAddr,
    last: VirtAddr,
}

impl VirtRange {
    /// Returns the `length` bytes from `start`; `None` if that is empty, overflows, or is not in whole
    /// pages.
    pub const fn new(start: VirtAddr, length: u64) -> Option<Self> {
        if length == 0 || !(start.get() | length).is_multiple_of(FRAME_SIZE) {
            return None;
        }
        match start.checked_add(length - 1) {
            Some(last) => Some(Self { start, last }),
            None => None,
        }
    }

    /// Returns the first address.
    pub const fn start(self) -> VirtAddr {
        self.start
    }

    /// Returns the last address.
    pub const fn last(self) -> VirtAddr {
        self.last
    }

    /// Returns the length in bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        self.last.get() - self.start.get() + 1
    }

    /// Returns whether the address lies in the range.
    pub const fn contains(self, virt: VirtAddr) -> bool {
        self.start.get() <= virt.get() && virt.get() <= self.last.get()
    }
}

impl fmt::Display for VirtRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.start, self.last)
    }
}
