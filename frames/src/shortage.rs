//! Shortages of frames.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use muster_sync::{AtomicUsize, fence};

/// A CPU is short of frames, until this is dropped: see [`FrameAllocator::begin_shortage`].
///
/// [`FrameAllocator::begin_shortage`]: crate::FrameAllocator::begin_shortage
#[must_use = "the shortage is over when it is dropped"]
#[derive(Debug)]
pub struct Shortage<'a> {
    shortages: &'a AtomicUsize,
}

impl<'a> Shortage<'a> {
    pub(crate) fn new(shortages: &'a AtomicUsize) -> Self {
        // Relaxed, here and below: see `FrameAllocator::is_short`.
        shortages.fetch_add(1, Relaxed);
        // With the one of a cache that is about to take frames in: either it finds the shortage, or the CPU that is short
        // finds that it fills.
        fence(SeqCst);
        Self { shortages }
    }
}

impl Drop for Shortage<'_> {
    fn drop(&mut self) {
        self.shortages.fetch_sub(1, Relaxed);
    }
}
