//! Mixed sizes with random lifetimes: the pattern that fragments heaps.

use nodit::interval::ie;
use nodit::{Interval, NoditSet};

use super::block::Block;
use super::worker::Shift;
use crate::smp::lock::{Level, Lock};

/// Slots for live blocks.
const SLOTS: usize = 512;

/// Sizes from 16 B to 64 KiB, each doubling as likely as the next.
const LOW: u32 = 4;
const HIGH: u32 = 16;

/// Runs the workload on this CPU.
pub fn run(shift: &mut Shift<'_>, ledger: &Ledger) {
    work(shift, |shift, slots| {
        // While all CPUs hold what they hold: no two blocks may share a byte.
        for block in slots.iter().flatten() {
            ledger.enter(shift, block);
        }
        shift.meet();
    });
}

/// Allocates and frees until the time is up, then shows what it holds and frees that.
pub fn work<'s>(shift: &mut Shift<'s>, show: impl FnOnce(&mut Shift<'s>, &[Option<Block>; SLOTS])) {
    // On the stack: the workload is not to fail because its own list found no memory.
    let mut slots: [Option<Block>; SLOTS] = [const { None }; SLOTS];
    let mut held = 0;
    while shift.goes_on() {
        let slot = shift.random.below(SLOTS);
        let Some(place) = slots.get_mut(slot) else {
            continue;
        };
        if let Some(block) = place.take() {
            held -= block.size();
            block.free(shift);
            continue;
        }
        let size = shift.random.size(LOW, HIGH);
        let align = 1 << shift.random.below(7);
        if held + size <= shift.budget {
            *place = Block::allocate(shift, size, align);
            held += place.as_ref().map_or(0, Block::size);
        } else if let Some(block) = slots.iter_mut().find_map(Option::take) {
            held -= block.size();
            block.free(shift);
        }
    }
    show(shift, &slots);
    for block in slots.into_iter().flatten() {
        block.free(shift);
    }
}

/// Every block that is alive on any CPU, by its addresses.
pub struct Ledger(Lock<NoditSet<usize, Interval<usize>>>);

impl Ledger {
    /// A ledger of nothing.
    pub fn new() -> Self {
        Self(Lock::new(Level::Workload, NoditSet::new()))
    }

    /// Enters a block, or counts it as corrupt if another one lies there already.
    fn enter(&self, shift: &mut Shift<'_>, block: &Block) {
        let (start, end) = block.bounds();
        if self.0.lock().insert_strict(ie(start, end)).is_err() {
            shift.tally.corrupt += 1;
            log::error!("the block from {start:#x} to {end:#x} overlaps another CPU's");
        }
    }
}
