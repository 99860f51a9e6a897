//! Blocks that a handler allocates and frees on top of the code it interrupts: of one size, each
//! full of words that no other block holds.

use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::NonNull;

use super::worker::Tally;

/// The size of every block: the handler frees what the interrupted code is allocating from.
pub const SIZE: usize = 64;

/// The layout of every block.
pub const LAYOUT: Layout = Layout::new::<[u64; SIZE / 8]>();

/// Allocates and frees the blocks, and counts errors. One for the handler and one for the code that
/// it interrupts: a count is read and written in two steps.
pub struct Marker {
    allocated: Cell<u64>,
    refused: Cell<u64>,
    corrupt: Cell<u64>,
}

impl Marker {
    /// Creates a marker without any blocks.
    pub const fn new() -> Self {
        Self {
            allocated: Cell::new(0),
            refused: Cell::new(0),
            corrupt: Cell::new(0),
        }
    }

    /// Allocates a block and fills it, or returns `None` if the heap refuses.
    pub fn allocate(&self) -> Option<NonNull<u64>> {
        // SAFETY: the size is not 0.
        let block = NonNull::new(unsafe { alloc(LAYOUT) }.cast::<u64>());
        match block {
            Some(block) => {
                self.allocated.set(self.allocated.get() + 1);
                for word in 0..SIZE / 8 {
                    // SAFETY: the block is new, and `SIZE` bytes long; the heap aligns it for
                    // words.
                    unsafe { block.add(word).write(pattern(block, word)) };
                }
            }
            None => self.refused.set(self.refused.get() + 1),
        }
        block
    }

    /// Checks a block and frees it.
    ///
    /// # Safety
    ///
    /// `allocate` returned the block, and nothing else uses it.
    pub unsafe fn free(&self, block: NonNull<u64>) {
        for word in 0..SIZE / 8 {
            // SAFETY: live, written as a whole by `allocate`, and the caller's alone.
            if unsafe { block.add(word).read() } != pattern(block, word) {
                self.corrupt.set(self.corrupt.get() + 1);
                log::error!("word {word} of the block at {block:p} was overwritten");
            }
            // SAFETY: as above. A second owner finds its pattern gone.
            unsafe { block.add(word).write(0) };
        }
        // SAFETY: allocated with this layout, and the caller's alone.
        unsafe { dealloc(block.as_ptr().cast(), LAYOUT) };
    }

    /// Returns the number of blocks allocated.
    pub fn allocated(&self) -> u64 {
        self.allocated.get()
    }

    /// Adds the errors to a tally.
    pub fn add_to(&self, tally: &mut Tally) {
        tally.refused += self.refused.get();
        tally.corrupt += self.corrupt.get();
    }
}

/// Returns a word of a live block's pattern: no other block's words are the same.
fn pattern(block: NonNull<u64>, word: usize) -> u64 {
    (block.addr().get() as u64).rotate_left(17) ^ word as u64
}
