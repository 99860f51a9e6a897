//! The frame allocator: it hands out frames of physical memory to all CPUs and records the owner of
//! each.
//!
//! Two levels of bits say what is free: a word for 64 frames ([`FrameInfo`]), which alone counts, and
//! above them a word for 64 chunks of 2 MiB, which says where to look ([`Zone`]). A frame belongs to
//! the CPU that clears its bit.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use crate::chunk::{CHUNK_FRAMES, Chunk, Claimed, Fit, FrameInfo};
use crate::frame_cache::{FrameCache, Slot};
use crate::map::{Owner, Totals};
use crate::owned::{NotFreed, OwnedFrame, OwnedRun};
use crate::range::{FRAME_SIZE, Frame, PhysRange};
use crate::sync::{AtomicI64, AtomicU64, mutated, spin_loop};
use crate::zone::{Among, Group, Zone};

/// Some frames that follow each other: their name, as [`Frame`] is one's; the right to them is
/// [`OwnedRun`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRun {
    range: PhysRange,
    first: Frame,
}

impl FrameRun {
    /// Returns the frames that `range` consists of, or `None` if it does not consist of whole frames or
    /// contains frame 0.
    pub fn from_range(range: PhysRange) -> Option<Self> {
        let first = Frame::from_start(range.start())?;
        (range.whole_frames() == Some(range)).then_some(Self { range, first })
    }

    /// Returns the first frame.
    pub const fn first(self) -> Frame {
        self.first
    }

    /// Returns the physical address of the first byte; never 0.
    pub const fn start(self) -> u64 {
        self.range.start()
    }

    /// Returns the number of frames; never 0.
    pub const fn count(self) -> usize {
        (self.range.len() / FRAME_SIZE) as usize
    }

    /// Returns the frames' bytes.
    pub const fn range(self) -> PhysRange {
        self.range
    }

    /// Returns the frames, lowest first.
    pub fn frames(self) -> impl Iterator<Item = Frame> + Clone {
        self.range.frames()
    }
}

impl From<Frame> for FrameRun {
    fn from(frame: Frame) -> Self {
        Self {
            range: frame.range(),
            first: frame,
        }
    }
}

impl fmt::Display for FrameRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frames {}", self.range)
    }
}

/// The reason why a frame allocator could not be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramesError {
    /// The storage for the records is too small.
    StorageTooSmall {
        /// Records needed.
        needed: usize,
        /// Records there is room for.
        given: usize,
    },
    /// The heap has no memory for the list of the ranges.
    OutOfMemory {
        /// Bytes that it takes.
        bytes: usize,
    },
    /// The heap has no memory for the caches.
    NoCaches {
        /// The number of CPUs.
        cpus: usize,
        /// Bytes that they take.
        bytes: usize,
    },
    /// Two ranges overlap.
    Overlap {
        /// The one that starts first.
        first: PhysRange,
        /// The one that starts inside it.
        second: PhysRange,
    },
}

impl fmt::Display for FramesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StorageTooSmall { needed, given } => write!(
                f,
                "the frame table needs room for {needed} records but was given room for {given}"
            ),
            Self::OutOfMemory { bytes } => write!(
                f,
                "the list of the ranges of memory takes {bytes} bytes, which the heap does not have: \
                 give it a larger boot arena"
            ),
            Self::NoCaches { cpus, bytes } => write!(
                f,
                "the frame caches of {cpus} CPUs take {bytes} bytes, which the heap does not have: give \
                 it a larger boot arena, or have fewer"
            ),
            Self::Overlap { first, second } => {
                write!(
                    f,
                    "the frame allocator was given {first} and {second}, which overlap"
                )
            }
        }
    }
}

impl core::error::Error for FramesError {}

/// The reason why a frame could not be freed.
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
        /// The owner that frees it.
        claimed: Owner,
        /// The owner that is recorded.
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

/// The number of frames that each owner was given, less those it gave back.
///
/// A CPU may give back what another was given, so a single count may be negative. There is none for
/// the last of the owners, to whom nothing is handed out ([`assert_can_own`]).
///
/// The counts are `Relaxed`: they decide nothing, and are exact while nobody allocates or frees.
#[derive(Default)]
pub(crate) struct Ledger([AtomicI64; COUNTED]);

/// Owners that have a count: the first ones.
const COUNTED: usize = Owner::NullFrame as usize;

