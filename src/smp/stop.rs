//! Stopping all other CPUs, for the one that reports a fault.

use core::sync::atomic::{AtomicBool, Ordering};

use super::{cpu, lapic};
use crate::arch::clock::Deadline;
use muster_events::Phase;

use crate::arch::idle;

/// How long the reporter waits for the others, in milliseconds. An NMI is served
/// within microseconds, unless a virtual CPU is off its host core: on a busy host for
/// hundreds of milliseconds.
const TIMEOUT: u64 = 1_000;

/// Whether all CPUs but one must stop. Release and Acquire: a CPU that sees it set sees all that the reporter
/// wrote before.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Returns whether this run is over and every CPU but one must stop.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::Acquire)
}

/// Stops every other CPU and waits, within bounds, until they have.
///
/// A CPU gets an NMI only if it has an IDT to take it with: one that is still in the loader, or
/// that never answered, would reset the machine.
pub fn others() {
    REQUESTED.store(true, Ordering::Release);
    let own = lapic::own_id();
    let reachable = || {
        cpu::all().filter(move |(_, shared)| {
            shared.lapic_id != own && shared.report.phase() >= Phase::Entered
        })
    };
    for (_, shared) in reachable() {
        lapic::send_nmi(shared.lapic_id);
    }
    let deadline = Deadline::after_millis(TIMEOUT);
    while !deadline.passed() && reachable().any(|(_, shared)| shared.end.stopped_at().is_none()) {
        core::hint::spin_loop();
    }
}

/// Stops this CPU if another one reports that the run is over: called in every wait for a lock or for
/// another CPU, either of which may never end. This CPU may have been sent no NMI: one that faults on
/// the loader's tables can't send any, in xAPIC mode. A CPU with a fault of its own goes on.
pub fn stop_if_over() {
    let is_well = || cpu::try_with(|here| !here.shared().end.has_begun());
    if is_requested() && is_well() == Some(true) {
        stop_here(stop_if_over as *const () as u64);
    }
}

/// Stops this CPU for good, and records where it was.
pub fn stop_here(address: u64) -> ! {
    cpu::try_with(|here| here.shared().end.stop_at(address));
    idle::halt_for_good()
}
