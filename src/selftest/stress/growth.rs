//! Growth: a vector and a string that grow as programs do, and a raw block that
//! is resized up and down.

use alloc::string::String;
use alloc::vec::Vec;

use super::block::TestBlock;
use super::worker::Worker;

/// The maximum length of a vector, in elements of eight bytes.
const MAX_LENGTH: usize = 4096;

/// Elements pushed between two looks at the clock.
const BATCH: usize = 64;

/// Runs the workload on this CPU.
pub fn run(worker: &mut Worker<'_>) {
    let mut block = TestBlock::allocate(worker, 16, 8);
    while worker.goes_on() {
        let length = (1 + worker.random.below(MAX_LENGTH)).min(worker.budget / 64 + 1);
        grow_vector(worker, length);
        grow_string(worker, length);
        for _ in 0..8 {
            let size = worker.random.size(4, 15).min(worker.budget / 4 + 1);
            match block.as_mut() {
                Some(block) => block.resize(worker, size),
                None => block = TestBlock::allocate(worker, 16, 8),
            }
        }
    }
    if let Some(block) = block {
        block.free(worker);
    }
}

/// Grows a vector to `length` elements by fallible pushes, then checks them all.
fn grow_vector(worker: &mut Worker<'_>, length: usize) {
    let first = worker.random.next();
    let mut vector = Vec::new();
    while vector.len() < length {
        if worker.timed(|| vector.try_reserve(BATCH)).is_err() {
            worker.tally.refused += 1;
            break;
        }
        let end = (vector.len() + BATCH).min(length);
        vector.extend((vector.len()..end).map(|index| first.wrapping_add(index as u64)));
    }
    worker.tally.bytes += (vector.len() * size_of::<u64>()) as u64;
    let intact = (0..)
        .zip(&vector)
        .all(|(index, &value)| value == first.wrapping_add(index));
    if !intact {
        worker.tally.corrupt += 1;
        log::error!("a vector of {} elements is corrupt", vector.len());
    }
    worker.timed(|| drop(vector));
}

/// Grows a string in the same way, one piece at a time.
fn grow_string(worker: &mut Worker<'_>, length: usize) {
    const PIECE: &str = "muster: every CPU reports for duty; ";
    let mut string = String::new();
    while string.len() < length {
        if worker.timed(|| string.try_reserve(PIECE.len())).is_err() {
            worker.tally.refused += 1;
            break;
        }
        string.push_str(PIECE);
    }
    worker.tally.bytes += string.len() as u64;
    if string
        .as_bytes()
        .chunks(PIECE.len())
        .any(|piece| piece != PIECE.as_bytes())
    {
        worker.tally.corrupt += 1;
        log::error!("a string of {} bytes is corrupt", string.len());
    }
    worker.timed(|| drop(string));
}
