//! A run of frames that the frame allocator manages, with the records of them.

use core::array;
use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::slice;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use muster_sync::{AtomicBool, AtomicU64, AtomicUsize};

use crate::chunk::{
    CHUNK_FRAMES, Chunk, Claimed, Fit, FrameInfo, ROW_FRAMES, changes_fill, rows_of,
};
use crate::hint::{Bounds, Hint, Look, Request, look};
use crate::owner::FREE;
use crate::records::Owners;
use crate::search::SearchStep;

/// A summary of 64 chunks, a bit for each. It only says where to look: what is free, the rows say.
///
/// Accesses by which it is brought up to date are sequentially consistent, as those of the rows are: see
/// [`Zone::settle`]. Those that look where to search are `Relaxed`: what they miss is found by a search
/// of the rows, or by the [hints](Hint), before a call fails.
#[repr(align(32))]
pub(crate) struct Group {
    /// Chunks with a free frame.
    any: AtomicU64,
    /// Chunks with nothing but free frames.
    whole: AtomicU64,
    /// Chunks from which some CPU fills its cache. Others stay out of them while they can. All accesses are
    /// `Relaxed`: nothing but the bit itself goes from one CPU to another, and one that does not see it
    /// only gets into the other's way.
    homes: AtomicU64,
    /// Where a run can be: for all of its chunks together, and for each.
    hint: Hint,
    hints: [Hint; GROUP_CHUNKS],
}

/// Chunks in a group.
const GROUP_CHUNKS: usize = u64::BITS as usize;

/// The effort after which a step of a search ends: that of reading this many hints, some 15 instructions each.
const STEP_EFFORT: usize = 560;

/// The effort of a look at the rows of a chunk, at most.
const LOOK_EFFORT: usize = 40;

impl Group {
    /// Makes room for groups in storage for records.
    pub(crate) fn room(
        storage: &'static mut [MaybeUninit<FrameInfo>],
    ) -> &'static mut [MaybeUninit<Self>] {
        const { assert!(align_of::<Self>() <= align_of::<FrameInfo>()) };
        let count = size_of_val(storage) / size_of::<Self>();
        // SAFETY: the memory is as long, aligned enough, borrowed for good and not used by its other
        // name again; uninitialised is a valid state of the element type.
        unsafe { slice::from_raw_parts_mut(storage.as_mut_ptr().cast(), count) }
    }

    /// Makes them all groups of chunks that are not free.
    fn fill(room: &'static mut [MaybeUninit<Self>]) -> &'static [Self] {
        room.iter_mut().for_each(|group| {
            group.write(Self {
                any: AtomicU64::new(0),
                whole: AtomicU64::new(0),
                homes: AtomicU64::new(0),
                hint: Hint::default(),
                hints: array::from_fn(|_| Hint::default()),
            });
        });
        // SAFETY: all of them are written, and borrowed for good.
        unsafe { slice::from_raw_parts(room.as_ptr().cast(), room.len()) }
    }
}

/// How far a search for a run has come in a zone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    /// The chunk where it goes on.
    chunk: usize,
    /// How many frames before that are free, at most.
    before: u64,
}

/// The chunks to search.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Among {
    /// Those partly used, except the CPUs' homes.
    Partial,
    /// Those wholly free.
    Whole,
    /// All that have a free frame.
    Any,
}

/// Frames in transit, for CPUs that find no free frame. Other CPUs only check whether there is such a
/// CPU.
#[derive(Default)]
#[repr(align(64))]
struct Transit {
    /// The number of CPUs that search once more before they fail. Its accesses are sequentially
    /// consistent, as those of the rows are: see [`Zone::notify_seekers`].
    seekers: AtomicUsize,
    /// A count that grows when frames have come back while a CPU is seeking. Release and Acquire: a CPU
    /// that sees it grow finds the frames, which came back before.
    returns: AtomicU64,
    /// Claims of several rows that have begun and may have to be undone: see [`Zone::claim`].
    undecided: AtomicUsize,
    /// Claims that were undone.
    undone: AtomicU64,
}

