//! Each module against a naive model of it, and corrupted tables against their check.

#![allow(
    clippy::unwrap_used,
    reason = "a test that finds nothing to unwrap must fail"
)]

mod address_allocator;
mod address_space;
mod aliases;
mod changes;
mod frame_source;
mod maps;
#[path = "../../../frames/tests/frames/oracle.rs"]
mod oracle;
#[path = "../../../frames/tests/frames/owner.rs"]
mod owner;
mod plan;
mod ram;
#[path = "../../../frames/tests/frames/scarce.rs"]
mod scarce;
mod shown;
mod tables;
mod walker;
