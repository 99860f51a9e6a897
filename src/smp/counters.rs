//! Counters of each CPU's own activity, for the account.

use core::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use muster_percpu::cpu_local;

cpu_local! {
    /// The calls that the CPU has sent and served, on a cache line that no other CPU writes.
    pub shared static CALL_COUNTERS: CachePadded<CallCounters> =
        CachePadded::new(CallCounters::new());
    /// Its TLB flushes and shootdowns, on a cache line that no other CPU writes.
    pub shared static TLB_COUNTERS: CachePadded<TlbCounters> = CachePadded::new(TlbCounters::new());
}

/// The number of calls that one CPU has sent, one for each target, and the number that it has
/// served. Relaxed throughout: statistics, by which nothing else is read.
pub struct CallCounters {
    sent: AtomicU64,
    served: AtomicU64,
}

impl CallCounters {
    /// Creates counters at 0.
    pub const fn new() -> Self {
        Self {
            sent: AtomicU64::new(0),
            served: AtomicU64::new(0),
        }
    }

    /// Returns the number of calls to others, one for each target.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns the number of calls from others that were served.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Counts calls to others.
    pub fn count_sent(&self, targets: u64) {
        // In one step: a handler on this CPU may call in between. Statistics, so nothing is ordered by it.
        self.sent.fetch_add(targets, Ordering::Relaxed);
    }

    /// Counts a call from another CPU, with interrupts disabled.
    pub fn count_served(&self) {
        // Two steps are enough: interrupts are disabled, and a call within this one has been
        // counted by then.
        self.served.store(self.served() + 1, Ordering::Relaxed);
    }
}

/// The number of one CPU's TLB flushes and shootdowns. It alone counts, all may read: Relaxed
/// throughout, statistics by which nothing else is read.
pub struct TlbCounters {
    flushes: AtomicU64,
    shootdowns: AtomicU64,
    spared: AtomicU64,
}

impl TlbCounters {
    /// Creates counters at 0.
    pub const fn new() -> Self {
        Self {
            flushes: AtomicU64::new(0),
            shootdowns: AtomicU64::new(0),
            spared: AtomicU64::new(0),
        }
    }

    /// Returns the number of flushes of its own TLB, for itself and for others.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Returns the number of shootdowns that it began.
    pub fn shootdowns(&self) -> u64 {
        self.shootdowns.load(Ordering::Relaxed)
    }

    /// Returns the number of idle CPUs that it did not wake for one.
    pub fn spared(&self) -> u64 {
        self.spared.load(Ordering::Relaxed)
    }

    /// Counts a flush of its own TLB.
    pub fn count_flush(&self) {
        // In one step: a handler on this CPU may flush in between. Statistics, so nothing is ordered by it.
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a shootdown, and the CPUs that it did not wake.
    pub fn count_shootdown(&self, spared: u64) {
        // As for a flush.
        self.shootdowns.fetch_add(1, Ordering::Relaxed);
        self.spared.fetch_add(spared, Ordering::Relaxed);
    }
}
