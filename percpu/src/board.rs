//! Orders that one CPU gives to all others.

use alloc::boxed::Box;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, UnsafeCell, mutated, order_unless};

/// Where a CPU gives the others something to do, one order after the other: each of them carries out
/// each order once. CPUs are told apart by their *places*, from 0.
///
/// Nobody waits here: whoever gives the order looks when all are done, and whoever is to carry one out
/// looks whether there is one, and may halt in between if an interrupt follows the order. Nothing is
/// allocated after the start.
///
/// ```
/// use muster_percpu::Board;
///
/// let board = Board::new(2);
/// assert!(board.give("count the frames"));
/// assert!(!board.give("and more"), "nobody has done the first yet");
/// for place in 0..2 {
///     assert!(board.carry_out(place, |order| assert_eq!(order, "count the frames")));
///     assert!(!board.carry_out(place, |_| unreachable!()), "once");
/// }
/// assert!(board.is_done());
/// ```
pub struct Board<W> {
    /// Orders given so far. A place whose own count is behind has one to carry out.
    given: CachePadded<AtomicU64>,
    order: UnsafeCell<MaybeUninit<W>>,
    places: Box<[CachePadded<Place>]>,
}

/// How far the CPU at one place is.
struct Place {
    /// Orders that were taken from the board here.
    taken: AtomicU64,
    /// Those of them that are carried out.
    done: AtomicU64,
}

impl Place {
    /// Takes the order of this number. `false`: somebody else has.
    fn take(&self, number: u64) -> bool {
        let before = number - 1;
        if mutated("an order is taken without a look") {
            let is_first = self.taken.load(Ordering::Relaxed) == before;
            self.taken.store(number, Ordering::Relaxed);
            return is_first;
        }
        // Relaxed: the order itself is read after the count of those given, with Acquire.
        self.taken
            .compare_exchange(before, number, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

/// An order that was taken at a place. Dropped, also as `run` unwinds, it is done there.
struct Taken<'a> {
    place: &'a Place,
    number: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let publish = order_unless("that an order is done is not published", Ordering::Release);
        self.place.done.store(self.number, publish);
    }
}

// SAFETY: `order` is written by whoever raised `given` last or is about to, while every place has done
// all orders given (Acquire, after the Release of each place's last `done`), and copied at a place
// only after that saw a new count (Acquire, after the Release of the count) and before it is done
// with it. Two givers exclude each other by `given` itself, two CPUs at one place by `taken`.
unsafe impl<W: Copy + Send> Sync for Board<W> {}
// SAFETY: as above.
unsafe impl<W: Copy + Send> Send for Board<W> {}

/// In `given`: somebody is writing an order down.
const WRITING: u64 = 1 << 63;

impl<W: Copy> Board<W> {
    /// A board for so many CPUs, with nothing to do yet.
    pub fn new(cpus: usize) -> Self {
        let place = |_| {
            CachePadded::new(Place {
                taken: AtomicU64::new(0),
                done: AtomicU64::new(0),
            })
        };
        Self {
            given: CachePadded::new(AtomicU64::new(0)),
            order: UnsafeCell::new(MaybeUninit::uninit()),
            places: (0..cpus).map(place).collect(),
        }
    }

    /// Gives an order to all places. `false`: not all are done with the last one, or somebody else is
    /// giving one; nothing has changed then.
    #[must_use = "it may not be the time for another order"]
    pub fn give(&self, order: W) -> bool {
        let number = self.given.load(Ordering::Acquire);
        if number & WRITING != 0 || !self.have_done(number) {
            return false;
        }
        // Nobody takes an order while this is so, nor gives one.
        let began = self.given.compare_exchange(
            number,
            number | WRITING,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        if began.is_err() {
            return false;
        }
        // SAFETY: all are done with the last order, as was seen above, and this alone gives one.
        self.order
            .with_mut(|place| unsafe { (*place).write(order) });
        let publish = order_unless("an order is not published", Ordering::Release);
        self.given.store(number + 1, publish);
        true
    }

    /// Whether there is an order for this place that nobody has taken there.
    pub fn has_order(&self, place: usize) -> bool {
        self.waiting(place).is_some()
    }

    /// Carries the order out that there is for this place, if there is one. Says whether there was.
    ///
    /// # Panics
    ///
    /// If `run` does. The order counts as carried out at this place then, as nobody will ever carry
    /// out the rest of it there.
    pub fn carry_out(&self, place: usize, run: impl FnOnce(W)) -> bool {
        let Some((here, number)) = self.waiting(place) else {
            return false;
        };
        if !here.take(number) {
            return false;
        }
        // SAFETY: the count was read with Acquire and is ahead of this place's, so the order was
        // written before, and is not written again until this place has done it.
        let order = self
            .order
            .with(|order| unsafe { (*order).assume_init_read() });
        if mutated("an order is done before it is carried out") {
            here.done.store(number, Ordering::Release);
        }
        let _taken = Taken {
            place: here,
            number,
        };
        run(order);
        true
    }

    /// Whether every place has carried out the last order. What was done for it is visible then.
    pub fn is_done(&self) -> bool {
        self.late().is_none()
    }

    /// The first place that has not carried out the last order.
    pub fn late(&self) -> Option<usize> {
        let number = self.given.load(Ordering::Relaxed) & !WRITING;
        self.places
            .iter()
            .position(|place| place.done.load(Ordering::Acquire) != number)
    }

    fn have_done(&self, number: u64) -> bool {
        self.places
            .iter()
            .all(|place| place.done.load(Ordering::Acquire) == number)
    }

    /// The order that waits at a place, by its number.
    fn waiting(&self, place: usize) -> Option<(&Place, u64)> {
        let here = &**self.places.get(place)?;
        let number = self.given.load(Ordering::Acquire);
        let is_waiting = number & WRITING == 0 && here.taken.load(Ordering::Relaxed) != number;
        is_waiting.then_some((here, number))
    }
}
