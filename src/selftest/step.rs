//! Steps and breakpoints of the CPU this runs on ([`Stepper`](muster::internals::arch::step::Stepper)).

use muster::internals::arch::step::{STEPPER, StepHandler};
use muster::internals::smp::cpu::Cpu;

/// Runs `work` with a trap after each instruction; the one before instruction `at`, counted from 1,
/// runs `handler`, and the rest is run without. With 0, there are traps only.
///
/// Returns how many traps there were: one for each instruction of `work`, and some before and after
/// it, always as many.
pub fn run(at: u64, handler: StepHandler<'_>, work: StepHandler<'_>) -> u64 {
    Cpu::with_own(&STEPPER, |stepper| stepper.run(at, handler, work))
}

/// Runs `work`, and before the instruction at `address`, the first time that this CPU comes there,
/// `handler`. Unlike a step, a breakpoint comes right after `sti`, too: QEMU's translator and some
/// CPUs do not trap after it.
///
/// Returns whether the CPU came there.
pub fn before(address: u64, handler: StepHandler<'_>, work: StepHandler<'_>) -> bool {
    Cpu::with_own(&STEPPER, |stepper| stepper.before(address, handler, work))
}