// Each owner that may get frames has a count.
const _: () = {
    let mut place = COUNTED;
    while place < Owner::ALL.len() {
        assert!(!can_own_frames(Owner::ALL[place]));
        place += 1;
    }
};

impl Ledger {
    /// Counts frames, while other CPUs may count here as well.
    fn add(&self, owner: Owner, frames: i64) {
        self.0[owner as usize].fetch_add(frames, Relaxed);
    }

    /// Counts frames in a ledger that no other CPU writes: that is cheaper.
    #[inline]
    pub(crate) fn add_exclusive(&self, owner: Owner, frames: i64) {
        let count = &self.0[owner as usize];
        count.store(count.load(Relaxed) + frames, Relaxed);
    }

    fn get(&self, owner: Owner) -> i64 {
        self.0
            .get(owner as usize)
            .map_or(0, |count| count.load(Relaxed))
    }
}

/// One CPU's cache: the frames in it, and those that went through it. All shares together, the
/// [common](FrameAllocator::common_share) one included, are the [totals](FrameAllocator::totals).
#[derive(Clone, Copy)]
pub struct Share<'a> {
    cached: usize,
    ledger: &'a Ledger,
}

impl Share<'_> {
    /// Returns the number of frames in the cache, which are free.
    pub const fn cached(&self) -> usize {
        self.cached
    }

    /// Returns the number of frames that were handed out to `owner` here, less those that came back
    /// here: negative where more came back that others had handed out.
    pub fn handed_out(&self, owner: Owner) -> i64 {
        self.ledger.get(owner)
    }
}

/// A chunk, by its zone's index and its own index in the zone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) zone: usize,
    chunk: usize,
}

/// The number of partly used chunks that are searched for a small run before a whole one is broken up.
/// More would save memory only where they are badly fragmented, and cost a cache line each.
const MAX_PARTIAL_TRIES: usize = 32;

/// The number of times that a call which finds no frame searches for one, while frames come back:
/// nearly always one that comes back is found the next time, so others have been luckier that many
/// times.
const MAX_SEARCHES: usize = 16;

/// The same for runs, which frames that come back seldom complete, and which take longer to search
/// for.
const MAX_RUN_SEARCHES: usize = 4;

/// The number of times that a call checks whether other CPUs still hold frames which they may not keep:
/// for longer than it takes to claim the longest runs, unless the CPU is interrupted.
const MAX_POLLS: usize = if cfg!(loom) { usize::MAX } else { 1 << 12 };

/// The frame allocator.
///
/// It manages the frames of the *free* ranges, and those of the *later* ranges once they are
/// [adopted](Self::adopt): until then they count as [`Owner::Loader`]'s. Once made, it never
/// allocates memory itself, so the heap may grow from it.
///
/// Any number of CPUs may use it at once, also from interrupt handlers: no call waits for another. A
/// frame is claimed by an atomic operation on a word that has a bit for each of 64 frames. The common
/// case avoids even that: a [cache](Self::cache) for each CPU.
///
/// Frames are taken where others are in use already, lowest first, so that runs of 2 MiB last as
/// long as possible; freed frames join with free ones beside them by themselves.
///
/// It proves that no frame is handed out twice, and none that is not wholly in a range, nor frame 0;
/// frames are neither lost nor invented. The right to a frame is a value that cannot be copied
/// ([`OwnedFrame`], [`OwnedRun`]), and that [`Self::free`] takes. The written conditions of `unsafe`
/// functions have to ensure that the ranges are memory and are unused ([`Self::new`], [`Self::adopt`]),
/// and that a right which was given up for a name is made again once ([`OwnedFrame::from_raw`]). Most
/// breaches of the latter are seen nevertheless ([`FreeError`]).
///
/// ```
/// use muster_memory::{FrameAllocator, Owner, PhysRange};
///
/// let free = [PhysRange::from_bounds(0, 0x10_0000).unwrap()];
/// let later = [PhysRange::from_bounds(0x20_0000, 0x21_0000).unwrap()];
/// let all = free.into_iter().chain(later);
/// let storage = Box::leak(Box::new_uninit_slice(FrameAllocator::storage_needed(all)));
///
/// // SAFETY: nothing uses the memory of these frames, which is none.
/// let frames = unsafe { FrameAllocator::new(free.into_iter(), later.into_iter(), storage)? };
/// let owned = frames.allocate(Owner::Heap).unwrap();
/// let frame = owned.frame();
/// assert_eq!(frame.start(), 0x1000);
/// assert_eq!(frames.owner_of(frame), Some(Owner::Heap));
/// frames.free(owned)?;
/// assert_eq!(frames.owner_of(frame), Some(Owner::Free));
///
/// assert_eq!(frames.free_frames(), 255);
/// // SAFETY: nor of these.
/// assert_eq!(unsafe { frames.adopt(later[0])? }, 16);
/// assert_eq!(frames.free_frames(), 271);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FrameAllocator {
    /// Sorted by their first frame.
    zones: Box<[Zone]>,
    /// Frames in all zones.
    capacity: u64,
    /// Frames in zones that are not adopted yet.
    ///
    /// Accesses are `Relaxed`: it is counted before the frames are free, so a CPU that has claimed one
    /// sees it counted, as it sees the zone open. Others take it for a report, which is exact only while
    /// nothing changes, and has the right sum by whichever value they read.
    unadopted: AtomicU64,
    /// The frames that were handed out and taken back here and not in a CPU's cache.
    ledger: Ledger,
    slots: Box<[Slot]>,
}

