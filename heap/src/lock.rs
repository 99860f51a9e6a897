//! A spin lock that knows which CPU holds it.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::Ordering;

use crate::sync::{AtomicUsize, MutPtr, UnsafeCell, const_unless_modelled, mutated, spin_loop};

/// Nobody holds the lock.
const FREE: usize = 0;
/// A CPU that has no number yet holds the lock.
const NAMELESS: usize = usize::MAX;

/// A spin lock that refuses a CPU which holds it already, instead of deadlocking on it.
///
/// Whoever locks it keeps interrupts out, so what comes back to a lock on its own CPU is a
/// non-maskable interrupt, a panic inside the locked code, or something called with the lock held.
///
/// The lock word is the holder itself, because a holder noted beside the lock would leave an instant
/// in which the lock is taken and an NMI can't see by whom.
pub(crate) struct Lock<T> {
    /// [`FREE`], [`NAMELESS`], or the holder's CPU number plus one.
    holder: AtomicUsize,
    data: UnsafeCell<T>,
}

// SAFETY: `data` is reached only through a `Guard`, of which `holder` admits one at a time; so a
// shared lock moves `T` from CPU to CPU, for which `T: Send` is enough.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    const_unless_modelled! {
        pub(crate) const fn new(data: T) -> Self {
            Self {
                holder: AtomicUsize::new(FREE),
                data: UnsafeCell::new(data),
            }
        }
    }

    /// Waits for the lock; `None` if `cpu` itself holds it.
    pub(crate) fn lock(&self, cpu: Option<usize>) -> Option<Guard<'_, T>> {
        loop {
            if let Some(guard) = self.try_lock(cpu) {
                return Some(guard);
            }
            if self.is_held_by(cpu) {
                return None;
            }
            // Wait by reading, which leaves the line shared, until there is something to win.
            while self.holder.load(Ordering::Relaxed) != FREE {
                spin_loop();
            }
        }
    }

    /// Takes the lock if that needs no waiting.
    pub(crate) fn try_lock(&self, cpu: Option<usize>) -> Option<Guard<'_, T>> {
        let acquire = if mutated("the lock does not acquire") {
            Ordering::Relaxed
        } else {
            Ordering::Acquire
        };
        self.holder
            .compare_exchange(FREE, tag(cpu), acquire, Ordering::Relaxed)
            .is_ok()
            .then(|| Guard {
                data: self.data.get_mut(),
                _hold: Hold(&self.holder),
            })
    }

    /// Whether `cpu` holds the lock. Never for `None`: CPUs without a number can't be told apart.
    pub(crate) fn is_held_by(&self, cpu: Option<usize>) -> bool {
        if mutated("every CPU is taken for the holder") {
            return self.holder.load(Ordering::Relaxed) != FREE;
        }
        // Relaxed: a CPU sees its own stores in order, and no other CPU stores this one's number.
        cpu.is_some() && self.holder.load(Ordering::Relaxed) == tag(cpu)
    }
}

fn tag(cpu: Option<usize>) -> usize {
    cpu.map_or(NAMELESS, |number| number.saturating_add(1))
}

/// The right to the data, until dropped.
pub(crate) struct Guard<'a, T> {
    /// A shared guard lends `&T`, which `Lock`'s own `Sync` says nothing about; so a guard stays
    /// with whoever took it, as a pointer does.
    data: MutPtr<T>,
    /// Dropped after the pointer.
    _hold: Hold<'a>,
}

/// The lock is held.
struct Hold<'a>(&'a AtomicUsize);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one, and it lends the data for no longer than it is
        // borrowed itself.
        unsafe { self.data.deref() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and the guard is borrowed exclusively.
        unsafe { self.data.deref() }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let release = if mutated("the lock does not release") {
            Ordering::Relaxed
        } else {
            Ordering::Release
        };
        self.0.store(FREE, release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn own_cpu_is_refused_and_others_are_not_mistaken_for_it() {
        let lock = Lock::new(());
        let guard = lock.lock(Some(3));
        assert!(guard.is_some());
        assert!(lock.is_held_by(Some(3)));
        assert!(!lock.is_held_by(Some(2)));
        assert!(lock.lock(Some(3)).is_none());
        assert!(lock.try_lock(Some(2)).is_none());
        drop(guard);
        assert!(!lock.is_held_by(Some(3)));
        assert!(lock.lock(Some(3)).is_some());
    }

    #[test]
    fn nameless_cpus_are_never_taken_for_the_holder() {
        let lock = Lock::new(());
        let guard = lock.lock(None);
        assert!(guard.is_some());
        assert!(!lock.is_held_by(None));
        assert!(lock.try_lock(None).is_none());
    }
}
