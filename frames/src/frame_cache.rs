//! A CPU's cache of free frames, in front of the frame allocator. Only that CPU takes frames out of it and
//! puts them in; the others read how many there are.

use core::cell::Cell;
use core::fmt;
use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use muster_sync::{AtomicBool, AtomicU8, AtomicU32, fence};

use crate::chunk::{FREE_ROW, Fit, ROW_FRAMES, rows_of};
use crate::frames::{
    ANYWHERE, FrameAllocator, FrameRun, Ledger, NEARBY, STEP_LOOKS, Spot, check, number_of,
};
use crate::hint::Request;
use crate::owned::{NotFreed, OwnedFrame, OwnedRun};
use crate::owner::{FREE, Owner, SoleOwner};
use crate::range::Frame;
use crate::records::Owners;
use crate::request::RunRequest;
use crate::run_cache::{Part, RunCache};
use crate::search::{At, MAX_DRAINS, RunSearch, SearchStep};
use crate::zone::Zone;

/// Frames that go back at once when a cache is full.
const BATCH: usize = ROW_FRAMES as usize;

/// A cache is filled until it has at least this many frames, if there are. A row may bring in a
/// single one, and the next would cost as much.
const MIN_FILL: usize = BATCH / 2;

/// Single frames that a cache may have: after a batch came in, and after one went out, the next 32 calls
/// at least find what they need.
const CAPACITY: usize = 2 * BATCH;

/// Frames that a cache may have for runs, before half of them go out: 1 MiB.
const RUN_CAPACITY: usize = 4 * BATCH;

// A row is taken as a whole while there are fewer than `MIN_FILL`.
const _: () = assert!(MIN_FILL - 1 + ROW_FRAMES as usize <= CAPACITY);

/// The part of a CPU's cache that all CPUs may read. Only its owner writes it; it is as large as the
/// two cache lines that the processor fetches together, so that writes of other CPUs do not slow it
/// down.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Slot {
    /// Taken with Acquire and given up with Release: a new cache of the slot goes on from the last one's
    /// counts, to which it adds without a read-modify-write.
    taken: AtomicBool,
    /// Single frames in the cache. Written by its CPU alone, for which `Relaxed` will do, as for reports of others.
    singles: AtomicU32,
    /// Frames in the cache for runs; as above.
    in_runs: AtomicU32,
    /// Whether frames may be on their way into the cache, of which neither the rows nor the counts tell.
    fills: AtomicBool,
    pub(crate) ledger: Ledger,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 128);

impl Slot {
    /// Returns whether there is a cache, or was one that has been forgotten.
    pub(crate) fn is_taken(&mut self) -> bool {
        // Relaxed: nobody else has the slot.
        self.taken.load(Relaxed)
    }

    /// Returns whether there are frames in the cache, or may be soon.
    pub(crate) fn may_have_frames(&self) -> bool {
        // Acquire, with the Release of `end_fill`: the counts below are of what came in. And with that of the counts: what
        // has gone out is found.
        self.fills.load(Acquire) || self.singles.load(Acquire) + self.in_runs.load(Acquire) > 0
    }

    /// Announces that frames are about to come in.
    fn begin_fill(&self) {
        self.fills.store(true, Relaxed);
        // With the one of a CPU that begins a shortage: either that one finds this, or this CPU the shortage.
        fence(SeqCst);
    }

    fn end_fill(&self) {
        // Release: see `may_have_frames`.
        self.fills.store(false, Release);
    }

    /// Returns how many frames are in the cache.
    #[inline]
    pub(crate) fn cached(&self) -> usize {
        self.singles() + self.in_runs()
    }

    #[inline]
    fn singles(&self) -> usize {
        self.singles.load(Relaxed) as usize
    }

    /// Sets the number of single frames, at most [`CAPACITY`].
    #[inline]
    fn set_singles(&self, frames: usize) {
        // Release: see `may_have_frames`.
        self.singles.store(frames as u32, Release);
    }

    #[inline]
    fn in_runs(&self) -> usize {
        self.in_runs.load(Relaxed) as usize
    }

    /// Sets the number of frames for runs, at most what all parts of rows together have.
    #[inline]
    fn set_in_runs(&self, frames: usize) {
        // Release: see `may_have_frames`.
        self.in_runs.store(frames as u32, Release);
    }
}

