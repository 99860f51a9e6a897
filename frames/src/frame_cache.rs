//! A CPU's cache of free frames, in front of the frame allocator. Only that CPU takes frames out of it and
//! puts them in; the others read how many there are.

use core::fmt;
use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use muster_sync::{AtomicBool, AtomicU8, AtomicUsize};

use crate::chunk::ROW_FRAMES;
use crate::frames::{ANYWHERE, FrameAllocator, Ledger, Spot, check, number_of};
use crate::owned::{NotFreed, OwnedFrame, OwnedRun};
use crate::owner::{FREE, Owner, SoleOwner};
use crate::range::Frame;
use crate::records::Owners;
use crate::zone::Zone;

/// Frames that go back at once when a cache is full.
const BATCH: usize = ROW_FRAMES as usize;

/// A cache is filled until it has at least this many frames, if there are. A row may bring in a
/// single one, and the next would cost as much.
const MIN_FILL: usize = BATCH / 2;

/// Frames that a cache may have: after a batch came in, and after one went out, the next 32 calls
/// at least find what they need.
const CAPACITY: usize = 2 * BATCH;

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
    /// Written by the cache's CPU alone; others read it for reports, so `Relaxed` will do.
    cached: AtomicUsize,
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

    /// Returns how many frames are in the cache.
    #[inline]
    pub(crate) fn cached(&self) -> usize {
        self.cached.load(Relaxed)
    }
}

/// Frames that one CPU has cached: up to 128, from the [`FrameAllocator`] and still free.
///
/// Most calls need neither a lock nor an atomic read-modify-write, and touch what no other CPU
/// writes, but for a byte of record per frame. Frames come in by rows of up to 64, which one atomic
/// operation claims, and go back by up to 64. Every CPU may free what any other was handed out.
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
    owners: Owners<'a>,
    /// The chunk that the cache is filled from, and other CPUs' caches only if there is no other.
    home: Option<Spot>,
    /// Those below `slot.cached` are in the cache. Entries above that are any frame.
    stack: [Frame; CAPACITY],
    /// The records of their owners. Beside the stack and not in it, as the processor scales an index by
    /// 8, but not by 16.
    records: [&'a AtomicU8; CAPACITY],
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
            owners: zone.owners(),
            stack: [any; CAPACITY],
            records: [record; CAPACITY],
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
        let left = self.slot.cached().wrapping_sub(1);
        let (Some(&frame), Some(record)) = (self.stack.get(left), self.records.get(left)) else {
            return self.take_slowly(owner);
        };
        record.store(owner, Relaxed);
        self.slot.cached.store(left, Relaxed);
        self.slot.ledger.add_exclusive(owner, 1);
        Some(OwnedFrame::claimed(frame, owner))
    }

    #[cold]
    #[inline(never)]
    fn take_slowly(&mut self, owner: u8) -> Option<OwnedFrame<O>> {
        if self.fill() > 0 {
            return self.take(owner);
        }
        let run = self.frames.take_run(1, 1, owner, None)?;
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
        let frame = owned.frame();
        if let Err(error) = check(self.zone_of(frame), frame, owned.owner_number()) {
            return Err(NotFreed {
                frames: owned,
                error,
            });
        }
        if self.len() == CAPACITY {
            self.give_back(BATCH);
        }
        self.free(owned)
    }

    /// Hands out a run, as [`FrameAllocator::allocate_run`] does; from the same 2 MiB as the cache's
    /// other frames if it fits there. If there is none, the cache's frames are given back, for they
    /// may be what is missing.
    ///
    /// # Panics
    ///
    /// As [`FrameAllocator::allocate`] does.
    pub fn allocate_run(
        &mut self,
        frames: usize,
        align_frames: usize,
        owner: O,
    ) -> Option<OwnedRun<O>> {
        if (frames, align_frames) == (1, 1) {
            return Some(self.allocate(owner)?.into());
        }
        let owner = number_of(owner);
        let mut run = self
            .frames
            .take_run(frames, align_frames, owner, Some(&mut self.home));
        if run.is_none() && self.drain() > 0 {
            run = self
                .frames
                .take_run(frames, align_frames, owner, Some(&mut self.home));
        }
        let run = run?;
        self.slot
            .ledger
            .add_exclusive(owner, run.run().count() as i64);
        Some(run)
    }

    /// Adds frames to a run, as [`FrameAllocator::extend_run`] does.
    pub fn extend_run(&mut self, run: &mut OwnedRun<O>, frames: usize) -> bool {
        let is_longer = self.frames.add_to_run(run, frames);
        if is_longer {
            (self.slot.ledger).add_exclusive(run.owner_number(), frames as i64);
        }
        is_longer
    }

    /// Takes a run back, as [`FrameAllocator::free_run`] does.
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
        self.frames.take_back_run(run)?;
        self.slot
            .ledger
            .add_exclusive(owner, -(frames.count() as i64));
        Ok(())
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
    /// number. To be called on every CPU when memory runs out.
    pub fn drain(&mut self) -> usize {
        let count = self.len();
        self.give_back(count);
        self.leave();
        count
    }

    /// Returns the zone of the frame, if it has one.
    fn zone_of(&mut self, frame: Frame) -> Option<&'a Zone> {
        if !self.zone.contains(frame.number()) {
            self.zone = self.frames.zone(self.frames.zone_of(frame.number())?)?;
            self.owners = self.zone.owners();
        }
        Some(self.zone)
    }

    /// Adds a frame; `false` if the cache is full.
    #[inline]
    fn push(&mut self, frame: Frame, record: &'a AtomicU8) -> bool {
        let cached = self.slot.cached();
        let (Some(place), Some(recorded)) =
            (self.stack.get_mut(cached), self.records.get_mut(cached))
        else {
            return false;
        };
        *place = frame;
        *recorded = record;
        self.slot.cached.store(cached + 1, Relaxed);
        true
    }

    /// Claims rows until there are enough frames, or no more, and returns how many there are.
    fn fill(&mut self) -> usize {
        while self.len() < MIN_FILL
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
        self.len()
    }

    /// Returns frames to the allocator, those first that have been in the cache the longest.
    fn give_back(&mut self, count: usize) {
        let cached = self.len();
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
        self.slot.cached.store(cached - count, Relaxed);
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
