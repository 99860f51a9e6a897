//! Blocks that were freed where nothing could be done about it, until something can.
//!
//! They are a list through the blocks themselves, as there may be any number of them: the only pointers
//! that the heap keeps in freed memory. The heap must not follow addresses that a use after free, or a
//! write past the end of the block before, has changed: each is sealed, with all that is recorded
//! beside it.

use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use muster_sync::{AtomicPtr, const_unless_modelled};

use super::cache::Block;
use super::class::{Class, UNIT};
use crate::lock::Lock;
use crate::seal::mix;

/// The list, the block that was freed last in front.
///
/// Any number of CPUs put blocks in; one at a time takes some out, so that the block in front, which it
/// reads, can't leave the list and come back before it is replaced.
pub(super) struct DeferredList {
    first: AtomicPtr<Deferred>,
    taking: Lock<()>,
}

/// The number of blocks that are taken out at once: a CPU has interrupts disabled until it has freed
/// them.
pub(super) const BATCH: usize = if cfg!(loom) { 2 } else { 16 };

/// Blocks that were taken out, or what was found instead of one.
pub(super) type Batch = heapless::Vec<Result<(Block, Kind), Written>, BATCH>;

/// The record in a dead block.
#[repr(C)]
struct Deferred {
    next: *mut Deferred,
    sealed: u64,
}

const _: () = assert!(size_of::<Deferred>() <= UNIT && align_of::<Deferred>() <= UNIT);

/// The kind of block that was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Small(Class),
    Large { frames: u32 },
}

/// A block that was written to after it was freed. The blocks that were freed before it are lost.
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
    const_unless_modelled! {
        pub(super) const fn new() -> Self {
            Self {
                first: AtomicPtr::new(ptr::null_mut()),
                taking: Lock::new(()),
            }
        }
    }

    /// Notes that a block is to be freed.
    ///
    /// # Safety
    ///
    /// The block is the heap's, of this kind, and nobody uses it.
    pub(super) unsafe fn push(&self, block: Block, kind: Kind) {
        let deferred = block.cast::<Deferred>().as_ptr();
        // Relaxed: the value is compared, and never followed.
        let mut next = self.first.load(Ordering::Relaxed);
        loop {
            // SAFETY: the block is dead, aligned to a unit, and at least as large as this.
            unsafe { deferred.write(Deferred::new(block, next, kind)) };
            // Release: the CPU that takes the block out finds what was written to it.
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

    /// Returns whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        // Relaxed: a block that arrives just now is for another time.
        self.first.load(Ordering::Relaxed).is_null()
    }

    /// Takes out the blocks that were put in last, up to a [`BATCH`]; none if another CPU, or the code
    /// that this interrupted, is taking some out.
    pub(super) fn take(&self, cpu: Option<usize>) -> Batch {
        let mut batch = Batch::new();
        if self.is_empty() {
            return batch;
        }
        let Some(_taking) = self.taking.try_lock(cpu) else {
            return batch;
        };
        while !batch.is_full()
            && let Some(taken) = self.pop()
        {
            // There is room for it.
            let _ = batch.push(taken);
        }
        batch
    }

    /// Takes the first block out. Nobody else does so at the same time.
    fn pop(&self) -> Option<Result<(Block, Kind), Written>> {
        loop {
            // Acquire: what `push` wrote to the block.
            let first = self.first.load(Ordering::Acquire);
            let start = NonNull::new(first)?;
            // SAFETY: `push` has put it there, and only this CPU can take it out: the list says so
            // itself, or the one before it, under seal.
            let deferred = unsafe { start.read() };
            let block = start.cast();
            let (next, taken) = match deferred.kind(block) {
                Some(kind) => (deferred.next, Ok((block, kind))),
                None => (ptr::null_mut(), Err(Written(block))),
            };
            // Relaxed: a block that comes in front at the same time is read with Acquire, above.
            let replaced =
                (self.first).compare_exchange(first, next, Ordering::Relaxed, Ordering::Relaxed);
            if replaced.is_ok() {
                return Some(taken);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
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
        for expected in expected.chunks(BATCH) {
            assert!(
                list.take(None)
                    .into_iter()
                    .eq(expected.iter().map(|&block| Ok(block)))
            );
        }
        assert!(list.take(None).is_empty());
    }

    #[test]
    fn one_at_a_time_takes_blocks_out_and_no_more_than_a_batch() {
        let mut memory: [Memory; 3 * BATCH] = [0; _];
        let list = DeferredList::new();
        for block in &mut memory {
            // SAFETY: memory of this test's alone.
            unsafe { list.push(NonNull::from(block).cast(), Kind::Large { frames: 1 }) };
        }
        let taking = list.taking.try_lock(Some(1));
        assert!(list.take(Some(0)).is_empty() && list.take(Some(1)).is_empty());
        drop(taking);
        assert_eq!(list.take(Some(0)).len(), BATCH);
        assert_eq!(list.take(None).len(), BATCH);
        assert_eq!(list.take(Some(1)).len(), BATCH);
        assert!(list.take(Some(0)).is_empty());
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
                    assert_eq!(
                        list.take(None),
                        [Ok((blocks[2], kind)), Err(Written(blocks[1]))],
                        "byte {byte}, {change:#x}"
                    );
                }
            }
        }
    }
}
