//! Blocks that were freed where nothing could be done about it, until something can.
//!
//! They are a list through the blocks themselves, as there may be any number of them: the only
//! pointers that the heap keeps in freed memory. Who still writes there, or past the end of the block
//! before, must not have the heap follow them: each is sealed, with all that is said beside it.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use super::cache::Block;
use super::class::{Class, UNIT};
use crate::seal::mix;

/// The list, the block that was freed last in front.
pub(super) struct DeferredList {
    first: AtomicPtr<Deferred>,
}

/// What stands in a dead block.
#[repr(C)]
struct Deferred {
    next: *mut Deferred,
    sealed: u64,
}

const _: () = assert!(size_of::<Deferred>() <= UNIT && align_of::<Deferred>() <= UNIT);

/// What was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Small(Class),
    Large { frames: u32 },
}

/// A block that was written to after it was freed. What was freed before it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written(pub(super) Block);

/// Bits of a word that say what a block is; the others are a seal.
const KIND_BITS: u32 = 33;
const LARGE: u64 = 1 << 32;

impl Kind {
    const fn pack(self) -> u64 {
        match self {
            Self::Small(class) => class.index() as u64,
            Self::Large { frames } => LARGE | frames as u64,
        }
    }

    const fn unpack(word: u64) -> Option<Self> {
        // Exact: what is left has 32 bits.
        let number = (word & (LARGE - 1)) as u32;
        if word & LARGE != 0 {
            return Some(Self::Large { frames: number });
        }
        match Class::from_index(number as usize) {
            Some(class) => Some(Self::Small(class)),
            None => None,
        }
    }
}

impl Deferred {
    fn new(block: Block, next: *mut Self, kind: Kind) -> Self {
        let kind = kind.pack();
        let words = [next.addr(), block.addr().get()];
        let seal = words
            .iter()
            .fold(mix(0, kind), |seal, &word| mix(seal, word as u64));
        Self {
            next,
            sealed: seal >> KIND_BITS << KIND_BITS | kind,
        }
    }

    fn kind(&self, block: Block) -> Option<Kind> {
        let kind = Kind::unpack(self.sealed & ((1 << KIND_BITS) - 1))?;
        (Self::new(block, self.next, kind).sealed == self.sealed).then_some(kind)
    }
}

impl DeferredList {
    pub(super) const fn new() -> Self {
        Self {
            first: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Notes that a block is to be freed.
    ///
    /// # Safety
    ///
    /// The block is the heap's, of this kind, and nobody uses it.
    pub(super) unsafe fn push(&self, block: Block, kind: Kind) {
        let deferred = block.cast::<Deferred>().as_ptr();
        let mut next = self.first.load(Ordering::Relaxed);
        loop {
            // SAFETY: the block is dead, aligned to a unit, and at least as large as this.
            unsafe { deferred.write(Deferred::new(block, next, kind)) };
            match self.first.compare_exchange_weak(
                next,
                deferred,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => next = now,
            }
        }
    }

    /// Takes all, so that none can leave the list and come back while somebody looks at it.
    pub(super) fn take_all(&self) -> impl Iterator<Item = Result<(Block, Kind), Written>> {
        let mut list = if self.first.load(Ordering::Relaxed).is_null() {
            ptr::null_mut()
        } else {
            self.first.swap(ptr::null_mut(), Ordering::Acquire)
        };
        core::iter::from_fn(move || {
            let block = NonNull::new(list)?;
            // SAFETY: `push` has put it there, and this list is ours: it says so itself, or the one
            // before it, under seal.
            let deferred = unsafe { block.read() };
            let block = block.cast();
            match deferred.kind(block) {
                Some(kind) => {
                    list = deferred.next;
                    Some(Ok((block, kind)))
                }
                None => {
                    list = ptr::null_mut();
                    Some(Err(Written(block)))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// A block of a unit.
    type Memory = u128;

    const _: () = assert!(size_of::<Memory>() == UNIT && align_of::<Memory>() == UNIT);

    fn kinds() -> impl Iterator<Item = Kind> {
        let large = [1, 3, u32::MAX].map(|frames| Kind::Large { frames });
        Class::all().map(Kind::Small).chain(large)
    }

    #[test]
    fn what_is_freed_last_comes_first_and_is_what_it_was() {
        let mut memory: [Memory; 64] = [0; 64];
        let list = DeferredList::new();
        let mut expected: Vec<_> = (memory.iter_mut().map(NonNull::from).map(NonNull::cast))
            .zip(kinds())
            .collect();
        for &(block, kind) in &expected {
            // SAFETY: memory of this test's alone.
            unsafe { list.push(block, kind) };
        }
        expected.reverse();
        assert!(list.take_all().eq(expected.into_iter().map(Ok)));
        assert_eq!(list.take_all().count(), 0);
    }

    #[test]
    fn a_change_of_any_byte_is_found_and_followed_nowhere() {
        for kind in kinds() {
            for byte in 0..UNIT {
                for change in 1..=u8::MAX {
                    let mut memory: [Memory; 3] = [0; 3];
                    let list = DeferredList::new();
                    let blocks = memory
                        .each_mut()
                        .map(|block| NonNull::from(block).cast::<u8>());
                    for block in blocks {
                        // SAFETY: memory of this test's alone.
                        unsafe { list.push(block, kind) };
                    }
                    // SAFETY: as above: somebody writes to a dead block.
                    unsafe { *blocks[1].add(byte).as_ptr() ^= change };
                    let found: Vec<_> = list.take_all().collect();
                    assert_eq!(
                        found,
                        [Ok((blocks[2], kind)), Err(Written(blocks[1]))],
                        "byte {byte}, {change:#x}"
                    );
                }
            }
        }
    }
}
