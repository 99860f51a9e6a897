//! The log: whole lines on the serial port and on the screen, and each CPU's own lines in a
//! bounded journal of its own.
//!
//! The port and the screen show the levels that `log=` asks for (`info` by default); a journal
//! keeps everything down to `debug`, and drops its oldest lines first.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use heapless::String;
use log::{LevelFilter, Log, Metadata, Record};
use muster_percpu::cpu_local;
use muster_screen::Colour;

use super::{events, screen, serial};
use crate::arch::{clock, debug_console};
use crate::smp::cpu;
use crate::smp::lines::{Journal, LogLine};
use crate::smp::lock::{Level, Lock};

/// The target of a run's verdict.
pub const VERDICT: &str = "verdict";

/// The BSP's lines from before it had a block.
static EARLY: Lock<Journal> = Lock::new(Level::EarlyJournal, Journal::new());

/// The level of the serial port. Relaxed, as nothing else is read by it: a line at the time of a change may
/// go either way.
static SERIAL_LEVEL: AtomicU8 = AtomicU8::new(LevelFilter::Info as u8);

/// Whether the BSP's lines are answers at the monitor's prompt. Relaxed: it matters on the BSP alone, which
/// sets it; another CPU clears it only when it reports a fault, and then stops the BSP.
static ANSWERING: AtomicBool = AtomicBool::new(false);

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if ANSWERING.load(Ordering::Relaxed) && is_bsp() {
            serial::write(format_answer(record).as_bytes());
            return events::log(record.level(), target_of(record), &clip(*record.args()));
        }
        let (line, message) = format_line(record);
        keep(line.as_bytes());
        if record.level() as u8 <= SERIAL_LEVEL.load(Ordering::Relaxed) {
            // First, so that a line that was read at the port is on the screen.
            screen::write(line.trim_end(), colour(record));
            serial::write(line.as_bytes());
            let message = line.get(message..).unwrap_or_default();
            events::log(record.level(), target_of(record), message.trim_end());
        }
    }

    fn flush(&self) {}
}

/// Starts the serial port and the log. Called once, on the BSP.
pub fn start() {
    static LOGGER: Logger = Logger;
    serial::start();
    // Fails only if a logger is set already, and then logging works.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Debug);
}

/// Sets the level that the serial port shows; the journals keep `debug` in any case.
pub fn set_serial_level(level: LevelFilter) {
    SERIAL_LEVEL.store(level as u8, Ordering::Relaxed);
    log::set_max_level(level.max(LevelFilter::Debug));
}

/// Runs `speak`, whose log lines go to the serial port bare, whatever `log=` hides, and past the
/// journal: they answer a command at the prompt. Called on the BSP.
#[cfg(feature = "selftest")]
pub fn answer<T>(speak: impl FnOnce() -> T) -> T {
    ANSWERING.store(true, Ordering::Relaxed);
    let result = speak();
    stop_answering();
    result
}

/// Ends an answer: all lines are log from now on. For a fault that interrupts an answer.
pub fn stop_answering() {
    ANSWERING.store(false, Ordering::Relaxed);
}

/// Returns the colour of a line on the screen.
fn colour(record: &Record<'_>) -> Colour {
    match record.level() {
        log::Level::Error => Colour::Error,
        log::Level::Warn => Colour::Warning,
        log::Level::Info if record.target() == VERDICT => Colour::Good,
        log::Level::Info => Colour::Plain,
        log::Level::Debug | log::Level::Trace => Colour::Dim,
    }
}

fn is_bsp() -> bool {
    cpu::try_with(|here| here.index()) == Some(0)
}

cpu_local! {
    /// The CPU's last lines.
    pub shared static JOURNAL: Lock<Journal> = Lock::new(Level::Journal, Journal::new());
}

/// Moves the lines from before the BSP had a block into its journal. Called once, by the BSP.
pub fn adopt_early() {
    cpu::with(|here| {
        let mut journal = here.get(&JOURNAL).lock();
        core::mem::swap(&mut *EARLY.lock(), &mut *journal);
    });
}

