//! Misuses that are found when a block comes back.

use crate::magazines::cache::Block;
use crate::magazines::class::Class;
use crate::magazines::slab::Wrong;

/// A block that wasn't what it was freed as, or isn't any more.
#[derive(Clone, Copy)]
pub(super) enum Misuse {
    Slab {
        block: Block,
        class: Class,
        wrong: Wrong,
    },
    Written(Block),
}

impl Misuse {
    #[cold]
    #[track_caller]
    fn report(self) -> ! {
        match self {
            Self::Slab {
                block,
                class,
                wrong,
            } => {
                let size = class.size();
                match wrong {
                    Wrong::Foreign => panic!(
                        "{block:p} was freed as a block of up to {size} bytes, but no such block is there"
                    ),
                    Wrong::OfClass(found) => panic!(
                        "{block:p} was freed as a block of up to {size} bytes, but no such block is there: \
                         those have up to {}",
                        found.size()
                    ),
                    Wrong::Free => {
                        panic!("{block:p}, a block of up to {size} bytes, was freed twice")
                    }
                }
            }
            Self::Written(block) => panic!("{block:p} was written to after it was freed"),
        }
    }
}

/// Ends an operation that may have found a misuse. Outside of all locks: what runs after a panic may
/// use the heap.
#[inline]
#[track_caller]
pub(super) fn settle(freed: Result<(), Misuse>) {
    if let Err(misuse) = freed {
        misuse.report();
    }
}