/// Frames that one CPU has cached: up to 128, and up to 256 for runs of 2 to 64, from the [`FrameAllocator`] and still
/// free.
///
/// Most calls need neither a lock nor an atomic read-modify-write, and touch what no other CPU
/// writes, but for a byte of record per frame. Frames come in by rows of up to 64, which one atomic
/// operation claims, and go back by up to 64. Runs of up to 64 frames, aligned to a power of two of up to 64, come from such
/// rows as well, and go back into them. Every CPU may free what any other was handed out.
///
/// Every call needs the cache for itself (`&mut`): on a CPU that handles interrupts which allocate
/// frames, make sure that none comes in between, say by [disabling
/// them](https://docs.rs/x86_64/latest/x86_64/instructions/interrupts/fn.without_interrupts.html).
///
/// If a cache is dropped, its frames go back. If it is forgotten ([`mem::forget`](core::mem::forget)),
/// they count as [cached](FrameAllocator::cached_frames), and they and its slot are lost until caches
/// are [made again](FrameAllocator::with_caches).
///
/// ```
/// use muster_frames::{FrameAllocator, FrameInfo, PhysAddr, PhysRange, SoleOwner};
///
/// let free = [PhysRange::from_bounds(PhysAddr::new(0x20_0000), PhysAddr::new(0x40_0000)).unwrap()];
/// let storage = FrameInfo::needed(free.into_iter());
/// let storage = Box::leak(Box::new_uninit_slice(storage));
/// // SAFETY: nothing uses the memory of these frames, which is none.
/// let frames = unsafe { FrameAllocator::new(free.into_iter(), [].into_iter(), storage)? };
/// let frames = frames.with_caches(2)?;
///
/// std::thread::scope(|scope| {
///     for _cpu in 0..2 {
///         scope.spawn(|| {
///             let mut cache = frames.cache().unwrap();
///             let frame = cache.allocate(SoleOwner::Used).unwrap();
///             cache.free(frame).unwrap();
///         });
///     }
/// });
/// assert_eq!((frames.free_frames(), frames.cached_frames()), (512, 0));
/// assert_eq!(frames.free_runs_2mib(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FrameCache<'a, O: Owner = SoleOwner> {
    frames: &'a FrameAllocator<O>,
    slot: &'a Slot,
    /// The zone that the last frame was in: most machines have one large one.
    zone: &'a Zone,
    /// The records of a zone whose frames are freed quickly. None after a drain, until a look whether a CPU is short.
    owners: Owners<'a>,
    /// The chunk that the cache is filled from, and other CPUs' caches only if there is no other.
    home: Option<Spot>,
    /// Those below `slot.singles` are in the cache. Entries above that are any frame.
    stack: [Frame; CAPACITY],
    /// The records of their owners. Beside the stack and not in it, as the processor scales an index by
    /// 8, but not by 16.
    records: [&'a AtomicU8; CAPACITY],
    runs: RunCache<'a>,
}

impl<'a, O: Owner> FrameCache<'a, O> {
    /// Creates the cache that this slot is for, unless there is one already.
    pub(crate) fn new(frames: &'a FrameAllocator<O>, slot: &'a Slot) -> Option<Self> {
        let zone = frames.zone(0)?;
        let any = Frame::from_number(zone.first())?;
        let record = zone.owners().get(any.number())?;
        // Not made unless the slot is free: dropping it would free the slot.
        (!slot.taken.swap(true, Acquire)).then(|| Self {
            frames,
            slot,
            zone,
            home: None,
            owners: Owners::none(),
            stack: [any; CAPACITY],
            records: [record; CAPACITY],
            runs: RunCache::new(zone),
        })
    }

    /// Hands a frame out: the one freed last, if there is one in the cache. Its content is whatever
    /// was there. `None` if there is no free frame but in other CPUs' caches.
    ///
    /// # Panics
    ///
    /// As [`FrameAllocator::allocate`] does.
    #[inline]
    pub fn allocate(&mut self, owner: O) -> Option<OwnedFrame<O>> {
        self.take(number_of(owner))
    }

    #[inline]
    fn take(&mut self, owner: u8) -> Option<OwnedFrame<O>> {
        // One comparison detects an empty cache, too.
        let left = self.slot.singles().wrapping_sub(1);
        let (Some(&frame), Some(record)) = (self.stack.get(left), self.records.get(left)) else {
            return self.take_slowly(owner);
        };
        record.store(owner, Relaxed);
        self.slot.set_singles(left);
        self.slot.ledger.add_exclusive(owner, 1);
        Some(OwnedFrame::claimed(frame, owner))
    }

