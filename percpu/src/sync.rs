//! What CPUs share: the processor's atomics, or a model's.
//!
//! With `--cfg loom` they are [loom](https://docs.rs/loom)'s, which tries every order in which CPUs
//! can come upon each other, and every value that a CPU may then read; see `models.rs`.

#[cfg(not(loom))]
mod real {
    #[cfg(feature = "alloc")]
    pub(crate) use core::sync::atomic::AtomicU64;
    pub(crate) use core::sync::atomic::{AtomicU8, AtomicUsize, fence};

    /// Whether this mistake is to be made: never, but where a model must show that it finds it.
    pub(crate) const fn mutated(_mistake: &str) -> bool {
        false
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

    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, fence};

    /// The mistake to make, by the environment.
    static MISTAKE: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("MISTAKE").ok());

    pub(crate) fn mutated(mistake: &str) -> bool {
        MISTAKE.as_deref() == Some(mistake)
    }
}

#[cfg(loom)]
pub(crate) use modelled::*;
#[cfg(not(loom))]
pub(crate) use real::*;
