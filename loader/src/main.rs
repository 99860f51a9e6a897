//! A loader for `qemu-system-x86_64 -kernel`, that boots an executable of the
//! Limine boot protocol, base revision 3.
//!
//! ```text
//! qemu-system-x86_64 -kernel muster-loader -initrd KERNEL -append "words" \
//!     -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=4
//! ```
//!
//! The story is in `boot.rs`. It touches the machine from the first line on,
//! so it is built for the bare machine only; what needs none is the library.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod boot;

/// Does nothing: the loader runs on no operating system; this is for `cargo test`.
#[cfg(not(target_os = "none"))]
fn main() {}
