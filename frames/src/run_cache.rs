//! Free frames that a CPU keeps for runs, as parts of rows.

use core::ops::Range;
use core::ptr;

use crate::chunk::{Fit, ROW_FRAMES};
use crate::zone::Zone;

/// The rows of which there may be frames in a cache at once, a bit each in a word.
const SLOTS: usize = u64::BITS as usize;

/// Frames of one row that the CPU has, which are free and claimed.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) zone: &'a Zone,
    /// The number of the row's first frame.
    pub(crate) start: u64,
    /// A bit for each frame that is here.
    pub(crate) mask: u64,
}

impl Part<'_> {
    pub(crate) const fn count(&self) -> usize {
        self.mask.count_ones() as usize
    }
}

/// One CPU's part of the rows, for runs of up to [`ROW_FRAMES`]. Each row has one slot that it may be in.
pub(crate) struct RunCache<'a> {
    parts: [Part<'a>; SLOTS],
    /// For each [order](Fit::order), the slots that may have a run of that many frames.
    candidates: [u64; Fit::ORDERS],
    /// The slot before the one that goes out next.
    last_out: usize,
}

impl<'a> RunCache<'a> {
    /// Creates an empty cache.
    pub(crate) const fn new(zone: &'a Zone) -> Self {
        Self {
            parts: [Part {
                zone,
                start: 0,
                mask: 0,
            }; SLOTS],
            candidates: [0; Fit::ORDERS],
            last_out: 0,
        }
    }

    /// Takes a run out, and returns its zone and its first frame's number.
    #[inline]
    pub(crate) fn take(&mut self, fit: Fit) -> Option<(&'a Zone, u64)> {
        let candidates = self.candidates.get_mut(fit.order())?;
        while *candidates != 0 {
            let part = self.parts.get_mut(candidates.trailing_zeros() as usize)?;
            if let Some(first) = fit.find(part.mask) {
                part.mask &= !fit.mask(first);
                return Some((part.zone, part.start + u64::from(first)));
            }
            // Not until a frame comes in: for requests of this order that are easier to meet a look elsewhere costs less
            // than a second one here.
            *candidates &= *candidates - 1;
        }
        None
    }

    /// Takes exactly these frames of a row out, if all are here.
    pub(crate) fn take_exactly(&mut self, wanted: Part<'_>) -> bool {
        let part = &mut self.parts[slot_of(wanted.start)];
        let are_here = part.is_of(&wanted) && part.mask & wanted.mask == wanted.mask;
        if are_here {
            part.mask &= !wanted.mask;
        }
        are_here
    }

    /// Takes out what is here of one of the rows of these frames, if anything is.
    pub(crate) fn take_any_of(&mut self, zone: &Zone, numbers: &Range<u64>) -> Option<Part<'a>> {
        let is_among = |part: &&mut Part<'_>| {
            let end = part.start + ROW_FRAMES;
            part.mask != 0
                && ptr::eq(part.zone, zone)
                && part.start < numbers.end
                && numbers.start < end
        };
        self.parts.iter_mut().find(is_among).and_then(Part::take)
    }

    /// Puts frames of one row in. Returns what had to go out for them, if anything.
    #[inline]
    pub(crate) fn put(&mut self, new: Part<'a>) -> Option<Part<'a>> {
        let slot = slot_of(new.start);
        let part = &mut self.parts[slot];
        let out = if part.is_of(&new) {
            part.mask |= new.mask;
            None
        } else {
            let out = part.take();
            *part = new;
            out
        };
        for candidates in &mut self.candidates {
            *candidates |= 1 << slot;
        }
        out
    }

    /// Takes out what is in the next slot, in turn, that has anything.
    pub(crate) fn take_next(&mut self) -> Option<Part<'a>> {
        (0..SLOTS).find_map(|_| {
            self.last_out = (self.last_out + 1) % SLOTS;
            self.parts[self.last_out].take()
        })
    }
}

impl<'a> Part<'a> {
    fn is_of(&self, other: &Part<'_>) -> bool {
        self.start == other.start && ptr::eq(self.zone, other.zone)
    }

    fn take(&mut self) -> Option<Self> {
        let taken = *self;
        self.mask = 0;
        (taken.mask != 0).then_some(taken)
    }
}

const fn slot_of(start: u64) -> usize {
    (start / ROW_FRAMES) as usize % SLOTS
}
