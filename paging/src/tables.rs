//! Page tables: building them, walking them, and checking them against the plan.

mod aliases;
mod change;
pub(crate) mod entry;
mod error;
mod exclusion;
mod flush;
mod frame_source;
mod leaf;
mod mapping;
mod partial;
mod path;
mod verify;
mod view;

use crate::virt_addr::VirtAddr;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::address_allocator::WindowError;
use crate::plan::{Levels, PageSize, Plan};
use crate::unique::Unique;
use crate::virt_range::VirtRange;
use muster_frames::{Frame, PhysAddr};

use aliases::Aliases;
use entry::{
    ADDRESS, ENTRIES, Entry, TABLE, WITHDRAWN, empty_table, follow, index, leaf, leaf_bits,
    level_of, link, rights_bits, shift, table,
};
use error::fmt_full;

pub use aliases::Alias;
pub use change::{ChangeError, FreedPage};
pub use error::{PartlyMapped, TableError};
pub use exclusion::Exclusion;
pub use flush::{FLUSH_LIMIT, Flush, FlushSet, Shootdown, Unmapped, Unmapping};
pub use frame_source::{FrameSource, TablesOf};
pub use leaf::{Leaf, Rights, Translation};
pub use partial::PartialRoot;
pub use path::{Step, Target};
pub use verify::{Census, Mismatch};

/// The maximum number of windows whose addresses are given out: a kernel has a few. Their room is in
/// [`Tables`], as no code may allocate while those are locked.
const MAX_WINDOWS: usize = 16;

/// The maximum number of levels of tables below the root.
const MAX_LEVELS_BELOW: usize = 4;

/// Access to physical memory: the direct map in a kernel, a buffer in a test.
///
/// # Safety
///
/// For every frame for which [`Self::pointer`] answers `Some`, as long as the value lives:
///
/// 1. the pointer is valid for reads and writes of 4096 bytes and aligned to 4096;
/// 2. it always reaches the memory of that frame, and no other frame's;
/// 3. if the frame is a page table, its memory is accessed only by atomic operations of 8 bytes,
///    and by the CPU that walks it;
/// 4. while the frame is a page table, the answer stays `Some`.
pub unsafe trait PhysicalMemory {
    /// Returns where the frame that starts at `phys` can be accessed; `None` if it cannot.
    fn pointer(&self, phys: PhysAddr) -> Option<NonNull<u8>>;
}

// SAFETY: the same pointers as the referent's, which lives as long as the reference.
unsafe impl<M: PhysicalMemory> PhysicalMemory for &M {
    fn pointer(&self, phys: PhysAddr) -> Option<NonNull<u8>> {
        (**self).pointer(phys)
    }
}

/// The features of the CPU, by which tables are built and read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// It has 1 GiB pages (CPUID 8000_0001h, EDX bit 26).
    pub gigabyte_pages: bool,
}

/// Page tables that exist, such as those that CR3 points to, to be read through some
/// [`PhysicalMemory`]; nothing is changed by it.
pub struct TableView<M> {
    memory: M,
    levels: Levels,
    features: Features,
    root: Frame,
}

/// Page tables, built through some [`PhysicalMemory`]; to be read as their [`TableView`].
///
/// Permanent mappings, such as a plan's regions, are made by [`Self::map_permanently`] when the kernel
/// starts; others by [`Self::map`]. No CPU has anything to flush then, since CPUs do not cache that a
/// page is absent (Intel SDM vol. 3, 5.10.2.3 "Details of TLB Use"). A mapping that is removed or
/// restricted has to be flushed on all CPUs: [`Self::unmap`] and [`Self::protect`] return a value that
/// stands for it, and the frames come back, by [`Self::complete`], only for the proof that it was done:
///
/// 1. [`Self::unmap`], under the lock that guards the tables: entries are no longer present.
/// 2. [`Unmapping::flush`], without the lock: all CPUs flush, in one round.
/// 3. [`Self::complete`], under the lock: the frames are free.
/// 4. [`AddressAllocator::free`](crate::AddressAllocator::free): the addresses may be used again.
///
/// It proves that a page is mapped only inside its region, with its rights, its cache type and the
/// largest size that fits; nothing present is overwritten; the frames of the tables are these tables'
/// alone, and none is given back that a CPU may still reach by them. No physical memory can be written
/// by one address and executed by another or the same, nor is it cached in two ways, not even while
/// CPUs go by what they have cached of pages that were unmapped or have lost rights: what would make it
/// so is refused ([`Alias`]). [`Self::verify`] proves, by walking the tables as the CPU does, that they
/// hold a plan and nothing else. Neither proves that the plan is right, what other tables map with
/// another root, or that the CPU's registers (CR3, CR4, EFER, PAT, MTRRs) are set as the tables assume.
///
/// Tables other than the root come and go, so no other root may point to one of them, but one that these
/// tables know of, and for whose sake what it shares with them stays ([`Self::root_without`]). If the value
/// is dropped, the tables stay as they are, for good.
pub struct Tables<M> {
    id: Unique,
    view: TableView<M>,
    /// The number of tables, the root included.
    built: usize,
    /// The number of those that are withdrawn: no walk reaches them.
    withdrawn: usize,
    /// The record of how physical memory is mapped.
    aliases: Aliases,
    /// The addresses that are mapped for good, sorted.
    permanent: Vec<VirtRange>,
    /// The addresses that allocators give out; no two overlap.
    windows: [Option<VirtRange>; MAX_WINDOWS],
    /// The windows that second roots lack, one for each: the tables for all else are theirs, too. Only
    /// what lies in all of them can change.
    lacking: Vec<VirtRange>,
}

