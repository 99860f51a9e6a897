//! From a block's address to its slab.

use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use muster_sync::{AtomicPtr, AtomicUsize, atomics, const_unless_modelled};

use super::FramePlatform;
use super::class::{Class, FRAME};
use super::context::Context;
use super::frames::{Frames, Use};
use super::slab::Slab;
use crate::lock::Lock;

/// A table of pointers that fills a frame.
type Node = [AtomicPtr<u8>; NODE];
/// Descriptions that fill a frame.
type Leaf = [Slab; LEAF];

// A model has fewer of each, lest it never ends.
const LEAF: usize = if cfg!(loom) {
    2
} else {
    FRAME / size_of::<Slab>()
};
const NODE: usize = if cfg!(loom) {
    2
} else {
    FRAME / size_of::<usize>()
};

/// The number of regions of [`REGION_FRAMES`] frames in which there can be slabs: 64 TiB of memory,
/// wherever in the address space it lies.
pub(super) const REGIONS: usize = if cfg!(loom) { 2 } else { 1024 };

/// Frames of a region, which is so aligned: 64 GiB.
pub(super) const REGION_FRAMES: usize = NODE * NODE * LEAF;

/// Tables on the way from a region to a description, which may all be missing.
pub(super) const TABLES: usize = 3;

const _: () = assert!(size_of::<Node>() <= FRAME && size_of::<Leaf>() <= FRAME);

/// The descriptions of all slabs: for each region that has slabs, a tree of frames over frame numbers,
/// with two levels of tables above the leaves. It has the tables that slabs need and no more: 4 KiB for
/// each 256 KiB of memory in which there are slabs.
///
/// Reading takes no lock: a CPU that asks for a slab has a block of it, so the slab is there, and so is
/// the path to it.
///
/// Tables come and go with the slabs: they are allocated before the lock is taken and freed after it
/// is released, as no CPU may call the platform while others wait for it.
pub(super) struct SlabMap {
    changes: Lock<()>,
    regions: [Region; REGIONS],
}

/// One of the regions, and its tables.
struct Region {
    /// The region's number in the address space plus one; 0 while the slot is unused. Written once,
    /// under the lock.
    tag: AtomicUsize,
    /// Changed under the lock, and read under it with Relaxed. `find` takes no lock: see `SlabMap::frame`.
    root: AtomicPtr<u8>,
}

/// The reason why frames could not become a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is no frame for its description.
    NoMemory,
    /// The slab can't lie there: it would have blocks on both sides of the end of a leaf, or is in one
    /// region too many.
    NoPlace,
}

/// Frames that may become tables. Those that were allocated for it and are left go back.
pub(super) struct Spares<'a, P: FramePlatform> {
    frames: &'a Frames<P>,
    /// All zeroes.
    allocated: [Option<NonNull<u8>>; TABLES],
    /// Where frames lie that are the caller's, and how many of them are left: the last is taken first.
    /// Their content stays until then.
    lent: NonNull<u8>,
    lent_count: usize,
}

impl<'a, P: FramePlatform> Spares<'a, P> {
    pub(super) const fn none(frames: &'a Frames<P>) -> Self {
        Self {
            frames,
            allocated: [None; TABLES],
            lent: NonNull::dangling(),
            lent_count: 0,
        }
    }

    /// Lends `count` frames at `start` for tables.
    ///
    /// # Safety
    ///
    /// [`Frames`] gave `count` frames at `start`, which are the caller's and used by nobody.
    pub(super) const unsafe fn lent(
        frames: &'a Frames<P>,
        start: NonNull<u8>,
        count: usize,
    ) -> Self {
        Self {
            frames,
            allocated: [None; TABLES],
            lent: start,
            lent_count: count,
        }
    }

    /// Returns how many of the lent frames are left.
    pub(super) const fn lent_count(&self) -> usize {
        self.lent_count
    }

    fn count(&self) -> usize {
        self.lent_count + self.allocated.iter().flatten().count()
    }

