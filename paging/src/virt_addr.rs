//! Virtual addresses.

use core::fmt;
use core::ops::{Add, AddAssign, Sub};

/// A virtual address.
///
/// It says which addresses a number is one of, and nothing more: neither that something is mapped there, nor
/// that the CPU accepts it, which depends on how many levels of tables it walks
/// ([`Levels::is_canonical`](crate::Levels::is_canonical)).
///
/// ```
/// use muster_paging::VirtAddr;
///
/// let start = VirtAddr::new(0xffff_ff10_0000_0000);
/// assert_eq!(start + 0x800 - start, 0x800);
/// assert_eq!(start.to_string(), "0xffffff1000000000");
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct VirtAddr(u64);

impl VirtAddr {
    /// Takes a number for a virtual address.
    #[inline]
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// Returns the address that a pointer has, and [exposes](core::ptr#exposed-provenance) its provenance.
    #[inline]
    pub fn from_ptr<T: ?Sized>(pointer: *const T) -> Self {
        Self(pointer.expose_provenance() as u64)
    }

    /// Returns a pointer to it, whose provenance is one that was
    /// [exposed](core::ptr::with_exposed_provenance_mut), as [`Self::from_ptr`] does.
    #[inline]
    pub fn as_mut_ptr<T>(self) -> *mut T {
        core::ptr::with_exposed_provenance_mut(self.0 as usize)
    }

    /// Returns the number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the address this many bytes above, or `None` if there is none.
    #[inline]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(addr) => Some(Self(addr)),
            None => None,
        }
    }

    /// Returns the bytes from `other` to this one, or `None` if `other` is above.
    #[inline]
    pub const fn checked_sub(self, other: Self) -> Option<u64> {
        self.0.checked_sub(other.0)
    }

    /// Returns whether it is a multiple of `align` bytes.
    #[inline]
    pub const fn is_multiple_of(self, align: u64) -> bool {
        self.0.is_multiple_of(align)
    }

    /// Returns the highest multiple of `align` bytes, a power of two, that is not above it.
    #[inline]
    pub(crate) const fn align_down(self, align: u64) -> Self {
        Self(self.0 & !(align - 1))
    }
}

impl Add<u64> for VirtAddr {
    type Output = Self;

    /// Returns the address this many bytes above.
    ///
    /// # Panics
    ///
    /// As the addition of numbers does, if there is none.
    #[inline]
    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl AddAssign<u64> for VirtAddr {
    /// Goes this many bytes up.
    ///
    /// # Panics
    ///
    /// As the addition of numbers does, if there is no such address.
    #[inline]
    fn add_assign(&mut self, bytes: u64) {
        self.0 += bytes;
    }
}

impl Sub for VirtAddr {
    type Output = u64;

    /// Returns the bytes from `other` to this one.
    ///
    /// # Panics
    ///
    /// As the subtraction of numbers does, if `other` is above.
    #[inline]
    fn sub(self, other: Self) -> u64 {
        self.0 - other.0
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::LowerHex for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}
