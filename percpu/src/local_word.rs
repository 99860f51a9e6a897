//! A word that a handler never finds half changed.

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, compiler_fence};

use crate::InterruptSafe;

/// A word of a CPU's own: a [`Cell`](core::cell::Cell) that a handler may use at any instruction.
///
/// What is in a `Cell` the compiler may read and write in parts, and does: it stores the halves of a word that was
/// put together from two, and makes a copy of many cells a call of `memcpy`, which may go by bytes. Here, each
/// [`get`](Self::get) and [`set`](Self::set) is one access of the whole word, when the program comes there. It costs what
/// that of a `Cell` does: no other CPU reads the word. Where the word is a pointer or a reference, the compiler moves no
/// other access across: what it leads to is written before, and is not used after it was replaced.
///
/// `get` and then `set` are two accesses. If a handler comes in between and sets the word, what it has set is lost:
/// what both count is best an atomic, or is counted by each in a word of its own.
///
/// ```
/// use muster_percpu::LocalWord;
///
/// let depth = LocalWord::new(1);
/// depth.set(depth.get() + 1);
/// assert_eq!(depth.get(), 2);
/// ```
#[repr(transparent)]
pub struct LocalWord<T>(UnsafeCell<T>);

/// A type that one instruction reads or writes: a `bool`, a `char`, an integer up to the size of a pointer, or a
/// pointer or reference to a sized type, which may be optional if it isn't null. A [`LocalWord`] of one of these is
/// [`InterruptSafe`] and [`Send`], unless it is a reference to what is not `Sync`; one of another type is neither.
///
/// # Safety
///
/// The CPU reads and writes a value, aligned as the type is, by one instruction, and the compiler uses that for a volatile
/// access (LLVM Language Reference, "Volatile Memory Accesses": those of a width that the target has are never split).
/// If a value leads to memory, `IS_POINTER` is true.
pub unsafe trait Word: Copy {
    /// Whether a value leads to memory, with accesses of which those of the word are kept in order.
    const IS_POINTER: bool;
}

impl<T: Word> LocalWord<T> {
    /// Creates a word with this value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Returns the value.
    #[inline]
    pub fn get(&self) -> T {
        Self::order();
        // Volatile, not atomic: an atomic store LLVM does split, if one half of the word was a float (its
        // `splitMergedValStore` spares only volatile ones).
        // SAFETY: (1) there is a value, aligned, from the beginning. (2) Nobody writes it at the same time: it is not
        // `Sync`, so only a handler comes in between, before or after the one instruction, as `Word` says.
        let value = unsafe { self.0.get().read_volatile() };
        Self::order();
        value
    }

    /// Sets the value.
    #[inline]
    pub fn set(&self, value: T) {
        Self::order();
        // SAFETY: as above; and no reference to the value is handed out.
        unsafe { self.0.get().write_volatile(value) }
        Self::order();
    }

    /// Keeps the compiler from moving accesses across. A handler runs on the same CPU, which sees its own in order.
    #[inline]
    fn order() {
        if T::IS_POINTER {
            compiler_fence(Ordering::SeqCst);
        }
    }
}

impl<T: Word + fmt::Debug> fmt::Debug for LocalWord<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalWord").field(&self.get()).finish()
    }
}

/// Makes words of types that are as wide as a register, or a part of one.
macro_rules! words {
    ($($word:ty)*) => {
        $(
            // SAFETY: an integer, or represented as one, no wider than a pointer.
            unsafe impl Word for $word {
                const IS_POINTER: bool = false;
            }
            // SAFETY: each access is one instruction, and any value that was set is one of the type.
            unsafe impl InterruptSafe for LocalWord<$word> {}
            // SAFETY: the value is `Send`.
            unsafe impl Send for LocalWord<$word> {}
        )*
    };
}

words!(bool char u8 i8 u16 i16 u32 i32 usize isize);
#[cfg(target_pointer_width = "64")]
words!(u64 i64);

/// Makes words of types that are a pointer in memory.
macro_rules! pointers {
    ($($pointer:ty)*) => {
        $(
            // SAFETY: represented as a pointer.
            unsafe impl<T> Word for $pointer {
                const IS_POINTER: bool = true;
            }
            // SAFETY: each access is one instruction. Code that uses what it points to is `unsafe`.
            unsafe impl<T: 'static> InterruptSafe for LocalWord<$pointer> {}
            // SAFETY: as above, on whichever CPU; an `AtomicPtr` is `Send` as well.
            unsafe impl<T> Send for LocalWord<$pointer> {}
        )*
    };
}

pointers!(*const T *mut T NonNull<T> Option<NonNull<T>>);

// SAFETY: represented as a pointer.
unsafe impl<T> Word for &'static T {
    const IS_POINTER: bool = true;
}
// SAFETY: represented as a pointer; null stands for `None`.
unsafe impl<T> Word for Option<&'static T> {
    const IS_POINTER: bool = true;
}
// SAFETY: each access is one instruction; and what it refers to was written before, and is of a type of which any code may
// use a `static`, a handler too.
unsafe impl<T: Sync + 'static> InterruptSafe for LocalWord<&'static T> {}
// SAFETY: as above.
unsafe impl<T: Sync + 'static> InterruptSafe for LocalWord<Option<&'static T>> {}
// SAFETY: the value is `Send`.
unsafe impl<T: Sync> Send for LocalWord<&'static T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for LocalWord<Option<&'static T>> {}
