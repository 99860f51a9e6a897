//! The physical map: the owner of each byte of physical memory.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Index, IndexMut};

use crate::PhysAddr;
use crate::owner::{MAX_OWNERS, Owner, SoleOwner};
use crate::range::{FRAME_SIZE, PhysRange};
use crate::range_map::RangeMap;

/// Bytes per owner.
///
/// ```
/// use muster_frames::{PhysAddr, SoleOwner, Totals};
///
/// let mut totals = Totals::default();
/// totals[SoleOwner::Used] += 4096;
/// assert_eq!(totals[SoleOwner::Used], 4096);
/// assert_eq!(totals.sum(), 4096);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals<O = SoleOwner> {
    bytes: [u64; MAX_OWNERS],
    _of: PhantomData<fn() -> O>,
}

impl<O: Owner> Totals<O> {
    /// Returns the bytes of all owners together.
    pub fn sum(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Iterates over each owner with its bytes, in the order of [`Owner::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (O, u64)> {
        O::ALL.iter().copied().zip(self.bytes)
    }
}

impl<O> Default for Totals<O> {
    fn default() -> Self {
        Self {
            bytes: [0; MAX_OWNERS],
            _of: PhantomData,
        }
    }
}

impl<O: Owner> Index<O> for Totals<O> {
    type Output = u64;

    fn index(&self, owner: O) -> &u64 {
        &self.bytes[usize::from(owner.number())]
    }
}

impl<O: Owner> IndexMut<O> for Totals<O> {
    fn index_mut(&mut self, owner: O) -> &mut u64 {
        &mut self.bytes[usize::from(owner.number())]
    }
}

/// Two ranges overlap that must not: both are of memory that is or will be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError<O = SoleOwner> {
    /// The range that starts first, and its owner.
    pub first: (PhysRange, O),
    /// The range that starts inside it, and its owner.
    pub second: (PhysRange, O),
}

impl<O: Owner> fmt::Display for MapError<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((first, one), (second, other)) = (self.first, self.second);
        write!(
            f,
            "the loader's memory map contradicts itself: {first} ({one}) overlaps {second} ({other}); use \
             another loader or report it to the loader's authors"
        )
    }
}

impl<O: Owner> core::error::Error for MapError<O> {}

/// The reason why a range could not change hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignError<O = SoleOwner> {
    /// Not all of it was the giver's.
    NotOwned {
        /// The range that was to change hands.
        range: PhysRange,
        /// The owner that was to give it.
        from: O,
        /// The owner that was to get it.
        to: O,
        /// The first address that is not the giver's.
        at: PhysAddr,
        /// The owner of that address; `None` if the map does not contain it.
        found: Option<O>,
    },
    /// It begins or ends inside a frame, and would part it between two owners, of whom one has whole
    /// frames only.
    InsideFrame {
        /// The range that was to change hands.
        range: PhysRange,
        /// The owner that was to give it.
        from: O,
        /// The owner that was to get it.
        to: O,
        /// The first of its borders that lies inside a frame.
        at: PhysAddr,
    },
    /// It contains frame 0, which would be handed out.
    NullFrame {
        /// The range that was to change hands.
        range: PhysRange,
        /// The owner that was to get it.
        to: O,
    },
}

impl<O: Owner> fmt::Display for AssignError<O> {
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
                    "cannot give {range} from {from} to {to}: {at} belongs to "
                )?;
                match found {
                    Some(owner) => fmt::Display::fmt(owner, f),
                    None => f.write_str("nobody the memory map knows"),
                }
            }
            Self::InsideFrame {
                range,
                from,
                to,
                at,
            } => {
                let owner = if has_whole_frames(*from) { from } else { to };
                write!(
                    f,
                    "cannot give {range} from {from} to {to}: {at} lies inside a frame, and {owner} \
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

impl<O: Owner> core::error::Error for AssignError<O> {}

/// The owner of each byte of physical memory.
///
/// Every byte of every range that it is made of has exactly one owner, and no other byte has any. Free
/// and loader memory, which is handed out, consists of whole frames without frame 0, also after what is
/// [assigned](Self::assign); other owners have what they are given, to the byte. The map only records:
/// it does not keep code from using memory of another owner.
///
/// ```
/// use muster_frames::{PhysAddr, PhysRange, PhysicalMap, SoleOwner};
///
/// let range = |start, end| PhysRange::from_bounds(PhysAddr::new(start), PhysAddr::new(end)).unwrap();
/// let mut map = PhysicalMap::new([
///     (range(0x0, 0x9f000), SoleOwner::Free),
///     (range(0x9f000, 0xa0000), SoleOwner::Rest),
///     (range(0x100000, 0x200000), SoleOwner::Free),
/// ])?;
/// assert_eq!(map.owner_of(PhysAddr::new(0)), Some(SoleOwner::NullFrame));
/// assert_eq!(map.owner_of(PhysAddr::new(0xa0000)), None);
///
/// map.assign(range(0x100000, 0x110000), SoleOwner::Free, SoleOwner::Used)?;
/// assert_eq!(map.totals()[SoleOwner::Used], 0x10000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PhysicalMap<O = SoleOwner> {
    owners: RangeMap<O>,
}

impl<O: Owner> PhysicalMap<O> {
    /// Creates a map of these ranges. Where they overlap, the later one wins, to the byte: so the owner whose
    /// memory nothing else may be is to come last.
    ///
    /// The remainder of free and loader memory is shrunk to whole frames; the rest of those frames becomes
    /// reserved, and frame 0 becomes [`Owner::NULL_FRAME`].
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
    pub fn new(ranges: impl IntoIterator<Item = (PhysRange, O)>) -> Result<Self, MapError<O>> {
        let mut bytes = RangeMap::new();
        let mut allocatable = Vec::new();
        for (range, owner) in ranges {
            bytes.put(range, owner);
            if has_whole_frames(owner) {
                allocatable.push((range, owner));
            }
        }
        check_allocatable(allocatable)?;

        let mut owners = bytes.clone();
        for (range, owner) in bytes.iter() {
            if !has_whole_frames(owner) {
                continue;
            }
            owners.put(range, O::REST);
            if let Some(frames) = range.whole_frames() {
                owners.put(frames, owner);
                if let Some(null) = PhysRange::new(PhysAddr::default(), FRAME_SIZE)
                    && frames.overlaps(null)
                {
                    owners.put(null, O::NULL_FRAME);
                }
            }
        }
        Ok(Self { owners })
    }

    /// Returns the owner of the byte at `addr`; `None` if no range contains it.
    pub fn owner_of(&self, addr: PhysAddr) -> Option<O> {
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
    pub fn assign(&mut self, range: PhysRange, from: O, to: O) -> Result<(), AssignError<O>> {
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
        if has_whole_frames(from) || has_whole_frames(to) {
            let is_inside = |border: &PhysAddr| !border.is_multiple_of(FRAME_SIZE);
            if let Some(at) = [range.start(), range.end()].into_iter().find(is_inside) {
                return Err(AssignError::InsideFrame {
                    range,
                    from,
                    to,
                    at,
                });
            }
        }
        if has_whole_frames(to) && range.start().get() < FRAME_SIZE {
            return Err(AssignError::NullFrame { range, to });
        }
        self.owners.put(range, to);
        Ok(())
    }

    /// Iterates over the ranges of one owner, lowest first; no two of them touch.
    pub fn ranges(&self, owner: O) -> impl DoubleEndedIterator<Item = PhysRange> {
        self.iter()
            .filter_map(move |(range, whose)| (whose == owner).then_some(range))
    }

    /// Iterates over all ranges with their owners, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (PhysRange, O)> {
        self.owners.iter()
    }

    /// Returns how many bytes each owner has.
    pub fn totals(&self) -> Totals<O> {
        let mut totals = Totals::default();
        for (range, owner) in self.iter() {
            totals[owner] += range.len();
        }
        totals
    }
}

/// Checks that no two ranges overlap.
fn check_allocatable<O: Owner>(mut ranges: Vec<(PhysRange, O)>) -> Result<(), MapError<O>> {
    ranges.sort_unstable_by_key(|&(range, _)| range);
    // Sorted by start, the first overlap there is is one between neighbours.
    for (&first, &second) in ranges.iter().zip(ranges.iter().skip(1)) {
        if first.0.overlaps(second.0) {
            return Err(MapError { first, second });
        }
    }
    Ok(())
}

/// Returns whether the owner's memory is handed out in frames, at once or once it is reclaimed.
fn has_whole_frames<O: Owner>(owner: O) -> bool {
    owner == O::FREE || owner == O::LATER
}
