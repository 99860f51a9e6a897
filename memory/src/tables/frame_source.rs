//! Where the frames of page tables come from, and go to.

use crate::frames::FrameAllocator;
use crate::map::Owner;
use crate::range::Frame;

/// Gives out the frames that become page tables, and takes them back.
///
/// Both may be called while whatever guards the tables is held, so neither may use the heap.
pub trait FrameSource {
    /// A frame that nobody uses, or `None` if there is none left.
    fn take(&self) -> Option<Frame>;

    /// Takes a frame back, which no CPU can reach as a table any more.
    fn give_back(&self, frame: Frame);
}

impl FrameSource for FrameAllocator {
    fn take(&self) -> Option<Frame> {
        self.allocate(Owner::PageTables)
    }

    fn give_back(&self, frame: Frame) {
        let freed = self.free(frame, Owner::PageTables);
        debug_assert!(freed.is_ok(), "a page table was not its own: {freed:?}");
    }
}

impl<S: FrameSource> FrameSource for &S {
    fn take(&self) -> Option<Frame> {
        (**self).take()
    }

    fn give_back(&self, frame: Frame) {
        (**self).give_back(frame);
    }
}
