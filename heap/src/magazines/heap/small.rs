//! Blocks of the size classes.

use core::alloc::Layout;
use core::cell::Cell;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use super::MagazineHeap;
use super::misuse::{Misuse, settle};
use super::shortage::Attempt;
use crate::magazines::cache::{Block, Entry, Owner};
use crate::magazines::class::{Bin, Class, UNIT};
use crate::magazines::context::Context;
use crate::magazines::deferred::{BATCH, Kind};
#[cfg(target_arch = "x86_64")]
use crate::magazines::restart;
use crate::magazines::slab::Wrong;
use crate::magazines::transit::Refused;
use crate::magazines::{FastPath, FramePlatform};

/// Bytes of a cache line (Intel SDM, volume 3, section 13.1). Smaller blocks share it with others.
const LINE: usize = 64;

impl<P: FramePlatform> MagazineHeap<P> {
    pub(super) fn allocate_small(&self, class: Class, layout: Layout) -> Option<Block> {
        self.pop_aligned(class, layout)
            .or_else(|| {
                self.until_short(
                    |kind| self.attempt(class, layout, kind),
                    |steps| self.search_small(class, layout.size(), steps),
                )
            })
            .or_else(|| self.allocate_scattered_small(class, layout.size()))
    }

    /// Searches for frames, makes them a slab, and takes its first block.
    fn search_small(&self, class: Class, size: usize, steps: &Cell<u64>) -> Option<Block> {
        let block = class.slab_counts().find_map(|count| {
            self.search(count, count, steps, |context, start| {
                self.slabs[class].add_frames(context, class, start, count)
            })
        })?;
        self.count_resized(0, size);
        Some(block)
    }

    /// Takes a block from the magazine. All blocks are aligned to a unit. For more, not to a fast path's account, there is one
    /// exception, a misfit: a block of a larger class, or a larger block, that shrank where it was. `None` once there are any, too:
    /// then an attempt takes the block, in which a misfit is in transit until it is in its slab.
    pub(super) fn pop_aligned(&self, class: Class, layout: Layout) -> Option<Block> {
        if self.may_misfit(layout) {
            return None;
        }
        let block = self.pop(class, layout.size())?;
        if is_aligned(block, layout) {
            return Some(block);
        }
        // The first misfit came in between.
        self.send_home(class, block, layout.size());
        None
    }

    /// Returns whether a block of the layout's class may be less aligned than that.
    fn may_misfit(&self, layout: Layout) -> bool {
        // Relaxed: whoever has a misfit made it, or has it from who did.
        layout.align() > UNIT && self.shared.has_misfits.load(Ordering::Relaxed)
    }

    /// Frees a block that is in the magazine of another class than its slab's, into its slab.
    fn send_home(&self, class: Class, block: Block, size: usize) {
        let freed = self.step(|context| ((), self.free_to_slabs(context, class, &[block])));
        if freed.is_none() {
            // SAFETY: allocated just now as one of this class, and nobody has it.
            unsafe { self.defer(block, Kind::Small(class)) };
        }
        self.count_resized(size, 0);
    }

