//! What an allocation does about a shortage of memory.

use core::cell::Cell;
use core::sync::atomic::Ordering;

use muster_sync::{AtomicUsize, fence};

use super::{MagazineHeap, Shared};
use crate::magazines::cache::{Block, TransitMark};
use crate::magazines::context::Context;
use crate::magazines::frames::Use;
use crate::magazines::transit::{InTransit, Refused};
use crate::magazines::{FramePlatform, FrameSearch};

/// A CPU is short of memory, until this is dropped: see [`MagazineHeap::begin_shortage`].
#[must_use = "the shortage is over when it is dropped"]
#[derive(Debug)]
pub struct Shortage<'a>(&'a AtomicUsize);

impl Drop for Shortage<'_> {
    fn drop(&mut self) {
        // Relaxed: see `is_short`.
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory is in transit while interrupts are enabled, until this is dropped.
pub(super) struct LongTransit<'a, P: FramePlatform> {
    // Dropped in this order: an interrupt in between finds nothing to wait for.
    _transit: InTransit<'a>,
    _mark: TransitMark<'a>,
    _preemption: P::NoPreempt,
}

/// The kind of an attempt: what it may do, and how it is announced to other CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It may fill the cache, unless another CPU is short.
    First,
    /// It may not: once memory is short, it is for blocks.
    Again,
    /// The same, in [`Transit::seek`](crate::magazines::transit::Transit::seek).
    Last,
}

impl<P: FramePlatform> MagazineHeap<P> {
    /// Searches for frames, in steps, of which it counts those taken, and makes a block of them. If it can't, which is `Err`
    /// with the frames, it searches once more, for others.
    pub(super) fn search(
        &self,
        count: usize,
        align: usize,
        steps: &Cell<u64>,
        make: impl Fn(&Context<'_, P>, Block) -> Result<Block, Block>,
    ) -> Option<Block> {
        let mut found = None;
        // Frames that can't become a slab, kept so that the search finds others, and the announcement that they are in transit.
        let mut useless = None;
        self.platform()
            .search_frames(count, align, &mut |take_step| {
                // Whoever takes a step again has no use of what it would find.
                let mut is_over = found.is_some();
                while !is_over {
                    let made = self.step(|_| {
                        // Also of one that finds nothing, as the platform may move memory in it.
                        let _transit = self.transit.begin();
                        steps.set(steps.get() + 1);
                        let step = take_step();
                        is_over = step != FrameSearch::Unfinished;
                        let FrameSearch::Found(start) = step else {
                            return (None, Ok(()));
                        };
                        match make(&self.context_of(Attempt::Last), start) {
                            Ok(block) => (Some(block), Ok(())),
                            Err(start) if useless.is_none() => {
                                steps.set(steps.get() + 1);
                                useless = Some((start, self.announce_long()));
                                is_over = false;
                                (None, Ok(()))
                            }
                            Err(start) => {
                                // SAFETY: found just now, and nothing was made of them.
                                unsafe { self.frames.free(start, count, Use::Slab) };
                                (None, Ok(()))
                            }
                        }
                    });
                    match made {
                        Some(block) => found = found.or(block),
                        // This code interrupted its own CPU inside the heap.
                        None => is_over = true,
                    }
                }
            });
        if let Some((start, _transit)) = useless {
            let freed = self.step(|_| {
                // SAFETY: found above, and nothing was made of them.
                unsafe { self.frames.free(start, count, Use::Slab) };
                ((), Ok(()))
            });
            debug_assert!(freed.is_some(), "a step has found them");
        }
        found
    }

    /// Announces memory in transit for longer than interrupts may be disabled for, until the result is dropped. This code stays
    /// on its CPU, and other code that interrupts it there waits for no memory.
    pub(super) fn announce_long(&self) -> LongTransit<'_, P> {
        let preemption = self.platform().disable_preemption();
        let mark = self.platform().cache().mark_transit();
        LongTransit {
            _transit: self.transit.begin(),
            _mark: mark,
            _preemption: preemption,
        }
    }

    /// Retries after each thing that can be done about a shortage.
    pub(super) fn until_short(
        &self,
        attempt: impl Fn(Attempt) -> Result<Block, Refused>,
        search: impl Fn(&Cell<u64>) -> Option<Block>,
    ) -> Option<Block> {
        let attempt_all = |kind| {
            loop {
                match attempt(kind) {
                    Err(Refused::GaveBack) => {}
                    other => return other,
                }
            }
        };
        match attempt_all(Attempt::First) {
            Ok(block) => return Some(block),
            Err(Refused::Nested) => return None,
            Err(_) => {}
        }
        // An attempt need not look everywhere.
        if let Some(block) = search(&Cell::new(0)) {
            return Some(block);
        }
        let mut block = None;
        self.platform().in_shortage(&mut || {
            if block.is_some() {
                return;
            }
            block = self.relieve(
                || attempt_all(Attempt::Again),
                || attempt(Attempt::Last),
                &search,
            );
        });
        block
    }

