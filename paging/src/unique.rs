//! Telling values apart that look the same, such as tables whose roots have been the same frame.

use core::sync::atomic::{AtomicU64, Ordering};

/// A number that no other value has. It tells one set of tables, or one allocator, from another for
/// as long as the kernel runs, which no address does: memory is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unique(u64);

impl Unique {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        // Relaxed: nothing but the number goes from one to another. 2^64 are never reached.
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
