//! A cell that is written once, on any CPU, and then only read.

use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use muster_sync::{AtomicU8, UnsafeCell, const_unless_modelled};

const EMPTY: u8 = 0;
const WRITING: u8 = 1;
const WRITTEN: u8 = 2;

/// A value that is written once, and then only read: a CPU's last words, say. Neither writers nor readers
/// wait, so it works in an NMI and in a panic. If the writer is interrupted for good, the value is
/// never seen.
///
/// ```
/// use muster_percpu::WriteOnce;
///
/// static WORDS: WriteOnce<&str> = WriteOnce::new();
///
/// assert_eq!(WORDS.get(), None);
/// assert!(WORDS.set(|| "out of stack"));
/// assert!(!WORDS.set(|| "and more"), "the first value counts");
/// assert_eq!(WORDS.get(), Some(&"out of stack"));
/// ```
pub struct WriteOnce<T> {
    state: AtomicU8,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: `value` is written once, by whoever changed the state from EMPTY to WRITING, and lent only
// after the state was read as WRITTEN (Acquire), which the writer has stored since (Release). It is
// written on one CPU and read on others, by reference.
unsafe impl<T: Send + Sync> Sync for WriteOnce<T> {}

impl<T> WriteOnce<T> {
    const_unless_modelled! {
        /// Creates an empty cell.
        pub const fn new() -> Self {
            Self {
                state: AtomicU8::new(EMPTY),
                value: UnsafeCell::new(MaybeUninit::uninit()),
            }
        }
    }

    /// Writes what `value` returns, unless the cell is written or about to be. Returns whether it did.
    ///
    /// # Panics
    ///
    /// If `value` does. The cell stays empty for good then, as it does if `value` never returns.
    pub fn set(&self, value: impl FnOnce() -> T) -> bool {
        // Relaxed: it only decides who writes; the value is published by the store below.
        let swap = (Ordering::Relaxed, Ordering::Relaxed);
        let is_first = self
            .state
            .compare_exchange(EMPTY, WRITING, swap.0, swap.1)
            .is_ok();
        if !is_first {
            return false;
        }
        // Made before it is written: if making it fails, the cell never becomes WRITTEN.
        let value = value();
        // SAFETY: this call alone found it EMPTY, and nobody reads before it is WRITTEN.
        self.value
            .with_mut(|place| unsafe { (*place).write(value) });
        // Release, with the Acquire of `get`: a reader that sees WRITTEN sees the value.
        self.state.store(WRITTEN, Ordering::Release);
        true
    }

    /// Returns the value, if it is written.
    pub fn get(&self) -> Option<&T> {
        // Acquire, with the Release of `set`: the value was written before.
        if self.state.load(Ordering::Acquire) != WRITTEN {
            return None;
        }
        self.value.with(|place| {
            // SAFETY: WRITTEN, so it was written before, and nobody writes it any more.
            Some(unsafe { (*place).assume_init_ref() })
        })
    }
}

impl<T> Default for WriteOnce<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for WriteOnce<T> {
    fn drop(&mut self) {
        // Acquire, with the Release of `set`: the value was written before it is dropped.
        if self.state.load(Ordering::Acquire) == WRITTEN {
            // SAFETY: WRITTEN, so it was written; nobody has a reference to what is dropped.
            self.value
                .with_mut(|place| unsafe { (*place).assume_init_drop() });
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for WriteOnce<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WriteOnce").field(&self.get()).finish()
    }
}
