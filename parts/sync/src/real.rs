//! The processor's atomics, and cells with the interface of loom's.

pub use core::hint::spin_loop;
pub use core::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence,
};

/// A [`core::cell::UnsafeCell`] with the interface of loom's, which sees when an access begins and ends.
#[derive(Debug, Default)]
pub struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    /// Creates a cell.
    pub const fn new(data: T) -> Self {
        Self(core::cell::UnsafeCell::new(data))
    }

    /// Calls `f` with a pointer for reading.
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Calls `f` with a pointer for reading and writing.
    #[inline]
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }

    /// Returns a pointer for reading and writing. The access lasts until it is dropped.
    #[inline]
    pub const fn get_mut(&self) -> MutPtr<T> {
        MutPtr(self.0.get())
    }
}

/// A pointer to the value of an [`UnsafeCell`], for the time of an access.
#[derive(Debug)]
pub struct MutPtr<T>(*mut T);

impl<T> MutPtr<T> {
    /// Returns a reference to the value.
    ///
    /// # Safety
    ///
    /// As for a dereference of a raw pointer: the cell lives, and while the reference is used no other
    /// reference to the value is.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "as for a raw pointer")]
    pub const unsafe fn deref(&self) -> &mut T {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.0 }
    }
}

/// Defines a function that makes atomics or cells: `const`, but for models, as loom's can't be made so.
#[macro_export]
macro_rules! const_unless_modelled {
    ($($item:tt)*) => { $($item)* };
}

/// Makes an array of equal atomics: `[expression; count]`.
#[macro_export]
macro_rules! atomics {
    ($atomic:expr; $count:expr) => {
        [const { $atomic }; $count]
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_hold_what_was_written() {
        let cell = UnsafeCell::new(1);
        // SAFETY: no other access is under way, here and below.
        cell.with_mut(|value| unsafe { *value += 1 });
        // SAFETY: as above.
        unsafe { *cell.get_mut().deref() += 1 };
        // SAFETY: as above.
        assert_eq!(cell.with(|value| unsafe { *value }), 3);
    }
}
