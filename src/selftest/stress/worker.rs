//! A worker: the state of a workload's loop on one CPU, and its counts.

use core::sync::atomic::{AtomicBool, Ordering};

use muster::internals::arch::clock::{self, Deadline};
use muster::internals::boot::bytes::Bytes;
use muster::internals::mm::{heap, shared};
use muster::internals::report::events;
use muster::internals::smp::activity::Activity;
use muster::internals::smp::jobs::TimedBarrier;
use muster::internals::smp::lock::{Level, Lock};
use muster::internals::smp::{cpu, lapic, online};
use muster_arguments::Workload;

use super::random::Random;
use super::sample::Sampler;

/// Rounds of a workload's loop between two looks at the clock.
const STRIDE: u32 = 32;

/// The counts of one CPU in one workload.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Allocations, frees and resizes.
    pub operations: u64,
    /// Bytes asked for and given.
    pub bytes: u64,
    /// Allocations answered with null.
    pub refused: u64,
    /// Blocks whose contents were not their owner's, or that were misaligned.
    pub corrupt: u64,
    /// The slowest operation, in TSC ticks.
    pub slowest: u64,
    /// Interrupts by its own timer.
    pub interrupts: u64,
}

impl Tally {
    /// Writes this CPU's counts to its journal, and emits them.
    pub fn log(&self, workload: Workload) {
        events::emit(muster_events::Work {
            workload: workload.name().into(),
            heap: heap::kind().name().into(),
            cpu: cpu::with(|here| here.index()),
            operations: self.operations,
            bytes: self.bytes,
            refused: self.refused,
            corrupt: self.corrupt,
            slowest_ns: clock::to_micros(self.slowest.saturating_mul(1000)),
            interrupts: self.interrupts,
        });
        log::debug!(target: "stress", "{}: {} operations, {}, {} refused, {} corrupt, slowest {} us",
            workload.name(),
            self.operations,
            Bytes(self.bytes),
            self.refused,
            self.corrupt,
            clock::to_micros(self.slowest)
        );
    }

    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.refused += other.refused;
        self.corrupt += other.corrupt;
        self.slowest = self.slowest.max(other.slowest);
        self.interrupts += other.interrupts;
    }
}

/// The state of a workload's loop on one CPU.
pub struct Worker<'a> {
    /// The CPU's slot among those in the workload, and how many they are.
    pub slot: usize,
    pub cpus: usize,
    /// The slot of the first of them among the online CPUs.
    pub first: usize,
    /// Bytes this CPU may hold at once, apart from exhaustion.
    pub budget: usize,
    /// The largest piece exhaustion takes, in bytes.
    pub largest_piece: usize,
    pub random: Random,
    pub tally: Tally,
    pub rounds: u32,
    pub until: Deadline,
    pub rendezvous: &'a Rendezvous,
    pub progress: Option<&'a ProgressLine>,
    pub activity: &'a Activity,
    /// The LAPIC id of the CPU that gets an NMI from this one each round, if `nmis=yes` asks for it.
    pub target: Option<u32>,
}

impl Worker<'_> {
    /// Returns whether the workload goes on. Reads the clock only now and then, and on the BSP logs
    /// the progress.
    pub fn goes_on(&mut self) -> bool {
        self.storm();
        self.rounds = self.rounds.wrapping_add(1);
        if !self.rounds.is_multiple_of(STRIDE) {
            return true;
        }
        !self.is_over()
    }

    /// Returns whether the time is up, by the clock: for rounds that take long.
    pub fn is_over(&mut self) -> bool {
        self.show();
        self.storm();
        self.is_past(self.until)
    }

    /// Sends the next CPU an NMI, if that is asked for.
    pub fn storm(&self) {
        if let Some(target) = self.target {
            lapic::send_nmi(target);
        }
    }

    /// Returns whether this deadline has passed, or all have been stopped.
    pub fn is_past(&self, end: Deadline) -> bool {
        end.passed() || self.rendezvous.is_stopped.load(Ordering::Relaxed)
    }

    /// Records this CPU's progress, and logs the workload's on the first one.
    pub fn show(&self) {
        self.activity.did(self.tally.operations);
        if let (0, Some(progress)) = (self.slot, self.progress) {
            progress.show();
        }
    }

    /// Returns the CPU at another slot, and its index.
    pub fn other(&self, slot: usize) -> Option<(u32, &'static cpu::Block)> {
        online::cpus().nth(self.first + slot)
    }

    /// Waits until every CPU has arrived here.
    pub fn wait_for_all(&self) {
        self.rendezvous.barrier.wait();
    }

    /// Returns whether the workload goes on, with the same answer on every CPU.
    pub fn all_go_on(&self) -> bool {
        self.show();
        if self.slot == 0 {
            self.rendezvous
                .goes_on
                .store(!self.is_past(self.until), Ordering::Relaxed);
        }
        // The barrier orders the BSP's store before every CPU's load, and the next one keeps the
        // BSP from storing again before all have loaded.
        self.wait_for_all();
        let goes_on = self.rendezvous.goes_on.load(Ordering::Relaxed);
        self.wait_for_all();
        goes_on
    }

    /// Runs one operation and counts it.
    pub fn timed<T>(&mut self, operation: impl FnOnce() -> T) -> T {
        let before = clock::ticks();
        let result = operation();
        let ticks = clock::ticks().saturating_sub(before);
        self.tally.operations += 1;
        self.tally.slowest = self.tally.slowest.max(ticks);
        result
    }
}

/// The barrier at which the CPUs of a workload wait for one another, and their common decisions.
pub struct Rendezvous {
    pub barrier: TimedBarrier,
    pub goes_on: AtomicBool,
    /// Whether all are to stop before their time is up. Relaxed: nothing else is read by it.
    pub is_stopped: AtomicBool,
}

/// A line in the log every second, or every ten of a soak, that shows that a long run is alive.
pub struct ProgressLine {
    pub workload: Workload,
    pub every_millis: u64,
    pub next: Lock<Deadline>,
    pub started: u64,
    pub sampler: Sampler,
}

impl ProgressLine {
    pub fn new(workload: Workload) -> Self {
        let every_millis = match workload {
            Workload::Soak => 10_000,
            _ => 1_000,
        };
        Self {
            workload,
            every_millis,
            next: Lock::new(Level::Workload, Deadline::after_millis(every_millis)),
            started: clock::ticks(),
            sampler: Sampler::new(workload),
        }
    }

    pub fn show(&self) {
        self.sampler.look();
        let Some(mut next) = self.next.try_lock().filter(|next| next.passed()) else {
            return;
        };
        *next = Deadline::after_millis(self.every_millis);
        let seconds = clock::to_micros(clock::ticks().saturating_sub(self.started)) / 1_000_000;
        let free = shared::get().free_bytes();
        log::info!(target: "stress", "{}: {seconds} s, {} free",
            self.workload.name(),
            Bytes(free)
        );
    }
}
