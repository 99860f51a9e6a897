//! Lazy TLB flushes: an idle CPU is spared shootdowns, and flushes when it wakes.

use crossbeam_utils::CachePadded;
use muster_cross_cpu::Idle;
use muster_percpu::cpu_local;
use x86_64::instructions::tlb;

use super::counters::TLB_COUNTERS;
use super::cpu::Cpu;

cpu_local! {
    /// Whether the CPU is idle, and is spared shootdowns, on a cache line that others write only then.
    pub shared static IDLE: CachePadded<Idle> = CachePadded::new(Idle::new());
}

/// Counts a flush of this CPU's TLB.
pub fn count_flush() {
    Cpu::with_own(&TLB_COUNTERS, |counters| counters.count_flush());
}

/// Records that this CPU is about to halt, with interrupts disabled, and is to be spared
/// shootdowns.
pub fn enter_idle() {
    Cpu::with_own(&IDLE, |idle| idle.enter());
}

/// Flushes if this CPU was spared a shootdown while it was idle. To be called before anything that
/// was mapped at run time is touched: first of all in every interrupt, and after the halt.
#[inline]
pub fn leave_idle() {
    Cpu::try_with_own(&IDLE, |idle| {
        idle.exit(|| {
            tlb::flush_all();
            count_flush();
        })
    });
}
