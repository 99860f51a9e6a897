//! Interrupts: allocations and frees are interrupted at each of their instructions by a handler
//! that uses the heap on the same CPU.

use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::NonNull;

use super::Shift;
use crate::{heap, step};

/// The size of every block: the handler frees what the interrupted code is allocating from.
const SIZE: usize = 64;

const LAYOUT: Layout = Layout::new::<[u64; SIZE / 8]>();

/// More blocks than a CPU caches of this size, so that the handler makes it refill and flush.
const MANY: usize = 300;

/// So many instructions are interrupted one by one; of more, which only slow paths have, ever
/// fewer.
const EACH: u64 = 128;

/// What this CPU holds. Everything is a cell, for the handler comes between any two instructions.
struct Hands {
    mine: [Cell<Option<NonNull<u64>>>; MANY],
    theirs: [Cell<Option<NonNull<u64>>>; MANY],
    one: Cell<Option<NonNull<u64>>>,
    refused: Cell<u64>,
    corrupt: Cell<u64>,
}

impl Hands {
    fn allocate(&self) -> Option<NonNull<u64>> {
        // SAFETY: the size is not 0.
        let block = NonNull::new(unsafe { alloc(LAYOUT) }.cast::<u64>());
        match block {
            Some(block) => {
                for word in 0..SIZE / 8 {
                    // SAFETY: the block is new, and so long; the heap aligns it for words.
                    unsafe { block.add(word).write(pattern(block, word)) };
                }
            }
            None => self.refused.set(self.refused.get() + 1),
        }
        block
    }

    fn free(&self, block: NonNull<u64>) {
        for word in 0..SIZE / 8 {
            // SAFETY: live, written as a whole by `allocate`, and this CPU's alone.
            if unsafe { block.add(word).read() } != pattern(block, word) {
                self.corrupt.set(self.corrupt.get() + 1);
                log::error!("word {word} of the block at {block:p} was overwritten");
            }
            // SAFETY: as above. A second owner finds its pattern gone.
            unsafe { block.add(word).write(0) };
        }
        // SAFETY: allocated with this layout, and out of its cell.
        unsafe { dealloc(block.as_ptr().cast(), LAYOUT) };
    }

    fn fill(&self, cells: &[Cell<Option<NonNull<u64>>>]) {
        for cell in cells {
            if cell.get().is_none() {
                cell.set(self.allocate());
            }
        }
    }

    fn empty(&self, cells: &[Cell<Option<NonNull<u64>>>]) {
        for cell in cells {
            if let Some(block) = cell.take() {
                self.free(block);
            }
        }
    }

    fn empty_all(&self) {
        self.empty(&self.mine);
        self.empty(&self.theirs);
        self.empty(core::slice::from_ref(&self.one));
    }
}

/// What a live block holds: no other block's words are the same.
fn pattern(block: NonNull<u64>, word: usize) -> u64 {
    (block.addr().get() as u64).rotate_left(17) ^ word as u64
}

/// How a round starts.
#[derive(Clone, Copy)]
enum State {
    /// The CPU caches nothing.
    Drained,
    /// It caches some blocks of the size.
    Between,
    /// Every block that the CPU once cached is held.
    Emptied,
    /// So many were freed that the magazine has just become full.
    Filled,
}

const STATES: [State; 4] = [
    State::Drained,
    State::Between,
    State::Emptied,
    State::Filled,
];

/// Runs the workload on this CPU: one combination of state, handler and work at least, then until
/// the time is up. The CPUs begin at different ones.
pub fn run(shift: &mut Shift<'_>) {
    let hands = Hands {
        mine: [const { Cell::new(None) }; MANY],
        theirs: [const { Cell::new(None) }; MANY],
        one: Cell::new(None),
        refused: Cell::new(0),
        corrupt: Cell::new(0),
    };
    let swap = || {
        let block = hands.allocate();
        hands.empty(&hands.theirs[..1]);
        hands.theirs[0].set(block);
    };
    let pair = || {
        if let Some(block) = hands.allocate() {
            hands.free(block);
        }
    };
    let flood = || {
        hands.fill(&hands.theirs);
        hands.empty(&hands.theirs);
    };
    let drain = || {
        heap::drain_here();
    };
    let handlers: [&dyn Fn(); 4] = [&swap, &pair, &flood, &drain];

    let allocate = || {
        // SAFETY: the size is not 0.
        let block = NonNull::new(unsafe { alloc(LAYOUT) }.cast());
        hands.mine[MANY - 1].set(block);
    };
    let free = || {
        if let Some(block) = hands.one.take() {
            // SAFETY: live, and of this layout.
            unsafe { dealloc(block.cast::<u8>().as_ptr(), LAYOUT) };
        }
    };
    let works: [&dyn Fn(); 2] = [&allocate, &free];

    let combinations = STATES.len() * handlers.len() * works.len();
    for number in shift.place * 5.. {
        let number = number % combinations;
        let state = STATES[number % STATES.len()];
        let handler = handlers[number / STATES.len() % handlers.len()];
        let work = works[number / (STATES.len() * handlers.len())];
        let mut at = 0_u64;
        loop {
            at += 1 + at.saturating_sub(EACH) / 4;
            prepare(&hands, state);
            let traps = step::run(at, handler, work);
            shift.tally.operations += 1;
            // What `allocate` left has no pattern yet.
            if let Some(block) = hands.mine[MANY - 1].take() {
                // SAFETY: live, and of this layout.
                unsafe { dealloc(block.cast::<u8>().as_ptr(), LAYOUT) };
            }
            shift.tally.bytes += SIZE as u64;
            if traps < at {
                break;
            }
        }
        if shift.is_over() {
            break;
        }
    }
    hands.empty_all();
    shift.tally.refused += hands.refused.get();
    shift.tally.corrupt += hands.corrupt.get();
}

fn prepare(hands: &Hands, state: State) {
    hands.empty_all();
    heap::drain_here();
    let free_cells = || hands.mine[..MANY - 1].iter();
    match state {
        State::Drained => {}
        State::Between => {
            hands.fill(&hands.mine[..10]);
            hands.empty(&hands.mine[..5]);
        }
        State::Emptied => {
            hands.one.set(hands.allocate());
            // What is left is the reserve, which no fast path touches.
            for cell in free_cells().take_while(|_| heap::cached_here(LAYOUT) > 1) {
                cell.set(hands.allocate());
            }
        }
        State::Filled => {
            hands.fill(&hands.mine[..MANY - 1]);
            hands.one.set(hands.allocate());
            for cell in free_cells().take_while(|_| !heap::is_full_here(LAYOUT)) {
                hands.empty(core::slice::from_ref(cell));
            }
        }
    }
    hands.fill(core::slice::from_ref(&hands.one));
}
