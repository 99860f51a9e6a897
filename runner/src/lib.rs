//! How the runner takes what a run of the kernel wrote: line by line, CPU by CPU, with symbols, to a
//! verdict. A library of its own so that the fuzzer reaches it.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it panics where nobody reads"
)]

pub mod boot_log;
pub mod events;
pub mod figures;
pub mod line;
pub mod pause;
pub mod session;
pub mod symbols;
pub mod workspace;
