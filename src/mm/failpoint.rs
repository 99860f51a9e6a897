//! A frame that is not available, on demand: with `frames-fail=N` the N-th request for frames is
//! refused, whoever makes it, so that every place where memory can run out is seen to say so or to do
//! without. Requests that a CPU serves from frames at hand for itself, for the benchmarks, are not
//! among them: they have no time for this.

use core::sync::atomic::{AtomicU64, Ordering};

use muster_memory::{FrameAllocator, FrameSource, OwnedFrame};

/// Requests until the one that is refused, that one included; 0: none is.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// The request that is refused, from now on, counted from 1.
pub fn set(request: Option<u64>) {
    LEFT.store(request.unwrap_or(0), Ordering::Relaxed);
}

/// Whether the request that is about to be made is the one.
pub fn fails() -> bool {
    // All but the runs that are about this leave it with the look.
    LEFT.load(Ordering::Relaxed) != 0
        && LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        }) == Ok(1)
}

/// The frames of page tables, one of which may not be had.
pub struct TableFrames<'a>(pub &'a FrameAllocator);

impl FrameSource for TableFrames<'_> {
    fn take(&self) -> Option<OwnedFrame> {
        if fails() { None } else { self.0.take() }
    }

    fn give_back(&self, frame: OwnedFrame) {
        self.0.give_back(frame);
    }
}

/// Says whether it has come to that.
pub fn log_outcome(request: Option<u64>) {
    let Some(request) = request else { return };
    match LEFT.load(Ordering::Relaxed) {
        0 => log::info!("request {request} for frames was refused, as frames-fail= asks"),
        left => log::info!("request {request} for frames was never made: {left} were missing"),
    }
}