    #[cold]
    #[inline(never)]
    fn take_slowly(&mut self, owner: u8) -> Option<OwnedFrame<O>> {
        if self.fill_for_one() {
            return self.take(owner);
        }
        let run = self
            .frames
            .take_run(&Request::new(&RunRequest::new(1))?, owner, None)?;
        self.slot.ledger.add_exclusive(owner, 1);
        Some(OwnedFrame::claimed(run.into_raw().first(), owner))
    }

    /// Takes a frame back.
    ///
    /// # Errors
    ///
    /// If the frame was not handed out to its owner by the allocator that the cache is of; see
    /// [`FreeError`](crate::FreeError). Nothing has changed then, and the frame is still the caller's.
    ///
    /// If the right to the frame was made twice, against the conditions of [`OwnedFrame::from_raw`],
    /// that is seen unless two CPUs free it at the very same time: to see that, too, would take an
    /// atomic read-modify-write for each frame.
    #[inline]
    pub fn free(&mut self, frame: OwnedFrame<O>) -> Result<(), NotFreed<OwnedFrame<O>, O>> {
        self.free_quickly(frame)
            .or_else(|frame| self.free_slowly(frame))
    }

    /// Takes a frame back if there is room in the cache and nothing is wrong, as nearly always.
    ///
    /// # Errors
    ///
    /// The frame. Nothing has changed then; [`Self::free`] handles it, off the fast path.
    #[inline]
    pub fn free_quickly(&mut self, frame: OwnedFrame<O>) -> Result<(), OwnedFrame<O>> {
        let owner = frame.owner_number();
        if owner != FREE
            && let Some(record) = self.owners.get(frame.frame().number())
            && record.load(Relaxed) == owner
            && self.push(frame.frame(), record)
        {
            record.store(FREE, Relaxed);
            self.slot.ledger.add_exclusive(owner, -1);
            return Ok(());
        }
        Err(frame)
    }

    #[cold]
    #[inline(never)]
    fn free_slowly(&mut self, owned: OwnedFrame<O>) -> Result<(), NotFreed<OwnedFrame<O>, O>> {
        let (frame, owner) = (owned.frame(), owned.owner_number());
        let zone = self.zone_of(frame);
        if let Err(error) = check(zone, frame, owner) {
            return Err(NotFreed {
                frames: owned,
                error,
            });
        }
        if self.frames.is_short() && self.put_run(frame.into(), owner) {
            self.slot.ledger.add_exclusive(owner, -1);
            return Ok(());
        }
        if self.slot.singles() == CAPACITY {
            self.give_back(BATCH);
        }
        if let Some(zone) = zone {
            self.owners = zone.owners();
        }
        self.free(owned)
    }

    /// Hands out a run, as [`FrameAllocator::allocate_run`] does; from the cache if it has one, or else from the same 2 MiB
    /// as the cache's other frames if it fits there. If there is none, the cache's frames are given back, for they
    /// may be what is missing.
    ///
    /// # Panics
    ///
    /// As [`FrameAllocator::allocate`] does.
    pub fn allocate_run(&mut self, request: RunRequest, owner: O) -> Option<OwnedRun<O>> {
        if request.is_for_any_frame() {
            return Some(self.allocate(owner)?.into());
        }
        let owner = number_of(owner);
        if let Some(fit) = Fit::new(&request)
            && let Some((zone, first)) = self.runs.take(fit)
        {
            return self.hand_out(zone, first, request.count, owner);
        }
        self.allocate_run_slowly(&request, owner)
    }

    #[cold]
    #[inline(never)]
    fn allocate_run_slowly(&mut self, request: &RunRequest, owner: u8) -> Option<OwnedRun<O>> {
        match self.take_cached(request, owner, &Cell::new(usize::MAX)) {
            Some(run) => Some(run),
            None => self.take_run(request, owner),
        }
    }

