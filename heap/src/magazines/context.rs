//! The context that the layers below the heap need of it.

use super::FramePlatform;
use super::frames::Frames;
use super::slab_map::SlabMap;
use super::transit::{InTransit, Transit};
use crate::lock::Waiter;

/// The parts of the heap that depots and slabs use, and the CPU that this runs on. That stays the same
/// while this lives: interrupts are disabled.
pub(super) struct Context<'a, P> {
    pub(super) map: &'a SlabMap,
    pub(super) frames: &'a Frames<P>,
    pub(super) transit: &'a Transit,
    pub(super) cpu: Option<usize>,
    /// Whether the whole operation is announced already ([`Transit::seek`]).
    pub(super) is_announced: bool,
}

impl<P> Context<'_, P> {
    /// Announces that this CPU has memory in transit, until the result is dropped.
    pub(super) fn announce(&self) -> Option<InTransit<'_>> {
        (!self.is_announced).then(|| self.transit.begin())
    }
}

impl<P: FramePlatform> Waiter for Context<'_, P> {
    fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    fn wait(&self, holder: Option<usize>, state: &mut u64) {
        self.frames.platform().wait_for_lock(holder, state);
    }
}
