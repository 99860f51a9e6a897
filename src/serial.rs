//! COM1, for people, and QEMU's debug console, for the journals.
//!
//! A line that somebody is typing at COM1 is erased before another one is written, and whoever has
//! drawn it has to draw it again.

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

/// Whether the terminal's line is one that is being typed. Changed under the lock of the UART only.
static TYPED: AtomicBool = AtomicBool::new(false);

/// What erases the terminal's line (ECMA-48: EL, after a return).
const ERASE: &[u8] = b"\r\x1b[K";

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
    with_uart(|uart| send_line(uart, line));
}

/// Draws a line that is being typed.
pub fn draw(line: &[u8]) {
    with_uart(|uart| {
        TYPED.store(true, Ordering::Relaxed);
        send(uart, line)
    });
}

/// Adds to the line that is being typed. `false`: it is there no more, and has to be drawn.
pub fn extend(bytes: &[u8]) -> bool {
    let mut is_typed = false;
    with_uart(|uart| {
        is_typed = TYPED.load(Ordering::Relaxed);
        !is_typed || send(uart, bytes)
    });
    is_typed
}

/// Ends the line that is being typed: it stays.
pub fn end_typing(bytes: &[u8]) {
    with_uart(|uart| !TYPED.swap(false, Ordering::Relaxed) || send(uart, bytes));
}

/// Whether there is a line that is being typed.
pub fn is_typed() -> bool {
    TYPED.load(Ordering::Relaxed)
}

/// A byte that somebody has typed, if there is one.
pub fn read() -> Option<u8> {
    UART.lock().as_mut()?.try_receive_byte().ok()
}

/// Whether there is somebody who could be answered.
pub fn is_there() -> bool {
    UART.lock().is_some()
}

/// Lends the UART, if there is one that takes bytes; gives it up if it does not take these.
fn with_uart(use_it: impl FnOnce(&mut Uart16550<PioBackend>) -> bool) {
    let mut uart = UART.lock();
    if uart.as_mut().is_some_and(|uart| !use_it(uart)) {
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
        send_line(&mut uart, line);
    }
}

/// Sends a line in the place of one that is being typed, and ends it as terminals have it.
fn send_line(uart: &mut Uart16550<PioBackend>, line: &[u8]) -> bool {
    let is_typed = TYPED.swap(false, Ordering::Relaxed);
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    (!is_typed || send(uart, ERASE)) && send(uart, text) && send(uart, b"\r\n")
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
