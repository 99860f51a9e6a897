//! Page tables: building them, walking them, and checking them against the plan.

mod aliases;
mod change;
mod exclusion;
mod flush;
mod frame_source;
mod partial;
mod path;

use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::structures::paging::PageTableFlags as Flags;

use crate::address_allocator::WindowError;
use crate::map::Owner;
use crate::owned::OwnedFrame;
use crate::plan::{Access, Cache, Levels, PageSize, Plan, PlanError, Region, pat_index};
use crate::range::{FRAME_SIZE, Frame, PhysRange};
use crate::unique::Unique;
use crate::virt_range::VirtRange;

use aliases::{Aliases, Counted, Refusal, Use};

pub use aliases::Alias;
pub use change::{ChangeError, FreedPage};
pub use exclusion::Exclusion;
pub use flush::{FLUSH_LIMIT, Flush, FlushSet, Shootdown, Unmapped, Unmapping};
pub use frame_source::FrameSource;
pub use partial::PartialRoot;
pub use path::{Step, Target};

/// Entries in a table of any level.
const ENTRIES: usize = 512;

/// Bits 12–51 of an entry: the physical address of a table or 4 KiB page (Intel SDM vol. 3, 5.5.4).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry that points to a table allows everything: the leaf decides. Accessed is preset so that
/// the CPU need not write to the tables.
const TABLE: u64 = Flags::PRESENT.bits() | Flags::WRITABLE.bits() | Flags::ACCESSED.bits();

/// The bits by which an entry that points to a table could deny something, or change how the table
/// itself is cached.
const TABLE_CHECKED: u64 = Flags::PRESENT.bits()
    | Flags::WRITABLE.bits()
    | Flags::USER_ACCESSIBLE.bits()
    | Flags::WRITE_THROUGH.bits()
    | Flags::NO_CACHE.bits()
    | Flags::HUGE_PAGE.bits()
    | Flags::NO_EXECUTE.bits();

/// An entry that is not present, but keeps what it had until all CPUs have flushed it. Of an entry
/// that is not present, the CPU ignores all other bits (Intel SDM vol. 3, 5.5.4).
const WITHDRAWN: u64 = Flags::BIT_9.bits();

/// Windows whose addresses are given out, at most: a kernel has a few. Their room is in [`Tables`], as
/// nobody may allocate while those are locked.
const MAX_WINDOWS: usize = 16;

/// Tables below the root, at most.
const MAX_LEVELS_BELOW: usize = 4;

/// How to reach physical memory: the direct map in a kernel, a buffer in a test.
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
    /// Where the frame that starts at `phys` can be accessed; `None` if it cannot.
    fn pointer(&self, phys: u64) -> Option<NonNull<u8>>;
}

// SAFETY: the same pointers as the referent's, which lives as long as the reference.
unsafe impl<M: PhysicalMemory> PhysicalMemory for &M {
    fn pointer(&self, phys: u64) -> Option<NonNull<u8>> {
        (**self).pointer(phys)
    }
}

/// What the CPU can do that tables may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// It has 1 GiB pages (CPUID 8000_0001h, EDX bit 26).
    pub gigabyte_pages: bool,
}

/// Why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// There was no frame for another table.
    OutOfFrames,
    /// The frame that the source answered for another table is not of [`Owner::PageTables`].
    WrongOwner {
        /// Whose it is.
        owner: Owner,
    },
    /// The region cannot be mapped, whatever the tables hold.
    Region(PlanError),
    /// Something is mapped there already.
    AlreadyMapped {
        /// The virtual address.
        virt: u64,
    },
    /// The CPUs have not yet flushed what was mapped there before.
    Unflushed {
        /// The virtual address.
        virt: u64,
    },
    /// A table lies where the given memory cannot be reached.
    Unreachable {
        /// The table's physical address.
        phys: u64,
    },
    /// The physical memory is mapped already, in a way that excludes this one.
    Alias(Alias),
    /// There is no room to record how more of the physical memory is mapped.
    RecordsFull {
        /// How many records there may be.
        records: usize,
    },
    /// The heap has no memory for the record of what is mapped.
    OutOfMemory {
        /// Bytes that it takes.
        bytes: usize,
    },
}

impl From<Refusal> for TableError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Alias(alias) => Self::Alias(alias),
            Refusal::Full(records) => Self::RecordsFull { records },
            Refusal::OutOfMemory(bytes) => Self::OutOfMemory { bytes },
        }
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames => f.write_str("no frame is left for a page table: add memory"),
            Self::WrongOwner { owner } => write!(
                f,
                "the source of page tables answered a frame of {owner}: let it take page tables'"
            ),
            Self::Region(error) => error.fmt(f),
            Self::AlreadyMapped { virt } => write!(f, "{virt:#x} is mapped already"),
            Self::Unflushed { virt } => {
                write!(f, "{virt:#x} was unmapped, and not yet flushed on all CPUs")
            }
            Self::Unreachable { phys } => {
                write!(f, "the page table at physical {phys:#x} cannot be reached")
            }
            Self::Alias(alias) => alias.fmt(f),
            Self::RecordsFull { records } => fmt_full(f, *records),
            Self::OutOfMemory { bytes } => write!(
                f,
                "the heap has no {bytes} bytes to record what is mapped: free some memory"
            ),
        }
    }
}