    /// Takes a step of a search for a run, as [`FrameAllocator::search_run`] does: the first one looks where
    /// [`Self::allocate_run`] looks first. If there is none, the cache's frames are given back, and the search goes on.
    ///
    /// # Panics
    ///
    /// As [`FrameAllocator::allocate`] does.
    pub fn search_run(&mut self, search: &mut RunSearch, owner: O) -> SearchStep<OwnedRun<O>> {
        let owner = number_of(owner);
        let request = search.request;
        // None of the cache's frames would help.
        if Request::new(&request).is_none() {
            return SearchStep::NotFree;
        }
        let looks_left = Cell::new(STEP_LOOKS);
        if matches!(search.at, At::Near) {
            search.drains_left = MAX_DRAINS;
            if let Some(run) = self.take_cached(&request, owner, &looks_left) {
                return SearchStep::Found(run);
            }
        }
        let step = (self.frames).step(search, Some(&mut self.home), &looks_left);
        if step == SearchStep::NotFree {
            // Not again and again, as handlers may fill the cache; but the search may have come from another CPU.
            if search.drains_left > 0 && self.drain() > 0 {
                search.drains_left -= 1;
                search.begin_pass(search.undone);
                return SearchStep::Unfinished;
            }
            if let Some(run) = self.take_cached(&request, owner, &looks_left) {
                return SearchStep::Found(run);
            }
        }
        let count = request.count as u64;
        let ledger = &self.slot.ledger;
        self.frames.found(step, count, owner, |frames| {
            ledger.add_exclusive(owner, frames)
        })
    }

    /// Hands out a run that is in the cache, or in a row that can be brought in.
    fn take_cached(
        &mut self,
        request: &RunRequest,
        owner: u8,
        looks_left: &Cell<usize>,
    ) -> Option<OwnedRun<O>> {
        if request.is_for_any_frame() {
            let is_filled = self.slot.singles() > 0 || self.fill_for_one();
            return is_filled.then(|| self.take(owner))?.map(Into::into);
        }
        let fit = Fit::new(request)?;
        let taken = match self.runs.take(fit) {
            Some(taken) => Some(taken),
            None => self.take_from_row(fit, request, looks_left),
        };
        let (zone, first) = taken?;
        self.hand_out(zone, first, request.count, owner)
    }

    /// Hands out frames that have just left the cache.
    #[inline]
    fn hand_out(
        &mut self,
        zone: &Zone,
        first: u64,
        count: usize,
        owner: u8,
    ) -> Option<OwnedRun<O>> {
        zone.owners().set(first..first + count as u64, owner);
        self.slot.set_in_runs(self.slot.in_runs() - count);
        self.slot.ledger.add_exclusive(owner, count as i64);
        Some(OwnedRun::claimed(
            FrameRun::from_numbers(first, count as u64)?,
            owner,
        ))
    }

    /// Brings a row in that has such a run, and takes it out.
    #[cold]
    #[inline(never)]
    fn take_from_row(
        &mut self,
        fit: Fit,
        request: &RunRequest,
        looks_left: &Cell<usize>,
    ) -> Option<(&'a Zone, u64)> {
        self.slot.begin_fill();
        let part = self.claim_part(fit, request, looks_left);
        if let Some(part) = part {
            self.put_part(part);
        }
        self.slot.end_fill();
        part.and_then(|_| self.runs.take(fit))
    }

