//! Searches for runs, in steps.

use crate::request::RunRequest;
use crate::zone::Place;

/// What a step of a search has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what was found is lost, or the search has not ended"]
pub enum SearchStep<T> {
    /// It has found what was asked for, and the search is over.
    Found(T),
    /// There is more to search: take the next step.
    Unfinished,
    /// There is no such run. Another step begins again from the start.
    NotFree,
}

/// A search for frames that follow each other, in steps whose length has a bound however much memory there is, so that a
/// kernel may let interrupts in between: see [`FrameAllocator::search_run`](crate::FrameAllocator::search_run).
#[derive(Clone, Debug)]
pub struct RunSearch {
    pub(crate) request: RunRequest,
    pub(crate) at: At,
    /// How often caches may still give their frames back for it.
    pub(crate) drains_left: usize,
    /// The number of claims that were undone when the pass began, and of passes that may follow it.
    pub(crate) undone: u64,
    pub(crate) passes_left: usize,
}

/// The number of times that caches give their frames back for one search.
pub(crate) const MAX_DRAINS: usize = 4;

/// Where a search goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    /// Where a run does the least harm, and is found the soonest.
    Near,
    /// At a place in a zone, by its index; or at the end, where there is no such zone.
    Zone(usize, Place),
}

impl RunSearch {
    /// Creates a search that has not begun.
    pub const fn new(request: RunRequest) -> Self {
        Self {
            request,
            at: At::Near,
            drains_left: MAX_DRAINS,
            undone: 0,
            passes_left: 0,
        }
    }

    /// Returns what is searched for.
    pub const fn request(&self) -> RunRequest {
        self.request
    }

    /// Goes on from the lowest frame, when this many claims were undone.
    pub(crate) fn begin_pass(&mut self, undone: u64) {
        self.undone = undone;
        self.at = At::Zone(0, Place::default());
    }
}
