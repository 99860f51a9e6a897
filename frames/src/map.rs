//! The physical map: the owner of each byte of physical memory.

use alloc::vec::Vec;
use core::fmt;
use core::ops::{Index, IndexMut};

use crate::range::{FRAME_SIZE, PhysRange};
use crate::range_map::RangeMap;

/// The owner of a range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Owner {
    /// Nobody's: free to be handed out.
    Free = 0,
    /// The boot loader's, until it is reclaimed.
    Loader,
    /// The kernel's image.
    Kernel,
    /// The frame allocator's record of every frame.
    FrameTable,
    /// Page tables.
    PageTables,
    /// The heap's.
    Heap,
    /// The CPUs' stacks.
    Stacks,
    /// The CPUs' own blocks.
    PerCpu,
    /// Memory that is mapped at run time, for as long as it is.
    Mappings,
    /// ACPI tables.
    AcpiReclaimable,
    /// The firmware's, kept across sleep states.
    AcpiNvs,
    /// A framebuffer.
    Framebuffer,
    /// Reserved by the firmware or the loader.
    Reserved,
    /// Memory with defects.
    Bad,
    /// Frame 0, which is never handed out.
    NullFrame,
    /// The first megabyte, where firmware and its SMM write, and where CPUs start: a kernel that keeps
    /// it assigns it to this owner, and never hands it out.
    LowMemory,
    /// Memory that the machine's memory-type range registers do not make write-back: a kernel assigns it to
    /// this owner, and never hands it out.
    NotWriteBack,
}

impl Owner {
    /// All owners, in the order of their values.
    pub const ALL: [Self; 17] = [
        Self::Free,
        Self::Loader,
        Self::Kernel,
        Self::FrameTable,
        Self::PageTables,
        Self::Heap,
        Self::Stacks,
        Self::PerCpu,
        Self::Mappings,
        Self::AcpiReclaimable,
        Self::AcpiNvs,
        Self::Framebuffer,
        Self::Reserved,
        Self::Bad,
        Self::NullFrame,
        Self::LowMemory,
        Self::NotWriteBack,
    ];

    /// Returns whether its memory is handed out in frames, at once or once it is reclaimed.
    const fn has_whole_frames(self) -> bool {
        matches!(self, Self::Free | Self::Loader)
    }

    /// Returns the owner with this value.
    #[inline]
    pub(crate) fn from_value(value: u8) -> Option<Self> {
        Self::ALL.get(usize::from(value)).copied()
    }
}

// `from_value` and `Totals` take an owner's value as its index in `ALL`.
const _: () = {
    let mut place = 0;
    while place < Owner::ALL.len() {
        assert!(Owner::ALL[place] as usize == place);
        place += 1;
    }
};

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Free => "free",
            Self::Loader => "loader",
            Self::Kernel => "kernel image",
            Self::FrameTable => "frame table",
            Self::PageTables => "page tables",
            Self::Heap => "heap",
            Self::Stacks => "stacks",
            Self::PerCpu => "per-CPU blocks",
            Self::Mappings => "mappings",
            Self::AcpiReclaimable => "ACPI tables",
            Self::AcpiNvs => "ACPI NVS",
            Self::Framebuffer => "framebuffer",
            Self::Reserved => "reserved",
            Self::Bad => "bad",
            Self::NullFrame => "null frame",
            Self::LowMemory => "first megabyte",
            Self::NotWriteBack => "not write-back",
        })
    }
}

/// Bytes per owner.
///
/// ```
/// use muster_frames::{Owner, Totals};
///
/// let mut totals = Totals::default();
/// totals[Owner::Heap] += 4096;
/// assert_eq!(totals[Owner::Heap], 4096);
/// assert_eq!(totals.sum(), 4096);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals([u64; Owner::ALL.len()]);

impl Totals {
    /// Returns the bytes of all owners together.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Iterates over each owner with its bytes, in the order of [`Owner::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Owner, u64)> {
        Owner::ALL.into_iter().zip(self.0)
    }
}

impl Index<Owner> for Totals {
    type Output = u64;

