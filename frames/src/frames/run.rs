//! Frames that follow each other.

use core::fmt;

use crate::PhysAddr;
use crate::range::{FRAME_SIZE, Frame, PhysRange};

/// Some frames that follow each other: their name, as [`Frame`] is one's; the right to them is
/// [`OwnedRun`](crate::OwnedRun).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRun {
    range: PhysRange,
    first: Frame,
}

impl FrameRun {
    /// Returns the frames that `range` consists of, or `None` if it does not consist of whole frames,
    /// contains frame 0, or has more frames than a `usize` can count.
    pub fn from_range(range: PhysRange) -> Option<Self> {
        let first = Frame::from_start(range.start())?;
        usize::try_from(range.len() / FRAME_SIZE).ok()?;
        (range.whole_frames() == Some(range)).then_some(Self { range, first })
    }

    /// Returns `count` frames from this one on; `None` if there is no frame 0, or none at all, among them.
    #[inline]
    pub(crate) fn from_numbers(first: u64, count: u64) -> Option<Self> {
        let first = Frame::from_number(first)?;
        let range = PhysRange::new(first.start(), count * FRAME_SIZE)?;
        Some(Self { range, first })
    }

    /// Returns the first frame.
    pub const fn first(self) -> Frame {
        self.first
    }

    /// Returns the number of the last frame.
    pub(crate) const fn last_number(self) -> u64 {
        self.first.number() + self.count() as u64 - 1
    }

    /// Returns the physical address of the first byte; never 0.
    pub const fn start(self) -> PhysAddr {
        self.range.start()
    }

    /// Returns the number of frames; never 0.
    pub const fn count(self) -> usize {
        // It fits: see `from_range`. Runs that are handed out have a record in memory for each frame.
        (self.range.len() / FRAME_SIZE) as usize
    }

    /// Returns the frames' bytes.
    pub const fn range(self) -> PhysRange {
        self.range
    }

    /// Returns the frames, lowest first.
    pub fn frames(self) -> impl Iterator<Item = Frame> + Clone {
        self.range.frames()
    }
}

impl From<Frame> for FrameRun {
    fn from(frame: Frame) -> Self {
        Self {
            range: frame.range(),
            first: frame,
        }
    }
}

impl fmt::Display for FrameRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frames {}", self.range)
    }
}
