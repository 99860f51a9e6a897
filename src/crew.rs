//! Orders for all CPUs: one closure, run once on each, the BSP included.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use x86_64::instructions::interrupts;

use crate::clock::Deadline;
use crate::roll::Admission;
use crate::{call, cpu, lapic, tlb};

/// An order: called with the number of the CPU among those at work, 0 first.
type Order<'a> = dyn Fn(usize) + Sync + 'a;

/// The order of the day. Written by the BSP while no AP looks at it.
struct Board {
    /// Orders given so far. An AP whose own count is behind has one to carry out.
    given: CachePadded<AtomicU64>,
    order: UnsafeCell<Option<&'static Order<'static>>>,
    in_use: AtomicBool,
}

// SAFETY: `order` is written by the BSP only, by one `all` at a time, while every AP of
// the crew has done all orders given (`all` waits for that), and read by an AP only
// after it saw a new count: the write happens before the Release of the count, the
// reads after its Acquire, and the next write after the Acquire of every AP's done
// count.
unsafe impl Sync for Board {}

static BOARD: Board = Board {
    given: CachePadded::new(AtomicU64::new(0)),
    order: UnsafeCell::new(None),
    in_use: AtomicBool::new(false),
};

/// The CPUs at work: the BSP and every AP that the roll call admitted.
pub fn members() -> impl Iterator<Item = (u32, &'static cpu::Shared)> {
    cpu::all().filter(|(_, shared)| shared.report.admission() == Admission::Admitted)
}

/// How many CPUs are at work.
pub fn size() -> usize {
    members().count()
}

/// A line that CPUs wait at until all are there, and then leave together.
///
/// # Ordering
///
/// Everything a CPU did before it came to the line is visible to all after it.
pub struct StartLine {
    cpus: usize,
    patience_millis: u64,
    waiting: AtomicUsize,
    round: AtomicUsize,
}

impl StartLine {
    /// A line for `cpus` CPUs, each of which waits at most `patience_millis` for the
    /// others.
    pub const fn new(cpus: usize, patience_millis: u64) -> Self {
        Self {
            cpus,
            patience_millis,
            waiting: AtomicUsize::new(0),
            round: AtomicUsize::new(0),
        }
    }

    /// Waits until every CPU is at the line, and serves calls meanwhile.
    ///
    /// # Panics
    ///
    /// If one of them does not come in time.
    pub fn wait(&self) {
        let round = self.round.load(Ordering::Acquire);
        if self.waiting.fetch_add(1, Ordering::AcqRel) + 1 == self.cpus {
            // Nobody comes again before it has seen the new round.
            self.waiting.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        let deadline = Deadline::after_millis(self.patience_millis);
        while self.round.load(Ordering::Acquire) == round {
            assert!(
                !deadline.passed(),
                "only {} of {} CPUs came to the line within {} ms",
                self.waiting.load(Ordering::Relaxed),
                self.cpus,
                self.patience_millis
            );
            call::serve();
            core::hint::spin_loop();
        }
    }
}

/// Runs `order` on every CPU at work, side by side, and waits until all are done.
///
/// # Panics
///
/// If called anywhere but on the BSP, or from within an order. If a CPU is not done within `patience_millis` of the BSP's own part: `order`
/// may not go out of scope while a CPU still runs it, so there is no way back.
pub fn all(patience_millis: u64, order: &(dyn Fn(usize) + Sync)) {
    let is_bsp = cpu::with(|here| here.index() == 0);
    assert!(
        is_bsp && !BOARD.in_use.swap(true, Ordering::AcqRel),
        "an order within an order"
    );
    // SAFETY: only the lifetime changes. This function does not return, nor unwind
    // (panics end the run), before every CPU has finished with the reference.
    let order: &'static Order<'static> =
        unsafe { core::mem::transmute::<&Order<'_>, &'static Order<'static>>(order) };
    let number = BOARD.given.load(Ordering::Relaxed) + 1;
    // SAFETY: every AP has done order `number - 1`: this function waited for that
    // the last time, or there was none. So no one reads the cell now.
    unsafe { *BOARD.order.get() = Some(order) };
    BOARD.given.store(number, Ordering::Release);
    for (index, shared) in members().skip(1) {
        assert!(
            lapic::wake(shared.lapic_id),
            "CPU {index} can't be woken: no interrupt reaches LAPIC id {}",
            shared.lapic_id
        );
    }
    order(0);
    let deadline = Deadline::after_millis(patience_millis);
    for (index, shared) in members().skip(1) {
        while shared.orders_done.load(Ordering::Acquire) < number {
            assert!(
                !deadline.passed(),
                "CPU {index} did not finish its part within {patience_millis} ms of the BSP's"
            );
            call::serve();
            core::hint::spin_loop();
        }
    }
    BOARD.in_use.store(false, Ordering::Release);
}

/// Halts this CPU, asleep, until something interrupts it: another CPU, or its timer if that is in use
/// ([`crate::timer::every`]). Interrupts come on together with the halt, and stay on.
pub fn nap() {
    interrupts::disable();
    tlb::fall_asleep();
    interrupts::enable_and_hlt();
    tlb::wake_up();
}

/// The life of AP `index` after it came online: carries out orders as they are given,
/// and halts while there are none.
pub fn serve(index: u32) -> ! {
    let mut done = 0;
    loop {
        // Interrupts are off from before the look at the board until the halt: a wake-up sent
        // since then waits for exactly this, so none is lost.
        while BOARD.given.load(Ordering::Acquire) == done {
            nap();
            interrupts::disable();
        }
        // SAFETY: the count was read with Acquire and is ahead of this CPU's, so the
        // order was written before, and is not written again until this CPU is done.
        let order = unsafe { *BOARD.order.get() };
        // The roll call is over before the first order, so the places stand.
        let place = members().position(|(member, _)| member == index);
        if let (Some(order), Some(place)) = (order, place) {
            interrupts::enable();
            order(place);
            interrupts::disable();
        }
        done += 1;
        cpu::with(|here| here.shared().orders_done.store(done, Ordering::Release));
    }
}
