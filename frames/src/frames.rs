//! The frame allocator: it hands out frames of physical memory to all CPUs and records the owner of
//! each.
//!
//! Two levels of bits say what is free: a word for 64 frames ([`FrameInfo`]), which alone counts, and
//! above them a word for 64 chunks of 2 MiB, which says where to look ([`Zone`]). A frame belongs to
//! the CPU that clears its bit. Where a run can't be is remembered beside them
//! ([`Hint`](crate::hint::Hint)).

mod claim;
mod error;
mod ledger;
mod run;
mod take_back;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use muster_sync::{AtomicU64, AtomicUsize};

use crate::chunk::FrameInfo;
use crate::frame_cache::{FrameCache, Slot};
use crate::hint::Request;
use crate::map::Totals;
use crate::owned::{NotFreed, OwnedFrame, OwnedRun};
use crate::owner::{FREE, MAX_FRAME_OWNERS, Owner, SoleOwner};
use crate::range::{FRAME_SIZE, Frame, PhysRange};
use crate::request::RunRequest;
use crate::search::{RunSearch, SearchStep};
use crate::shortage::Shortage;
use crate::zone::{Group, Zone};

pub(crate) use claim::{ANYWHERE, NEARBY, STEP_LOOKS, Spot};
pub use error::{AdoptError, FramesError, FreeError};
pub use ledger::Share;
pub(crate) use ledger::{Ledger, number_of};
pub use run::FrameRun;

/// The frame allocator.
///
/// It manages the frames of the *free* ranges, and those of the *later* ranges once they are
/// [adopted](Self::adopt): until then they count as [`Owner::LATER`]'s. Once made, it never
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
/// use muster_frames::{FrameAllocator, FrameInfo, PhysAddr, PhysRange, SoleOwner};
///
/// let free = [PhysRange::from_bounds(PhysAddr::new(0), PhysAddr::new(0x10_0000)).unwrap()];
/// let later = [PhysRange::from_bounds(PhysAddr::new(0x20_0000), PhysAddr::new(0x21_0000)).unwrap()];
/// let all = free.into_iter().chain(later);
/// let storage = Box::leak(Box::new_uninit_slice(FrameInfo::needed(all)));
///
/// // SAFETY: nothing uses the memory of these frames, which is none.
/// let frames = unsafe { FrameAllocator::new(free.into_iter(), later.into_iter(), storage)? };
/// let owned = frames.allocate(SoleOwner::Used).unwrap();
/// let frame = owned.frame();
/// assert_eq!(frame.start(), PhysAddr::new(0x1000));
/// assert_eq!(frames.owner_of(frame), Some(SoleOwner::Used));
/// frames.free(owned)?;
/// assert_eq!(frames.owner_of(frame), Some(SoleOwner::Free));
///
/// assert_eq!(frames.free_frames(), 255);
/// // SAFETY: nor of these.
/// assert_eq!(unsafe { frames.adopt(later[0])? }, 16);
/// assert_eq!(frames.free_frames(), 271);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FrameAllocator<O = SoleOwner> {
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
    /// The shortages that there are.
    shortages: AtomicUsize,
    _of: PhantomData<fn() -> O>,
}

impl FrameInfo {
    /// Returns how many records [`FrameAllocator::new`] needs for these ranges: one for every
    /// naturally aligned 2 MiB that a range has a frame in, and some for the summaries of these, one for
    /// every 150 MiB.
    pub fn needed(ranges: impl Iterator<Item = PhysRange>) -> usize {
        let chunks = ranges
            .filter_map(frame_numbers)
            .map(|(first, end)| Zone::chunks_needed(first, end));
        let (chunks, groups) = chunks.fold((0, 0), |(all, groups), chunks| {
            (all + chunks, groups + Zone::groups_needed(chunks))
        });
        // Where `usize` has 32 bits, the records of more than that have no room anyway, the summaries or not.
        let bytes = groups.saturating_mul(size_of::<Group>());
        chunks + bytes.div_ceil(size_of::<FrameInfo>())
    }
}

