//! Hints of where a run of free frames can be.

use core::sync::atomic::Ordering::SeqCst;

use muster_sync::AtomicU64;

use crate::chunk::{BEGINNINGS, CHUNK_FRAMES, FREE_ROW, ROW_FRAMES, ROWS};
use crate::range::FRAME_SIZE;
use crate::request::RunRequest;

/// The largest order of naturally aligned runs that lie in one chunk: a run of order `k` has 2ᵏ frames, and
/// begins at a multiple of them.
const MAX_ORDER: u32 = CHUNK_FRAMES.ilog2();

/// A bit for each order.
const ORDERS: u64 = (1 << (MAX_ORDER + 1)) - 1;

/// A request for frames that follow each other, as the search needs it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) run: RunRequest,
    count: u64,
    align: u64,
    /// One past the number of the last frame that will do.
    end: u64,
    /// The first and the last frame's numbers differ by bits below this one, a power of two, alone.
    boundary: u64,
    /// The bit of the order of a naturally aligned run that each such run includes; 0 if there need not be one.
    order_bit: u64,
    /// Whether it asks for exactly such a run.
    is_natural: bool,
}

impl Request {
    /// Returns `None` if no frames can be such a run.
    #[inline]
    pub(crate) const fn new(request: &RunRequest) -> Option<Self> {
        let count = request.count as u64;
        let align = request.align.frames();
        let boundary = request.boundary.frames();
        if count == 0 || count > boundary {
            return None;
        }
        let order = count.ilog2();
        let has_order = order <= MAX_ORDER && align.is_multiple_of(1 << order);
        Some(Self {
            run: *request,
            count,
            align,
            end: request.below.get() / FRAME_SIZE,
            boundary,
            order_bit: if has_order { 1 << order } else { 0 },
            // Where a place is asked for, not every such run will do.
            is_natural: has_order
                && count == align
                && count.is_power_of_two()
                && !request.is_limited(),
        })
    }

    /// Returns whether such a run has a chunk in its midst, or all but.
    pub(crate) const fn spans_chunks(&self) -> bool {
        self.count > CHUNK_FRAMES
    }

    pub(crate) const fn align(&self) -> u64 {
        self.align
    }

    /// Returns one past the number of the last frame that will do.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Returns whether there may be such a run that ends in a part of memory with these bounds, if this many
    /// frames before it are free.
    pub(crate) fn may_fit(&self, before: u64, bounds: Bounds) -> bool {
        // No naturally aligned run begins in one chunk and ends in another.
        if !self.is_natural && before + bounds.leading >= self.count {
            return true;
        }
        bounds.longest >= self.count && bounds.lacking & self.order_bit == 0
    }

    /// Returns where the lowest such run begins in `frames` free frames from `start` on.
    #[inline]
    fn place(&self, start: u64, frames: u64) -> Option<u64> {
        if self.run.is_limited() {
            return self.place_within_limits(start, frames);
        }
        if self.align == 1 {
            return (frames >= self.count).then_some(start);
        }
        let first = start.checked_next_multiple_of(self.align)?;
        let is_within = frames.checked_sub(first - start)? >= self.count;
        is_within.then_some(first)
    }

    #[cold]
    fn place_within_limits(&self, start: u64, frames: u64) -> Option<u64> {
        let mut first = start.checked_next_multiple_of(self.align)?;
        if !self.is_well_placed(first) {
            // The next beginning that does not cross a boundary: a multiple of any alignment that is less.
            first = first.checked_next_multiple_of(self.boundary)?;
        }
        let is_within = frames.checked_sub(first - start)? >= self.count;
        (is_within && self.is_well_placed(first)).then_some(first)
    }

    /// Returns whether a run that begins there lies below the limit and crosses no boundary.
    #[inline]
    const fn is_well_placed(&self, first: u64) -> bool {
        let Some(end) = first.checked_add(self.count) else {
            return false;
        };
        end <= self.end && first ^ (end - 1) < self.boundary
    }

    /// Returns where the lowest such run, of no more frames than a row has, begins that lies in a row whose first frame
    /// has this number. `Err`: there is none; whether there would be with another alignment.
    fn place_in_row(&self, start: u64, free: u64) -> Result<u64, bool> {
        let begins = beginnings(free, self.count as u32);
        let is_misplaced = begins != 0;
        let mut begins = begins & aligned(start, self.align);
        while begins != 0 {
            let first = start + u64::from(begins.trailing_zeros());
            if !self.run.is_limited() || self.is_well_placed(first) {
                return Ok(first);
            }
            begins &= begins - 1;
        }
        Err(is_misplaced)
    }
}

