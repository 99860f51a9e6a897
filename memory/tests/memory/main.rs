//! Each module against a naive model of it, and corrupted tables against their check.

#![allow(
    clippy::unwrap_used,
    reason = "a test that finds nothing to unwrap must fail"
)]

mod address_allocator;
mod address_space;
mod aliases;
mod changes;
mod frame_cache;
mod frames;
mod map;
mod maps;
mod oracle;
mod plan;
mod ram;
mod range;
mod scarce;
mod shown;
mod tables;
mod walker;
