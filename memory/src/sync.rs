//! The atomics of the frame allocator: the processor's, or a model's.
//!
//! With `--cfg loom` they are [loom](https://docs.rs/loom)'s, which tries every interleaving of CPUs,
//! and every value that a CPU may then read; see `models.rs`.

#[cfg(not(loom))]
pub(crate) use core::hint::spin_loop;
#[cfg(not(loom))]
use core::sync::atomic::Ordering;
#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize};

/// Returns whether to make this mistake: never, except where a model has to find it.
#[cfg(not(loom))]
pub(crate) const fn mutated(_mistake: &str) -> bool {
    false
}

/// Returns the order of an access.
#[cfg(not(loom))]
pub(crate) const fn order_unless(_mistake: &str, order: Ordering) -> Ordering {
    order
}

#[cfg(loom)]
pub(crate) use modelled::*;

#[cfg(loom)]
mod modelled {
    use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst};
    use std::sync::LazyLock;

    pub(crate) use loom::hint::spin_loop;
    use loom::sync::atomic::{self, fence};

    /// The mistake to make, by the environment.
    static MISTAKE: LazyLock<Option<std::string::String>> =
        LazyLock::new(|| std::env::var("MISTAKE").ok());

    pub(crate) fn mutated(mistake: &str) -> bool {
        MISTAKE.as_deref() == Some(mistake)
    }

    /// Returns the order of an access, or none, if that is the mistake to make.
    pub(crate) fn order_unless(mistake: &str, order: Ordering) -> Ordering {
        match mutated(mistake) {
            true => Relaxed,
            false => order,
        }
    }

    /// Does an access of this order. Loom takes a sequentially consistent one for one that acquires
    /// and releases, and would show what can't be; fences between such accesses it knows.
    fn ordered<T>(order: Ordering, lesser: Ordering, access: impl FnOnce(Ordering) -> T) -> T {
        if order != SeqCst {
            return access(order);
        }
        if mutated("nothing is sequentially consistent") {
            return access(lesser);
        }
        fence(SeqCst);
        let result = access(lesser);
        fence(SeqCst);
        result
    }

    macro_rules! atomics {
        ($($name:ident($value:ty) $({ $($method:ident)* })?),* $(,)?) => { $(
            #[derive(Debug)]
            pub(crate) struct $name(atomic::$name);

            #[allow(dead_code, reason = "not every atomic needs every operation")]
            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                #[track_caller]
                pub(crate) fn load(&self, order: Ordering) -> $value {
                    ordered(order, Acquire, |order| self.0.load(order))
                }

                #[track_caller]
                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    ordered(order, Release, |order| self.0.store(value, order));
                }

                #[track_caller]
                pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                    ordered(order, AcqRel, |order| self.0.swap(value, order))
                }

                #[track_caller]
                pub(crate) fn compare_exchange_weak(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    _failure: Ordering,
                ) -> Result<$value, $value> {
                    ordered(success, AcqRel, |order| {
                        self.0.compare_exchange(current, new, order, Relaxed)
                    })
                }

                $($(
                    #[track_caller]
                    pub(crate) fn $method(&self, value: $value, order: Ordering) -> $value {
                        ordered(order, AcqRel, |order| self.0.$method(value, order))
                    }
                )*)?
            }

            impl Default for $name {
                fn default() -> Self {
                    Self::new(Default::default())
                }
            }
        )* };
    }

    atomics! {
        AtomicBool(bool),
        AtomicU8(u8),
        AtomicI64(i64) { fetch_add },
        AtomicU64(u64) { fetch_add fetch_sub fetch_or fetch_and },
        AtomicUsize(usize) { fetch_add fetch_sub },
    }
}
