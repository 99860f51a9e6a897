//! One slab: frames cut into blocks of one class, described apart from them.

use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use muster_sync::{AtomicPtr, AtomicU8, AtomicU16, AtomicU64};

use super::cache::Block;
use super::class::{Class, FRAME, MAX_BLOCKS};

const WORDS: usize = MAX_BLOCKS / 64;

/// The description of a frame: of the slab it belongs to if it is the slab's first, or else how far
/// that one is.
///
/// All zeroes: the frame belongs to no slab. `start`, `class` and `back` are written before any block
/// of the slab is handed out, and stay until the slab is empty and gone; so a CPU that has a block may
/// read them. The rest is under the lock of the class, which is why `Relaxed` will do.
///
/// The first byte is the least important one: descriptions fill a frame, and the frame before may be a
/// slab whose last block is written past its end.
#[repr(C, align(64))]
pub(super) struct Slab {
    /// The lowest byte of the number of the CPU that last got blocks: for statistics.
    user: AtomicU8,
    class: AtomicU8,
    /// The number of frames from the start of the slab to this one.
    back: AtomicU8,
    /// The number of frames of the slab; 0: no slab.
    frames: AtomicU8,
    used: AtomicU16,
    capacity: AtomicU16,
    start: AtomicPtr<u8>,
    next: AtomicPtr<Slab>,
    previous: AtomicPtr<Slab>,
    /// One bit for each free block.
    free: [AtomicU64; WORDS],
}

/// The defect of a block that was to be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// No slab has a block at this address.
    Foreign,
    /// The address lies in a slab of another class.
    OfClass(Class),
    /// The block is free already.
    Free,
}

/// The fill of a slab, by quarters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    Empty,
    /// Some blocks are used and some free: the number of full quarters.
    Partial(usize),
    Full,
}

impl Slab {
    /// Creates the description of no slab: all zeroes, where atomics are numbers.
    #[cfg(loom)]
    pub(super) fn none() -> Self {
        Self {
            user: AtomicU8::new(0),
            class: AtomicU8::new(0),
            back: AtomicU8::new(0),
            frames: AtomicU8::new(0),
            used: AtomicU16::new(0),
            capacity: AtomicU16::new(0),
            start: AtomicPtr::new(ptr::null_mut()),
            next: AtomicPtr::new(ptr::null_mut()),
            previous: AtomicPtr::new(ptr::null_mut()),
            free: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Describes frames that become a slab, all of whose blocks are free.
    pub(super) fn describe(&self, start: NonNull<u8>, frames: u8, class: Class) {
        let capacity = usize::from(frames) * FRAME / class.size();
        for (index, word) in self.free.iter().enumerate() {
            let bits = capacity.saturating_sub(index * 64).min(64);
            let ones = u64::MAX.checked_shr(64 - bits as u32).unwrap_or(0);
            word.store(ones, Ordering::Relaxed);
        }
        self.next.store(ptr::null_mut(), Ordering::Relaxed);
        self.previous.store(ptr::null_mut(), Ordering::Relaxed);
        self.used.store(0, Ordering::Relaxed);
        self.capacity.store(capacity as u16, Ordering::Relaxed);
        self.start.store(start.as_ptr(), Ordering::Relaxed);
        self.class.store(class.index() as u8, Ordering::Relaxed);
        self.back.store(0, Ordering::Relaxed);
        self.frames.store(frames, Ordering::Relaxed);
    }

    /// Describes a frame of a slab that isn't its first.
    pub(super) fn describe_rest(&self, back: u8) {
        self.back.store(back, Ordering::Relaxed);
        self.frames.store(1, Ordering::Relaxed);
    }

    pub(super) fn forget(&self) {
        self.frames.store(0, Ordering::Relaxed);
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.frames.load(Ordering::Relaxed) != 0
    }

    pub(super) fn back(&self) -> usize {
        self.back.load(Ordering::Relaxed).into()
    }

    pub(super) fn frames(&self) -> usize {
        self.frames.load(Ordering::Relaxed).into()
    }

    pub(super) fn start(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.start.load(Ordering::Relaxed))
    }

    /// Returns whether its blocks are as aligned as those of the class must be.
    pub(super) fn is_aligned(&self, class: Class) -> bool {
        (self.start.load(Ordering::Relaxed).addr()).is_multiple_of(class.alignment())
    }

    pub(super) fn class(&self) -> Option<Class> {
        Class::from_index(self.class.load(Ordering::Relaxed).into())
    }

    pub(super) fn fill(&self) -> Fill {
        let used = usize::from(self.used.load(Ordering::Relaxed));
        let capacity = usize::from(self.capacity.load(Ordering::Relaxed));
        if used == 0 {
            Fill::Empty
        } else if used >= capacity {
            Fill::Full
        } else {
            Fill::Partial(used * 4 / capacity)
        }
    }

    /// Takes free blocks, lowest address first, and returns how many.
    pub(super) fn take(&self, class: Class, into: &mut [MaybeUninit<Block>]) -> usize {
        let Some(start) = self.start() else {
            return 0;
        };
        let mut taken = 0;
        for (index, word) in self.free.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            if bits == 0 {
                continue;
            }
            while bits != 0 {
                let Some(room) = into.get_mut(taken) else {
                    break;
                };
                let block = index * 64 + bits.trailing_zeros() as usize;
                // SAFETY: bits are set only for blocks within the slab's frames.
                room.write(unsafe { start.add(block * class.size()) });
                bits &= bits - 1;
                taken += 1;
            }
            word.store(bits, Ordering::Relaxed);
            if taken == into.len() {
                break;
            }
        }
        let used = self.used.load(Ordering::Relaxed);
        self.used.store(used + taken as u16, Ordering::Relaxed);
        taken
    }

