//! Requests for frames that follow each other.

use core::fmt;

use crate::PhysAddr;
use crate::range::FRAME_SIZE;

/// The order of as many frames as 64 bits can say in bytes.
const MAX_ORDER: u8 = (u64::BITS - 1 - FRAME_SIZE.ilog2()) as u8;

/// An alignment of frames: to a power of two of them. A type of its own, as a number does not say whether it
/// counts frames or bytes.
///
/// ```
/// use muster_frames::FrameAlign;
///
/// assert_eq!(FrameAlign::from_bytes(0x20_0000), Some(FrameAlign::MIB_2));
/// assert_eq!(FrameAlign::from_frames(512), Some(FrameAlign::MIB_2));
/// assert_eq!(FrameAlign::from_frames(3), None);
/// // What is aligned to less than a frame is aligned to one, as every frame is.
/// assert_eq!(FrameAlign::from_bytes(16), Some(FrameAlign::FRAME));
/// assert_eq!(FrameAlign::MIB_2.to_string(), "0x200000 bytes");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameAlign {
    /// The exponent of two.
    order: u8,
}

impl FrameAlign {
    /// To a frame, as every frame is.
    pub const FRAME: Self = Self { order: 0 };
    /// To 2 MiB, as a page of that size must be (Intel SDM vol. 3, 5.5 "4-Level Paging and 5-Level Paging").
    pub const MIB_2: Self = Self { order: 9 };
    /// To 1 GiB, as a page of that size must be (the same).
    pub const GIB_1: Self = Self { order: 18 };

    /// Returns the alignment to this many frames; `None` if that is not a power of two, or more bytes than 64 bits can say.
    #[inline]
    pub const fn from_frames(frames: u64) -> Option<Self> {
        let order = frames.trailing_zeros() as u8;
        if !frames.is_power_of_two() || order > MAX_ORDER {
            return None;
        }
        Some(Self { order })
    }

    /// Returns the alignment to this many bytes, but to a frame at least; `None` if that is not a power of two.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        if !bytes.is_power_of_two() {
            return None;
        }
        let order = bytes.ilog2().saturating_sub(FRAME_SIZE.ilog2());
        Some(Self { order: order as u8 })
    }

    #[inline]
    pub(crate) const fn order(self) -> u32 {
        self.order as u32
    }

    /// Returns the number of frames; a power of two.
    #[inline]
    pub const fn frames(self) -> u64 {
        1 << self.order
    }

    /// Returns the number of bytes; a power of two.
    pub const fn bytes(self) -> u64 {
        self.frames() * FRAME_SIZE
    }
}

impl fmt::Display for FrameAlign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes", self.bytes())
    }
}

/// Above all frames.
const NO_LIMIT: PhysAddr = PhysAddr::new(u64::MAX);
/// No frames lie on both sides of a multiple of it, as the next one is more than 64 bits can say.
const NO_BOUNDARY: FrameAlign = FrameAlign { order: MAX_ORDER };

/// A request for frames that follow each other: how many, and what else is asked of them.
///
/// ```
/// use muster_frames::{FrameAlign, PhysAddr, RunRequest};
///
/// // The buffer of a device that has 32 bits for an address, and can't count across 64 KiB.
/// let buffer = RunRequest::new(16)
///     .below(PhysAddr::new(1 << 32))
///     .within(FrameAlign::from_bytes(0x1_0000).unwrap());
/// assert_eq!(buffer.to_string(), "16 contiguous frames below 0x100000000, within 0x10000 bytes");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a request allocates nothing by itself"]
pub struct RunRequest {
    pub(crate) count: usize,
    pub(crate) align: FrameAlign,
    /// [`NO_LIMIT`], or an address.
    pub(crate) below: PhysAddr,
    /// [`NO_BOUNDARY`], or an alignment.
    pub(crate) boundary: FrameAlign,
}

impl RunRequest {
    /// Asks for `frames` frames, wherever they are. None of them can't be had.
    pub const fn new(frames: usize) -> Self {
        Self {
            count: frames,
            align: FrameAlign::FRAME,
            below: NO_LIMIT,
            boundary: NO_BOUNDARY,
        }
    }

    /// Asks for an alignment of the first frame.
    pub const fn aligned(mut self, align: FrameAlign) -> Self {
        self.align = align;
        self
    }

    /// Asks for frames all of whose bytes lie below `limit`.
    pub const fn below(mut self, limit: PhysAddr) -> Self {
        self.below = limit;
        self
    }

    /// Asks for frames that all lie between the same two multiples of `boundary`. More frames than that can't be had.
    pub const fn within(mut self, boundary: FrameAlign) -> Self {
        self.boundary = boundary;
        self
    }

    /// Returns the number of frames.
    pub const fn frames(self) -> usize {
        self.count
    }

    /// Returns whether any single frame will do.
    #[inline]
    pub(crate) const fn is_for_any_frame(&self) -> bool {
        self.count == 1 && self.align.order == 0 && !self.is_limited()
    }

    /// Returns whether it asks for a place in memory, and not just for a number of frames and an alignment.
    #[inline]
    pub(crate) const fn is_limited(&self) -> bool {
        self.below.get() != NO_LIMIT.get() || self.boundary.order != NO_BOUNDARY.order
    }
}

impl fmt::Display for RunRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} contiguous frames", self.count)?;
        let mut separator = " ";
        if self.align != FrameAlign::FRAME {
            write!(f, "{separator}aligned to {}", self.align)?;
            separator = ", ";
        }
        if self.below != NO_LIMIT {
            write!(f, "{separator}below {}", self.below)?;
            separator = ", ";
        }
        if self.boundary != NO_BOUNDARY {
            write!(f, "{separator}within {}", self.boundary)?;
        }
        Ok(())
    }
}
