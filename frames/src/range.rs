//! Ranges of physical memory, and the frames they consist of.

use core::fmt;
use core::num::NonZeroU64;

use crate::PhysAddr;

/// Bytes in a frame: the smallest unit that x86-64 paging maps (Intel SDM vol. 3, 5.5 "4-Level
/// Paging and 5-Level Paging").
pub const FRAME_SIZE: u64 = 4096;

/// One past the highest physical address that x86-64 can have: MAXPHYADDR is at most 52 bits
/// (Intel SDM vol. 3, 5.1.4 "Enumeration of Paging Features by CPUID").
pub const PHYSICAL_LIMIT: PhysAddr = PhysAddr::new(1 << 52);

/// A non-empty range of physical bytes, its end excluded, that ends at or below
/// [`PHYSICAL_LIMIT`].
///
/// An empty, inverted or overflowing range cannot be represented, so code that holds one never has
/// to check. It says nothing about what lies there, or whether anything does.
///
/// ```
/// use muster_frames::{PhysAddr, PhysRange};
///
/// let range = PhysRange::new(PhysAddr::new(0x1800), 0x2000).unwrap();
/// assert_eq!(range.end(), PhysAddr::new(0x3800));
/// assert_eq!(range.whole_frames(), PhysRange::new(PhysAddr::new(0x2000), 0x1000));
/// assert_eq!(PhysRange::new(PhysAddr::new(u64::MAX), 2), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysRange {
    start: PhysAddr,
    end: PhysAddr,
}

/// The remainder of a range after [`PhysRange::cut`]: the parts before and after the hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The part below the hole, if any.
    pub before: Option<PhysRange>,
    /// The part above the hole, if any.
    pub after: Option<PhysRange>,
}

impl PhysRange {
    /// Returns the `length` bytes from `start`, or `None` if that is empty, overflows, or reaches
    /// beyond [`PHYSICAL_LIMIT`].
    pub const fn new(start: PhysAddr, length: u64) -> Option<Self> {
        match start.checked_add(length) {
            Some(end) => Self::from_bounds(start, end),
            None => None,
        }
    }

    /// Returns the bytes from `start` up to, not including, `end`, or `None` if that is empty,
    /// inverted, or reaches beyond [`PHYSICAL_LIMIT`].
    pub const fn from_bounds(start: PhysAddr, end: PhysAddr) -> Option<Self> {
        if start.get() < end.get() && end.get() <= PHYSICAL_LIMIT.get() {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// Returns the first byte's address.
    pub const fn start(self) -> PhysAddr {
        self.start
    }

    /// Returns the address one past the last byte.
    pub const fn end(self) -> PhysAddr {
        self.end
    }

    /// Returns the length in bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        self.end.get() - self.start.get()
    }

    /// Returns whether the byte at `addr` lies in the range.
    pub const fn contains(self, addr: PhysAddr) -> bool {
        self.start.get() <= addr.get() && addr.get() < self.end.get()
    }

    /// Returns whether every byte of `other` lies in the range.
    pub const fn encloses(self, other: Self) -> bool {
        self.start.get() <= other.start.get() && other.end.get() <= self.end.get()
    }

    /// Returns whether the two have a byte in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.get() < other.end.get() && other.start.get() < self.end.get()
    }