    #[inline(always)]
    pub(super) fn pop(&self, bin: impl Into<Bin>, size: usize) -> Option<Block> {
        let bin = bin.into();
        match P::FAST_PATH {
            FastPath::Uninterrupted => {
                let _preemption = self.platform().disable_preemption();
                self.platform().cache().pop::<false>(bin, size)
            }
            FastPath::Flagged => {
                let _preemption = self.platform().disable_preemption();
                self.platform().cache().pop::<true>(bin, size)
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: it is this kind of fast path.
            FastPath::Restarted { .. } => unsafe { restart::pop::<P>(bin, size) },
            #[cfg(not(target_arch = "x86_64"))]
            FastPath::Restarted { .. } => const { panic!("there are no such sequences here") },
        }
    }

    #[inline(always)]
    pub(super) fn push(&self, bin: impl Into<Bin>, block: Block, size: usize) -> bool {
        let bin = bin.into();
        match P::FAST_PATH {
            FastPath::Uninterrupted => {
                let _preemption = self.platform().disable_preemption();
                self.platform().cache().push::<false>(bin, block, size)
            }
            FastPath::Flagged => {
                let _preemption = self.platform().disable_preemption();
                self.platform().cache().push::<true>(bin, block, size)
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: it is this kind of fast path.
            FastPath::Restarted { .. } => unsafe { restart::push::<P>(bin, block, size) },
            #[cfg(not(target_arch = "x86_64"))]
            FastPath::Restarted { .. } => const { panic!("there are no such sequences here") },
        }
    }

    pub(super) fn attempt(
        &self,
        class: Class,
        layout: Layout,
        kind: Attempt,
    ) -> Result<Block, Refused> {
        let size = layout.size();
        let _preemption = self.platform().disable_preemption();
        let (block, freed) = {
            let _interrupts = self.platform().disable_interrupts();
            let context = self.context_of(kind);
            let mut entry = self.platform().cache().enter();
            // Not before: an interrupt that asks this CPU to drain comes before the look, or after all of this.
            let fills = kind == Attempt::First && self.may_fill();
            let (refused, mut freed) = self.begin_attempt(kind, &context, &mut entry);
            // Until a misfit is home: see `pop_aligned`.
            let _transit = self.may_misfit(layout).then(|| context.announce());
            let block = match &mut entry {
                Entry::Owner(owner) => {
                    let mut magazine = owner.close(class);
                    if fills {
                        magazine.refill(|room| self.gather(&context, class, room));
                    }
                    let block = magazine.pop(size);
                    if fills {
                        magazine.keep_reserve();
                    }
                    drop(magazine);
                    block.or_else(|| {
                        let block = self.gather_one(&context, class)?;
                        owner.count_allocated(size);
                        Some(block)
                    })
                }
                Entry::Guest(_) => {
                    self.count_reentry();
                    let block = self.gather_one(&context, class);
                    if block.is_some() {
                        self.count_allocated(size);
                    }
                    block
                }
                Entry::Nested => {
                    self.count_reentry();
                    let block = (self.platform().cache().take_reserve(class))
                        .or_else(|| self.slabs[class].try_allocate(context.cpu, class));
                    if block.is_some() {
                        self.count_allocated(size);
                    }
                    block
                }
            };
            let block = match block {
                Some(misfit) if !is_aligned(misfit, layout) => {
                    if let Entry::Nested = entry {
                        // SAFETY: allocated just now as one of this class, and nobody has it.
                        unsafe { self.defer(misfit, Kind::Small(class)) };
                    } else {
                        freed = freed.and(self.free_to_slabs(&context, class, &[misfit]));
                    }
                    self.count_resized(size, 0);
                    Err(Refused::GaveBack)
                }
                block => block.ok_or(refused),
            };
            (block, freed)
        };
        settle(freed);
        block
    }

    /// Does some of what was deferred, at the beginning of an attempt. Returns the reason if that finds nothing, too.
    pub(super) fn begin_attempt(
        &self,
        kind: Attempt,
        context: &Context<'_, P>,
        entry: &mut Entry<'_>,
    ) -> (Refused, Result<(), Misuse>) {
        match (entry, kind) {
            (Entry::Nested, _) => (Refused::Nested, Ok(())),
            // Another CPU may have kept this one from blocks whose free was deferred. A try that is announced announces
            // nothing else, as a drain would: that would count as another CPU's.
            (_, Attempt::Last) => {
                let (count, freed) = self.free_some_deferred(context);
                // What came back since this CPU has trimmed may be an empty slab of another class.
                Class::all().for_each(|class| self.slabs[class].trim(context));
                match count {
                    // More may wait.
                    BATCH => (Refused::GaveBack, freed),
                    _ => (Refused::Short, freed),
                }
            }
            (Entry::Owner(owner), _) => (Refused::Short, self.catch_up(context, owner)),
            (Entry::Guest(_), _) => (Refused::Short, Ok(())),
        }
    }

    /// Takes a magazine's worth of blocks, from the depot or else from slabs.
    fn gather(
        &self,
        context: &Context<'_, P>,
        class: Class,
        room: &mut [MaybeUninit<Block>],
    ) -> usize {
        match self.depots[class].take(context, room) {
            0 => self.slabs[class].allocate(context, class, room),
            count => count,
        }
    }

    /// Takes a block past the cache.
    fn gather_one(&self, context: &Context<'_, P>, class: Class) -> Option<Block> {
        let mut room = [MaybeUninit::uninit()];
        // SAFETY: `gather` has filled it.
        (self.gather(context, class, &mut room) > 0).then(|| unsafe { room[0].assume_init() })
    }

    #[inline(never)]
    pub(super) fn free_small(&self, class: Class, block: Block, size: usize) {
        let _preemption = self.platform().disable_preemption();
        let freed = {
            let _interrupts = self.platform().disable_interrupts();
            let context = self.context();
            match self.platform().cache().enter() {
                Entry::Owner(mut owner) => {
                    self.free_inside(&context, &mut owner, class, block, size)
                }
                Entry::Guest(_) => {
                    self.count_reentry();
                    let freed = self.free_to_slabs(&context, class, &[block]);
                    self.count_freed(size);
                    freed
                }
                Entry::Nested => {
                    self.count_reentry();
                    // SAFETY: the caller has freed it, as one of this class.
                    unsafe { self.defer(block, Kind::Small(class)) };
                    self.count_freed(size);
                    Ok(())
                }
            }
        };
        settle(freed);
    }

    /// Frees a block, if nothing better, into the magazine.
    ///
    /// One that shares its cache line, and that another CPU was given, goes to its slab: where it is what this CPU begins with,
    /// as when it was handed a few blocks, it would use it again and again beside the other's. That is all that can be done
    /// about such *false sharing* at no cost: a fast path does not know whose block it has.
    fn free_inside(
        &self,
        context: &Context<'_, P>,
        owner: &mut Owner<'_>,
        class: Class,
        block: Block,
        size: usize,
    ) -> Result<(), Misuse> {
        let mut freed = self.catch_up(context, owner);
        if self.is_short() {
            freed = freed.and(self.free_to_slabs(context, class, &[block]));
            owner.count_freed(size);
            return freed;
        }
        let goes_home = class.size() < LINE && self.slabs[class].gave_elsewhere(context, block);
        let mut magazine = owner.close(class);
        if !goes_home && magazine.push(block, size) {
            return freed;
        }
        magazine.flush(|blocks| {
            // A depot may need frames.
            if !self.depots[class].put(context, class, blocks) {
                freed = freed.and(self.free_to_slabs(context, class, blocks));
            }
        });
        if goes_home {
            drop(magazine);
            freed = freed.and(self.free_to_slabs(context, class, &[block]));
            owner.count_freed(size);
        } else {
            magazine.push(block, size);
        }
        freed
    }

    /// Returns blocks that were freed as ones of this class to their slabs.
    pub(super) fn free_to_slabs(
        &self,
        context: &Context<'_, P>,
        class: Class,
        mut blocks: &[Block],
    ) -> Result<(), Misuse> {
        let mut freed = Ok(());
        while let Err(stopped) = self.slabs[class].free(context, class, blocks) {
            let misuse = |wrong| Misuse::Slab {
                block: blocks[stopped.at],
                class,
                wrong,
            };
            let this = match stopped.why {
                // The block shrank where it was (`shrink_in_place`): it goes where it came from.
                Wrong::OfClass(larger) if larger > class => (self.slabs[larger])
                    .free(context, larger, &blocks[stopped.at..=stopped.at])
                    .map_err(|stopped| misuse(stopped.why)),
                wrong => Err(misuse(wrong)),
            };
            freed = freed.and(this);
            blocks = &blocks[stopped.at + 1..];
        }
        freed
    }

    /// Runs some of the work that was deferred to a slow path, which must not become much longer by it.
    pub(super) fn catch_up(
        &self,
        context: &Context<'_, P>,
        owner: &mut Owner<'_>,
    ) -> Result<(), Misuse> {
        let (_, freed) = self.free_some_deferred(context);
        match owner.next_undrained() {
            Some(bin) => freed.and(self.drain_bin(owner, bin)),
            None => freed,
        }
    }

    /// Returns the blocks of a magazine to where they come from.
    pub(super) fn drain_bin(&self, owner: &mut Owner<'_>, bin: Bin) -> Result<(), Misuse> {
        match bin.class() {
            Ok(class) => self.drain_class(owner, class),
            Err(_) => {
                let mut count = 0;
                owner.empty_large(bin, &mut |blocks, frames| {
                    let _transit = (!blocks.is_empty()).then(|| self.transit.begin());
                    // SAFETY: blocks of the cache, of this many frames each, which have left it.
                    unsafe { self.free_all(blocks, frames) };
                    count += blocks.len();
                });
                self.count_returned(count);
                Ok(())
            }
        }
    }

    fn drain_class(&self, owner: &mut Owner<'_>, class: Class) -> Result<(), Misuse> {
        let mut transit = owner.has_reserve(class).then(|| self.transit.begin());
        let context = self.context();
        let mut freed = Ok(());
        let mut count = 0;
        let reserve = owner.take_reserve(class);
        owner.close(class).empty(|blocks| {
            for blocks in [reserve.as_slice(), blocks] {
                if !blocks.is_empty() {
                    transit.get_or_insert_with(|| self.transit.begin());
                    freed = freed.and(self.free_to_slabs(&context, class, blocks));
                    count += blocks.len();
                }
            }
        });
        self.count_returned(count);
        freed
    }
}

fn is_aligned(block: Block, layout: Layout) -> bool {
    block.addr().get().is_multiple_of(layout.align())
}
