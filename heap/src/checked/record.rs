//! The surroundings of a block: a record and a guard in front, a guard behind.
//!
//! ```text
//! start of the wrapped heap's block                                      its end
//! | (for alignment) | record, 112 bytes | guard, 16 | block | guard, 16 to 31 |
//! ```

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::misuse::{CALLERS, Callers, Origin, Violation};
use crate::seal::mix;

type Block = NonNull<u8>;

/// The alignment of all blocks, and the unit to which their sizes are rounded up.
const UNIT: usize = 16;

/// Bytes between the start of the record and the block's.
pub(super) const FRONT: usize = 128;

/// The guard just before a block.
const GUARD: usize = FRONT - size_of::<Record>();

const _: () = assert!(GUARD == UNIT && align_of::<Record>() <= UNIT);

/// The content of guards.
const GUARDED: u8 = 0xbb;

/// The content of freed blocks. Eight of it are no canonical address (Intel SDM, volume 1, section
/// 3.3.7.1): code that follows a pointer from a freed block faults.
const POISON: u8 = 0x6b;

/// The state of a block. The values are mixed with the block's address, so that a copy of a record is
/// none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Allocated.
    Live = 0x4c49_5645,
    /// Being freed: the origin of the free is not recorded yet.
    Going = 0x474f_494e,
    /// Freed, and in a quarantine.
    Waiting = 0x5741_4954,
    /// Given back to the wrapped heap.
    Gone = 0x474f_4e45,
}

/// The record of a block. Its most important fields lie farthest from the block.
#[repr(C)]
pub(super) struct Record {
    state: AtomicUsize,
    size: usize,
    allocated: SealedOrigin,
    freed: SealedOrigin,
}

/// An origin, sealed.
#[derive(Clone, Copy)]
#[repr(C)]
struct SealedOrigin {
    callers: [usize; CALLERS],
    /// [`UNKNOWN_CPU`], or the CPU's number.
    cpu: u32,
    /// The alignment's logarithm.
    align: u32,
    seal: u64,
}

const UNKNOWN_CPU: u32 = u32::MAX;

/// The block that the wrapped heap is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outer {
    pub(super) layout: Layout,
    /// The offset of the block from its start.
    pub(super) front: usize,
}

impl Outer {
    /// Returns the layout around a block. `None`: more than there can be.
    pub(super) const fn of(layout: Layout) -> Option<Self> {
        let align = if layout.align() < UNIT {
            UNIT
        } else {
            layout.align()
        };
        let front = if align < FRONT { FRONT } else { align };
        // No overflow: a layout's size, rounded up to its alignment, is at most `isize::MAX`.
        let size = layout.size().next_multiple_of(UNIT) + UNIT;
        match size.checked_add(front) {
            Some(size) => match Layout::from_size_align(size, align) {
                Ok(layout) => Some(Self { layout, front }),
                Err(_) => None,
            },
            None => None,
        }
    }
}

/// A block of which it is not certain that it is one, but whose record can be read.
#[derive(Clone, Copy)]
pub(super) struct Candidate(Block);

impl Candidate {
    /// Takes `block` for a block that may be one.
    ///
    /// # Safety
    ///
    /// From [`FRONT`] bytes before `block` up to there, there is memory that may be read.
    pub(super) const unsafe fn new(block: Block) -> Self {
        Self(block)
    }

    /// Returns whether a block may be here: all are aligned.
    pub(super) fn may_be_at(block: Block) -> bool {
        block.addr().get().is_multiple_of(UNIT)
    }

    pub(super) const fn block(self) -> Block {
        self.0
    }

    fn record(self) -> NonNull<Record> {
        // SAFETY: that far in front is memory: the promise made to `new`.
        unsafe { self.0.sub(FRONT) }.cast()
    }

    fn state_word(&self) -> &AtomicUsize {
        // SAFETY: memory, aligned to a unit as blocks are, and reached by atomics alone as long as
        // there is a block.
        unsafe { &(*self.record().as_ptr()).state }
    }

