//! Atomics: the processor's, or a model's.
//!
//! With `--cfg loom` they are [loom](https://docs.rs/loom)'s, which tries every interleaving of CPUs,
//! and every value that a CPU may then read; see `magazines/models.rs`.

#[cfg(not(loom))]
mod real {
    pub(crate) use core::hint::spin_loop;
    use core::sync::atomic::Ordering;
    pub(crate) use core::sync::atomic::{
        AtomicPtr, AtomicU8, AtomicU16, AtomicU64, AtomicUsize, fence,
    };

    /// Returns whether to make this mistake: never, except where a model has to find it.
    pub(crate) const fn mutated(_mistake: &str) -> bool {
        false
    }

    /// Returns the order of an access.
    pub(crate) const fn order_unless(_mistake: &str, order: Ordering) -> Ordering {
        order
    }

    /// As [`core::cell::UnsafeCell`], but with loom's face.
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(data: T) -> Self {
            Self(core::cell::UnsafeCell::new(data))
        }

        #[inline]
        pub(crate) const fn get_mut(&self) -> MutPtr<T> {
            MutPtr(self.0.get())
        }
    }

    /// A pointer for the time of an access.
    pub(crate) struct MutPtr<T>(*mut T);

    impl<T> MutPtr<T> {
        /// Returns a reference to the value.
        ///
        /// # Safety
        ///
        /// As for a raw pointer.
        #[inline]
        #[expect(clippy::mut_from_ref, reason = "as for a raw pointer")]
        pub(crate) const unsafe fn deref(&self) -> &mut T {
            // SAFETY: the caller's promise.
            unsafe { &mut *self.0 }
        }
    }

    /// Functions that make atomics, and are `const` where these are.
    macro_rules! const_unless_modelled {
        ($($item:tt)*) => { $($item)* };
    }

    /// An array of equal atomics.
    macro_rules! atomics {
        ($atomic:expr; $count:expr) => {
            [const { $atomic }; $count]
        };
    }

    pub(crate) use {atomics, const_unless_modelled};
}

#[cfg(loom)]
mod modelled {
    use std::string::String;
    use std::sync::LazyLock;
    use std::sync::atomic::Ordering;

    pub(crate) use loom::cell::{MutPtr, UnsafeCell};
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{
        AtomicPtr, AtomicU8, AtomicU16, AtomicU64, AtomicUsize, fence,
    };

    /// The mistake to make, by the environment.
    static MISTAKE: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("MISTAKE").ok());

    pub(crate) fn mutated(mistake: &str) -> bool {
        MISTAKE.as_deref() == Some(mistake)
    }

    /// Returns the order of an access, or none, if that is the mistake to make.
    pub(crate) fn order_unless(mistake: &str, order: Ordering) -> Ordering {
        match mutated(mistake) {
            true => Ordering::Relaxed,
            false => order,
        }
    }

    macro_rules! const_unless_modelled {
        ($(#[$about:meta])* $vis:vis const fn $($rest:tt)*) => {
            $(#[$about])* $vis fn $($rest)*
        };
    }

    macro_rules! atomics {
        ($atomic:expr; $count:expr) => {
            core::array::from_fn(|_| $atomic)
        };
    }

    pub(crate) use {atomics, const_unless_modelled};
}

#[cfg(loom)]
pub(crate) use modelled::*;
#[cfg(not(loom))]
pub(crate) use real::*;
