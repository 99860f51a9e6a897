//! Where the frames of page tables come from, and go to.

use muster_frames::{FrameAllocator, OwnedFrame, Owner, SoleOwner};

/// A source of the frames that become page tables, to which they return.
///
/// Both may be called while whatever guards the tables is held, so neither may use the heap. If one
/// panics and the panic is caught, the tables are as sound as before; but the frames that were taken for
/// tables in which nothing is yet, and the pages that were to be given up, are lost.
pub trait FrameSource {
    /// The owners of the kernel's memory.
    type Owner: Owner;

    /// Returns the owner of page tables, always the same.
    fn owner(&self) -> Self::Owner;

    /// Hands out a frame of [`Self::owner`]; `None` if there is none left.
    fn take(&self) -> Option<OwnedFrame<Self::Owner>>;

    /// Takes a frame of [`Self::owner`] back, which no CPU can reach as a table any more. It
    /// may come from another source: one that can't take it keeps it out of use.
    fn give_back(&self, frame: OwnedFrame<Self::Owner>);
}

/// A frame allocator as a source of page tables, which are this owner's.
#[derive(Clone, Copy)]
pub struct TablesOf<'a, O: Owner> {
    /// The allocator.
    pub frames: &'a FrameAllocator<O>,
    /// The owner of page tables.
    pub owner: O,
}

impl<O: Owner> FrameSource for TablesOf<'_, O> {
    type Owner = O;

    fn owner(&self) -> O {
        self.owner
    }

    fn take(&self) -> Option<OwnedFrame<O>> {
        self.frames.allocate(self.owner)
    }

    fn give_back(&self, frame: OwnedFrame<O>) {
        // Another source's stays recorded as page tables' there, and nobody gets it.
        if let Err(refused) = self.frames.free(frame) {
            let _ = refused.frames.into_raw();
        }
    }
}

impl FrameSource for FrameAllocator<SoleOwner> {
    type Owner = SoleOwner;

    fn owner(&self) -> SoleOwner {
        SoleOwner::Used
    }

    fn take(&self) -> Option<OwnedFrame> {
        self.allocate(SoleOwner::Used)
    }

    fn give_back(&self, frame: OwnedFrame) {
        let (frames, owner) = (self, self.owner());
        TablesOf { frames, owner }.give_back(frame);
    }
}

impl<S: FrameSource> FrameSource for &S {
    type Owner = S::Owner;

    fn owner(&self) -> S::Owner {
        (**self).owner()
    }

    fn take(&self) -> Option<OwnedFrame<S::Owner>> {
        (**self).take()
    }

    fn give_back(&self, frame: OwnedFrame<S::Owner>) {
        (**self).give_back(frame);
    }
}
