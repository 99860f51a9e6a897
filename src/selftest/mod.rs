//! The self-test: stress, the monitor, fault injection and benchmarks.
//!
//! The highest room: it imports all others, and none imports it.

#[cfg(feature = "bench")]
pub mod bench;
pub mod fault;
pub mod measure;
pub mod median;
pub mod misuse;
pub mod monitor;
pub mod step;
pub mod stress;