    /// Claims a row that has such a run, unless a CPU is short.
    fn claim_part(
        &mut self,
        fit: Fit,
        request: &RunRequest,
        looks_left: &Cell<usize>,
    ) -> Option<Part<'a>> {
        if self.frames.is_short() {
            return None;
        }
        let request = Request::new(request)?;
        let (start, mask) = self
            .frames
            .claim_from(&mut self.home, &NEARBY, |zone, chunk| {
                zone.claim_row_in(chunk, fit, &request, looks_left)
            })?;
        let first = Frame::from_number(start + u64::from(mask.trailing_zeros()))?;
        let zone = self.zone_of(first)?;
        Some(Part { zone, start, mask })
    }

    /// Puts free frames in, for runs.
    #[inline]
    fn put_part(&mut self, part: Part<'a>) {
        self.slot.set_in_runs(self.slot.in_runs() + part.count());
        let out = self.runs.put(part);
        if out.is_some() || self.slot.in_runs() > RUN_CAPACITY {
            self.shed_runs(out);
        }
    }

    /// Returns frames to the allocator that had to leave the cache, and others if there are too many.
    #[cold]
    #[inline(never)]
    fn shed_runs(&mut self, out: Option<Part<'_>>) {
        if let Some(out) = out {
            self.release_part(out);
        }
        if self.slot.in_runs() > RUN_CAPACITY {
            self.release_runs(RUN_CAPACITY / 2);
        }
    }

    /// Hands out a run that is in no row of the cache.
    #[cold]
    #[inline(never)]
    fn take_run(&mut self, request: &RunRequest, owner: u8) -> Option<OwnedRun<O>> {
        let request = &Request::new(request)?;
        let mut run = self.frames.take_run(request, owner, Some(&mut self.home));
        if run.is_none() && self.drain() > 0 {
            run = self.frames.take_run(request, owner, Some(&mut self.home));
        }
        let run = run?;
        self.slot
            .ledger
            .add_exclusive(owner, run.run().count() as i64);
        Some(run)
    }

    /// Adds frames to a run, as [`FrameAllocator::extend_run`] does. What this cache has for runs counts as free;
    /// single frames in it do not.
    pub fn extend_run(&mut self, run: &mut OwnedRun<O>, frames: usize) -> bool {
        if self.extend_cached(run, frames) {
            return true;
        }
        let is_longer = self.frames.add_to_run(run, frames);
        if is_longer {
            (self.slot.ledger).add_exclusive(run.owner_number(), frames as i64);
        }
        is_longer
    }

    /// Adds frames of one row of the cache to a run. Where others are asked for, gives up what it has of them: `false`.
    fn extend_cached(&mut self, run: &mut OwnedRun<O>, frames: usize) -> bool {
        let (last, owner) = (run.run().last_number(), run.owner_number());
        let zone = Frame::from_number(last).and_then(|last| self.zone_of(last));
        let more = zone.and_then(|zone| Some((zone, zone.behind(last, owner, frames as u64)?)));
        let Some((zone, more)) = more else {
            return false;
        };
        let part = |(start, mask)| Part { zone, start, mask };
        let mut parts = rows_of(&more).map(part);
        let is_here = match (parts.next(), parts.next()) {
            (Some(only), None) => self.runs.take_exactly(only),
            _ => false,
        };
        if is_here && let Some(added) = self.hand_out(zone, more.start, frames, owner) {
            run.append(added);
            return true;
        }
        while let Some(part) = self.runs.take_any_of(zone, &more) {
            self.release_part(part);
        }
        false
    }

    /// Takes a run back, as [`FrameAllocator::free_run`] does; but of CPUs that free it at the very same time, against the
    /// conditions of [`OwnedRun::from_raw`], more than one may succeed: as for [`Self::free`].
    ///
    /// # Errors
    ///
    /// If any of the frames was not handed out to its owner: the lowest one's error. Nothing has
    /// changed then, and the run is still the caller's.
    pub fn free_run(&mut self, run: OwnedRun<O>) -> Result<(), NotFreed<OwnedRun<O>, O>> {
        let (frames, owner) = (run.run(), run.owner_number());
        if frames.count() == 1 {
            let single = OwnedFrame::claimed(frames.first(), owner);
            return self.free(single).map_err(|refused| NotFreed {
                frames: refused.frames.into(),
                error: refused.error,
            });
        }
        if !self.put_run(frames, owner) {
            self.frames.take_back_run(run)?;
        }
        self.slot
            .ledger
            .add_exclusive(owner, -(frames.count() as i64));
        Ok(())
    }

    /// Takes a run of one zone back if nothing is wrong, as nearly always. `false`: nothing has changed.
    #[inline]
    fn put_run(&mut self, run: FrameRun, owner: u8) -> bool {
        let count = run.count() as u64;
        let Some(zone) = self.zone_of(run.first()) else {
            return false;
        };
        let numbers = run.first().number()..run.first().number() + count;
        if owner == FREE
            || numbers.end > zone.end()
            || !zone.owners().are_all(numbers.clone(), owner)
        {
            return false;
        }
        zone.owners().set(numbers.clone(), FREE);
        if count > ROW_FRAMES || self.frames.is_short() {
            zone.release(numbers);
            return true;
        }
        // Nearly all runs lie in one row.
        let start = numbers.start / ROW_FRAMES * ROW_FRAMES;
        if numbers.end <= start + ROW_FRAMES {
            let mask = FREE_ROW >> (ROW_FRAMES - count) << (numbers.start - start);
            self.put_part(Part { zone, start, mask });
        } else {
            for (start, mask) in rows_of(&numbers) {
                self.put_part(Part { zone, start, mask });
            }
        }
        true
    }

    /// Returns how many frames are in the cache.
    pub fn len(&self) -> usize {
        self.slot.cached()
    }

    /// Returns whether no frame is in the cache.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all frames to the allocator, for other CPUs and for longer runs, and returns their
    /// number. To be called on every CPU when memory runs out, and [a shortage](FrameAllocator::begin_shortage) has begun.
    pub fn drain(&mut self) -> usize {
        let singles = self.slot.singles();
        self.give_back(singles);
        let count = singles + self.release_runs(0);
        self.owners = Owners::none();
        self.leave();
        count
    }

    /// Returns frames for runs to the allocator, until at most `left` are left, and returns their number.
    fn release_runs(&mut self, left: usize) -> usize {
        let before = self.slot.in_runs();
        while self.slot.in_runs() > left
            && let Some(part) = self.runs.take_next()
        {
            self.release_part(part);
        }
        before - self.slot.in_runs()
    }

    /// Returns frames to the allocator that have left the cache.
    fn release_part(&mut self, part: Part<'_>) {
        part.zone.release_row(part.start, part.mask);
        // Not before: see `may_have_frames`.
        self.slot.set_in_runs(self.slot.in_runs() - part.count());
    }

    /// Returns the zone of the frame, if it has one.
    fn zone_of(&mut self, frame: Frame) -> Option<&'a Zone> {
        if !self.zone.contains(frame.number()) {
            self.zone = self.frames.zone(self.frames.zone_of(frame.number())?)?;
        }
        Some(self.zone)
    }

    /// Adds a frame; `false` if the cache is full.
    #[inline]
    fn push(&mut self, frame: Frame, record: &'a AtomicU8) -> bool {
        let cached = self.slot.singles();
        let (Some(place), Some(recorded)) =
            (self.stack.get_mut(cached), self.records.get_mut(cached))
        else {
            return false;
        };
        *place = frame;
        *recorded = record;
        self.slot.set_singles(cached + 1);
        true
    }

    /// Claims rows for single frames. Returns whether there are any now.
    fn fill_for_one(&mut self) -> bool {
        // Those for runs may be what is missing.
        self.fill() > 0 || self.release_runs(0) > 0 && self.fill() > 0
    }

    /// Claims rows until there are enough single frames, or no more, unless a CPU is short. Returns how many there are.
    fn fill(&mut self) -> usize {
        self.slot.begin_fill();
        while self.slot.singles() < MIN_FILL
            && !self.frames.is_short()
            && let Some((first, row)) =
                (self.frames).claim_from(&mut self.home, &ANYWHERE, |zone, chunk| {
                    zone.chunk(chunk)?.claim_row()
                })
        {
            // The lowest comes out first.
            for bit in (0..ROW_FRAMES).rev().filter(|bit| row & 1 << bit != 0) {
                if let Some(frame) = Frame::from_number(first + bit)
                    && let Some(zone) = self.zone_of(frame)
                    && let Some(record) = zone.owners().get(frame.number())
                {
                    self.push(frame, record);
                }
            }
        }
        self.slot.end_fill();
        self.slot.singles()
    }

    /// Returns single frames to the allocator, those first that have been in the cache the longest.
    fn give_back(&mut self, count: usize) {
        let cached = self.slot.singles();
        let mut pending: Option<(&Zone, u64, u64)> = None;
        for index in 0..count {
            let frame = self.stack[index];
            let Some(zone) = self.zone_of(frame) else {
                continue;
            };
            let start = frame.number() / ROW_FRAMES * ROW_FRAMES;
            let bit = 1 << (frame.number() % ROW_FRAMES);
            match &mut pending {
                Some((of, row, mask)) if ptr::eq(*of, zone) && *row == start => *mask |= bit,
                _ => {
                    if let Some((zone, start, mask)) = pending.replace((zone, start, bit)) {
                        zone.release_row(start, mask);
                    }
                }
            }
        }
        if let Some((zone, start, mask)) = pending {
            zone.release_row(start, mask);
        }
        self.stack.copy_within(count..cached, 0);
        self.records.copy_within(count..cached, 0);
        self.slot.set_singles(cached - count);
    }

    fn leave(&mut self) {
        if let Some(home) = self.home.take() {
            self.frames.leave(home);
        }
    }
}

impl<O: Owner> Drop for FrameCache<'_, O> {
    fn drop(&mut self) {
        self.drain();
        self.slot.taken.store(false, Release);
    }
}

impl<O: Owner> fmt::Debug for FrameCache<'_, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameCache")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
