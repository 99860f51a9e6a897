//! How a run ends: a verdict in words, an exit status for QEMU, and a halt.

use core::fmt;

pub use muster_events::Outcome;
use muster_events::Verdict;
use qemu_exit::{QEMUExit, X86};

use crate::{events, journal};

/// I/O port of QEMU's `isa-debug-exit` device as the runner configures it
/// (`-device isa-debug-exit,iobase=0xf4,iosize=4`).
const DEBUG_EXIT_PORT: u16 = 0xf4;

/// Prints the verdict as the last line of the log and ends the run.
pub fn conclude(outcome: Outcome, reason: fmt::Arguments<'_>) -> ! {
    // Whatever `log=` hides, the verdict is said.
    journal::set_serial_level(log::LevelFilter::Info);
    match outcome {
        Outcome::Passed => log::info!(target: journal::VERDICT, "verdict: passed"),
        _ => log::error!(target: journal::VERDICT, "verdict: failed: {reason}"),
    }
    let reason = (outcome != Outcome::Passed).then(|| journal::clip(reason));
    events::tell(Verdict {
        outcome,
        status: outcome.status(),
        reason: reason.as_deref().map(Into::into),
    });
    journal::dump();
    quit(outcome)
}

/// Ends the run without a word: tells QEMU the outcome and, where there is no
/// QEMU to tell, halts this CPU for good.
pub fn quit(outcome: Outcome) -> ! {
    if raw_cpuid::CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_hypervisor())
    {
        // SAFETY: the port is the one the runner gives to `isa-debug-exit`. Only a
        // machine that says it is virtual gets here; without the device the
        // write goes to an unclaimed port, which has no effect on memory.
        let device = unsafe { X86::new(DEBUG_EXIT_PORT, Outcome::Passed as u32) };
        device.exit(outcome as u32 >> 1);
    }
    halt()
}

/// Stops this CPU for good. An NMI wakes it, and it halts again.
pub fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
