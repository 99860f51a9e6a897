//! The host's heap, which a test can make run out for itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

thread_local! {
    static MAX_BLOCK: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Scarce;

#[global_allocator]
static HEAP: Scarce = Scarce;

// SAFETY: all that is given out is the system's.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no cell any more.
        if MAX_BLOCK.try_with(|largest| layout.size() > largest.get()) == Ok(true) {
            return ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) };
    }
}

/// Runs `work` on this thread with no larger block available.
pub fn with_blocks_up_to<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    MAX_BLOCK.set(bytes);
    let result = work();
    MAX_BLOCK.set(usize::MAX);
    result
}
