//! Blocks whose free was deferred, as it interrupted a slow path.

use core::sync::atomic::Ordering;

use super::MagazineHeap;
use super::large::STEP_FRAMES;
use super::misuse::Misuse;
use crate::magazines::FramePlatform;
use crate::magazines::cache::Block;
use crate::magazines::class::FRAME;
use crate::magazines::context::Context;
use crate::magazines::deferred::{BATCH, Kind, Written};
use crate::magazines::frames::Use;

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
        let mut count = batch.len();
        self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
        let mut budget = STEP_FRAMES;
        for deferred in batch {
            match deferred {
                Ok((block, Kind::Small(class))) => {
                    freed = freed.and(self.free_to_slabs(context, class, &[block]));
                }
                Ok((block, Kind::Large { frames })) => {
                    // The platform unmaps scattered ones later, all at once.
                    let freed = match self.platform().is_scattered(block) {
                        true => frames,
                        false => frames.min(budget),
                    };
                    budget = budget.saturating_sub(freed);
                    // SAFETY: a large block that was freed, of this many frames, or what is left of it.
                    unsafe { self.free_deferred_frames(block, frames, freed) };
                    if freed < frames {
                        // There is more to do.
                        count = BATCH;
                    }
                }
                Err(Written(block)) => freed = freed.and(Err(Misuse::Written(block))),
            }
        }
        self.count_returned(count);
        (count, freed)
    }

    /// Frees the last `freed` frames of a large block whose free was deferred, and defers the rest again.
    ///
    /// # Safety
    ///
    /// `block` was freed, and has this many frames.
    unsafe fn free_deferred_frames(&self, block: Block, frames: u32, freed: u32) {
        // SAFETY: the caller's promise; what is left is a block in front.
        unsafe {
            let left = frames - freed;
            if left == 0 {
                return self.free_frames(block, frames as usize);
            }
            if freed > 0 {
                let tail = block.add(left as usize * FRAME);
                self.frames.free(tail, freed as usize, Use::Large);
            }
            self.defer(block, Kind::Large { frames: left });
        }
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
