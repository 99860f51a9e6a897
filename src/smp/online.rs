//! Which CPUs are online.

use muster_percpu::Outcome;

use super::cpu;

/// The online CPUs: the BSP and every AP that the roll call admitted.
pub fn cpus() -> impl Iterator<Item = (u32, &'static cpu::Shared)> {
    cpu::all().filter(|(_, shared)| shared.report.admission() == Outcome::Joined)
}

/// How many CPUs are online.
pub fn count() -> usize {
    cpus().count()
}
