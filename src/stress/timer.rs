//! Timer: every CPU allocates and frees, and so does the handler of its timer, on top of it,
//! thousands of times a second.

use core::cell::{Cell, RefCell};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use heapless::Deque;

use super::Shift;
use super::block::Block;
use super::marked::{LAYOUT, Marker, SIZE};
use super::random::Random;
use crate::timer;

/// From the end of a handler to the next interrupt, in microseconds.
const PERIOD: u64 = 50;

/// Interrupts that a CPU must have taken before its time can be up: of so little time as a short
/// run has, a virtual CPU may get none.
const LEAST: u64 = 4;

/// Slots through which the handler and the code below it pass blocks to each other.
const SLOTS: usize = 16;

/// Blocks that the handler holds at most: more than a CPU caches of the size, so that it is the
/// handler that makes the heap refill and flush, and the other way round.
const HELD: usize = 300;

/// Blocks that the interrupted code keeps, of the handler's size and of mixed ones.
const ALIVE: usize = 64;
const MIXED: usize = 32;

/// Passes blocks between a handler and the code below it, by swaps alone.
struct Slots([AtomicPtr<u64>; SLOTS]);

impl Slots {
    /// Puts `block` into a slot, and gives what was there.
    fn swap(&self, slot: usize, block: Option<NonNull<u64>>) -> Option<NonNull<u64>> {
        let block = block.map_or(ptr::null_mut(), NonNull::as_ptr);
        // One CPU's own, but there is no telling the compiler so.
        NonNull::new(self.0[slot % SLOTS].swap(block, Ordering::Relaxed))
    }
}

/// What the handler has of its own; no handler comes on top of it.
struct Handler {
    held: Deque<NonNull<u64>, HELD>,
    random: Random,
    /// Whether it is taking blocks or giving them back.
    takes: bool,
}

/// Runs the workload on this CPU.
pub fn run(shift: &mut Shift<'_>) {
    let slots = Slots([const { AtomicPtr::new(ptr::null_mut()) }; SLOTS]);
    let (above, below) = (Marker::new(), Marker::new());
    let interrupts = Cell::new(0);
    let handler = RefCell::new(Handler {
        held: Deque::new(),
        random: Random::new(shift.random.next(), 0, 0),
        takes: true,
    });
    let exchange = |marker: &Marker, slot, block| {
        if let Some(block) = slots.swap(slot, block) {
            // SAFETY: the slots hold blocks of markers only, and a swap takes it out.
            unsafe { marker.free(block) };
        }
    };
    let on_tick = || {
        interrupts.set(interrupts.get() + 1);
        // Borrowed by nothing else until the timer is off, and a handler is not interrupted.
        let Ok(mut handler) = handler.try_borrow_mut() else {
            return;
        };
        let handler = &mut *handler;
        // What it frees here, the code below has allocated, and the other way round.
        let slot = handler.random.below(SLOTS);
        exchange(&above, slot, above.allocate());
        exchange(&above, slot + 1, None);
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

    timer::every(PERIOD, &on_tick, || {
        let mut alive = Deque::<Block, ALIVE>::new();
        let mut mixed = [const { None::<Block> }; MIXED];
        while shift.goes_on() || interrupts.get() < LEAST {
            if alive.is_full()
                && let Some(oldest) = alive.pop_front()
            {
                oldest.free(shift);
            }
            if let Some(block) = Block::allocate(shift, SIZE, LAYOUT.align()) {
                // There is room: the oldest was just taken out.
                let _ = alive.push_back(block);
            }
            let size = shift.random.size(4, 12);
            let place = shift.random.below(MIXED);
            if let Some(block) = mixed[place].take() {
                block.free(shift);
            }
            mixed[place] = Block::allocate(shift, size, 16);
            let slot = shift.random.below(SLOTS);
            let block = shift.timed(|| below.allocate());
            exchange(&below, slot, block);
            exchange(&below, slot + 1, None);
        }
        for block in alive.into_iter().chain(mixed.into_iter().flatten()) {
            block.free(shift);
        }
    });

    for slot in 0..SLOTS {
        exchange(&below, slot, None);
    }
    for block in handler.into_inner().held {
        // SAFETY: the marker's, and out of the queue.
        unsafe { below.free(block) };
    }
    for marker in [&above, &below] {
        marker.add_to(&mut shift.tally);
    }
    shift.tally.operations += 2 * above.allocated();
    shift.tally.bytes += (above.allocated() + below.allocated()) * SIZE as u64;
    shift.tally.interrupts += interrupts.get();
}