    fn index(&self, owner: Owner) -> &u64 {
        &self.0[owner as usize]
    }
}

impl IndexMut<Owner> for Totals {
    fn index_mut(&mut self, owner: Owner) -> &mut u64 {
        &mut self.0[owner as usize]
    }
}

/// Two ranges overlap that must not: both are of memory that is or will be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError {
    /// The range that starts first, and its owner.
    pub first: (PhysRange, Owner),
    /// The range that starts inside it, and its owner.
    pub second: (PhysRange, Owner),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((first, one), (second, other)) = (self.first, self.second);
        write!(
            f,
            "the loader's memory map contradicts itself: {first} ({one}) overlaps {second} ({other}); use \
             another loader or report it to the loader's authors"
        )
    }
}

impl core::error::Error for MapError {}

/// The reason why a range could not change hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignError {
    /// Not all of it was the giver's.
    NotOwned {
        /// The range that was to change hands.
        range: PhysRange,
        /// The owner that was to give it.
        from: Owner,
        /// The owner that was to get it.
        to: Owner,
        /// The first address that is not the giver's.
        at: u64,
        /// The owner of that address; `None` if the map does not contain it.
        found: Option<Owner>,
    },
    /// It begins or ends inside a frame, and would part it between two owners, of whom one has whole
    /// frames only.
    InsideFrame {
        /// The range that was to change hands.
        range: PhysRange,
        /// The owner that was to give it.
        from: Owner,
        /// The owner that was to get it.
        to: Owner,
        /// The first of its borders that lies inside a frame.
        at: u64,
    },
    /// It contains frame 0, which would be handed out.
    NullFrame {
        /// The range that was to change hands.
        range: PhysRange,
        /// The owner that was to get it.
        to: Owner,
    },
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOwned {
                range,
                from,
                to,
                at,
                found,
            } => {
                write!(
                    f,
                    "cannot give {range} from {from} to {to}: {at:#x} belongs to "
                )?;
                match found {
                    Some(owner) => owner.fmt(f),
                    None => f.write_str("nobody the memory map knows"),
                }
            }
            Self::InsideFrame {
                range,
                from,
                to,
                at,
            } => {
                let owner = if from.has_whole_frames() { from } else { to };
                write!(
                    f,
                    "cannot give {range} from {from} to {to}: {at:#x} lies inside a frame, and {owner} \
                     memory is whole frames: give all of the frame"
                )
            }
            Self::NullFrame { range, to } => write!(
                f,
                "cannot give {range} to {to}: frame 0 is never handed out: give what lies above it"
            ),
        }
    }
}

impl core::error::Error for AssignError {}

/// The owner of each byte of physical memory.
///
/// Every byte of every range that it is made of has exactly one owner, and no other byte has any. Free
/// and loader memory, which is handed out, consists of whole frames without frame 0, also after what is
/// [assigned](Self::assign); other owners have what they are given, to the byte. The map only records:
/// it does not keep code from using memory of another owner.
///
/// ```
/// use muster_frames::{Owner, PhysRange, PhysicalMap};
///
/// let range = |start, end| PhysRange::from_bounds(start, end).unwrap();
/// let mut map = PhysicalMap::new([
///     (range(0x0, 0x9f000), Owner::Free),
///     (range(0x9f000, 0xa0000), Owner::Reserved),
///     (range(0x100000, 0x200000), Owner::Free),
/// ])?;
/// assert_eq!(map.owner_of(0), Some(Owner::NullFrame));
/// assert_eq!(map.owner_of(0xa0000), None);
///
/// let tables = PhysRange::from_bounds(0x100000, 0x110000).unwrap();
/// map.assign(tables, Owner::Free, Owner::PageTables)?;
/// assert_eq!(map.totals()[Owner::PageTables], 0x10000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PhysicalMap {
    owners: RangeMap<Owner>,
}

