//! The mapping plan: which virtual memory maps which physical memory, and how.
//!
//! A [`Plan`] is data: it can be printed, tested, and compared with the tables built from it
//! ([`Tables::verify`](crate::Tables::verify)).

use alloc::vec::Vec;
use core::fmt;

use x86_64::structures::paging::PageTableFlags as Flags;

use crate::map::{Kind, MemoryEntry};
use crate::range::{FRAME_SIZE, PhysRange};
use crate::range_map::RangeMap;

/// The rights of the kernel to a mapping. Writable *and* executable cannot be expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
}

impl Access {
    /// Returns the bits that say so in a leaf entry.
    pub(crate) const fn bits(self) -> u64 {
        match self {
            Self::ReadOnly => Flags::NO_EXECUTE.bits(),
            Self::ReadWrite => Flags::NO_EXECUTE.bits() | Flags::WRITABLE.bits(),
            Self::ReadExecute => 0,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ReadOnly => "r--",
            Self::ReadWrite => "rw-",
            Self::ReadExecute => "r-x",
        })
    }
}

/// The value of the `IA32_PAT` register that [`Cache`] relies on, to be loaded on every CPU.
///
/// It is what the Limine boot protocol sets: entries 0 to 5 are WB, WT, UC-, UC, WP, WC, in the
/// encodings of Intel SDM vol. 3, 13.12.2 "IA32_PAT MSR". The protocol leaves 6 and 7 open; they
/// are UC here.
pub const PAT: u64 = 0x0000_0105_0007_0406;

/// The cache type of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cache {
    /// Ordinary memory.
    WriteBack,
    /// Writes are gathered, reads are not cached: framebuffers.
    WriteCombining,
    /// Device registers.
    Uncached,
}

impl Cache {
    const ALL: [Self; 3] = [Self::WriteBack, Self::WriteCombining, Self::Uncached];

    /// Returns the entry of the [`PAT`] that has this type.
    pub const fn pat_index(self) -> u8 {
        match self {
            Self::WriteBack => 0,
            Self::Uncached => 3,
            Self::WriteCombining => 5,
        }
    }

    /// Returns the type that an entry of the [`PAT`] has, or `None` if no value stands for it.
    pub const fn from_pat_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::WriteBack),
            3 => Some(Self::Uncached),
            5 => Some(Self::WriteCombining),
            _ => None,
        }
    }

    /// Returns the type's encoding in `IA32_PAT` (Intel SDM vol. 3, 13.12.2, table "Memory Types That
    /// Can Be Encoded With PAT").
    const fn encoding(self) -> u64 {
        match self {
            Self::Uncached => 0x00,
            Self::WriteCombining => 0x01,
            Self::WriteBack => 0x06,
        }
    }

    /// Returns the bits that choose this type in a leaf entry for a page of this size.
    pub const fn bits(self, size: PageSize) -> u64 {
        let index = self.pat_index();
        let mut bits = 0;
        if index & 1 != 0 {
            bits |= Flags::WRITE_THROUGH.bits();
        }
        if index & 2 != 0 {
            bits |= Flags::NO_CACHE.bits();
        }
        if index & 4 != 0 {
            bits |= size.pat_bit();
        }
        bits
    }
}

/// Returns the entry of the PAT that a leaf entry for a page of this size chooses (Intel SDM vol. 3,
/// 5.9.2 "Paging and Memory Typing When the PAT is Supported").
pub(crate) const fn pat_index(entry: u64, size: PageSize) -> u8 {
    let mut index = 0;
    if entry & Flags::WRITE_THROUGH.bits() != 0 {
        index |= 1;
    }
    if entry & Flags::NO_CACHE.bits() != 0 {
        index |= 2;
    }
    if entry & size.pat_bit() != 0 {
        index |= 4;
    }
    index
}

