//! The two ways out: COM1 for people, QEMU's debug console for the journals.

use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};
use x86_64::instructions::port::{Port, PortReadOnly};

/// COM1's I/O port on every PC.
const COM1: u16 = 0x3f8;

/// QEMU's `isa-debugcon` port; a read of it gives the port number back.
const DEBUG_CONSOLE: u16 = 0xe9;

static UART: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);

/// Sets COM1 up. A machine without one stays silent.
pub fn start() {
    // SAFETY: COM1's standard port. Only the BSP runs, and this is the only
    // driver of the port from here on.
    let uart = unsafe { Uart16550::new_port(COM1) };
    *UART.lock() = uart.ok().and_then(|mut uart| {
        let started = uart.init(Config::default()).is_ok();
        started.then_some(uart)
    });
}

/// Writes a whole line: no other CPU's bytes come in between.
///
/// Interrupts are kept out while the port is locked, so a handler on this CPU
/// never waits for the code it interrupted.
pub fn write(line: &[u8]) {
    x86_64::instructions::interrupts::without_interrupts(|| {
        if let Some(uart) = UART.lock().as_mut() {
            uart.send_bytes_exact(line);
        }
    });
}

/// Takes the port away from whoever holds it, for a CPU that reports a fault
/// after all others were stopped. Says whether a line was broken off.
pub fn seize() -> bool {
    let held = UART.is_locked();
    if held {
        // SAFETY: the holder is stopped for good (or is this CPU, inside a
        // fault that never returns to it), so no second `&mut` to the driver
        // comes to life; the driver has no state that a broken-off line leaves
        // invalid: each byte is a port write of its own.
        unsafe { UART.force_unlock() };
    }
    held
}

/// Whether QEMU's debug console is there to take the journals.
pub fn has_debug_console() -> bool {
    // SAFETY: reading this port has no side effect: the console answers with the
    // port's number, an empty bus with 0xff.
    let answer = unsafe { PortReadOnly::<u8>::new(DEBUG_CONSOLE).read() };
    answer == DEBUG_CONSOLE as u8
}

/// Writes to QEMU's debug console. Call only if [`has_debug_console`] says so.
pub fn write_debug_console(bytes: impl Iterator<Item = u8>) {
    let mut port = Port::<u8>::new(DEBUG_CONSOLE);
    for byte in bytes {
        // SAFETY: the port belongs to the debug console (the caller asked), which
        // takes any byte and touches nothing else.
        unsafe { port.write(byte) };
    }
}
