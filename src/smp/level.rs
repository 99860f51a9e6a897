//! The lock and its levels. How it is taken stands in another file, because the per-CPU block contains a
//! lock, and taking one records it in that block.

use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

/// The data that a lock guards, in lock order. A CPU that holds a lock takes only locks of levels
/// further down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// The shared state of a workload. Its holder may allocate.
    Workload,
    /// The addresses of mappings. Its holder may allocate.
    Addresses,
    /// The page tables, and the heap's window, which grows with them. Its holder may not allocate.
    Tables,
    /// A CPU's journal.
    Journal,
    /// The BSP's lines from before it had a journal.
    EarlyJournal,
    /// The serial port.
    Serial,
    /// The screen.
    Screen,
    /// An I/O APIC.
    IoApic,
}

impl Level {
    const ALL: [Self; 8] = [
        Self::Workload,
        Self::Addresses,
        Self::Tables,
        Self::Journal,
        Self::EarlyJournal,
        Self::Serial,
        Self::Screen,
        Self::IoApic,
    ];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Workload => "the workload's state",
            Self::Addresses => "the addresses of mappings",
            Self::Tables => "the page tables",
            Self::Journal => "a journal",
            Self::EarlyJournal => "the early journal",
            Self::Serial => "the serial port",
            Self::Screen => "the screen",
            Self::IoApic => "an I/O APIC",
        })
    }
}

/// Bits for the number of locks of one level that a CPU holds: more than one only by
/// [`Lock::try_lock`].
const BITS: u32 = 8;

/// The locks that one CPU holds.
pub struct Held {
    /// The number of locks, [`BITS`] for each level.
    counts: Cell<u64>,
    /// Whether interrupts were enabled before the first.
    were_enabled: Cell<bool>,
}

const _: () = assert!(Level::ALL.len() as u32 * BITS <= u64::BITS);

impl Held {
    /// Creates an empty set.
    pub const fn new() -> Self {
        Self {
            counts: Cell::new(0),
            were_enabled: Cell::new(false),
        }
    }

    /// Returns the last in lock order of those held, after which all others must come.
    pub fn last(&self) -> Option<Level> {
        let last = self.counts.get().checked_ilog2()? / BITS;
        Level::ALL.get(last as usize).copied()
    }

    /// Adds a lock of this level; `were_enabled` is whether interrupts were enabled before it.
    pub fn add(&self, level: Level, were_enabled: bool) {
        if self.counts.get() == 0 {
            self.were_enabled.set(were_enabled);
        }
        self.counts.set(self.counts.get() + one_of(level));
    }

    /// Removes one. Returns whether it was the last, and interrupts were enabled before the first.
    pub fn remove(&self, level: Level) -> bool {
        self.counts.set(self.counts.get() - one_of(level));
        self.counts.get() == 0 && self.were_enabled.get()
    }
}

fn one_of(level: Level) -> u64 {
    1 << (level as u32 * BITS)
}

/// The holder of a lock, for the CPUs that wait: the holder's index plus one in the lower half, 0 for a CPU
/// without an index; in the upper half a number that each change increments, so that a CPU that has released
/// the lock and taken it again is not taken for one that still holds it.
pub(super) struct Holder(AtomicU64);

impl Holder {
    const INDEX_BITS: u32 = 32;

    /// Records the CPU that has just taken the lock; `None` for one about to release it, or without an
    /// index.
    pub(super) fn note(&self, cpu: Option<u32>) {
        // Relaxed: only the CPU that holds the lock writes it, and the lock orders one holder's accesses
        // with the next one's. A waiting CPU reads it for the report alone.
        let changes = (self.0.load(Ordering::Relaxed) >> Self::INDEX_BITS) as u32;
        let tag = cpu.map_or(0, |index| u64::from(index) + 1);
        let next = u64::from(changes.wrapping_add(1)) << Self::INDEX_BITS | tag;
        self.0.store(next, Ordering::Relaxed);
    }

    /// Returns a value that changes with each holder.
    pub(super) fn look(&self) -> u64 {
        // Relaxed: as for `note`.
        self.0.load(Ordering::Relaxed)
    }

    /// Returns the CPU in such a value.
    pub(super) fn cpu(look: u64) -> Option<u64> {
        (look & u64::from(u32::MAX)).checked_sub(1)
    }
}

/// A lock. [`lock`](super::lock) has the functions that take it.
pub struct Lock<T> {
    pub(super) level: Level,
    pub(super) holder: Holder,
    pub(super) data: Mutex<T>,
}

impl<T> Lock<T> {
    /// Creates a lock of this level.
    pub const fn new(level: Level, data: T) -> Self {
        Self {
            level,
            holder: Holder(AtomicU64::new(0)),
            data: Mutex::new(data),
        }
    }
}
