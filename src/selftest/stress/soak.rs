//! Soak: everything at once. Each CPU does a little of one workload, then of another, as the seed has
//! it; on top of it, its timer allocates and frees; and now and then somebody takes all the memory.

use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::ptr::{self, NonNull};

use super::shared_state::Grounds;
use super::worker::Shift;
use super::{calls, churn, growth, handover, interrupts, mappings, mixed, timer};
use crate::arch::clock::Deadline;
use crate::smp::jobs;

/// How long a CPU stays with one thing, at most, in microseconds.
const LONGEST: usize = 50_000;

/// Naps in a row.
const NAPS: usize = 8;

/// The largest and the smallest piece by which memory is taken, in bytes: a power of two each.
const LARGEST: usize = 1 << 22;
const SMALLEST: usize = 64;

/// One of so many turns takes all the memory.
const HOARDS: usize = 64;

/// Runs the workload on this CPU.
pub fn run(shift: &mut Shift<'_>, grounds: &Grounds) {
    let end = shift.until;
    timer::under_ticks(shift, |shift, ticks| {
        while !shift.is_past(end) {
            let micros = shift.random.below(LONGEST) as u64 + 1;
            shift.until = Deadline::after_micros(micros).min(end);
            match shift.random.below(HOARDS) {
                0 => {
                    shift.until = end;
                    hoard(shift);
                }
                turn => match turn % 9 {
                    0 => churn::run(shift),
                    1 => mixed::work(shift, |_, _| {}),
                    2 => handover::work(shift, &grounds.mailboxes),
                    3 => growth::run(shift),
                    4 => interrupts::run(shift),
                    5 => calls::work(shift),
                    6 | 7 => mappings::work(shift, &grounds.boards),
                    _ => idle(shift),
                },
            }
            ticks.exchange(shift);
            timer::ring_another(shift);
        }
    });
    shift.until = end;
    shift.meet();
    handover::settle(shift, &grounds.mailboxes);
    calls::settle(shift);
}

/// Sleeps a little, woken by the timer if by nobody else.
fn idle(shift: &mut Shift<'_>) {
    if crate::smp::timer::is_there() {
        for _ in 0..shift.random.below(NAPS) {
            jobs::idle();
        }
    }
    // Whoever waits for this CPU's mail, or a visit, has waited long enough.
    shift.is_over();
}

/// A piece of memory that was taken. It stands at its own beginning.
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

/// Takes all the memory there is, and gives it back.
fn hoard(shift: &mut Shift<'_>) {
    let mut held: *mut Piece = ptr::null_mut();
    let mut size = LARGEST;
    while size >= SMALLEST && !shift.is_over() {
        // SAFETY: the size is not 0.
        let block = NonNull::new(shift.timed(|| unsafe { alloc(layout_of(size)) }));
        match block {
            Some(block) => {
                let piece = block.cast::<Piece>().as_ptr();
                // SAFETY: new memory, large enough and aligned for a `Piece`.
                unsafe { piece.write(Piece { next: held, size }) };
                held = piece;
                shift.tally.bytes += size as u64;
            }
            None => {
                shift.tally.refused += 1;
                size /= 2;
            }
        }
    }
    while !held.is_null() {
        // SAFETY: taken above, and not given back yet; read before it goes.
        let Piece { next, size } = unsafe { held.read() };
        // SAFETY: allocated with this layout, above, and nobody else's.
        shift.timed(|| unsafe { dealloc(held.cast(), layout_of(size)) });
        held = next;
    }
}
