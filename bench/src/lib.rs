//! Allocators side by side: the same workloads in a kernel, on its CPUs, and on a host, on threads.
//!
//! A [`Machine`] has CPUs and a clock; a [`Contender`] is an allocator, [of blocks](OnHeap) or [of
//! frames](OnFrames); [`compare()`] does every [`Workload`] with every contender on every number of
//! CPUs, and tells a [`Console`](report::Console).
//!
//! # How it is measured
//!
//! - **Rounds.** After a short one that only warms up, in each round each contender does the workload once, one after the other, so that
//!   what else the machine does meets all of them. A figure is the median of the rounds and has a
//!   range; a ratio is taken within each round, and then the median of those.
//! - **Pairs.** What is counted is pairs of an allocation and a free, of all CPUs together. Each
//!   CPU's pairs are divided by the time from the moment the first CPU started to this one's end.
//!   Where blocks stay live, they are allocated before and freed after the measurement.
//! - **Calls.** The compiler may make an allocator's functions part of a workload's loop, as it makes
//!   those of a `#[global_allocator]` part of what uses them; of a layout it knows nothing before.
//!   Each block is written to.
//! - **The slowest of 1000** (`p999_ns`) is of single steps, picked about every 8 µs on each CPU: the
//!   [`Meter`](meter::Meter) reads the clock before and after the step, and at no other time, so
//!   the sample is also the look whether time is up. A step is a pair, but where allocations and
//!   frees are apart (xfree, sh8bench, frame-bulk) it is one or the other. The two readings are part
//!   of it.
//! - **Instructions**, where they are measured, are counted over 8192 pairs on one CPU, after as many
//!   that fill its caches, less what the same loop takes around nothing. A call, if there is one, its
//!   arguments and the look whether there is a block are counted as the allocator's.
//! - **Failures** are allocations answered with null. They count as done.
//! - Whatever the harness needs is allocated before ([`Room`]).
#![no_std]

extern crate alloc;

mod compare;
pub mod contenders;
mod course;
pub mod figures;
mod histogram;
mod machine;
pub mod meter;
mod options;
mod random;
pub mod report;
mod workloads;

pub use compare::{FRAME_BASELINE, HEAP_BASELINE, Problem, compare};
pub use course::{Course, Room, Score};
pub use histogram::Histogram;
pub use machine::{Machine, Place};
pub use options::{Format, Measure, Options};
pub use random::Random;
pub use workloads::{
    BuddyFrames, Contender, Empty, FrameSource, FrameUser, Kind, MusterFrames, OnFrames, OnHeap,
    Workload,
};
