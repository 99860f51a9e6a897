//! What a CPU leaves behind for another one to read.

use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use crate::sync::{AtomicU8, UnsafeCell, mutated, order_unless};

const EMPTY: u8 = 0;
const TAKEN: u8 = 1;
const LEFT: u8 = 2;

/// Something that is left once, and then only read: a CPU's last words, say. Nobody waits for anybody,
/// so it works in an NMI and in a panic: a note that its writer was interrupted in, for good, is
/// never seen.
///
/// ```
/// use muster_percpu::Note;
///
/// static WORDS: Note<&str> = Note::new();
///
/// assert_eq!(WORDS.read(), None);
/// assert!(WORDS.leave(|| "out of stack"));
/// assert!(!WORDS.leave(|| "and more"), "the first one counts");
/// assert_eq!(WORDS.read(), Some(&"out of stack"));
/// ```
pub struct Note<T> {
    state: AtomicU8,
    text: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: `text` is written once, by whoever changed the state from EMPTY to TAKEN, and lent only
// after the state was read as LEFT (Acquire), which the writer has stored since (Release). It is
// written on one CPU and read on others, by reference.
unsafe impl<T: Send + Sync> Sync for Note<T> {}

impl<T> Note<T> {
    /// Nothing left yet.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            state: AtomicU8::new(EMPTY),
            text: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Nothing left yet.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            state: AtomicU8::new(EMPTY),
            text: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Leaves what `text` makes, unless somebody has left something or is about to. Says whether.
    pub fn leave(&self, text: impl FnOnce() -> T) -> bool {
        let is_first = if mutated("a note is taken without a look") {
            self.state.load(Ordering::Relaxed) == EMPTY
        } else {
            let swap = (Ordering::Relaxed, Ordering::Relaxed);
            self.state
                .compare_exchange(EMPTY, TAKEN, swap.0, swap.1)
                .is_ok()
        };
        if !is_first {
            return false;
        }
        // Made before it is put down: if making it fails, nothing was left.
        let text = text();
        // SAFETY: this call alone found it EMPTY, and nobody reads before it is LEFT.
        self.text.with_mut(|place| unsafe { (*place).write(text) });
        let order = order_unless("a note is not published", Ordering::Release);
        self.state.store(LEFT, order);
        true
    }

    /// What was left, if anything was.
    pub fn read(&self) -> Option<&T> {
        if self.state.load(Ordering::Acquire) != LEFT {
            return None;
        }
        self.text.with(|place| {
            // SAFETY: LEFT, so it was written before, and nobody writes it any more.
            Some(unsafe { (*place).assume_init_ref() })
        })
    }
}

impl<T> Default for Note<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for Note<T> {
    fn drop(&mut self) {
        if self.state.load(Ordering::Acquire) == LEFT {
            // SAFETY: LEFT, so it was written; nobody has a reference to what is dropped.
            self.text
                .with_mut(|place| unsafe { (*place).assume_init_drop() });
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Note<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Note").field(&self.read()).finish()
    }
}
