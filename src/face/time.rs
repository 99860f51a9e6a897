//! Time, and each CPU's own timer.

use crate::arch::clock;
use crate::smp::timer;

/// Returns the microseconds since the loader entered the kernel.
pub fn micros() -> u64 {
    clock::micros()
}

/// Returns whether the CPUs have timers.
pub fn has_timers() -> bool {
    timer::is_there()
}

/// Runs `work` on this CPU, and lets its timer interrupt it: `handler` runs `micros` microseconds after the
/// start and again that long after each end of the handler, while `work` has interrupts enabled.
///
/// In a [job](crate::cpus::run_on_all) each CPU has its own. The handler may allocate and free, and must not wait for what `work` holds. It never runs where there is
/// no timer ([`has_timers`]).
///
/// # Panics
///
/// If this CPU's timer is in use: by `work` around this, that is.
pub fn every(micros: u64, handler: &(dyn Fn() + Sync), work: impl FnOnce()) {
    // `Sync`, as if the handler ran on another CPU: it finds `work` in the middle of anything.
    timer::every(micros, &|| handler(), work);
}