fn fmt_full(f: &mut fmt::Formatter<'_>, records: usize) -> fmt::Result {
    write!(
        f,
        "the {records} records of what is mapped are too few: unmap something, or reserve more when \
         the tables are made"
    )
}

impl core::error::Error for TableError {}

impl From<PlanError> for TableError {
    fn from(error: PlanError) -> Self {
        Self::Region(error)
    }
}

/// A region could be mapped only in part, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartlyMapped {
    /// Why it went no further.
    pub error: TableError,
    /// How many bytes of it are mapped now, from its start on.
    pub bytes: u64,
}

impl fmt::Display for PartlyMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl core::error::Error for PartlyMapped {}

/// Nothing is mapped.
impl<E: Into<TableError>> From<E> for PartlyMapped {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            bytes: 0,
        }
    }
}

/// What the CPU grants to a page: its leaf entry's rights, as far as all entries above it agree
/// (Intel SDM vol. 3, 5.6 "Access Rights").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights {
    /// Writes are allowed.
    pub writable: bool,
    /// Instruction fetches are allowed.
    pub executable: bool,
    /// All of it is allowed to user mode, too.
    pub user: bool,
}

impl Rights {
    const ALL: Self = Self {
        writable: true,
        executable: true,
        user: true,
    };

    /// What is left of the rights below an entry.
    const fn below(self, entry: u64) -> Self {
        Self {
            writable: self.writable && entry & Flags::WRITABLE.bits() != 0,
            executable: self.executable && entry & Flags::NO_EXECUTE.bits() == 0,
            user: self.user && entry & Flags::USER_ACCESSIBLE.bits() != 0,
        }
    }

    /// The same as an [`Access`], or `None` if none says it: because it is the user's, or writable
    /// and executable.
    pub const fn access(self) -> Option<Access> {
        match self {
            Self {
                writable: false,
                executable: false,
                user: false,
            } => Some(Access::ReadOnly),
            Self {
                writable: true,
                executable: false,
                user: false,
            } => Some(Access::ReadWrite),
            Self {
                writable: false,
                executable: true,
                user: false,
            } => Some(Access::ReadExecute),
            _ => None,
        }
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |granted, letter| if granted { letter } else { '-' };
        write!(
            f,
            "r{}{}",
            letter(self.writable, 'w'),
            letter(self.executable, 'x')
        )?;
        if self.user {
            f.write_str(" user")
        } else {
            Ok(())
        }
    }
}

/// A page that tables map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its first virtual address.
    pub virt: u64,
    /// Its first physical address.
    pub phys: u64,
    /// Its size.
    pub size: PageSize,
    /// What may be done with it.
    pub rights: Rights,
    /// The entry of the PAT that says how it is cached.
    pub pat_index: u8,
}

impl Leaf {
    /// Its last virtual address.
    pub const fn last(&self) -> u64 {
        self.virt | (self.size.bytes() - 1)
    }

    /// What may be done with it; see [`Rights::access`].
    pub const fn access(&self) -> Option<Access> {
        self.rights.access()
    }

    /// How it is cached; see [`Cache::from_pat_index`].
    pub const fn cache(&self) -> Option<Cache> {
        Cache::from_pat_index(self.pat_index)
    }

    fn fmt_cache(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cache() {
            Some(cache) => fmt::Display::fmt(&cache, f),
            None => write!(f, "PAT {}", self.pat_index),
        }
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            virt,
            phys,
            size,
            rights,
            ..
        } = self;
        write!(f, "{size} page {virt:#x} -> {phys:#x}, {rights} ")?;
        self.fmt_cache(f)
    }
}

/// What a virtual address is translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address.
    pub phys: u64,
    /// The page it lies in.
    pub leaf: Leaf,
}

/// What finished tables hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Pages of 4 KiB.
    pub pages_4kib: usize,
    /// Pages of 2 MiB.
    pub pages_2mib: usize,
    /// Pages of 1 GiB.
    pub pages_1gib: usize,
    /// Tables of all levels, the root included.
    pub tables: usize,
    /// Bytes mapped.
    pub bytes: u64,
}

impl Census {
    fn count(&mut self, leaf: &Leaf) {
        match leaf.size {
            PageSize::Size4KiB => self.pages_4kib += 1,
            PageSize::Size2MiB => self.pages_2mib += 1,
            PageSize::Size1GiB => self.pages_1gib += 1,
        }
        self.bytes += leaf.size.bytes();
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pages_4kib,
            pages_2mib,
            pages_1gib,
            tables,
            bytes,
        } = self;
        write!(
            f,
            "{bytes:#x} bytes in {pages_1gib} pages of 1 GiB, {pages_2mib} of 2 MiB, {pages_4kib} \
             of 4 KiB, by {tables} tables"
        )
    }
}