    /// Allocates until there are `count`, at most [`TABLES`]. `false`: there is no frame.
    fn fill(&mut self, count: usize) -> bool {
        while self.count() < count {
            let place = self.allocated.iter_mut().find(|place| place.is_none());
            let fresh = self.frames.allocate(1, 1, Use::Own);
            let (Some(place), Some(fresh)) = (place, fresh) else {
                return false;
            };
            clear(fresh);
            *place = Some(fresh);
        }
        true
    }

    /// Exchanges `count` frames, taken for a slab, for others that are free, the `index`-th choice. `None`: there is none, and
    /// the frames are still the caller's.
    pub(super) fn exchange(
        &mut self,
        index: usize,
        start: NonNull<u8>,
        count: usize,
    ) -> Option<NonNull<u8>> {
        if count == 1 {
            let place = self.allocated.get_mut(index)?.as_mut()?;
            clear(start);
            return Some(mem::replace(place, start));
        }
        if index > 0 {
            // Of a third place the tables would have been made.
            return None;
        }
        self.free_allocated();
        let other = self.frames.allocate(count, count, Use::Slab)?;
        // SAFETY: taken for a slab that was not made.
        unsafe { self.frames.free(start, count, Use::Slab) };
        Some(other)
    }

    fn free_allocated(&mut self) {
        for table in self.allocated.iter_mut().filter_map(Option::take) {
            // SAFETY: a frame of the heap's own that did not become a table.
            unsafe { self.frames.free(table, 1, Use::Own) };
        }
    }

    fn take(&mut self) -> Option<NonNull<u8>> {
        let Some(last) = self.lent_count.checked_sub(1) else {
            return self.allocated.iter_mut().find_map(Option::take);
        };
        self.lent_count = last;
        // SAFETY: the caller of `lent` has more frames than that.
        let frame = unsafe { self.lent.add(last * FRAME) };
        clear(frame);
        Some(frame)
    }
}

impl<P: FramePlatform> Drop for Spares<'_, P> {
    fn drop(&mut self) {
        self.free_allocated();
    }
}

impl SlabMap {
    const_unless_modelled! {
        pub(super) const fn new() -> Self {
            Self {
                changes: Lock::new(()),
                regions: atomics![Region {
                    tag: AtomicUsize::new(0),
                    root: AtomicPtr::new(ptr::null_mut()),
                }; REGIONS],
            }
        }
    }

    /// Returns the slab that the address lies in. `None` if it lies in none, for any address (or in the
    /// midst of a slab's only block); but while slabs come and go, the answer is right only for a block.
    pub(super) fn find(&self, address: usize) -> Option<&Slab> {
        let frame = self.frame(address / FRAME)?;
        if !frame.is_in_use() {
            return None;
        }
        self.frame(address / FRAME - frame.back())
    }

    fn frame(&self, number: usize) -> Option<&Slab> {
        let mut entry = &self.region(number)?.root;
        for unit in [LEAF * NODE, LEAF] {
            // Acquire: the table's contents.
            let node = table(entry, Ordering::Acquire)?.cast::<Node>();
            // SAFETY: a table, which stays while a slab is below it, and all zeroes at first.
            entry = unsafe { &node.as_ref()[number / unit % NODE] };
        }
        let leaf = table(entry, Ordering::Acquire)?.cast::<Leaf>();
        // SAFETY: descriptions, which stay while one of them is in use, and all zeroes at first.
        Some(unsafe { &leaf.as_ref()[number % LEAF] })
    }

    /// Returns the region of a frame, if there ever was a slab in it.
    fn region(&self, number: usize) -> Option<&Region> {
        let tag = region_tag(number);
        // Where few regions are used, which is nearly always, each is the first that is looked at.
        for step in 0..REGIONS {
            let region = &self.regions[(tag + step) % REGIONS];
            // Relaxed: a CPU that has a block of the region got it from a CPU that saw the tag, and it
            // never changes again.
            match region.tag.load(Ordering::Relaxed) {
                0 => return None,
                found if found == tag => return Some(region),
                _ => {}
            }
        }
        None
    }

    /// Returns the region of a frame, or an unused one that may become it: by its tag, once it is sure
    /// that there will be a slab, as it never becomes unused again. The caller has the lock.
    fn region_for(&self, number: usize) -> Option<&Region> {
        let tag = region_tag(number);
        // Relaxed, as in `region`.
        self.region(number).or_else(|| {
            (0..REGIONS)
                .map(|step| &self.regions[(tag + step) % REGIONS])
                .find(|region| region.tag.load(Ordering::Relaxed) == 0)
        })
    }

