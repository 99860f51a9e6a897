//! Where a CPU's freed blocks wait before their memory is used again.

use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;
#[cfg(not(loom))]
use core::sync::atomic::{AtomicI64, AtomicU64};

use muster_sync::{AtomicPtr, AtomicUsize, atomics, const_unless_modelled};

type Block = NonNull<u8>;

/// The maximum number of blocks that wait. A model has fewer, lest it never ends.
const SLOTS: usize = if cfg!(loom) { 2 } else { 1024 };

/// The most bytes that wait in one quarantine, with what the checks add to them.
pub const MAX_QUARANTINED: usize = 1 << 20;

/// The blocks that one CPU freed last, in a ring.
///
/// A block gets in and out by one exchange of its slot, so it has one owner at any time, whichever code
/// pushes or takes: the CPU itself, handlers on top of it, and other CPUs that need memory. The
/// counters only say where to look first, and what to report: so all their accesses are `Relaxed`.
#[repr(align(128))]
pub struct Quarantine {
    slots: [AtomicPtr<u8>; SLOTS],
    /// The number of blocks that were ever pushed.
    next: AtomicUsize,
    /// No block waits that was pushed before this one, except some that were in between when a CPU
    /// searched: these go when their slot is used again.
    oldest: AtomicUsize,
    bytes: AtomicUsize,
    #[cfg(not(loom))]
    pub(super) tally: Tally,
}

/// The CPU's counters, for reports: so all of them are `Relaxed`.
#[cfg(not(loom))]
pub(super) struct Tally {
    pub(super) live_bytes: AtomicI64,
    pub(super) live_blocks: AtomicI64,
    /// Blocks that came out of the quarantine as they went in.
    pub(super) released: AtomicU64,
}

impl Quarantine {
    const_unless_modelled! {
        /// Creates an empty quarantine: all zeroes.
        pub const fn new() -> Self {
            Self {
                slots: atomics![AtomicPtr::new(ptr::null_mut()); SLOTS],
                next: AtomicUsize::new(0),
                oldest: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
                #[cfg(not(loom))]
                tally: Tally {
                    live_bytes: AtomicI64::new(0),
                    live_blocks: AtomicI64::new(0),
                    released: AtomicU64::new(0),
                },
            }
        }
    }

    /// Returns the bytes that wait, with what the checks add to them. Exact while nobody frees.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Inserts a block that takes this many bytes, and returns the one that must go for it, if any.
    pub(super) fn push(&self, block: Block, bytes: usize) -> Option<Block> {
        // Before the block can be taken.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.exchange(number, block.as_ptr())
    }

    /// Counts a removed block that took this many bytes.
    pub(super) fn forget(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes one of the oldest blocks if there are too many bytes.
    pub(super) fn pop_surplus(&self) -> Option<Block> {
        while self.bytes() > MAX_QUARANTINED {
            let oldest = self.oldest.load(Ordering::Relaxed);
            let next = self.next.load(Ordering::Relaxed);
            let waiting = next.wrapping_sub(oldest).min(SLOTS);
            if waiting == 0 {
                // One came into its slot after that was passed over.
                return self.take_all().next();
            }
            let number = next.wrapping_sub(waiting);
            let moved = self.oldest.compare_exchange(
                oldest,
                number.wrapping_add(1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if moved.is_ok()
                && let Some(block) = self.exchange(number, ptr::null_mut())
            {
                return Some(block);
            }
        }
        None
    }

    /// Takes all blocks that are there, one by one.
    pub(super) fn take_all(&self) -> impl Iterator<Item = Block> {
        // Acquire, with the Release of `exchange`: of the CPU that has taken a block all is visible that it
        // did before, so that it has announced to release it (`Releases`). No model finds it missing: who
        // looks there has ended an announcement of its own since, by a read-modify-write, and loom has
        // each of these see the last one.
        (0..SLOTS)
            .filter(|&number| !self.slots[number].load(Ordering::Acquire).is_null())
            .filter_map(|number| self.exchange(number, ptr::null_mut()))
    }

    /// Exchanges the block in a slot. Release: the CPU that takes the block finds it as it was left.
    /// Acquire: so does this one.
    fn exchange(&self, number: usize, block: *mut u8) -> Option<Block> {
        NonNull::new(self.slots[number % SLOTS].swap(block, Ordering::AcqRel))
    }
}

impl Default for Quarantine {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quarantine")
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn block(number: usize) -> Block {
        static BLOCKS: [u8; 5 * SLOTS] = [0; 5 * SLOTS];
        NonNull::from(&BLOCKS[number])
    }

    #[test]
    fn the_oldest_block_goes_for_a_new_one() {
        let quarantine = Quarantine::new();
        for number in 1..=SLOTS {
            assert_eq!(quarantine.push(block(number), 1), None);
        }
        for number in 1..=3 * SLOTS {
            let out = quarantine.push(block(SLOTS + number), 1);
            assert_eq!(out, Some(block(number)));
            quarantine.forget(1);
        }
        assert_eq!(quarantine.bytes(), SLOTS);
        assert_eq!(quarantine.pop_surplus(), None);
        let blocks: Vec<_> = quarantine.take_all().collect();
        assert_eq!(blocks.len(), SLOTS);
        assert_eq!(quarantine.take_all().count(), 0);
    }

    #[test]
    fn a_block_whose_slot_was_passed_over_goes_as_well() {
        let quarantine = Quarantine::new();
        // Another CPU looks for surplus in the midst of a push.
        quarantine
            .bytes
            .fetch_add(MAX_QUARANTINED + 1, Ordering::Relaxed);
        let number = quarantine.next.fetch_add(1, Ordering::Relaxed);
        assert_eq!(quarantine.pop_surplus(), None);
        assert_eq!(quarantine.exchange(number, block(1).as_ptr()), None);
        assert_eq!(quarantine.pop_surplus(), Some(block(1)));
    }

    #[test]
    fn too_many_bytes_go_oldest_first() {
        const BYTES: usize = MAX_QUARANTINED / 4;
        let quarantine = Quarantine::new();
        let mut gone = 0;
        for number in 1..=3 * SLOTS {
            assert_eq!(quarantine.push(block(number), BYTES), None);
            while let Some(out) = quarantine.pop_surplus() {
                gone += 1;
                assert_eq!(out, block(gone));
                quarantine.forget(BYTES);
            }
            assert_eq!(number - gone, number.min(4));
        }
        // One that is too large alone waits for nobody.
        assert_eq!(quarantine.push(block(1), MAX_QUARANTINED + 1), None);
        let mut last = None;
        for _ in 0..5 {
            last = quarantine.pop_surplus();
            quarantine.forget(if last == Some(block(1)) {
                MAX_QUARANTINED + 1
            } else {
                BYTES
            });
        }
        assert_eq!(last, Some(block(1)));
        assert_eq!((quarantine.bytes(), quarantine.pop_surplus()), (0, None));
    }

    #[test]
    fn the_oldest_is_found_among_those_that_were_taken_meanwhile() {
        let quarantine = Quarantine::new();
        for number in 1..=10 {
            quarantine.push(block(number), 1);
        }
        assert_eq!(quarantine.take_all().count(), 10);
        quarantine.forget(10);
        quarantine.push(block(11), 2 * MAX_QUARANTINED);
        assert_eq!(quarantine.pop_surplus(), Some(block(11)));
    }
}
