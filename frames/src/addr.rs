//! Physical addresses.

use core::fmt;
use core::ops::{Add, Sub};

/// A physical address: that of a byte, or one past the last.
///
/// It says which addresses a number is one of, and nothing more: neither that it lies below
/// [`PHYSICAL_LIMIT`](crate::PHYSICAL_LIMIT), as those of a [`PhysRange`](crate::PhysRange) do, nor that there is
/// memory. So what a loader or a device reports is one before it is checked.
///
/// ```
/// use muster_frames::PhysAddr;
///
/// let start = PhysAddr::new(0x1000);
/// assert_eq!(start + 0x800 - start, 0x800);
/// assert_eq!(start.to_string(), "0x1000");
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// Takes a number for a physical address.
    #[inline]
    pub const fn new(addr: u64) -> Self {
        Self(addr)
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

    /// Returns whether it is a multiple of `align` bytes.
    #[inline]
    pub const fn is_multiple_of(self, align: u64) -> bool {
        self.0.is_multiple_of(align)
    }
}

impl Add<u64> for PhysAddr {
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

impl Sub for PhysAddr {
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

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::LowerHex for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}