    /// Makes frames a slab.
    ///
    /// # Errors
    ///
    /// [`Refused`]. Nothing has changed then.
    pub(super) fn insert<P: FramePlatform>(
        &self,
        context: &Context<'_, P>,
        start: NonNull<u8>,
        count: u8,
        class: Class,
        spares: &mut Spares<'_, P>,
    ) -> Result<&Slab, Refused> {
        let number = start.addr().get() / FRAME;
        let place = number % LEAF;
        // A slab of a single block is found by the frame that the block begins in: the others need no
        // description, which is in another leaf where the slab reaches across the end of one.
        let has_one_block = usize::from(count) * FRAME < 2 * class.size();
        if place + usize::from(count) > LEAF && !has_one_block {
            return Err(Refused::NoPlace);
        }
        loop {
            let missing = {
                let _changes = self.changes.lock(context).ok_or(Refused::NoPlace)?;
                let region = self.region_for(number).ok_or(Refused::NoPlace)?;
                let missing = missing(&region.root, number);
                if missing <= spares.count() {
                    // Relaxed, as in `region`. A look first: others read the line all the time.
                    if region.tag.load(Ordering::Relaxed) == 0 {
                        region.tag.store(region_tag(number), Ordering::Relaxed);
                    }
                    let leaf = extend(&region.root, number, spares).ok_or(Refused::NoMemory)?;
                    let (first, rest) = (&leaf[place], &leaf[place + 1..]);
                    first.describe(start, count, class);
                    for (back, slab) in (1..count).zip(rest) {
                        slab.describe_rest(back);
                    }
                    return Ok(first);
                }
                missing
            };
            if !spares.fill(missing) {
                return Err(Refused::NoMemory);
            }
        }
    }

    /// Forgets a slab, all of whose blocks are free, and returns its frames, and those of the tables
    /// in which nothing is left.
    pub(super) fn remove<P: FramePlatform>(&self, context: &Context<'_, P>, slab: &Slab) {
        let Some(start) = slab.start() else { return };
        let count = slab.frames();
        let number = start.addr().get() / FRAME;
        let tables = {
            let Some(_changes) = self.changes.lock(context) else {
                return;
            };
            // Those in the slab's own leaf: see `insert`.
            for rest in (0..count.min(LEAF - number % LEAF)).rev() {
                if let Some(frame) = self.frame(number + rest) {
                    frame.forget();
                }
            }
            self.prune(number)
        };
        // SAFETY: the slab was made of these frames, and none of its blocks is used.
        unsafe { context.frames.free(start, count, Use::Slab) };
        for table in tables.into_iter().flatten() {
            // SAFETY: made by `insert`, and no slab is left for whose sake it could be read.
            unsafe { context.frames.free(table, 1, Use::Own) };
        }
    }

    /// Takes the tables on the way to a frame out that describe nothing. The caller has the lock.
    fn prune(&self, number: usize) -> [Option<NonNull<u8>>; TABLES] {
        let mut pruned = [None; TABLES];
        let Some(region) = self.region(number) else {
            return pruned;
        };
        let mut entries = [&region.root; TABLES];
        for (level, unit) in [LEAF * NODE, LEAF].into_iter().enumerate() {
            let Some(node) = table(entries[level], Ordering::Relaxed) else {
                return pruned;
            };
            // SAFETY: a table, which is freed only here, under the lock.
            entries[level + 1] = unsafe { &node.cast::<Node>().as_ref()[number / unit % NODE] };
        }
        // From the leaf up, as far as nothing is left.
        for (level, entry) in entries.into_iter().enumerate().rev() {
            let Some(below) = table(entry, Ordering::Relaxed) else {
                break;
            };
            let is_idle = if level == TABLES - 1 {
                // SAFETY: a leaf, as above.
                let leaf = unsafe { below.cast::<Leaf>().as_ref() };
                !leaf.iter().any(Slab::is_in_use)
            } else {
                // SAFETY: a table, as above.
                let node = unsafe { below.cast::<Node>().as_ref() };
                (node.iter()).all(|entry| table(entry, Ordering::Relaxed).is_none())
            };
            if !is_idle {
                break;
            }
            // Relaxed: no CPU that reads this has a block below.
            entry.store(ptr::null_mut(), Ordering::Relaxed);
            pruned[level] = Some(below);
        }
        pruned
    }
}

