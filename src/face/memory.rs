//! Memory: the heap by `alloc`, larger pieces, contiguous frames and devices by [`Mapping`], and stacks.
//!
//! The kernel is the global allocator. Memory that runs out is an error from [`Mapping`] and a null pointer
//! from the allocator.

pub use muster_frames::{FrameAlign, PhysAddr, PhysRange, RunRequest};
pub use muster_paging::{Access, AddressError, Cache, ChangeError, TableError};

pub use crate::mm::mapping::{Mapping, MappingError};
pub use crate::mm::stack::Stack;

/// Returns the bytes of memory that no one has: free frames, those that CPUs cache included.
pub fn free_bytes() -> u64 {
    crate::mm::shared::get().free_bytes()
}
