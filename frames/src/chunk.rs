//! The record of 2 MiB of memory: which of its frames are free.

use core::array;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::slice;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use muster_sync::{AtomicU8, AtomicU64};

use crate::hint::beginnings;
use crate::owner::FREE;
use crate::request::RunRequest;

/// Frames in a chunk: 2 MiB, the larger of the page sizes that x86-64 always has (Intel SDM vol. 3,
/// 5.5 "4-Level Paging and 5-Level Paging").
pub(crate) const CHUNK_FRAMES: u64 = if cfg!(loom) { 2 * ROW_FRAMES } else { 512 };

/// Frames in a row: one machine word has a bit for each. A model has fewer, lest it never ends.
pub(crate) const ROW_FRAMES: u64 = if cfg!(loom) { 4 } else { u64::BITS as u64 };

/// A row of free frames.
pub(crate) const FREE_ROW: u64 = u64::MAX >> (u64::BITS as u64 - ROW_FRAMES);

pub(crate) const ROWS: usize = (CHUNK_FRAMES / ROW_FRAMES) as usize;

/// The places of all frames of a chunk.
const WHOLE: Range<u64> = 0..CHUNK_FRAMES;

/// The allocator's record of the 512 frames of a naturally aligned 2 MiB: 10 bits each.
///
/// The kernel sets memory for one of these per 2 MiB, or part of it, aside and hands it over
/// unwritten; see [`FrameInfo::needed`](crate::FrameInfo::needed).
// Those of a zone lie apart: all chunks, then all owners.
#[repr(C)]
pub struct FrameInfo {
    chunk: Chunk,
    owners: [AtomicU8; CHUNK_FRAMES as usize],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<FrameInfo>() == 64 + 64 + 512);

/// Which of the frames of a naturally aligned 2 MiB are free.
///
/// Accesses of `rows` are sequentially consistent: of two CPUs that change a row and then read the summary,
/// or the number of seekers, at least one sees what the other did (`Zone::settle`, `Zone::notify_seekers`).
#[repr(C, align(64))]
pub(crate) struct Chunk {
    /// A set bit is a free frame, which the CPU that clears it owns.
    rows: [AtomicU64; ROWS],
    /// A set bit is a frame that a CPU is taking back; no other CPU may until the bit is cleared.
    returning: [AtomicU64; ROWS],
}

/// The state of a chunk: whether any of it, or all, is free.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fill {
    /// At least one frame is free.
    pub(crate) any: bool,
    /// All are.
    pub(crate) whole: bool,
}

/// Frames that were claimed from one row of a chunk.
pub(crate) struct Claimed<T> {
    /// The index in the chunk of the first of them, or of the row's first frame.
    pub(crate) place: u64,
    pub(crate) what: T,
    /// Whether the summary may have to change; see [`changes_fill`].
    pub(crate) changes_fill: bool,
}

/// Returns whether the fill of a chunk as a whole may change by this change of a row: only if one
/// of the row has no free frame, or nothing but, before or after it and not both times.
pub(crate) const fn changes_fill(before: u64, after: u64) -> bool {
    (before == 0) != (after == 0) || (before == FREE_ROW) != (after == FREE_ROW)
}

/// A run of frames that fits in a row, aligned to a power of two of frames.
#[derive(Clone, Copy)]
pub(crate) struct Fit {
    count: u32,
    order: u8,
    /// Bits of a row at which the run may begin.
    begins: u64,
}

/// For each alignment, a power of two, the bits of a row at its multiples: ones that far apart are all ones divided by as
/// many ones.
pub(crate) const BEGINNINGS: [u64; u64::BITS.ilog2() as usize + 1] = {
    let mut table = [0; u64::BITS.ilog2() as usize + 1];
    let mut shift = 0;
    while shift < table.len() {
        table[shift] = u64::MAX / (u64::MAX >> (u64::BITS - (1 << shift)));
        shift += 1;
    }
    table
};

impl Fit {
    /// The number of [orders](Self::order).
    pub(crate) const ORDERS: usize = ROW_FRAMES.ilog2() as usize + 1;

