//! A person's terminal at the kernel's serial line: keys go there one by one, and what comes is shown
//! as it comes, so that a line can be typed at the kernel's own prompt.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use muster_runner::line::LogLine;
use muster_runner::session::{self, Interrupt, Typist};
use rustix::termios::{self, OptionalActions, OutputModes, Termios};

/// The key that ends the emulator, whatever the kernel does: Ctrl-], as in telnet.
const QUIT: u8 = 0x1d;

/// What is typed where there is nothing more: the line is over, and so is the run. Ctrl-D would ask.
const END: &[u8] = b"\noff\n";

/// The terminal, or the pipe or file in its place.
pub struct Terminal {
    interrupt: Interrupt,
    keyboard: Arc<Mutex<Keyboard>>,
    /// The line so far, as it was shown.
    shown: Vec<u8>,
    /// Whether a return was left out, that may belong to the line's end.
    is_returned: bool,
    /// Where that is. Without a person lines are written whole.
    to: Box<dyn Write>,
    raw: Option<Raw>,
}

/// The way to the kernel, which is open once it reads: it clears what came before.
#[derive(Default)]
struct Keyboard {
    pipe: Option<session::KernelInput>,
    is_open: bool,
    early: Vec<u8>,
}

impl Keyboard {
    fn press(&mut self, keys: &[u8]) -> io::Result<()> {
        match &mut self.pipe {
            Some(pipe) if self.is_open => {
                pipe.write_all(keys)?;
                pipe.flush()
            }
            _ => {
                self.early.extend(keys);
                Ok(())
            }
        }
    }

    fn open(&mut self) -> io::Result<()> {
        self.is_open = true;
        let early = std::mem::take(&mut self.early);
        self.press(&early)
    }
}

fn lock(keyboard: &Mutex<Keyboard>) -> MutexGuard<'_, Keyboard> {
    keyboard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Terminal {
    /// Takes the standard input, key by key if it is a terminal, until this is dropped. What is there to
    /// be seen goes `to` where a person looks.
    ///
    /// # Errors
    /// If the terminal can't be set so.
    pub fn new(interrupt: &Interrupt, to: Box<dyn Write>) -> Result<Self> {
        Ok(Self {
            interrupt: interrupt.clone(),
            keyboard: Arc::default(),
            shown: Vec::new(),
            is_returned: false,
            to,
            raw: Raw::set()?,
        })
    }
}

impl Typist for Terminal {
    fn take_keyboard(&mut self, pipe: session::KernelInput) -> Result<()> {
        lock(&self.keyboard).pipe = Some(pipe);
        let (keyboard, interrupt) = (self.keyboard.clone(), self.interrupt.clone());
        thread::spawn(move || {
            let mut key = [0];
            loop {
                let pressed = match io::stdin().lock().read(&mut key) {
                    Ok(0) | Err(_) => END,
                    Ok(_) if key == [QUIT] => return interrupt.raise(),
                    Ok(_) => &key[..],
                };
                // It fails only when the emulator has ended, and then all is over.
                if lock(&keyboard).press(pressed).is_err() || pressed == END {
                    return;
                }
            }
        });
        Ok(())
    }

    fn see(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() || self.raw.is_none() {
            return Ok(());
        }
        if self.is_returned {
            self.to.write_all(b"\r")?;
        }
        self.is_returned = bytes.ends_with(b"\r");
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        self.shown.extend(bytes);
        self.to.write_all(bytes)?;
        self.to.flush()
    }

    fn read(&mut self, text: &str) -> io::Result<()> {
        let plain = muster_runner::line::plain(&self.shown);
        self.shown.clear();
        self.is_returned = false;
        // The symbols that stand behind an address.
        let rest = text.strip_prefix(plain.trim_end()).unwrap_or_default();
        writeln!(self.to, "{rest}")?;
        if LogLine::parse(text).is_some_and(|line| line.target == "monitor") {
            // It fails only when the emulator has ended, and then all is over.
            let _ = lock(&self.keyboard).open();
        }
        Ok(())
    }
}

/// A terminal that hands every key on at once and shows none, until this is dropped.
struct Raw(Termios);

impl Raw {
    /// Sets the terminal. Returns `None` if the standard input is none.
    fn set() -> Result<Option<Self>> {
        let Ok(before) = termios::tcgetattr(io::stdin()) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        // What is shown still has to begin new lines at their beginning.
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        termios::tcsetattr(io::stdin(), OptionalActions::Drain, &raw)
            .context("cannot take the terminal's keys one by one")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing is left to be done for a terminal that is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}