/// A run of frames that the allocator manages.
pub(crate) struct Zone {
    /// The number of its first frame.
    first: u64,
    /// One past the number of its last.
    end: u64,
    /// The number of the first frame of the first chunk.
    base: u64,
    chunks: &'static [Chunk],
    owners: Owners<'static>,
    groups: &'static [Group],
    /// Whether its frames may be handed out: not before it is adopted.
    ///
    /// Accesses are `Relaxed`. That one call opens it is what a read-modify-write is for. A CPU that has a
    /// frame of the zone sees it open: it is opened before its frames are free, and the rows order what
    /// was done before a frame came back before what is done by the CPU that claims it. And no CPU reads
    /// anything by it that is written as it opens: the records are there from the beginning.
    open: AtomicBool,
    transit: Transit,
}

impl Zone {
    /// Returns how many chunks the frames of these numbers lie in.
    pub(crate) const fn chunks_needed(first: u64, end: u64) -> usize {
        (end.div_ceil(CHUNK_FRAMES) - first / CHUNK_FRAMES) as usize
    }

    /// Returns how many groups these chunks make.
    pub(crate) const fn groups_needed(chunks: usize) -> usize {
        chunks.div_ceil(GROUP_CHUNKS)
    }

    /// Makes a zone of these frames, not open. `storage` has room for every chunk, `groups` for every
    /// group of them.
    pub(crate) fn new(
        first: u64,
        end: u64,
        storage: &'static mut [MaybeUninit<FrameInfo>],
        groups: &'static mut [MaybeUninit<Group>],
    ) -> Self {
        let base = first / CHUNK_FRAMES * CHUNK_FRAMES;
        let (chunks, records) = FrameInfo::divide(storage);
        Self {
            first,
            end,
            base,
            chunks,
            owners: Owners::new(base, records),
            groups: Group::fill(groups),
            open: AtomicBool::new(false),
            transit: Transit::default(),
        }
    }

    pub(crate) const fn first(&self) -> u64 {
        self.first
    }

    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    #[inline]
    pub(crate) const fn contains(&self, number: u64) -> bool {
        self.first <= number && number < self.end
    }

    /// Returns the frames by which a run that ends with this one of the zone's would grow. `None`: the zone has not as many, none
    /// are asked for, or that one is not recorded as the owner's.
    pub(crate) fn behind(&self, last: u64, owner: u8, frames: u64) -> Option<Range<u64>> {
        let start = last + 1;
        let end = start.checked_add(frames)?;
        let is_owned = || self.is_open() && self.owners.are_all(last..start, owner);
        (frames > 0 && end <= self.end && is_owned()).then_some(start..end)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Opens the zone, and returns whether this call did: then the caller may free all its frames.
    pub(crate) fn open(&self) -> bool {
        !self.open.swap(true, Relaxed)
    }

    pub(crate) fn chunk(&self, index: usize) -> Option<&Chunk> {
        self.chunks.get(index)
    }

    /// Returns the chunk of the frame with this number, which is one of the zone's.
    #[inline]
    pub(crate) const fn chunk_of(&self, number: u64) -> usize {
        ((number - self.base) / CHUNK_FRAMES) as usize
    }

    /// Returns the number of the first frame of a chunk.
    pub(crate) const fn first_of(&self, chunk: usize) -> u64 {
        self.base + chunk as u64 * CHUNK_FRAMES
    }

    /// Returns the records of the frames' owners.
    pub(crate) const fn owners(&self) -> Owners<'static> {
        self.owners
    }

