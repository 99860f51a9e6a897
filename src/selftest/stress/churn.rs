//! Same-size churn: the oldest of a few blocks makes room for a new one.

use heapless::Deque;

use super::block::Block;
use super::worker::Shift;

/// The size of every block: a cache line, the size small objects cluster around.
const SIZE: usize = 64;

/// Blocks alive at once.
const ALIVE: usize = 64;

/// Runs the workload on this CPU.
pub fn run(shift: &mut Shift<'_>) {
    let mut alive = Deque::<Block, ALIVE>::new();
    while shift.goes_on() {
        if alive.is_full()
            && let Some(oldest) = alive.pop_front()
        {
            oldest.free(shift);
        }
        if let Some(block) = Block::allocate(shift, SIZE, 16) {
            // There is room: the oldest was just taken out.
            let _ = alive.push_back(block);
        }
    }
    while let Some(block) = alive.pop_front() {
        block.free(shift);
    }
}