/// Returns the bits of a row, whose first frame has this number, at the frames that are so aligned.
fn aligned(start: u64, align: u64) -> u64 {
    if align <= ROW_FRAMES {
        // A row starts at a multiple of any such alignment.
        BEGINNINGS[align.trailing_zeros() as usize]
    } else {
        u64::from(start.is_multiple_of(align))
    }
}

/// Returns the bits of a row at which this many set bits begin.
pub(crate) fn beginnings(row: u64, count: u32) -> u64 {
    // After each step a bit is set if it and the `proven - 1` above it were.
    let mut runs = row;
    let mut proven = 1;
    while proven < count {
        let more = proven.min(count - proven);
        runs &= runs >> more;
        proven += more;
    }
    runs
}

/// Upper bounds of how long the runs of free frames in a part of memory are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Of the run at its beginning.
    leading: u64,
    /// Of the run at its end.
    trailing: u64,
    /// Of all runs that lie in it.
    longest: u64,
    /// The orders of naturally aligned runs that it has none of, a bit for each.
    lacking: u64,
}

impl Bounds {
    /// Joins the bounds of two parts of memory, of this many frames each, that follow each other.
    pub(crate) fn join(self, frames: u64, next: Self, next_frames: u64) -> Self {
        Self {
            leading: if self.leading >= frames {
                frames + next.leading
            } else {
                self.leading
            },
            trailing: next.after(self.trailing, next_frames),
            longest: (self.longest)
                .max(next.longest)
                .max(self.trailing + next.leading),
            lacking: self.lacking & next.lacking,
        }
    }

    /// Returns whether all of its frames, as many as these, may be free.
    pub(crate) const fn may_be_whole(self, frames: u64) -> bool {
        self.trailing >= frames
    }

    /// Returns how many frames at its end may be free, with `before` that are free in front of it.
    pub(crate) fn after(self, before: u64, frames: u64) -> u64 {
        if self.may_be_whole(frames) {
            before + frames
        } else {
            self.trailing
        }
    }
}

/// What a look at a chunk has found.
pub(crate) enum Look {
    /// Where the lowest run that fits begins.
    Place(u64),
    /// The chunk has none, and these bounds.
    Bounds(Bounds),
}

/// Looks for the lowest run that ends in these rows of a chunk, of which the first frame's number is `start`, if
/// `before` frames in front of it are free.
pub(crate) fn look(request: &Request, before: u64, start: u64, rows: &[AtomicU64; ROWS]) -> Look {
    // The free frames right before the next row.
    let mut stretch = before;
    let mut leading = None;
    let mut has_run = false;
    let mut start = start;
    for row in rows {
        let row = row.load(SeqCst);
        let is_free = row == FREE_ROW;
        let head = if is_free {
            ROW_FRAMES
        } else {
            u64::from(row.trailing_ones())
        };
        if stretch + head >= request.count {
            has_run = true;
            if let Some(first) = request.place(start - stretch, stretch + head) {
                return Look::Place(first);
            }
        }
        if is_free {
            stretch += ROW_FRAMES;
        } else {
            if row != 0 && request.count <= ROW_FRAMES {
                match request.place_in_row(start, row) {
                    Ok(first) => return Look::Place(first),
                    Err(is_misplaced) => has_run |= is_misplaced,
                }
            }
            leading.get_or_insert((stretch + head).saturating_sub(before));
            stretch = u64::from((row << (u64::BITS as u64 - ROW_FRAMES)).leading_ones());
        }
        start += ROW_FRAMES;
    }
    Look::Bounds(Bounds {
        leading: leading.unwrap_or(CHUNK_FRAMES),
        trailing: stretch.min(CHUNK_FRAMES),
        longest: if has_run {
            CHUNK_FRAMES
        } else {
            request.count - 1
        },
        lacking: if request.is_natural {
            // A run of a higher order includes one of this.
            request.order_bit.wrapping_neg() & ORDERS
        } else {
            0
        },
    })
}

/// Bounds that all CPUs share.
///
/// They hold although nobody locks the frames: whoever makes frames free does so first, and then calls
/// [`forget`](Self::forget); whoever looks for bounds [begins](Self::begin) first, and then reads the frames.
/// All of it is sequentially consistent. So if the look has missed that a frame became free, `forget` comes after
/// `begin`, and the bounds are not kept. Frames that are claimed make no bound wrong.
pub(crate) struct Hint(AtomicU64);

