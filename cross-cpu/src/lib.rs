//! What CPUs of a kernel do to one another, without a lock.
//!
//! Each type is one protocol, for a fixed number of CPUs by their numbers from 0 on. It says nothing of how a
//! CPU is interrupted, where it finds its number, or what the work is: a kernel sends the IPI after
//! the protocol says that one is due, and serves what came in the handler and wherever it waits.
//!
//! | type | what it is | what it proves |
//! |---|---|---|
#![cfg_attr(
    feature = "alloc",
    doc = "| [`CallQueue`] | calls from any CPU to any set of others, which may be taken back | each CPU runs a call once or never; none reads the caller's stack after the call is done or taken back |\n\
           | [`Broadcast`] | one job at a time for all CPUs | each runs a job once; the next comes when all have finished |"
)]
//! | [`Barrier`] | CPUs that go on together | none goes on before all have come; what each did before is seen by all |
//! | [`Admission`] | a CPU that joins against a deadline | it has joined or was given up, and both sides agree; of a change and a CPU that joins, one sees the other |
//! | [`Idle`] | a CPU that sleeps, and what is left for it | it wakes knowing what was deferred, or is interrupted |
//!
#![cfg_attr(
    not(feature = "alloc"),
    doc = "With the feature `alloc` there are calls from CPU to CPU and broadcasts, too.\n"
)]
//! All are model-checked under loom: every interleaving, up to a number of preemptions, and mistakes that the
//! models must find. A wait that has no bound is the caller's to bound: no function here waits.
//!
//! A value of a few bytes that other CPUs read belongs in its CPU's block: see `muster-percpu`, of which this
//! crate knows nothing.

#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(loom)]
extern crate std;

mod admission;
mod barrier;
#[cfg(feature = "alloc")]
mod broadcast;
#[cfg(feature = "alloc")]
mod call_queue;
mod idle;
#[cfg(all(test, loom))]
mod models;

pub use admission::{Admission, Outcome};
pub use barrier::{Arrival, Barrier};
#[cfg(feature = "alloc")]
pub use broadcast::Broadcast;
#[cfg(feature = "alloc")]
pub use call_queue::{Call, CallQueue, MAX_CALLS, SendError};
pub use idle::Idle;
