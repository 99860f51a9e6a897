//! A heap for kernels.
//!
//! Stub.

#![no_std]

#[cfg(any(feature = "hosted", test, doc))]
extern crate std;

mod heap;
#[cfg(feature = "hosted")]
pub mod hosted;
mod lock;
mod platform;
mod regions;
mod statistics;

pub use heap::{Heap, StartError};
pub use platform::Platform;
pub use statistics::Statistics;

/// The most regions a heap holds that don't continue one another.
pub const MAX_REGIONS: usize = 64;
