//! Stopping all other CPUs, for the one that reports a fault.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use muster_events::Phase;
use muster_percpu::{WriteOnce, cpu_local};

use super::cpu::Cpu;
use super::lines::LogLine;
use super::progress::PROGRESS;
use super::{cpu, lapic};
use crate::arch::clock::Deadline;
use crate::arch::idle;

/// How long the reporter waits for the others, in milliseconds. An NMI is served
/// within microseconds, unless a virtual CPU is off its host core: on a busy host for
/// hundreds of milliseconds.
const TIMEOUT: u64 = 1_000;

/// Whether all CPUs but one must stop. Release and Acquire: a CPU that sees it set sees all that the reporter
/// wrote before.
static REQUESTED: AtomicBool = AtomicBool::new(false);

cpu_local! {
    /// Why the CPU was stopped, if it was.
    pub shared static END: End = End::new();
}

/// The last state of a CPU when another one's fault ends the run. Release and Acquire: with it comes all
/// that the CPU wrote before.
pub struct End {
    begun: AtomicBool,
    stopped_at: AtomicU64,
    last_words: WriteOnce<LogLine>,
}

impl End {
    /// Creates the state of a CPU that runs.
    const fn new() -> Self {
        Self {
            begun: AtomicBool::new(false),
            stopped_at: AtomicU64::new(0),
            last_words: WriteOnce::new(),
        }
    }

    /// Records that the CPU has a fault of its own.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Returns whether the CPU has a fault of its own, and will stop by itself.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Records that the CPU stops for good, at `address` of its code.
    pub fn stop_at(&self, address: u64) {
        self.stopped_at.store(address, Ordering::Release);
    }

    /// Returns where it stopped, if it did.
    pub fn stopped_at(&self) -> Option<u64> {
        Some(self.stopped_at.load(Ordering::Acquire)).filter(|&address| address != 0)
    }

    /// Leaves last words for the CPU that reports, the first time. A fault while they are written
    /// leaves none.
    pub fn leave_words(&self, words: fmt::Arguments<'_>) {
        self.last_words.set(|| {
            let mut line = LogLine::new();
            // Too long for a line: its beginning will do.
            let _ = line.write_fmt(words);
            line
        });
    }

    /// Returns the last words, if any.
    pub fn words(&self) -> Option<&LogLine> {
        self.last_words.get()
    }
}

/// Returns whether this run is over and every CPU but one must stop.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::Acquire)
}

/// Stops every other CPU and waits, within bounds, until they have.
///
/// A CPU gets an NMI only if it has an IDT to take it with: one that is still in the loader, or
/// that never answered, would reset the machine.
pub fn others() {
    REQUESTED.store(true, Ordering::Release);
    let own = lapic::own_id();
    let reachable = || {
        cpu::all().filter(move |(_, block)| {
            cpu::lapic_id(block) != own && block.get(&PROGRESS).phase() >= Phase::Entered
        })
    };
    for (_, block) in reachable() {
        lapic::send_nmi(cpu::lapic_id(block));
    }
    let deadline = Deadline::after_millis(TIMEOUT);
    while !deadline.passed() && reachable().any(|(_, block)| block.get(&END).stopped_at().is_none())
    {
        core::hint::spin_loop();
    }
}

/// Stops this CPU if another one reports that the run is over: called in every wait for a lock or for
/// another CPU, either of which may never end. This CPU may have been sent no NMI: one that faults on
/// the loader's tables can't send any, in xAPIC mode. A CPU with a fault of its own goes on.
pub fn stop_if_over() {
    let is_well = || cpu::try_with(|here| !here.get(&END).has_begun());
    if is_requested() && is_well() == Some(true) {
        stop_here(stop_if_over as *const () as u64);
    }
}

/// Stops this CPU for good, and records where it was.
pub fn stop_here(address: u64) -> ! {
    Cpu::try_with_own(&END, |end| end.stop_at(address));
    idle::halt_for_good()
}
