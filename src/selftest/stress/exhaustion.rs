//! Exhaustion: all CPUs allocate until the machine is out, then free everything.

use alloc::vec::Vec;

use super::block::Block;
use super::worker::Shift;

/// Blocks that the machine's memory is cut into, about: many enough to meet the
/// end on every CPU at once, few enough to free in a while.
const PIECES: usize = 1024;

/// The smallest piece, in bytes.
const SMALLEST: usize = 64;

/// The largest piece, in bytes, where `available` bytes are to be used up.
pub fn largest_piece(available: u64) -> usize {
    (available as usize / PIECES).max(64 * 1024)
}

/// Runs the workload on this CPU: at least one round, then until the time is up.
pub fn run(shift: &mut Shift<'_>) {
    loop {
        round(shift);
        if !shift.all_go_on() {
            return;
        }
    }
}

fn round(shift: &mut Shift<'_>) {
    // The list takes its memory first: it must not be what ends the round.
    let mut held: Vec<Block> = Vec::new();
    let listed = held
        .try_reserve_exact(4 * PIECES / shift.cpus + 256)
        .is_ok();
    shift.meet();
    let mut size = shift.largest_piece;
    // A refusal means that no piece of this size is left but in other CPUs' caches;
    // smaller ones may be, until the machine is out to the last of them.
    while listed && size >= SMALLEST && held.len() < held.capacity() {
        let piece = size / 2 + shift.random.below(size / 2) + 1;
        match Block::allocate(shift, piece, 16) {
            Some(block) => held.push(block),
            None => size /= 2,
        }
    }
    shift.meet();
    for block in held {
        block.free(shift);
    }
    shift.meet();
}