    /// Does what can be done about a shortage, and tries again.
    fn relieve(
        &self,
        attempt: impl Fn() -> Result<Block, Refused>,
        last_attempt: impl Fn() -> Result<Block, Refused>,
        search: impl Fn(&Cell<u64>) -> Option<Block>,
    ) -> Option<Block> {
        let _shortage = self.begin_shortage();
        // What comes back by it is a gain.
        self.unmap_freed();
        // Acquire, with the Release below: the counts that a relief has seen are seen here, so an equal sum is one of equal
        // counts. A CPU that does not see the last value asks once more, in vain.
        let is_barren = self.gains() == Some(self.shared.barren.load(Ordering::Acquire))
            && self.platform().reclaimable() == 0;
        if is_barren {
            // That relief may not have reached this CPU, whose own blocks are out of nobody's reach.
            let is_drained = {
                let _preemption = self.platform().disable_preemption();
                self.platform().cache().may_have_blocks() && self.drain()
            };
            if is_drained {
                self.trim();
            }
            return self.seek(last_attempt, search);
        }
        self.drain();
        self.trim();
        if let Ok(block) = attempt() {
            return Some(block);
        }
        // After the blocks here came back, which is a gain, and before all that follows: this relief
        // may or may not find blocks that come back from now on.
        let gains = self.gains();
        let could_ask = {
            // Together the drains reach all CPUs: those that are asked, and the one that asks.
            let _preemption = self.platform().disable_preemption();
            let could_ask = self.platform().drain_others();
            self.drain();
            could_ask
        };
        self.trim();
        let found = self.seek(last_attempt, search);
        if let (None, true, Some(gains)) = (&found, could_ask, gains) {
            // Release: see above.
            self.shared.barren.store(gains, Ordering::Release);
        }
        found
    }

    /// Begins a shortage, as the heap itself does for a block, for a CPU that needs frames for something else and will have the
    /// others [drain](Self::drain): until the result is dropped, CPUs take no more blocks and frames than they hand out, and once
    /// drained they keep none that are freed.
    pub fn begin_shortage(&self) -> Shortage<'_> {
        // Relaxed: see `is_short`.
        self.shared.short.fetch_add(1, Ordering::Relaxed);
        // With the one in `may_fill`.
        fence(Ordering::SeqCst);
        Shortage(&self.shared.short)
    }

    /// Returns whether this CPU, which is on a slow path, may fill its cache: none is short of memory.
    pub(super) fn may_fill(&self) -> bool {
        // Either this finds the shortage of a CPU, or that one finds this one on a slow path, where it may have blocks.
        fence(Ordering::SeqCst);
        !self.is_short()
    }

    /// Returns whether a CPU is short of memory. Memory that this CPU would take beside what it needs
    /// is out of the other's reach, unless it is there when the other asks for it.
    pub(super) fn is_short(&self) -> bool {
        // Relaxed: the other CPU counts itself before it asks this one to drain, which this one does
        // after a slow path that has not seen it, and before one that does.
        self.shared.short.load(Ordering::Relaxed) > 0
    }

    /// Returns a number that grows whenever a block is freed, comes into a CPU's cache, or comes back
    /// from where a relief may not have found it: as long as it stays the same, a relief finds nothing
    /// that the last one did not. It grows *after* that, so a CPU that sees it grow finds the block. `None`: blocks may be on
    /// their way into a cache.
    fn gains(&self) -> Option<u64> {
        let Shared {
            freed, returned, ..
        } = &self.shared;
        // Acquire, with the Release of the counts: the block is where it can be found. The counters in
        // CPUs' caches count blocks there, for which the CPUs are asked.
        let mut gains = freed.load(Ordering::Acquire);
        gains = gains.wrapping_add(returned.load(Ordering::Acquire));
        let mut gains = Some(gains);
        (self.platform()).each_cache(&mut |cache| {
            gains = (gains.zip(cache.gains())).map(|(gains, more)| gains.wrapping_add(more));
        });
        gains
    }

    /// Waits a moment for memory that another CPU has in transit. `false`: for too long, or this code has interrupted one on its
    /// own CPU that has.
    pub(super) fn wait_for_memory(&self, state: &mut u64) -> bool {
        let has_interrupted = {
            let _preemption = self.platform().disable_preemption();
            self.platform().cache().is_in_transit()
        };
        !has_interrupted && self.platform().wait_for_memory(state)
    }

    /// Tries for the last time, and again as long as memory is in transit on other CPUs: contention
    /// must not count as out of memory. Within bounds, as others may do so forever.
    fn seek(
        &self,
        attempt: impl Fn() -> Result<Block, Refused>,
        search: impl Fn(&Cell<u64>) -> Option<Block>,
    ) -> Option<Block> {
        let platform = self.platform();
        let enter = || {
            let preemption = platform.disable_preemption();
            // Dropped in this order.
            let guards = (platform.disable_interrupts(), preemption);
            (platform.cpu(), guards)
        };
        let wait = |state: &mut u64| self.wait_for_memory(state);
        let seek = || self.transit.seek(enter, wait, &attempt, &search);
        // A try may have freed slabs in scattered frames.
        seek().or_else(|| self.unmap_freed().then(seek)?)
    }
}
