//! The number of levels of tables, and the addresses that there are then.

use crate::virt_addr::VirtAddr;
use crate::virt_range::VirtRange;

/// The number of levels of tables that the CPU walks (`CR4.LA57`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Levels {
    /// 48-bit virtual addresses.
    Four,
    /// 57-bit virtual addresses.
    Five,
}

impl Levels {
    /// Returns the number of levels.
    pub const fn count(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Five => 5,
        }
    }

    /// Returns how many bits of a virtual address are translated.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Four => 48,
            Self::Five => 57,
        }
    }

    /// Returns the address with its untranslated upper bits made copies of the highest translated one
    /// (Intel SDM vol. 1, 3.3.7.1 "Canonical Addressing").
    pub const fn canonical(self, virt: VirtAddr) -> VirtAddr {
        let unused = 64 - self.bits();
        VirtAddr::new(((virt.get() << unused) as i64 >> unused) as u64)
    }

    /// Returns whether the CPU accepts all addresses of the range.
    pub(crate) const fn have(self, range: VirtRange) -> bool {
        let (start, last) = (range.start(), range.last());
        // The top bit distinguishes the halves; between them is nothing.
        self.is_canonical(start) && self.is_canonical(last) && start.get() >> 63 == last.get() >> 63
    }

    /// Returns the parts of the range whose addresses the CPU accepts: that in the lower half of the
    /// address space, and that in the upper half, if there is any.
    pub(crate) fn accepted(self, range: VirtRange) -> impl Iterator<Item = VirtRange> {
        let upper = u64::MAX << (self.bits() - 1);
        let halves = [(0, !upper), (upper, u64::MAX)];
        halves.into_iter().filter_map(move |(first, last)| {
            let first = first.max(range.start().get());
            let last = last.min(range.last().get());
            VirtRange::new(VirtAddr::new(first), last.checked_sub(first)? + 1)
        })
    }

    /// Returns whether the CPU accepts the address.
    pub const fn is_canonical(self, virt: VirtAddr) -> bool {
        self.canonical(virt).get() == virt.get()
    }
}
