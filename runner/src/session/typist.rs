//! The trait of whatever reads the kernel's serial line and types at it: a person's terminal, or the script
//! of a boot test.

use std::io::{self, Write};

use anyhow::Result;

/// The way to the serial line: what is written to it is typed.
pub type KernelInput = Box<dyn Write + Send>;

/// Somebody at the serial line, who reads and types.
pub trait Typist {
    /// Takes the keyboard: what is written to it is typed.
    ///
    /// # Errors
    /// If there is no keeping it.
    fn take_keyboard(&mut self, keyboard: KernelInput) -> Result<()>;

    /// Sees more of a line, without its end, as it comes.
    ///
    /// # Errors
    /// If it can't be shown.
    fn see(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Sees the line's end, and so all of it, with its symbols.
    ///
    /// # Errors
    /// If it can't be shown, or nothing be typed for it.
    fn read(&mut self, text: &str) -> io::Result<()>;
}