    /// Returns the bytes in both ranges.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::from_bounds(self.start.max(other.start), self.end.min(other.end))
    }

    /// Returns the range without the bytes of `hole`.
    ///
    /// The parts and the intersection with `hole` together are the range again, to the byte.
    ///
    /// ```
    /// use muster_frames::{PhysAddr, PhysRange};
    ///
    /// let ram = PhysRange::from_bounds(PhysAddr::new(0x1000), PhysAddr::new(0x9000)).unwrap();
    /// let image = PhysRange::from_bounds(PhysAddr::new(0x3000), PhysAddr::new(0x4000)).unwrap();
    /// let left = ram.cut(image);
    /// assert_eq!(left.before, PhysRange::from_bounds(PhysAddr::new(0x1000), PhysAddr::new(0x3000)));
    /// assert_eq!(left.after, PhysRange::from_bounds(PhysAddr::new(0x4000), PhysAddr::new(0x9000)));
    /// ```
    pub fn cut(self, hole: Self) -> Cut {
        Cut {
            before: Self::from_bounds(self.start, self.end.min(hole.start)),
            after: Self::from_bounds(self.start.max(hole.end), self.end),
        }
    }

    /// Returns the range shrunk inwards to frame borders: the frames that lie wholly in it, or `None`
    /// if there are none.
    pub const fn whole_frames(self) -> Option<Self> {
        Self::from_bounds(
            PhysAddr::new(self.start.get().next_multiple_of(FRAME_SIZE)),
            PhysAddr::new(self.end.get() / FRAME_SIZE * FRAME_SIZE),
        )
    }

    /// Returns the range grown outwards to frame borders: the frames that have a byte in it.
    pub const fn covering_frames(self) -> Self {
        // The limit is a multiple of the frame size, so growing cannot pass it.
        Self {
            start: PhysAddr::new(self.start.get() / FRAME_SIZE * FRAME_SIZE),
            end: PhysAddr::new(self.end.get().next_multiple_of(FRAME_SIZE)),
        }
    }

    /// Returns the frames that lie wholly in the range, lowest first, without frame 0.
    ///
    /// ```
    /// use muster_frames::{PhysAddr, PhysRange};
    ///
    /// let range = PhysRange::from_bounds(PhysAddr::new(0), PhysAddr::new(0x2fff)).unwrap();
    /// let starts: Vec<PhysAddr> = range.frames().map(|frame| frame.start()).collect();
    /// assert_eq!(starts, [PhysAddr::new(0x1000)]);
    /// ```
    pub fn frames(self) -> impl Iterator<Item = Frame> + Clone {
        let first = self.start.get().div_ceil(FRAME_SIZE);
        (first..self.end.get() / FRAME_SIZE).filter_map(Frame::from_number)
    }
}

impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A frame of physical memory: [`FRAME_SIZE`] bytes that start at a multiple of [`FRAME_SIZE`],
/// below [`PHYSICAL_LIMIT`].
///
/// Frame 0 cannot be represented. A null physical address therefore always means "none", and
/// `Option<Frame>` is as small as `Frame`. A `Frame` is a name, not a right: it does not prove that
/// there is memory, nor that it is its holder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(NonZeroU64);

const _: () = assert!(size_of::<Option<Frame>>() == 8);

impl Frame {
    /// Returns the frame with this number (its start divided by [`FRAME_SIZE`]), or `None` for frame 0
    /// and for numbers beyond [`PHYSICAL_LIMIT`].
    pub const fn from_number(number: u64) -> Option<Self> {
        if number >= PHYSICAL_LIMIT.get() / FRAME_SIZE {
            return None;
        }
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Returns the frame that starts at `addr`, or `None` if `addr` is no frame's start, is 0, or lies
    /// beyond [`PHYSICAL_LIMIT`].
    pub const fn from_start(addr: PhysAddr) -> Option<Self> {
        if addr.is_multiple_of(FRAME_SIZE) {
            Self::containing(addr)
        } else {
            None
        }
    }

    /// Returns the frame that the byte at `addr` lies in, or `None` if that is frame 0 or lies beyond
    /// [`PHYSICAL_LIMIT`].
    pub const fn containing(addr: PhysAddr) -> Option<Self> {
        Self::from_number(addr.get() / FRAME_SIZE)
    }

    /// Returns the physical address of the frame's first byte; never 0.
    pub const fn start(self) -> PhysAddr {
        PhysAddr::new(self.number() * FRAME_SIZE)
    }

    /// Returns the frame's number: its start divided by [`FRAME_SIZE`]; never 0.
    pub const fn number(self) -> u64 {
        self.0.get()
    }

    /// Returns the frame's bytes.
    pub const fn range(self) -> PhysRange {
        PhysRange {
            start: self.start(),
            end: PhysAddr::new(self.start().get() + FRAME_SIZE),
        }
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}", self.start())
    }
}
