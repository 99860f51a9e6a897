//! Blocks in scattered frames, which the platform maps at contiguous addresses.

use core::sync::atomic::{AtomicBool, Ordering};

use super::MagazineHeap;
use super::misuse::{Misuse, settle};
use super::shortage::LongTransit;
use crate::magazines::FramePlatform;
use crate::magazines::cache::Block;
use crate::magazines::class::{Class, FRAME};
use crate::magazines::deferred::{Kind, Written};
use crate::magazines::frames::Use;

/// An attempt to get scattered frames, until this is dropped.
struct Scattering<'a, P: FramePlatform> {
    is_scattering: &'a AtomicBool,
    _transit: LongTransit<'a, P>,
}

impl<P: FramePlatform> Drop for Scattering<'_, P> {
    fn drop(&mut self) {
        // Release: see `begin_scattering`.
        self.is_scattering.store(false, Ordering::Release);
    }
}

impl<P: FramePlatform> MagazineHeap<P> {
    /// Serves a large allocation of `size` bytes for which there are no contiguous frames.
    pub(super) fn allocate_scattered_large(
        &self,
        count: usize,
        align: usize,
        size: usize,
    ) -> Option<Block> {
        let _attempt = self.begin_scattering();
        let block = (self.frames).allocate_scattered(count, align, Use::Large)?;
        self.shared.large_blocks.fetch_add(1, Ordering::Relaxed);
        self.count_resized(0, size);
        Some(block)
    }

    /// Makes scattered frames a slab, and takes its first block. Only for a class whose slabs all take several frames: another
    /// one's need no contiguous ones.
    pub(super) fn allocate_scattered_small(&self, class: Class, size: usize) -> Option<Block> {
        let count = class.slab_counts().last().filter(|&count| count > 1)?;
        let _attempt = self.begin_scattering();
        let start = (self.frames).allocate_scattered(count, count, Use::Slab)?;
        let free = |start| {
            // SAFETY: allocated for a slab, and none was made of them.
            unsafe { self.frames.free(start, count, Use::Slab) };
        };
        let block = self.step(|context| {
            let made = self.slabs[class].add_slab(context, class, start, count, 1);
            (made.map_err(free).ok(), Ok(()))
        });
        match block {
            Some(Some(block)) => {
                self.count_resized(0, size);
                return Some(block);
            }
            Some(None) => {}
            // This code interrupted its own CPU inside the heap.
            None => free(start),
        }
        self.unmap_freed();
        None
    }

    /// Begins an attempt to get scattered frames, which other CPUs wait for, and only one makes at a time: each takes frames one
    /// by one, and two would keep the last ones from each other. Within a bound, as the other may have stopped.
    fn begin_scattering(&self) -> Scattering<'_, P> {
        let mut state = 0;
        // Acquire, with the Release of the end: what the last attempt gave back is there.
        while (self.shared.is_scattering).swap(true, Ordering::Acquire)
            && self.wait_for_memory(&mut state)
        {}
        Scattering {
            is_scattering: &self.shared.is_scattering,
            _transit: self.announce_long(),
        }
    }

    /// Frees the frames of a block in scattered ones from `after` on. `false`: not now, as they can't be unmapped.
    ///
    /// # Safety
    ///
    /// As for [`give_back_tail`](Self::give_back_tail).
    pub(super) unsafe fn give_back_scattered(
        &self,
        block: Block,
        before: usize,
        after: usize,
    ) -> bool {
        let is_unmapped = self.platform().can_unmap();
        if is_unmapped {
            let _transit = self.announce_long();
            // SAFETY: the caller's promise; the tail lies within the block.
            unsafe {
                (self.frames).free_scattered(block.add(after * FRAME), before - after);
            }
            self.count_returned(1);
        }
        is_unmapped
    }

    /// Unmaps the scattered frames that nobody uses any more, if that can be done now. Returns whether there were any.
    pub(super) fn unmap_freed(&self) -> bool {
        let mut any = false;
        while self.frames.has_mapped() && self.platform().can_unmap() {
            // Until the frames are back.
            let _transit = self.announce_long();
            let batch = self.step(|context| (self.frames.take_mapped(context.cpu), Ok(())));
            let batch = batch.unwrap_or_default();
            if batch.is_empty() {
                break;
            }
            any = true;
            let mut freed = Ok(());
            for unmapped in batch {
                match unmapped {
                    // SAFETY: scattered frames, allocated at once, which nobody uses.
                    Ok((start, Kind::Large { frames })) => unsafe {
                        self.frames.free_scattered(start, frames as usize);
                    },
                    Ok((block, Kind::Small(_))) | Err(Written(block)) => {
                        freed = Err(Misuse::Written(block));
                    }
                }
                self.count_returned(1);
            }
            settle(freed);
        }
        any
    }
}
