//! The frames of page tables.

use muster_paging::{FrameSource, TablesOf};

use crate::arch::failpoint;
use crate::boot::owner::{FrameAllocator, OwnedFrame, Owner};

/// The source of the frames of page tables, past the caches.
pub struct TableFrames<'a>(pub &'a FrameAllocator);

impl TableFrames<'_> {
    fn source(&self) -> TablesOf<'_, Owner> {
        TablesOf {
            frames: self.0,
            owner: Owner::PageTables,
        }
    }
}

impl FrameSource for TableFrames<'_> {
    type Owner = Owner;

    fn owner(&self) -> Owner {
        Owner::PageTables
    }

    fn take(&self) -> Option<OwnedFrame> {
        if failpoint::refuses_frames() {
            None
        } else {
            self.source().take()
        }
    }

    fn give_back(&self, frame: OwnedFrame) {
        self.source().give_back(frame);
    }
}
