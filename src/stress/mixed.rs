//! Mixed sizes with random lifetimes: the pattern that fragments heaps.

use alloc::vec::Vec;

use super::Shift;
use super::block::Block;

/// Slots for live blocks.
const SLOTS: usize = 512;

/// Sizes from 16 B to 64 KiB, each doubling as likely as the next.
const LOW: u32 = 4;
const HIGH: u32 = 16;

/// Runs the workload on this CPU.
pub fn run(shift: &mut Shift<'_>) {
    let mut slots: Vec<Option<Block>> = (0..SLOTS).map(|_| None).collect();
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
        let size = shift.random.size(LOW, HIGH).min(1 << HIGH);
        let align = 1 << shift.random.below(7);
        if held + size <= shift.budget {
            *place = Block::allocate(shift, size, align);
            held += place.as_ref().map_or(0, Block::size);
        } else if let Some(block) = slots.iter_mut().find_map(Option::take) {
            held -= block.size();
            block.free(shift);
        }
    }
    for block in slots.into_iter().flatten() {
        block.free(shift);
    }
}