/// How tables differ from what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The plan is for another number of levels.
    Levels {
        /// The plan's.
        expected: Levels,
        /// The tables'.
        found: Levels,
    },
    /// The tables are not a tree of as many tables as were built.
    Tables {
        /// Tables built.
        expected: usize,
        /// Tables found, at least.
        found: usize,
    },
    /// An entry points to a table that cannot be reached.
    Unreachable {
        /// The first virtual address that the entry is for.
        virt: u64,
        /// The table's physical address.
        phys: u64,
    },
    /// An entry has bits that the CPU rejects (Intel SDM vol. 3, 5.5.4: reserved bits).
    Malformed {
        /// The first virtual address that the entry is for.
        virt: u64,
        /// The level of its table: 1 for a table of 4 KiB pages.
        level: u8,
        /// The entry.
        entry: u64,
    },
    /// An entry that points to a table denies something, is the user's, or has the table cached
    /// otherwise than write-back.
    TableEntry {
        /// The first virtual address that the entry is for.
        virt: u64,
        /// The level of its table: 2 for a table of pointers to tables of 4 KiB pages.
        level: u8,
        /// The entry.
        entry: u64,
    },
    /// A page is mapped that is in no region.
    Stray {
        /// The page.
        leaf: Leaf,
    },
    /// A part of a region is not mapped.
    Missing {
        /// The region.
        region: Region,
        /// The first virtual address that is not mapped.
        virt: u64,
    },
    /// A page reaches beyond the region it begins in, or is larger than the region allows or the CPU
    /// has.
    TooLarge {
        /// The region.
        region: Region,
        /// The page.
        leaf: Leaf,
    },
    /// A page shows other memory than the region says.
    Address {
        /// The region.
        region: Region,
        /// The page.
        leaf: Leaf,
        /// The physical address it should show.
        expected: u64,
    },
    /// A page has other rights than the region says.
    Access {
        /// The region.
        region: Region,
        /// The page.
        leaf: Leaf,
    },
    /// A page is cached otherwise than the region says.
    Cache {
        /// The region.
        region: Region,
        /// The page.
        leaf: Leaf,
    },
    /// What a page lets write, can be executed: there or at another address.
    WritableCode {
        /// The page.
        leaf: Leaf,
    },
    /// The heap has no memory to record what can be executed.
    OutOfMemory {
        /// Bytes that it takes.
        bytes: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !matches!(self, Self::OutOfMemory { .. }) {
            f.write_str("the page tables are wrong: ")?;
        }
        match self {
            Self::OutOfMemory { bytes } => write!(
                f,
                "the heap has no {bytes} bytes to record what can be executed: free some memory"
            ),
            Self::Levels { expected, found } => {
                write!(
                    f,
                    "{} levels instead of {}",
                    found.count(),
                    expected.count()
                )
            }
            Self::Tables { expected, found } => {
                write!(f, "{expected} tables were built, but {found} are reached")
            }
            Self::Unreachable { virt, phys } => {
                write!(
                    f,
                    "the table for {virt:#x} at physical {phys:#x} cannot be reached"
                )
            }
            Self::Malformed { virt, level, entry } => write!(
                f,
                "the level {level} entry for {virt:#x} is {entry:#x}, which the CPU rejects"
            ),
            Self::TableEntry { virt, level, entry } => write!(
                f,
                "the level {level} entry for {virt:#x} is {entry:#x}, which does not leave all \
                 rights to the leaves"
            ),
            Self::Stray { leaf } => write!(f, "{leaf} is in no region"),
            Self::Missing { region, virt } => write!(f, "{virt:#x} is not mapped ({region})"),
            Self::TooLarge { region, leaf } => write!(f, "{leaf} is too large for {region}"),
            Self::Address {
                region,
                leaf,
                expected,
            } => {
                write!(f, "{leaf} should show {expected:#x} ({region})")
            }
            Self::Access { region, leaf } | Self::Cache { region, leaf } => {
                write!(f, "{leaf} is not as in {region}")
            }
            Self::WritableCode { leaf } => {
                write!(
                    f,
                    "{leaf} lets write what can be executed, there or elsewhere"
                )
            }
        }
    }
}

