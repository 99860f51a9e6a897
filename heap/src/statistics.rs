//! The statistics of a heap, to the byte.

use crate::Traffic;

/// A heap's accounts at one instant.
///
/// Bytes count what was asked for ([`Layout::size`](core::alloc::Layout::size)), not what it took;
/// so two equal readings around some work prove that the work freed all it allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes allocated and not freed, the boot arena's included.
    pub live_bytes: u64,
    /// Bytes allocated so far, the boot arena's included. The number only grows.
    pub allocated_bytes: u64,
    /// Blocks allocated and not freed, the boot arena's included.
    pub live_blocks: u64,
    /// The highest value that `live_bytes` has had.
    pub peak_live_bytes: u64,
    /// Bytes of memory the heap manages, the boot arena included.
    pub capacity_bytes: u64,
    /// The part of `live_bytes` that lies in the boot arena.
    pub boot_live_bytes: u64,
    /// The number of times that the platform gave more memory.
    pub growths: u64,
    /// Allocations answered with null, and frees that this very CPU made while inside the heap
    /// (from an NMI or a panic): such a block stays live.
    pub refusals: u64,
}

impl Statistics {
    pub(crate) const ZERO: Self = Self {
        live_bytes: 0,
        allocated_bytes: 0,
        live_blocks: 0,
        peak_live_bytes: 0,
        capacity_bytes: 0,
        boot_live_bytes: 0,
        growths: 0,
        refusals: 0,
    };

    /// Returns what was allocated and freed so far, the boot arena's blocks included.
    pub const fn traffic(&self) -> Traffic {
        Traffic {
            allocated_bytes: self.allocated_bytes,
            freed_bytes: self.allocated_bytes - self.live_bytes,
        }
    }
}
