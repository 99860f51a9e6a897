//! A spin lock that knows which CPU holds it.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::Ordering;

use muster_sync::{AtomicUsize, MutPtr, UnsafeCell, const_unless_modelled, spin_loop};

/// No CPU holds the lock.
pub(crate) const FREE: usize = 0;
/// A CPU that has no number yet holds the lock.
const UNKNOWN_CPU: usize = usize::MAX;

/// A spin lock that refuses a CPU which holds it already, instead of deadlocking on it.
///
/// A CPU that holds it has interrupts disabled, so only a non-maskable interrupt, a panic inside the
/// critical section, or code called with the lock held can come back to the lock on the same CPU.
///
/// While a CPU holds the lock it runs code whose length has a bound and never calls the platform. So a
/// long wait means that the holder has stopped, which the [`Waiter`] detects.
///
/// The lock word is the holder itself: with a holder recorded beside the lock there would be an instant
/// in which the lock is taken and an NMI can't see by which CPU.
pub(crate) struct Lock<T> {
    /// [`FREE`], [`UNKNOWN_CPU`], or the holder's CPU number plus one.
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

    /// Waits for the lock; returns `None` if the CPU itself holds it.
    pub(crate) fn lock(&self, waiter: &impl Waiter) -> Option<Guard<'_, T>> {
        let cpu = waiter.cpu();
        let mut watch = Watch::NOBODY;
        loop {
            if let Some(guard) = self.try_lock(cpu) {
                return Some(guard);
            }
            if self.is_held_by(cpu) {
                return None;
            }
            // Wait by reading, which leaves the line shared, until there is something to win.
            loop {
                // Relaxed: only for whom to wait; `try_lock` acquires.
                let holder = self.holder.load(Ordering::Relaxed);
                watch.see(holder);
                if holder == FREE {
                    break;
                }
                waiter.wait(cpu_of(holder), &mut watch.state);
            }
        }
    }

    /// Takes the lock if that needs no waiting.
    pub(crate) fn try_lock(&self, cpu: Option<usize>) -> Option<Guard<'_, T>> {
        // Acquire, with the Release of `Hold`: all that the last holder did is visible. Relaxed where it
        // fails, as nothing is read then.
        self.holder
            .compare_exchange(FREE, tag(cpu), Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            .then(|| Guard {
                data: self.data.get_mut(),
                _hold: Hold(&self.holder),
            })
    }

    /// Returns whether `cpu` holds the lock. Never for `None`: CPUs without a number can't be told
    /// apart.
    pub(crate) fn is_held_by(&self, cpu: Option<usize>) -> bool {
        // Relaxed: a CPU sees its own stores in order, and no other CPU stores this one's number.
        cpu.is_some() && self.holder.load(Ordering::Relaxed) == tag(cpu)
    }
}

/// The holder that a CPU waits for, and the state that its [`Waiter`] keeps about that wait.
struct Watch {
    holder: usize,
    state: u64,
}

impl Watch {
    const NOBODY: Self = Self {
        holder: FREE,
        state: 0,
    };

    /// Begins again with each holder: among many that come and go, none is stuck, nor is one that has
    /// released the lock and taken it again.
    const fn see(&mut self, holder: usize) {
        if holder != self.holder {
            *self = Self { holder, state: 0 };
        }
    }
}

/// Returns the value of a lock's word that stands for a CPU.
pub(crate) fn tag(cpu: Option<usize>) -> usize {
    cpu.map_or(UNKNOWN_CPU, |number| number.saturating_add(1))
}

fn cpu_of(tag: usize) -> Option<usize> {
    tag.checked_sub(1).filter(|_| tag != UNKNOWN_CPU)
}

/// The code that takes a lock: its CPU, and its behaviour while it waits.
pub(crate) trait Waiter {
    /// Returns the number of the CPU, if it has one.
    fn cpu(&self) -> Option<usize>;

    /// Waits a moment for `holder`, `None` if that has no number. `state` is 0 the first time, and
    /// the waiter's to keep what it wants in, such as when to give up.
    fn wait(&self, holder: Option<usize>, state: &mut u64);
}

/// The number of polls after which a lock's holder counts as stopped, where nobody knows the time: for
/// seconds at least.
const MAX_POLLS: u64 = 1 << 32;

/// Counts a poll of a lock, waits a moment, and returns whether it was one too many.
pub(crate) fn is_overdue(polls: &mut u64) -> bool {
    *polls += 1;
    spin_loop();
    *polls > MAX_POLLS
}

/// Panics, as a lock's holder has stopped.
#[cold]
pub(crate) fn report_stuck(holder: Option<usize>) -> ! {
    match holder {
        Some(cpu) => panic!("CPU {cpu} holds a lock of the heap and does not go on"),
        None => panic!("a CPU without a number holds a lock of the heap and does not go on"),
    }
}

