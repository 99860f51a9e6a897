//! Ranges of virtual memory.

use core::fmt;

use muster_frames::FRAME_SIZE;

/// A non-empty range of virtual memory, in whole pages of 4 KiB. It may end with the last address
/// there is.
///
/// It says nothing about what is mapped there, nor whether the CPU accepts the addresses.
///
/// ```
/// use muster_paging::VirtRange;
///
/// let range = VirtRange::new(0xffff_ffff_ffff_e000, 0x2000).unwrap();
/// assert_eq!(range.last(), u64::MAX);
/// assert_eq!(VirtRange::new(0x1000, 0), None);
/// assert_eq!(VirtRange::new(0x1800, 0x1000), None);
/// assert_eq!(VirtRange::new(0xffff_ffff_ffff_f000, 0x2000), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VirtRange {
    start: u64,
    last: u64,
}

impl VirtRange {
    /// Returns the `length` bytes from `start`; `None` if that is empty, overflows, or is not in whole
    /// pages.
    pub const fn new(start: u64, length: u64) -> Option<Self> {
        if length == 0 || !(start | length).is_multiple_of(FRAME_SIZE) {
            return None;
        }
        match start.checked_add(length - 1) {
            Some(last) => Some(Self { start, last }),
            None => None,
        }
    }

    /// Returns the first address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Returns the last address.
    pub const fn last(self) -> u64 {
        self.last
    }

    /// Returns the length in bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        self.last - self.start + 1
    }

    /// Returns whether the address lies in the range.
    pub const fn contains(self, virt: u64) -> bool {
        self.start <= virt && virt <= self.last
    }
}

impl fmt::Display for VirtRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.start, self.last)
    }
}
