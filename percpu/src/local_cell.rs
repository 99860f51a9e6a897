//! A cell for CPU-local values of any type.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering, compiler_fence};

use crate::InterruptSafe;

/// A cell that lends its value to one user at a time, for a CPU-local variable of any type: a handler that
/// interrupts the user is refused, instead of finding the value half changed.
///
/// A [`RefCell`](core::cell::RefCell) would not do, as the compiler knows of no handlers: it may leave out
/// that cell's mark where the borrow's end is in sight.
///
/// ```
/// use muster_percpu::LocalCell;
///
/// let names = LocalCell::new(Vec::new());
/// names.with(|names| names.push("first"));
/// names.with(|_| {
///     // A handler comes.
///     assert!(names.try_with(|names| names.push("second")).is_none());
/// });
/// assert_eq!(names.with(|names| names.len()), 1);
/// ```
///
/// It is no lock: two CPUs must not use it at once.
///
/// ```compile_fail,E0277
/// # use muster_percpu::LocalCell;
/// static NAMES: LocalCell<Vec<String>> = LocalCell::new(Vec::new());
/// ```
pub struct LocalCell<T> {
    is_lent: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is lent to one user at a time. A handler that interrupts the user before the mark is set
// ends before it is set, and leaves it as it was; one that comes later, before it is cleared, is refused. The
// fences keep the compiler from moving the use of the value out of that time.
unsafe impl<T: 'static> InterruptSafe for LocalCell<T> {}

impl<T> LocalCell<T> {
    /// Creates a cell with this value.
    pub const fn new(value: T) -> Self {
        Self {
            is_lent: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Runs `f` with the value, or returns `None` if it is lent already: to the code that this interrupted, or
    /// to that which has called it.
    #[inline]
    pub fn try_with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        // Relaxed, here and below: this CPU alone uses the cell, and its handlers see what it did before.
        if self.is_lent.load(Ordering::Relaxed) {
            return None;
        }
        self.is_lent.store(true, Ordering::Relaxed);
        let _lent = Lent(&self.is_lent);
        // The compiler moves nothing that `f` does before the mark.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the cell is not `Sync`, so this CPU alone gets here, and while the mark is set no second time.
        Some(f(unsafe { &mut *self.value.get() }))
    }

    /// Runs `f` with the value.
    ///
    /// # Panics
    ///
    /// If the value is lent already: to the code that this interrupted, or to that which has called it.
    #[track_caller]
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        match self.try_with(f) {
            Some(result) => result,
            None => panic!(
                "a CPU-local value is used while it is in use on the same CPU: \
                 a handler uses try_with, and no other code uses it within its own closure"
            ),
        }
    }
}

/// The time for which the value is lent, also if its user unwinds.
struct Lent<'a>(&'a AtomicBool);

impl Drop for Lent<'_> {
    #[inline]
    fn drop(&mut self) {
        // Nor behind the mark's end.
        compiler_fence(Ordering::SeqCst);
        self.0.store(false, Ordering::Relaxed);
    }
}

impl<T: Default> Default for LocalCell<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> fmt::Debug for LocalCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCell").finish_non_exhaustive()
    }
}
