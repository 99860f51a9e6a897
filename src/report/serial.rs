//! COM1, for people; COM2, for programs; and the debug console of QEMU and Bochs, for the journals.
//!
//! A line that is being typed at COM1 is erased before another one is written, and the monitor then
//! draws it again.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};

use crate::arch::clock::Deadline;
use crate::smp::lapic;
use crate::smp::lock::{self, Level, Lock};

/// COM1's and COM2's I/O ports on every PC that has them.
const COM1: u16 = 0x3f8;
const COM2: u16 = 0x2f8;

/// How long a UART may take to accept bytes, in milliseconds. A full FIFO of 16
/// drains in 1.4 ms at 115200 baud; one that takes this long is not being served.
const TIMEOUT: u64 = 100;

/// A UART, or `None` if there is none or it has stopped taking bytes.
type Uart = Lock<Option<Uart16550<PioBackend>>>;

/// COM1 and COM2. Their locks have one level: no code holds both.
static UART: Uart = Lock::new(Level::Serial, None);
static SECOND: Uart = Lock::new(Level::Serial, None);

/// The CPU (by LAPIC id) that alone writes now, past the locks. `SEIZED` is stored with Release after
/// `SEIZED_BY`, and loaded with Acquire before it.
static SEIZED: AtomicBool = AtomicBool::new(false);
static SEIZED_BY: AtomicU32 = AtomicU32::new(0);

/// Whether the terminal's line is one that is being typed. Changed under the lock of the
/// UART only, which orders it: Relaxed. The monitor's look without the lock may be stale, and is repeated.
static TYPED: AtomicBool = AtomicBool::new(false);

/// Erases the terminal's line (ECMA-48: EL, after a return).
const ERASE: &[u8] = b"\r\x1b[K";

fn config() -> Config {
    Config {
        baud_rate: BaudRate::Baud115200,
        ..Config::default()
    }
}

/// Sets COM1 up, at 115200 baud, 8N1. A machine without one stays silent.
pub fn start() {
    *UART.lock() = open(COM1);
}

/// Sets COM2 up in the same way. Returns whether there is one.
pub fn start_second() -> bool {
    let uart = open(COM2);
    let is_there = uart.is_some();
    *SECOND.lock() = uart;
    is_there
}

fn open(port: u16) -> Option<Uart16550<PioBackend>> {
    // SAFETY: a standard port. Only the BSP runs, and this module is its only driver.
    let mut uart = unsafe { Uart16550::new_port(port) }.ok()?;
    let started = uart.init(config()).is_ok();
    started.then_some(uart)
}

/// Returns whether this CPU alone writes, past the locks.
pub fn is_seized_here() -> bool {
    SEIZED.load(Ordering::Acquire) && SEIZED_BY.load(Ordering::Relaxed) == lapic::own_id()
}

/// Writes a whole line: no other CPU's bytes come in between.
pub fn write(line: &[u8]) {
    if is_seized_here() {
        return past_lock(COM1, |uart| send_line(uart, line));
    }
    with_uart(|uart| send_line(uart, line));
}

/// Writes a whole line, with its end, to COM2.
pub fn write_second(line: &[u8]) {
    if is_seized_here() {
        return past_lock(COM2, |uart| send(uart, line));
    }
    with(&SECOND, |uart| send(uart, line));
}

/// Draws a line that is being typed.
#[cfg(feature = "selftest")]
pub fn draw(line: &[u8]) {
    with_uart(|uart| {
        TYPED.store(true, Ordering::Relaxed);
        send(uart, line)
    });
}

/// Adds to the line that is being typed. Returns `false` if it was erased, and has to be drawn.
#[cfg(feature = "selftest")]
pub fn extend(bytes: &[u8]) -> bool {
    let mut is_typed = false;
    with_uart(|uart| {
        is_typed = TYPED.load(Ordering::Relaxed);
        !is_typed || send(uart, bytes)
    });
    is_typed
}

/// Ends the line that is being typed: it stays.
#[cfg(feature = "selftest")]
pub fn end_typing(bytes: &[u8]) {
    with_uart(|uart| !TYPED.swap(false, Ordering::Relaxed) || send(uart, bytes));
}

/// Returns whether there is a line that is being typed.
#[cfg(feature = "selftest")]
pub fn is_typed() -> bool {
    TYPED.load(Ordering::Relaxed)
}

/// Reads a typed byte, if there is one.
#[cfg(feature = "selftest")]
pub fn read() -> Option<u8> {
    UART.lock().as_mut()?.try_receive_byte().ok()
}

/// Returns whether there is a port to answer at.
#[cfg(feature = "selftest")]
pub fn is_there() -> bool {
    UART.lock().is_some()
}

/// Runs `use_it` with COM1's UART, as [`with`].
fn with_uart(use_it: impl FnOnce(&mut Uart16550<PioBackend>) -> bool) {
    with(&UART, use_it);
}

/// Runs `use_it` with the UART, if there is one that takes bytes; gives it up if it does not take
/// these.
fn with(uart: &Uart, use_it: impl FnOnce(&mut Uart16550<PioBackend>) -> bool) {
    let mut uart = uart.lock();
    if uart.as_mut().is_some_and(|uart| !use_it(uart)) {
        *uart = None;
    }
}

/// The ports on which a line was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokenOff {
    first: bool,
    second: bool,
}

impl BrokenOff {
    /// Ends those lines.
    pub fn end(self) {
        if self.first {
            write(b"\n");
        }
        if self.second {
            write_second(b"\n");
        }
    }
}

/// Lets this CPU write past the locks from now on, for a fault report: a holder may never release
/// one. Called before the others are stopped.
pub fn seize() -> BrokenOff {
    // A line that this CPU itself was writing is not finished any more.
    let timeout = match lock::held() {
        Some(Level::Serial) => 0,
        _ => TIMEOUT,
    };
    let deadline = Deadline::after_millis(timeout);
    let broken_off = BrokenOff {
        first: !take(&UART, deadline),
        second: !take(&SECOND, deadline),
    };
    SEIZED_BY.store(lapic::own_id(), Ordering::Relaxed);
    SEIZED.store(true, Ordering::Release);
    broken_off
}

/// Keeps all other CPUs from a UART, for good. Returns whether its lock was free before the deadline:
/// if not, a line is broken off.
fn take(uart: &'static Uart, deadline: Deadline) -> bool {
    loop {
        if let Some(guard) = uart.try_lock() {
            core::mem::forget(guard);
            return true;
        }
        if deadline.passed() {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Runs `use_it` with a driver of this CPU's own. The UART itself was set up before.
fn past_lock(port: u16, use_it: impl FnOnce(&mut Uart16550<PioBackend>) -> bool) {
    // SAFETY: a standard port. A second driver beside the one in the lock, which
    // a CPU that was not stopped may still be using: both only write bytes to the
    // port, so the worst is a mixed-up line.
    if let Ok(mut uart) = unsafe { Uart16550::new_port(port) } {
        use_it(&mut uart);
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
    let mut deadline = Deadline::after_millis(TIMEOUT);
    while !bytes.is_empty() {
        let sent = uart.send_bytes(bytes);
        bytes = bytes.get(sent..).unwrap_or_default();
        if sent > 0 {
            deadline = Deadline::after_millis(TIMEOUT);
        } else if deadline.passed() {
            return false;
        }
    }
    true
}
