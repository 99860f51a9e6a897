//! The slabs of one class, by how full they are, under one lock.
//!
//! The heap takes blocks here if the class's depot has none, and returns what the depot has no room
//! for. A new slab takes frames, and an empty one gives them back.

use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use muster_sync::{AtomicUsize, const_unless_modelled};

use super::FramePlatform;
use super::cache::Block;
use super::class::Class;
use super::context::Context;
use super::frames::Use;
use super::slab::{Fill, List, Slab, Wrong};
use super::slab_map::{SlabMap, Spares};
use crate::lock::{Guard, Lock};

/// The number of empty slabs that a class keeps for the next allocation.
const KEPT: usize = 1;

/// All slabs of a class, by how full they are.
#[repr(align(128))]
pub(super) struct Slabs {
    lists: Lock<Lists>,
    /// Written under the lock, read by anyone for reports: so `Relaxed` will do, here and below.
    frames: AtomicUsize,
    used: AtomicUsize,
    peak_used: AtomicUsize,
    remote: AtomicUsize,
}

/// Full slabs are in no list: they are found when a block comes back.
struct Lists {
    empty: List,
    empties: usize,
    quarters: [List; 4],
}

/// The block at which a batch that comes back stopped, and why. Those before it are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stopped {
    pub(super) at: usize,
    pub(super) why: Wrong,
}

impl Slabs {
    const_unless_modelled! {
        pub(super) const fn new() -> Self {
            Self {
                lists: Lock::new(Lists {
                    empty: List::new(),
                    empties: 0,
                    quarters: [const { List::new() }; 4],
                }),
                frames: AtomicUsize::new(0),
                used: AtomicUsize::new(0),
                peak_used: AtomicUsize::new(0),
                remote: AtomicUsize::new(0),
            }
        }
    }

    /// Returns the frames in slabs of the class.
    pub(super) fn frames(&self) -> usize {
        self.frames.load(Ordering::Relaxed)
    }

    /// Returns the number of blocks that aren't free in their slab: live, or cached.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the peak of [`Self::used`].
    pub(super) fn peak_used(&self) -> usize {
        self.peak_used.load(Ordering::Relaxed)
    }

    /// Returns the number of blocks that came back from another CPU than the one that their slab last
    /// gave blocks to.
    pub(super) fn remote(&self) -> usize {
        self.remote.load(Ordering::Relaxed)
    }

    /// Takes up to as many blocks as there is room for, and returns how many: zero if there is
    /// neither a free block nor a frame.
    pub(super) fn allocate<P: FramePlatform>(
        &self,
        context: &Context<'_, P>,
        class: Class,
        into: &mut [MaybeUninit<Block>],
    ) -> usize {
        loop {
            let Some(mut lists) = self.lists.lock(context) else {
                return 0;
            };
            let taken = self.take(&mut lists, context.cpu, class, into);
            drop(lists);
            if taken > 0 || !self.grow(context, class) {
                return taken;
            }
        }
    }

    /// Takes a block if that needs neither waiting nor frames.
    pub(super) fn try_allocate(&self, cpu: Option<usize>, class: Class) -> Option<Block> {
        let mut lists = self.lists.try_lock(cpu)?;
        let mut block = [MaybeUninit::uninit()];
        // SAFETY: `take` says how many it has written.
        (self.take(&mut lists, cpu, class, &mut block) == 1)
            .then(|| unsafe { block[0].assume_init() })
    }

    /// Takes blocks, from the fullest slabs first, so that the others have a chance to become empty.
    fn take(
        &self,
        lists: &mut Lists,
        cpu: Option<usize>,
        class: Class,
        into: &mut [MaybeUninit<Block>],
    ) -> usize {
        let mut taken = 0;
        while taken < into.len() {
            let Some(slab) = lists.fullest() else { break };
            let before = slab.fill();
            taken += slab.take(class, &mut into[taken..]);
            slab.given_to(cpu);
            lists.moved(slab, before);
        }
        self.count_used(taken);
        taken
    }

    fn count_used(&self, blocks: usize) {
        self.used.add(blocks);
        let used = self.used();
        if used > self.peak_used() {
            self.peak_used.store(used, Ordering::Relaxed);
        }
    }

