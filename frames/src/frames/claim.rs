//! The search for free frames.

use core::cell::Cell;

use muster_sync::spin_loop;

use super::FrameAllocator;
use crate::chunk::{CHUNK_FRAMES, Claimed, Fit};
use crate::hint::Request;
use crate::owner::Owner;
use crate::search::{At, RunSearch, SearchStep};
use crate::zone::{Among, Place, Zone};

/// A chunk, by its zone's index and its own index in the zone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) zone: usize,
    chunk: usize,
}

/// The number of partly used chunks that are searched for a small run before a whole one is broken up.
/// More would save memory only where they are badly fragmented, and cost a cache line each.
const MAX_PARTIAL_TRIES: usize = 32;

/// Where single frames are looked for, and in how many chunks of each kind at most.
pub(crate) const ANYWHERE: [(Among, usize); 3] = [
    (Among::Partial, MAX_PARTIAL_TRIES),
    (Among::Whole, usize::MAX),
    (Among::Any, usize::MAX),
];

/// The same for runs, before they are looked for by hints.
pub(crate) const NEARBY: [(Among, usize); 2] = [
    (Among::Partial, MAX_PARTIAL_TRIES),
    (Among::Whole, usize::MAX),
];

/// The number of chunks that the first step of a search looks into for a small run.
pub(crate) const STEP_LOOKS: usize = 4;

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

impl<O: Owner> FrameAllocator<O> {
    /// Claims a run, and returns its first frame's number.
    pub(super) fn claim(&self, request: &Request, home: Option<&mut Option<Spot>>) -> Option<u64> {
        // Frames that the summary does not know yet are searched for only before the call fails.
        self.claim_quickly(request, home, &Cell::new(usize::MAX))
            .or_else(|| self.claim_known(request))
            .or_else(|| self.seek(request))
    }

    /// Claims a run where it does the least harm, and is found the soonest. For a small one it looks into as many chunks as
    /// there are `looks_left`.
    fn claim_quickly(
        &self,
        request: &Request,
        home: Option<&mut Option<Spot>>,
        looks_left: &Cell<usize>,
    ) -> Option<u64> {
        let fit = Fit::new(&request.run);
        let count = request.count();
        if request.run.is_limited() {
            // The lowest that there is, of which there may be few.
            None
        } else if let Some(fit) = fit.filter(|_| request.run.is_for_any_frame()) {
            self.claim_near(home, &ANYWHERE, |zone, chunk| zone.chunk(chunk)?.claim(fit))
        } else if count < CHUNK_FRAMES && request.align() <= CHUNK_FRAMES {
            self.claim_near(home, &NEARBY, |zone, chunk| {
                zone.claim_in(chunk, fit, request, looks_left)
            })
        } else if count == CHUNK_FRAMES && request.align() <= CHUNK_FRAMES {
            self.spots(Among::Whole).find_map(|spot| {
                let zone = self.zone(spot.zone)?;
                let first = zone.first_of(spot.chunk);
                zone.claim(first..first + CHUNK_FRAMES).then_some(first)
            })
        } else {
            None
        }
    }

    /// Takes a step of a search, and claims what it finds: a run, of which it returns the first frame's number.
    pub(crate) fn step(
        &self,
        search: &mut RunSearch,
        home: Option<&mut Option<Spot>>,
        looks_left: &Cell<usize>,
    ) -> SearchStep<u64> {
        let Some(request) = &Request::new(&search.request) else {
            return SearchStep::NotFree;
        };
        match &mut search.at {
            At::Near => match self.claim_quickly(request, home, looks_left) {
                Some(first) => SearchStep::Found(first),
                None => {
                    search.passes_left = MAX_RUN_SEARCHES;
                    search.begin_pass(self.undone());
                    SearchStep::Unfinished
                }
            },
            At::Zone(index, place) => match self.zone(*index) {
                Some(zone) => {
                    let step = zone.search(request, place);
                    match step {
                        SearchStep::Found(_) => search.at = At::Near,
                        SearchStep::Unfinished => {}
                        SearchStep::NotFree => {
                            search.at = At::Zone(*index + 1, Place::default());
                            return SearchStep::Unfinished;
                        }
                    }
                    step
                }
                None => {
                    let is_undecided = self.zones.iter().any(Zone::is_undecided);
                    let undone = self.undone();
                    let is_sure = !is_undecided && undone == search.undone;
                    if is_sure || search.passes_left == 0 {
                        search.at = At::Near;
                        return SearchStep::NotFree;
                    }
                    // Frames that another CPU could not keep were out of reach in between.
                    search.passes_left -= 1;
                    search.begin_pass(undone);
                    SearchStep::Unfinished
                }
            },
        }
    }

