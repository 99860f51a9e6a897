//! The hook in fault reports.
//!
//! Panics, exceptions of the CPU and misuses of the heap all end the run with a report: which CPU, what,
//! where, and where the other CPUs are, which have been stopped.

use crate::report::panic;

/// Has `hook` run at the end of every fault report, with the index of the CPU that reports: on that CPU,
/// with interrupts disabled and all other CPUs stopped for good, whatever they hold.
///
/// The hook may log. It must neither allocate nor wait; a fault in it is reported in one line, and ends the
/// run. That it does not allocate is not checked. Only the first hook is kept: returns whether it is this one.
pub fn set_hook(hook: fn(cpu: u32)) -> bool {
    panic::set_hook(hook)
}
