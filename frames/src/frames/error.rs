//! The reasons why the frame allocator refuses something.

use core::fmt;

use crate::owner::{Owner, SoleOwner};
use crate::range::{Frame, PhysRange};

/// The reason why a frame allocator could not be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramesError {
    /// The storage for the records is too small.
    StorageTooSmall {
        /// Records needed.
        needed: usize,
        /// Records there is room for.
        given: usize,
    },
    /// The heap has no memory for the list of the ranges.
    OutOfMemory {
        /// Bytes that it takes.
        bytes: usize,
    },
    /// The heap has no memory for the caches.
    NoCaches {
        /// The number of CPUs.
        cpus: usize,
        /// Bytes that they take.
        bytes: usize,
    },
    /// Two ranges overlap.
    Overlap {
        /// The one that starts first.
        first: PhysRange,
        /// The one that starts inside it.
        second: PhysRange,
    },
}

impl fmt::Display for FramesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StorageTooSmall { needed, given } => write!(
                f,
                "the frame table needs room for {needed} records but was given room for {given}"
            ),
            Self::OutOfMemory { bytes } => write!(
                f,
                "the list of the ranges of memory takes {bytes} bytes, which the heap does not have: \
                 give it a larger boot arena"
            ),
            Self::NoCaches { cpus, bytes } => write!(
                f,
                "the frame caches of {cpus} CPUs take {bytes} bytes, which the heap does not have: give \
                 it a larger boot arena, or have fewer"
            ),
            Self::Overlap { first, second } => {
                write!(
                    f,
                    "the frame allocator was given {first} and {second}, which overlap"
                )
            }
        }
    }
}

impl core::error::Error for FramesError {}

/// The reason why a frame could not be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError<O = SoleOwner> {
    /// The allocator does not manage the frame, or has not adopted it yet.
    Foreign {
        /// The frame.
        frame: Frame,
    },
    /// The frame is free already.
    AlreadyFree {
        /// The frame.
        frame: Frame,
    },
    /// The frame is not the one's who frees it.
    WrongOwner {
        /// The frame.
        frame: Frame,
        /// The owner that frees it.
        claimed: O,
        /// The owner that is recorded.
        recorded: O,
    },
}

impl<O: Owner> fmt::Display for FreeError<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { frame } => {
                write!(
                    f,
                    "{frame} was freed but never came from the frame allocator"
                )
            }
            Self::AlreadyFree { frame } => write!(f, "{frame} was freed twice"),
            Self::WrongOwner {
                frame,
                claimed,
                recorded,
            } => {
                write!(
                    f,
                    "{frame} was freed by {claimed} but belongs to {recorded}"
                )
            }
        }
    }
}

impl<O: Owner> core::error::Error for FreeError<O> {}

/// A range could not be adopted: it is none of those set aside for it, or was adopted already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptError {
    /// The range.
    pub range: PhysRange,
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cannot be adopted: it was not set aside when the frame allocator was made, or has \
             been adopted already",
            self.range
        )
    }
}

impl core::error::Error for AdoptError {}
