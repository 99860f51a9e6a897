//! The CPUs that are online, and how they work together.
//!
//! A CPU is named by its index, as in the log: 0 is the BSP. Every CPU that has an index is possible; the
//! set of those that are online is fixed when the client is called.
//!
//! The client's function runs on the BSP. A [job](run_on_all) is for work that takes its time: interrupts
//! are enabled, and the job may do whatever the client itself may, but begin another job. A [call](call())
//! interrupts what its target does, for something short.
//!
//! Each CPU has its own of the variables that [`cpu_local!`](cpu_local) declares, in any module of any crate.
//!
//! Indices of online CPUs may have gaps, as a CPU that does not come has one: to divide work, count in [`online()`].
//!
//! A CPU that waits for another one in a loop of its own calls [`relax`] in each round, or two CPUs that
//! wait for each other wait forever.

use muster_percpu::{Key, SharedKey};

use crate::smp::cpu::{Cpu, DIRECTORY};
use crate::smp::{call, cpu, jobs, online};

pub use muster_percpu::{InterruptSafe, LocalCell, LocalWord, cpu_local};

pub use crate::smp::call::{CallError, Targets, relax};
pub use crate::smp::jobs::TimedBarrier;

/// Returns the index of the CPU that this runs on.
pub fn current() -> u32 {
    cpu::with(|here| here.index())
}

/// Returns the number of indices: every CPU's is lower.
pub fn possible() -> usize {
    cpu::all().len()
}

/// Returns the number of CPUs that are online, at least 1.
pub fn count() -> usize {
    online::count()
}

/// Returns the indices of the CPUs that are online, in their order.
pub fn online() -> impl Iterator<Item = u32> {
    online::cpus().map(|(index, _)| index)
}

/// Runs `f` with this CPU's own of a variable that [`cpu_local!`](cpu_local) declares. A handler that interrupts `f`
/// may use the same variable.
pub fn with_own<K: Key, T>(variable: &K, f: impl FnOnce(&K::Value) -> T) -> T {
    Cpu::with_own(variable, f)
}

/// Returns what the CPU with this index has of a shared variable, if there is such a CPU, online or not.
pub fn on<V>(cpu: u32, variable: &SharedKey<V>) -> Option<&'static V> {
    DIRECTORY.on(cpu, variable)
}

/// Returns what each possible CPU has of a shared variable, with its index.
pub fn each<V>(variable: &SharedKey<V>) -> impl ExactSizeIterator<Item = (u32, &'static V)> {
    DIRECTORY.each(variable)
}

/// Runs `job` on every CPU that is online, all at the same time, with the CPU's index; returns when all
/// have finished.
///
/// # Panics
///
/// If called anywhere but on the BSP, or while a job runs; if a CPU has not finished within
/// `timeout_millis` milliseconds after the BSP.
pub fn run_on_all(timeout_millis: u64, job: &(dyn Fn(u32) + Sync)) {
    jobs::all(timeout_millis, &|_| job(current()));
}

/// Runs `job` on every CPU that is online but the BSP, with the CPU's index, and `aside` on the BSP at the
/// same time. That gets a function which returns whether all have finished. Returns when all have.
///
/// # Panics
///
/// As [`run_on_all`], where `aside` is the BSP's part.
pub fn run_on_others(
    timeout_millis: u64,
    job: &(dyn Fn(u32) + Sync),
    aside: impl FnOnce(&dyn Fn() -> bool),
) {
    jobs::others(timeout_millis, &|_| job(current()), aside);
}

/// Halts this CPU, idle, until `is_over` returns `true`: it is asked with interrupts disabled, at first and after
/// each interrupt. For what an interrupt of this CPU changes: its timer's, a device's, a [call](call()) to it. What another
/// CPU stores without one is seen late, or never.
///
/// An idle CPU takes calls, and is spared the shootdowns of others until it wakes.
///
/// # Panics
///
/// If this CPU holds a lock of the kernel's.
pub fn idle_until(is_over: impl Fn() -> bool) {
    jobs::idle_until(is_over);
}

/// Has each target run `work`, with the target's index, and returns when all have.
///
/// On other CPUs it runs as an interrupt handler does: with interrupts disabled, on top of what it
/// interrupts. It should be short, may allocate and free, and must not wait for what the interrupted code
/// holds.
///
/// # Errors
///
/// [`CallError`], if a target has not taken the call within `timeout_millis` milliseconds, as one that has
/// interrupts disabled: it will not run `work` any more, and all other targets have.
///
/// # Panics
///
/// If a CPU has taken the call and has not finished within a minute.
pub fn call(
    targets: Targets<'_>,
    timeout_millis: u64,
    work: &(dyn Fn(u32) + Sync),
) -> Result<(), CallError> {
    call::run(targets, timeout_millis, work)
}