impl FrameAllocator {
    /// Returns how many [`FrameInfo`]s of storage [`Self::new`] needs for these ranges: one for every
    /// naturally aligned 2 MiB that a range has a frame in, and some for the summaries of these, one for
    /// every 2.5 GiB.
    pub fn storage_needed(ranges: impl Iterator<Item = PhysRange>) -> usize {
        let chunks = ranges
            .filter_map(frame_numbers)
            .map(|(first, end)| Zone::chunks_needed(first, end));
        let (chunks, groups) = chunks.fold((0, 0), |(all, groups), chunks| {
            (all + chunks, groups + Zone::groups_needed(chunks))
        });
        chunks + (groups * size_of::<Group>()).div_ceil(size_of::<FrameInfo>())
    }

    /// Creates an allocator of the frames that lie wholly in one of the ranges, without frame 0.
    ///
    /// `later` are the ranges that may be adopted later. `storage` keeps the records; no range may
    /// include it. Apart from a list of the ranges nothing is allocated, however much memory there is.
    /// The time taken is that of writing the records: 640 bytes for 2 MiB.
    ///
    /// # Errors
    ///
    /// If `storage` is smaller than [`Self::storage_needed`] says for all ranges, if any two overlap,
    /// or if there is no memory for the list.
    ///
    /// # Safety
    ///
    /// Nothing else uses the memory of the whole frames in `free`, from now on, nor hands it out:
    /// no reference, no mapping that code uses, no other allocator, no device. `storage` does not lie
    /// in it, nor in that of `later`. Where a range is no memory, nobody may use the frames as such.
    ///
    /// If another allocator handed the frames out, as a run whose right was
    /// [given up](OwnedRun::into_raw) for this, nobody makes that right again, and nothing relies on the
    /// frames coming back here. For an allocator goes by its own records: it takes back what is
    /// recorded there as the same owner's, also if this one handed it out, and hands it out again. So a
    /// frame may go from one to the other by safe code, though never to two at once.
    pub unsafe fn new(
        free: impl Iterator<Item = PhysRange>,
        later: impl Iterator<Item = PhysRange>,
        storage: &'static mut [MaybeUninit<FrameInfo>],
    ) -> Result<Self, FramesError> {
        let mut ranges: Vec<(PhysRange, bool)> = Vec::new();
        let all = free
            .map(|range| (range, true))
            .chain(later.map(|range| (range, false)));
        for range in all {
            let bytes = (ranges.len() + 1) * size_of_val(&range);
            ranges
                .try_reserve(1)
                .map_err(|_| FramesError::OutOfMemory { bytes })?;
            ranges.push(range);
        }
        ranges.sort_unstable_by_key(|&(range, _)| range);
        for (&(first, _), &(second, _)) in ranges.iter().zip(ranges.iter().skip(1)) {
            if first.overlaps(second) {
                return Err(FramesError::Overlap { first, second });
            }
        }
        // One zone for each of the others: exactly as many as are reserved, as to shrink a list may fail.
        ranges.retain(|&(range, _)| frame_numbers(range).is_some());
        let needed = Self::storage_needed(ranges.iter().map(|&(range, _)| range));
        let given = storage.len();

        // The records of the chunks first, then the summaries of all zones.
        let chunks = ranges.iter().filter_map(|&(range, _)| frame_numbers(range));
        let chunks = chunks.map(|(first, end)| Zone::chunks_needed(first, end));
        let Some((mut rest, groups)) = storage.split_at_mut_checked(chunks.sum()) else {
            return Err(FramesError::StorageTooSmall { needed, given });
        };
        let mut groups = Group::room(groups);
        let mut zones = Vec::new();
        let no_list = |_| FramesError::OutOfMemory {
            bytes: ranges.len() * size_of::<Zone>(),
        };
        zones.try_reserve_exact(ranges.len()).map_err(no_list)?;
        let (mut capacity, mut unadopted) = (0, 0);
        for (range, open) in ranges {
            let Some((first, end)) = frame_numbers(range) else {
                continue;
            };
            let count = Zone::chunks_needed(first, end);
            let records = rest.split_off_mut(..count);
            let summary = groups.split_off_mut(..Zone::groups_needed(count));
            let (Some(records), Some(summary)) = (records, summary) else {
                return Err(FramesError::StorageTooSmall { needed, given });
            };
            capacity += end - first;
            let zone = Zone::new(first, end, records, summary);
            if open {
                zone.open();
                zone.release(first..end);
            } else {
                unadopted += end - first;
            }
            zones.push(zone);
        }
        Ok(Self {
            zones: zones.into(),
            capacity,
            unadopted: AtomicU64::new(unadopted),
            ledger: Ledger::default(),
            slots: Box::default(),
        })
    }

