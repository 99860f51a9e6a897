//! Locks, and lock order, which is checked.
//!
//! Every lock has a [`Level`], and a CPU takes locks in the order of their levels only: so no two
//! CPUs wait for each other. A CPU that breaks the order panics, with the names of both locks,
//! whether or not another one happens to hold the second at the time. It is checked on every run:
//! the locks here are on no fast path. (Those of the heap are its own, see `muster_heap::Platform`:
//! its growth lock comes before [`Level::Tables`].)
//!
//! A lock is held with interrupts disabled, so no handler on the same CPU waits for the code that
//! it interrupts. A CPU that waits for a lock takes interrupts, and so calls, if it did before; if
//! not, it answers nothing until it has the lock. So no CPU calls others while it holds one
//! ([`forbid`]), nor from within the heap's own locks, which [`forbid`] does not know of.
//!
//! No CPU waits without a bound: one that waits for [`TIMEOUT`] while the same CPU holds the lock ends the
//! run with that CPU's number. The holder has stopped: a host gives its virtual CPU no time, or it has
//! halted.

use core::hint;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};

use muster_percpu::cpu_local;
use spin::{Mutex, MutexGuard};
use x86_64::instructions::interrupts;

use super::cpu::{self, Cpu};
use super::level::Held;
use super::stop;
use crate::arch::clock;

pub use super::level::Level;

/// How long a CPU may hold a lock, in milliseconds: as long as it may take to take a call.
pub const TIMEOUT: u64 = 10_000;

cpu_local! {
    /// The locks that the CPU holds.
    static HELD: Held = Held::new();
}

/// Ends the run if this CPU holds a lock; `what` describes the forbidden action.
///
/// # Panics
///
/// If this CPU holds a lock.
#[track_caller]
pub fn forbid(what: &str) {
    if let Some(level) = held() {
        panic!("{what} while the lock of {level} is held");
    }
}

/// Returns the last lock that this CPU holds, in lock order, if any.
pub fn held() -> Option<Level> {
    Cpu::try_with_own(&HELD, |held| held.last()).flatten()
}

/// The holder of a lock, for the CPUs that wait: the holder's index plus one in the lower half, 0 for a CPU
/// without an index; in the upper half a number that each change increments, so that a CPU that has released
/// the lock and taken it again is not taken for one that still holds it.
struct Holder(AtomicU64);

impl Holder {
    const INDEX_BITS: u32 = 32;

    /// Records the CPU that has just taken the lock; `None` for one about to release it, or without an
    /// index.
    fn note(&self, cpu: Option<u32>) {
        // Relaxed: only the CPU that holds the lock writes it, and the lock orders one holder's accesses
        // with the next one's. A waiting CPU reads it for the report alone.
        let changes = (self.0.load(Ordering::Relaxed) >> Self::INDEX_BITS) as u32;
        let tag = cpu.map_or(0, |index| u64::from(index) + 1);
        let next = u64::from(changes.wrapping_add(1)) << Self::INDEX_BITS | tag;
        self.0.store(next, Ordering::Relaxed);
    }

    /// Returns a value that changes with each holder.
    fn look(&self) -> u64 {
        // Relaxed: as for `note`.
        self.0.load(Ordering::Relaxed)
    }

    /// Returns the CPU in such a value.
    fn cpu(look: u64) -> Option<u64> {
        (look & u64::from(u32::MAX)).checked_sub(1)
    }
}

/// A lock.
pub struct Lock<T> {
    level: Level,
    holder: Holder,
    data: Mutex<T>,
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

    /// Takes the lock, and waits for it; stops this CPU for good if the run ends in the meantime, for
    /// then the holder may never release it.
    ///
    /// # Panics
    ///
    /// If this CPU holds one of the same level, or of a later one. If another CPU holds this one for
    /// longer than [`TIMEOUT`].
    #[track_caller]
    pub fn lock(&self) -> Guard<'_, T> {
        if let Some(last) = held()
            && last >= self.level
        {
            panic!(
                "the lock of {} may not be taken while that of {last} is held",
                self.level
            );
        }
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            self.wait();
        }
    }

    /// Waits until the lock is free, with interrupts as they were.
    #[track_caller]
    fn wait(&self) {
        let (mut holder, mut waited) = (self.holder.look(), 0);
        // Reading leaves the cache line shared until the lock is free.
        while self.data.is_locked() {
            stop::stop_if_over();
            hint::spin_loop();
            let now = self.holder.look();
            if now != holder {
                (holder, waited) = (now, 0);
            }
            // Once the run is over, only the CPU that reports its end reports.
            if clock::has_waited(&mut waited, TIMEOUT) && !stop::is_requested() {
                self.report_stuck(Holder::cpu(holder));
            }
        }
    }

    #[cold]
    #[track_caller]
    fn report_stuck(&self, holder: Option<u64>) -> ! {
        let level = self.level;
        match holder {
            Some(cpu) => panic!("CPU {cpu} holds the lock of {level} and does not go on"),
            None => panic!("a CPU holds the lock of {level} and does not go on"),
        }
    }

    /// Takes the lock if that needs no waiting, whatever this CPU holds.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let entry = HeldEntry::new(self.level);
        let data = self.data.try_lock()?;
        self.holder.note(cpu::try_with(|here| here.index()));
        Some(Guard {
            holder: &self.holder,
            data,
            _entry: entry,
        })
    }
}

/// One lock in a CPU's set of those it holds; interrupts are disabled as long as there is one.
struct HeldEntry {
    level: Level,
    /// Whether the CPU had its set yet. Before, interrupts are disabled in any case.
    is_listed: bool,
}

impl HeldEntry {
    fn new(level: Level) -> Self {
        let were_enabled = interrupts::are_enabled();
        interrupts::disable();
        let is_listed = cpu::try_with(|here| {
            here.get(&HELD).add(level, were_enabled);
        })
        .is_some();
        Self { level, is_listed }
    }
}

impl Drop for HeldEntry {
    fn drop(&mut self) {
        if !self.is_listed {
            return;
        }
        let enable = Cpu::try_with_own(&HELD, |held| held.remove(self.level));
        if enable == Some(true) {
            interrupts::enable();
        }
    }
}

/// Access to the data, until dropped.
pub struct Guard<'a, T> {
    holder: &'a Holder,
    // Dropped before the entry: the lock is released first, then interrupts are enabled.
    data: MutexGuard<'a, T>,
    _entry: HeldEntry,
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // Before it is released: the next holder's own record comes after.
        self.holder.note(None);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}
