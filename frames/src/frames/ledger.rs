//! How many frames each owner was handed out, and who may own frames.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::Relaxed;

use muster_sync::AtomicI64;

use crate::owner::{FREE, MAX_FRAME_OWNERS, Owner, SoleOwner};

/// The number of frames that each owner was given, less those it gave back.
///
/// A CPU may give back what another was given, so a single count may be negative. There is none for
/// owners beyond [`MAX_FRAME_OWNERS`], to whom nothing is handed out ([`number_of`]).
///
/// The counts are `Relaxed`: they decide nothing, and are exact while nobody allocates or frees.
#[derive(Default)]
pub(crate) struct Ledger([AtomicI64; MAX_FRAME_OWNERS]);

impl Ledger {
    /// Counts frames, while other CPUs may count here as well.
    pub(super) fn add(&self, owner: u8, frames: i64) {
        self.0[usize::from(owner)].fetch_add(frames, Relaxed);
    }

    /// Counts frames in a ledger that no other CPU writes: that is cheaper.
    #[inline]
    pub(crate) fn add_exclusive(&self, owner: u8, frames: i64) {
        let count = &self.0[usize::from(owner)];
        count.store(count.load(Relaxed) + frames, Relaxed);
    }

    pub(super) fn get(&self, owner: u8) -> i64 {
        self.0
            .get(usize::from(owner))
            .map_or(0, |count| count.load(Relaxed))
    }
}

/// One CPU's cache: the frames in it, and those that went through it. All shares together, the
/// [common](super::FrameAllocator::common_share) one included, are the
/// [totals](super::FrameAllocator::totals).
#[derive(Clone, Copy)]
pub struct Share<'a, O = SoleOwner> {
    pub(super) cached: usize,
    pub(super) ledger: &'a Ledger,
    pub(super) _of: PhantomData<fn() -> O>,
}

impl<O: Owner> Share<'_, O> {
    /// Returns the number of frames in the cache, which are free.
    pub const fn cached(&self) -> usize {
        self.cached
    }

    /// Returns the number of frames that were handed out to `owner` here, less those that came back
    /// here: negative where more came back that others had handed out.
    pub fn handed_out(&self, owner: O) -> i64 {
        self.ledger.get(owner.number())
    }
}

const _: () = assert!(MAX_FRAME_OWNERS == 14, "the message below says so");

/// Returns the number of an owner to whom frames may be handed out. It is asked once for each frame: what is recorded
/// is never [`FREE`], by which a frame that is handed out could be taken for one in a forgotten cache.
#[inline]
pub(crate) fn number_of<O: Owner>(owner: O) -> u8 {
    let number = owner.number();
    assert!(
        owner != O::FREE
            && owner != O::NULL_FRAME
            && number != FREE
            && usize::from(number) < MAX_FRAME_OWNERS,
        "frames cannot be handed out to nobody, nor to an owner beyond the first 14"
    );
    number
}
