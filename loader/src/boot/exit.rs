//! The loader's last words: one line on COM1, and an exit status for QEMU.

use core::fmt::{self, Write};

use qemu_exit::QEMUExit;
use uart_16550::{BaudRate, Config, Uart16550Tty};

/// I/O port of the first serial port.
pub const COM1: u16 = 0x3f8;

/// I/O port of QEMU's isa-debug-exit device.
pub const PORT: u16 = 0xf4;

/// Value for the device that means "refused to start": QEMU's exit status is
/// twice the value plus one, 37.
pub const REFUSED: u32 = 18;

/// Prints one line, prefixed `loader: `. Without a serial port it goes nowhere.
pub fn say(message: fmt::Arguments<'_>) {
    let config = Config {
        baud_rate: BaudRate::Baud115200,
        ..Config::default()
    };
    // SAFETY: COM1 is a serial port or nothing at all, and the loader is the
    // only one to use it: the other CPUs never print.
    if let Ok(mut console) = unsafe { Uart16550Tty::new_port(COM1, config) } {
        // A serial port that fails leaves nobody to tell.
        let _ = writeln!(console, "loader: {message}");
    }
}

/// Says why the kernel does not start, and ends QEMU with status 37. On a
/// machine without the exit device the CPU halts.
pub fn refuse(reason: fmt::Arguments<'_>) -> ! {
    say(reason);
    // SAFETY: the port is the one that the device is documented to be at; a
    // write to a port that nothing listens to has no effect.
    unsafe { qemu_exit::X86::new(PORT, 33) }.exit(REFUSED)
}
