//! Atomics: the processor's, or a model's.
//!
//! With `--cfg loom` they are [loom](https://docs.rs/loom)'s, which tries every interleaving of CPUs,
//! and every value that a CPU may then read; see `models.rs`.

#[cfg(not(loom))]
mod real {
    #[cfg(feature = "alloc")]
    pub(crate) use core::sync::atomic::AtomicU64;
    use core::sync::atomic::Ordering;
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, fence};

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
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        #[inline]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(loom)]
mod modelled {
    use std::string::String;
    use std::sync::LazyLock;
    use std::sync::atomic::Ordering;

    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, fence};

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
}

#[cfg(loom)]
pub(crate) use modelled::*;
#[cfg(not(loom))]
pub(crate) use real::*;