    /// Takes frames of the zone back that were handed out to `owner`, which can own frames, all or
    /// none.
    ///
    /// # Errors
    ///
    /// The number of a frame that is another owner's, free, or being taken back. Nothing has changed
    /// then.
    pub(crate) fn take_back(&self, numbers: Range<u64>, owner: u8) -> Result<(), u64> {
        let are_all = || self.owners.are_all(numbers.clone(), owner);
        // A caller that does not own the frames leaves no trace by which the owner could be refused.
        if !are_all() {
            return Err(numbers.start);
        }
        // No other CPU may do the same from here on; but one may have, just before.
        self.begin_return(numbers.clone())?;
        let is_right = are_all();
        if is_right {
            self.owners.set(numbers.clone(), FREE);
        }
        self.end_return(numbers.clone());
        if !is_right {
            return Err(numbers.start);
        }
        self.release(numbers);
        Ok(())
    }

    /// Keeps others from taking these frames of the zone back.
    ///
    /// # Errors
    ///
    /// The number of the lowest one that another CPU is taking back already. Nothing has changed then.
    pub(crate) fn begin_return(&self, numbers: Range<u64>) -> Result<(), u64> {
        for (start, mask) in rows_of(&numbers) {
            let returning = self.chunk_at(start).returning(start);
            // Acquire, with the Release of `end_return`: the owners that were recorded before are visible.
            // No Release: nothing is recorded yet. What another CPU released here with other frames stays
            // released, as each change of the word is a read-modify-write.
            let before = returning.fetch_or(mask, Acquire);
            let taken = before & mask;
            if taken != 0 {
                // Relaxed: this CPU has recorded nothing.
                returning.fetch_and(!(mask & !before), Relaxed);
                self.end_return(numbers.start..start.max(numbers.start));
                return Err(start + u64::from(taken.trailing_zeros()));
            }
        }
        Ok(())
    }

    /// Ends what [`Self::begin_return`] began. The next caller of `begin_return` sees the owners that
    /// were recorded in between.
    pub(crate) fn end_return(&self, numbers: Range<u64>) {
        // Release, with the Acquire of `begin_return`.
        for (start, mask) in rows_of(&numbers) {
            (self.chunk_at(start).returning(start)).fetch_and(!mask, Release);
        }
    }

    /// Returns how many frames are free.
    pub(crate) fn count(&self) -> usize {
        self.chunks.iter().map(Chunk::count).sum()
    }

    /// Returns how many chunks have only free frames.
    pub(crate) fn whole_chunks(&self) -> usize {
        self.groups
            .iter()
            // Relaxed: for reports, and exact only while nobody allocates or frees.
            .map(|group| group.whole.load(Relaxed).count_ones() as usize)
            .sum()
    }

    /// Returns the chunks to look in, lowest first.
    pub(crate) fn candidates(&self, among: Among) -> impl Iterator<Item = usize> {
        let chunks = move |group: &Group| match among {
            Among::Partial => {
                group.any.load(Relaxed) & !group.whole.load(Relaxed) & !group.homes.load(Relaxed)
            }
            Among::Whole => group.whole.load(Relaxed),
            Among::Any => group.any.load(Relaxed),
        };
        (self.groups.iter().enumerate())
            .map(move |(index, group)| (index, chunks(group)))
            // Apart, as most groups have none.
            .filter(|&(_, chunks)| chunks != 0)
            .flat_map(|(index, mut left)| {
                core::iter::from_fn(move || {
                    let bit = left.trailing_zeros() as usize;
                    left &= left.wrapping_sub(1);
                    (bit < GROUP_CHUNKS).then_some(index * GROUP_CHUNKS + bit)
                })
            })
    }

    /// Makes a chunk some CPU's home; `false` if it is one already.
    pub(crate) fn enter(&self, chunk: usize) -> bool {
        let (group, bit) = self.summary(chunk);
        group.homes.fetch_or(bit, Relaxed) & bit == 0
    }

    /// Ends that a chunk is a CPU's home.
    pub(crate) fn leave(&self, chunk: usize) {
        let (group, bit) = self.summary(chunk);
        group.homes.fetch_and(!bit, Relaxed);
    }

    fn summary(&self, chunk: usize) -> (&Group, u64) {
        (
            &self.groups[chunk / GROUP_CHUNKS],
            1 << (chunk % GROUP_CHUNKS),
        )
    }

