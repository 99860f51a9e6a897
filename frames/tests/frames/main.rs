//! Each module against a naive model of it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that finds nothing to unwrap must fail"
)]

mod frame_cache;
mod frames;
mod map;
mod oracle;
mod owner;
mod range;
mod runs;
mod scarce;
