//! Loom's atomics and cells.

use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Release, SeqCst};

pub use loom::cell::{ConstPtr, MutPtr, UnsafeCell};
pub use loom::hint::spin_loop;
use loom::sync::atomic;
pub use loom::sync::atomic::fence;

/// Does an access of this order, or between two fences one of the lesser order if it is to be
/// sequentially consistent.
fn ordered<T>(order: Ordering, lesser: Ordering, access: impl FnOnce(Ordering) -> T) -> T {
    if order != SeqCst {
        return access(order);
    }
    fence(SeqCst);
    let result = access(lesser);
    fence(SeqCst);
    result
}

/// Implements what all atomics have.
macro_rules! accesses {
    ($name:ident $(<$of:ident>)?, $value:ty) => {
        impl $(<$of>)? $name $(<$of>)? {
            /// Creates an atomic.
            pub fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            /// Loads the value.
            #[track_caller]
            pub fn load(&self, order: Ordering) -> $value {
                ordered(order, Acquire, |order| self.0.load(order))
            }

            /// Stores a value.
            #[track_caller]
            pub fn store(&self, value: $value, order: Ordering) {
                ordered(order, Release, |order| self.0.store(value, order));
            }

            /// Stores a value, and returns the one before.
            #[track_caller]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                ordered(order, AcqRel, |order| self.0.swap(value, order))
            }

            /// Stores a value if the one before is `current`; returns that one.
            ///
            /// # Errors
            ///
            /// The value before, if it is another one.
            #[track_caller]
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let failure = if failure == SeqCst { Acquire } else { failure };
                ordered(success, AcqRel, |success| {
                    self.0.compare_exchange(current, new, success, failure)
                })
            }

            /// Does what [`Self::compare_exchange`] does: loom knows no spurious failure.
            ///
            /// # Errors
            ///
            /// As there.
            #[track_caller]
            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }

            /// Stores what `change` returns for the value before, and returns that one; or leaves it if
            /// `change` returns `None`.
            ///
            /// # Errors
            ///
            /// The value, if it is left.
            #[track_caller]
            pub fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut before = self.load(failure);
                while let Some(new) = change(before) {
                    match self.compare_exchange(before, new, success, failure) {
                        Err(other) => before = other,
                        done => return done,
                    }
                }
                Err(before)
            }
        }
    };
}

/// Defines an atomic with these read-modify-writes.
macro_rules! atomic {
    ($name:ident($value:ty) { $($method:ident)* }) => {
        /// As in [`core::sync::atomic`], but loom's.
        #[derive(Debug)]
        pub struct $name(atomic::$name);

        accesses!($name, $value);

        impl $name {
            $(
                /// Changes the value, and returns the one before.
                #[track_caller]
                pub fn $method(&self, value: $value, order: Ordering) -> $value {
                    ordered(order, AcqRel, |order| self.0.$method(value, order))
                }
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new(Default::default())
            }
        }
    };
}

atomic!(AtomicBool(bool) { fetch_and fetch_or fetch_xor });
atomic!(AtomicU8(u8) { fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min });
atomic!(AtomicU16(u16) { fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min });
atomic!(AtomicU32(u32) { fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min });
atomic!(AtomicU64(u64) { fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min });
atomic!(AtomicI64(i64) { fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min });
atomic!(AtomicUsize(usize) { fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min });

/// As in [`core::sync::atomic`], but loom's.
#[derive(Debug)]
pub struct AtomicPtr<T>(atomic::AtomicPtr<T>);

accesses!(AtomicPtr<T>, *mut T);

/// Defines a function that makes atomics or cells: `const`, but for models, as loom's can't be made so.
#[macro_export]
macro_rules! const_unless_modelled {
    ($(#[$about:meta])* $vis:vis const fn $($rest:tt)*) => {
        $(#[$about])* $vis fn $($rest)*
    };
}

/// Makes an array of equal atomics: `[expression; count]`.
#[macro_export]
macro_rules! atomics {
    ($atomic:expr; $count:expr) => {
        core::array::from_fn(|_| $atomic)
    };
}