    /// Makes it possible for this many CPUs to have a [cache](Self::cache). Allocates 128 bytes for
    /// each.
    ///
    /// All caches that there were have been dropped by now, or forgotten. The frames of those come back,
    /// which takes a look at the record of each frame that there is.
    ///
    /// # Errors
    ///
    /// [`FramesError::NoCaches`]. The allocator is gone then, so this is for when a kernel starts.
    pub fn with_caches(mut self, cpus: usize) -> Result<Self, FramesError> {
        let mut slots = Vec::new();
        slots
            .try_reserve_exact(cpus)
            .map_err(|_| FramesError::NoCaches {
                cpus,
                bytes: cpus.saturating_mul(size_of::<Slot>()),
            })?;
        slots.resize_with(cpus, Slot::default);
        if self.slots.iter_mut().any(|slot| slot.is_taken()) {
            self.zones.iter_mut().for_each(Zone::forget_caches);
        }
        // The counts of the former caches are no longer kept apart.
        for owner in Owner::ALL {
            let through = |slot: &Slot| slot.ledger.get(owner);
            let frames = self.slots.iter().map(through).sum();
            if frames != 0 {
                self.ledger.add(owner, frames);
            }
        }
        // Exactly as many as are reserved, as to shrink a list may fail.
        self.slots = slots.into();
        Ok(self)
    }

