//! The frame allocator: hands out frames of physical memory and knows whose each one is.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::mem::{MaybeUninit, take};

use crate::map::{Owner, Totals};
use crate::range::{FRAME_SIZE, Frame, PhysRange};

/// Some frames that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRun {
    range: PhysRange,
    first: Frame,
}

impl FrameRun {
    /// The frames that `range` consists of, or `None` if it does not consist of whole frames or
    /// contains frame 0.
    pub fn from_range(range: PhysRange) -> Option<Self> {
        let first = Frame::from_start(range.start())?;
        (range.whole_frames() == Some(range)).then_some(Self { range, first })
    }

    /// The first frame.
    pub const fn first(self) -> Frame {
        self.first
    }

    /// The physical address of the first byte; never 0.
    pub const fn start(self) -> u64 {
        self.range.start()
    }

    /// How many frames; never 0.
    pub const fn count(self) -> usize {
        (self.range.len() / FRAME_SIZE) as usize
    }

    /// The frames' bytes.
    pub const fn range(self) -> PhysRange {
        self.range
    }

    /// The frames, lowest first.
    pub fn frames(self) -> impl Iterator<Item = Frame> + Clone {
        self.range.frames()
    }
}

impl fmt::Display for FrameRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frames {}", self.range)
    }
}

/// Where a frame's record is: its zone and its place in it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    zone: u16,
    index: u64,
}

/// What the allocator records of one frame: whose it is and, while it is free, which free frame
/// comes after it.
///
/// The kernel sets memory for one of these per frame aside and hands it over unwritten.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct FrameInfo(u64);

const _: () = assert!(size_of::<FrameInfo>() == 8);

/// Bits 0–39: the next free frame's index (a frame number has no more bits than that).
const INDEX_BITS: u32 = 40;
/// Bits 40–55: the next free frame's zone. All ones: there is none.
const NO_ZONE: u16 = u16::MAX;
/// Bits 56–63: the owner.
const OWNER_SHIFT: u32 = 56;

impl FrameInfo {
    const fn owned(owner: Owner) -> Self {
        Self((owner as u64) << OWNER_SHIFT | (NO_ZONE as u64) << INDEX_BITS)
    }

    const fn free(next: Option<Place>) -> Self {
        match next {
            Some(Place { zone, index }) => {
                Self((Owner::Free as u64) << OWNER_SHIFT | (zone as u64) << INDEX_BITS | index)
            }
            None => Self::owned(Owner::Free),
        }
    }

    fn owner(self) -> Option<Owner> {
        Owner::from_value((self.0 >> OWNER_SHIFT) as u8)
    }

    fn next(self) -> Option<Place> {
        let zone = (self.0 >> INDEX_BITS) as u16;
        let index = self.0 & ((1 << INDEX_BITS) - 1);
        (zone != NO_ZONE).then_some(Place { zone, index })
    }
}

/// The records of a zone's frames, written from the lowest on. Those not yet written are of frames
/// that were never handed out, so that starting up costs nothing per frame.
struct Records {
    slots: &'static mut [MaybeUninit<FrameInfo>],
    /// `slots[..written]` are initialised: [`Self::push`] alone raises this, after writing.
    written: usize,
}

impl Records {
    fn get(&self, index: u64) -> Option<FrameInfo> {
        let slot = self
            .slots
            .get(..self.written)?
            .get(usize::try_from(index).ok()?)?;
        // SAFETY: the slot is below `written`, so `push` has initialised it, and nothing ever
        // makes a slot uninitialised again.
        Some(unsafe { slot.assume_init() })
    }

    fn set(&mut self, index: u64, info: FrameInfo) {
        self.slots[..self.written][index as usize].write(info);
    }

    /// Writes the lowest unwritten record.
    fn push(&mut self, info: FrameInfo) {
        self.slots[self.written].write(info);
        self.written += 1;
    }

    fn unwritten(&self) -> u64 {
        (self.slots.len() - self.written) as u64
    }
}

/// A run of frames that the allocator manages.
struct Zone {
    /// The number of its first frame.
    first: u64,
    records: Records,
    /// Whether its frames may be handed out: not before it is adopted.
    open: bool,
}

impl Zone {
    fn len(&self) -> u64 {
        self.records.slots.len() as u64
    }

    /// The number of the lowest frame that was never handed out; frames above it neither.
    fn frontier(&self) -> u64 {
        self.first + self.records.written as u64
    }

