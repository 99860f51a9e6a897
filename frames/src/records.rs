//! The owner of each frame.

use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use muster_sync::AtomicU8;

/// Records that are read and written at once.
const WORD: usize = 8;

/// Records that are read and written with no loop in between, which would cost more than they do.
const LINE: usize = 8 * WORD;

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
        self.records.get(self.index(number)?)
    }

    /// Records whose frames these are, for one who has claimed them or is taking them back.
    #[inline]
    pub(crate) fn set(self, numbers: Range<u64>, owner: u8) {
        let records = self.part(numbers);
        if records.len() < WORD {
            records
                .iter()
                .for_each(|record| record.store(owner, Relaxed));
        } else {
            set_words(records, owner);
        }
    }

    /// Returns whether all these frames are recorded as the owner's.
    #[inline]
    pub(crate) fn are_all(self, numbers: Range<u64>, owner: u8) -> bool {
        let records = self.part(numbers);
        if records.len() < WORD {
            records.iter().all(|record| record.load(Relaxed) == owner)
        } else {
            are_all_words(records, owner)
        }
    }

    fn part(self, numbers: Range<u64>) -> &'a [AtomicU8] {
        let within = || Some(self.index(numbers.start)?..self.index(numbers.end)?);
        within()
            .and_then(|within| self.records.get(within))
            .unwrap_or_default()
    }

    /// Returns the place at which the record of the frame with this number would be, whether there is one or not. `None`: it
    /// is further away than memory reaches, where `usize` has 32 bits.
    #[inline]
    fn index(self, number: u64) -> Option<usize> {
        usize::try_from(number.wrapping_sub(self.base)).ok()
    }
}

/// Does what [`Owners::set`] does, to a word of records or more.
#[inline(never)]
fn set_words(records: &[AtomicU8], owner: u8) {
    let (lines, rest) = records.as_chunks();
    lines.iter().for_each(|line| store_line(line, owner));
    let (words, rest) = rest.as_chunks();
    words.iter().for_each(|word| store(word, owner));
    rest.iter().for_each(|record| record.store(owner, Relaxed));
}

/// Does what [`Owners::are_all`] does, with a word of records or more.
#[inline(never)]
fn are_all_words(records: &[AtomicU8], owner: u8) -> bool {
    let (lines, rest) = records.as_chunks();
    let (words, rest) = rest.as_chunks();
    lines.iter().all(|line| holds_line(line, owner))
        && words.iter().all(|word| load(word) == several(owner))
        && rest.iter().all(|record| record.load(Relaxed) == owner)
}

/// Returns a word of records that are all the owner's.
const fn several(owner: u8) -> u64 {
    u64::from_ne_bytes([owner; WORD])
}

/// Stores the same in a line of records, as [`store`] does.
#[inline]
fn store_line(line: &[AtomicU8; LINE], owner: u8) {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    // SAFETY: the bytes are atomics, which may be written while others use them, and `mov` writes
    // each as one. It does nothing else.
    unsafe {
        core::arch::asm!(
            "mov qword ptr [{line}], {owners}",
            "mov qword ptr [{line} + 8], {owners}",
            "mov qword ptr [{line} + 16], {owners}",
            "mov qword ptr [{line} + 24], {owners}",
            "mov qword ptr [{line} + 32], {owners}",
            "mov qword ptr [{line} + 40], {owners}",
            "mov qword ptr [{line} + 48], {owners}",
            "mov qword ptr [{line} + 56], {owners}",
            line = in(reg) line.as_ptr(),
            owners = in(reg) several(owner),
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    line.iter().for_each(|record| record.store(owner, Relaxed));
}

/// Returns whether a line of records are all the owner's, which it reads as [`load`] does.
#[inline]
fn holds_line(line: &[AtomicU8; LINE], owner: u8) -> bool {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    {
        let (mut all, mut any) = (several(owner), several(owner));
        // SAFETY: the bytes are atomics, which may be read while others use them, and each is read as
        // one. It does nothing else.
        unsafe {
            core::arch::asm!(
                "and {all}, qword ptr [{line}]",
                "or {any}, qword ptr [{line}]",
                "and {all}, qword ptr [{line} + 8]",
                "or {any}, qword ptr [{line} + 8]",
                "and {all}, qword ptr [{line} + 16]",
                "or {any}, qword ptr [{line} + 16]",
                "and {all}, qword ptr [{line} + 24]",
                "or {any}, qword ptr [{line} + 24]",
                "and {all}, qword ptr [{line} + 32]",
                "or {any}, qword ptr [{line} + 32]",
                "and {all}, qword ptr [{line} + 40]",
                "or {any}, qword ptr [{line} + 40]",
                "and {all}, qword ptr [{line} + 48]",
                "or {any}, qword ptr [{line} + 48]",
                "and {all}, qword ptr [{line} + 56]",
                "or {any}, qword ptr [{line} + 56]",
                line = in(reg) line.as_ptr(),
                all = inout(reg) all,
                any = inout(reg) any,
                options(nostack, readonly),
            );
        }
        all == any
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    line.iter().all(|record| record.load(Relaxed) == owner)
}

/// Stores the same in all records of a word, in no order: as relaxed stores, which the compiler leaves
/// as many, and a run of 2 MiB has 512.
#[inline]
fn store(word: &[AtomicU8; WORD], owner: u8) {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    // SAFETY: as in `store_line`.
    unsafe {
        core::arch::asm!(
            "mov qword ptr [{word}], {owners}",
            word = in(reg) word.as_ptr(),
            owners = in(reg) several(owner),
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    word.iter().for_each(|record| record.store(owner, Relaxed));
}

/// Reads all records of a word, in no order: as [`store`].
#[inline]
fn load(word: &[AtomicU8; WORD]) -> u64 {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    {
        let owners: u64;
        // SAFETY: as in `holds_line`.
        unsafe {
            core::arch::asm!(
                "mov {owners}, qword ptr [{word}]",
                word = in(reg) word.as_ptr(),
                owners = lateout(reg) owners,
                options(nostack, preserves_flags, readonly),
            );
        }
        owners
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    u64::from_ne_bytes(core::array::from_fn(|place| word[place].load(Relaxed)))
}
