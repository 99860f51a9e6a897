//! The kernel's command line: `key=value` words, what they ask for, and how they are called.
//!
//! Plain data without the kernel: it matches on what [`Arguments::parse`] gives and does it. Every
//! name stands in one place, beside its value, so that what is understood, what [`help()`] lists and
//! what the runner offers can't differ.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod arguments;
mod help;
mod named;
mod values;

pub use arguments::{ArgumentError, Arguments, millis};
pub use help::help;
pub use values::{
    Fault, Heap, HeapKind, LogLevel, Mishap, Output, Reclaim, Step, Workload, Workloads,
};