impl core::error::Error for Mismatch {}

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
/// What is to stay, as a plan's regions, is mapped by [`Self::map_permanently`], when the kernel
/// starts; what comes and goes by [`Self::map`]. No CPU has anything to flush then, since CPUs do not
/// cache that a page is absent (Intel SDM vol. 3, 5.10.2.3 "Details of TLB Use"). What is taken away,
/// has to be flushed on all CPUs: [`Self::unmap`] and [`Self::protect`] return a value that stands for
/// it, and the frames come back, by [`Self::complete`], only for the proof that it was done:
///
/// 1. [`Self::unmap`], under the lock that guards the tables: entries are no longer present.
/// 2. [`Unmapping::flush`], without the lock: all CPUs flush, in one round.
/// 3. [`Self::complete`], under the lock: the frames are free.
/// 4. [`AddressAllocator::free`](crate::AddressAllocator::free): the addresses may be used again.
///
/// What it proves: a page is mapped only inside its region, with its rights, its cache type and the
/// largest size that fits; nothing present is overwritten; the frames of the tables are these tables'
/// alone, and none is given back that a CPU may still reach by them. No physical memory can be written
/// by one address and executed by another or the same, nor is it cached in two ways, not even while
/// CPUs go by what they have cached of pages that were unmapped or have lost rights: what would make
/// it so is refused ([`Alias`]). [`Self::verify`] proves, by walking the tables as the CPU does, that
/// they hold a plan and nothing else. What neither proves: that the plan is right; what other tables
/// map, with another root; and that the CPU's registers (CR3, CR4, EFER, PAT, MTRRs) are set as the
/// tables assume.
///
/// Tables other than the root come and go, so no other root may point to one of them, but one that these
/// tables know of, and for whose sake what it shares with them stays ([`Self::root_without`]). If the value
/// is dropped, the tables stay as they are, for good.
pub struct Tables<M> {
    id: Unique,
    view: TableView<M>,
    /// How many tables there are, the root included.
    built: usize,
    /// How the physical memory is mapped.
    aliases: Aliases,
    /// The addresses that are mapped for good, sorted.
    permanent: Vec<VirtRange>,
    /// The addresses that allocators give out; no two overlap.
    windows: [Option<VirtRange>; MAX_WINDOWS],
    /// What second roots lack, one for each: the tables for all else are theirs, too.
    lacking: Vec<VirtRange>,
}

impl<M> Deref for Tables<M> {
    type Target = TableView<M>;

    fn deref(&self) -> &TableView<M> {
        &self.view
    }
}

/// What a walk meets.
trait Visitor {
    /// An entry that points to a table.
    fn table(&mut self, virt: u64, level: u8, entry: u64) -> Result<(), Mismatch>;
    /// A page.
    fn leaf(&mut self, leaf: Leaf) -> Result<(), Mismatch>;
}

/// An entry, as the CPU understands it at its level.
enum Entry {
    Absent,
    Table(Option<Frame>),
    Leaf { phys: u64, size: PageSize },
    Malformed,
}

impl Entry {
    fn decode(entry: u64, level: u8) -> Self {
        if entry & Flags::PRESENT.bits() == 0 {
            return Self::Absent;
        }
        let large = entry & Flags::HUGE_PAGE.bits() != 0;
        let size = match level {
            1 => PageSize::Size4KiB,
            2 if large => PageSize::Size2MiB,
            3 if large => PageSize::Size1GiB,
            // Bit 7 is reserved where there are no large pages.
            _ if large => return Self::Malformed,
            _ => return Self::Table(Frame::from_start(entry & ADDRESS)),
        };
        let phys = entry & ADDRESS & !(size.bytes() - 1);
        // Between the PAT bit of a large page and its address, all bits are reserved.
        let reserved = entry & ADDRESS & !phys & !Cache::WriteCombining.bits(size);
        if reserved == 0 {
            Self::Leaf { phys, size }
        } else {
            Self::Malformed
        }
    }