    /// Creates a fit; `None` if such runs don't fit in rows, or more is asked of them.
    #[inline]
    pub(crate) const fn new(request: &RunRequest) -> Option<Self> {
        if request.is_limited() {
            return None;
        }
        let (count, order) = (request.count as u64, request.align.order());
        if count == 0 || count > ROW_FRAMES || order >= Self::ORDERS as u32 {
            return None;
        }
        let least = u64::BITS - (count - 1).leading_zeros();
        Some(Self {
            count: count as u32,
            order: if order > least { order } else { least } as u8,
            // A row starts at a multiple of any such alignment.
            begins: BEGINNINGS[order as usize] & FREE_ROW,
        })
    }

    /// Returns the least order, below [`ORDERS`](Self::ORDERS), such that runs of 2 to the power of it, aligned to that, are
    /// good for this.
    #[inline]
    pub(crate) const fn order(self) -> usize {
        self.order as usize
    }

    /// Returns the lowest bit at which the row has such a run.
    #[inline]
    pub(crate) fn find(self, row: u64) -> Option<u32> {
        let first = (beginnings(row, self.count) & self.begins).trailing_zeros();
        (first < u64::BITS).then_some(first)
    }

    /// Returns the bits of such a run that begins at this one.
    #[inline]
    pub(crate) const fn mask(self, first: u32) -> u64 {
        u64::MAX >> (u64::BITS - self.count) << first
    }
}

impl FrameInfo {
    /// Makes the records of as many chunks, none of whose frames is free yet, and of whose each of
    /// their frames is.
    pub(crate) fn divide(
        storage: &'static mut [MaybeUninit<Self>],
    ) -> (&'static [Chunk], &'static [AtomicU8]) {
        let chunks: *mut Chunk = storage.as_mut_ptr().cast();
        let frames = storage.len() * CHUNK_FRAMES as usize;
        // SAFETY: a `FrameInfo` starts with a `Chunk`, is as aligned, and has room for the records
        // of `CHUNK_FRAMES` frames beside it. So chunks, and after them, aligned as any atomic in
        // them, the frames' records fit in the storage, which is not used again; and all that is
        // lent is written first.
        unsafe {
            let owners: *mut AtomicU8 = chunks.add(storage.len()).cast();
            (0..storage.len()).for_each(|index| chunks.add(index).write(Chunk::new()));
            (0..frames).for_each(|place| owners.add(place).write(AtomicU8::new(FREE)));
            (
                slice::from_raw_parts(chunks, storage.len()),
                slice::from_raw_parts(owners, frames),
            )
        }
    }
}

