//! How many frames each owner was handed out, and who may own frames.

use core::sync::atomic::Ordering::Relaxed;

use muster_sync::AtomicI64;

use crate::map::Owner;

/// The number of frames that each owner was given, less those it gave back.
///
/// A CPU may give back what another was given, so a single count may be negative. There is none for
/// the last of the owners, to whom nothing is handed out ([`assert_can_own`]).
///
/// The counts are `Relaxed`: they decide nothing, and are exact while nobody allocates or frees.
#[derive(Default)]
pub(crate) struct Ledger([AtomicI64; COUNTED]);

/// Owners that have a count: the first ones.
const COUNTED: usize = Owner::NullFrame as usize;

// Each owner that may get frames has a count.
const _: () = {
    let mut place = COUNTED;
    while place < Owner::ALL.len() {
        assert!(!can_own_frames(Owner::ALL[place]));
        place += 1;
    }
};

impl Ledger {
    /// Counts frames, while other CPUs may count here as well.
    pub(super) fn add(&self, owner: Owner, frames: i64) {
        self.0[owner as usize].fetch_add(frames, Relaxed);
    }

    /// Counts frames in a ledger that no other CPU writes: that is cheaper.
    #[inline]
    pub(crate) fn add_exclusive(&self, owner: Owner, frames: i64) {
        let count = &self.0[owner as usize];
        count.store(count.load(Relaxed) + frames, Relaxed);
    }

    pub(super) fn get(&self, owner: Owner) -> i64 {
        self.0
            .get(owner as usize)
            .map_or(0, |count| count.load(Relaxed))
    }
}

/// One CPU's cache: the frames in it, and those that went through it. All shares together, the
/// [common](super::FrameAllocator::common_share) one included, are the
/// [totals](super::FrameAllocator::totals).
#[derive(Clone, Copy)]
pub struct Share<'a> {
    pub(super) cached: usize,
    pub(super) ledger: &'a Ledger,
}

impl Share<'_> {
    /// Returns the number of frames in the cache, which are free.
    pub const fn cached(&self) -> usize {
        self.cached
    }

    /// Returns the number of frames that were handed out to `owner` here, less those that came back
    /// here: negative where more came back that others had handed out.
    pub fn handed_out(&self, owner: Owner) -> i64 {
        self.ledger.get(owner)
    }
}

/// Returns whether frames may be handed out to this owner.
const fn can_own_frames(owner: Owner) -> bool {
    !matches!(
        owner,
        Owner::Free | Owner::NullFrame | Owner::LowMemory | Owner::NotWriteBack
    )
}

#[inline]
pub(crate) fn assert_can_own(owner: Owner) {
    assert!(
        can_own_frames(owner),
        "frames cannot be handed out to nobody"
    );
}
