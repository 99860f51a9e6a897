//! Lazy TLB flushes: an idle CPU is spared shootdowns, and flushes when it wakes.

use x86_64::instructions::tlb;

use super::cpu;

/// Counts a flush of this CPU's TLB.
pub fn count_flush() {
    cpu::with(|here| {
        here.shared().tlb.count_flush();
    });
}

/// Records that this CPU is about to halt, with interrupts disabled, and is to be spared
/// shootdowns.
pub fn enter_idle() {
    cpu::with(|here| here.shared().idle.enter());
}

/// Flushes if this CPU was spared a shootdown while it was idle. To be called before anything that
/// was mapped at run time is touched: first of all in every interrupt, and after the halt.
#[inline]
pub fn leave_idle() {
    if cpu::try_with(|here| here.shared().idle.exit()) == Some(true) {
        tlb::flush_all();
        count_flush();
    }
}
