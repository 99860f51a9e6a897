//! Soak: everything at once. Each CPU runs a little of one workload, then of another, by the seed;
//! its timer's handler allocates and frees on top of that; and now and then one CPU takes all the
//! memory.

use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::ptr::{self, NonNull};

use muster::internals::arch::clock::Deadline;
use muster::internals::smp::jobs;

use super::shared_state::SharedState;
use super::worker::Worker;
use super::{calls, churn, growth, handover, interrupts, mappings, mixed, timer};

/// The maximum duration of one turn, in microseconds.
const MAX_TURN: usize = 50_000;

/// The number of times that a CPU idles in a row, at most.
const MAX_IDLES: usize = 8;

/// The largest and the smallest piece in which all memory is taken, in bytes: a power of two each.
const LARGEST: usize = 1 << 22;
const SMALLEST: usize = 64;

/// One of this many turns takes all the memory.
const HOARDS: usize = 64;

/// Runs the workload on this CPU.
pub fn run(worker: &mut Worker<'_>, shared_state: &SharedState) {
    let end = worker.until;
    timer::under_ticks(worker, |worker, ticks| {
        while !worker.is_past(end) {
            let micros = worker.random.below(MAX_TURN) as u64 + 1;
            worker.until = Deadline::after_micros(micros).min(end);
            match worker.random.below(HOARDS) {
                0 => {
                    worker.until = end;
                    hoard(worker);
                }
                turn => match turn % 9 {
                    0 => churn::run(worker),
                    1 => mixed::work(worker, |_, _| {}),
                    2 => handover::work(worker, &shared_state.mailboxes),
                    3 => growth::run(worker),
                    4 => interrupts::run(worker),
                    5 => calls::work(worker),
                    6 | 7 => mappings::work(worker, &shared_state.shared_mappings),
                    _ => idle(worker),
                },
            }
            ticks.exchange(worker);
            timer::ring_another(worker);
        }
    });
    worker.until = end;
    worker.wait_for_all();
    handover::settle(worker, &shared_state.mailboxes);
    calls::settle(worker);
}

/// Idles a little, woken by the timer if by nothing else.
fn idle(worker: &mut Worker<'_>) {
    if muster::internals::smp::timer::is_there() {
        for _ in 0..worker.random.below(MAX_IDLES) {
            jobs::idle();
        }
    }
    // Records the progress, and sends an NMI, as the other turns do.
    worker.is_over();
}

/// A piece of memory that was taken. This lies at its beginning.
struct Piece {
    next: *mut Piece,
    size: usize,
}

const fn layout_of(size: usize) -> Layout {
    // A power of two, as are all of them, with this alignment makes a layout.
    match Layout::from_size_align(size, 16) {
        Ok(layout) => layout,
        Err(_) => Layout::new::<Piece>(),
    }
}

const _: () = assert!(layout_of(SMALLEST).size() == SMALLEST && size_of::<Piece>() <= SMALLEST);

/// Allocates all the memory there is, and frees it.
fn hoard(worker: &mut Worker<'_>) {
    let mut held: *mut Piece = ptr::null_mut();
    let mut size = LARGEST;
    while size >= SMALLEST && !worker.is_over() {
        // SAFETY: the size is not 0.
        let block = NonNull::new(worker.timed(|| unsafe { alloc(layout_of(size)) }));
        match block {
            Some(block) => {
                let piece = block.cast::<Piece>().as_ptr();
                // SAFETY: new memory, large enough and aligned for a `Piece`.
                unsafe { piece.write(Piece { next: held, size }) };
                held = piece;
                worker.tally.bytes += size as u64;
            }
            None => {
                worker.tally.refused += 1;
                size /= 2;
            }
        }
    }
    while !held.is_null() {
        // SAFETY: allocated above, and not freed yet; read before it is.
        let Piece { next, size } = unsafe { held.read() };
        // SAFETY: allocated with this layout, above, and used by nothing else.
        worker.timed(|| unsafe { dealloc(held.cast(), layout_of(size)) });
        held = next;
    }
}
