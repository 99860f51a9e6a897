//! The serial port, and how a run ends.

use core::fmt::{self, Write};

use qemu_exit::{QEMUExit, X86};
use uart_16550::{BaudRate, Config, Uart16550Tty};
use x86_64::instructions::{hlt, interrupts};

/// COM1's I/O port on every PC.
const COM1: u16 = 0x3f8;

/// I/O port of QEMU's `isa-debug-exit` device, as `just floor` has it.
const EXIT: u16 = 0xf4;

/// QEMU's exit status, odd as that device has it.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Outcome {
    /// All went well.
    Passed = 33,
    /// Something was not as it should be.
    Failed = 35,
    /// A panic.
    Panicked = 39,
}

/// Writes a line. A machine without a serial port stays silent.
macro_rules! say {
    ($($words:tt)*) => { $crate::console::write(format_args!($($words)*)) };
}
pub(crate) use say;

/// Writes a line, for [`say`].
pub fn write(words: fmt::Arguments<'_>) {
    let config = Config {
        baud_rate: BaudRate::Baud115200,
        ..Config::default()
    };
    // SAFETY: COM1 is a serial port or nothing at all. Two CPUs that panic at once would mix their
    // lines up, and no more.
    if let Ok(mut port) = unsafe { Uart16550Tty::new_port(COM1, config) } {
        // A port that fails leaves nobody to tell.
        let _ = writeln!(port, "{words}");
    }
}

/// Ends the run.
pub fn end(outcome: Outcome) -> ! {
    // SAFETY: a write to this port ends QEMU; in a machine without the device it has no effect on
    // memory.
    unsafe { X86::new(EXIT, Outcome::Passed as u32) }.exit(outcome as u32 >> 1)
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}