    fn state_as(self, state: State) -> usize {
        // Exact in each: a state has 32 bits.
        (state as usize) ^ self.0.addr().get().rotate_left(32)
    }

    /// Returns the state of the block, if there is one.
    pub(super) fn state(self) -> Option<State> {
        // Acquire, with the Release of `advance`: what was recorded before is visible.
        let word = self.state_word().load(Ordering::Acquire);
        [State::Live, State::Going, State::Waiting, State::Gone]
            .into_iter()
            .find(|&state| self.state_as(state) == word)
    }

    /// Advances from one state to the next, unless the state is another one or another CPU advances it.
    pub(super) fn advance(self, from: State, to: State) -> bool {
        let (from, to) = (self.state_as(from), self.state_as(to));
        // Release, with the Acquire of `state`: a CPU that frees the block once more sees the first free
        // recorded. No Acquire: what was recorded before came with the block, from the program or from
        // the quarantine. Relaxed where it fails, as nothing is read then by what it finds. There is no
        // model of it, as the word lies in the block's own memory, which loom does not watch.
        (self.state_word())
            .compare_exchange(from, to, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    /// Returns the layout and the origin of the block's allocation, if the record is intact.
    pub(super) fn allocated(self) -> Option<(Layout, Origin)> {
        // SAFETY: as in `record`; whatever is there makes a value.
        let (note, size) = unsafe {
            let record = self.record().as_ptr();
            (
                (&raw const (*record).allocated).read(),
                (&raw const (*record).size).read(),
            )
        };
        (note.seal == note.sealed(self.0, size)).then_some(())?;
        let align = 1_usize.checked_shl(note.align)?;
        let layout = Layout::from_size_align(size, align).ok()?;
        Some((layout, note.origin()))
    }

    /// Returns the origin of the block's free, if the record is intact.
    pub(super) fn freed(self) -> Option<Origin> {
        // SAFETY: as in `allocated`.
        let note = unsafe { (&raw const (*self.record().as_ptr()).freed).read() };
        (note.seal == note.sealed(self.0, 0)).then(|| note.origin())
    }
}

impl SealedOrigin {
    fn new(origin: Origin, align: u32, block: Block, size: usize) -> Self {
        let Callers(callers) = origin.callers;
        let note = Self {
            callers,
            // A CPU of a greater number is recorded as unknown.
            cpu: origin
                .cpu
                .map_or(UNKNOWN_CPU, |cpu| cpu.try_into().unwrap_or(UNKNOWN_CPU)),
            align,
            seal: 0,
        };
        Self {
            seal: note.sealed(block, size),
            ..note
        }
    }

    const fn origin(&self) -> Origin {
        Origin {
            cpu: if self.cpu == UNKNOWN_CPU {
                None
            } else {
                Some(self.cpu as usize)
            },
            callers: Callers(self.callers),
        }
    }

    /// Returns the seal that fits, which a change of one word always breaks.
    fn sealed(&self, block: Block, size: usize) -> u64 {
        let numbers = u64::from(self.cpu) << 32 | u64::from(self.align);
        self.callers
            .iter()
            .chain(&[size, block.addr().get()])
            .fold(mix(0, numbers), |seal, &word| mix(seal, word as u64))
    }
}

/// A block with all that surrounds it.
#[derive(Clone, Copy)]
pub(super) struct Checked {
    block: Block,
    pub(super) layout: Layout,
    pub(super) outer: Outer,
}

impl Checked {
    /// Makes a block of the memory from the wrapped heap.
    ///
    /// # Safety
    ///
    /// `start` is a new block of `outer`, which is `layout`'s.
    pub(super) unsafe fn create(
        start: NonNull<u8>,
        layout: Layout,
        outer: Outer,
        by: Origin,
    ) -> Self {
        // SAFETY: the block begins within the wrapped heap's.
        let block = unsafe { start.add(outer.front) };
        let checked = Self {
            block,
            layout,
            outer,
        };
        let state = checked.candidate().state_as(State::Live);
        let record = Record {
            state: AtomicUsize::new(state),
            size: layout.size(),
            allocated: SealedOrigin::new(by, layout.align().ilog2(), block, layout.size()),
            freed: SealedOrigin {
                callers: [0; CALLERS],
                cpu: UNKNOWN_CPU,
                align: 0,
                seal: 0,
            },
        };
        // SAFETY: in front of the block and behind it, the new memory has room for all of it: see
        // `Outer`.
        unsafe {
            checked.candidate().record().write(record);
            block.sub(GUARD).write_bytes(GUARDED, GUARD);
            block
                .add(layout.size())
                .write_bytes(GUARDED, checked.behind());
        }
        checked
    }

    /// Returns the block that is there.
    ///
    /// # Safety
    ///
    /// [`create`](Self::create) made the block with this layout, and its memory has not been given
    /// back.
    pub(super) unsafe fn at(block: Block, layout: Layout) -> Option<Self> {
        Some(Self {
            block,
            layout,
            outer: Outer::of(layout)?,
        })
    }

    pub(super) const fn block(&self) -> Block {
        self.block
    }

    /// Returns where the wrapped heap's block begins.
    pub(super) fn start(&self) -> NonNull<u8> {
        // SAFETY: it begins so far in front.
        unsafe { self.block.sub(self.outer.front) }
    }

    pub(super) const fn candidate(&self) -> Candidate {
        Candidate(self.block)
    }

    /// Returns the bytes in the guard behind the block.
    const fn behind(&self) -> usize {
        self.outer.layout.size() - self.outer.front - self.layout.size()
    }

    /// Checks that the guards are intact.
    pub(super) fn check_guards(&self) -> Result<(), Violation> {
        let size = self.layout.size();
        // SAFETY: both guards are the block's, see `create`.
        let (before, behind) = unsafe {
            (
                last_other(self.block.sub(GUARD), GUARD, GUARDED),
                first_other(self.block.add(size), self.behind(), GUARDED),
            )
        };
        if let Some((at, found)) = behind {
            return Err(Violation::PastEnd {
                byte: size + at,
                found,
            });
        }
        match before {
            Some((at, found)) => Err(Violation::BeforeStart {
                before: GUARD - at,
                found,
            }),
            None => Ok(()),
        }
    }

    /// Records the origin of the free, and poisons the block. Its state is [`State::Going`].
    ///
    /// # Safety
    ///
    /// Nobody uses the block any more, and this is the one who frees it.
    pub(super) unsafe fn poison(&self, by: Origin) {
        let note = SealedOrigin::new(by, 0, self.block, 0);
        // SAFETY: the record is this block's, and nobody reads the note before the state says that
        // it is there; the block is as long as that, and nobody uses it.
        unsafe {
            (&raw mut (*self.candidate().record().as_ptr()).freed).write(note);
            self.block.write_bytes(POISON, self.layout.size());
        }
    }

    /// Checks that the block is as [`poison`](Self::poison) left it.
    pub(super) fn check_poison(&self) -> Result<(), Violation> {
        let size = self.layout.size();
        // SAFETY: the block's bytes, which are its wrapped heap's user's, that is, this heap's.
        match unsafe { first_other(self.block, size, POISON) } {
            None => Ok(()),
            Some((byte, found)) => {
                // SAFETY: as above.
                let count = (byte..size)
                    .filter(|&at| unsafe { self.block.add(at).read_volatile() } != POISON)
                    .count();
                Err(Violation::AfterFree { byte, found, count })
            }
        }
    }
}

/// Returns the first of some bytes that isn't as expected. Volatile: a misuse may be writing there.
///
/// # Safety
///
/// `length` bytes from `start` on may be read.
unsafe fn first_other(start: NonNull<u8>, length: usize, expected: u8) -> Option<(usize, u8)> {
    const WORD: usize = size_of::<usize>();

    let words = usize::from_ne_bytes([expected; WORD]);
    let head = start.as_ptr().align_offset(WORD).min(length);
    let other = |at: usize| {
        // SAFETY: within the bytes.
        let found = unsafe { start.add(at).read_volatile() };
        (found != expected).then_some((at, found))
    };
    if let Some(found) = (0..head).find_map(other) {
        return Some(found);
    }
    let mut at = head;
    // SAFETY: a word within the bytes, aligned as `at` steps from where they are.
    while at + WORD <= length && unsafe { start.add(at).cast::<usize>().read_volatile() } == words {
        at += WORD;
    }
    (at..length).find_map(other)
}

/// Returns the last of some bytes that isn't as expected.
///
/// # Safety
///
/// As for [`first_other`].
unsafe fn last_other(start: NonNull<u8>, length: usize, expected: u8) -> Option<(usize, u8)> {
    (0..length).rev().find_map(|at| {
        // SAFETY: within the bytes.
        let found = unsafe { start.add(at).read_volatile() };
        (found != expected).then_some((at, found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const ORIGIN: Origin = Origin {
        cpu: Some(5),
        callers: Callers([1, 2, 3, 4]),
    };

    #[test]
    fn a_seal_breaks_with_any_byte() {
        let block = NonNull::new(core::ptr::without_provenance_mut(0x1230)).unwrap();
        let note = SealedOrigin::new(ORIGIN, 4, block, 100);
        assert_eq!(note.origin(), ORIGIN);
        assert_eq!(note.seal, note.sealed(block, 100));
        assert_ne!(note.seal, note.sealed(block, 101));
        for at in 0..size_of::<SealedOrigin>() {
            for change in 1..=u8::MAX {
                let mut changed = note;
                // SAFETY: a byte of the note, which is numbers throughout.
                unsafe { *(&raw mut changed).cast::<u8>().add(at) ^= change };
                assert_ne!(changed.seal, changed.sealed(block, 100), "byte {at}");
            }
        }
    }

    #[test]
    fn bytes_that_differ_are_found_wherever_they_are() {
        for length in 0..40 {
            for offset in 0..8 {
                let mut bytes = vec![7_u8; 64];
                let check = |bytes: &[u8]| {
                    let start = NonNull::from(&bytes[offset]);
                    // SAFETY: within the bytes.
                    unsafe { (first_other(start, length, 7), last_other(start, length, 7)) }
                };
                assert_eq!(check(&bytes), (None, None));
                for first in 0..length {
                    bytes[offset + first] = 8;
                    bytes[offset + length - 1] = 9;
                    let (first_found, last_found) = check(&bytes);
                    assert_eq!(first_found.map(|(at, _)| at), Some(first));
                    assert_eq!(last_found, Some((length - 1, 9)));
                    bytes[offset + first] = 7;
                    bytes[offset + length - 1] = 7;
                }
            }
        }
    }

    #[test]
    fn a_block_is_aligned_with_all_around_it() {
        for shift in 0..20 {
            for size in [1, 15, 16, 17, 100, 4096] {
                let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                let outer = Outer::of(layout).unwrap();
                assert!(outer.front >= FRONT && outer.front.is_multiple_of(layout.align()));
                let behind = outer.layout.size() - outer.front - size;
                assert!((UNIT..2 * UNIT).contains(&behind), "{layout:?}");
                assert!(outer.layout.align() >= layout.align().max(UNIT));
            }
        }
        let huge = Layout::from_size_align(isize::MAX as usize, 1).unwrap();
        assert_eq!(Outer::of(huge), None);
        let huge = Layout::from_size_align(1, 1 << 62).unwrap();
        assert_eq!(Outer::of(huge), None);
    }
}