    fn end(&self) -> u64 {
        self.first + self.len()
    }
}

/// Why a frame allocator could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramesError {
    /// The storage for the records is too small.
    StorageTooSmall {
        /// Records needed.
        needed: usize,
        /// Records there is room for.
        given: usize,
    },
    /// Two ranges overlap.
    Overlap {
        /// The one that starts first.
        first: PhysRange,
        /// The one that starts inside it.
        second: PhysRange,
    },
    /// More ranges than the records can tell apart.
    TooManyRanges {
        /// How many there may be.
        limit: usize,
    },
}

impl fmt::Display for FramesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StorageTooSmall { needed, given } => write!(
                f,
                "the frame table needs room for {needed} frames but was given room for {given}"
            ),
            Self::Overlap { first, second } => {
                write!(
                    f,
                    "the frame allocator was given {first} and {second}, which overlap"
                )
            }
            Self::TooManyRanges { limit } => {
                write!(
                    f,
                    "the frame allocator was given more than {limit} ranges of memory"
                )
            }
        }
    }
}

impl core::error::Error for FramesError {}

/// Why a frame could not be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError {
    /// The allocator does not manage the frame, or has not adopted it yet.
    Foreign {
        /// The frame.
        frame: Frame,
    },
    /// The frame is free already.
    AlreadyFree {
        /// The frame.
        frame: Frame,
    },
    /// The frame is not the one's who frees it.
    WrongOwner {
        /// The frame.
        frame: Frame,
        /// Who frees it.
        claimed: Owner,
        /// Whose it is.
        recorded: Owner,
    },
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { frame } => {
                write!(
                    f,
                    "{frame} was freed but never came from the frame allocator"
                )
            }
            Self::AlreadyFree { frame } => write!(f, "{frame} was freed twice"),
            Self::WrongOwner {
                frame,
                claimed,
                recorded,
            } => {
                write!(
                    f,
                    "{frame} was freed by {claimed} but belongs to {recorded}"
                )
            }
        }
    }
}

impl core::error::Error for FreeError {}

/// A range could not be adopted: it is none of those set aside for it, or was adopted already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptError {
    /// The range.
    pub range: PhysRange,
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cannot be adopted: it was not set aside when the frame allocator was made, or has \
             been adopted already",
            self.range
        )
    }
}

impl core::error::Error for AdoptError {}

/// The frame allocator.
///
/// It manages the frames of the *free* ranges, and those of the *later* ranges once they are
/// [adopted](Self::adopt): until then they count as [`Owner::Loader`]'s. Which frame comes next
/// depends only on the calls made before. Once made, it never allocates memory itself, so the heap
/// may grow from it.
///
/// What it proves: no frame is handed out twice, and none that is not wholly in a range, nor frame
/// 0; what is freed was handed out to the one who frees it; frames are neither lost nor invented.
/// What it does not: that the ranges are memory and are unused, and that a frame's holder stays
/// within it and lets go of it.
///
/// ```
/// use core::mem::MaybeUninit;
/// use muster_memory::{FrameAllocator, FreeError, Owner, PhysRange};
///
/// let free = [PhysRange::from_bounds(0, 0x10_0000).unwrap()];
/// let later = [PhysRange::from_bounds(0x20_0000, 0x21_0000).unwrap()];
/// let all = free.into_iter().chain(later);
/// let storage = vec![MaybeUninit::uninit(); FrameAllocator::storage_needed(all)].leak();
///
/// let mut frames = FrameAllocator::new(free.into_iter(), later.into_iter(), storage)?;
/// let frame = frames.allocate(Owner::Heap).unwrap();
/// assert_eq!(frame.start(), 0x1000);
/// assert_eq!(frames.owner_of(frame), Some(Owner::Heap));
/// frames.free(frame, Owner::Heap)?;
/// assert_eq!(frames.free(frame, Owner::Heap), Err(FreeError::AlreadyFree { frame }));
///
/// assert_eq!(frames.free_frames(), 255);
/// assert_eq!(frames.adopt(later[0])?, 16);
/// assert_eq!(frames.free_frames(), 271);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FrameAllocator {
    /// Sorted by their first frame.
    zones: Box<[Zone]>,
    /// No open zone before this one has a frame that was never handed out.
    lowest_fresh: usize,
    /// The free frames that were handed out before, or passed over, as a stack threaded through
    /// their records.
    freed: Option<Place>,
    totals: Totals,
}

