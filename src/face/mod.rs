//! The public face: what a client may use of the kernel, and nothing that could break memory but by
//! functions that are marked as unsafe.
//!
//! Imports [`bringup`](crate::bringup) and the rooms below it. Of the crate only `src/lib.rs` imports it.
//!
//! All of it may be used from the moment at which the client is called ([`entry!`](crate::entry!)), on any
//! CPU, but where a function says otherwise.

pub mod account;
pub mod arguments;
pub mod cpus;
pub mod interrupts;
pub mod memory;
pub mod panic;
pub mod time;