    /// Creates a cache of frames for one CPU, or `None` if there are as many as there may be (see
    /// [`Self::with_caches`]), or no frames at all.
    pub fn cache(&self) -> Option<FrameCache<'_>> {
        self.slots
            .iter()
            .find_map(|slot| FrameCache::new(self, slot))
    }

    /// Creates the cache of this number, from 0, or returns `None` if it exists, or it is more than
    /// there may be: for a kernel whose CPUs have numbers, so that [`Self::share`] tells each CPU's.
    pub fn cache_of(&self, number: usize) -> Option<FrameCache<'_>> {
        FrameCache::new(self, self.slots.get(number)?)
    }

    /// Returns the frames that went through the cache of this number; `None` if it is more than there
    /// may be.
    pub fn share(&self, number: usize) -> Option<Share<'_>> {
        let slot = self.slots.get(number)?;
        Some(Share {
            cached: slot.cached(),
            ledger: &slot.ledger,
        })
    }

    /// Returns the frames that went past all caches.
    pub const fn common_share(&self) -> Share<'_> {
        Share {
            cached: 0,
            ledger: &self.ledger,
        }
    }

    /// Hands a frame out: the lowest one of the lowest 2 MiB that are partly in use, else of those that
    /// are not. Its content is whatever was there. `None` if there is no free frame, or only in the
    /// CPUs' caches: they can be [drained](FrameCache::drain). If frames come back during the last
    /// search, it is repeated, for a bounded time.
    ///
    /// # Panics
    ///
    /// If `owner` is [`Owner::Free`], [`Owner::NullFrame`], [`Owner::LowMemory`] or
    /// [`Owner::NotWriteBack`], to whom no frame is handed out: that would lose it.
    pub fn allocate(&self, owner: Owner) -> Option<OwnedFrame> {
        assert_can_own(owner);
        let number = self.claim(1, 1, None)?;
        self.hand_out(number..number + 1, owner);
        self.ledger.add(owner, 1);
        Some(OwnedFrame::claimed(Frame::from_number(number)?, owner))
    }

    /// Hands out `frames` frames that follow each other, the first one's number a multiple of
    /// `align_frames`. `None` if there is no such run inside a single range, or if either number is
    /// 0.
    ///
    /// Runs of up to 64 frames, and of 512 frames that are aligned to a power of two of them, are
    /// found by a summary of a word for 128 MiB, others by a search of the bits of all frames.
    ///
    /// # Panics
    ///
    /// As for [`Self::allocate`].
    pub fn allocate_run(
        &self,
        frames: usize,
        align_frames: usize,
        owner: Owner,
    ) -> Option<OwnedRun> {
        let run = self.take_run(frames, align_frames, owner, None)?;
        self.ledger.add(owner, run.run().count() as i64);
        Some(run)
    }

    /// Takes a frame back.
    ///
    /// # Errors
    ///
    /// If the frame was not handed out here to its owner, as when it is another allocator's; see
    /// [`FreeError`]. Nothing has changed then, and the frame is still the caller's.
    pub fn free(&self, frame: OwnedFrame) -> Result<(), NotFreed<OwnedFrame>> {
        let (number, owner) = (frame.frame().number(), frame.owner());
        if let Err(error) = self.take_back(number..number + 1, owner) {
            return Err(NotFreed {
                frames: frame,
                error,
            });
        }
        self.ledger.add(owner, -1);
        Ok(())
    }

    /// Takes a run back; a part of one, or frames handed out singly, will do as well.
    ///
    /// If the right to the frames was made twice, against the conditions of [`OwnedRun::from_raw`],
    /// then of CPUs that free them here at the very same time, one succeeds; and a call for frames that
    /// belong to another owner is never in the way of one for the owner.
    ///
    /// # Errors
    ///
    /// If any of the frames was not handed out here to its owner: the lowest one's error. Nothing has
    /// changed then, and the run is still the caller's.
    pub fn free_run(&self, run: OwnedRun) -> Result<(), NotFreed<OwnedRun>> {
        let (count, owner) = (run.run().count(), run.owner());
        self.take_back_run(run)?;
        self.ledger.add(owner, -(count as i64));
        Ok(())
    }

    /// Makes the frames of one of the `later` ranges free, and returns how many they are.
    ///
    /// # Errors
    ///
    /// If `range` is none of those, or was adopted before.
    ///
    /// # Safety
    ///
    /// Nothing uses the memory of the range any more, as [`Self::new`] asks of the free ones, with all that
    /// it says of frames that another allocator handed out.
    pub unsafe fn adopt(&self, range: PhysRange) -> Result<usize, AdoptError> {
        let (first, end) = frame_numbers(range).ok_or(AdoptError { range })?;
        let is_late = mutated("a zone is opened after its frames are free");
        let zone = self
            .zone_of(first)
            .and_then(|index| self.zones.get(index))
            .filter(|zone| (zone.first(), zone.end()) == (first, end) && (is_late || zone.open()))
            .ok_or(AdoptError { range })?;
        // Counted first: a frame that is handed out before it counts would be missing in the totals.
        if mutated("frames are adopted before they count") {
            zone.release(first..end);
        }
        self.unadopted.fetch_sub(end - first, Relaxed);
        if !mutated("frames are adopted before they count") {
            zone.release(first..end);
        }
        if is_late {
            zone.open();
        }
        Ok((end - first) as usize)
    }

    /// Returns the owner of the frame; `None` if the allocator does not manage it.
    pub fn owner_of(&self, frame: Frame) -> Option<Owner> {
        let zone = self.zone(self.zone_of(frame.number())?)?;
        if !zone.is_open() {
            return Some(Owner::Loader);
        }
        Owner::from_value(zone.owners().get(frame.number())?.load(Relaxed))
    }

    /// Returns how many bytes of frames each owner has; those in the CPUs' caches are free. Their sum
    /// never changes.
    ///
    /// Exact if nobody allocates or frees concurrently; a frame that changes hands concurrently counts
    /// as either's.
    pub fn totals(&self) -> Totals {
        let unadopted = self.unadopted.load(Relaxed);
        let mut totals = Totals::default();
        let mut free = self.capacity - unadopted;
        for owner in Owner::ALL {
            let ledgers = self.slots.iter().map(|slot| &slot.ledger);
            let frames: i64 = ledgers
                .chain([&self.ledger])
                .map(|ledger| ledger.get(owner))
                .sum();
            let frames = u64::try_from(frames).unwrap_or(0).min(free);
            free -= frames;
            totals[owner] = frames * FRAME_SIZE;
        }
        totals[Owner::Loader] += unadopted * FRAME_SIZE;
        totals[Owner::Free] = free * FRAME_SIZE;
        totals
    }

    /// Returns how many frames there are, free or not.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Returns how many frames are free, those in the CPUs' caches among them; as exact as
    /// [`Self::totals`].
    pub fn free_frames(&self) -> usize {
        (self.totals()[Owner::Free] / FRAME_SIZE) as usize
    }

    /// Returns how many of the free frames are in no CPU's cache, by a count of all frames' bits: with
    /// [`Self::cached_frames`] it is [`Self::free_frames`], which comes from what was handed out, if
    /// nobody allocates or frees concurrently.
    pub fn uncached_frames(&self) -> usize {
        self.zones.iter().map(Zone::count).sum()
    }

    /// Returns how many of the free frames are in the CPUs' caches.
    pub fn cached_frames(&self) -> usize {
        self.slots.iter().map(|slot| slot.cached()).sum()
    }

    /// Returns how many naturally aligned runs of 2 MiB are free: `512 * free_runs_2mib()` against
    /// [`Self::free_frames`] tells how fragmented the free memory is.
    pub fn free_runs_2mib(&self) -> usize {
        self.zones.iter().map(Zone::whole_chunks).sum()
    }

    /// Hands a run out, but leaves counting it to the caller. `home` is for small runs; see
    /// [`Self::claim_from`].
    pub(crate) fn take_run(
        &self,
        frames: usize,
        align_frames: usize,
        owner: Owner,
        home: Option<&mut Option<Spot>>,
    ) -> Option<OwnedRun> {
        assert_can_own(owner);
        let count = frames as u64;
        let first = self.claim(count, align_frames as u64, home)?;
        self.hand_out(first..first + count, owner);
        let range = PhysRange::new(first * FRAME_SIZE, count * FRAME_SIZE)?;
        Some(OwnedRun::claimed(FrameRun::from_range(range)?, owner))
    }

    /// Takes a run back, but leaves counting it to the caller.
    pub(crate) fn take_back_run(&self, run: OwnedRun) -> Result<(), NotFreed<OwnedRun>> {
        let range = run.run().range();
        self.take_back(
            range.start() / FRAME_SIZE..range.end() / FRAME_SIZE,
            run.owner(),
        )
        .map_err(|error| NotFreed { frames: run, error })
    }

    /// Claims a run, and returns its first frame's number.
    fn claim(&self, count: u64, align: u64, home: Option<&mut Option<Spot>>) -> Option<u64> {
        if count == 0 || align == 0 {
            return None;
        }
        let quickly = if let Some(fit) = Fit::new(count, align) {
            let claim = |chunk: &Chunk| chunk.claim(fit);
            match home {
                Some(home) => self.claim_from(home, claim),
                None => self.claim_among(claim).map(|(_, found)| found),
            }
            .map(|(number, ())| number)
        } else if count == CHUNK_FRAMES && CHUNK_FRAMES.is_multiple_of(align) {
            self.spots(Among::Whole).find_map(|spot| {
                let zone = self.zone(spot.zone)?;
                let first = zone.first_of(spot.chunk);
                zone.claim(first..first + CHUNK_FRAMES).then_some(first)
            })
        } else {
            None
        };
        // Frames that the summary does not know yet are searched for only before the call fails.
        quickly
            .or_else(|| self.claim_anywhere(count, align, true))
            .or_else(|| self.seek(count, align))
    }

    fn claim_anywhere(&self, count: u64, align: u64, trusting: bool) -> Option<u64> {
        self.zones
            .iter()
            .find_map(|zone| zone.claim_anywhere(count, align, trusting))
    }

    /// Claims a run wherever it is, after the quick search has found none. Searches until no frame
    /// comes back concurrently, and none is held by a CPU that may not keep it: so no caller is told
    /// that memory has run out while there is some. Both within bounds: what they wait for may have
    /// been interrupted by this very call, and long runs may be in demand forever.
    fn seek(&self, count: u64, align: u64) -> Option<u64> {
        self.zones.iter().for_each(Zone::begin_seeking);
        let returns = || {
            self.zones
                .iter()
                .map(Zone::returns)
                .fold(0, u64::wrapping_add)
        };
        let is_undecided = || self.zones.iter().any(Zone::is_undecided);
        let mut polls = MAX_POLLS;
        let searches = if count == 1 {
            MAX_SEARCHES
        } else {
            MAX_RUN_SEARCHES
        };
        let found = (0..searches).find_map(|_| {
            let before = returns();
            if let Some(first) = self.claim_anywhere(count, align, false) {
                return Some(Some(first));
            }
            while polls > 0 && is_undecided() && returns() == before {
                polls -= 1;
                spin_loop();
            }
            // In this order: a CPU that has just undone a claim has counted it before.
            (returns() == before || mutated("nobody searches again")).then_some(None)
        });
        self.zones.iter().for_each(Zone::end_seeking);
        found.flatten()
    }

    /// Claims what `claim` can find in a CPU's home, or else elsewhere: then that becomes the home,
    /// unless it is another CPU's. As [`Self::claim_among`] otherwise.
    pub(crate) fn claim_from<T>(
        &self,
        home: &mut Option<Spot>,
        claim: impl Fn(&Chunk) -> Option<Claimed<T>>,
    ) -> Option<(u64, T)> {
        if let Some(spot) = *home
            && let Some(found) = self.claim_at(spot, &claim)
        {
            return Some(found);
        }
        let (spot, found) = self.claim_among(claim)?;
        if self.zone(spot.zone)?.enter(spot.chunk)
            && let Some(left) = home.replace(spot)
        {
            self.leave(left);
        }
        Some(found)
    }

    /// Claims what `claim` can find in a chunk, where it does the least harm: in partly used ones, then
    /// in whole ones, then in those that other CPUs fill their caches from. Returns the chunk and what
    /// [`Self::claim_at`] does.
    fn claim_among<T>(
        &self,
        claim: impl Fn(&Chunk) -> Option<Claimed<T>>,
    ) -> Option<(Spot, (u64, T))> {
        [
            (Among::Partial, MAX_PARTIAL_TRIES),
            (Among::Whole, usize::MAX),
            (Among::Any, usize::MAX),
        ]
        .into_iter()
        .find_map(|(among, tries)| {
            self.spots(among)
                .take(tries)
                .find_map(|spot| Some((spot, self.claim_at(spot, &claim)?)))
        })
    }

    /// Claims what `claim` can find in this chunk. Returns the number of the frame whose index in the
    /// chunk it returns, and its value.
    fn claim_at<T>(
        &self,
        spot: Spot,
        claim: impl Fn(&Chunk) -> Option<Claimed<T>>,
    ) -> Option<(u64, T)> {
        let zone = self.zone(spot.zone)?;
        let claimed = claim(zone.chunk(spot.chunk)?)?;
        if claimed.changes_fill {
            zone.settle(spot.chunk);
        }
        Some((zone.first_of(spot.chunk) + claimed.place, claimed.what))
    }

    fn spots(&self, among: Among) -> impl Iterator<Item = Spot> {
        self.zones
            .iter()
            .enumerate()
            .flat_map(move |(index, zone)| {
                zone.candidates(among)
                    .map(move |chunk| Spot { zone: index, chunk })
            })
    }

    /// Ends that a chunk is a CPU's home.
    pub(crate) fn leave(&self, spot: Spot) {
        if let Some(zone) = self.zone(spot.zone) {
            zone.leave(spot.chunk);
        }
    }

    pub(crate) fn zone(&self, index: usize) -> Option<&Zone> {
        self.zones.get(index)
    }

    /// Returns the index of the zone that has the frame with this number.
    pub(crate) fn zone_of(&self, number: u64) -> Option<usize> {
        let after = self.zones.partition_point(|zone| zone.first() <= number);
        let index = after.checked_sub(1)?;
        self.zone(index)?.contains(number).then_some(index)
    }

    /// Records the owner of claimed frames of one zone.
    fn hand_out(&self, numbers: Range<u64>, owner: Owner) {
        if let Some(zone) = self
            .zone_of(numbers.start)
            .and_then(|index| self.zone(index))
        {
            zone.owners().set(numbers, owner);
        }
    }

    /// Takes frames back that were handed out to `owner`, all or none.
    fn take_back(&self, numbers: Range<u64>, owner: Owner) -> Result<(), FreeError> {
        if let Some(zone) = self
            .zone_of(numbers.start)
            .and_then(|index| self.zone(index))
            .filter(|zone| numbers.end <= zone.end())
            && zone.is_open()
            && owner != Owner::Free
        {
            return zone.take_back(numbers.clone(), owner).or_else(|number| {
                self.check_all(numbers, owner)?;
                // The frame is the owner's again now, but was not when this call checked it.
                Frame::from_number(number)
                    .map_or(Ok(()), |frame| Err(FreeError::AlreadyFree { frame }))
            });
        }
        // A caller that does not own the frames leaves no trace by which the owner could be refused.
        if !mutated("owners are compared late") {
            self.check_all(numbers.clone(), owner)?;
        }
        let zones = || {
            self.parts(numbers.clone())
                .filter_map(|(part, zone)| Some((part, zone?)))
        };
        // No other CPU may do the same from here on; but one may have, just before.
        let mut begun = numbers.start;
        let begin = |(part, zone): (Range<u64>, &Zone)| match zone.begin_return(part.clone()) {
            Ok(()) => {
                begun = part.end;
                Ok(())
            }
            Err(number) => Frame::from_number(number)
                .map_or(Ok(()), |frame| Err(FreeError::AlreadyFree { frame })),
        };
        let checked = zones()
            .try_for_each(begin)
            .and_then(|()| self.check_all(numbers.clone(), owner));
        for (part, zone) in zones().take_while(|(part, _)| part.start < begun) {
            if checked.is_ok() {
                zone.owners().set(part.clone(), Owner::Free);
            }
            zone.end_return(part.clone());
            if checked.is_ok() {
                zone.release(part);
            }
        }
        checked
    }

    /// Checks that the frames were all handed out to `owner`.
    fn check_all(&self, numbers: Range<u64>, owner: Owner) -> Result<(), FreeError> {
        self.parts(numbers).try_for_each(|(part, zone)| {
            if owner != Owner::Free
                && zone.is_some_and(|zone| zone.owners().are_all(part.clone(), owner))
            {
                return Ok(());
            }
            part.filter_map(Frame::from_number)
                .try_for_each(|frame| check(zone, frame, owner))
        })
    }

    /// Splits frames by their zones; a frame in none is a part of its own.
    fn parts(&self, numbers: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<&Zone>)> {
        let mut from = numbers.start;
        core::iter::from_fn(move || {
            let start = from;
            if start >= numbers.end {
                return None;
            }
            let zone = self.zone_of(start).and_then(|index| self.zone(index));
            from = zone.map_or(start + 1, |zone| zone.end().min(numbers.end));
            Some((start..from, zone))
        })
    }
}

