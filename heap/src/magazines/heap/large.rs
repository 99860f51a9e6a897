//! Blocks that are frames.

use core::alloc::Layout;
use core::sync::atomic::Ordering;

use super::MagazineHeap;
use super::misuse::settle;
use crate::magazines::FramePlatform;
use crate::magazines::cache::{Block, Entry, Owner};
use crate::magazines::class::{Bin, Class, FRAME};
use crate::magazines::deferred::Kind;
use crate::magazines::frames::Use;
use crate::magazines::slab_map::Spares;
use crate::magazines::transit::Refused;

/// The most frames that are given back with interrupts disabled: 16 MiB of them, in some 14,000 instructions.
pub(super) const STEP_FRAMES: u32 = 4096;

impl<P: FramePlatform> MagazineHeap<P> {
    pub(super) fn allocate_large(&self, layout: Layout) -> Option<Block> {
        self.obtain_large(layout, |_| None)
    }

    /// Makes a large block larger, as `realloc` does when memory is short: by a new block, or where it is, if what comes back
    /// lies behind it. Returns the new block, or the old one.
    ///
    /// # Safety
    ///
    /// As for [`extend`](Self::extend).
    pub(super) unsafe fn grow_large(
        &self,
        block: Block,
        old: Layout,
        new: Layout,
    ) -> Option<Block> {
        let before = frames_of(old)? as usize;
        self.obtain_large(new, |after| {
            // SAFETY: a large block's frames; the caller's promise.
            let is_longer = unsafe {
                self.frames
                    .extend(block, before, after - before, Use::Large)
            };
            is_longer.then_some(block)
        })
    }

    /// Takes frames for a large block, or the one that `instead` gives where there are none.
    fn obtain_large(
        &self,
        layout: Layout,
        instead: impl Fn(usize) -> Option<Block>,
    ) -> Option<Block> {
        let count = frames_of(layout)? as usize;
        let align = layout.align().div_ceil(FRAME);
        if count > self.platform().capacity() {
            return None;
        }
        let contiguous = self.until_short(
            |kind| {
                let _preemption = self.platform().disable_preemption();
                let (block, freed) = {
                    let _interrupts = self.platform().disable_interrupts();
                    let mut entry = self.platform().cache().enter();
                    if !matches!(entry, Entry::Owner(_)) {
                        self.count_reentry();
                    }
                    if matches!(entry, Entry::Nested) {
                        return Err(Refused::Nested);
                    }
                    let (refused, freed) =
                        self.begin_attempt(kind, &self.context_of(kind), &mut entry);
                    let block = self.frames.allocate(count, align, Use::Large);
                    if block.is_some() {
                        match &entry {
                            Entry::Owner(owner) => owner.count_allocated(layout.size()),
                            _ => self.count_allocated(layout.size()),
                        }
                        self.shared.large_blocks.fetch_add(1, Ordering::Relaxed);
                    }
                    let block = block.or_else(|| instead(count));
                    (block.ok_or(refused), freed)
                };
                settle(freed);
                block
            },
            |steps| {
                let block = self.search(count, align, steps, |_, start| {
                    self.frames.count(count, Use::Large);
                    self.shared.large_blocks.fetch_add(1, Ordering::Relaxed);
                    Ok(start)
                })?;
                self.count_resized(0, layout.size());
                Some(block)
            },
        );
        contiguous.or_else(|| self.allocate_scattered_large(count, align, layout.size()))
    }

    /// Makes a large block larger where it is, if the frames behind it are free. `false`: nothing has changed.
    ///
    /// # Safety
    ///
    /// `block` is live with the layout `old`, of which the new one differs in the size, which is more.
    pub(super) unsafe fn extend(&self, block: Block, old: Layout, new: Layout) -> bool {
        let (Some(before), Some(after)) = (frames_of(old), frames_of(new)) else {
            return false;
        };
        let (before, after) = (before as usize, after as usize);
        if after > self.platform().capacity() {
            return false;
        }
        let is_longer = self.step(|_| {
            // SAFETY: a large block's frames; the caller's promise.
            let is_longer = unsafe {
                self.frames
                    .extend(block, before, after - before, Use::Large)
            };
            (is_longer, Ok(()))
        });
        is_longer == Some(true)
    }

