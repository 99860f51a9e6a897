//! CPU-local variables: the keys by which they are reached, and the types that they may have.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic;

use crossbeam_utils::CachePadded;

use crate::{Header, WriteOnce, template};

/// The largest alignment of a CPU-local variable, in bytes: that of a block, two cache lines.
pub const MAX_ALIGNMENT: usize = 128;

/// A variable of which each CPU has its own, and by which each reaches its own alone. Declared by
/// [`cpu_local!`](crate::cpu_local); used by [`Storage::with_own`](crate::Storage::with_own) and
/// [`Here::get`](crate::Here::get).
///
/// A reference to a value does not outlive the closure that has got it. In the closure, another CPU can be lent it only if
/// the value is `Sync`.
///
/// Two CPUs never share a cache line by their local variables.
pub struct LocalKey<T: 'static>(*const Initial<T>);

/// A variable of which each CPU has its own, and which all CPUs may read. Declared by
/// [`cpu_local!`](crate::cpu_local); used as a [`LocalKey`] is, and on other CPUs by
/// [`Directory::on`](crate::Directory::on).
///
/// The shared variables of one CPU lie side by side: one that its CPU writes often, and that others poll,
/// is best a [`CachePadded`].
pub struct SharedKey<T: 'static>(*const Initial<T>);

/// The initial value of a variable, in the template. Not to be reached: it is copied, byte for byte.
///
/// The names in a macro's items have no hygiene, so the types and values in the declaration can name it; but
/// there is nothing that they can do with it:
///
/// ```compile_fail,E0616
/// use muster_percpu::LocalWord;
/// muster_percpu::cpu_local! {
///     static TICKS: LocalWord<u64> = {
///         fn template() -> *mut LocalWord<u64> {
///             __MUSTER_TEMPLATE.0.get()
///         }
///         LocalWord::new(0)
///     };
/// }
/// ```
#[doc(hidden)]
#[repr(transparent)]
pub struct Initial<T>(
    // So that every variable is in the same kind of section, whether its type has a cell in it or not.
    UnsafeCell<T>,
);

// SAFETY: there is no way to the value.
unsafe impl<T> Sync for Initial<T> {}

impl<T> Initial<T> {
    /// Makes an initial value, for [`cpu_local!`](crate::cpu_local) alone.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
}

// `Send`, as for a value in a lock: all tasks that come by the CPU use it, one after the other, and go on to
// other CPUs with what they got from it.
impl<T: InterruptSafe + Send> LocalKey<T> {
    /// Makes a key, for [`cpu_local!`](crate::cpu_local) alone.
    ///
    /// # Safety
    ///
    /// `initial` is a static in the section `muster_percpu_local`, and its value is a constant's.
    #[doc(hidden)]
    pub const unsafe fn new(initial: *const Initial<T>) -> Self {
        const { assert_alignment::<T>() };
        Self(initial)
    }
}

impl<T: Sync> SharedKey<T> {
    /// Makes a key, for [`cpu_local!`](crate::cpu_local) alone.
    ///
    /// # Safety
    ///
    /// `initial` is a static in the section `muster_percpu_shared`, and its value is a constant's.
    #[doc(hidden)]
    pub const unsafe fn new(initial: *const Initial<T>) -> Self {
        const { assert_alignment::<T>() };
        Self(initial)
    }
}

/// Asserts that a variable of this type is aligned wherever a block is.
const fn assert_alignment<T>() {
    assert!(
        align_of::<T>() <= MAX_ALIGNMENT,
        "a CPU-local variable is aligned to 128 bytes at most: keep a reference to what needs more"
    );
}

// SAFETY: a key is an address. By it, a CPU reaches its own value, whichever CPU the key came from.
unsafe impl<T> Send for LocalKey<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for LocalKey<T> {}
// SAFETY: a key is an address. By it, a CPU reaches values that are `Sync`.
unsafe impl<T> Send for SharedKey<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedKey<T> {}

/// A [`LocalKey`] or a [`SharedKey`].
pub trait Key: sealed::Sealed {
    /// The type of the variable.
    type Value: 'static;

    /// The offset of the [base](Header#bases) of such variables from the address of a block, in bytes.
    const BASE: usize;

    /// Returns the base of the variables of this kind in the block with this header.
    #[doc(hidden)]
    fn base(header: &Header) -> *const u8;

    /// Returns the place of the initial value.
    #[doc(hidden)]
    fn initial(&self) -> *const Initial<Self::Value>;
}

impl<T> Key for LocalKey<T> {
    type Value = T;

    const BASE: usize = Header::LOCAL;

    #[inline]
    fn base(header: &Header) -> *const u8 {
        header.local()
    }

    #[inline]
    fn initial(&self) -> *const Initial<T> {
        self.0
    }
}

impl<T> Key for SharedKey<T> {
    type Value = T;

