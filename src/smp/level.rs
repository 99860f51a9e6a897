//! The levels of locks, and which locks a CPU holds.

use core::fmt;

use muster_percpu::{InterruptSafe, LocalWord};

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
/// [`Lock::try_lock`](super::lock::Lock::try_lock).
const BITS: u32 = 8;

/// The locks that one CPU holds.
pub struct Held {
    /// The number of locks, [`BITS`] for each level.
    counts: LocalWord<u64>,
    /// Whether interrupts were enabled before the first.
    were_enabled: LocalWord<bool>,
}

const _: () = assert!(Level::ALL.len() as u32 * BITS <= u64::BITS);

// SAFETY: each field is a `LocalWord`, so a handler at any instruction finds it as it was or as it is. A lost count would be
// a wrong report; none is lost, as it is changed with interrupts disabled.
unsafe impl InterruptSafe for Held {}

impl Held {
    /// Creates an empty set.
    pub const fn new() -> Self {
        Self {
            counts: LocalWord::new(0),
            were_enabled: LocalWord::new(false),
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
