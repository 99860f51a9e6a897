//! The self-test: the kernel's first client. The library calls it when the machine is up, and its result counts
//! for the verdict.

#![no_std]
#![no_main]

extern crate alloc;

mod selftest;

muster::entry!(selftest::run);