/// Waits for ever: for models and tests.
#[cfg(test)]
impl Waiter for Option<usize> {
    fn cpu(&self) -> Option<usize> {
        *self
    }

    fn wait(&self, _holder: Option<usize>, _state: &mut u64) {
        spin_loop();
    }
}

/// The right to the data, until dropped.
pub(crate) struct Guard<'a, T> {
    /// A shared guard lends `&T`, which `Lock`'s own `Sync` says nothing about; so a guard stays on the
    /// CPU that took it, as a pointer does.
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
        // Release, with the Acquire of `try_lock`: the next holder sees all that this one did.
        self.0.store(FREE, Ordering::Release);
    }
}

#[cfg(all(test, feature = "hosted", not(loom)))]
mod tests {
    use core::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::string::String;

    use super::*;

    #[test]
    fn own_cpu_is_refused_and_others_are_not_mistaken_for_it() {
        let lock = Lock::new(());
        let guard = lock.lock(&Some(3));
        assert!(guard.is_some());
        assert!(lock.is_held_by(Some(3)));
        assert!(!lock.is_held_by(Some(2)));
        assert!(lock.lock(&Some(3)).is_none());
        assert!(lock.try_lock(Some(2)).is_none());
        drop(guard);
        assert!(!lock.is_held_by(Some(3)));
        assert!(lock.lock(&Some(3)).is_some());
    }

    #[test]
    fn nameless_cpus_are_never_taken_for_the_holder() {
        let lock = Lock::new(());
        let guard = lock.lock(&None);
        assert!(guard.is_some());
        assert!(!lock.is_held_by(None));
        assert!(lock.try_lock(None).is_none());
    }

    /// A CPU that gives up a holder after some polls.
    struct Impatient {
        polls: Cell<u64>,
        last: Cell<Option<usize>>,
    }

    impl Waiter for Impatient {
        fn cpu(&self) -> Option<usize> {
            Some(0)
        }

        fn wait(&self, holder: Option<usize>, state: &mut u64) {
            self.polls.set(self.polls.get() + 1);
            self.last.set(holder);
            *state += 1;
            if *state > 1000 {
                report_stuck(holder);
            }
        }
    }

    #[test]
    fn a_holder_that_has_stopped_is_named() {
        for (holder, words) in [
            (Some(7), "CPU 7 holds a lock of the heap and does not go on"),
            (None, "a CPU without a number holds a lock"),
        ] {
            let lock = Lock::new(());
            let held = lock.try_lock(holder);
            let waiter = Impatient {
                polls: Cell::new(0),
                last: Cell::new(Some(99)),
            };
            let caught = catch_unwind(AssertUnwindSafe(|| drop(lock.lock(&waiter)))).unwrap_err();
            let message = (caught.downcast_ref::<String>().cloned())
                .or_else(|| caught.downcast_ref::<&str>().map(|&words| words.into()));
            assert!(message.unwrap().contains(words));
            assert_eq!((waiter.polls.get(), waiter.last.get()), (1001, holder));
            drop(held);
        }
    }

    #[test]
    fn time_counts_against_one_holder_and_not_against_a_lock_that_many_use() {
        struct Handing<'a> {
            lock: &'a Lock<()>,
            turns: Cell<usize>,
        }

        impl Waiter for Handing<'_> {
            fn cpu(&self) -> Option<usize> {
                Some(0)
            }

            fn wait(&self, holder: Option<usize>, state: &mut u64) {
                *state += 1;
                assert_eq!(*state, 1, "another CPU holds it each time");
                let turn = self.turns.get() + 1;
                self.turns.set(turn);
                assert_eq!(holder, Some(turn));
                // Handed to the next CPU, as if by the holder.
                let next = if turn == 5 { FREE } else { tag(Some(turn + 1)) };
                self.lock.holder.store(next, Ordering::Relaxed);
            }
        }

        let lock = Lock::new(());
        core::mem::forget(lock.try_lock(Some(1)));
        let waiter = Handing {
            lock: &lock,
            turns: Cell::new(0),
        };
        assert!(lock.lock(&waiter).is_some());
        assert_eq!(waiter.turns.get(), 5);
    }

    #[test]
    fn time_does_not_count_against_a_holder_that_was_seen_to_release_the_lock() {
        let mut watch = Watch::NOBODY;
        watch.see(tag(Some(1)));
        watch.state = 1000;
        watch.see(tag(Some(1)));
        assert_eq!(watch.state, 1000);
        watch.see(FREE);
        watch.see(tag(Some(1)));
        assert_eq!(watch.state, 0);
    }

    #[test]
    fn looks_are_counted_where_nobody_knows_the_time() {
        let mut polls = 0;
        assert!(!is_overdue(&mut polls) && polls == 1);
        polls = MAX_POLLS;
        assert!(is_overdue(&mut polls));
    }
}
