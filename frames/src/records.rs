//! The owner of each frame.

use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use muster_sync::AtomicU8;

/// Records that are read and written at once.
const WORD: usize = 8;

/// Words that a loop goes through at once: it costs more than they do.
const SEVERAL: usize = 4;

/// The records of whose frames are, a byte each.
///
/// [`FREE`](crate::owner::FREE) if the frame is free, but also while it is on its way out or in, or in a CPU's
/// cache, and if there is a record for it only because there is for its neighbours.
///
/// Accesses are `Relaxed`: only the CPU that has claimed a frame, or is taking it back, writes its record,
/// and a CPU that frees a frame has been given the right to it after that. Of frees that are in the wrong,
/// [`Zone::begin_return`](crate::zone::Zone::begin_return) orders those of several CPUs.
#[derive(Clone, Copy)]
pub(crate) struct Owners<'a> {
    /// The number of the frame that the first record is of.
    base: u64,
    records: &'a [AtomicU8],
}

impl<'a> Owners<'a> {
    pub(crate) const fn new(base: u64, records: &'a [AtomicU8]) -> Self {
        Self { base, records }
    }

    /// Returns the records of no frames.
    pub(crate) const fn none() -> Self {
        Self::new(0, &[])
    }

    /// Returns the record of the frame with this number, if there is one.
    #[inline]
    pub(crate) fn get(self, number: u64) -> Option<&'a AtomicU8> {
        self.records.get(number.wrapping_sub(self.base) as usize)
    }

    /// Records whose frames these are, for one who has claimed them or is taking them back.
    pub(crate) fn set(self, numbers: Range<u64>, owner: u8) {
        let (words, rest) = self.part(numbers).as_chunks();
        let (several, words) = words.as_chunks::<SEVERAL>();
        several.iter().flatten().for_each(|word| store(word, owner));
        words.iter().for_each(|word| store(word, owner));
        rest.iter().for_each(|record| record.store(owner, Relaxed));
    }

    /// Returns whether all these frames are recorded as the owner's.
    pub(crate) fn are_all(self, numbers: Range<u64>, owner: u8) -> bool {
        let (words, rest) = self.part(numbers).as_chunks();
        let owners = u64::from_ne_bytes([owner; WORD]);
        let (several, words) = words.as_chunks::<SEVERAL>();
        let differences = |words: &[_; SEVERAL]| {
            words
                .iter()
                .fold(0, |all, word| all | (load(word) ^ owners))
        };
        several.iter().all(|words| differences(words) == 0)
            && words.iter().all(|word| load(word) == owners)
            && rest.iter().all(|record| record.load(Relaxed) == owner)
    }

    fn part(self, numbers: Range<u64>) -> &'a [AtomicU8] {
        let index = |number: u64| number.wrapping_sub(self.base) as usize;
        self.records
            .get(index(numbers.start)..index(numbers.end))
            .unwrap_or_default()
    }
}

/// Stores the same in all records of a word, in no order: as relaxed stores, which the compiler leaves
/// as many, and a run of 2 MiB has 512.
#[inline]
fn store(word: &[AtomicU8; WORD], value: u8) {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    // SAFETY: the bytes are atomics, which may be written while others use them, and `mov` writes
    // each as one. It does nothing else.
    unsafe {
        core::arch::asm!(
            "mov qword ptr [{word}], {values}",
            word = in(reg) word.as_ptr(),
            values = in(reg) u64::from_ne_bytes([value; WORD]),
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    word.iter().for_each(|record| record.store(value, Relaxed));
}

/// Reads all records of a word, in no order: as [`store`].
#[inline]
fn load(word: &[AtomicU8; WORD]) -> u64 {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    {
        let values: u64;
        // SAFETY: the bytes are atomics, which may be read while others use them, and `mov` reads
        // each as one. It does nothing else.
        unsafe {
            core::arch::asm!(
                "mov {values}, qword ptr [{word}]",
                word = in(reg) word.as_ptr(),
                values = lateout(reg) values,
                options(nostack, preserves_flags, readonly),
            );
        }
        values
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    u64::from_ne_bytes(core::array::from_fn(|place| word[place].load(Relaxed)))
}