    /// Records which CPU gets blocks.
    pub(super) fn given_to(&self, cpu: Option<usize>) {
        self.user.store(lowest_byte(cpu), Ordering::Relaxed);
    }

    /// Returns whether this CPU, or one whose number ends in the same byte, got blocks last.
    pub(super) fn was_given_to(&self, cpu: Option<usize>) -> bool {
        self.user.load(Ordering::Relaxed) == lowest_byte(cpu)
    }

    /// Takes a block back, which lies in a slab of this class: this one.
    pub(super) fn put(&self, class: Class, block: Block) -> Result<(), Wrong> {
        let start = self.start.load(Ordering::Relaxed).addr();
        let index = block
            .addr()
            .get()
            .checked_sub(start)
            .and_then(|offset| class.block_at(offset))
            .filter(|&index| index < usize::from(self.capacity.load(Ordering::Relaxed)))
            .ok_or(Wrong::Foreign)?;
        let word = self.free.get(index / 64).ok_or(Wrong::Foreign)?;
        let bits = word.load(Ordering::Relaxed);
        let bit = 1 << (index % 64);
        if bits & bit != 0 {
            return Err(Wrong::Free);
        }
        word.store(bits | bit, Ordering::Relaxed);
        let used = self.used.load(Ordering::Relaxed);
        self.used.store(used.wrapping_sub(1), Ordering::Relaxed);
        Ok(())
    }
}

fn lowest_byte(cpu: Option<usize>) -> u8 {
    cpu.unwrap_or_default() as u8
}

/// A list of slabs, all of which belong to the holder of the list.
pub(super) struct List {
    first: Option<NonNull<Slab>>,
}

// SAFETY: slabs are atomics throughout, and a list may be used by whichever CPU holds it.
unsafe impl Send for List {}

impl List {
    pub(super) const fn new() -> Self {
        Self { first: None }
    }

    pub(super) fn first(&self) -> Option<&Slab> {
        // SAFETY: a slab's description stays while the slab is in a list (`SlabMap`).
        self.first.map(|slab| unsafe { slab.as_ref() })
    }

    /// Puts a slab, which is in no list, in front.
    pub(super) fn push(&mut self, slab: &Slab) {
        let next = self.first.map_or(ptr::null_mut(), NonNull::as_ptr);
        slab.next.store(next, Ordering::Relaxed);
        slab.previous.store(ptr::null_mut(), Ordering::Relaxed);
        let pointer = NonNull::from(slab);
        if let Some(first) = self.first() {
            first.previous.store(pointer.as_ptr(), Ordering::Relaxed);
        }
        self.first = Some(pointer);
    }

    /// Takes a slab, which is in this list, out.
    pub(super) fn remove(&mut self, slab: &Slab) {
        let next = NonNull::new(slab.next.load(Ordering::Relaxed));
        let previous = NonNull::new(slab.previous.load(Ordering::Relaxed));
        if let Some(next) = next {
            let back = previous.map_or(ptr::null_mut(), NonNull::as_ptr);
            // SAFETY: in this list, as in `first`.
            unsafe { next.as_ref() }
                .previous
                .store(back, Ordering::Relaxed);
        }
        match previous {
            Some(previous) => {
                let on = next.map_or(ptr::null_mut(), NonNull::as_ptr);
                // SAFETY: in this list, as in `first`.
                unsafe { previous.as_ref() }
                    .next
                    .store(on, Ordering::Relaxed);
            }
            None => self.first = next,
        }
    }

    pub(super) fn pop(&mut self) -> Option<NonNull<Slab>> {
        let first = self.first?;
        // SAFETY: in this list, as in `first`.
        self.remove(unsafe { first.as_ref() });
        Some(first)
    }
}