// Every type comes back from its bits in a leaf entry, and the PAT has it where they point.
const _: () = {
    let mut place = 0;
    while place < Cache::ALL.len() {
        let cache = Cache::ALL[place];
        let mut size = 0;
        while size < PageSize::ALL.len() {
            let index = pat_index(cache.bits(PageSize::ALL[size]), PageSize::ALL[size]);
            assert!(index == cache.pat_index());
            assert!(
                matches!(Cache::from_pat_index(index), Some(back) if back as u8 == cache as u8)
            );
            size += 1;
        }
        assert!(PAT >> (8 * cache.pat_index()) & 0xff == cache.encoding());
        place += 1;
    }
};

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WriteBack => "WB",
            Self::WriteCombining => "WC",
            Self::Uncached => "UC",
        })
    }
}

/// The sizes of pages that x86-64 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB, mapped by a level 1 entry.
    Size4KiB,
    /// 2 MiB, mapped by a level 2 entry.
    Size2MiB,
    /// 1 GiB, mapped by a level 3 entry, where the CPU has it (CPUID 8000_0001h, EDX bit 26).
    Size1GiB,
}

impl PageSize {
    /// All sizes, the smallest first.
    pub const ALL: [Self; 3] = [Self::Size4KiB, Self::Size2MiB, Self::Size1GiB];

    /// Returns the bytes in a page of this size.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4KiB => FRAME_SIZE,
            Self::Size2MiB => FRAME_SIZE << 9,
            Self::Size1GiB => FRAME_SIZE << 18,
        }
    }

    /// Returns the PAT bit of a leaf entry: bit 7, which in an entry for a large page says that it is
    /// one, so that there it is bit 12 (Intel SDM vol. 3, 5.5.4 "Linear-Address Translation with
    /// 4-Level Paging and 5-Level Paging", the tables of entry formats).
    const fn pat_bit(self) -> u64 {
        match self {
            Self::Size4KiB => 1 << 7,
            Self::Size2MiB | Self::Size1GiB => 1 << 12,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Size4KiB => "4 KiB",
            Self::Size2MiB => "2 MiB",
            Self::Size1GiB => "1 GiB",
        })
    }
}

/// The number of levels of tables that the CPU walks (`CR4.LA57`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Levels {
    /// 48-bit virtual addresses.
    Four,
    /// 57-bit virtual addresses.
    Five,
}

impl Levels {
    /// Returns the number of levels.
    pub const fn count(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Five => 5,
        }
    }

    /// Returns how many bits of a virtual address are translated.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Four => 48,
            Self::Five => 57,
        }
    }

    /// Returns the address with its untranslated upper bits made copies of the highest translated one
    /// (Intel SDM vol. 1, 3.3.7.1 "Canonical Addressing").
    pub const fn canonical(self, virt: u64) -> u64 {
        let unused = 64 - self.bits();
        ((virt << unused) as i64 >> unused) as u64
    }

    /// Returns whether the CPU accepts the address.
    pub const fn is_canonical(self, virt: u64) -> bool {
        self.canonical(virt) == virt
    }
}

/// One range of virtual memory that maps one range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its name in messages.
    pub name: &'static str,
    /// The first virtual address; a multiple of [`FRAME_SIZE`].
    pub virt: u64,
    /// The physical address it maps; a multiple of [`FRAME_SIZE`].
    pub phys: u64,
    /// Bytes; a multiple of [`FRAME_SIZE`], not 0.
    pub length: u64,
    /// The rights of the kernel to it.
    pub access: Access,
    /// Its cache type.
    pub cache: Cache,
    /// The largest pages it may be mapped with.
    pub largest: PageSize,
}

impl Region {
    /// Returns the last virtual address; none if that overflows. (One past it may be 2^64.)
    pub(crate) fn last(&self) -> Option<u64> {
        self.virt.checked_add(self.length.checked_sub(1)?)
    }

    /// Returns whether the virtual address lies in the region.
    pub fn contains(&self, virt: u64) -> bool {
        virt.checked_sub(self.virt)
            .is_some_and(|offset| offset < self.length)
    }

