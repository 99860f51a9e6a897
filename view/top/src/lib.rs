//! A live view of the running kernel in a terminal, from the events that it writes.
//!
//! [`Kernel`] is the run: the runner's `monitor`, controlled by the keys that are typed at its prompt. Its
//! events become a [`Machine`], line by line, and [`draw`] is a picture of that, which anything can be
//! drawn of: a terminal, a buffer in a test, and `--once`, on a standard output that is no terminal.

mod kernel;
mod machine;
mod numbers;
mod picture;

pub use kernel::{Kernel, Said};
pub use machine::{Cpu, LogLine, Machine, Part, Rates, Stage};
pub use picture::{Order, Palette, View, draw};
