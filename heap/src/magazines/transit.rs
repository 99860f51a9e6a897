//! Memory in transit: taken from one place and not yet in the next, so that no CPU finds it.

use core::cell::Cell;
use core::mem::ManuallyDrop;
use core::sync::atomic::Ordering;

use muster_sync::{AtomicU64, AtomicUsize, const_unless_modelled, fence};

use crate::lock::{FREE, tag};

/// The number of tries of a CPU that has the turn, but for one that comes when nothing is in transit. Each met an operation of
/// another CPU, which waits for the turn if it finds nothing either: so this many in a row means that the others get memory.
const MAX_TRIES: usize = if cfg!(loom) { 2 } else { 64 };

/// The number of searches that are made as long as other CPUs have something in transit in between.
const MAX_SEARCHES: usize = 4;

/// How long a CPU has waited. For the two apart: CPUs that had the turn for long, one after the other, are no reason to be
/// refused because of what one of them has in transit.
#[derive(Default)]
struct Waits {
    for_turn: u64,
    for_memory: u64,
}

/// One operation that is under way, in the lower half of the word.
const UNDER_WAY: u64 = 1;
/// One that has ended, in the upper half. The number wraps.
const ENDED: u64 = 1 << 32;

/// The reason why an attempt found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Memory is short, and this code may do something about it.
    Short,
    /// The same, but the attempt has given memory back, and the next one may find more of it.
    GaveBack,
    /// This code interrupted its own CPU inside the heap.
    Nested,
}

/// The record of which CPUs have memory in transit, and whose turn it is to try for the last of it.
///
/// A CPU may be refused because of memory that others hold for an instant: frames of an attempt that
/// fails, or blocks on their way to a slab. Two may be refused because of each other, again and again.
/// So an allocation that found nothing tries for the last time in [`seek`](Self::seek), one CPU after
/// the other, until no other CPU had anything in transit during a whole try.
///
/// The turn is no lock: it protects no data, and a CPU that has waited long enough takes it. A CPU that
/// has stopped for good costs the others time, and what it holds.
#[repr(align(128))]
pub(super) struct Transit {
    /// Operations under way, and those that have ended.
    operations: AtomicU64,
    /// The CPU that has the turn, as in a lock's word.
    turn: AtomicUsize,
}

impl Transit {
    const_unless_modelled! {
        pub(super) const fn new() -> Self {
            Self {
                operations: AtomicU64::new(0),
                turn: AtomicUsize::new(FREE),
            }
        }
    }

