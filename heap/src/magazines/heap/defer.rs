//! Blocks whose free was deferred, as it interrupted a slow path.

use core::sync::atomic::Ordering;

use super::MagazineHeap;
use super::misuse::Misuse;
use crate::magazines::FramePlatform;
use crate::magazines::cache::Block;
use crate::magazines::context::Context;
use crate::magazines::deferred::{BATCH, Kind, Written};

impl<P: FramePlatform> MagazineHeap<P> {
    /// Frees all blocks whose free was deferred, in steps.
    pub(super) fn free_deferred(&self) {
        while let Some(BATCH) = self.step(|context| self.free_some_deferred(context)) {}
    }

    /// Frees blocks whose free was deferred, up to a batch, and returns how many.
    pub(super) fn free_some_deferred(
        &self,
        context: &Context<'_, P>,
    ) -> (usize, Result<(), Misuse>) {
        if self.shared.deferred.is_empty() {
            return (0, Ok(()));
        }
        let _transit = context.announce();
        let mut freed = Ok(());
        let batch = self.shared.deferred.take(context.cpu);
        let count = batch.len();
        self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
        for deferred in batch {
            match deferred {
                Ok((block, Kind::Small(class))) => {
                    freed = freed.and(self.free_to_slabs(context, class, &[block]));
                }
                // SAFETY: a large block that was freed, of this many frames.
                Ok((block, Kind::Large { frames })) => unsafe {
                    self.free_frames(block, frames as usize);
                },
                Err(Written(block)) => freed = freed.and(Err(Misuse::Written(block))),
            }
        }
        self.count_returned(count);
        (count, freed)
    }

    /// Defers the free of a block.
    ///
    /// # Safety
    ///
    /// As for [`DeferredList::push`](crate::magazines::deferred::DeferredList::push).
    pub(super) unsafe fn defer(&self, block: Block, kind: Kind) {
        // First, so that it isn't counted down before.
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.shared.deferred.push(block, kind) };
    }
}
