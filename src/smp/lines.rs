//! Lines of the log, and the last ones of each CPU.

use heapless::{Deque, String};

/// The longest line, in bytes; what goes beyond is cut and marked.
const LINE: usize = 256;

/// What one CPU's journal holds, in bytes: about 200 lines, and what leaves room for the rest of the CPU's block
/// in 12 frames.
pub const CAPACITY: usize = 15 * 1024;

/// One line of the log, as it is printed and kept.
pub type Line = String<LINE>;

/// The last lines of one CPU, oldest first.
#[derive(Default)]
pub struct Journal(Deque<u8, CAPACITY>);

impl Journal {
    /// An empty journal.
    pub const fn new() -> Self {
        Self(Deque::new())
    }

    /// Adds a line (with its line feed); whole lines make room for it.
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

    /// The bytes, oldest first.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.iter().copied()
    }
}