    fn undone(&self) -> u64 {
        self.zones
            .iter()
            .map(Zone::undone)
            .fold(0, u64::wrapping_add)
    }

    /// Claims what `claim` can find, in the home if there is one, and else where it does the least harm.
    fn claim_near(
        &self,
        home: Option<&mut Option<Spot>>,
        among: &[(Among, usize)],
        claim: impl Fn(&Zone, usize) -> Option<Claimed<()>>,
    ) -> Option<u64> {
        let (number, ()) = match home {
            Some(home) => self.claim_from(home, among, claim)?,
            None => self.claim_among(among, claim)?.1,
        };
        Some(number)
    }

    /// Claims the lowest run, but of single frames the lowest that the summary knows.
    fn claim_known(&self, request: &Request) -> Option<u64> {
        self.zones.iter().find_map(|zone| {
            if request.run.is_for_any_frame() {
                zone.claim_known()
            } else {
                zone.claim_run(request)
            }
        })
    }

    fn claim_anywhere(&self, request: &Request) -> Option<u64> {
        self.zones.iter().find_map(|zone| zone.claim_run(request))
    }

    /// Claims a run wherever it is, after the quick search has found none. Searches until no frame
    /// comes back concurrently, and none is held by a CPU that may not keep it: so no caller is told
    /// that memory has run out while there is some. Both within bounds: what they wait for may have
    /// been interrupted by this very call, and long runs may be in demand forever.
    fn seek(&self, request: &Request) -> Option<u64> {
        self.zones.iter().for_each(Zone::begin_seeking);
        let returns = || {
            self.zones
                .iter()
                .map(Zone::returns)
                .fold(0, u64::wrapping_add)
        };
        let is_undecided = || self.zones.iter().any(Zone::is_undecided);
        let mut polls = MAX_POLLS;
        let searches = if request.run.is_for_any_frame() {
            MAX_SEARCHES
        } else {
            MAX_RUN_SEARCHES
        };
        let found = (0..searches).find_map(|_| {
            let before = returns();
            if let Some(first) = self.claim_anywhere(request) {
                return Some(Some(first));
            }
            while polls > 0 && is_undecided() && returns() == before {
                polls -= 1;
                spin_loop();
            }
            // In this order: a CPU that has just undone a claim has counted it before.
            (returns() == before).then_some(None)
        });
        self.zones.iter().for_each(Zone::end_seeking);
        found.flatten()
    }

    /// Claims what `claim` can find in a CPU's home, or else elsewhere: then that becomes the home,
    /// unless it is another CPU's. As [`Self::claim_among`] otherwise.
    pub(crate) fn claim_from<T>(
        &self,
        home: &mut Option<Spot>,
        among: &[(Among, usize)],
        claim: impl Fn(&Zone, usize) -> Option<Claimed<T>>,
    ) -> Option<(u64, T)> {
        if let Some(spot) = *home
            && let Some(found) = self.claim_at(spot, &claim)
        {
            return Some(found);
        }
        let (spot, found) = self.claim_among(among, claim)?;
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
        among: &[(Among, usize)],
        claim: impl Fn(&Zone, usize) -> Option<Claimed<T>>,
    ) -> Option<(Spot, (u64, T))> {
        among.iter().find_map(|&(among, tries)| {
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
        claim: impl Fn(&Zone, usize) -> Option<Claimed<T>>,
    ) -> Option<(u64, T)> {
        let zone = self.zone(spot.zone)?;
        let claimed = claim(zone, spot.chunk)?;
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
}
