//! The set of online CPUs.

use muster_cross_cpu::Outcome;

use super::cpu;
use super::progress::PROGRESS;

/// Returns the online CPUs: the BSP and every AP that the roll call admitted.
pub fn cpus() -> impl Iterator<Item = (u32, &'static cpu::Block)> {
    cpu::all().filter(|(_, block)| block.get(&PROGRESS).admission() == Outcome::Joined)
}

/// Returns the number of online CPUs.
pub fn count() -> usize {
    cpus().count()
}
