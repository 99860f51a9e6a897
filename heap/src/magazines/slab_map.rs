//! From a block's address to its slab.

use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use super::FramePlatform;
use super::class::{Class, FRAME};
use super::frames::{Frames, Use};
use super::slab::Slab;
use crate::lock::Lock;
use crate::sync::{AtomicPtr, atomics, const_unless_modelled, mutated};

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
const ROOT: usize = if cfg!(loom) { 2 } else { 1024 };

const _: () = assert!(size_of::<Node>() <= FRAME && size_of::<Leaf>() <= FRAME);

/// The addresses of all frames must lie within so many bytes: 64 TiB, half of what a kernel has for
/// itself under 4-level paging (Intel SDM, volume 1, section 3.3.7.1: canonical addressing).
pub const SPAN: usize = ROOT * NODE * NODE * LEAF * FRAME;

/// The descriptions of all slabs: a tree of frames over frame numbers, with two levels of tables
/// between the root and the leaves. It has what slabs need and no more: 4 KiB for each 256 KiB of
/// memory in which there are slabs.
///
/// Reading takes no lock: whoever asks for a slab has a block of it, so the slab is there, and so is
/// the path to it.
pub(super) struct SlabMap {
    changes: Lock<()>,
    root: [AtomicPtr<u8>; ROOT],
}

impl SlabMap {
    const_unless_modelled! {
        pub(super) const fn new() -> Self {
            Self {
                changes: Lock::new(()),
                root: atomics![AtomicPtr::new(ptr::null_mut()); ROOT],
            }
        }
    }

    /// The slab that the address lies in. `None` if it lies in none, for any address; but while
    /// [`trim`](Self::trim) runs, the answer is right only for a block.
    pub(super) fn find(&self, address: usize) -> Option<&Slab> {
        let frame = self.frame(address / FRAME)?;
        if !frame.is_in_use() {
            return None;
        }
        let first = self.frame(address / FRAME - frame.back())?;
        // Memory 64 TiB away shares the path.
        let distance = address.checked_sub(first.start()?.addr().get())?;
        (distance < first.frames() * FRAME).then_some(first)
    }

