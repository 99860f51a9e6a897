//! The events of the stress: samples while it runs, and what each workload and each CPU did.

use alloc::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::cpus::Phase;

/// What one CPU has done so far. While the stress is on there is one for each CPU about four times a
/// second, with a [`Memory`] after them. Numbers only grow, but for those in bytes, and for the operations, which
/// begin again with each workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample<'a> {
    /// The CPU.
    pub cpu: u32,
    /// The last phase of its bring-up that it reached.
    pub phase: Phase,
    /// What it is doing, in words.
    pub doing: Cow<'a, str>,
    /// The workload that is on; empty if none is.
    pub workload: Cow<'a, str>,
    /// Allocations, frees and other operations in that workload.
    pub operations: u64,
    /// Interrupts taken.
    pub interrupts: u64,
    /// Calls to others, one for each of them.
    pub calls_sent: u64,
    /// Calls from others that it served.
    pub calls_served: u64,
    /// In free blocks in its cache.
    pub cached_bytes: u64,
    /// In free frames in its cache.
    pub frame_cache_bytes: u64,
    /// The most that its stack has had.
    pub stack_bytes: u64,
    /// All that its stack could have.
    pub stack_limit_bytes: u64,
}

/// How much memory is whose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory<'a> {
    /// The workload that is on; empty if none is.
    pub workload: Cow<'a, str>,
    /// All that the machine has, without what is reserved.
    pub memory_bytes: u64,
    /// In free frames, those in CPUs' caches included.
    pub free_bytes: u64,
    /// In frames of the heap.
    pub heap_bytes: u64,
    /// Of the heap's frames, what is live: allocated and not freed, as asked for.
    pub heap_live_bytes: i64,
    /// Of the heap's frames, what is cached: free blocks that CPUs and depots keep.
    pub heap_cached_bytes: u64,
    /// In frames that are mapped at run time.
    pub mapped_bytes: u64,
    /// In page tables.
    pub page_table_bytes: u64,
}

/// What one CPU did in one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work<'a> {
    /// The workload.
    pub workload: Cow<'a, str>,
    /// The heap in use.
    pub heap: Cow<'a, str>,
    /// The CPU.
    pub cpu: u32,
    /// Allocations, frees and other operations.
    pub operations: u64,
    /// Bytes asked for and given.
    pub bytes: u64,
    /// Allocations answered with null.
    pub refused: u64,
    /// Blocks whose contents were not their owner's, or that were misaligned.
    pub corrupt: u64,
    /// The slowest operation.
    pub slowest_ns: u64,
    /// Interrupts by its own timer.
    pub interrupts: u64,
}

/// What all CPUs did in one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload<'a> {
    /// The workload.
    pub workload: Cow<'a, str>,
    /// The heap in use.
    pub heap: Cow<'a, str>,
    /// How many CPUs took part.
    pub cpus: u32,
    /// How long it took.
    pub took_us: u64,
    /// Allocations, frees and other operations.
    pub operations: u64,
    /// The same, a second.
    pub operations_per_s: u64,
    /// Bytes asked for and given.
    pub bytes: u64,
    /// Allocations answered with null.
    pub refused: u64,
    /// Blocks whose contents were not their owner's, or that were misaligned.
    pub corrupt: u64,
}
