//! How a run ends: a verdict in the log, an exit status for the emulator, and a halt.

use core::fmt::{self, Write as _};

use heapless::String;
pub use muster_events::Outcome;
use muster_events::Verdict;
use qemu_exit::{QEMUExit, X86};
use x86_64::instructions::port::Port;

use super::{events, journal};
use crate::arch::{control, debug_console, idle};

/// I/O port of QEMU's `isa-debug-exit` device as the runner configures it
/// (`-device isa-debug-exit,iobase=0xf4,iosize=4`).
const DEBUG_EXIT_PORT: u16 = 0xf4;

/// I/O port at which Bochs ends when it has taken these bytes one after the other (Bochs,
/// iodev/unmapped.cc). Its exit status is always the same, so the outcome goes to its debug console first.
const BOCHS_PORT: u16 = 0x8900;
const BOCHS_SHUTDOWN: &[u8] = b"Shutdown";

/// Prints the verdict as the last line of the log and ends the run.
pub fn conclude(outcome: Outcome, reason: fmt::Arguments<'_>) -> ! {
    // Whatever `log=` hides, the verdict is logged.
    journal::set_serial_level(log::LevelFilter::Info);
    match outcome {
        Outcome::Passed => log::info!(target: journal::VERDICT, "verdict: passed"),
        _ => log::error!(target: journal::VERDICT, "verdict: failed: {reason}"),
    }
    let reason = (outcome != Outcome::Passed).then(|| journal::clip(reason));
    events::emit(Verdict {
        outcome,
        status: outcome.status(),
        reason: reason.as_deref().map(Into::into),
    });
    journal::dump();
    quit(outcome)
}

/// Ends the run without a line in the log: reports the outcome to the emulator and, where there is
/// none, halts this CPU for good.
///
/// QEMU's CPUs say that they are virtual. Bochs' do not, but its debug console answers, which no other
/// machine has at that port.
pub fn quit(outcome: Outcome) -> ! {
    if control::has_hypervisor() {
        // SAFETY: the port is the one the runner gives to `isa-debug-exit`. Only a
        // machine that says it is virtual gets here; without the device the
        // write goes to an unclaimed port, which has no effect on memory.
        let device = unsafe { X86::new(DEBUG_EXIT_PORT, Outcome::Passed as u32) };
        device.exit(outcome as u32 >> 1);
    }
    if debug_console::is_there() {
        quit_bochs(outcome);
    }
    idle::halt_for_good()
}

/// Reports the outcome on the debug console, and has Bochs end; an emulator that has only the console
/// goes on.
fn quit_bochs(outcome: Outcome) {
    let mut status = String::<32>::new();
    // An `i32` fits.
    let _ = writeln!(status, "=== status {}", outcome.status());
    debug_console::write(status.bytes());
    for &byte in BOCHS_SHUTDOWN {
        // SAFETY: only an emulator's debug console answers as this machine's did. Where the port is not
        // the one that ends Bochs nothing claims it, and a write has no effect on memory.
        unsafe { Port::new(BOCHS_PORT).write(byte) };
    }
}
