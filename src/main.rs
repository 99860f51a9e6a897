//! The self-test: the kernel's first client.

#![no_std]
#![no_main]

extern crate alloc;

mod selftest;

muster::entry!(selftest::run);