/// The bounds are in the rest of the word.
const SETTLED: u64 = 0;
/// Some CPU looks for bounds.
const LOOKING: u64 = 1;
/// So it does, but frames have become free in between.
const OUTDATED: u64 = 2;

const STATE_BITS: u32 = 2;
const STATE: u64 = (1 << STATE_BITS) - 1;
/// Bits of each bound but the last; as many frames as a group of chunks has fit in them.
const BOUND_BITS: u32 = 16;
const BOUND: u64 = (1 << BOUND_BITS) - 1;

/// Nothing is known: each bound is as large as can be.
const UNKNOWN: u64 = (1 << (STATE_BITS + 3 * BOUND_BITS)) - (1 << STATE_BITS);

impl Default for Hint {
    fn default() -> Self {
        Self(AtomicU64::new(UNKNOWN))
    }
}

impl Hint {
    /// Returns the bounds of a part of memory of this many frames.
    pub(crate) fn read(&self, frames: u64) -> Bounds {
        let word = self.0.load(SeqCst);
        let word = if word & STATE == SETTLED {
            word
        } else {
            UNKNOWN
        };
        let bound = |index: u32| (word >> (STATE_BITS + index * BOUND_BITS) & BOUND).min(frames);
        Bounds {
            leading: bound(0),
            trailing: bound(1),
            longest: bound(2),
            lacking: word >> (STATE_BITS + 3 * BOUND_BITS),
        }
    }

    /// Returns whether there may be such a run that lies in the part of memory.
    #[inline]
    pub(crate) fn may_hold(&self, request: &Request) -> bool {
        let word = self.0.load(SeqCst);
        if word & STATE != SETTLED {
            return true;
        }
        let longest = word >> (STATE_BITS + 2 * BOUND_BITS) & BOUND;
        let lacking = word >> (STATE_BITS + 3 * BOUND_BITS);
        longest >= request.count && lacking & request.order_bit == 0
    }

    /// Returns whether no such run ends in a part of memory of this many frames, with `before` that are free in front of it. Then
    /// `before` is how many at its end are, if the run may reach over from there. A part that may be in the midst of a run is not
    /// ruled out.
    #[inline]
    pub(crate) fn rules_out(&self, request: &Request, before: &mut u64, frames: u64) -> bool {
        if request.is_natural {
            // Such a run lies in one chunk.
            return !self.may_hold(request);
        }
        let bounds = self.read(frames);
        let is_amid = request.spans_chunks() && bounds.may_be_whole(frames);
        let is_out = !is_amid && !request.may_fit(*before, bounds);
        if is_out {
            *before = bounds.after(*before, frames);
        }
        is_out
    }

    /// Notes that frames have become free.
    pub(crate) fn forget(&self) {
        let mut word = self.0.load(SeqCst);
        loop {
            let next = match word {
                UNKNOWN | OUTDATED => return,
                LOOKING => OUTDATED,
                _ => UNKNOWN,
            };
            match self.0.compare_exchange_weak(word, next, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// Begins to look for bounds; `None` if another CPU does.
    pub(crate) fn begin(&self) -> Option<Looking<'_>> {
        let word = self.0.load(SeqCst);
        let is_settled = word & STATE == SETTLED;
        let begun = is_settled
            && (self.0)
                .compare_exchange(word, LOOKING, SeqCst, SeqCst)
                .is_ok();
        // Made only then: it ends a look when it is dropped.
        begun.then(|| Looking { hint: self, word })
    }
}

/// The right to record bounds. When it is dropped, they are what was [found](Self::found), or else what was known as it
/// began; but unknown if frames have become free since.
pub(crate) struct Looking<'a> {
    hint: &'a Hint,
    word: u64,
}

impl Looking<'_> {
    /// Ends the look with these bounds. They are what it has read: not such as were read before it began, as frames may have
    /// become free since.
    pub(crate) fn found(mut self, bounds: Bounds) {
        let Bounds {
            leading,
            trailing,
            longest,
            lacking,
        } = bounds;
        let fields = [leading, trailing, longest].into_iter().rev();
        let word = fields.fold(lacking, |word, bound| word << BOUND_BITS | bound.min(BOUND));
        self.word = word << STATE_BITS;
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        let ended = (self.hint.0).compare_exchange(LOOKING, self.word, SeqCst, SeqCst);
        if ended.is_err() {
            // It is outdated, and stays so until this CPU ends its look.
            self.hint.0.store(UNKNOWN, SeqCst);
        }
    }
}