    /// Brings the summary up to date after frames of a chunk were claimed or released.
    ///
    /// A CPU that changes a row settles afterwards, and a CPU that changes the summary reads the rows
    /// again, so the last of them leaves it right. All of it is sequentially consistent: of two CPUs
    /// that change a row and then read the summary, at least one sees what the other did.
    pub(crate) fn settle(&self, chunk: usize) {
        let set = |word: &AtomicU64, bit: u64, wanted: bool| {
            if (word.load(SeqCst) & bit != 0) == wanted {
                return false;
            }
            if wanted {
                word.fetch_or(bit, SeqCst);
            } else {
                word.fetch_and(!bit, SeqCst);
            }
            true
        };
        let (group, bit) = self.summary(chunk);
        loop {
            let fill = self.chunks[chunk].fill();
            let any_changed = set(&group.any, bit, fill.any);
            let whole_changed = set(&group.whole, bit, fill.whole);
            if !any_changed && !whole_changed {
                return;
            }
        }
    }

    /// Claims exactly these frames of the zone, if all are free.
    pub(crate) fn claim(&self, numbers: Range<u64>) -> bool {
        let is_undecided = numbers.start / ROW_FRAMES != (numbers.end - 1) / ROW_FRAMES;
        if is_undecided {
            // Relaxed: a CPU that finds a frame claimed sees this, too, by the order of the rows.
            self.transit.undecided.fetch_add(1, Relaxed);
        }
        let failed = self.chunks_with(&numbers).find_map(|(index, within)| {
            let used = self.chunks[index].claim_exactly(&within).err()?;
            Some(self.first_of(index) + used)
        });
        match failed {
            None => self
                .chunks_with(&numbers)
                .for_each(|(index, _)| self.settle(index)),
            Some(row) => {
                self.release(numbers.start..row.max(numbers.start));
                // Release, with the Acquire of `undone`: a search that begins after it finds the frames.
                self.transit.undone.fetch_add(1, Release);
            }
        }
        if is_undecided {
            // Release, with the Acquire of `is_undecided`: a CPU that sees the claim ended sees the return that
            // was counted before.
            self.transit.undecided.fetch_sub(1, Release);
        }
        failed.is_none()
    }

    /// Frees frames of the zone that the caller has claimed.
    pub(crate) fn release(&self, numbers: Range<u64>) {
        if numbers.is_empty() {
            return;
        }
        for (index, within) in self.chunks_with(&numbers) {
            if self.chunks[index].release(&within) {
                self.settle(index);
            }
            self.forget_hints(index);
        }
        self.notify_seekers();
    }

    /// Returns the chunks that these frames of the zone, of which there are some, lie in, and the places of those in each.
    fn chunks_with(
        &self,
        numbers: &Range<u64>,
    ) -> impl Iterator<Item = (usize, Range<u64>)> + use<> {
        let (from, to) = (numbers.start - self.base, numbers.end - self.base);
        (from / CHUNK_FRAMES..to.div_ceil(CHUNK_FRAMES)).map(move |index| {
            let first = index * CHUNK_FRAMES;
            let end = (to - first).min(CHUNK_FRAMES);
            (index as usize, from.saturating_sub(first)..end)
        })
    }

    /// Notes that frames of a chunk have become free, in the order that [`Hint`] asks for.
    fn forget_hints(&self, chunk: usize) {
        let group = &self.groups[chunk / GROUP_CHUNKS];
        group.hints[chunk % GROUP_CHUNKS].forget();
        group.hint.forget();
    }

    /// Frees the frames that are claimed and have no owner, and gives up all homes, as there are no
    /// caches any more that could have them.
    pub(crate) fn forget_caches(&mut self) {
        for group in self.groups {
            group.homes.store(0, Relaxed);
        }
        if !self.is_open() {
            return;
        }
        for number in self.first..self.end {
            let is_unowned = self.owners.are_all(number..number + 1, FREE);
            if is_unowned && self.last_used(number..number + 1).is_some() {
                self.release(number..number + 1);
            }
        }
    }