    /// Cuts the region at these physical addresses, which ascend, so that no large page of what comes of it
    /// crosses one. An address outside it, or that is no multiple of [`FRAME_SIZE`], cuts nothing.
    ///
    /// Intel SDM vol. 3, 12.11.9 "Large Page Size Considerations": a large page must lie in memory that the
    /// MTRRs give one type.
    ///
    /// ```
    /// use muster_memory::{Access, Cache, PageSize, Region};
    ///
    /// let region = Region {
    ///     name: "HHDM",
    ///     virt: 0xffff_8000_0010_0000,
    ///     phys: 0x10_0000,
    ///     length: 0x40_0000,
    ///     access: Access::ReadWrite,
    ///     cache: Cache::WriteBack,
    ///     largest: PageSize::Size2MiB,
    /// };
    /// let pieces = region.cut_at([0x1000, 0x10_0000, 0x30_0000, 0x50_0000]);
    /// let pieces: Vec<_> = pieces.map(|piece| (piece.virt, piece.phys, piece.length)).collect();
    /// assert_eq!(pieces, [
    ///     (0xffff_8000_0010_0000, 0x10_0000, 0x20_0000),
    ///     (0xffff_8000_0030_0000, 0x30_0000, 0x20_0000),
    /// ]);
    /// ```
    pub fn cut_at(self, borders: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        let mut borders = borders.into_iter();
        core::iter::from_fn(move || {
            let whole = rest.take()?;
            let inside = |&border: &u64| {
                border.is_multiple_of(FRAME_SIZE)
                    && border > whole.phys
                    && border - whole.phys < whole.length
            };
            // A region that goes on beyond the last address stays in one piece, so that it is refused.
            let cut = (borders.find(inside)).and_then(|border| {
                let length = border - whole.phys;
                Some((border, length, whole.virt.checked_add(length)?))
            });
            let Some((border, length, virt)) = cut else {
                return Some(whole);
            };
            rest = Some(Self {
                virt,
                phys: border,
                length: whole.length - length,
                ..whole
            });
            Some(Self { length, ..whole })
        })
    }

    /// Returns the physical memory it maps; `None` if it is empty or beyond what can exist.
    pub fn physical(&self) -> Option<PhysRange> {
        PhysRange::new(self.phys, self.length)
    }

    /// Checks a region by itself.
    ///
    /// # Errors
    ///
    /// [`PlanError::Empty`], [`PlanError::Misaligned`], [`PlanError::NotCanonical`] or
    /// [`PlanError::BeyondPhysical`].
    pub fn check(&self, levels: Levels) -> Result<(), PlanError> {
        let Self {
            name,
            virt,
            phys,
            length,
            ..
        } = *self;
        if length == 0 {
            return Err(PlanError::Empty { name });
        }
        if !(virt | phys | length).is_multiple_of(FRAME_SIZE) {
            return Err(PlanError::Misaligned {
                name,
                virt,
                phys,
                length,
            });
        }
        // Both ends canonical and in the same half: the hole between the halves is excluded.
        let upper_bit = levels.bits() - 1;
        let fits = self.last().is_some_and(|last| {
            levels.is_canonical(virt)
                && levels.is_canonical(last)
                && virt >> upper_bit == last >> upper_bit
        });
        if !fits {
            return Err(PlanError::NotCanonical {
                name,
                virt,
                length,
                bits: levels.bits(),
            });
        }
        if self.physical().is_none() {
            return Err(PlanError::BeyondPhysical {
                name,
                phys,
                length,
                bits: 52,
            });
        }
        Ok(())
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (self.last(), other.last()) {
            (Some(last), Some(other_last)) => self.virt <= other_last && other.virt <= last,
            _ => false,
        }
    }

    /// Returns whether the two map some physical memory in common.
    fn aliases(&self, other: &Self) -> bool {
        match (self.physical(), other.physical()) {
            (Some(physical), Some(other_physical)) => physical.overlaps(other_physical),
            _ => false,
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            virt,
            phys,
            length,
            access,
            cache,
            ..
        } = self;
        write!(
            f,
            "{name}: {virt:#x} -> {phys:#x}, {length:#x} bytes, {access} {cache}"
        )
    }
}

