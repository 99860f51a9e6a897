//! The parts of the address space that the kernel allocates itself.
//!
//! All lie in the second highest 512 GiB, which is in the higher half with four
//! levels of tables as with five. A loader whose HHDM reaches into them is refused.

use muster_paging::{VirtAddr, VirtRange};

/// A part of the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first address.
    pub start: VirtAddr,
    /// The first address after it.
    pub end: VirtAddr,
}

impl Window {
    /// Returns whether `address` lies in it.
    pub fn contains(self, address: VirtAddr) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// All of the windows.
pub const ALL: Window = Window {
    start: STACKS.start,
    end: DEVICES.end,
};

/// Every CPU's stacks.
pub const STACKS: Window = Window {
    start: VirtAddr::new(0xffff_ff00_0000_0000),
    end: VirtAddr::new(0xffff_ff10_0000_0000),
};

/// Mappings made at run time; see [`crate::mm::mapping`].
pub const MAPPINGS: Window = Window {
    start: VirtAddr::new(0xffff_ff10_0000_0000),
    end: VirtAddr::new(0xffff_ff40_0000_0000),
};

/// The global heap.
pub const HEAP: Window = Window {
    start: VirtAddr::new(0xffff_ff40_0000_0000),
    end: VirtAddr::new(0xffff_ff7f_0000_0000),
};

/// Device registers.
pub const DEVICES: Window = Window {
    start: VirtAddr::new(0xffff_ff7f_0000_0000),
    end: VirtAddr::new(0xffff_ff80_0000_0000),
};

/// The window of mappings as a range: nothing outside it is ever unmapped.
pub const MAPPINGS_RANGE: VirtRange =
    match VirtRange::new(MAPPINGS.start, MAPPINGS.end.get() - MAPPINGS.start.get()) {
        Some(window) => window,
        None => panic!("the window is in whole pages"),
    };
