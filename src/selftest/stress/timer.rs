//! Timer: every CPU allocates and frees, and so does the handler of its timer, on top of it,
//! thousands of times a second: where the timers fire less often, as in a virtual machine with more
//! CPUs than its host, the CPUs send each other the interrupt.

use core::cell::{Cell, RefCell};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use heapless::Deque;
use muster::internals::smp::{cpu, lapic, timer};

use super::block::TestBlock;
use super::marked::{LAYOUT, Marker, SIZE};
use super::random::Random;
use super::worker::Worker;

/// From the end of a handler to the next interrupt, in microseconds.
const PERIOD: u64 = 50;

/// The minimum number of interrupts that a CPU must have taken before its time can be up: in a
/// short run a virtual CPU may get no time at all.
const MIN_INTERRUPTS: u64 = 4;

/// The number of slots through which the handler and the interrupted code pass blocks to each
/// other.
const SLOTS: usize = 16;

/// Blocks that the handler holds at most: more than a CPU caches of the size, so that it is the
/// handler that makes the heap refill and flush, and the other way round.
const HELD: usize = 300;

/// Blocks that the interrupted code keeps, of the handler's size and of mixed ones.
const ALIVE: usize = 64;
const MIXED: usize = 32;

/// Passes blocks between a handler and the code that it interrupts, by swaps alone.
struct Slots([AtomicPtr<u64>; SLOTS]);

impl Slots {
    /// Puts `block` into a slot, and returns the one that was there.
    fn swap(&self, slot: usize, block: Option<NonNull<u64>>) -> Option<NonNull<u64>> {
        let block = block.map_or(ptr::null_mut(), NonNull::as_ptr);
        // Relaxed: one CPU's own; it is atomic only because the compiler knows of no handlers.
        NonNull::new(self.0[slot % SLOTS].swap(block, Ordering::Relaxed))
    }

    /// Puts `block` into a slot, and frees the one that was there.
    fn exchange(&self, marker: &Marker, slot: usize, block: Option<NonNull<u64>>) {
        if let Some(block) = self.swap(slot, block) {
            // SAFETY: the slots hold blocks of markers only, and a swap takes it out.
            unsafe { marker.free(block) };
        }
    }
}

/// The handler's own state; no other handler interrupts it.
struct TickHandler {
    held: Deque<NonNull<u64>, HELD>,
    random: Random,
    /// Whether it is taking blocks or giving them back.
    takes: bool,
}

/// Rounds of the loop between two interrupts that are sent to another CPU.
const RING: u32 = 16;

/// Runs the workload on this CPU.
pub fn run(worker: &mut Worker<'_>) {
    under_ticks(worker, |worker, ticks| {
        let mut alive = Deque::<TestBlock, ALIVE>::new();
        let mut mixed = [const { None::<TestBlock> }; MIXED];
        while worker.goes_on() || ticks.count() < MIN_INTERRUPTS {
            if alive.is_full()
                && let Some(oldest) = alive.pop_front()
            {
                oldest.free(worker);
            }
            if let Some(block) = TestBlock::allocate(worker, SIZE, LAYOUT.align()) {
                // There is room: the oldest was just taken out.
                let _ = alive.push_back(block);
            }
            let size = worker.random.size(4, 12);
            let index = worker.random.below(MIXED);
            if let Some(block) = mixed[index].take() {
                block.free(worker);
            }
            mixed[index] = TestBlock::allocate(worker, size, 16);
            ticks.exchange(worker);
            if worker.rounds.is_multiple_of(RING) {
                ring_another(worker);
            }
        }
        for block in alive.into_iter().chain(mixed.into_iter().flatten()) {
            block.free(worker);
        }
    });
}

/// Sends another CPU its timer's interrupt.
pub fn ring_another(worker: &mut Worker<'_>) {
    let other = worker.random.below(worker.cpus);
    if other != worker.slot
        && let Some((_, other)) = worker.other(other)
    {
        // If it can't be sent, the timer fires by itself.
        lapic::ring(cpu::lapic_id(other));
    }
}

/// The work's view of the handler that interrupts it.
pub struct Ticks<'a> {
    interrupts: &'a Cell<u64>,
    slots: &'a Slots,
    marker: &'a Marker,
}

impl Ticks<'_> {
    /// Returns the number of its interrupts.
    pub fn count(&self) -> u64 {
        self.interrupts.get()
    }

    /// Puts a block into a slot for the handler, and frees two that it may have left.
    pub fn exchange(&self, worker: &mut Worker<'_>) {
        let slot = worker.random.below(SLOTS);
        let block = worker.timed(|| self.marker.allocate());
        self.slots.exchange(self.marker, slot, block);
        self.slots.exchange(self.marker, slot + 1, None);
    }
}

/// Runs `work`, interrupted by a timer whose handler allocates and frees.
pub fn under_ticks<'s>(worker: &mut Worker<'s>, work: impl FnOnce(&mut Worker<'s>, &Ticks<'_>)) {
    let slots = Slots([const { AtomicPtr::new(ptr::null_mut()) }; SLOTS]);
    let (above, below) = (Marker::new(), Marker::new());
    let interrupts = Cell::new(0);
    let handler = RefCell::new(TickHandler {
        held: Deque::new(),
        random: Random::new(worker.random.next(), 0, 0),
        takes: true,
    });
    let on_tick = || {
        interrupts.set(interrupts.get() + 1);
        // Borrowed by nothing else until the timer is off, and a handler is not interrupted.
        let Ok(mut handler) = handler.try_borrow_mut() else {
            return;
        };
        let handler = &mut *handler;
        // The blocks that it frees here, the interrupted code has allocated, and the other way
        // round.
        let slot = handler.random.below(SLOTS);
        slots.exchange(&above, slot, above.allocate());
        slots.exchange(&above, slot + 1, None);
        for _ in 0..handler.random.below(ALIVE) {
            if handler.takes {
                handler.takes = match above.allocate() {
                    // There is room, or it would not take.
                    Some(block) => handler.held.push_back(block).is_ok() && !handler.held.is_full(),
                    None => false,
                };
            } else if let Some(block) = handler.held.pop_front() {
                // SAFETY: the marker's, and out of the queue.
                unsafe { above.free(block) };
            } else {
                handler.takes = true;
            }
        }
    };

    let ticks = Ticks {
        interrupts: &interrupts,
        slots: &slots,
        marker: &below,
    };
    timer::every(PERIOD, &on_tick, || work(worker, &ticks));

    for slot in 0..SLOTS {
        slots.exchange(&below, slot, None);
    }
    for block in handler.into_inner().held {
        // SAFETY: the marker's, and out of the queue.
        unsafe { below.free(block) };
    }
    for marker in [&above, &below] {
        marker.add_to(&mut worker.tally);
    }
    worker.tally.operations += 2 * above.allocated();
    worker.tally.bytes += (above.allocated() + below.allocated()) * SIZE as u64;
    worker.tally.interrupts += interrupts.get();
}
