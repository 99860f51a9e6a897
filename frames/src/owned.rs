//! The right to frames that were handed out.

use core::fmt;
use core::marker::PhantomData;

use crate::frames::{FrameRun, FreeError};
use crate::owner::{Owner, SoleOwner};
use crate::range::{FRAME_SIZE, Frame, PhysRange};

/// A frame that a [`FrameAllocator`](crate::FrameAllocator) has handed out: the right to use its
/// memory, and to free it.
///
/// There is one for each frame that is handed out, as it can be neither copied nor, in safe code, made
/// from a number. So code that frees a frame twice, or another owner's frame, does not compile:
///
/// ```compile_fail,E0382
/// # use muster_frames::{FrameAllocator, OwnedFrame, PhysAddr};
/// fn free_twice(frames: &FrameAllocator, frame: OwnedFrame) {
///     frames.free(frame);
///     frames.free(frame);
/// }
/// ```
///
/// ```compile_fail,E0308
/// # use muster_frames::FrameAllocator;
/// # use muster_paging::{PhysicalMemory, Tables};
/// fn free_the_root<M: PhysicalMemory>(frames: &FrameAllocator, tables: &Tables<M>) {
///     frames.free(tables.root());
/// }
/// ```
///
/// It proves that no other code has the right to the frame, if each caller of [`Self::from_raw`] and of
/// [`FrameAllocator::new`](crate::FrameAllocator::new) has kept to its conditions. If it is dropped,
/// the frame stays its owner's for good.
#[must_use = "a frame that is dropped is lost: free it, or keep its name by `into_raw`"]
#[derive(PartialEq, Eq)]
pub struct OwnedFrame<O = SoleOwner> {
    frame: Frame,
    /// The owner's number. An enumeration has values to spare, and the compiler would encode `None` by one
    /// of them, with a comparison of its own on each fast path; so `None` is encoded by the frame, as
    /// it is for a [`Frame`].
    owner: u8,
    _of: PhantomData<fn() -> O>,
}

const _: () = assert!(size_of::<Option<OwnedFrame<()>>>() == size_of::<OwnedFrame<()>>());

impl<O: Owner> OwnedFrame<O> {
    /// Makes the right to a frame again that [`Self::into_raw`] has given up.
    ///
    /// # Safety
    ///
    /// 1. A frame allocator has handed the frame out to `owner`, alone or in a run, and it has not
    ///    been freed since.
    /// 2. No other value stands for the right to it, and none will be made while this one exists.
    /// 3. Nothing relies on the memory by what was done with it since `into_raw`: it is mapped nowhere
    ///    that code still uses, and no reference to it is left.
    #[inline]
    pub unsafe fn from_raw(frame: Frame, owner: O) -> Self {
        Self::claimed(frame, owner.number())
    }

    /// Makes the right to a frame for the allocator itself, which has just claimed it.
    #[inline]
    pub(crate) const fn claimed(frame: Frame, owner: u8) -> Self {
        Self {
            frame,
            owner,
            _of: PhantomData,
        }
    }

    /// Turns the right into the frame's name: the frame stays the owner's until [`Self::from_raw`]
    /// makes the right again.
    #[inline]
    #[must_use = "a frame whose name is lost is lost"]
    pub const fn into_raw(self) -> Frame {
        self.frame
    }

    /// Returns which frame it is.
    #[inline]
    pub const fn frame(&self) -> Frame {
        self.frame
    }

    /// Returns the number of its owner.
    #[inline]
    pub(crate) const fn owner_number(&self) -> u8 {
        self.owner
    }

    /// Returns whose it is.
    #[inline]
    pub fn owner(&self) -> O {
        // Always one: it was made from an owner.
        O::of(self.owner).unwrap_or(O::FREE)
    }
}

impl<O: Owner> fmt::Debug for OwnedFrame<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedFrame")
            .field("frame", &self.frame)
            .field("owner", &self.owner())
            .finish()
    }
}

/// Frames that follow each other, and that a [`FrameAllocator`](crate::FrameAllocator) has handed out:
/// as [`OwnedFrame`], for a run.
#[must_use = "frames that are dropped are lost: free them, or keep their name by `into_raw`"]
#[derive(Debug, PartialEq, Eq)]
pub struct OwnedRun<O = SoleOwner> {
    run: FrameRun,
    /// The owner's number.
    owner: u8,
    _of: PhantomData<fn() -> O>,
}