impl PhysicalMap {
    /// Creates a map of these ranges. Where they overlap, the later one wins, to the byte: so the owner whose
    /// memory nothing else may be is to come last.
    ///
    /// The remainder of free and loader memory is shrunk to whole frames; the rest of those frames becomes
    /// reserved, and frame 0 becomes [`Owner::NullFrame`].
    ///
    /// # Errors
    ///
    /// If two ranges of free or loader memory overlap: no rule could decide the owner of the
    /// memory, and handing it out twice corrupts it.
    ///
    /// # Aborts
    ///
    /// If the heap has no memory for the map, this ends in
    /// [`handle_alloc_error`](alloc::alloc::handle_alloc_error).
    pub fn new(ranges: impl IntoIterator<Item = (PhysRange, Owner)>) -> Result<Self, MapError> {
        let mut bytes = RangeMap::new();
        let mut allocatable = Vec::new();
        for (range, owner) in ranges {
            bytes.put(range, owner);
            if owner.has_whole_frames() {
                allocatable.push((range, owner));
            }
        }
        check_allocatable(allocatable)?;

        let mut owners = bytes.clone();
        for (range, owner) in bytes.iter() {
            if !owner.has_whole_frames() {
                continue;
            }
            owners.put(range, Owner::Reserved);
            if let Some(frames) = range.whole_frames() {
                owners.put(frames, owner);
                if let Some(null) = PhysRange::new(0, FRAME_SIZE)
                    && frames.overlaps(null)
                {
                    owners.put(null, Owner::NullFrame);
                }
            }
        }
        Ok(Self { owners })
    }

    /// Returns the owner of the byte at `addr`; `None` if no range contains it.
    pub fn owner_of(&self, addr: u64) -> Option<Owner> {
        self.owners.get(addr)
    }

    /// Assigns the whole of `range` from one owner to another.
    ///
    /// # Errors
    ///
    /// See [`AssignError`]: if any byte of `range` is not `from`'s, or if free or loader memory would not
    /// be whole frames without frame 0 any more. Nothing has changed then.
    ///
    /// # Aborts
    ///
    /// As [`Self::new`] does: a part that changes hands may need an entry of its own.
    pub fn assign(&mut self, range: PhysRange, from: Owner, to: Owner) -> Result<(), AssignError> {
        let mut at = range.start();
        for (part, owner) in self.owners.overlapping(range) {
            if part.start() != at || owner != from {
                break;
            }
            at = part.end();
        }
        if at != range.end() {
            return Err(AssignError::NotOwned {
                range,
                from,
                to,
                at,
                found: self.owner_of(at),
            });
        }
        if from.has_whole_frames() || to.has_whole_frames() {
            let is_inside = |border: &u64| !border.is_multiple_of(FRAME_SIZE);
            if let Some(at) = [range.start(), range.end()].into_iter().find(is_inside) {
                return Err(AssignError::InsideFrame {
                    range,
                    from,
                    to,
                    at,
                });
            }
        }
        if to.has_whole_frames() && range.start() < FRAME_SIZE {
            return Err(AssignError::NullFrame { range, to });
        }
        self.owners.put(range, to);
        Ok(())
    }

    /// Iterates over the ranges of one owner, lowest first; no two of them touch.
    pub fn ranges(&self, owner: Owner) -> impl DoubleEndedIterator<Item = PhysRange> {
        self.iter()
            .filter_map(move |(range, whose)| (whose == owner).then_some(range))
    }

    /// Iterates over all ranges with their owners, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (PhysRange, Owner)> {
        self.owners.iter()
    }

    /// Returns how many bytes each owner has.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for (range, owner) in self.iter() {
            totals[owner] += range.len();
        }
        totals
    }
}

/// Checks that no two ranges overlap.
fn check_allocatable(mut ranges: Vec<(PhysRange, Owner)>) -> Result<(), MapError> {
    ranges.sort_unstable_by_key(|&(range, _)| range);
    // Sorted by start, the first overlap there is is one between neighbours.
    for (&first, &second) in ranges.iter().zip(ranges.iter().skip(1)) {
        if first.0.overlaps(second.0) {
            return Err(MapError { first, second });
        }
    }
    Ok(())
}
