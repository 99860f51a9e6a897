//! The statistics of a magazine heap, as plain numbers. Nothing is counted here: `cache` and `heap`
//! read their counters into these.

use core::ops::Add;

/// Bytes that went through a heap, or through one CPU's part of it, as asked for
/// ([`Layout::size`](core::alloc::Layout::size)). Both numbers only grow, so that a difference of two
/// readings is what happened between them.
///
/// A block may be allocated by one CPU and freed by another: what is live is only known of all parts
/// together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes allocated, and by which blocks grew where they are.
    pub allocated_bytes: u64,
    /// Bytes freed, and by which blocks shrank where they are.
    pub freed_bytes: u64,
}

impl Traffic {
    /// Returns the bytes allocated less those freed: negative if more were freed.
    pub const fn live_bytes(self) -> i64 {
        self.allocated_bytes.wrapping_sub(self.freed_bytes) as i64
    }
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            allocated_bytes: self.allocated_bytes.wrapping_add(other.allocated_bytes),
            freed_bytes: self.freed_bytes.wrapping_add(other.freed_bytes),
        }
    }
}

/// A magazine heap's accounts. Exact while no CPU uses the heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes allocated and not freed, as asked for ([`Layout::size`](core::alloc::Layout::size)): two
    /// equal readings around some work prove that the work freed all it allocated. Negative if it
    /// freed more than that.
    pub live_bytes: i64,
    /// Blocks allocated and not freed; negative as above.
    pub live_blocks: i64,
    /// Bytes in free blocks that CPUs and depots keep; a block that shrank where it was counts as of its
    /// new size.
    pub cached_bytes: usize,
    /// Frames in slabs.
    pub slab_frames: usize,
    /// Frames in blocks larger than any size class.
    pub large_frames: usize,
    /// Frames for the heap itself: magazines, depots, descriptions of slabs.
    pub own_frames: usize,
    /// The highest value that [`frames`](Self::frames) has had.
    pub peak_frames: usize,
    /// Allocations answered with null, whatever the reason, and no others.
    pub refusals: u64,
    /// Attempts to allocate, and frees, of code that interrupted its own CPU inside the heap, or had no cache. An allocation makes
    /// several where memory is short; a block that is resized where it is counts for nothing.
    pub reentries: u64,
}

impl Totals {
    /// Returns the number of frames that the heap has.
    pub const fn frames(&self) -> usize {
        self.slab_frames + self.large_frames + self.own_frames
    }
}

/// The statistics of one size class that all CPUs share. Exact while no CPU uses the heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStatistics {
    /// Frames in slabs of the class.
    pub slab_frames: usize,
    /// Blocks that aren't free in their slab: live or cached.
    pub used_blocks: usize,
    /// The highest value that [`used_blocks`](Self::used_blocks) has had.
    pub peak_used_blocks: usize,
    /// Blocks that came back to their slab from another CPU than the one that last got blocks of the
    /// slab: how many are freed where they were not allocated, about.
    pub remote_blocks: usize,
    /// Blocks in the depot.
    pub depot_blocks: usize,
    /// Times a CPU found another one at the depot.
    pub depot_contended: u64,
}
