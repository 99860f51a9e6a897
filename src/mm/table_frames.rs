//! The frames of page tables.

use muster_frames::{FrameAllocator, OwnedFrame};
use muster_paging::FrameSource;

use crate::arch::failpoint;

/// The source of the frames of page tables, past the caches.
pub struct TableFrames<'a>(pub &'a FrameAllocator);

impl FrameSource for TableFrames<'_> {
    fn take(&self) -> Option<OwnedFrame> {
        if failpoint::refuses_frames() {
            None
        } else {
            self.0.take()
        }
    }

    fn give_back(&self, frame: OwnedFrame) {
        self.0.give_back(frame);
    }
}
