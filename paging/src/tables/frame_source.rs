//! Where the frames of page tables come from, and go to.

use muster_frames::FrameAllocator;
use muster_frames::OwnedFrame;
use muster_frames::Owner;

/// A source of the frames that become page tables, to which they return.
///
/// Both may be called while whatever guards the tables is held, so neither may use the heap. If one
/// panics and the panic is caught, the tables are as sound as before; but the frames that were taken for
/// tables in which nothing is yet, and the pages that were to be given up, are lost.
pub trait FrameSource {
    /// Hands out a frame of [`Owner::PageTables`]; `None` if there is none left.
    fn take(&self) -> Option<OwnedFrame>;

    /// Takes a frame of [`Owner::PageTables`] back, which no CPU can reach as a table any more. It
    /// may come from another source: one that can't take it keeps it out of use.
    fn give_back(&self, frame: OwnedFrame);
}

impl FrameSource for FrameAllocator {
    fn take(&self) -> Option<OwnedFrame> {
        self.allocate(Owner::PageTables)
    }

    fn give_back(&self, frame: OwnedFrame) {
        // Another source's stays recorded as page tables' there, and nobody gets it.
        if let Err(refused) = self.free(frame) {
            let _ = refused.frames.into_raw();
        }
    }
}

impl<S: FrameSource> FrameSource for &S {
    fn take(&self) -> Option<OwnedFrame> {
        (**self).take()
    }

    fn give_back(&self, frame: OwnedFrame) {
        (**self).give_back(frame);
    }
}
