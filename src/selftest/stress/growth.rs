//! Growth: a vector and a string that grow as programs do, and a raw block that
//! is resized up and down.

use alloc::string::String;
use alloc::vec::Vec;

use super::block::Block;
use super::worker::Shift;

/// The longest vector, in elements of eight bytes.
const LONGEST: usize = 4096;

/// Elements pushed between two looks at the clock.
const BATCH: usize = 64;

/// Runs the workload on this CPU.
pub fn run(shift: &mut Shift<'_>) {
    let mut block = Block::allocate(shift, 16, 8);
    while shift.goes_on() {
        let length = (1 + shift.random.below(LONGEST)).min(shift.budget / 64 + 1);
        grow_vector(shift, length);
        grow_string(shift, length);
        for _ in 0..8 {
            let size = shift.random.size(4, 15).min(shift.budget / 4 + 1);
            match block.as_mut() {
                Some(block) => block.resize(shift, size),
                None => block = Block::allocate(shift, 16, 8),
            }
        }
    }
    if let Some(block) = block {
        block.free(shift);
    }
}

/// Grows a vector to `length` elements by fallible pushes, then checks them all.
fn grow_vector(shift: &mut Shift<'_>, length: usize) {
    let first = shift.random.next();
    let mut vector = Vec::new();
    while vector.len() < length {
        if shift.timed(|| vector.try_reserve(BATCH)).is_err() {
            shift.tally.refused += 1;
            break;
        }
        let end = (vector.len() + BATCH).min(length);
        vector.extend((vector.len()..end).map(|index| first.wrapping_add(index as u64)));
    }
    shift.tally.bytes += (vector.len() * size_of::<u64>()) as u64;
    let intact = (0..)
        .zip(&vector)
        .all(|(index, &value)| value == first.wrapping_add(index));
    if !intact {
        shift.tally.corrupt += 1;
        log::error!("a vector of {} elements is corrupt", vector.len());
    }
    shift.timed(|| drop(vector));
}

/// The same with a string, whose bytes grow one piece at a time.
fn grow_string(shift: &mut Shift<'_>, length: usize) {
    const PIECE: &str = "muster: every CPU reports for duty; ";
    let mut string = String::new();
    while string.len() < length {
        if shift.timed(|| string.try_reserve(PIECE.len())).is_err() {
            shift.tally.refused += 1;
            break;
        }
        string.push_str(PIECE);
    }
    shift.tally.bytes += string.len() as u64;
    if string
        .as_bytes()
        .chunks(PIECE.len())
        .any(|piece| piece != PIECE.as_bytes())
    {
        shift.tally.corrupt += 1;
        log::error!("a string of {} bytes is corrupt", string.len());
    }
    shift.timed(|| drop(string));
}
