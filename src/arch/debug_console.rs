//! The debug console of emulators: a port that takes bytes.

use x86_64::instructions::port::{Port, PortReadOnly};

/// The port of QEMU's `isa-debugcon` and of Bochs' `port_e9_hack`; a read of it gives the port number back.
const PORT: u16 = 0xe9;

/// Returns whether an emulator's debug console is there to take the journals.
pub fn is_there() -> bool {
    // SAFETY: reading this port has no side effect: the console answers with the
    // port's number, an empty bus with 0xff.
    let answer = unsafe { PortReadOnly::<u8>::new(PORT).read() };
    answer == PORT as u8
}

/// Writes to the emulator's debug console. Call only if [`is_there`] says so.
pub fn write(bytes: impl Iterator<Item = u8>) {
    let mut port = Port::<u8>::new(PORT);
    for byte in bytes {
        // SAFETY: the port belongs to the debug console (the caller asked), which
        // takes any byte and touches nothing else.
        unsafe { port.write(byte) };
    }
}
