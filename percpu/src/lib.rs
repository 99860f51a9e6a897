//! CPU-local storage for kernels.
//!
//! Stub.

#![no_std]

#[cfg(any(feature = "std", doc))]
extern crate std;

mod block;
mod directory;
mod storage;
#[cfg(feature = "std")]
pub mod threads;

pub use block::{Block, Header, UNREGISTERED};
pub use directory::{Directory, PublishError};
pub use storage::{Here, Register, RegisterError, Storage};
