//! The sleep of a CPU that halts: it is spared shootdowns, and makes up for them when it wakes.

use x86_64::instructions::tlb;

use super::cpu;

/// Counts a flush of this CPU's TLB.
pub fn count_flush() {
    cpu::with(|here| {
        here.shared().tlb.count_flush();
    });
}

/// Says that this CPU is about to halt, with interrupts off, and wants to be spared meanwhile.
pub fn enter_idle() {
    cpu::with(|here| here.shared().idle.enter());
}

/// Makes up for what this CPU was spared, if it was asleep. To be called before anything that was
/// mapped at run time is touched: first of all in every interrupt, and after the halt.
#[inline]
pub fn leave_idle() {
    if cpu::try_with(|here| here.shared().idle.exit()) == Some(true) {
        tlb::flush_all();
        count_flush();
    }
}