/// Checks that a frame was handed out to `owner`.
pub(crate) fn check(zone: Option<&Zone>, frame: Frame, owner: Owner) -> Result<(), FreeError> {
    let Some(zone) = zone.filter(|zone| zone.is_open()) else {
        return Err(FreeError::Foreign { frame });
    };
    let record = zone
        .owners()
        .get(frame.number())
        .map(|record| record.load(Relaxed));
    match record.and_then(Owner::from_value) {
        None | Some(Owner::Free) => Err(FreeError::AlreadyFree { frame }),
        Some(recorded) if recorded != owner => Err(FreeError::WrongOwner {
            frame,
            claimed: owner,
            recorded,
        }),
        Some(_) => Ok(()),
    }
}

/// Returns whether frames may be handed out to this owner.
const fn can_own_frames(owner: Owner) -> bool {
    !matches!(
        owner,
        Owner::Free | Owner::NullFrame | Owner::LowMemory | Owner::NotWriteBack
    )
}

#[inline]
pub(crate) fn assert_can_own(owner: Owner) {
    assert!(
        can_own_frames(owner),
        "frames cannot be handed out to nobody"
    );
}

impl fmt::Debug for FrameAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameAllocator")
            .field("zones", &self.zones.len())
            .field("totals", &self.totals())
            .finish_non_exhaustive()
    }
}

/// Returns the numbers of the frames that lie wholly in the range, without frame 0: the first, and one
/// past the last.
fn frame_numbers(range: PhysRange) -> Option<(u64, u64)> {
    let first = range.start().div_ceil(FRAME_SIZE).max(1);
    let end = range.end() / FRAME_SIZE;
    (first < end).then_some((first, end))
}
