//! The machine that the benchmarks run on.

/// CPUs and a clock: a kernel's, or a host's threads and its own.
pub trait Machine: Sync {
    /// Returns the number of CPUs; at least 1.
    fn cpus(&self) -> usize;

    /// Reads the clock, which never goes back, and is the same on all CPUs.
    fn ticks(&self) -> u64;

    /// Returns the clock's rate in Hz; never 0.
    fn ticks_per_second(&self) -> u64;

    /// Runs `work` on the first `cpus` CPUs, side by side, and returns when all are done. Each comes
    /// to the line as often as all others do.
    fn run(&self, cpus: usize, work: &(dyn Fn(Place<'_>) + Sync));
}

/// What a CPU at work knows of itself.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Its number among the CPUs at work, from 0 on.
    pub cpu: usize,
    /// Waits until all CPUs at work have come here. What each did before is then visible to all.
    pub line: &'a (dyn Fn() + 'a),
}