    /// What the entry is, or was before it was withdrawn; and whether it was.
    fn decode_any(entry: u64, level: u8) -> (Self, bool) {
        let present = Flags::PRESENT.bits();
        if entry & (present | WITHDRAWN) == WITHDRAWN {
            (Self::decode(entry | present, level), true)
        } else {
            (Self::decode(entry, level), false)
        }
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
            aliases,
            permanent: Vec::new(),
            windows: [None; MAX_WINDOWS],
            lacking: Vec::new(),
        })
    }

    /// Tells which tables these are, for what belongs to no others.
    pub(crate) const fn id(&self) -> Unique {
        self.id
    }

    /// Records that an allocator gives out the addresses of this window, and no other one ever does.
    pub(crate) fn claim_window(&mut self, window: VirtRange) -> Result<(), WindowError> {
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

    /// As [`TableView::verify`], and checks that there are as many tables as were built.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`], by virtual address.
    pub fn verify(&self, plan: &Plan) -> Result<Census, Mismatch> {
        self.view.audit(plan, Some(self.built))
    }

    /// Makes room to record how so many more ranges of physical memory are mapped that come and go.
    /// Frames that are mapped permanently, as by a direct map, and by a mapping that allows no more
    /// need none; a kernel without a direct map needs one for each frame that follows no other.
    ///
    /// # Errors
    ///
    /// [`TableError::OutOfMemory`].
    pub fn reserve(&mut self, ranges: usize) -> Result<(), TableError> {
        Ok(self.aliases.reserve(ranges)?)
    }

    /// Maps a region for good, with the largest pages that fit inside it: it can be neither unmapped nor
    /// given other rights. May allocate memory, to record it: for when the kernel starts.
    ///
    /// # Errors
    ///
    /// See [`TableError`]. The part of the region below the failure stays mapped.
    ///
    /// # Safety
    ///
    /// As for [`Self::map`].
    pub unsafe fn map_permanently(
        &mut self,
        region: &Region,
        frames: &impl FrameSource,
    ) -> Result<(), PartlyMapped> {
        let (memory, wanted) = self.describe(region)?;
        self.aliases.check_permanent(memory, wanted)?;
        let one = size_of::<VirtRange>();
        let reserved = self.permanent.try_reserve(1);
        reserved.map_err(|_| Refusal::OutOfMemory(one))?;
        Mapping {
            tables: self,
            region,
            wanted,
            counted: None,
            bytes: 0,
        }
        .set_leaves(frames)
    }

    /// Maps a region with the largest pages that fit inside it, until it is unmapped. Takes at most one
    /// frame per level and page for tables, and allocates nothing else.
    ///
    /// # Errors
    ///
    /// See [`TableError`]. The part of the region below the failure stays mapped.
    ///
    /// # Safety
    ///
    /// 1. The addresses are the caller's to map at: no code relies on nothing being mapped there, as a
    ///    stack on its guard.
    /// 2. CPUs may read the memory at any time in the way that its cache type lets them, whatever the
    ///    code does: it is there, and it is no device's if the type is write-back.
    pub unsafe fn map(
        &mut self,
        region: &Region,
        frames: &impl FrameSource,
    ) -> Result<(), PartlyMapped> {
        let (memory, wanted) = self.describe(region)?;
        let counted = self.aliases.check(memory, wanted, Counted::Not)?;
        if counted != Counted::Not {
            self.aliases.check_room(self.aliases.needed(memory))?;
        }
        Mapping {
            tables: self,
            region,
            wanted,
            counted: Some(counted),
            bytes: 0,
        }
        .set_leaves(frames)
    }

    /// Maps one 4 KiB page, as when a window grows at run time. Takes at most one frame per level
    /// for tables, and allocates nothing else.
    ///
    /// # Errors
    ///
    /// See [`TableError`]. Nothing has been mapped then.
    ///
    /// # Safety
    ///
    /// As for [`Self::map`].
    pub unsafe fn map_page(
        &mut self,
        virt: u64,
        frame: Frame,
        access: Access,
        cache: Cache,
        frames: &impl FrameSource,
    ) -> Result<(), TableError> {
        let size = PageSize::Size4KiB;
        let page = Region {
            name: "page",
            virt,
            phys: frame.start(),
            length: size.bytes(),
            access,
            cache,
            largest: size,
        };
        // SAFETY: the caller's promise.
        unsafe { self.map(&page, frames) }.map_err(|failure| failure.error)
    }

    /// Returns the memory that a region maps, if it can be mapped at all, and how.
    fn describe(&self, region: &Region) -> Result<(PhysRange, Use), PlanError> {
        region.check(self.levels)?;
        let Region {
            name,
            phys,
            length,
            access,
            cache,
            ..
        } = *region;
        let memory = region.physical().ok_or(PlanError::BeyondPhysical {
            name,
            phys,
            length,
            bits: 52,
        })?;
        let wanted = Use {
            name,
            access,
            cache,
        };
        Ok((memory, wanted))
    }

    /// Returns the index of the first permanent range that ends at this address or above.
    fn permanent_index(&self, virt: u64) -> usize {
        self.permanent.partition_point(|range| range.last() < virt)
    }

    /// The largest page that can begin at the addresses whose bits are `address` and fits into
    /// `length` bytes.
    fn largest_page(&self, address: u64, length: u64, largest: PageSize) -> PageSize {
        PageSize::ALL
            .into_iter()
            .rev()
            .filter(|&size| size <= largest && self.features.has(size))
            .find(|size| size.bytes() <= length && address.is_multiple_of(size.bytes()))
            .unwrap_or(PageSize::Size4KiB)
    }

    fn set_leaf(
        &mut self,
        virt: u64,
        size: PageSize,
        entry: u64,
        frames: &impl FrameSource,
    ) -> Result<(), TableError> {
        let leaf_level = level_of(size);
        // Tables on the way in which pages were withdrawn, none of them this one.
        let mut withdrawn = [None; MAX_LEVELS_BELOW];
        let mut frame = self.root;
        let mut level = self.levels.count();
        let slot = loop {
            let slot = &self.table(frame)?[index(virt, level)];
            let (decoded, is_withdrawn) = Entry::decode_any(slot.load(Ordering::Relaxed), level);
            match decoded {
                Entry::Absent => break slot,
                Entry::Table(Some(below)) if level > leaf_level => {
                    if is_withdrawn {
                        withdrawn[usize::from(level) - 2] = Some(slot);
                    }
                    frame = below;
                    level -= 1;
                }
                Entry::Table(None) => return Err(TableError::Unreachable { phys: 0 }),
                _ if is_withdrawn => return Err(TableError::Unflushed { virt }),
                _ => return Err(TableError::AlreadyMapped { virt }),
            }
        };
        let top = self.new_tables(virt, level, leaf_level, entry, frames)?;
        // Release: whoever sees the entry sees what is in the new tables.
        slot.store(top, Ordering::Release);
        for slot in withdrawn.into_iter().flatten() {
            let entry = slot.load(Ordering::Relaxed);
            slot.store(
                entry & !WITHDRAWN | Flags::PRESENT.bits(),
                Ordering::Release,
            );
        }
        self.built += usize::from(level - leaf_level);
        Ok(())
    }

    /// Makes the tables for one page below a slot of this level, and answers what is to be put in the
    /// slot: the page itself, if none are needed.
    fn new_tables(
        &self,
        virt: u64,
        level: u8,
        leaf_level: u8,
        leaf: u64,
        frames: &impl FrameSource,
    ) -> Result<u64, TableError> {
        let mut made = [const { None::<OwnedFrame> }; MAX_LEVELS_BELOW];
        let mut entry = leaf;
        for (below, place) in (leaf_level..level).zip(&mut made) {
            let table = empty_table(&self.memory, frames).and_then(|owned| {
                let frame = owned.frame();
                *place = Some(owned);
                self.table(frame)?[index(virt, below)].store(entry, Ordering::Relaxed);
                Ok(frame)
            });
            match table {
                Ok(frame) => entry = frame.start() | TABLE,
                Err(error) => {
                    // No CPU has seen them.
                    made.into_iter()
                        .flatten()
                        .for_each(|owned| frames.give_back(owned));
                    return Err(error);
                }
            }
        }
        // The entries name them from here on, by which `complete` makes the rights again.
        made.into_iter().flatten().for_each(|owned| {
            let _ = owned.into_raw();
        });
        Ok(entry)
    }
}

