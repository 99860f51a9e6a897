//! The account: what each CPU keeps of the machine's memory, and what it has done for the others.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use muster_memory::FRAME_SIZE;

use crate::audit::Bytes;
use crate::stack::Slot;
use crate::{crew, frames};

/// How long a CPU may take to say how many frames it has, in milliseconds.
const PATIENCE: u64 = 10_000;

/// Logs the account: a line for each CPU at work, and the sum. Called on the BSP, between orders;
/// exact, as no CPU uses memory then.
pub fn tell() {
    let at_hand: Vec<CachePadded<AtomicUsize>> = (0..crew::size())
        .map(|_| CachePadded::new(AtomicUsize::new(0)))
        .collect();
    crew::all(PATIENCE, &|place| {
        if let Some(slot) = at_hand.get(place) {
            slot.store(frames::at_hand(), Ordering::Relaxed);
        }
    });
    log::info!("what each CPU keeps, and has done:");
    log::info!("cpu    frames      heap     stack  sent served flush");
    let mut sum = Line::default();
    for ((index, shared), frames) in crew::members().zip(&at_hand) {
        let line = Line {
            frames: frames.load(Ordering::Relaxed) as u64 * FRAME_SIZE,
            heap: shared.cache.cached_bytes() as u64,
            // SAFETY: a CPU at work has its stack, in the shared tables.
            stack: unsafe { Slot::of(index).main().most_used() },
            sent: shared.calls.sent(),
            served: shared.calls.served(),
            flushed: shared.flushes.load(Ordering::Relaxed),
        };
        log::info!("{index:>3} {line}");
        sum.add(&line);
    }
    log::info!("all {sum}");
}

/// What is said of one CPU, or of all.
#[derive(Default)]
struct Line {
    /// Bytes in frames that it has at hand.
    frames: u64,
    /// Bytes in blocks that it has at hand.
    heap: u64,
    /// The most bytes that its stack has had.
    stack: u64,
    /// Calls to others, one for each, and from others.
    sent: u64,
    served: u64,
    /// Flushes of its TLB that others or it itself have asked for.
    flushed: u64,
}

impl Line {
    fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.heap += other.heap;
        self.stack += other.stack;
        self.sent += other.sent;
        self.served += other.served;
        self.flushed += other.flushed;
    }
}

impl core::fmt::Display for Line {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{:>9} {:>9} {:>9} {:>5} {:>6} {:>5}",
            Bytes(self.frames),
            Bytes(self.heap),
            Bytes(self.stack),
            self.sent,
            self.served,
            self.flushed
        )
    }
}
