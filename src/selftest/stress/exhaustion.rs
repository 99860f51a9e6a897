//! Exhaustion: all CPUs allocate until the machine is out, then free everything.

use alloc::vec::Vec;

use super::block::TestBlock;
use super::worker::Worker;

/// The number of blocks that the machine's memory is cut into, about: many enough to run out on
/// every CPU at once, few enough to be freed in reasonable time.
const PIECES: usize = 1024;

/// The smallest piece, in bytes.
const SMALLEST: usize = 64;

/// Returns the largest piece, in bytes, where `available` bytes are to be used up.
pub fn largest_piece(available: u64) -> usize {
    (available as usize / PIECES).max(64 * 1024)
}

/// Runs the workload on this CPU: at least one round, then until the time is up.
pub fn run(worker: &mut Worker<'_>) {
    loop {
        round(worker);
        if !worker.all_go_on() {
            return;
        }
    }
}

fn round(worker: &mut Worker<'_>) {
    // The list takes its memory first: its growth must not end the round.
    let mut held: Vec<TestBlock> = Vec::new();
    let listed = held
        .try_reserve_exact(4 * PIECES / worker.cpus + 256)
        .is_ok();
    worker.wait_for_all();
    let mut size = worker.largest_piece;
    // A refusal means that no piece of this size is left but in other CPUs' caches;
    // smaller ones may be, until the machine is out to the last of them.
    while listed && size >= SMALLEST && held.len() < held.capacity() {
        let piece = size / 2 + worker.random.below(size / 2) + 1;
        match TestBlock::allocate(worker, piece, 16) {
            Some(block) => held.push(block),
            None => size /= 2,
        }
    }
    worker.wait_for_all();
    for block in held {
        block.free(worker);
    }
    worker.wait_for_all();
}
