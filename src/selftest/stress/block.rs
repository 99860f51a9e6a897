//! A block under test: raw memory from the global heap, full of its owner's pattern.

use alloc::alloc::{alloc, dealloc, realloc};
use core::alloc::Layout;
use core::ptr::NonNull;

use super::random::mix;
use super::worker::{Tally, Worker};

/// Bytes of a word of the pattern.
const WORD: usize = size_of::<u64>();

/// A live block. Its bytes belong to the holder of this.
#[derive(Debug)]
pub struct TestBlock {
    start: NonNull<u8>,
    layout: Layout,
    /// The key that makes the pattern this block's own.
    key: u64,
}

// SAFETY: the block owns its memory alone; the heap's memory is mapped on all CPUs,
// and the heap takes a block back on any of them.
unsafe impl Send for TestBlock {}

impl TestBlock {
    /// Allocates and fills a block, or returns `None` (and counts it) if the heap refuses.
    pub fn allocate(worker: &mut Worker<'_>, size: usize, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(size.max(1), align).ok()?;
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(worker.timed(|| unsafe { alloc(layout) }));
        let Some(start) = start else {
            worker.tally.refused += 1;
            return None;
        };
        let key = mix(worker.random.next() ^ (worker.slot as u64) << 56);
        let mut block = Self { start, layout, key };
        worker.tally.bytes += size as u64;
        if !start.as_ptr().addr().is_multiple_of(align) {
            worker.tally.corrupt += 1;
            log::error!("the block at {start:p} is not aligned to {align}");
        }
        block.fill(0);
        Some(block)
    }

    /// Returns its size in bytes.
    pub fn size(&self) -> usize {
        self.layout.size()
    }

    /// Returns its first address, and the first after it.
    pub fn bounds(&self) -> (usize, usize) {
        let start = self.start.as_ptr().addr();
        (start, start + self.size())
    }

    /// Checks the block and frees it.
    pub fn free(self, worker: &mut Worker<'_>) {
        self.check(&mut worker.tally, self.size());
        // SAFETY: the block came from `alloc` (or `realloc`) with this layout, and
        // `self` was its only owner.
        worker.timed(|| unsafe { dealloc(self.start.as_ptr(), self.layout) });
    }

    /// Resizes the block, checks that its content is intact, and fills the rest. A refusal is
    /// counted and leaves the block as it was.
    pub fn resize(&mut self, worker: &mut Worker<'_>, size: usize) {
        let Ok(layout) = Layout::from_size_align(size.max(1), self.layout.align()) else {
            return;
        };
        // SAFETY: the block came from the allocator with this layout; the new size is
        // not 0 and, with the alignment, makes a layout.
        let start =
            worker.timed(|| unsafe { realloc(self.start.as_ptr(), self.layout, layout.size()) });
        let Some(start) = NonNull::new(start) else {
            worker.tally.refused += 1;
            return;
        };
        let kept = self.size().min(layout.size());
        self.start = start;
        self.layout = layout;
        self.check(&mut worker.tally, kept);
        self.fill(kept);
        worker.tally.bytes += layout.size() as u64;
    }

    /// Returns the `number`-th word of the pattern.
    fn word(&self, number: usize) -> u64 {
        self.key
            .wrapping_add((number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Fills the block from byte `from` on, rounded down to a word.
    fn fill(&mut self, from: usize) {
        let (whole, rest) = (self.size() / WORD, self.size() % WORD);
        let start = self.start.as_ptr();
        for number in from / WORD..whole {
            // SAFETY: a whole word of the block, which this owns; no alignment needed.
            unsafe {
                start
                    .cast::<u64>()
                    .add(number)
                    .write_unaligned(self.word(number))
            };
        }
        let last = self.word(whole).to_le_bytes();
        // SAFETY: the bytes after the last whole word, fewer than a word, are the
        // block's; `last` is no part of it.
        unsafe {
            start
                .add(whole * WORD)
                .copy_from_nonoverlapping(last.as_ptr(), rest)
        };
    }

    /// Checks the first `size` bytes against the pattern; reports the first word that differs.
    fn check(&self, tally: &mut Tally, size: usize) {
        let (whole, rest) = (size / WORD, size % WORD);
        let start = self.start.as_ptr();
        for number in 0..whole {
            // SAFETY: a whole word of the block, which this owns and filled; no
            // alignment needed.
            let found = unsafe { start.cast::<u64>().add(number).read_unaligned() };
            if found != self.word(number) {
                self.report(tally, number * WORD, found, self.word(number));
                return;
            }
        }
        let mut found = [0; WORD];
        // SAFETY: the bytes after the last whole word, fewer than a word, are the
        // block's and filled; `found` is no part of it.
        unsafe {
            found
                .as_mut_ptr()
                .copy_from_nonoverlapping(start.add(whole * WORD), rest);
        }
        // The bytes beyond the rest are 0 in both.
        let mask = (1u64 << (8 * rest)) - 1;
        let (found, expected) = (u64::from_le_bytes(found), self.word(whole) & mask);
        if found != expected {
            self.report(tally, whole * WORD, found, expected);
        }
    }

    #[cold]
    fn report(&self, tally: &mut Tally, at: usize, found: u64, expected: u64) {
        tally.corrupt += 1;
        log::error!(
            "a block of {} bytes is corrupt from byte {at}: {found:#x} instead of {expected:#x}",
            self.size()
        );
    }
}