    /// Frees a large block.
    ///
    /// # Safety
    ///
    /// `block` is live, and was allocated with this layout, which no class serves; `bin` is the layout's.
    #[inline(never)]
    pub(super) unsafe fn free_large(&self, block: Block, layout: Layout, bin: Option<Bin>) {
        // It was allocated, so it isn't too large.
        let Some(mut frames) = frames_of(layout) else {
            return;
        };
        // The tail first, in steps, as each takes longer the more frames it gives back. The platform does so with scattered ones.
        if frames > STEP_FRAMES
            && !self.platform().is_scattered(block)
            // SAFETY: the block's last frames, which nobody uses any more.
            && unsafe { self.give_back_tail(block, frames as usize, STEP_FRAMES as usize) }
        {
            frames = STEP_FRAMES;
        }
        let _preemption = self.platform().disable_preemption();
        let freed = {
            let _interrupts = self.platform().disable_interrupts();
            match self.platform().cache().enter() {
                Entry::Owner(mut owner) => {
                    let freed = self.catch_up(&self.context(), &mut owner);
                    let is_kept = !self.is_short()
                        && bin.is_some_and(|bin| self.keep(&mut owner, bin, block, layout.size()));
                    if !is_kept {
                        // SAFETY: allocated so, and dead now.
                        unsafe { self.free_frames(block, frames as usize) };
                        owner.count_freed(layout.size());
                    }
                    freed
                }
                Entry::Guest(_) => {
                    self.count_reentry();
                    // SAFETY: as above.
                    unsafe { self.free_frames(block, frames as usize) };
                    self.count_freed(layout.size());
                    Ok(())
                }
                Entry::Nested => {
                    self.count_reentry();
                    // SAFETY: the caller has freed it, this many frames.
                    unsafe { self.defer(block, Kind::Large { frames }) };
                    self.count_freed(layout.size());
                    Ok(())
                }
            }
        };
        settle(freed);
    }

    /// Puts a large block that was freed into the CPU's cache, if that has room for it or can make some.
    fn keep(&self, owner: &mut Owner<'_>, bin: Bin, block: Block, size: usize) -> bool {
        if !owner.note_full(bin) {
            return false;
        }
        let _transit = self.transit.begin();
        let has_room = owner.make_room(bin, |blocks, frames| {
            // SAFETY: blocks of the cache, of this many frames each, which have left it.
            unsafe { self.free_all(blocks, frames) };
            self.count_returned(blocks.len());
        });
        has_room && owner.close(bin).push(block, size)
    }

    /// Frees the frames of several large blocks.
    ///
    /// # Safety
    ///
    /// For each of them, as for [`free_frames`](Self::free_frames).
    pub(super) unsafe fn free_all(&self, blocks: &[Block], frames: usize) {
        for &block in blocks {
            // SAFETY: the caller's promise.
            unsafe { self.free_frames(block, frames) };
        }
    }

    /// Frees the frames of a large block.
    ///
    /// # Safety
    ///
    /// `block` is a large one of this many frames, which nobody uses.
    pub(super) unsafe fn free_frames(&self, block: Block, count: usize) {
        // SAFETY: `allocate_large` allocated it so.
        unsafe { self.frames.free(block, count, Use::Large) };
        self.shared.large_blocks.fetch_sub(1, Ordering::Relaxed);
    }

