//! The kernel's command line: `key=value` words, what they ask for, and how they are called.
//!
//! Plain data without the kernel: it matches on what [`Arguments::parse`] gives and does it. Every
//! option stands in one table, with its form and meaning, and every name beside its value, so that what the
//! kernel understands, what the runner takes, and what help, monitor and book list can't differ.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod arguments;
mod form;
mod named;
mod nearest;
mod options;
#[cfg(feature = "selftest")]
mod selftest;
mod values;

pub use arguments::{Arguments, client_words};
pub use form::{Form, bytes, millis};
pub use nearest::nearest;
pub use options::{BENCH, KERNEL, LOADER, OptionError, OptionInfo, RUNNER, SELFTEST};
#[cfg(feature = "selftest")]
pub use selftest::SelfTest;
pub use values::{
    ApFault, Fault, Heap, HeapKind, LogLevel, Output, Reclaim, Step, Workload, Workloads,
};