/// A region that is being mapped. What of it is mapped is recorded when this goes, also if the source
/// of frames, which is anybody's code, panics meanwhile.
struct Mapping<'a, M: PhysicalMemory> {
    tables: &'a mut Tables<M>,
    region: &'a Region,
    wanted: Use,
    /// As what its pages are counted; `None` if they are mapped for good. There is room to record it.
    counted: Option<Counted>,
    /// How many bytes of it are mapped, from its start on.
    bytes: u64,
}

impl<M: PhysicalMemory> Mapping<'_, M> {
    /// Sets the entries of the region's pages, and marks them with what they are counted as.
    fn set_leaves(mut self, frames: &impl FrameSource) -> Result<(), PartlyMapped> {
        let region = self.region;
        let counted = self.counted.unwrap_or(Counted::Not);
        while self.bytes < region.length {
            let bytes = self.bytes;
            let virt = region.virt + bytes;
            let phys = region.phys + bytes;
            let left = region.length - bytes;
            let size = self.tables.largest_page(virt | phys, left, region.largest);
            let bits = leaf_bits(size, region.access, region.cache) | counted.bits();
            self.tables
                .set_leaf(virt, size, phys | bits, frames)
                .map_err(|error| PartlyMapped { error, bytes })?;
            self.bytes += size.bytes();
        }
        Ok(())
    }
}

impl<M: PhysicalMemory> Drop for Mapping<'_, M> {
    fn drop(&mut self) {
        let Self { region, wanted, .. } = *self;
        let tables = &mut *self.tables;
        let Some(memory) = PhysRange::new(region.phys, self.bytes) else {
            return;
        };
        match self.counted {
            Some(Counted::Not) => {}
            Some(_) => tables.aliases.add(memory, wanted, Counted::Not),
            None => {
                tables.aliases.add_permanent(memory, wanted);
                if let Some(range) = VirtRange::new(region.virt, self.bytes) {
                    let index = tables.permanent_index(range.start());
                    tables.permanent.insert(index, range);
                }
            }
        }
    }
}

impl<M: PhysicalMemory> TableView<M> {
    /// Makes a view of the tables with this root.
    ///
    /// # Safety
    ///
    /// As long as the view is used, `root` is the root of page tables, that is, of such memory as
    /// [`PhysicalMemory`] asks of a table. Entries in them may be any garbage as long as they point to
    /// no other frames that `memory` reaches. If the tables change meanwhile, no table is given back
    /// during a walk: the lock under which they change is held, or something keeps a flush from being
    /// completed, such as disabled interrupts on a CPU that every flush asks.
    pub const unsafe fn new(memory: M, levels: Levels, features: Features, root: Frame) -> Self {
        Self {
            memory,
            levels,
            features,
            root,
        }
    }

    /// The root's frame: what CR3 points to.
    pub const fn root(&self) -> Frame {
        self.root
    }

    /// How many levels the tables have.
    pub const fn levels(&self) -> Levels {
        self.levels
    }

