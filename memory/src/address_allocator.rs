//! Addresses to map things at.

use core::fmt;

use nodit::interval::ii;
use nodit::{Interval, NoditSet};

use crate::range::FRAME_SIZE;
use crate::tables::Vacant;
use crate::virt_range::VirtRange;

/// Bytes of the guard before and after each allocation: a page that is never mapped.
const GUARD: u64 = FRAME_SIZE;

/// Why there are no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// The length is not in whole pages or 0, or the alignment is no power of two.
    Malformed {
        /// Bytes asked for.
        length: u64,
        /// The alignment asked for, in bytes.
        align: u64,
    },
    /// No gap of the window is large enough.
    Exhausted {
        /// Bytes asked for, guards not included.
        length: u64,
        /// The alignment asked for, in bytes.
        align: u64,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { length, align } => write!(
                f,
                "{length:#x} bytes aligned to {align:#x} is no wish for whole pages"
            ),
            Self::Exhausted { length, align } => write!(
                f,
                "the window has no gap of {length:#x} bytes aligned to {align:#x}: unmap something \
                 or make the window larger"
            ),
        }
    }
}

impl core::error::Error for AddressError {}

/// The addresses were not allocated, or not as this range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAllocated {
    /// The range.
    pub range: VirtRange,
}

impl fmt::Display for NotAllocated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was not allocated as such", self.range)
    }
}

impl core::error::Error for NotAllocated {}

/// Gives out the addresses of a window of the address space, each range with a page on both sides
/// that is never mapped: who runs off its end, faults.
///
/// Neighbours share the page between them. Addresses come back only as [`Vacant`], which there is
/// when every CPU has flushed what was mapped there: until then they count as allocated.
///
/// The lowest gap that is large enough is taken, after a search through all ranges below: what it
/// gives out lives long. It allocates memory for its books, so nobody whom the heap needs in order
/// to grow may use it.
///
/// ```
/// use muster_memory::{AddressAllocator, AddressError, VirtRange};
///
/// let window = VirtRange::new(0xffff_ff10_0000_0000, 0x6000).unwrap();
/// let mut addresses = AddressAllocator::new(window);
/// assert_eq!(addresses.allocate(0x1000, 0x1000)?.start(), 0xffff_ff10_0000_1000);
/// assert_eq!(addresses.allocate(0x2000, 0x1000)?.start(), 0xffff_ff10_0000_3000);
/// let exhausted = AddressError::Exhausted { length: 0x1000, align: 0x1000 };
/// assert_eq!(addresses.allocate(0x1000, 0x1000), Err(exhausted));
/// # Ok::<(), AddressError>(())
/// ```
#[derive(Debug)]
pub struct AddressAllocator {
    window: VirtRange,
    /// What is allocated, each range with the guard after it. The guard before it is the one after
    /// the range below, or the window's first page.
    taken: NoditSet<u64, Interval<u64>>,
    bytes: u64,
}

impl AddressAllocator {
    /// All of the window is free.
    pub fn new(window: VirtRange) -> Self {
        Self {
            window,
            taken: NoditSet::new(),
            bytes: 0,
        }
    }

    /// The window.
    pub const fn window(&self) -> VirtRange {
        self.window
    }

    /// How many bytes are allocated, guards not included.
    pub const fn allocated_bytes(&self) -> u64 {
        self.bytes
    }

    /// How many ranges are allocated.
    pub fn allocated_ranges(&self) -> usize {
        self.taken.len()
    }

    /// Takes `length` bytes of addresses that begin at a multiple of `align`, or of a page if that is
    /// more.
    ///
    /// # Errors
    ///
    /// See [`AddressError`].
    pub fn allocate(&mut self, length: u64, align: u64) -> Result<VirtRange, AddressError> {
        if length == 0 || !length.is_multiple_of(FRAME_SIZE) || !align.is_power_of_two() {
            return Err(AddressError::Malformed { length, align });
        }
        let range = self
            .find(length, align.max(FRAME_SIZE))
            .ok_or(AddressError::Exhausted { length, align })?;
        // A gap overlaps nothing.
        if self.taken.insert_strict(with_guard(range)).is_err() {
            return Err(AddressError::Exhausted { length, align });
        }
        self.bytes += length;
        Ok(range)
    }

    fn find(&self, length: u64, align: u64) -> Option<VirtRange> {
        let first = self.window.start().checked_add(GUARD)?;
        if first > self.window.last() {
            return None;
        }
        let searched = ii(first, self.window.last());
        let needed = length.checked_add(GUARD - 1)?;
        self.taken.gaps_trimmed(&searched).find_map(|gap| {
            let start = gap.start().checked_next_multiple_of(align)?;
            let last = start.checked_add(needed)?;
            (last <= *gap.end()).then(|| VirtRange::new(start, length))?
        })
    }

    /// Takes addresses back.
    ///
    /// # Errors
    ///
    /// If they were not allocated here as this very range. Nothing has changed then.
    pub fn free(&mut self, vacant: Vacant) -> Result<(), NotAllocated> {
        let range = vacant.range();
        let taken = with_guard(range);
        if self.taken.get_at_point(&range.start()) != Ok(&taken) {
            return Err(NotAllocated { range });
        }
        drop(self.taken.cut(&taken));
        self.bytes -= range.len();
        Ok(())
    }
}

/// What a range takes of its window. No allocated range ends with the last address there is.
fn with_guard(range: VirtRange) -> Interval<u64> {
    ii(range.start(), range.last().saturating_add(GUARD))
}