impl<O: Owner> OwnedRun<O> {
    /// Makes the right to frames again that [`Self::into_raw`] has given up.
    ///
    /// # Safety
    ///
    /// For each of the frames, as for [`OwnedFrame::from_raw`]. It does not matter in what pieces they
    /// were handed out.
    #[inline]
    pub unsafe fn from_raw(run: FrameRun, owner: O) -> Self {
        Self::claimed(run, owner.number())
    }

    /// Makes the right to frames for the allocator itself, which has just claimed them.
    pub(crate) const fn claimed(run: FrameRun, owner: u8) -> Self {
        Self {
            run,
            owner,
            _of: PhantomData,
        }
    }

    /// Turns the right into the frames' name: the frames stay the owner's until [`Self::from_raw`]
    /// makes the right again.
    #[inline]
    #[must_use = "frames whose name is lost are lost"]
    pub const fn into_raw(self) -> FrameRun {
        self.run
    }

    /// Returns which frames they are.
    #[inline]
    pub const fn run(&self) -> FrameRun {
        self.run
    }

    /// Returns whose they are.
    #[inline]
    pub fn owner(&self) -> O {
        // As for a frame.
        O::of(self.owner).unwrap_or(O::FREE)
    }

    /// Returns the number of their owner.
    pub(crate) const fn owner_number(&self) -> u8 {
        self.owner
    }

    /// Adds the frames that follow it, of the same owner.
    pub(crate) fn append(&mut self, next: Self) {
        let count = self.run.count() + next.run.count();
        let all = FrameRun::from_numbers(self.run.first().number(), count as u64);
        debug_assert!(next.run.start() == self.run.range().end() && next.owner == self.owner);
        self.run = all.unwrap_or(self.run);
    }

    /// Parts the first `frames` frames from the rest.
    ///
    /// # Errors
    ///
    /// The run as it was, if nothing would be left of either part.
    ///
    /// ```
    /// # use muster_frames::{FrameAllocator, PhysAddr, PhysRange, RunRequest, SoleOwner};
    /// # let free = [PhysRange::from_bounds(PhysAddr::new(0x20_0000), PhysAddr::new(0x40_0000)).unwrap()];
    /// # let storage = Box::leak(Box::new_uninit_slice(2));
    /// # // SAFETY: nothing uses the memory of these frames, which is none.
    /// # let frames = unsafe { FrameAllocator::new(free.into_iter(), [].into_iter(), storage)? };
    /// let run = frames.allocate_run(RunRequest::new(8), SoleOwner::Used).unwrap();
    /// let (three, five) = run.split_at(3).unwrap();
    /// frames.free_run(three).unwrap();
    /// let five = five.split_at(5).unwrap_err();
    /// assert_eq!(five.run().count(), 5);
    /// # Ok::<(), muster_frames::FramesError>(())
    /// ```
    pub fn split_at(self, frames: usize) -> Result<(Self, Self), Self> {
        let Self { run, owner, .. } = self;
        let range = run.range();
        // A part of no frames, or of as many as there can't be, is no range.
        let part = |start, end| {
            let run = FrameRun::from_range(PhysRange::from_bounds(start, end)?)?;
            Some(Self::claimed(run, owner))
        };
        (frames as u64)
            .checked_mul(FRAME_SIZE)
            .and_then(|bytes| range.start().checked_add(bytes))
            .and_then(|middle| Some((part(range.start(), middle)?, part(middle, range.end())?)))
            .ok_or(self)
    }
}

impl<O: Owner> From<OwnedFrame<O>> for OwnedRun<O> {
    fn from(frame: OwnedFrame<O>) -> Self {
        Self::claimed(frame.frame.into(), frame.owner)
    }
}

/// Frames that could not be freed. Nothing has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct NotFreed<T, O = SoleOwner> {
    /// The [`OwnedFrame`] or [`OwnedRun`], which is still its holder's.
    pub frames: T,
    /// The reason.
    pub error: FreeError<O>,
}

impl<T, O: Owner> fmt::Display for NotFreed<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T: fmt::Debug, O: Owner> core::error::Error for NotFreed<T, O> {}
