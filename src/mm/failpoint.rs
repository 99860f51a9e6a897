//! Allocation-failure injection: with `frames-fail=N` the N-th request for frames is refused, so that
//! a test sees every caller report it or do without. Requests that the benchmarks serve from a CPU's
//! cached frames are not among them: the test would cost them time.

use core::sync::atomic::{AtomicU64, Ordering};

use muster_memory::{FrameAllocator, FrameSource, OwnedFrame};

/// The number of requests until the one that is refused, that one included; 0: none is. Relaxed: a
/// count, by which nothing else is read.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Sets the request that is refused, counted from 1 from now on.
pub fn set(request: Option<u64>) {
    LEFT.store(request.unwrap_or(0), Ordering::Relaxed);
}

/// Counts a request, and returns whether it is to be refused.
pub fn fails() -> bool {
    // In all other runs this load is all that it costs.
    LEFT.load(Ordering::Relaxed) != 0
        && LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        }) == Ok(1)
}

/// The frames of page tables, one of which may be refused.
pub struct TableFrames<'a>(pub &'a FrameAllocator);

impl FrameSource for TableFrames<'_> {
    fn take(&self) -> Option<OwnedFrame> {
        if fails() { None } else { self.0.take() }
    }

    fn give_back(&self, frame: OwnedFrame) {
        self.0.give_back(frame);
    }
}

/// Logs whether the request was made and refused.
pub fn log_outcome(request: Option<u64>) {
    let Some(request) = request else { return };
    match LEFT.load(Ordering::Relaxed) {
        0 => log::info!("request {request} for frames was refused, as frames-fail= asks"),
        left => log::info!("request {request} for frames was never made: {left} were missing"),
    }
}