    /// What the virtual address is translated to; `None` if it is not mapped, not canonical, or if
    /// the tables on the way are malformed.
    pub fn translate(&self, virt: u64) -> Option<Translation> {
        match self.path(virt).last()?.target {
            Target::Page(leaf) => Some(Translation {
                phys: leaf.phys + (virt - leaf.virt),
                leaf,
            }),
            _ => None,
        }
    }

    /// Calls `visit` with every page, lowest virtual address first, and answers how many tables
    /// there are. It needs no memory and goes no deeper than the tables have levels, whatever they
    /// hold.
    ///
    /// # Errors
    ///
    /// [`Mismatch::Unreachable`] or [`Mismatch::Malformed`], and `visit` sees no more pages.
    pub fn walk(&self, visit: &mut impl FnMut(Leaf)) -> Result<usize, Mismatch> {
        struct Leaves<'a, F> {
            visit: &'a mut F,
            tables: usize,
        }

        impl<F: FnMut(Leaf)> Visitor for Leaves<'_, F> {
            fn table(&mut self, _: u64, _: u8, _: u64) -> Result<(), Mismatch> {
                self.tables += 1;
                Ok(())
            }

            fn leaf(&mut self, leaf: Leaf) -> Result<(), Mismatch> {
                (self.visit)(leaf);
                Ok(())
            }
        }

        let mut leaves = Leaves { visit, tables: 1 };
        self.descend(self.root, self.levels.count(), 0, Rights::ALL, &mut leaves)?;
        Ok(leaves.tables)
    }

    /// Checks, by walking them, that the tables hold the plan and nothing else: every page lies in
    /// one region and is no larger than it allows, with exactly its rights, its cache type and its
    /// physical addresses; every region is mapped to the byte; entries that point to tables leave
    /// all rights to the leaves.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`], by virtual address.
    pub fn verify(&self, plan: &Plan) -> Result<Census, Mismatch> {
        self.audit(plan, None)
    }

    /// Checks the tables against a plan, and their number if it is known.
    fn audit(&self, plan: &Plan, built: Option<usize>) -> Result<Census, Mismatch> {
        if plan.levels() != self.levels {
            return Err(Mismatch::Levels {
                expected: plan.levels(),
                found: self.levels,
            });
        }
        let mut audit = Audit {
            features: self.features,
            built,
            regions: plan.regions(),
            mapped: 0,
            census: Census {
                tables: 1,
                ..Census::default()
            },
        };
        self.descend(self.root, self.levels.count(), 0, Rights::ALL, &mut audit)?;
        audit.finish()
    }

    fn table(&self, frame: Frame) -> Result<&[AtomicU64; ENTRIES], TableError> {
        table(&self.memory, frame).ok_or(TableError::Unreachable {
            phys: frame.start(),
        })
    }

    /// Visits all that a table holds. `virt` is the first address that it is for.
    fn descend(
        &self,
        frame: Frame,
        level: u8,
        virt: u64,
        rights: Rights,
        visitor: &mut impl Visitor,
    ) -> Result<(), Mismatch> {
        let table = table(&self.memory, frame).ok_or(Mismatch::Unreachable {
            virt,
            phys: frame.start(),
        })?;
        for (index, entry) in (0..).zip(table) {
            let virt = self.levels.canonical(virt | index << shift(level));
            let entry = entry.load(Ordering::Relaxed);
            let rights = rights.below(entry);
            match Entry::decode(entry, level) {
                Entry::Absent => {}
                Entry::Malformed => return Err(Mismatch::Malformed { virt, level, entry }),
                Entry::Table(None) => return Err(Mismatch::Unreachable { virt, phys: 0 }),
                Entry::Table(Some(below)) => {
                    visitor.table(virt, level, entry)?;
                    self.descend(below, level - 1, virt, rights, visitor)?;
                }
                Entry::Leaf { phys, size } => {
                    visitor.leaf(leaf(virt, phys, size, rights, entry))?;
                }
            }
        }
        Ok(())
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

/// Compares what a walk meets with the regions of a plan, both in the order of their addresses.
struct Audit<'a> {
    features: Features,
    built: Option<usize>,
    /// The regions not yet mapped to their ends.
    regions: &'a [Region],
    /// Bytes of the first of them that are mapped.
    mapped: u64,
    census: Census,
}

impl Audit<'_> {
    fn finish(self) -> Result<Census, Mismatch> {
        if let Some(&region) = self.regions.first() {
            return Err(Mismatch::Missing {
                region,
                virt: region.virt + self.mapped,
            });
        }
        match self.built {
            Some(expected) if expected != self.census.tables => Err(Mismatch::Tables {
                expected,
                found: self.census.tables,
            }),
            _ => Ok(self.census),
        }
    }
}