impl FrameAllocator {
    /// How many [`FrameInfo`]s of storage [`Self::new`] needs for these ranges: one per frame that
    /// lies wholly in one of them.
    pub fn storage_needed(ranges: impl Iterator<Item = PhysRange>) -> usize {
        ranges
            .filter_map(frame_numbers)
            .map(|(first, end)| (end - first) as usize)
            .sum()
    }

    /// An allocator of the frames that lie wholly in one of the ranges, without frame 0.
    ///
    /// `later` are the ranges that may be adopted later. `storage` keeps the records; it is neither
    /// read nor written here, but bit by bit as frames are first handed out. No range may include
    /// it. Apart from a list of the ranges, nothing is allocated, and the time taken does not depend
    /// on the amount of memory.
    ///
    /// # Errors
    ///
    /// If `storage` is smaller than [`Self::storage_needed`] says for all ranges, if any two overlap,
    /// or if there are more than 65 535.
    pub fn new(
        free: impl Iterator<Item = PhysRange>,
        later: impl Iterator<Item = PhysRange>,
        storage: &'static mut [MaybeUninit<FrameInfo>],
    ) -> Result<Self, FramesError> {
        let mut ranges: Vec<(PhysRange, bool)> = free
            .map(|range| (range, true))
            .chain(later.map(|range| (range, false)))
            .collect();
        ranges.sort_unstable_by_key(|&(range, _)| range);
        for (&(first, _), &(second, _)) in ranges.iter().zip(ranges.iter().skip(1)) {
            if first.overlaps(second) {
                return Err(FramesError::Overlap { first, second });
            }
        }
        if ranges.len() > usize::from(NO_ZONE) {
            return Err(FramesError::TooManyRanges {
                limit: usize::from(NO_ZONE),
            });
        }
        let needed = Self::storage_needed(ranges.iter().map(|&(range, _)| range));
        let given = storage.len();

        let mut totals = Totals::default();
        let mut rest = storage;
        let mut zones = Vec::with_capacity(ranges.len());
        for (range, open) in ranges {
            let Some((first, end)) = frame_numbers(range) else {
                continue;
            };
            let Some((slots, remaining)) =
                take(&mut rest).split_at_mut_checked((end - first) as usize)
            else {
                return Err(FramesError::StorageTooSmall { needed, given });
            };
            rest = remaining;
            totals[if open { Owner::Free } else { Owner::Loader }] += (end - first) * FRAME_SIZE;
            zones.push(Zone {
                first,
                records: Records { slots, written: 0 },
                open,
            });
        }
        Ok(Self {
            zones: zones.into(),
            lowest_fresh: 0,
            freed: None,
            totals,
        })
    }

    /// Hands a frame out, in constant time on average: the one freed last, else the lowest that was
    /// never handed out. Its content is whatever was there. `None` if there is no free frame.
    ///
    /// # Panics
    ///
    /// If `owner` is [`Owner::Free`]: that would lose the frame.
    pub fn allocate(&mut self, owner: Owner) -> Option<Frame> {
        assert!(
            owner != Owner::Free,
            "a frame cannot be handed out to nobody"
        );
        let number = match self.freed {
            Some(place) => {
                let zone = &mut self.zones[usize::from(place.zone)];
                self.freed = zone.records.get(place.index).and_then(FrameInfo::next);
                zone.records.set(place.index, FrameInfo::owned(owner));
                zone.first + place.index
            }
            None => {
                let zone = self.fresh_zone()?;
                let number = zone.frontier();
                zone.records.push(FrameInfo::owned(owner));
                number
            }
        };
        self.move_bytes(Owner::Free, owner, 1);
        Frame::from_number(number)
    }

    /// Hands out `frames` frames that follow each other, the first one's number a multiple of
    /// `align_frames`. `None` if there is no such run, or if either number is 0.
    ///
    /// Frames that were never handed out are taken first, in constant time per zone and frame of the
    /// run; those passed over to align it become free like any other. If there are not enough, the
    /// records of all frames are searched for freed ones that follow each other: slow, but it finds
    /// a run wherever there is one inside a single range.
    ///
    /// # Panics
    ///
    /// If `owner` is [`Owner::Free`].
    pub fn allocate_run(
        &mut self,
        frames: usize,
        align_frames: usize,
        owner: Owner,
    ) -> Option<FrameRun> {
        assert!(
            owner != Owner::Free,
            "frames cannot be handed out to nobody"
        );
        let count = frames as u64;
        let align = align_frames as u64;
        if count == 0 || align == 0 || count > self.free_frames() as u64 {
            return None;
        }
        let run = match self.fresh_run(count, align) {
            Some(run) => {
                self.take_fresh(run, count, owner);
                run
            }
            None => {
                let run = self.freed_run(count, align)?;
                self.take_freed(run, count, owner);
                run
            }
        };
        self.move_bytes(Owner::Free, owner, count);
        let first = self.zones[usize::from(run.zone)].first + run.index;
        FrameRun::from_range(PhysRange::new(first * FRAME_SIZE, count * FRAME_SIZE)?)
    }