impl<M> Deref for Tables<M> {
    type Target = TableView<M>;

    fn deref(&self) -> &TableView<M> {
        &self.view
    }
}

impl<M: PhysicalMemory> Tables<M> {
    /// Makes empty tables, with room to record how 256 ranges of physical memory are mapped that come
    /// and go, some 20 KiB.
    ///
    /// # Errors
    ///
    /// [`TableError::OutOfFrames`], [`TableError::WrongOwner`], [`TableError::Unreachable`] or
    /// [`TableError::OutOfMemory`].
    pub fn new(
        memory: M,
        levels: Levels,
        features: Features,
        frames: &impl FrameSource,
    ) -> Result<Self, TableError> {
        let aliases = Aliases::new()?;
        let root = empty_table(&memory, frames)?.into_raw();
        let view = TableView {
            memory,
            levels,
            features,
            root,
        };
        Ok(Self {
            id: Unique::new(),
            view,
            built: 1,
            withdrawn: 0,
            aliases,
            permanent: Vec::new(),
            windows: [None; MAX_WINDOWS],
            lacking: Vec::new(),
        })
    }

    /// Returns the identity of these tables, for what belongs to no others.
    pub(crate) const fn id(&self) -> Unique {
        self.id
    }

    /// Records that an allocator gives out the addresses of this window, and no other one ever does.
    pub(crate) fn claim_window(&mut self, window: VirtRange) -> Result<(), WindowError> {
        if !self.levels.have(window) {
            return Err(WindowError::NotCanonical { window });
        }
        let overlaps =
            |with: &VirtRange| with.start() <= window.last() && window.start() <= with.last();
        if let Some(with) = self.windows.iter().flatten().copied().find(overlaps) {
            return Err(WindowError::Overlap { window, with });
        }
        if !self.is_vacant(window) {
            return Err(WindowError::InUse { window });
        }
        let place = self.windows.iter_mut().find(|place| place.is_none());
        let windows = MAX_WINDOWS;
        *place.ok_or(WindowError::TooMany { window, windows })? = Some(window);
        Ok(())
    }

    /// Returns how many tables there are, the root included, and those that are withdrawn.
    pub const fn table_count(&self) -> usize {
        self.built
    }

    /// Checks what [`TableView::verify`] does, and that there are as many tables as were built, and are not
    /// withdrawn by an unmapping that is under way.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`], by virtual address.
    pub fn verify(&self, plan: &Plan) -> Result<Census, Mismatch> {
        self.view.audit(plan, Some(self.built - self.withdrawn))
    }

    /// Makes room to record how this many more ranges of physical memory are mapped that come and go.
    /// Frames that are mapped permanently, as by a direct map, and by a mapping that allows no more
    /// need none; a kernel without a direct map needs one for each frame that follows no other.
    ///
    /// Memory that is mapped alike and in one piece is one range, whatever the names of its regions; but what
    /// regions of different names map permanently are ranges of their own. [`Self::map`] and [`Self::protect`] need
    /// as many records as they make before ranges that have become alike are one again:
    ///
    /// - To map memory takes one for each part of it between the ranges that are there, but none for one
    ///   that continues the range before the memory; one if it begins inside of a range; and one if its
    ///   end, or that of a page before, is inside of a range, as a mapping may fail there.
    /// - To change the rights of pages takes one for each border inside of a range between pages that
    ///   change and memory that does not, or changes otherwise. Pages whose addresses follow each other
    ///   are changed together if their memory does as well, upwards or downwards, and each such run
    ///   has two borders. One that several runs have counts once.
    ///
    /// # Errors
    ///
    /// [`TableError::OutOfMemory`].
    pub fn reserve(&mut self, ranges: usize) -> Result<(), TableError> {
        Ok(self.aliases.reserve(ranges)?)
    }

    /// Returns the index of the first permanent range that ends at this address or above.
    fn permanent_index(&self, virt: VirtAddr) -> usize {
        self.permanent.partition_point(|range| range.last() < virt)
    }
}

impl<M> fmt::Debug for TableView<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableView")
            .field("root", &self.root)
            .field("levels", &self.levels)
            .field("features", &self.features)
            .finish_non_exhaustive()
    }
}

impl<M> fmt::Debug for Tables<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables")
            .field("view", &self.view)
            .field("built", &self.built)
            .finish_non_exhaustive()
    }
}

impl Features {
    const fn has(self, size: PageSize) -> bool {
        self.gigabyte_pages || !matches!(size, PageSize::Size1GiB)
    }
}