impl Chunk {
    /// Creates a chunk none of whose frames is free yet.
    pub(crate) fn new() -> Self {
        Self {
            rows: array::from_fn(|_| AtomicU64::new(0)),
            returning: array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn rows(&self) -> &[AtomicU64; ROWS] {
        &self.rows
    }

    /// Returns the row of the frame with this number, which is one of the chunk's.
    #[inline]
    pub(crate) fn row(&self, number: u64) -> &AtomicU64 {
        &self.rows[(number / ROW_FRAMES) as usize % ROWS]
    }

    /// Returns what is being taken back of the same row.
    pub(crate) fn returning(&self, number: u64) -> &AtomicU64 {
        &self.returning[(number / ROW_FRAMES) as usize % ROWS]
    }

    /// Returns how many of its frames are free.
    pub(crate) fn count(&self) -> usize {
        // Relaxed: for reports, and exact only while nobody allocates or frees.
        let free = self.rows.iter().map(|row| row.load(Relaxed).count_ones());
        free.sum::<u32>() as usize
    }

    pub(crate) fn fill(&self) -> Fill {
        let rows = self.rows.iter().map(|row| row.load(SeqCst));
        let (any, all) = rows.fold((0, FREE_ROW), |(any, all), row| (any | row, all & row));
        Fill {
            any: any != 0,
            whole: all == FREE_ROW,
        }
    }

    /// Claims exactly the frames at these places, row after row, as long as all of a row's are free. `Err`: the place where the
    /// first row begins of which they are not, up to which the frames are claimed.
    pub(crate) fn claim_exactly(&self, places: &Range<u64>) -> Result<(), u64> {
        if *places == WHOLE {
            let claim = |row: &AtomicU64| row.compare_exchange(FREE_ROW, 0, SeqCst, SeqCst);
            let used = self.rows.iter().position(|row| claim(row).is_err());
            return used.map_or(Ok(()), |row| Err(row as u64 * ROW_FRAMES));
        }
        let claim = |&(start, mask): &(u64, u64)| {
            let row = self.row(start);
            let mut free = row.load(SeqCst);
            while free & mask == mask {
                match replace(row, free, free & !mask) {
                    Ok(_) => return true,
                    Err(now) => free = now,
                }
            }
            false
        };
        match rows_of(places).find(|row| !claim(row)) {
            Some((start, _)) => Err(start),
            None => Ok(()),
        }
    }

    /// Frees the frames at these places, which the caller has claimed. Returns whether the summary may have to change; see
    /// [`changes_fill`].
    pub(crate) fn release(&self, places: &Range<u64>) -> bool {
        if *places == WHOLE {
            self.rows.iter().for_each(|row| row.store(FREE_ROW, SeqCst));
            return true;
        }
        rows_of(places).fold(false, |changes, (start, mask)| {
            let before = self.row(start).fetch_or(mask, SeqCst);
            changes | changes_fill(before, before | mask)
        })
    }

    /// Claims a run from a row that is partly used, else from one that is not.
    pub(crate) fn claim(&self, fit: Fit) -> Option<Claimed<()>> {
        [false, true].into_iter().find_map(|whole| {
            (0..).zip(&self.rows).find_map(|(index, row)| {
                let mut free = row.load(SeqCst);
                while (free == FREE_ROW) == whole {
                    let first = fit.find(free)?;
                    let left = free & !fit.mask(first);
                    match replace(row, free, left) {
                        Ok(_) => {
                            return Some(Claimed {
                                place: index * ROW_FRAMES + u64::from(first),
                                what: (),
                                changes_fill: changes_fill(free, left),
                            });
                        }
                        Err(now) => free = now,
                    }
                }
                None
            })
        })
    }

    /// Claims all free frames of a row, in one step; of a row that is partly used if there is one.
    /// Returns the index of the row's first frame, and the row.
    pub(crate) fn claim_row(&self) -> Option<Claimed<u64>> {
        self.claim_row_if(|free| free != 0)
    }

    /// Claims all free frames of a row that has such a run. It may have lost it to another CPU just then.
    pub(crate) fn claim_row_with(&self, fit: Fit) -> Option<Claimed<u64>> {
        self.claim_row_if(|free| fit.find(free).is_some())
    }

    #[inline(always)]
    fn claim_row_if(&self, is_wanted: impl Fn(u64) -> bool) -> Option<Claimed<u64>> {
        [false, true].into_iter().find_map(|whole| {
            (0..).zip(&self.rows).find_map(|(index, row)| {
                let free = row.load(SeqCst);
                let claimed = if (free == FREE_ROW) == whole && is_wanted(free) {
                    row.swap(0, SeqCst)
                } else {
                    0
                };
                (claimed != 0).then_some(Claimed {
                    place: index * ROW_FRAMES,
                    what: claimed,
                    changes_fill: true,
                })
            })
        })
    }
}

/// Returns the rows that these frames lie in, by their first frames' numbers, and their bits in them.
#[inline]
pub(crate) fn rows_of(numbers: &Range<u64>) -> impl DoubleEndedIterator<Item = (u64, u64)> + use<> {
    let (start, end) = (numbers.start, numbers.end);
    (start / ROW_FRAMES..end.div_ceil(ROW_FRAMES)).map(move |row| {
        let first = row * ROW_FRAMES;
        let below = start.saturating_sub(first);
        let above = (first + ROW_FRAMES).saturating_sub(end);
        (first, FREE_ROW << below & FREE_ROW >> above)
    })
}

/// Replaces what a row was by what is left of it, or returns its current value.
fn replace(row: &AtomicU64, free: u64, left: u64) -> Result<u64, u64> {
    row.compare_exchange_weak(free, left, SeqCst, SeqCst)
}
