//! Lines of the log, and the last ones of each CPU.

use heapless::{Deque, String};

/// The maximum length of a line, in bytes; the rest is cut and marked.
const LINE: usize = 256;

/// The capacity of one CPU's journal, in bytes: about 200 lines. It leaves room for the rest of the
/// CPU's block in 12 frames.
pub const CAPACITY: usize = 15 * 1024;

/// One line of the log, as it is printed and kept.
pub type LogLine = String<LINE>;

/// The last lines of one CPU, oldest first.
#[derive(Default)]
pub struct Journal(Deque<u8, CAPACITY>);

impl Journal {
    /// Creates an empty journal.
    pub const fn new() -> Self {
        Self(Deque::new())
    }

    /// Adds a line (with its line feed); drops the oldest lines to make room for it.
    pub fn push(&mut self, line: &[u8]) {
        while self.0.capacity() - self.0.len() < line.len() {
            while self.0.pop_front().is_some_and(|byte| byte != b'\n') {}
        }
        for &byte in line {
            if self.0.push_back(byte).is_err() {
                return;
            }
        }
    }

    /// Returns the bytes, oldest first.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.iter().copied()
    }
}
