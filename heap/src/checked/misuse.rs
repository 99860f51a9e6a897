//! Misuses of the heap: the violation, the block, and its origin.

use core::alloc::Layout;
use core::fmt;

/// The number of return addresses that are kept of an allocation, and of a free.
pub const CALLERS: usize = 4;

/// The return addresses on the way to an allocation or a free, the innermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Callers(pub(super) [usize; CALLERS]);

impl Callers {
    /// Nothing is known.
    pub const NONE: Self = Self([0; CALLERS]);

    /// Keeps the first [`CALLERS`] of these addresses.
    pub fn new(addresses: impl IntoIterator<Item = usize>) -> Self {
        let mut callers = Self::NONE;
        for (place, address) in callers.0.iter_mut().zip(addresses) {
            *place = address;
        }
        callers
    }

    /// Iterates over the addresses that are known.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.into_iter().take_while(|&address| address != 0)
    }
}

/// The origin of an operation on a block: the CPU and its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The CPU, by [`CheckPlatform::cpu`](super::CheckPlatform::cpu).
    pub cpu: Option<usize>,
    /// The return addresses.
    pub callers: Callers,
}

impl fmt::Display for Origin {
    /// Writes the CPU, in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cpu {
            Some(cpu) => write!(f, "CPU {cpu}"),
            None => f.write_str("a CPU without a number"),
        }
    }
}

/// The rule that was violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// It was freed, and freed again by [`Misuse::found`].
    FreedTwice,
    /// It was freed as a block of this layout, which it isn't.
    FreedAs(Layout),
    /// A block of this layout was to be freed where no block begins.
    NoBlock(Layout),
    /// A byte past its end was written.
    PastEnd {
        /// The first such byte, counted from the block's start.
        byte: usize,
        /// The byte that is there.
        found: u8,
    },
    /// A byte before its start was written.
    BeforeStart {
        /// The last such byte: 1 is the one just before the start.
        before: usize,
        /// The byte that is there.
        found: u8,
    },
    /// The record in front of the block was overwritten: nothing more is known of the block.
    Record,
    /// It was written after it was freed.
    AfterFree {
        /// The first such byte, counted from the block's start.
        byte: usize,
        /// The byte that is there.
        found: u8,
        /// The number of bytes of the block that are not as they were left.
        count: usize,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FreedTwice => f.write_str("was freed twice"),
            Self::FreedAs(layout) => write!(
                f,
                "was freed as one of {} bytes, aligned to {}",
                layout.size(),
                layout.align()
            ),
            Self::NoBlock(layout) => write!(
                f,
                "was freed as a block of {} bytes, and is none",
                layout.size()
            ),
            Self::PastEnd { byte, found } => {
                write!(f, "was written past its end: byte {byte} is {found:#04x}")
            }
            Self::BeforeStart { before, found } => write!(
                f,
                "was written before its start: byte -{before} is {found:#04x}"
            ),
            Self::Record => f.write_str("was written before its start, over what is noted there"),
            Self::AfterFree { byte, found, count } => write!(
                f,
                "was written after its free: byte {byte} is {found:#04x}, {count} in all"
            ),
        }
    }
}

/// A misuse of the heap, with all that is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misuse {
    /// The violation.
    pub violation: Violation,
    /// The address of the block.
    pub block: usize,
    /// The layout it was allocated with, if that is known.
    pub layout: Option<Layout>,
    /// The origin of its allocation, if that is known.
    pub allocated: Option<Origin>,
    /// The origin of its free, if it was freed before this was found.
    pub freed: Option<Origin>,
    /// The origin of the operation that found it: of a wrong free, the free itself.
    pub found: Origin,
}

impl Misuse {
    /// Describes the block in words.
    pub fn block(&self) -> impl fmt::Display {
        Subject {
            block: self.block,
            layout: self.layout,
        }
    }
}

struct Subject {
    block: usize,
    layout: Option<Layout>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layout {
            Some(layout) => write!(f, "a block of {} bytes at {:#x}", layout.size(), self.block),
            None => write!(f, "what is at {:#x}", self.block),
        }
    }
}

impl fmt::Display for Misuse {
    /// Writes all of it in one line, except the return addresses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.block(), self.violation)?;
        if let Some(allocated) = self.allocated {
            write!(f, "; allocated on {allocated}")?;
        }
        if let Some(freed) = self.freed {
            write!(f, "; freed on {freed}")?;
        }
        write!(f, "; found on {}", self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const ORIGIN: Origin = Origin {
        cpu: Some(3),
        callers: Callers::NONE,
    };

    #[test]
    fn callers_are_the_innermost_ones() {
        let callers = Callers::new(1..100);
        assert!(callers.iter().eq(1..=CALLERS));
        assert!(Callers::new([7]).iter().eq([7]));
        assert_eq!(Callers::NONE.iter().count(), 0);
    }

    #[test]
    fn a_misuse_is_a_sentence() {
        let misuse = Misuse {
            violation: Violation::PastEnd {
                byte: 100,
                found: 7,
            },
            block: 0x1230,
            layout: Layout::from_size_align(100, 8).ok(),
            allocated: Some(Origin {
                cpu: Some(1),
                ..ORIGIN
            }),
            freed: Some(Origin {
                cpu: None,
                ..ORIGIN
            }),
            found: ORIGIN,
        };
        assert_eq!(
            misuse.to_string(),
            "a block of 100 bytes at 0x1230 was written past its end: byte 100 is 0x07; \
             allocated on CPU 1; freed on a CPU without a number; found on CPU 3"
        );
        let misuse = Misuse {
            violation: Violation::NoBlock(Layout::new::<u64>()),
            layout: None,
            allocated: None,
            freed: None,
            ..misuse
        };
        assert_eq!(
            misuse.to_string(),
            "what is at 0x1230 was freed as a block of 8 bytes, and is none; found on CPU 3"
        );
    }
}