    /// Announces that this CPU has memory in transit from now on, until the result is dropped.
    pub(super) fn begin(&self) -> InTransit<'_> {
        // Relaxed: the fence orders it before any memory is taken.
        let before = self.operations.fetch_add(UNDER_WAY, Ordering::Relaxed);
        // With the one in `seek`: a CPU that is refused because of what is taken from here on finds
        // this operation in the word. The platform need not order that for us.
        fence(Ordering::SeqCst);
        InTransit {
            transit: self,
            before,
        }
    }

    fn finish(&self) -> u64 {
        let change = ENDED - UNDER_WAY;
        // Release: a CPU that sees that the operation has ended finds the memory where it belongs.
        // Acquire: `seek` relies on the word.
        let before = self.operations.fetch_add(change, Ordering::AcqRel);
        before.wrapping_add(change)
    }

    /// Tries, when it is this CPU's turn, until no other CPU has anything in transit during a try,
    /// and that has given nothing back itself; then makes a `search`, which may take longer than interrupts may be disabled for,
    /// and all of it again if another CPU has had something in transit in between. The search counts its own operations.
    ///
    /// The caller holds no lock. `enter` disables interrupts, and says which CPU this is; `wait` waits
    /// a moment, or returns `false` if that has lasted too long. Memory that `attempt` announces by
    /// itself counts as another CPU's.
    pub(super) fn seek<T, G>(
        &self,
        enter: impl Fn() -> (Option<usize>, G),
        wait: impl Fn(&mut u64) -> bool,
        attempt: impl Fn() -> Result<T, Refused>,
        search: impl Fn(&Cell<u64>) -> Option<T>,
    ) -> Option<T> {
        let mut waits = Waits::default();
        for _ in 0..MAX_SEARCHES {
            let before = match self.try_in_turn(&enter, &wait, &mut waits, &attempt) {
                Ok(found) => return Some(found),
                Err(before) => before,
            };
            let own = Cell::new(0);
            if let Some(found) = search(&own) {
                return Some(found);
            }
            // See `begin`.
            fence(Ordering::SeqCst);
            let expected = before.wrapping_add(own.get() * ENDED);
            // Acquire: what an operation that has ended brought is there for the next try.
            if self.operations.load(Ordering::Acquire) == expected {
                break;
            }
        }
        None
    }

    /// Does what [`seek`](Self::seek) does before it searches. `Err`: the word after the last try.
    fn try_in_turn<T, G>(
        &self,
        enter: &impl Fn() -> (Option<usize>, G),
        wait: &impl Fn(&mut u64) -> bool,
        waits: &mut Waits,
        attempt: &impl Fn() -> Result<T, Refused>,
    ) -> Result<T, u64> {
        let mut tries_left = MAX_TRIES;
        let mut is_late = false;
        loop {
            let turn = self.take_turn(enter, || wait(&mut waits.for_turn));
            let this = self.begin();
            let refused = match attempt() {
                Ok(found) => return Ok(found),
                Err(refused) => refused,
            };
            // See `begin`.
            fence(Ordering::SeqCst);
            let expected = this.ended_alone();
            let now = this.end();
            // The code that this one interrupted, in a handler that nothing masks, waits for the turn no more: it has it. Its own
            // try may be under way, for which this must not wait; so it is refused, maybe too early, as code may be that has
            // interrupted a slow path.
            let is_nested = turn.held.is_none();
            drop(turn);
            if refused == Refused::GaveBack {
                // Not counted: there is an end of what can be given back.
                continue;
            }
            if now == expected || is_nested || is_late || tries_left == 0 {
                return Err(now);
            }
            tries_left -= 1;
            // Once in any case: an operation that has ended in between may have been one of many that bring nothing.
            loop {
                if !wait(&mut waits.for_memory) {
                    // For the last time.
                    is_late = true;
                    break;
                }
                // Acquire: what an operation that has ended brought is there for the next try.
                let now = self.operations.load(Ordering::Acquire);
                let is_quiet = now.is_multiple_of(ENDED);
                // In the end, operations that end may all have begun later than one that has been under way all the time.
                if is_quiet || tries_left > 0 && now / ENDED != expected / ENDED {
                    break;
                }
            }
        }
    }

    /// Waits until no other CPU has the turn, or for too long, and takes it.
    fn take_turn<G>(
        &self,
        enter: impl Fn() -> (Option<usize>, G),
        mut wait: impl FnMut() -> bool,
    ) -> Turn<'_, G> {
        let mut is_late = false;
        loop {
            let (cpu, guard) = enter();
            let own = tag(cpu);
            // Relaxed, here and where it is given up: the turn decides only who waits. `operations`
            // orders what a try finds.
            let holder = self.turn.load(Ordering::Relaxed);
            // The code that this one interrupted has it, and does nothing with it until this returns.
            // CPUs without a number can't be told apart.
            if holder == own && cpu.is_some() {
                return Turn {
                    held: None,
                    _guard: guard,
                };
            }
            if (holder == FREE || is_late)
                && (self.turn)
                    .compare_exchange(holder, own, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                let turn = &self.turn;
                return Turn {
                    held: Some(Held { turn, own }),
                    _guard: guard,
                };
            }
            drop(guard);
            is_late = !wait();
        }
    }
}

/// An operation that has memory in transit, until dropped.
#[must_use]
pub(super) struct InTransit<'a> {
    transit: &'a Transit,
    /// The word before this operation.
    before: u64,
}

impl InTransit<'_> {
    /// Returns what [`end`](Self::end) returns if there is no other operation from the beginning of this
    /// one to its end.
    const fn ended_alone(&self) -> u64 {
        // Without those that were under way: they have ended since, or still are.
        (self.before / ENDED * ENDED).wrapping_add(ENDED)
    }

    /// Ends the operation, and returns the word after it.
    fn end(self) -> u64 {
        let this = ManuallyDrop::new(self);
        this.transit.finish()
    }
}

impl Drop for InTransit<'_> {
    fn drop(&mut self) {
        self.transit.finish();
    }
}