    /// Frees claimed frames of one row of the zone: those at the set bits, from a multiple of
    /// [`ROW_FRAMES`] on.
    pub(crate) fn release_row(&self, start: u64, mask: u64) {
        let index = self.chunk_of(start);
        let before = self.chunks[index].row(start).fetch_or(mask, SeqCst);
        if changes_fill(before, before | mask) {
            self.settle(index);
        }
        self.forget_hints(index);
        self.notify_seekers();
    }

    /// Makes CPUs search again that may have searched for frames just before they came back. If this
    /// sees no seeker, then each that comes will see the frames: both are sequentially consistent.
    fn notify_seekers(&self) {
        if self.transit.seekers.load(SeqCst) != 0 {
            // Release, with the Acquire of `returns`: a CPU that sees it searches the rows after this. No
            // model finds it missing, as loom has fences for the rows' order, which order this as well.
            self.transit.returns.fetch_add(1, Release);
        }
    }

    /// Makes [`Self::returns`] count all frames that come back from now on, until
    /// [`Self::end_seeking`].
    pub(crate) fn begin_seeking(&self) {
        self.transit.seekers.fetch_add(1, SeqCst);
    }

    pub(crate) fn end_seeking(&self) {
        self.transit.seekers.fetch_sub(1, SeqCst);
    }

    /// Returns a number that changes when frames come back.
    pub(crate) fn returns(&self) -> u64 {
        // Acquire, with the Release of `notify_seekers`: the frames are found.
        self.transit.returns.load(Acquire)
    }

    /// Returns a number that has changed if a CPU has had frames since that it could not keep, and gave back.
    pub(crate) fn undone(&self) -> u64 {
        // Acquire, with the Release of `claim`: the frames are found.
        self.transit.undone.load(Acquire)
    }

    /// Returns whether some CPU may have frames of which it doesn't know yet if it can keep them.
    pub(crate) fn is_undecided(&self) -> bool {
        // Acquire, with the Release of `claim`: a claim that has ended has counted what came back.
        self.transit.undecided.load(Acquire) != 0
    }

    /// Claims the lowest free frame that the summary knows.
    pub(crate) fn claim_known(&self) -> Option<u64> {
        let mut from = self.first;
        loop {
            let number = self.next_known(from)?;
            if self.claim(number..number + 1) {
                return Some(number);
            }
            // Another CPU was faster.
            from = number;
        }
    }

    /// Claims all free frames of a row that has such a run, in a chunk. It may have lost it to another CPU just then.
    pub(crate) fn claim_row_in(
        &self,
        chunk: usize,
        fit: Fit,
        request: &Request,
        looks_left: &Cell<usize>,
    ) -> Option<Claimed<u64>> {
        if !self.hint(chunk).may_hold(request) || !self.may_look(chunk, looks_left) {
            return None;
        }
        self.chunk(chunk)?.claim_row_with(fit)
    }

    /// Claims a run that lies in a chunk, if there is one.
    pub(crate) fn claim_in(
        &self,
        chunk: usize,
        fit: Option<Fit>,
        request: &Request,
        looks_left: &Cell<usize>,
    ) -> Option<Claimed<()>> {
        let hint = self.hint(chunk);
        if !hint.may_hold(request) || !self.may_look(chunk, looks_left) {
            return None;
        }
        if let Some(claimed) = fit.and_then(|fit| self.chunk(chunk)?.claim(fit)) {
            return Some(claimed);
        }
        let looking = hint.begin();
        let first = match self.look(chunk, request, 0) {
            Look::Place(first) => first,
            Look::Bounds(bounds) => {
                if let Some(looking) = looking {
                    looking.found(bounds);
                }
                return None;
            }
        };
        drop(looking);
        self.claim(first..first + request.count())
            .then_some(Claimed {
                place: first - self.first_of(chunk),
                what: (),
                changes_fill: false,
            })
    }