    /// Makes a block smaller without a new one, and gives back what it no longer needs, if that is
    /// whole frames. `false`: nothing has changed.
    ///
    /// # Safety
    ///
    /// `block` is live with the layout `old`, of which the new one differs in the size, which is less,
    /// and nobody uses what lies behind that.
    pub(super) unsafe fn shrink_in_place(&self, block: Block, old: Layout, new: Layout) -> bool {
        let frames = |layout| frames_of(layout).map_or(0, |frames| frames as usize);
        match (Class::of(old), Class::of(new)) {
            (None, None) => {
                let (before, after) = (frames(old), frames(new));
                // SAFETY: the block's last frames, which it no longer needs.
                unsafe { self.give_back_tail(block, before, after) }
            }
            // The slab knows the block's class when the block returns. Until then it is good for all of
            // the new class, but may be less aligned than they are: see `pop_aligned`.
            (Some(_), _) => {
                self.note_misfit();
                true
            }
            // What is left of scattered frames could not be unmapped with the slab.
            (None, Some(_)) if self.platform().is_scattered(block) => false,
            // SAFETY: as the caller promises.
            (None, Some(class)) => unsafe { self.split(block, frames(old), class) },
        }
    }

    /// Notes that a block may be less aligned than those of its class are.
    fn note_misfit(&self) {
        // Relaxed: see `may_misfit`.
        self.shared.has_misfits.store(true, Ordering::Relaxed);
    }

    /// Frees the frames of a large block from `after` on, in steps from the end. `false`: not now, as this code interrupted
    /// its CPU inside the heap; nothing has changed then.
    ///
    /// # Safety
    ///
    /// `block` is a large one of `before` frames, of which nobody uses those from `after` on.
    unsafe fn give_back_tail(&self, block: Block, before: usize, after: usize) -> bool {
        if self.platform().is_scattered(block) {
            // SAFETY: the caller's promise.
            return unsafe { self.give_back_scattered(block, before, after) };
        }
        let mut left = before;
        while left > after {
            let frames = (left - after).min(STEP_FRAMES as usize);
            let freed = self.step(|_| {
                // SAFETY: the caller's promise; this part of the tail lies within the block.
                unsafe {
                    let tail = block.add((left - frames) * FRAME);
                    self.frames.free(tail, frames, Use::Large);
                }
                ((), Ok(()))
            });
            if freed.is_none() {
                return false;
            }
            left -= frames;
        }
        true
    }

    /// Makes the beginning of a large block a slab, of which it is the first block, and frees the rest.
    /// `false`: nothing has changed.
    ///
    /// # Safety
    ///
    /// `block` is a large one of `before` frames, of which nobody uses what lies behind the first
    /// `class.size()` bytes.
    unsafe fn split(&self, block: Block, before: usize, class: Class) -> bool {
        let kept = class.size().div_ceil(FRAME);
        let _transit = self.announce_long();
        let left = self.step(|context| {
            let frames = &self.frames;
            let tail = before - kept;
            // The slab's description can lie in what the block gives back, wherever memory is.
            // SAFETY: the block's last frames, which nobody uses, and which are ours until below.
            let mut spares = unsafe { Spares::lent(frames, block.add(kept * FRAME), tail) };
            let slab = (self.map).insert(context, block, kept as u8, class, &mut spares);
            let Ok(slab) = slab else {
                return (None, Ok(()));
            };
            let left = spares.lent_count();
            frames.convert(tail - left, Use::Large, Use::Own);
            frames.convert(kept, Use::Large, Use::Slab);
            if !slab.is_aligned(class) {
                self.note_misfit();
            }
            let is_listed = self.slabs[class].add(context, class, slab, 1);
            debug_assert!(is_listed, "this CPU holds no lock");
            self.shared.large_blocks.fetch_sub(1, Ordering::Relaxed);
            (Some(left), Ok(()))
        });
        let Some(Some(left)) = left else {
            return false;
        };
        // SAFETY: what lies between the slab and the tables, which nobody uses.
        let given_back = unsafe { self.give_back_tail(block, kept + left, kept) };
        debug_assert!(given_back, "this code has just taken a step");
        true
    }
}

/// Returns how many frames a large block takes. `None`: more than there can be.
pub(super) fn frames_of(layout: Layout) -> Option<u32> {
    layout.size().div_ceil(FRAME).try_into().ok()
}
