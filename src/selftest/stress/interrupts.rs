//! Interrupts: allocations and frees are interrupted at each of their instructions by a handler
//! that uses the heap on the same CPU; and before that, the halt of an idle CPU with a wake-up
//! pending, by a debug exception and an NMI.

use alloc::alloc::{alloc, dealloc};
use core::cell::Cell;
use core::ptr::NonNull;

use muster::internals::arch::idle;
use muster::internals::mm::{heap, heap_platform};
use muster::internals::smp::{cpu, jobs, lapic};
use x86_64::instructions::interrupts;

use super::marked::{LAYOUT, Marker, SIZE};
use super::worker::Worker;
use crate::selftest::step;

/// More blocks than a CPU caches of this size, so that the handler makes it refill and flush.
const MANY: usize = 300;

/// The number of instructions that are interrupted one by one; of later ones, which only slow paths
/// have, ever fewer are.
const EACH: u64 = 128;

/// The blocks that this CPU holds. All are cells, for the handler comes between any two
/// instructions.
struct Hands {
    mine: [Cell<Option<NonNull<u64>>>; MANY],
    theirs: [Cell<Option<NonNull<u64>>>; MANY],
    one: Cell<Option<NonNull<u64>>>,
    marker: Marker,
}

impl Hands {
    fn fill(&self, cells: &[Cell<Option<NonNull<u64>>>]) {
        for cell in cells {
            if cell.get().is_none() {
                cell.set(self.marker.allocate());
            }
        }
    }

    fn empty(&self, cells: &[Cell<Option<NonNull<u64>>>]) {
        for cell in cells {
            if let Some(block) = cell.take() {
                // SAFETY: the cells hold blocks of the marker's, and it is out of its cell.
                unsafe { self.marker.free(block) };
            }
        }
    }

    fn empty_all(&self) {
        self.empty(&self.mine);
        self.empty(&self.theirs);
        self.empty(core::slice::from_ref(&self.one));
    }
}

/// The state of the CPU's cache at the start of a round.
#[derive(Clone, Copy)]
enum CacheState {
    /// The CPU caches nothing.
    Drained,
    /// It caches some blocks of the size.
    Between,
    /// Every block that the CPU once cached is held.
    Emptied,
    /// Enough were freed that the magazine has just become full.
    Filled,
}

const STATES: [CacheState; 4] = [
    CacheState::Drained,
    CacheState::Between,
    CacheState::Emptied,
    CacheState::Filled,
];

/// The number of times that a CPU idles until it is interrupted at its halt.
const MAX_IDLES: usize = 16;

/// Sends this CPU a wake-up while interrupts are disabled, idles, and interrupts it between `sti` and
/// `hlt` by a debug exception, in whose handler an NMI comes, too. That ends the interrupt shadow of
/// `sti`, so the CPU takes the wake-up before the halt, and must not halt then.
///
/// A CPU that halts never comes back, and the BSP, which leaves this out, ends the run with a report
/// that names it.
fn interrupt_idle(worker: &mut Worker<'_>) {
    let own = cpu::with(|here| cpu::lapic_id(here.block()));
    let send_nmi = || {
        lapic::send_nmi(own);
    };
    if cpu::with(|here| here.index() == 0) {
        return;
    }
    // Another CPU's NMI may come just before the halt, which the CPU then leaves out.
    let comes_to_halt = (0..MAX_IDLES).any(|_| {
        interrupts::disable();
        // Without a local APIC no wake-up can be lost, and none ends the halt.
        !lapic::wake(own) || step::before(idle::halt(), &send_nmi, &jobs::idle)
    });
    interrupts::enable();
    if !comes_to_halt {
        worker.tally.corrupt += 1;
        log::error!("an idle CPU did not come to its halt");
    }
    worker.tally.operations += 1;
}

/// Runs the workload on this CPU: one combination of state, handler and work at least, then until
/// the time is up. The CPUs begin at different ones.
pub fn run(worker: &mut Worker<'_>) {
    interrupt_idle(worker);
    let hands = Hands {
        mine: [const { Cell::new(None) }; MANY],
        theirs: [const { Cell::new(None) }; MANY],
        one: Cell::new(None),
        marker: Marker::new(),
    };
    let swap = || {
        let block = hands.marker.allocate();
        hands.empty(&hands.theirs[..1]);
        hands.theirs[0].set(block);
    };
    let pair = || {
        if let Some(block) = hands.marker.allocate() {
            // SAFETY: just allocated.
            unsafe { hands.marker.free(block) };
        }
    };
    let flood = || {
        hands.fill(&hands.theirs);
        hands.empty(&hands.theirs);
    };
    let drain = || {
        heap_platform::drain_here();
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
    for number in worker.slot * 5.. {
        let number = number % combinations;
        let state = STATES[number % STATES.len()];
        let handler = handlers[number / STATES.len() % handlers.len()];
        let work = works[number / (STATES.len() * handlers.len())];
        let mut at = 0_u64;
        loop {
            at += 1 + at.saturating_sub(EACH) / 4;
            prepare(&hands, state);
            let traps = step::run(at, handler, work);
            worker.tally.operations += 1;
            // The block that `allocate` left has no pattern yet.
            if let Some(block) = hands.mine[MANY - 1].take() {
                // SAFETY: live, and of this layout.
                unsafe { dealloc(block.cast::<u8>().as_ptr(), LAYOUT) };
            }
            worker.tally.bytes += SIZE as u64;
            if traps < at {
                break;
            }
        }
        if worker.is_over() {
            break;
        }
    }
    hands.empty_all();
    hands.marker.add_to(&mut worker.tally);
}

fn prepare(hands: &Hands, state: CacheState) {
    hands.empty_all();
    heap_platform::drain_here();
    let free_cells = || hands.mine[..MANY - 1].iter();
    match state {
        CacheState::Drained => {}
        CacheState::Between => {
            hands.fill(&hands.mine[..10]);
            hands.empty(&hands.mine[..5]);
        }
        CacheState::Emptied => {
            hands.one.set(hands.marker.allocate());
            // The block that is left is the reserve, which no fast path touches.
            for cell in free_cells().take_while(|_| heap::cached_here(LAYOUT) > 1) {
                cell.set(hands.marker.allocate());
            }
        }
        CacheState::Filled => {
            hands.fill(&hands.mine[..MANY - 1]);
            hands.one.set(hands.marker.allocate());
            for cell in free_cells().take_while(|_| !heap::is_full_here(LAYOUT)) {
                hands.empty(core::slice::from_ref(cell));
            }
        }
    }
    hands.fill(core::slice::from_ref(&hands.one));
}