/// The reason why a plan cannot take a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// It has no bytes.
    Empty {
        /// The region.
        name: &'static str,
    },
    /// Its addresses or its length are not multiples of [`FRAME_SIZE`].
    Misaligned {
        /// The region.
        name: &'static str,
        /// Its first virtual address.
        virt: u64,
        /// Its first physical address.
        phys: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// Some of its virtual addresses do not exist.
    NotCanonical {
        /// The region.
        name: &'static str,
        /// Its first virtual address.
        virt: u64,
        /// Its length in bytes.
        length: u64,
        /// Bits in a virtual address.
        bits: u32,
    },
    /// Some of its physical addresses do not exist.
    BeyondPhysical {
        /// The region.
        name: &'static str,
        /// Its first physical address.
        phys: u64,
        /// Its length in bytes.
        length: u64,
        /// Bits in a physical address.
        bits: u32,
    },
    /// It shares virtual addresses with a region of the plan.
    Overlap {
        /// The region.
        name: &'static str,
        /// The region that is already there.
        with: &'static str,
        /// The first virtual address in both.
        virt: u64,
    },
    /// One maps physical memory writable that the other maps executable.
    WritableAlias {
        /// The region.
        name: &'static str,
        /// The region that is already there.
        with: &'static str,
    },
    /// The two map the same physical memory with different cache types, which leads to undefined
    /// operations (Intel SDM vol. 3, 13.12.4 "Programming the PAT").
    CacheAlias {
        /// The region.
        name: &'static str,
        /// The region that is already there.
        with: &'static str,
    },
    /// The heap has no memory for the list of the regions.
    OutOfMemory {
        /// The region.
        name: &'static str,
        /// Bytes that the list takes.
        bytes: usize,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty { name } => write!(f, "region \"{name}\" is empty: leave it out"),
            Self::Misaligned {
                name,
                virt,
                phys,
                length,
            } => write!(
                f,
                "region \"{name}\" ({virt:#x} -> {phys:#x}, {length:#x} bytes) does not consist \
                 of whole {FRAME_SIZE}-byte pages"
            ),
            Self::NotCanonical {
                name,
                virt,
                length,
                bits,
            } => write!(
                f,
                "region \"{name}\" ({length:#x} bytes from {virt:#x}) leaves the {bits}-bit \
                 virtual address space: move it"
            ),
            Self::BeyondPhysical {
                name,
                phys,
                length,
                bits,
            } => write!(
                f,
                "region \"{name}\" maps {length:#x} bytes from physical {phys:#x}, but physical \
                 addresses here have {bits} bits: check the memory map"
            ),
            Self::Overlap { name, with, virt } => {
                write!(
                    f,
                    "regions \"{name}\" and \"{with}\" both claim {virt:#x}: move one"
                )
            }
            Self::WritableAlias { name, with } => write!(
                f,
                "regions \"{name}\" and \"{with}\" map the same memory, one writable and one \
                 executable: make the writable one read-only"
            ),
            Self::CacheAlias { name, with } => write!(
                f,
                "regions \"{name}\" and \"{with}\" map the same memory with different cache types"
            ),
            Self::OutOfMemory { name, bytes } => write!(
                f,
                "the list of what to map takes {bytes} bytes with region \"{name}\", which the heap does \
                 not have: give it a larger boot arena"
            ),
        }
    }
}

impl core::error::Error for PlanError {}

