//! The parts that make many CPUs one machine: per-CPU blocks, locks, interrupts from one CPU to
//! another, cross-CPU calls, the CPUs that are online, and how all are stopped.
//!
//! Imports [`arch`](crate::arch) and [`boot`](crate::boot).

pub mod activity;
pub mod ageing;
pub mod call;
pub mod counters;
pub mod cpu;
pub mod device_vectors;
pub mod doing;
pub mod hooks;
pub mod identity;
pub mod jobs;
pub mod lapic;
pub mod lazy_tlb;
pub mod level;
pub mod lines;
pub mod lock;
pub mod online;
pub mod progress;
pub mod snapshot;
pub mod stop;
pub mod timer;
