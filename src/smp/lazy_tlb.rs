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
pub fn fall_asleep() {
    cpu::with(|here| here.shared().sleep.enter());
}

/// Makes up for what this CPU was spared, if it was asleep. To be called before anything that was
/// mapped at run time is touched: first of all in every interrupt, and after the halt.
#[inline]
pub fn wake_up() {
    if cpu::try_with(|here| here.shared().sleep.exit()) == Some(true) {
        tlb::flush_all();
        count_flush();
    }
}