impl<O: Owner> FrameAllocator<O> {
    /// Creates an allocator of the frames that lie wholly in one of the ranges, without frame 0.
    ///
    /// `later` are the ranges that may be adopted later. `storage` keeps the records; no range may
    /// include it. Apart from a list of the ranges nothing is allocated, however much memory there is.
    /// The time taken is that of writing the records: 640 bytes for 2 MiB.
    ///
    /// # Errors
    ///
    /// If `storage` is smaller than [`FrameInfo::needed`] says for all ranges, if any two overlap,
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
        let needed = FrameInfo::needed(ranges.iter().map(|&(range, _)| range));
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
            shortages: AtomicUsize::new(0),
            _of: PhantomData,
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
        for owner in 0..MAX_FRAME_OWNERS as u8 {
            let through = |slot: &Slot| slot.ledger.get(owner);
            let frames = self.slots.iter().map(through).sum();
            if frames != 0 {
                self.ledger.add(owner, frames);
            }
        }
        // Exactly as many as are reserved, as to shrink a list may fail.
        self.slots = slots.into();
        // Whoever was short has forgotten it.
        self.shortages = AtomicUsize::new(0);
        Ok(self)
    }

    /// Creates a cache of frames for one CPU, or `None` if there are as many as there may be (see
    /// [`Self::with_caches`]), or no frames at all.
    pub fn cache(&self) -> Option<FrameCache<'_, O>> {
        self.slots
            .iter()
            .find_map(|slot| FrameCache::new(self, slot))
    }

    /// Creates the cache of this number, from 0, or returns `None` if it exists, or it is more than
    /// there may be: for a kernel whose CPUs have numbers, so that [`Self::share`] tells each CPU's.
    pub fn cache_of(&self, number: usize) -> Option<FrameCache<'_, O>> {
        FrameCache::new(self, self.slots.get(number)?)
    }

    /// Returns the frames that went through the cache of this number; `None` if it is more than there
    /// may be.
    pub fn share(&self, number: usize) -> Option<Share<'_, O>> {
        let slot = self.slots.get(number)?;
        Some(Share {
            cached: slot.cached(),
            ledger: &slot.ledger,
            _of: PhantomData,
        })
    }

    /// Returns the frames that went past all caches.
    pub const fn common_share(&self) -> Share<'_, O> {
        Share {
            cached: 0,
            ledger: &self.ledger,
            _of: PhantomData,
        }
    }

    /// Begins a shortage, for a CPU that finds too few free frames and has others [drain](FrameCache::drain) their caches:
    /// until the result is dropped, caches take nothing in but what they hand out, and once drained they keep nothing that is
    /// freed. Otherwise the frames that are free could be in a cache each time that this CPU looks. Begin it before the drains.
    /// A cache that isn't drained, as [none has any](Self::may_have_cached_frames), may keep what is freed from then on.
    pub fn begin_shortage(&self) -> Shortage<'_> {
        Shortage::new(&self.shortages)
    }

    /// Returns whether any CPU's cache has frames, or may be taking some in. If not, to have the CPUs drain is of no use to
    /// one that has begun a [shortage](Self::begin_shortage) before it asks.
    pub fn may_have_cached_frames(&self) -> bool {
        self.slots.iter().any(Slot::may_have_frames)
    }

    /// Returns whether a CPU is short of frames.
    pub(crate) fn is_short(&self) -> bool {
        // Relaxed: the other CPU begins the shortage before it has this one drain, which this one does after a
        // call that has not seen it, and before one that does.
        self.shortages.load(Relaxed) > 0
    }

    /// Hands a frame out: the lowest one of the lowest 2 MiB that are partly in use, else of those that
    /// are not. Its content is whatever was there. `None` if there is no free frame, or only in the
    /// CPUs' caches: they can be [drained](FrameCache::drain). If frames come back during the last
    /// search, it is repeated, for a bounded time.
    ///
    /// # Panics
    ///
    /// If `owner` is [`Owner::FREE`] or [`Owner::NULL_FRAME`], or its number is not below
    /// [`MAX_FRAME_OWNERS`]: to them no frame is handed out, as that would lose it.
    pub fn allocate(&self, owner: O) -> Option<OwnedFrame<O>> {
        let owner = number_of(owner);
        let number = self.claim(&Request::new(&RunRequest::new(1))?, None)?;
        self.hand_out(number..number + 1, owner);
        self.ledger.add(owner, 1);
        Some(OwnedFrame::claimed(Frame::from_number(number)?, owner))
    }

    /// Hands out frames that follow each other, as the request says. `None` if there is no such run inside a single range.
    ///
    /// Where there can be no such run is remembered, for each 2 MiB and for each 128 MiB, until frames come back there: a
    /// run that is not there is missed after a look at a word for 128 MiB, and at what has changed since the last look.
    /// Runs of 512 frames that are aligned to a power of two of them are found by a summary of a word for 128 MiB. For a longer
    /// one the eight words of each 2 MiB that may be free are read.
    ///
    /// # Panics
    ///
    /// As for [`Self::allocate`].
    pub fn allocate_run(&self, request: RunRequest, owner: O) -> Option<OwnedRun<O>> {
        let owner = number_of(owner);
        let run = self.take_run(&Request::new(&request)?, owner, None)?;
        self.ledger.add(owner, run.run().count() as i64);
        Some(run)
    }

    /// Takes a step of a search for a run. The first one looks where a run does the least harm, and others then look
    /// everywhere, from the lowest frame on. Each looks at no more than 28 MiB of which nothing is remembered, and, for a run of
    /// more than 2 MiB, at eight words for each 2 MiB of 560 that may be in its midst; the first one
    /// also reads two words for each 128 MiB.
    ///
    /// What is free from the first step to the last is found. What comes back in between may be.
    ///
    /// A run of more than 2 MiB takes longer to claim, as its frames are.
    ///
    /// ```
    /// # use muster_frames::*;
    /// # let free = [PhysRange::new(PhysAddr::new(0x20_0000), 0x20_0000).unwrap()];
    /// # let storage = Box::leak(Box::new_uninit_slice(2));
    /// # // SAFETY: nothing uses the memory of these frames, which is none.
    /// # let frames = unsafe { FrameAllocator::new(free.into_iter(), [].into_iter(), storage)? };
    /// let mut search = RunSearch::new(RunRequest::new(8));
    /// let run = loop {
    ///     // With interrupts disabled, say, and enabled between steps.
    ///     match frames.search_run(&mut search, SoleOwner::Used) {
    ///         SearchStep::Found(run) => break Some(run),
    ///         SearchStep::Unfinished => {}
    ///         SearchStep::NotFree => break None,
    ///     }
    /// };
    /// assert_eq!(run.unwrap().run().count(), 8);
    /// # Ok::<(), FramesError>(())
    /// ```
    ///
    /// # Panics
    ///
    /// As for [`Self::allocate`].
    pub fn search_run(&self, search: &mut RunSearch, owner: O) -> SearchStep<OwnedRun<O>> {
        let owner = number_of(owner);
        let count = search.request.count as u64;
        let step = self.step(search, None, &Cell::new(STEP_LOOKS));
        self.found(step, count, owner, |frames| self.ledger.add(owner, frames))
    }

    /// Hands out what a step of a search has claimed, and counts it by `count_frames`.
    pub(crate) fn found(
        &self,
        step: SearchStep<u64>,
        count: u64,
        owner: u8,
        count_frames: impl FnOnce(i64),
    ) -> SearchStep<OwnedRun<O>> {
        match step {
            SearchStep::Found(first) => match self.own(first, count, owner) {
                Some(run) => {
                    count_frames(count as i64);
                    SearchStep::Found(run)
                }
                None => SearchStep::NotFree,
            },
            SearchStep::Unfinished => SearchStep::Unfinished,
            SearchStep::NotFree => SearchStep::NotFree,
        }
    }

    /// Adds the next `frames` frames to a run, if they are free, and returns whether they were. Nothing has changed if not.
    /// What CPUs have in their caches counts as used here. No run is extended beyond the range that it lies in, though another
    /// of the allocator's may begin there.
    ///
    /// ```
    /// # use muster_frames::{FrameAllocator, PhysAddr, PhysRange, RunRequest, SoleOwner};
    /// # let free = [PhysRange::new(PhysAddr::new(0x20_0000), 0x20_0000).unwrap()];
    /// # let storage = Box::leak(Box::new_uninit_slice(2));
    /// # // SAFETY: nothing uses the memory of these frames, which is none.
    /// # let frames = unsafe { FrameAllocator::new(free.into_iter(), [].into_iter(), storage)? };
    /// let mut run = frames.allocate_run(RunRequest::new(8), SoleOwner::Used).unwrap();
    /// assert!(frames.extend_run(&mut run, 4));
    /// assert_eq!(run.run().count(), 12);
    /// assert!(!frames.extend_run(&mut run, 512));
    /// frames.free_run(run).unwrap();
    /// # Ok::<(), muster_frames::FramesError>(())
    /// ```
    pub fn extend_run(&self, run: &mut OwnedRun<O>, frames: usize) -> bool {
        let is_longer = self.add_to_run(run, frames);
        if is_longer {
            self.ledger.add(run.owner_number(), frames as i64);
        }
        is_longer
    }

    /// Extends a run, but leaves counting it to the caller.
    pub(crate) fn add_to_run(&self, run: &mut OwnedRun<O>, frames: usize) -> bool {
        let (last, owner) = (run.run().last_number(), run.owner_number());
        let zone = self.zone_of(last).and_then(|index| self.zone(index));
        let more = zone.and_then(|zone| Some((zone, zone.behind(last, owner, frames as u64)?)));
        // A look first: what is claimed and given back is out of other CPUs' reach in between.
        let claim =
            |zone: &Zone, more: &Range<u64>| zone.are_free(more) && zone.claim(more.clone());
        let Some((zone, more)) = more.filter(|(zone, more)| claim(zone, more)) else {
            return false;
        };
        zone.owners().set(more.clone(), owner);
        let added = FrameRun::from_numbers(more.start, frames as u64);
        if let Some(added) = added {
            run.append(OwnedRun::claimed(added, owner));
        }
        true
    }

    /// Takes a frame back.
    ///
    /// # Errors
    ///
    /// If the frame was not handed out here to its owner, as when it is another allocator's; see
    /// [`FreeError`]. Nothing has changed then, and the frame is still the caller's.
    pub fn free(&self, frame: OwnedFrame<O>) -> Result<(), NotFreed<OwnedFrame<O>, O>> {
        let (number, owner) = (frame.frame().number(), frame.owner_number());
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
    pub fn free_run(&self, run: OwnedRun<O>) -> Result<(), NotFreed<OwnedRun<O>, O>> {
        let (count, owner) = (run.run().count(), run.owner_number());
        self.take_back_run(run)?;
        self.ledger.add(owner, -(count as i64));
        Ok(())
    }

    /// Makes the frames of one of the `later` ranges free, and returns how many they are.
    ///
    /// # Errors
    ///
    /// If the frames that lie wholly in `range`, without frame 0, are not those of one of the `later` ranges, or were adopted
    /// before. Parts of frames at its ends make no difference, as they are never handed out.
    ///
    /// # Safety
    ///
    /// Nothing uses the memory of the range any more, as [`Self::new`] asks of the free ones, with all that
    /// it says of frames that another allocator handed out.
    pub unsafe fn adopt(&self, range: PhysRange) -> Result<usize, AdoptError> {
        let (first, end) = frame_numbers(range).ok_or(AdoptError { range })?;
        let zone = self
            .zone_of(first)
            .and_then(|index| self.zones.get(index))
            .filter(|zone| (zone.first(), zone.end()) == (first, end) && zone.open())
            .ok_or(AdoptError { range })?;
        // Counted first: a frame that is handed out before it counts would be missing in the totals.
        self.unadopted.fetch_sub(end - first, Relaxed);
        zone.release(first..end);
        Ok((end - first) as usize)
    }

    /// Returns the owner of the frame; `None` if the allocator does not manage it.
    pub fn owner_of(&self, frame: Frame) -> Option<O> {
        let zone = self.zone(self.zone_of(frame.number())?)?;
        if !zone.is_open() {
            return Some(O::LATER);
        }
        O::of(zone.owners().get(frame.number())?.load(Relaxed))
    }

    /// Returns how many bytes of frames each owner has; those in the CPUs' caches are free. Their sum
    /// never changes.
    ///
    /// Exact if nobody allocates or frees concurrently; a frame that changes hands concurrently counts
    /// as either's.
    pub fn totals(&self) -> Totals<O> {
        let unadopted = self.unadopted.load(Relaxed);
        let mut totals = Totals::default();
        let mut free = self.capacity - unadopted;
        for &owner in O::ALL {
            let ledgers = self.slots.iter().map(|slot| &slot.ledger);
            let frames: i64 = ledgers
                .chain([&self.ledger])
                .map(|ledger| ledger.get(owner.number()))
                .sum();
            let frames = u64::try_from(frames).unwrap_or(0).min(free);
            free -= frames;
            totals[owner] = frames * FRAME_SIZE;
        }
        totals[O::LATER] += unadopted * FRAME_SIZE;
        totals[O::FREE] = free * FRAME_SIZE;
        totals
    }

    /// Returns how many frames there are, free or not.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Returns how many frames are free, those in the CPUs' caches among them; as exact as
    /// [`Self::totals`].
    pub fn free_frames(&self) -> usize {
        (self.totals()[O::FREE] / FRAME_SIZE) as usize
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
        request: &Request,
        owner: u8,
        home: Option<&mut Option<Spot>>,
    ) -> Option<OwnedRun<O>> {
        let count = request.count();
        let first = self.claim(request, home)?;
        self.own(first, count, owner)
    }

    /// Hands out claimed frames of one zone.
    fn own(&self, first: u64, count: u64, owner: u8) -> Option<OwnedRun<O>> {
        self.hand_out(first..first + count, owner);
        let run = FrameRun::from_numbers(first, count)?;
        Some(OwnedRun::claimed(run, owner))
    }

    /// Takes a run back, but leaves counting it to the caller.
    pub(crate) fn take_back_run(&self, run: OwnedRun<O>) -> Result<(), NotFreed<OwnedRun<O>, O>> {
        let range = run.run().range();
        self.take_back(
            range.start().get() / FRAME_SIZE..range.end().get() / FRAME_SIZE,
            run.owner_number(),
        )
        .map_err(|error| NotFreed { frames: run, error })
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
    fn hand_out(&self, numbers: Range<u64>, owner: u8) {
        if let Some(zone) = self
            .zone_of(numbers.start)
            .and_then(|index| self.zone(index))
        {
            zone.owners().set(numbers, owner);
        }
    }
}

/// Checks that a frame was handed out to `owner`.
pub(crate) fn check<O: Owner>(
    zone: Option<&Zone>,
    frame: Frame,
    owner: u8,
) -> Result<(), FreeError<O>> {
    let Some(zone) = zone.filter(|zone| zone.is_open()) else {
        return Err(FreeError::Foreign { frame });
    };
    let record = zone
        .owners()
        .get(frame.number())
        .map(|record| record.load(Relaxed));
    match record {
        None | Some(FREE) => Err(FreeError::AlreadyFree { frame }),
        Some(recorded) if recorded != owner => Err(FreeError::WrongOwner {
            frame,
            claimed: O::of(owner).unwrap_or(O::FREE),
            recorded: O::of(recorded).unwrap_or(O::FREE),
        }),
        Some(_) => Ok(()),
    }
}

impl<O: Owner> fmt::Debug for FrameAllocator<O> {
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
    let first = range.start().get().div_ceil(FRAME_SIZE).max(1);
    let end = range.end().get() / FRAME_SIZE;
    (first < end).then_some((first, end))
}