    /// Claims the lowest run that is free from start to end, wherever it is. It looks only where the hints say that there
    /// may be one.
    pub(crate) fn claim_run(&self, request: &Request) -> Option<u64> {
        let mut before = 0;
        for (index, group) in self.groups.iter().enumerate() {
            let (chunks, frames) = self.chunks_of_group(index);
            if group.hint.rules_out(request, &mut before, frames) {
                continue;
            }
            if self.first_of(chunks.start) >= request.end() {
                break;
            }
            let looking = group.hint.begin();
            let mut all = None;
            for chunk in chunks {
                match self.claim_run_in(chunk, request, &mut before, &mut 0) {
                    // What was known before stays so.
                    Ok(first) => return Some(first),
                    Err(bounds) => all = Some(join(all, bounds)),
                }
            }
            if let (Some(looking), Some((all, _))) = (looking, all) {
                looking.found(all);
            }
        }
        None
    }

    /// Takes a step of a search for the lowest run, which looks only where the hints say that there may be one.
    pub(crate) fn search(&self, request: &Request, at: &mut Place) -> SearchStep<u64> {
        let mut effort = 0;
        while at.chunk < self.chunks.len() && self.first_of(at.chunk) < request.end() {
            if effort >= STEP_EFFORT {
                return SearchStep::Unfinished;
            }
            let index = at.chunk / GROUP_CHUNKS;
            let (chunks, frames) = self.chunks_of_group(index);
            let hint = &self.groups[index].hint;
            effort += 1;
            if at.chunk == chunks.start && hint.rules_out(request, &mut at.before, frames) {
                at.chunk = chunks.end;
                continue;
            }
            if let Ok(first) = self.claim_run_in(at.chunk, request, &mut at.before, &mut effort) {
                return SearchStep::Found(first);
            }
            at.chunk += 1;
            if at.chunk == chunks.end {
                self.note_group(index);
                effort += chunks.len();
            }
        }
        SearchStep::NotFree
    }

    /// Notes what the hints of a group's chunks say of all of it.
    fn note_group(&self, index: usize) {
        let Some(looking) = self.groups[index].hint.begin() else {
            return;
        };
        let (chunks, _) = self.chunks_of_group(index);
        let bounds = chunks.map(|chunk| self.hint(chunk).read(CHUNK_FRAMES));
        if let Some((all, _)) = bounds.fold(None, |all, bounds| Some(join(all, bounds))) {
            looking.found(all);
        }
    }

    /// Returns the chunks of a group, and how many frames they have.
    fn chunks_of_group(&self, group: usize) -> (Range<usize>, u64) {
        let first = group * GROUP_CHUNKS;
        let chunks = first..self.chunks.len().min(first + GROUP_CHUNKS);
        let frames = chunks.len() as u64 * CHUNK_FRAMES;
        (chunks, frames)
    }

    /// Claims the lowest run that ends in a chunk, if `before` frames in front of it are free. `Err`: there is
    /// none, and `before` is how many frames at the chunk's end are free. Adds to the effort of the step.
    fn claim_run_in(
        &self,
        chunk: usize,
        request: &Request,
        before: &mut u64,
        effort: &mut usize,
    ) -> Result<u64, Bounds> {
        let hint = self.hint(chunk);
        let bounds = hint.read(CHUNK_FRAMES);
        // Not to be found out by a look at all of a long run, at the end of which it seems to be there.
        let is_cut = request.spans_chunks() && bounds.may_be_whole(CHUNK_FRAMES) && {
            *effort += 1;
            !self.chunks[chunk].fill().whole
        };
        if !is_cut && !request.may_fit(*before, bounds) {
            *before = bounds.after(*before, CHUNK_FRAMES);
            return Err(bounds);
        }
        *effort += LOOK_EFFORT;
        let looking = hint.begin();
        let start = self.first_of(chunk);
        loop {
            let first = match self.look(chunk, request, *before) {
                Look::Place(first) => first,
                Look::Bounds(bounds) => {
                    if let Some(looking) = looking {
                        looking.found(bounds);
                    }
                    *before = bounds.after(*before, CHUNK_FRAMES);
                    return Err(bounds);
                }
            };
            let numbers = first..first + request.count();
            // A look first: what is claimed and given back is out of other CPUs' reach in between.
            if self.are_free(&numbers) && self.claim(numbers.clone()) {
                return Ok(first);
            }
            // Another CPU was faster; or the run begins in front of the chunk, where the hint was out of date.
            if let Some(used) = self.last_used(numbers).filter(|&used| used < start) {
                *before = start - 1 - used;
                self.forget_hints(self.chunk_of(used));
            }
        }
    }