    /// Adds a slab. `false`: there is no frame for it, or none for its description.
    fn grow<P: FramePlatform>(&self, context: &Context<'_, P>, class: Class) -> bool {
        let frames = context.frames;
        // This may give back the memory that it takes, and a slab that it makes is found only at the
        // end.
        let _transit = context.announce();
        class.slab_counts().any(|count| {
            (frames.allocate(count, count, Use::Slab)).is_some_and(|start| {
                let added = self.add_slab(context, class, start, count, 0);
                if let Err(start) = added {
                    // SAFETY: allocated for it, and no slab was made of them.
                    unsafe { frames.free(start, count, Use::Slab) };
                }
                added.is_ok()
            })
        })
    }

    /// Makes frames that the platform has given a slab, and takes its first block. `Err`: there are no frames for its
    /// description, and these, or others in their place, are still the caller's, counted as for a slab.
    pub(super) fn add_frames<P: FramePlatform>(
        &self,
        context: &Context<'_, P>,
        class: Class,
        start: Block,
        count: usize,
    ) -> Result<Block, Block> {
        context.frames.count(count, Use::Slab);
        self.add_slab(context, class, start, count, 1)
    }

    /// Makes frames, taken for it, a slab, of which the first `live` blocks are in use, and returns where it is. `Err`: there
    /// are no frames for its description, and these, or others in their place, are still the caller's.
    pub(super) fn add_slab<P: FramePlatform>(
        &self,
        context: &Context<'_, P>,
        class: Class,
        start: Block,
        count: usize,
        live: usize,
    ) -> Result<Block, Block> {
        let mut spares = Spares::none(context.frames);
        let mut start = start;
        for index in 0.. {
            match (context.map).insert(context, start, count as u8, class, &mut spares) {
                Ok(slab) => {
                    let is_listed = self.add(context, class, slab, live);
                    debug_assert!(is_listed, "this CPU holds no lock");
                    return Ok(start);
                }
                // All frames that are free were here just now. Where others of them are, the description may need fewer.
                Err(_) => match spares.exchange(index, start, count) {
                    Some(other) => start = other,
                    None => break,
                },
            }
        }
        Err(start)
    }

    /// Adds a slab that is new, of which the first `live` blocks are in use. `false`: this CPU holds
    /// the lock, and the slab is in no list.
    pub(super) fn add<P: FramePlatform>(
        &self,
        context: &Context<'_, P>,
        class: Class,
        slab: &Slab,
        live: usize,
    ) -> bool {
        let Some(mut lists) = self.lists.lock(context) else {
            return false;
        };
        for _ in 0..live {
            slab.take(class, &mut [MaybeUninit::uninit()]);
        }
        let fill = slab.fill();
        if let Some(list) = lists.list(fill) {
            list.push(slab);
        }
        lists.empties += usize::from(fill == Fill::Empty);
        self.frames.add(slab.frames());
        self.count_used(live);
        true
    }

    /// Returns whether the slab of a block of this class gave its last blocks to another CPU.
    pub(super) fn gave_elsewhere<P: FramePlatform>(
        &self,
        context: &Context<'_, P>,
        block: Block,
    ) -> bool {
        let slab = context.map.find(block.addr().get());
        slab.is_some_and(|slab| !slab.was_given_to(context.cpu))
    }

    /// Takes blocks back.
    ///
    /// # Errors
    ///
    /// The first block that this class has not handed out. Those after it are still the caller's.
    pub(super) fn free<P: FramePlatform>(
        &self,
        context: &Context<'_, P>,
        class: Class,
        blocks: &[Block],
    ) -> Result<(), Stopped> {
        // From when a slab leaves the list until its frames are back.
        let mut transit = None;
        let mut surplus = List::new();
        // None only in an NMI on a CPU that has no cache, where using the heap is against the
        // platform's contract: the blocks are lost then.
        let Some(mut lists) = self.lists.lock(context) else {
            return Ok(());
        };
        let mut result = Ok(());
        let mut freed = 0;
        let mut remote = 0;
        for (at, &block) in blocks.iter().enumerate() {
            match lists.put(context.map, class, block) {
                Ok(slab) => {
                    remote += usize::from(!slab.was_given_to(context.cpu));
                    // Made where a large block was (`MagazineHeap::split`): good for that one only.
                    if slab.fill() == Fill::Empty && !slab.is_aligned(class) {
                        transit.get_or_insert_with(|| context.announce());
                        lists.empty.remove(slab);
                        lists.empties -= 1;
                        self.frames.subtract(slab.frames());
                        surplus.push(slab);
                    }
                }
                Err(why) => {
                    result = Err(Stopped { at, why });
                    break;
                }
            }
            freed += 1;
        }
        self.used.subtract(freed);
        self.remote.add(remote);
        if lists.empties > KEPT {
            transit.get_or_insert_with(|| context.announce());
            self.cut_empties(&mut lists, KEPT, &mut surplus);
        }
        drop(lists);
        retire(context, surplus);
        result
    }