/// Returns the tag of a frame's region.
const fn region_tag(number: usize) -> usize {
    number / REGION_FRAMES + 1
}

/// Returns how many tables are missing on the way from a region's root to a frame's description.
fn missing(root: &AtomicPtr<u8>, number: usize) -> usize {
    let mut entry = root;
    for (level, unit) in [LEAF * NODE, LEAF].into_iter().enumerate() {
        let Some(node) = table(entry, Ordering::Relaxed) else {
            return TABLES - level;
        };
        // SAFETY: a table, which isn't freed while this CPU has the lock.
        entry = unsafe { &node.cast::<Node>().as_ref()[number / unit % NODE] };
    }
    usize::from(table(entry, Ordering::Relaxed).is_none())
}

/// Adds the tables that are missing on the way to a frame's description, and returns its leaf. `None`:
/// there are too few spares.
fn extend<'a, P: FramePlatform>(
    root: &'a AtomicPtr<u8>,
    number: usize,
    spares: &mut Spares<'_, P>,
) -> Option<&'a Leaf> {
    let mut entry = root;
    for unit in [Some(LEAF * NODE), Some(LEAF), None] {
        let below = match table(entry, Ordering::Relaxed) {
            Some(below) => below,
            None => {
                let fresh = spares.take()?;
                // A model's atomics aren't numbers.
                #[cfg(loom)]
                // SAFETY: a frame, and nobody else has it.
                unsafe {
                    match unit {
                        Some(_) => (fresh.cast::<Node>())
                            .write(atomics![AtomicPtr::new(ptr::null_mut()); NODE]),
                        None => fresh.cast::<Leaf>().write(atomics![Slab::none(); LEAF]),
                    }
                }
                // Release, with the Acquire of `SlabMap::frame`: the table is seen all zeroes.
                entry.store(fresh.as_ptr(), Ordering::Release);
                fresh
            }
        };
        match unit {
            // SAFETY: a table, which isn't freed while this CPU has the lock.
            Some(unit) => entry = unsafe { &below.cast::<Node>().as_ref()[number / unit % NODE] },
            // SAFETY: a leaf, likewise; and from now on it has a slab.
            None => return Some(unsafe { below.cast::<Leaf>().as_ref() }),
        }
    }
    None
}

/// Fills a frame with zeroes.
fn clear(frame: NonNull<u8>) {
    // SAFETY: the callers have the frame, and nobody else does.
    #[cfg(not(loom))]
    unsafe {
        frame.write_bytes(0, FRAME);
    }
    #[cfg(loom)]
    let _ = frame;
}

#[cfg(all(test, not(loom)))]
impl SlabMap {
    /// Calls the visitor with all tables and leaves. Nobody else uses the map at the same time.
    pub(super) fn each_table(&self, visit: &mut dyn FnMut(NonNull<u8>)) {
        fn below(entry: &AtomicPtr<u8>, levels: usize, visit: &mut dyn FnMut(NonNull<u8>)) {
            let Some(start) = table(entry, Ordering::Relaxed) else {
                return;
            };
            if levels > 0 {
                // SAFETY: a table, as in `prune`.
                let node = unsafe { start.cast::<Node>().as_ref() };
                (node.iter()).for_each(|entry| below(entry, levels - 1, visit));
            }
            visit(start);
        }
        (self.regions.iter()).for_each(|region| below(&region.root, TABLES - 1, visit));
    }
}

/// Returns the table that an entry leads to, if there is one. They fill frames, so that the lowest bits
/// are nothing: the first byte of a table is not believed, as the frame before may be a slab whose last
/// block somebody writes past.
fn table(entry: &AtomicPtr<u8>, ordering: Ordering) -> Option<NonNull<u8>> {
    let start = entry.load(ordering);
    NonNull::new(start.map_addr(|address| address & !(FRAME - 1)))
}