/// The right to try, with interrupts disabled: no CPU must wait for code that was interrupted.
struct Turn<'a, G> {
    /// `None`: it is given up by the code that this one interrupted. Dropped before the guard.
    held: Option<Held<'a>>,
    _guard: G,
}

struct Held<'a> {
    turn: &'a AtomicUsize,
    own: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Fails if another CPU has waited too long and taken it. Relaxed, as in `take_turn`.
        let _ = (self.turn).compare_exchange(self.own, FREE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::RefCell;

    use super::*;

    const MAX_WAITS: u64 = 100;

    fn cpu(number: usize) -> impl Fn() -> (Option<usize>, ()) {
        move || (Some(number), ())
    }

    fn wait(state: &mut u64) -> bool {
        *state += 1;
        assert!(*state <= MAX_WAITS);
        *state < MAX_WAITS
    }

    fn never(_state: &mut u64) -> bool {
        panic!("there is nothing to wait for")
    }

    #[test]
    fn who_is_alone_tries_once() {
        let transit = Transit::new();
        let tries = Cell::new(0);
        let found = transit.seek(
            cpu(1),
            never,
            || -> Result<(), _> {
                tries.set(tries.get() + 1);
                Err(Refused::Short)
            },
            |_| None,
        );
        assert_eq!((found, tries.get()), (None, 1));
    }

    #[test]
    fn code_that_interrupts_the_cpu_that_has_the_turn_does_not_wait_for_it() {
        for number in [0, 7] {
            let transit = Transit::new();
            let turn = transit.take_turn(cpu(number), || never(&mut 0));
            assert_eq!(
                transit.seek(cpu(number), never, || Ok(5), |_| None),
                Some(5)
            );
            // The interrupted code still has it.
            let mut waits = 0;
            let other = transit.take_turn(cpu(3), || {
                waits += 1;
                waits < 10
            });
            assert_eq!(waits, 10);
            // And no longer has it, and doesn't give up the other CPU's.
            drop(turn);
            assert_eq!(transit.turn.load(Ordering::Relaxed), tag(Some(3)));
            drop(other);
            assert_eq!(transit.seek(cpu(4), never, || Ok(5), |_| None), Some(5));
        }
    }

    #[test]
    fn code_that_interrupts_its_cpu_s_own_try_does_not_wait_for_it() {
        let transit = Transit::new();
        let nested = || {
            transit
                .seek(cpu(1), never, || Err::<(), _>(Refused::Short), |_| None)
                .ok_or(Refused::Short)
        };
        assert_eq!(transit.seek(cpu(1), |_| true, nested, |_| None), None);
    }

    #[test]
    fn the_turn_is_had_with_interrupts_disabled_and_not_while_waiting() {
        struct Disabled<'a>(&'a Cell<bool>);

        impl Drop for Disabled<'_> {
            fn drop(&mut self) {
                self.0.set(false);
            }
        }

        let (transit, are_disabled) = (Transit::new(), Cell::new(false));
        let other = Cell::new(Some(transit.begin()));
        let enter = || {
            are_disabled.set(true);
            (Some(1), Disabled(&are_disabled))
        };
        let state = || (are_disabled.get(), transit.turn.load(Ordering::Relaxed));
        let wait = |_: &mut u64| {
            assert_eq!(state(), (false, FREE));
            drop(other.take());
            true
        };
        let tries = Cell::new(0);
        let found = transit.seek(
            enter,
            wait,
            || {
                assert_eq!(state(), (true, tag(Some(1))));
                tries.set(tries.get() + 1);
                Err::<(), _>(Refused::Short)
            },
            |_| None,
        );
        assert_eq!((found, tries.get()), (None, 2));
        assert_eq!(state(), (false, FREE));
    }

    #[test]
    fn a_cpu_that_has_stopped_with_the_turn_is_waited_for_once() {
        for stopped in [Some(0), None] {
            let transit = Transit::new();
            core::mem::forget(transit.take_turn(|| (stopped, ()), || never(&mut 0)));
            assert_eq!(transit.seek(cpu(1), wait, || Ok(5), |_| None), Some(5));
            assert_eq!(transit.seek(cpu(2), never, || Ok(5), |_| None), Some(5));
        }
    }

    #[test]
    fn time_spent_for_the_turn_is_none_spent_for_memory_in_transit() {
        let transit = Transit::new();
        core::mem::forget(transit.take_turn(cpu(0), || never(&mut 0)));
        let other = Cell::new(Some(transit.begin()));
        let tries = Cell::new(0);
        let wait = |state: &mut u64| {
            // Once the turn was had.
            if tries.get() > 0 {
                drop(other.take());
            }
            wait(state)
        };
        let found = transit.seek(
            cpu(1),
            wait,
            || {
                tries.set(tries.get() + 1);
                (tries.get() == 2).then_some(5).ok_or(Refused::Short)
            },
            |_| None,
        );
        assert_eq!((found, tries.get()), (Some(5), 2));
    }

    #[test]
    fn a_cpu_that_has_stopped_with_memory_in_transit_is_not_waited_for_for_ever() {
        let transit = Transit::new();
        core::mem::forget(transit.begin());
        assert_eq!(
            transit.seek(cpu(1), wait, || Err::<(), _>(Refused::Short), |_| None),
            None
        );
        assert_eq!(transit.seek(cpu(1), never, || Ok(5), |_| None), Some(5));
    }

    #[test]
    fn what_a_try_gave_back_itself_is_reason_for_another_one() {
        let transit = Transit::new();
        let tries = Cell::new(0);
        let attempt = || -> Result<(), _> {
            tries.set(tries.get() + 1);
            Err(if tries.get() == 3 * MAX_TRIES {
                Refused::Short
            } else {
                Refused::GaveBack
            })
        };
        assert_eq!(transit.seek(cpu(1), never, attempt, |_| None), None);
        assert_eq!(tries.get(), 3 * MAX_TRIES);
    }

    #[test]
    fn an_operation_that_ended_during_a_try_is_reason_for_another_one() {
        let transit = Transit::new();
        // Also where the number of those that have ended wraps.
        (transit.operations).store(u64::MAX / ENDED * ENDED, Ordering::Relaxed);
        for _ in 0..3 {
            let tries = Cell::new(0);
            let found = transit.seek(
                cpu(1),
                |_| true,
                || {
                    tries.set(tries.get() + 1);
                    drop(transit.begin());
                    (tries.get() == 3).then_some(()).ok_or(Refused::Short)
                },
                |_| None,
            );
            assert_eq!(found, Some(()));
        }
        let tries = Cell::new(0);
        let found = transit.seek(
            cpu(1),
            |_| true,
            || {
                tries.set(tries.get() + 1);
                drop(transit.begin());
                Err::<(), _>(Refused::Short)
            },
            |_| None,
        );
        assert_eq!((found, tries.get()), (None, MAX_TRIES + 1));
    }

    #[test]
    fn it_is_searched_again_while_others_have_something_in_transit() {
        let transit = Transit::new();
        let (tries, searches) = (Cell::new(0), Cell::new(0));
        let attempt = || {
            tries.set(tries.get() + 1);
            Err::<(), _>(Refused::Short)
        };
        let search = |own: &Cell<u64>| {
            // Its own steps are no reason.
            drop(transit.begin());
            own.set(own.get() + 1);
            searches.set(searches.get() + 1);
            if searches.get() < 3 {
                drop(transit.begin());
            }
            None
        };
        assert_eq!(transit.seek(cpu(1), never, attempt, search), None);
        assert_eq!((tries.replace(0), searches.replace(0)), (3, 3));
        let search = |_: &Cell<u64>| {
            searches.set(searches.get() + 1);
            drop(transit.begin());
            None
        };
        assert_eq!(transit.seek(cpu(1), never, attempt, search), None);
        assert_eq!((tries.get(), searches.get()), (MAX_SEARCHES, MAX_SEARCHES));
    }

    #[test]
    fn what_is_under_way_all_the_time_is_waited_for_although_other_operations_end() {
        let transit = Transit::new();
        let slow = RefCell::new(Some(transit.begin()));
        let waits = Cell::new(0);
        let wait = |_: &mut u64| {
            drop(transit.begin());
            waits.set(waits.get() + 1);
            if waits.get() == 10 * MAX_TRIES {
                slow.take();
            }
            true
        };
        let attempt = || match *slow.borrow() {
            Some(_) => Err(Refused::Short),
            None => Ok(5),
        };
        assert_eq!(transit.seek(cpu(1), wait, attempt, |_| None), Some(5));
        assert_eq!(waits.get(), 10 * MAX_TRIES);
    }
}
