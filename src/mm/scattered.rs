//! Scattered frames: the heap's memory where no contiguous frames are left.

use core::ptr::NonNull;

use muster_frames::FRAME_SIZE;
use muster_paging::VirtAddr;
use x86_64::instructions::interrupts;

use super::mapping::{self, Mapping};
use crate::boot::window::MAPPINGS;
use crate::smp::lock;

/// Maps `count` frames for the heap at contiguous addresses, the first a multiple of `align` frames. `None`: there are too few,
/// or this CPU can't map now.
pub fn allocate(count: usize, align: usize) -> Option<NonNull<u8>> {
    // A mapping that can't be completed is unmapped.
    if !can_unmap() || !mapping::is_started() {
        return None;
    }
    let mapping = Mapping::scattered(count as u64, align as u64 * FRAME_SIZE).ok()?;
    NonNull::new(mapping.leak())
}

/// Returns whether a block of any heap lies in scattered frames: in the window of mappings, where no other blocks are.
#[inline]
pub fn contains(block: *mut u8) -> bool {
    MAPPINGS.contains(VirtAddr::from_ptr(block))
}

/// Returns whether this CPU can wait for others to flush: it handles no interrupt and holds no lock.
pub fn can_unmap() -> bool {
    interrupts::are_enabled() && lock::held().is_none()
}

/// Unmaps frames of the heap's and takes them back.
///
/// # Safety
///
/// [`allocate`] gave these frames, at once, and nothing uses them, or those behind them, which came back before.
pub unsafe fn free(start: NonNull<u8>, count: usize) {
    // SAFETY: `allocate` has leaked the mapping; of the rest, the caller's promise.
    unsafe { mapping::unmap_scattered(VirtAddr::from_ptr(start.as_ptr()), count as u64) };
}
