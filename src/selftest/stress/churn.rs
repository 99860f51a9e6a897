//! Same-size churn: the oldest of a few blocks makes room for a new one.

use heapless::Deque;

use super::block::TestBlock;
use super::worker::Worker;

/// The size of every block: a cache line, the size small objects cluster around.
const SIZE: usize = 64;

/// Blocks alive at once.
const ALIVE: usize = 64;

/// Runs the workload on this CPU.
pub fn run(worker: &mut Worker<'_>) {
    let mut alive = Deque::<TestBlock, ALIVE>::new();
    while worker.goes_on() {
        if alive.is_full()
            && let Some(oldest) = alive.pop_front()
        {
            oldest.free(worker);
        }
        if let Some(block) = TestBlock::allocate(worker, SIZE, 16) {
            // There is room: the oldest was just taken out.
            let _ = alive.push_back(block);
        }
    }
    while let Some(block) = alive.pop_front() {
        block.free(worker);
    }
}
