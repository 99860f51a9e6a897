//! The platform's frames, counted.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use muster_sync::{AtomicUsize, atomics, const_unless_modelled};

use super::FramePlatform;
use super::deferred::{Batch, DeferredList, Kind};

/// The use of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Blocks of a size class.
    Slab,
    /// A block larger than any class.
    Large,
    /// The heap's own: magazines, depots, the slab map.
    Own,
}

const USES: usize = 3;

/// A platform, and how many of its frames the heap has: counters that decide nothing, so all are
/// `Relaxed`.
pub(super) struct Frames<P> {
    platform: P,
    held: [AtomicUsize; USES],
    total: AtomicUsize,
    peak: AtomicUsize,
    /// Scattered frames that nobody uses, until they can be unmapped; counted as for large blocks.
    mapped: DeferredList,
}

impl<P: FramePlatform> Frames<P> {
    const_unless_modelled! {
        pub(super) const fn new(platform: P) -> Self {
            Self {
                platform,
                held: atomics![AtomicUsize::new(0); USES],
                total: AtomicUsize::new(0),
                peak: AtomicUsize::new(0),
                mapped: DeferredList::new(),
            }
        }
    }

    pub(super) const fn platform(&self) -> &P {
        &self.platform
    }

    /// Does what [`FramePlatform::allocate_frames`] does.
    pub(super) fn allocate(&self, count: usize, align: usize, to: Use) -> Option<NonNull<u8>> {
        let start = self.platform.allocate_frames(count, align)?;
        self.count(count, to);
        Some(start)
    }

    /// Counts frames that the platform gave.
    pub(super) fn count(&self, frames: usize, to: Use) {
        self.held[to as usize].fetch_add(frames, Ordering::Relaxed);
        let total = self.total.fetch_add(frames, Ordering::Relaxed) + frames;
        // A read first: the peak is rarely a new one, and its line is everybody's.
        if self.peak.load(Ordering::Relaxed) < total {
            self.peak.fetch_max(total, Ordering::Relaxed);
        }
    }

    /// Counts frames no more that go back to the platform.
    fn uncount(&self, frames: usize, from: Use) {
        self.held[from as usize].fetch_sub(frames, Ordering::Relaxed);
        self.total.fetch_sub(frames, Ordering::Relaxed);
    }

    /// Does what [`FramePlatform::allocate_scattered`] does.
    pub(super) fn allocate_scattered(
        &self,
        count: usize,
        align: usize,
        to: Use,
    ) -> Option<NonNull<u8>> {
        let start = self.platform.allocate_scattered(count, align)?;
        self.count(count, to);
        Some(start)
    }

    /// Does what [`FramePlatform::extend_frames`] does, unless the frames are scattered.
    ///
    /// # Safety
    ///
    /// [`allocate`](Self::allocate) gave the `count` frames from `start`, for this use, and `extend` may have added to them.
    pub(super) unsafe fn extend(
        &self,
        start: NonNull<u8>,
        count: usize,
        more: usize,
        to: Use,
    ) -> bool {
        // SAFETY: the caller's promise is the platform's condition, as the frames are not scattered.
        let is_longer = !self.platform.is_scattered(start)
            && unsafe { self.platform.extend_frames(start, count, more) };
        if is_longer {
            self.count(more, to);
        }
        is_longer
    }

    /// Does what [`FramePlatform::free_frames`] does, or has scattered frames wait until they can be unmapped.
    ///
    /// # Safety
    ///
    /// [`allocate`](Self::allocate) gave these frames, among others or alone, or [`extend`](Self::extend) added them, for this use, and
    /// nothing uses them now. Or [`allocate_scattered`](Self::allocate_scattered) gave them all at once.
    pub(super) unsafe fn free(&self, start: NonNull<u8>, count: usize, from: Use) {
        if self.platform.is_scattered(start) {
            // SAFETY: the caller's promise.
            return unsafe { self.free_later(start, count, from) };
        }
        // First, as another CPU may be given the frames at once, and would count them once more for the peak.
        self.uncount(count, from);
        // SAFETY: the caller's promise is the platform's condition.
        unsafe { self.platform.free_frames(start, count) };
    }

    /// Has scattered frames wait until they can be unmapped.
    ///
    /// # Safety
    ///
    /// As for [`free`](Self::free).
    #[cold]
    unsafe fn free_later(&self, start: NonNull<u8>, count: usize, from: Use) {
        self.convert(count, from, Use::Large);
        // Exact: no block has more.
        let frames = count as u32;
        // SAFETY: memory of the heap's that nobody uses, as the caller promises.
        unsafe { self.mapped.push(start, Kind::Large { frames }) };
    }

    /// Returns whether scattered frames wait to be unmapped.
    pub(super) fn has_mapped(&self) -> bool {
        !self.mapped.is_empty()
    }

    /// Takes some of those out that wait to be unmapped.
    pub(super) fn take_mapped(&self, cpu: Option<usize>) -> Batch {
        self.mapped.take(cpu)
    }

    /// Does what [`FramePlatform::free_scattered`] does.
    ///
    /// # Safety
    ///
    /// As for that; and the frames are counted as for large blocks.
    pub(super) unsafe fn free_scattered(&self, start: NonNull<u8>, count: usize) {
        self.uncount(count, Use::Large);
        // SAFETY: the caller's promise is the platform's condition.
        unsafe { self.platform.free_scattered(start, count) };
    }

    /// Counts frames that the heap keeps as taken for something else.
    pub(super) fn convert(&self, count: usize, from: Use, to: Use) {
        self.held[from as usize].fetch_sub(count, Ordering::Relaxed);
        self.held[to as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn held(&self, by: Use) -> usize {
        self.held[by as usize].load(Ordering::Relaxed)
    }

    pub(super) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}