/// The plan of all that is to be mapped.
///
/// It proves that regions consist of whole pages and of addresses that exist; no virtual address is in
/// two of them; no physical memory is writable in one and executable in another, or cached in two ways.
/// It does not prove that the physical memory is there and is what the region's name says.
///
/// ```
/// use muster_memory::{Access, Cache, Levels, PageSize, Plan, PlanError, Region};
///
/// let text = Region {
///     name: "text",
///     virt: 0xffff_ffff_8000_0000,
///     phys: 0x20_0000,
///     length: 0x1000,
///     access: Access::ReadExecute,
///     cache: Cache::WriteBack,
///     largest: PageSize::Size2MiB,
/// };
/// let mut plan = Plan::new(Levels::Four, 40);
/// plan.add(text)?;
/// let alias = Region { name: "alias", virt: 0x1000, access: Access::ReadWrite, ..text };
/// assert_eq!(plan.add(alias), Err(PlanError::WritableAlias { name: "alias", with: "text" }));
/// assert_eq!(plan.region_at(0xffff_ffff_8000_0fff), Some(&text));
/// # Ok::<(), PlanError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    levels: Levels,
    physical_bits: u32,
    regions: Vec<Region>,
}

impl Plan {
    /// Creates an empty plan for tables of `levels` levels on a CPU whose physical addresses have
    /// `physical_bits` bits (MAXPHYADDR, CPUID 8000_0008h EAX bits 7–0; more than 52 counts as 52).
    pub const fn new(levels: Levels, physical_bits: u32) -> Self {
        let physical_bits = if physical_bits > 52 {
            52
        } else {
            physical_bits
        };
        Self {
            levels,
            physical_bits,
            regions: Vec::new(),
        }
    }

    /// Returns how many levels the tables have.
    pub const fn levels(&self) -> Levels {
        self.levels
    }

    /// Takes a region in.
    ///
    /// # Errors
    ///
    /// See [`PlanError`]; the plan is unchanged then.
    pub fn add(&mut self, region: Region) -> Result<(), PlanError> {
        let name = region.name;
        region.check(self.levels)?;
        if region
            .physical()
            .is_none_or(|physical| physical.end() > 1 << self.physical_bits)
        {
            return Err(PlanError::BeyondPhysical {
                name,
                phys: region.phys,
                length: region.length,
                bits: self.physical_bits,
            });
        }
        for other in &self.regions {
            let with = other.name;
            if region.overlaps(other) {
                return Err(PlanError::Overlap {
                    name,
                    with,
                    virt: region.virt.max(other.virt),
                });
            }
            if !region.aliases(other) {
                continue;
            }
            if matches!(
                (region.access, other.access),
                (Access::ReadWrite, Access::ReadExecute) | (Access::ReadExecute, Access::ReadWrite)
            ) {
                return Err(PlanError::WritableAlias { name, with });
            }
            if region.cache != other.cache {
                return Err(PlanError::CacheAlias { name, with });
            }
        }
        let bytes = (self.regions.len() + 1) * size_of::<Region>();
        self.regions
            .try_reserve(1)
            .map_err(|_| PlanError::OutOfMemory { name, bytes })?;
        let place = self
            .regions
            .partition_point(|other| other.virt < region.virt);
        self.regions.insert(place, region);
        Ok(())
    }

    /// Returns the regions, sorted by virtual address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Returns the region that the virtual address lies in.
    pub fn region_at(&self, virt: u64) -> Option<&Region> {
        let after = self.regions.partition_point(|region| region.virt <= virt);
        self.regions
            .get(after.checked_sub(1)?)
            .filter(|region| region.contains(virt))
    }
}

/// The part of physical memory that the HHDM maps, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alias {
    Memory,
    Protected,
    Framebuffer,
}