    fn frame(&self, number: usize) -> Option<&Slab> {
        let mut entry = &self.root[number / (LEAF * NODE * NODE) % ROOT];
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

    /// Makes frames a slab. `None` if there is no frame for the description, or if there are slabs
    /// exactly [`SPAN`] away.
    ///
    /// `frames` is a power of two, at most a leaf's, and `start` is aligned to as many frames: the
    /// slab lies in one leaf.
    pub(super) fn insert<P: FramePlatform>(
        &self,
        cpu: Option<usize>,
        frames: &Frames<P>,
        start: NonNull<u8>,
        count: u8,
        class: Class,
    ) -> Option<&Slab> {
        let _changes = self.changes.lock(cpu)?;
        let number = start.addr().get() / FRAME;
        self.make_path(frames, number)?;
        let first = self.frame(number)?;
        if first.is_in_use() {
            return None;
        }
        first.describe(start, count, class);
        for back in 1..count {
            self.frame(number + usize::from(back))?.describe_rest(back);
        }
        Some(first)
    }

    fn make_path<P: FramePlatform>(&self, frames: &Frames<P>, number: usize) -> Option<()> {
        let mut entry = &self.root[number / (LEAF * NODE * NODE) % ROOT];
        for unit in [Some(LEAF * NODE), Some(LEAF), None] {
            let mut below = table(entry, Ordering::Relaxed);
            if below.is_none() {
                let fresh = frames.allocate(1, 1, Use::Own)?;
                // SAFETY: a frame, and nobody else has it.
                #[cfg(not(loom))]
                unsafe {
                    fresh.write_bytes(0, FRAME);
                }
                // SAFETY: as above. A model's atomics aren't numbers.
                #[cfg(loom)]
                unsafe {
                    match unit {
                        Some(_) => (fresh.cast::<Node>())
                            .write(atomics![AtomicPtr::new(ptr::null_mut()); NODE]),
                        None => fresh.cast::<Leaf>().write(atomics![Slab::none(); LEAF]),
                    }
                }
                let publish = if mutated("tables are not published") {
                    Ordering::Relaxed
                } else {
                    Ordering::Release
                };
                entry.store(fresh.as_ptr(), publish);
                below = Some(fresh);
            }
            if let (Some(unit), Some(below)) = (unit, below) {
                // SAFETY: a table, which isn't freed while this CPU has the lock.
                entry = unsafe { &below.cast::<Node>().as_ref()[number / unit % NODE] };
            }
        }
        Some(())
    }

    /// Forgets a slab, all of whose blocks are free, and returns its frames.
    pub(super) fn remove<P: FramePlatform>(
        &self,
        cpu: Option<usize>,
        frames: &Frames<P>,
        slab: &Slab,
    ) {
        let Some(start) = slab.start() else { return };
        let count = slab.frames();
        {
            let Some(_changes) = self.changes.lock(cpu) else {
                return;
            };
            let number = start.addr().get() / FRAME;
            for rest in (0..count).rev() {
                if let Some(frame) = self.frame(number + rest) {
                    frame.forget();
                }
            }
        }
        // SAFETY: the slab was made of these frames, and none of its blocks is used.
        unsafe { frames.free(start, count, Use::Slab) };
    }

    /// Returns the frames of all parts of the map that describe nothing.
    pub(super) fn trim<P: FramePlatform>(&self, cpu: Option<usize>, frames: &Frames<P>) {
        let Some(_changes) = self.changes.lock(cpu) else {
            return;
        };
        for entry in &self.root {
            trim_table(entry, 2, frames);
        }
    }
}

#[cfg(all(test, not(loom)))]
impl SlabMap {
    /// Shows the visitor all tables and leaves. Nobody uses the map meanwhile.
    pub(super) fn each_table(&self, visit: &mut dyn FnMut(NonNull<u8>)) {
        fn below(entry: &AtomicPtr<u8>, levels: usize, visit: &mut dyn FnMut(NonNull<u8>)) {
            let Some(start) = table(entry, Ordering::Relaxed) else {
                return;
            };
            if levels > 0 {
                // SAFETY: a table, as in `trim_table`.
                let node = unsafe { start.cast::<Node>().as_ref() };
                (node.iter()).for_each(|entry| below(entry, levels - 1, visit));
            }
            visit(start);
        }
        self.root.iter().for_each(|entry| below(entry, 2, visit));
    }
}

/// The table that an entry leads to, if there is one. They fill frames, so that the lowest bits are
/// nothing: the first byte of a table is not believed, as the frame before may be a slab whose last
/// block somebody writes past.
fn table(entry: &AtomicPtr<u8>, ordering: Ordering) -> Option<NonNull<u8>> {
    let start = entry.load(ordering);
    NonNull::new(start.map_addr(|address| address & !(FRAME - 1)))
}

/// Frees what lies below an entry and describes nothing: tables down to `levels` more, then leaves.
fn trim_table<P: FramePlatform>(entry: &AtomicPtr<u8>, levels: usize, frames: &Frames<P>) {
    let Some(below) = table(entry, Ordering::Relaxed) else {
        return;
    };
    let is_idle = if levels == 0 {
        // SAFETY: a leaf, which is freed only here, under the lock.
        let leaf = unsafe { below.cast::<Leaf>().as_ref() };
        !leaf.iter().any(Slab::is_in_use) || mutated("descriptions in use are freed")
    } else {
        // SAFETY: a table, as above.
        let node = unsafe { below.cast::<Node>().as_ref() };
        for entry in node {
            trim_table(entry, levels - 1, frames);
        }
        node.iter()
            .all(|entry| table(entry, Ordering::Relaxed).is_none())
    };
    if is_idle {
        entry.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: made by `make_path`, and no slab is left for whose sake it could be read.
        unsafe { frames.free(below, 1, Use::Own) };
    }
}