    /// Takes a frame back.
    ///
    /// # Errors
    ///
    /// If the frame was not handed out to `owner`; see [`FreeError`]. Nothing has changed then.
    pub fn free(&mut self, frame: Frame, owner: Owner) -> Result<(), FreeError> {
        let place = self.check_owned(frame, owner)?;
        self.push_freed(place);
        self.move_bytes(owner, Owner::Free, 1);
        Ok(())
    }

    /// Takes a run back; a part of one, or frames handed out singly, will do as well.
    ///
    /// # Errors
    ///
    /// If any of the frames was not handed out to `owner`: the lowest one's error. Nothing has
    /// changed then.
    pub fn free_run(&mut self, run: FrameRun, owner: Owner) -> Result<(), FreeError> {
        for frame in run.frames() {
            self.check_owned(frame, owner)?;
        }
        // Highest first, so that single frames are handed out lowest first.
        for number in (run.first().number()..run.range().end() / FRAME_SIZE).rev() {
            if let Some(place) = self.place(number) {
                self.push_freed(place);
            }
        }
        self.move_bytes(owner, Owner::Free, run.count() as u64);
        Ok(())
    }

    /// Makes the frames of one of the `later` ranges free, and answers how many they are.
    ///
    /// # Errors
    ///
    /// If `range` is none of those, or was adopted before.
    pub fn adopt(&mut self, range: PhysRange) -> Result<usize, AdoptError> {
        let (first, end) = frame_numbers(range).ok_or(AdoptError { range })?;
        let index = self.zones.partition_point(|zone| zone.first < first);
        let zone = self
            .zones
            .get_mut(index)
            .filter(|zone| !zone.open && (zone.first, zone.end()) == (first, end))
            .ok_or(AdoptError { range })?;
        zone.open = true;
        self.lowest_fresh = self.lowest_fresh.min(index);
        self.move_bytes(Owner::Loader, Owner::Free, end - first);
        Ok((end - first) as usize)
    }

    /// Whose the frame is; `None` if the allocator does not manage it.
    pub fn owner_of(&self, frame: Frame) -> Option<Owner> {
        let place = self.place(frame.number())?;
        let zone = &self.zones[usize::from(place.zone)];
        if !zone.open {
            return Some(Owner::Loader);
        }
        zone.records
            .get(place.index)
            .map_or(Some(Owner::Free), FrameInfo::owner)
    }

    /// How many bytes of frames each owner has. Their sum never changes.
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// How many frames there are, free or not.
    pub fn capacity(&self) -> usize {
        (self.totals.sum() / FRAME_SIZE) as usize
    }

    /// How many frames are free.
    pub fn free_frames(&self) -> usize {
        (self.totals[Owner::Free] / FRAME_SIZE) as usize
    }

    fn move_bytes(&mut self, from: Owner, to: Owner, frames: u64) {
        self.totals[from] -= frames * FRAME_SIZE;
        self.totals[to] += frames * FRAME_SIZE;
    }

    /// The lowest open zone with a frame that was never handed out.
    fn fresh_zone(&mut self) -> Option<&mut Zone> {
        while let Some(zone) = self.zones.get(self.lowest_fresh) {
            if zone.open && zone.records.unwritten() > 0 {
                break;
            }
            self.lowest_fresh += 1;
        }
        self.zones.get_mut(self.lowest_fresh)
    }

    /// The place of the record of the frame with this number, if it is managed here.
    fn place(&self, number: u64) -> Option<Place> {
        let index = self
            .zones
            .partition_point(|zone| zone.first <= number)
            .checked_sub(1)?;
        let zone = self.zones.get(index).filter(|zone| number < zone.end())?;
        Some(Place {
            zone: u16::try_from(index).ok()?,
            index: number - zone.first,
        })
    }