    /// Takes one of the looks that are left. `false`: there is none. Where all is free, a look costs nothing.
    fn may_look(&self, chunk: usize, looks_left: &Cell<usize>) -> bool {
        let left = looks_left.get();
        looks_left.set(left.saturating_sub(1));
        left > 0 || self.chunks[chunk].fill().whole
    }

    fn look(&self, chunk: usize, request: &Request, before: u64) -> Look {
        look(
            request,
            before,
            self.first_of(chunk),
            self.chunks[chunk].rows(),
        )
    }

    fn hint(&self, chunk: usize) -> &Hint {
        &self.groups[chunk / GROUP_CHUNKS].hints[chunk % GROUP_CHUNKS]
    }

    /// Returns the lowest free frame from this one on, where the summary says that there is one. It lags behind while a CPU
    /// is about to settle it.
    fn next_known(&self, from: u64) -> Option<u64> {
        if from >= self.end {
            return None;
        }
        let mut chunk = self.chunk_of(from);
        loop {
            chunk = self.next_candidate(chunk)?;
            self.chunk(chunk)?;
            let start = self.first_of(chunk).max(from);
            let end = self.first_of(chunk + 1).min(self.end);
            let found = rows_of(&(start..end)).find_map(|(start, mask)| {
                let free = self.chunk_at(start).row(start).load(SeqCst) & mask;
                (free != 0).then(|| start + u64::from(free.trailing_zeros()))
            });
            if found.is_some() {
                return found;
            }
            chunk += 1;
        }
    }

    /// Returns the first chunk, from this one on, with a free frame, as the summary has it.
    fn next_candidate(&self, chunk: usize) -> Option<usize> {
        let mut above = u64::MAX << (chunk % GROUP_CHUNKS);
        for (index, group) in self.groups.iter().enumerate().skip(chunk / GROUP_CHUNKS) {
            let any = group.any.load(Relaxed) & above;
            if any != 0 {
                return Some(index * GROUP_CHUNKS + any.trailing_zeros() as usize);
            }
            above = u64::MAX;
        }
        None
    }

    /// Returns whether all of these frames are free.
    pub(crate) fn are_free(&self, numbers: &Range<u64>) -> bool {
        rows_of(numbers)
            .all(|(start, mask)| self.chunk_at(start).row(start).load(SeqCst) & mask == mask)
    }

    /// Returns the highest of these frames that is not free.
    fn last_used(&self, numbers: Range<u64>) -> Option<u64> {
        rows_of(&numbers).rev().find_map(|(start, mask)| {
            let used = !self.chunk_at(start).row(start).load(SeqCst) & mask;
            (used != 0).then(|| start + u64::from(used.ilog2()))
        })
    }

    /// Returns the chunk of the frame with this number, which is one of the zone's, or before its first in the same row.
    fn chunk_at(&self, number: u64) -> &Chunk {
        &self.chunks[self.chunk_of(number)]
    }
}

/// Joins the bounds of some chunks, and the number of their frames, with those of the next chunk.
fn join(all: Option<(Bounds, u64)>, next: Bounds) -> (Bounds, u64) {
    match all {
        Some((all, frames)) => (all.join(frames, next, CHUNK_FRAMES), frames + CHUNK_FRAMES),
        None => (next, CHUNK_FRAMES),
    }
}
