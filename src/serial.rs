//! The two ways out: COM1 for people, QEMU's debug console for the journals.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};
use x86_64::instructions::port::{Port, PortReadOnly};

use crate::clock::Deadline;
use crate::lapic;
use crate::lock::{Level, Lock};

/// COM1's I/O port on every PC.
const COM1: u16 = 0x3f8;

/// QEMU's `isa-debugcon` port; a read of it gives the port number back.
const DEBUG_CONSOLE: u16 = 0xe9;

/// How long a UART may take to accept bytes, in milliseconds. A full FIFO of 16
/// drains in 1.4 ms at 115200 baud; one that takes this long is not being served.
const PATIENCE: u64 = 100;

/// COM1, or `None` if there is none or it has stopped taking bytes.
static UART: Lock<Option<Uart16550<PioBackend>>> = Lock::new(Level::Serial, None);

/// The CPU (by LAPIC id) that alone writes now, past the lock.
static SEIZED: AtomicBool = AtomicBool::new(false);
static SEIZED_BY: AtomicU32 = AtomicU32::new(0);

fn config() -> Config {
    Config {
        baud_rate: BaudRate::Baud115200,
        ..Config::default()
    }
}

/// Sets COM1 up, at 115200 baud, 8N1. A machine without one stays silent.
pub fn start() {
    // SAFETY: COM1's standard port. Only the BSP runs, and this module is its only
    // driver.
    let uart = unsafe { Uart16550::new_port(COM1) };
    *UART.lock() = uart.ok().and_then(|mut uart| {
        let started = uart.init(config()).is_ok();
        started.then_some(uart)
    });
}

/// Writes a whole line: no other CPU's bytes come in between.
pub fn write(line: &[u8]) {
    if SEIZED.load(Ordering::Acquire) && SEIZED_BY.load(Ordering::Relaxed) == lapic::own_id() {
        return write_past_lock(line);
    }
    let mut uart = UART.lock();
    if uart.as_mut().is_some_and(|uart| !send(uart, line)) {
        *uart = None;
    }
}

/// Lets this CPU write past the lock from now on, for a fault report: whoever holds
/// the lock may never let go of it. Says whether a line was broken off.
pub fn seize() -> bool {
    SEIZED_BY.store(lapic::own_id(), Ordering::Relaxed);
    SEIZED.store(true, Ordering::Release);
    UART.is_locked()
}

/// Writes by a driver of this CPU's own. The UART itself was set up before.
fn write_past_lock(line: &[u8]) {
    // SAFETY: COM1's standard port. A second driver beside the one in the lock, which
    // a CPU that was not stopped may still be using: both only write bytes to the
    // port, so the worst is a mixed-up line.
    if let Ok(mut uart) = unsafe { Uart16550::new_port(COM1) } {
        send(&mut uart, line);
    }
}

/// Sends all bytes; `false` if the UART stops taking them.
fn send(uart: &mut Uart16550<PioBackend>, mut bytes: &[u8]) -> bool {
    let mut deadline = Deadline::after_millis(PATIENCE);
    while !bytes.is_empty() {
        let sent = uart.send_bytes(bytes);
        bytes = bytes.get(sent..).unwrap_or_default();
        if sent > 0 {
            deadline = Deadline::after_millis(PATIENCE);
        } else if deadline.passed() {
            return false;
        }
    }
    true
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