/// Returns the regions of the higher-half direct map: physical memory mapped at `offset` plus its
/// address.
///
/// It maps what the Limine boot protocol maps there in base revision 3, and nothing else: usable and
/// bootloader-reclaimable memory, executables and modules as write-back memory, framebuffers as
/// write-combining. Nothing is executable. `read_only` names physical memory that must not be writable
/// here because it is protected elsewhere: the kernel image's text and constants.
///
/// Entries that touch are one region, so that large pages can span their border. Executable and
/// framebuffer entries may begin and end inside a frame: they take the whole of it, the executable
/// before the framebuffer, and both before usable memory. Usable and reclaimable memory takes only
/// frames that lie wholly in it and in which no entry of another kind has a byte.
///
/// # Errors
///
/// [`PlanError::NotCanonical`] if `offset` plus a physical address overflows. The regions are
/// otherwise checked when they are added to a plan.
///
/// # Aborts
///
/// If the heap has no memory for the regions, or for the map that they are found by, this ends in
/// [`handle_alloc_error`](alloc::alloc::handle_alloc_error).
///
/// ```
/// use muster_memory::{hhdm, Access, Kind, MemoryEntry, PageSize, PhysRange};
///
/// let entry = |start, end, kind| MemoryEntry {
///     range: PhysRange::from_bounds(start, end).unwrap(),
///     kind,
/// };
/// let entries = [
///     entry(0x10_0000, 0x40_0000, Kind::Usable),
///     entry(0x40_0000, 0x50_0000, Kind::ExecutableAndModules),
///     entry(0x50_0000, 0x60_0000, Kind::Reserved),
/// ];
/// let text = PhysRange::from_bounds(0x40_0000, 0x44_0000).unwrap();
/// let regions = hhdm(&entries, 0xffff_8000_0000_0000, PageSize::Size1GiB, &[text])?;
/// let bounds: Vec<_> = regions.iter().map(|r| (r.phys, r.phys + r.length, r.access)).collect();
/// assert_eq!(bounds, [
///     (0x10_0000, 0x40_0000, Access::ReadWrite),
///     (0x40_0000, 0x44_0000, Access::ReadOnly),
///     (0x44_0000, 0x50_0000, Access::ReadWrite),
/// ]);
/// # Ok::<(), muster_memory::PlanError>(())
/// ```
pub fn hhdm(
    entries: &[MemoryEntry],
    offset: u64,
    largest: PageSize,
    read_only: &[PhysRange],
) -> Result<Vec<Region>, PlanError> {
    let of_kinds = |kinds: &'static [Kind]| {
        entries
            .iter()
            .filter(|entry| kinds.contains(&entry.kind))
            .map(|entry| entry.range)
    };

    let mut aliases = RangeMap::new();
    for range in of_kinds(&[Kind::Usable, Kind::BootloaderReclaimable]) {
        aliases.put(range, Alias::Memory);
    }
    for range in of_kinds(&[
        Kind::AcpiReclaimable,
        Kind::AcpiNvs,
        Kind::ReservedMapped,
        Kind::Reserved,
        Kind::Bad,
    ]) {
        aliases.remove(range.covering_frames());
    }
    for range in of_kinds(&[Kind::Framebuffer]) {
        aliases.put(range.covering_frames(), Alias::Framebuffer);
    }
    for range in of_kinds(&[Kind::ExecutableAndModules]) {
        aliases.put(range.covering_frames(), Alias::Memory);
    }
    for range in read_only {
        let shown: Vec<_> = aliases.overlapping(range.covering_frames()).collect();
        for (range, alias) in shown {
            if alias == Alias::Memory {
                aliases.put(range, Alias::Protected);
            }
        }
    }

    let mut regions = Vec::new();
    for (range, alias) in aliases.iter() {
        let Some(frames) = range.whole_frames() else {
            continue;
        };
        let (name, access, cache) = match alias {
            Alias::Memory => ("HHDM", Access::ReadWrite, Cache::WriteBack),
            Alias::Protected => (
                "HHDM of read-only image",
                Access::ReadOnly,
                Cache::WriteBack,
            ),
            Alias::Framebuffer => (
                "HHDM of framebuffer",
                Access::ReadWrite,
                Cache::WriteCombining,
            ),
        };
        let Some(virt) = offset.checked_add(frames.start()) else {
            // For any width: no address space reaches beyond 64 bits.
            return Err(PlanError::NotCanonical {
                name,
                virt: offset,
                length: frames.end(),
                bits: 64,
            });
        };
        regions.push(Region {
            name,
            virt,
            phys: frames.start(),
            length: frames.len(),
            access,
            cache,
            largest,
        });
    }
    Ok(regions)
}
