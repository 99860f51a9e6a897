//! The events of benchmarks: their figures. The same objects, without the rest of the record, are what `format=json`
//! prints.

use alloc::borrow::Cow;

use serde::{Deserialize, Serialize};

/// An allocator's figures in one workload on some CPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure<'a> {
    /// The workload's name.
    pub bench: Cow<'a, str>,
    /// The allocator's name.
    pub allocator: Cow<'a, str>,
    /// On how many CPUs.
    pub cpus: u32,
    /// Pairs of an allocation and a free, of all CPUs together: the median of the rounds.
    pub pairs_per_s: u64,
    /// CPU time for a pair: all CPUs' time by all CPUs' pairs. Null if there are none.
    pub ns_per_pair: Option<f64>,
    /// What 99.9 % of sampled steps didn't exceed; null if none was sampled.
    #[serde(default)]
    pub p999_ns: Option<u64>,
    /// The median of the rounds' ratios to `linked_list`; null for frames, where there is no such
    /// allocator, and where it did not take part.
    #[serde(default)]
    pub ratio_to_linked_list: Option<f64>,
    /// The pairs of the CPU that did the fewest, to those of the one that did the most: 1 is fair. The
    /// median of the rounds; null if one did none.
    #[serde(default)]
    pub fairness: Option<f64>,
    /// Allocations answered with null, in all rounds.
    pub failures: u64,
}

/// How long single steps of a benchmark took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency<'a> {
    /// The workload's name.
    pub bench: Cow<'a, str>,
    /// The allocator's name.
    pub allocator: Cow<'a, str>,
    /// On how many CPUs.
    pub cpus: u32,
    /// Sampled steps by time, as `[ns, steps]`, the shortest first: `steps` took at most `ns`
    /// nanoseconds, and longer than those before.
    pub steps: Cow<'a, [(u64, u64)]>,
}

/// How many instructions an allocator takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instructions<'a> {
    /// The workload's name.
    pub bench: Cow<'a, str>,
    /// The allocator's name.
    pub allocator: Cow<'a, str>,
    /// On how many CPUs: 1.
    pub cpus: u32,
    /// Instructions for a pair of an allocation and a free, net of the loop around it.
    pub instructions_per_pair: f64,
    /// Allocations answered with null.
    #[serde(default)]
    pub failures: u64,
}
