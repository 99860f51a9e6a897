//! Mixed sizes with random lifetimes: the pattern that fragments heaps.

use muster::internals::smp::lock::{Level, Lock};
use nodit::interval::ie;
use nodit::{Interval, NoditSet};

use super::block::TestBlock;
use super::worker::Worker;

/// Slots for live blocks.
const SLOTS: usize = 512;

/// Sizes from 16 B to 64 KiB, each doubling as likely as the next.
const LOW: u32 = 4;
const HIGH: u32 = 16;

/// Runs the workload on this CPU.
pub fn run(worker: &mut Worker<'_>, ledger: &Ledger) {
    work(worker, |worker, slots| {
        // While all CPUs hold their blocks: no two may share a byte.
        for block in slots.iter().flatten() {
            ledger.enter(worker, block);
        }
        worker.wait_for_all();
    });
}

/// Allocates and frees until the time is up, then passes its blocks to `show` and frees them.
pub fn work<'s>(
    worker: &mut Worker<'s>,
    show: impl FnOnce(&mut Worker<'s>, &[Option<TestBlock>; SLOTS]),
) {
    // On the stack: the workload must not fail for want of memory for its own list.
    let mut slots: [Option<TestBlock>; SLOTS] = [const { None }; SLOTS];
    let mut held = 0;
    while worker.goes_on() {
        let slot = worker.random.below(SLOTS);
        let Some(entry) = slots.get_mut(slot) else {
            continue;
        };
        if let Some(block) = entry.take() {
            held -= block.size();
            block.free(worker);
            continue;
        }
        let size = worker.random.size(LOW, HIGH);
        let align = 1 << worker.random.below(7);
        if held + size <= worker.budget {
            *entry = TestBlock::allocate(worker, size, align);
            held += entry.as_ref().map_or(0, TestBlock::size);
        } else if let Some(block) = slots.iter_mut().find_map(Option::take) {
            held -= block.size();
            block.free(worker);
        }
    }
    show(worker, &slots);
    for block in slots.into_iter().flatten() {
        block.free(worker);
    }
}

/// Every block that is alive on any CPU, by its addresses.
pub struct Ledger(Lock<NoditSet<usize, Interval<usize>>>);

impl Ledger {
    /// Creates an empty ledger.
    pub fn new() -> Self {
        Self(Lock::new(Level::Workload, NoditSet::new()))
    }

    /// Enters a block, or counts it as corrupt if another one lies there already.
    fn enter(&self, worker: &mut Worker<'_>, block: &TestBlock) {
        let (start, end) = block.bounds();
        if self.0.lock().insert_strict(ie(start, end)).is_err() {
            worker.tally.corrupt += 1;
            log::error!("the block from {start:#x} to {end:#x} overlaps another CPU's");
        }
    }
}