    /// Returns the frames of all empty slabs.
    pub(super) fn trim<P: FramePlatform>(&self, context: &Context<'_, P>) {
        let mut surplus = List::new();
        let mut _transit = None;
        if let Some(mut lists) = self.lists.lock(context)
            && lists.empties > 0
        {
            _transit = context.announce();
            self.cut_empties(&mut lists, 0, &mut surplus);
        }
        retire(context, surplus);
    }

    fn cut_empties(&self, lists: &mut Guard<'_, Lists>, kept: usize, surplus: &mut List) {
        while lists.empties > kept
            && let Some(slab) = lists.empty.pop()
        {
            lists.empties -= 1;
            // SAFETY: the description stays until `retire`.
            let slab = unsafe { slab.as_ref() };
            self.frames.subtract(slab.frames());
            surplus.push(slab);
        }
    }
}

/// Returns the frames of slabs that are in no list of their class any more.
fn retire<P: FramePlatform>(context: &Context<'_, P>, mut surplus: List) {
    while let Some(slab) = surplus.pop() {
        // SAFETY: the description stays until `remove` is done with it.
        context.map.remove(context, unsafe { slab.as_ref() });
    }
}

impl Lists {
    fn fullest<'a>(&self) -> Option<&'a Slab> {
        let lists = self.quarters.iter().rev().chain([&self.empty]);
        let slab = NonNull::from(lists.into_iter().find_map(List::first)?);
        // SAFETY: a slab in a list stays, and becomes neither empty nor retired before the caller
        // gives up the lock that `self` is under.
        Some(unsafe { slab.as_ref() })
    }

    fn put<'a>(&mut self, map: &'a SlabMap, class: Class, block: Block) -> Result<&'a Slab, Wrong> {
        let slab = map.find(block.addr().get()).ok_or(Wrong::Foreign)?;
        match slab.class() {
            Some(found) if found == class => {}
            found => return Err(found.map_or(Wrong::Foreign, Wrong::OfClass)),
        }
        let before = slab.fill();
        slab.put(class, block)?;
        self.moved(slab, before);
        Ok(slab)
    }

    /// Puts a slab where it belongs now.
    fn moved(&mut self, slab: &Slab, before: Fill) {
        let now = slab.fill();
        if now == before {
            return;
        }
        if let Some(list) = self.list(before) {
            list.remove(slab);
        }
        if let Some(list) = self.list(now) {
            list.push(slab);
        }
        self.empties += usize::from(now == Fill::Empty);
        self.empties -= usize::from(before == Fill::Empty);
    }

    fn list(&mut self, fill: Fill) -> Option<&mut List> {
        match fill {
            Fill::Empty => Some(&mut self.empty),
            Fill::Partial(quarter) => self.quarters.get_mut(quarter),
            Fill::Full => None,
        }
    }
}

/// Counters that are written under a lock, which orders the writers, and read without it for reports: so
/// `Relaxed` will do.
trait UnderLock {
    fn add(&self, value: usize);
    fn subtract(&self, value: usize);
}

impl UnderLock for AtomicUsize {
    fn add(&self, value: usize) {
        self.store(self.load(Ordering::Relaxed) + value, Ordering::Relaxed);
    }

    fn subtract(&self, value: usize) {
        self.store(self.load(Ordering::Relaxed) - value, Ordering::Relaxed);
    }
}