impl Visitor for Audit<'_> {
    fn table(&mut self, virt: u64, level: u8, entry: u64) -> Result<(), Mismatch> {
        self.census.tables += 1;
        // Tables that are reached twice could otherwise keep the walk busy without end.
        if let Some(expected) = self.built.filter(|&built| built < self.census.tables) {
            return Err(Mismatch::Tables {
                expected,
                found: self.census.tables,
            });
        }
        if entry & TABLE_CHECKED != TABLE & TABLE_CHECKED {
            return Err(Mismatch::TableEntry { virt, level, entry });
        }
        Ok(())
    }

    fn leaf(&mut self, leaf: Leaf) -> Result<(), Mismatch> {
        let Some((&region, later)) = self.regions.split_first() else {
            return Err(Mismatch::Stray { leaf });
        };
        let virt = region.virt + self.mapped;
        if leaf.virt < virt {
            return Err(Mismatch::Stray { leaf });
        }
        if leaf.virt > virt {
            return Err(Mismatch::Missing { region, virt });
        }
        let size = leaf.size;
        let left = region.length - self.mapped;
        if size.bytes() > left || size > region.largest || !self.features.has(size) {
            return Err(Mismatch::TooLarge { region, leaf });
        }
        let expected = region.phys + self.mapped;
        if leaf.phys != expected {
            return Err(Mismatch::Address {
                region,
                leaf,
                expected,
            });
        }
        if leaf.access() != Some(region.access) {
            return Err(Mismatch::Access { region, leaf });
        }
        if leaf.cache() != Some(region.cache) {
            return Err(Mismatch::Cache { region, leaf });
        }
        self.census.count(&leaf);
        self.mapped += size.bytes();
        if size.bytes() == left {
            self.regions = later;
            self.mapped = 0;
        }
        Ok(())
    }
}

/// The lowest bit of a virtual address that tables of this level translate.
const fn shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// The place in its table of this level's entry for a virtual address; below [`ENTRIES`].
const fn index(virt: u64, level: u8) -> usize {
    (virt >> shift(level)) as usize % ENTRIES
}

/// The level of the tables whose entries map pages of this size.
const fn level_of(size: PageSize) -> u8 {
    match size {
        PageSize::Size4KiB => 1,
        PageSize::Size2MiB => 2,
        PageSize::Size1GiB => 3,
    }
}

/// The bits of a leaf entry that say what may be done. Dirty is preset so that the CPU need not
/// write to the tables, but only where writes are allowed, as a dirty read-only page is a shadow
/// stack (Intel SDM vol. 3, 5.6.1 "Determination of Access Rights").
const fn rights_bits(access: Access) -> u64 {
    let dirty = match access {
        Access::ReadWrite => Flags::DIRTY.bits(),
        Access::ReadOnly | Access::ReadExecute => 0,
    };
    access.bits() | dirty
}

/// All but the address of a leaf entry. Accessed is preset, as dirty is.
const fn leaf_bits(size: PageSize, access: Access, cache: Cache) -> u64 {
    let mut bits =
        Flags::PRESENT.bits() | Flags::ACCESSED.bits() | rights_bits(access) | cache.bits(size);
    if !matches!(size, PageSize::Size4KiB) {
        bits |= Flags::HUGE_PAGE.bits();
    }
    bits
}

const fn leaf(virt: u64, phys: u64, size: PageSize, rights: Rights, entry: u64) -> Leaf {
    Leaf {
        virt,
        phys,
        size,
        rights,
        pat_index: pat_index(entry, size),
    }
}

/// A frame made a table with nothing in it.
fn empty_table<M: PhysicalMemory>(
    memory: &M,
    frames: &impl FrameSource,
) -> Result<OwnedFrame, TableError> {
    let owned = frames.take().ok_or(TableError::OutOfFrames)?;
    let (frame, owner) = (owned.frame(), owned.owner());
    let error = match table(memory, frame) {
        // Else the right to it could not be made again from its name alone.
        _ if owner != Owner::PageTables => TableError::WrongOwner { owner },
        None => TableError::Unreachable {
            phys: frame.start(),
        },
        Some(table) => {
            for entry in table {
                entry.store(0, Ordering::Relaxed);
            }
            return Ok(owned);
        }
    };
    frames.give_back(owned);
    Err(error)
}

/// A table's entries. Atomic because the CPUs read and write them, too; the `x86_64` crate's entry
/// type is not, and takes the PAT bit of a large page for a part of its address.
fn table<M: PhysicalMemory>(memory: &M, frame: Frame) -> Option<&[AtomicU64; ENTRIES]> {
    let pointer = memory
        .pointer(frame.start())?
        .cast::<[AtomicU64; ENTRIES]>();
    // SAFETY: `PhysicalMemory` promises 4096 bytes, aligned and valid as long as `memory` lives
    // (1); the reference does not outlive the borrow of it. The frame is a page table or about to
    // be one. So nobody uses it as anything else and all accesses are atomic (3): `Tables` has had the
    // right to it, and `TableView::new`'s caller promised it. Any bytes are valid `AtomicU64`s.
    Some(unsafe { pointer.as_ref() })
}

const _: () = assert!(size_of::<[AtomicU64; ENTRIES]>() == FRAME_SIZE as usize);