/// Keeps a line in this CPU's journal.
///
/// A journal is only ever locked by its own CPU, with interrupts disabled, and, once that CPU has
/// stopped or the run is over, by the reader. So a lock that is taken here means that a fault has
/// interrupted this very function, and the line goes to the port only.
fn keep(line: &[u8]) {
    let kept = cpu::try_with(|here| {
        if let Some(mut journal) = here.get(&JOURNAL).try_lock() {
            journal.push(line);
        }
    });
    if kept.is_none()
        && let Some(mut journal) = EARLY.try_lock()
    {
        journal.push(line);
    }
}

/// Returns the module that logs.
fn target_of<'a>(record: &Record<'a>) -> &'a str {
    let target = record.target();
    target.rsplit("::").next().unwrap_or(target)
}

/// Formats one line: time since entry, CPU, level, target, message. Returns it, and where the
/// message begins.
fn format_line(record: &Record<'_>) -> (LogLine, usize) {
    let target = target_of(record);
    let micros = clock::micros();
    let cpu = cpu::try_with(|here| here.index()).unwrap_or(0);
    let mut line = Clipped(LogLine::new());
    // `Clipped` takes any text, so this can't fail.
    let _ = write!(
        line,
        "{:>3}.{:06} {cpu:>2} {:<5} {target:<7} ",
        micros / 1_000_000,
        micros % 1_000_000,
        record.level(),
    );
    let message = line.0.len();
    let _ = line.write_fmt(*record.args());
    (line.finish(), message)
}

/// Clips a text to a line.
pub fn clip(text: fmt::Arguments<'_>) -> LogLine {
    let mut line = Clipped(LogLine::new());
    let _ = line.write_fmt(text);
    let mut line = line.finish();
    line.truncate(line.trim_end().len());
    line
}

/// Formats one line of an answer: the message, after its level if it is a warning or an error.
fn format_answer(record: &Record<'_>) -> LogLine {
    let word = match record.level() {
        log::Level::Error => "error: ",
        log::Level::Warn => "warning: ",
        _ => "",
    };
    let mut line = Clipped(LogLine::new());
    // `Clipped` takes any text, so this can't fail.
    let _ = write!(line, "{word}{}", record.args());
    line.finish()
}

/// A line that keeps as much as fits and drops the rest.
struct Clipped(LogLine);

impl Clipped {
    /// The mark of a line that was cut, with its line feed.
    const CUT: &str = "…\n";

    fn finish(mut self) -> LogLine {
        if self.0.push('\n').is_err() {
            while self.0.capacity() - self.0.len() < Self::CUT.len() {
                self.0.pop();
            }
            let _ = self.0.push_str(Self::CUT);
        }
        self.0
    }
}

impl Write for Clipped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            // A line is one line, whatever characters a text from outside contains.
            let character = if character.is_control() {
                ' '
            } else {
                character
            };
            if self.0.push(character).is_err() {
                // Full to the last byte, so that `finish` marks the cut.
                while self.0.push('.').is_ok() {}
                break;
            }
        }
        Ok(())
    }
}

/// Hands every CPU's journal to the emulator's debug console, where there is one.
///
/// Called when the run is over: a CPU that still holds its journal's lock then
/// was stopped in the middle of a line, and its journal is left out.
pub fn dump() {
    if !debug_console::is_there() {
        return;
    }
    let mut heading = String::<64>::new();
    let _ = writeln!(heading, "=== cpu 0 (before its block)");
    let early = EARLY.try_lock();
    if let Some(early) = early.filter(|early| early.bytes().next().is_some()) {
        debug_console::write(heading.bytes().chain(early.bytes()));
    }
    for (index, block) in cpu::all() {
        if let Some(journal) = block.get(&JOURNAL).try_lock() {
            heading.clear();
            let _ = writeln!(heading, "=== cpu {index} lapic {}", cpu::lapic_id(block));
            debug_console::write(heading.bytes().chain(journal.bytes()));
        }
    }
}