    const BASE: usize = Header::SHARED;

    #[inline]
    fn base(header: &Header) -> *const u8 {
        header.shared()
    }

    #[inline]
    fn initial(&self) -> *const Initial<T> {
        self.0
    }
}

mod sealed {
    pub trait Sealed {}

    impl<T> Sealed for super::LocalKey<T> {}
    impl<T> Sealed for super::SharedKey<T> {}
}

/// Returns the variable in the block with this base.
///
/// # Safety
///
/// The base is that of a block for variables of this kind, and not null. If the variable is local, the
/// block is this CPU's, and the code stays on the CPU for `'a`.
///
/// # Panics
///
/// On a host, if the variable is in another shared object than this library.
#[inline]
pub(crate) unsafe fn at<'a, K: Key>(variable: &K, base: *const u8) -> &'a K::Value {
    let initial = variable.initial().addr();
    // On bare metal there is one image.
    if cfg!(not(target_os = "none")) {
        assert!(
            template::is_gathered(initial),
            "a CPU-local variable of another shared object is used: link the program as one"
        );
    }
    // The base is the distance from the template to the copy, as a pointer into the copy. To add the address
    // of the initial value is an operand of an instruction where addresses are link-time constants.
    let copy = base.wrapping_add(initial);
    // SAFETY: (1) the initial value is in the section, as all keys are made by `cpu_local!`, and all of the
    // section was copied to this place of the block: so there is a value of this type. (2) It is aligned, as
    // the copy is for alignments up to `MAX_ALIGNMENT`, which that of a key's type does not exceed.
    // (3) It lives for good, as blocks do, and there is no mutable reference to it, as no function
    // returns one. (4) A local one is reached on this CPU alone, unless it is `Sync`, as a shared one is.
    unsafe { &*copy.cast() }
}

impl<T> Clone for LocalKey<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for LocalKey<T> {}

impl<T> Clone for SharedKey<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedKey<T> {}

impl<T> fmt::Debug for LocalKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for SharedKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKey").finish_non_exhaustive()
    }
}

/// A type that tolerates an interrupt at any instruction: a handler on the same CPU may use the same value while
/// the interrupted code is in the middle of using it.
///
/// The type of a local variable is one, as any code of the program may run in a handler, and a
/// non-maskable interrupt's can't be disabled. It need not be `Sync`: if it isn't, no other CPU uses the value. A
/// [`LocalWord`](crate::LocalWord) will do for a word, and a [`LocalCell`](crate::LocalCell) for any other type. A
/// [`Cell`](core::cell::Cell) will not, even for a byte: the compiler may access it in parts, or once for many.
///
/// An atomic will do, too, but for one mistake of LLVM's: it stores a word to it in halves, if one of them was a float's
/// bits. Other CPUs may see that as well; put such a word together so that the compiler does not see it, or in two.
///
/// # Safety
///
/// Safe code uses a value by a shared reference, and is interrupted at any instruction; a handler uses the same
/// value to its end; and then the interrupted code goes on. Whatever both do, neither finds a value half
/// changed, nor has it a reference to memory that the other one changes.
///
/// A struct whose fields all have such types is such a type, unless its own `unsafe` code relies on more.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be a CPU-local variable: a handler could find it half changed",
    label = "is not `InterruptSafe`",
    note = "use an atomic, or a `muster_percpu::LocalWord` or `LocalCell` around it"
)]
pub unsafe trait InterruptSafe: 'static {}

/// Implements [`InterruptSafe`] for atomics.
macro_rules! atomics {
    ($($width:literal: $($atomic:ident)*;)*) => {
        $($(
            #[cfg(target_has_atomic = $width)]
            // SAFETY: two CPUs may use it at once, so a handler may, too.
            unsafe impl InterruptSafe for atomic::$atomic {}
        )*)*
    };
}

atomics! {
    "8": AtomicBool AtomicU8 AtomicI8;
    "16": AtomicU16 AtomicI16;
    "32": AtomicU32 AtomicI32;
    "64": AtomicU64 AtomicI64;
    "ptr": AtomicUsize AtomicIsize;
}

#[cfg(target_has_atomic = "ptr")]
// SAFETY: as above. Code that uses what it points to is `unsafe`.
unsafe impl<T: 'static> InterruptSafe for atomic::AtomicPtr<T> {}
// SAFETY: two CPUs may use it at once, and neither waits, so a handler may, too.
unsafe impl<T: Send + Sync + 'static> InterruptSafe for WriteOnce<T> {}
// SAFETY: it does no more than the value in it.
unsafe impl<T: InterruptSafe> InterruptSafe for CachePadded<T> {}
// SAFETY: as above; each is a value of its own.
unsafe impl<T: InterruptSafe, const N: usize> InterruptSafe for [T; N] {}
