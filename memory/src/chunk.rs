//! What is recorded of 2 MiB of memory: which of its frames are free, and whose the others are.

use core::ops::Range;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU8, AtomicU64};

use crate::map::Owner;

/// Frames in a chunk: 2 MiB, the larger of the page sizes that x86-64 always has (Intel SDM vol. 3,
/// 5.5 "4-Level Paging and 5-Level Paging").
pub(crate) const CHUNK_FRAMES: u64 = 512;

/// Frames in a row: one machine word has a bit for each.
pub(crate) const ROW_FRAMES: u64 = u64::BITS as u64;

pub(crate) const ROWS: usize = (CHUNK_FRAMES / ROW_FRAMES) as usize;

/// What the allocator records of the 512 frames of a naturally aligned 2 MiB: 10 bits each.
///
/// The kernel sets memory for one of these per 2 MiB, or part of it, aside and hands it over
/// unwritten; see [`FrameAllocator::storage_needed`](crate::FrameAllocator::storage_needed).
#[repr(C, align(64))]
pub struct FrameInfo {
    /// A set bit is a free frame, one that whoever clears it owns.
    rows: [AtomicU64; ROWS],
    /// A set bit is a frame that somebody is taking back; nobody else may meanwhile.
    returning: [AtomicU64; ROWS],
    /// Whose each frame is. [`Owner::Free`] if it is free, but also while it is on its way out or
    /// in, or in a CPU's cache.
    owners: [AtomicU8; CHUNK_FRAMES as usize],
}

const _: () = assert!(size_of::<FrameInfo>() == 64 + 64 + 512);

/// How much of a chunk is free.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fill {
    /// At least one frame is free.
    pub(crate) any: bool,
    /// All are.
    pub(crate) whole: bool,
}

/// A run of frames that fits in a row, aligned to a power of two of frames.
#[derive(Clone, Copy)]
pub(crate) struct Fit {
    count: u32,
    /// Bits of a row at which the run may begin.
    begins: u64,
}

impl Fit {
    /// `None` if such runs don't fit in rows.
    pub(crate) fn new(count: u64, align: u64) -> Option<Self> {
        if count == 0 || count > ROW_FRAMES || !align.is_power_of_two() || align > ROW_FRAMES {
            return None;
        }
        // A row starts at a multiple of any such alignment.
        let begins = (0..ROW_FRAMES)
            .step_by(align as usize)
            .fold(0, |begins, bit| begins | 1 << bit);
        Some(Self {
            count: count as u32,
            begins,
        })
    }

    /// The lowest bit at which the row has such a run.
    fn find(self, row: u64) -> Option<u32> {
        // After each step a bit is set if it and the `proven - 1` above it were.
        let mut runs = row;
        let mut proven = 1;
        while proven < self.count {
            let more = proven.min(self.count - proven);
            runs &= runs >> more;
            proven += more;
        }
        let first = (runs & self.begins).trailing_zeros();
        (first < u64::BITS).then_some(first)
    }

    fn mask(self, first: u32) -> u64 {
        u64::MAX >> (u64::BITS - self.count) << first
    }
}

impl FrameInfo {
    /// A chunk none of whose frames is free yet.
    pub(crate) const fn new() -> Self {
        Self {
            rows: [const { AtomicU64::new(0) }; ROWS],
            returning: [const { AtomicU64::new(0) }; ROWS],
            owners: [const { AtomicU8::new(Owner::Free as u8) }; CHUNK_FRAMES as usize],
        }
    }

    pub(crate) fn row(&self, row: usize) -> &AtomicU64 {
        &self.rows[row % ROWS]
    }

    pub(crate) fn returning(&self, row: usize) -> &AtomicU64 {
        &self.returning[row % ROWS]
    }

    /// The record of whose a frame is.
    #[inline]
    pub(crate) fn owner(&self, index: u64) -> &AtomicU8 {
        &self.owners[(index % CHUNK_FRAMES) as usize]
    }

    /// The records of whose the frames at these places are, as far as there are such places.
    pub(crate) fn owners(&self, places: Range<u64>) -> &[AtomicU8] {
        self.owners
            .get(places.start as usize..places.end as usize)
            .unwrap_or_default()
    }

    pub(crate) fn fill(&self) -> Fill {
        let rows = self.rows.iter().map(|row| row.load(SeqCst));
        let (any, all) = rows.fold((0, u64::MAX), |(any, all), row| (any | row, all & row));
        Fill {
            any: any != 0,
            whole: all == u64::MAX,
        }
    }

    /// Claims a run from a row that is partly used, else from one that is not. Answers the place of
    /// its first frame.
    pub(crate) fn claim(&self, fit: Fit) -> Option<u64> {
        [false, true].into_iter().find_map(|whole| {
            (0..).zip(&self.rows).find_map(|(index, row)| {
                let mut free = row.load(SeqCst);
                while (free == u64::MAX) == whole {
                    let first = fit.find(free)?;
                    let left = free & !fit.mask(first);
                    match row.compare_exchange_weak(free, left, SeqCst, SeqCst) {
                        Ok(_) => return Some(index * ROW_FRAMES + u64::from(first)),
                        Err(now) => free = now,
                    }
                }
                None
            })
        })
    }

    /// Claims all free frames of a row, in one step; of a row that is partly used if there is one.
    /// Answers the place of the row's first frame, and the row.
    pub(crate) fn claim_row(&self) -> Option<(u64, u64)> {
        [false, true].into_iter().find_map(|whole| {
            (0..).zip(&self.rows).find_map(|(index, row)| {
                let free = row.load(SeqCst);
                let claimed = if free != 0 && (free == u64::MAX) == whole {
                    row.swap(0, SeqCst)
                } else {
                    0
                };
                (claimed != 0).then_some((index * ROW_FRAMES, claimed))
            })
        })
    }
}