    /// The place of a frame that was handed out to this owner.
    fn check_owned(&self, frame: Frame, owner: Owner) -> Result<Place, FreeError> {
        let foreign = FreeError::Foreign { frame };
        let place = self.place(frame.number()).ok_or(foreign)?;
        let zone = &self.zones[usize::from(place.zone)];
        if !zone.open {
            return Err(foreign);
        }
        match zone.records.get(place.index).and_then(FrameInfo::owner) {
            None | Some(Owner::Free) => Err(FreeError::AlreadyFree { frame }),
            Some(recorded) if recorded != owner => Err(FreeError::WrongOwner {
                frame,
                claimed: owner,
                recorded,
            }),
            Some(_) => Ok(place),
        }
    }

    fn push_freed(&mut self, place: Place) {
        self.set_next(place, self.freed);
        self.freed = Some(place);
    }

    /// Says which free frame comes after this one on the stack of freed ones.
    fn set_next(&mut self, place: Place, next: Option<Place>) {
        self.zones[usize::from(place.zone)]
            .records
            .set(place.index, FrameInfo::free(next));
    }

    /// The place of a run of frames that were never handed out.
    fn fresh_run(&self, count: u64, align: u64) -> Option<Place> {
        self.open_zones().find_map(|(id, zone)| {
            let first = zone.frontier().checked_next_multiple_of(align)?;
            (first.checked_add(count)? <= zone.end()).then_some(Place {
                zone: id,
                index: first - zone.first,
            })
        })
    }

    /// Takes a run of frames that were never handed out; those before it become freed ones.
    fn take_fresh(&mut self, run: Place, count: u64, owner: Owner) {
        let records = &mut self.zones[usize::from(run.zone)].records;
        while (records.written as u64) < run.index {
            let index = records.written as u64;
            records.push(FrameInfo::free(self.freed));
            self.freed = Some(Place {
                zone: run.zone,
                index,
            });
        }
        for _ in 0..count {
            records.push(FrameInfo::owned(owner));
        }
    }

    /// The place of a run of free frames, found by looking at every record.
    fn freed_run(&self, count: u64, align: u64) -> Option<Place> {
        self.open_zones().find_map(|(id, zone)| {
            let mut first = zone.first.checked_next_multiple_of(align)?;
            let mut number = first;
            while number < zone.end() {
                let info = zone.records.get(number - zone.first);
                number += 1;
                if info.is_some_and(|info| info.owner() != Some(Owner::Free)) {
                    first = number.checked_next_multiple_of(align)?;
                    number = first;
                } else if number - first == count {
                    return Some(Place {
                        zone: id,
                        index: first - zone.first,
                    });
                }
            }
            None
        })
    }

    /// Takes a run of free frames of which at least the first was freed; the rest may reach beyond
    /// the frontier.
    fn take_freed(&mut self, run: Place, count: u64, owner: Owner) {
        let taken = run.index..run.index + count;
        let is_taken = |place: Place| place.zone == run.zone && taken.contains(&place.index);

        // The stack is threaded anew through the frames that stay on it, in the same order.
        let mut last_kept = None;
        let mut next = self.freed.take();
        while let Some(place) = next {
            next = self.zones[usize::from(place.zone)]
                .records
                .get(place.index)
                .and_then(FrameInfo::next);
            if is_taken(place) {
                continue;
            }
            match last_kept {
                None => self.freed = Some(place),
                Some(last) => self.set_next(last, Some(place)),
            }
            last_kept = Some(place);
        }
        if let Some(last) = last_kept {
            self.set_next(last, None);
        }

        let records = &mut self.zones[usize::from(run.zone)].records;
        for index in taken {
            if index < records.written as u64 {
                records.set(index, FrameInfo::owned(owner));
            } else {
                records.push(FrameInfo::owned(owner));
            }
        }
    }

    fn open_zones(&self) -> impl Iterator<Item = (u16, &Zone)> {
        (0..).zip(&self.zones).filter(|(_, zone)| zone.open)
    }
}

impl fmt::Debug for FrameAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameAllocator")
            .field("zones", &self.zones.len())
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}

/// The numbers of the frames that lie wholly in the range, without frame 0: the first, and one past
/// the last.
fn frame_numbers(range: PhysRange) -> Option<(u64, u64)> {
    let first = range.start().div_ceil(FRAME_SIZE).max(1);
    let end = range.end() / FRAME_SIZE;
    (first < end).then_some((first, end))
}
