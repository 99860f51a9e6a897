//! The kernel's events for programs, each one JSON object on a line of its own.
//!
//! A [`Record`] is such a line: when, by whom, and the [`Event`] itself, in one flat object. The same
//! types are written by the kernel and read by the runner, the report and the live view, so that they
//! can't differ; `docs/src/events.md` describes them for everybody else.
//!
//! Numbers are whole, and their unit is the end of their name: `_us`, `_ns`, `_bytes`, `_per_s`.
//! Virtual addresses are texts in hexadecimal ([`Address`]): as numbers, programs that count in
//! floating point would lose their last digits.
//!
//! # Writing
//!
//! [`EventLine`] has room for the longest line there may be, and nothing on the way allocates: an event can
//! be written where memory is out, in an interrupt handler, and in a fault report.
//!
//! ```
//! use muster_events::{Event, EventLine, Log, Level, Record};
//!
//! let event = Event::Log(Log {
//!     level: Level::Info,
//!     target: "roll".into(),
//!     text: "8 of 8 CPUs online".into(),
//! });
//! let record = Record { us: 5120, by: Some(0), event };
//! assert_eq!(
//!     EventLine::of(&record).as_str(),
//!     r#"{"us":5120,"by":0,"event":"log","level":"info","target":"roll","text":"8 of 8 CPUs online"}"#
//! );
//! ```
//!
//! # Reading
//!
//! With the feature `read` there is `read`, which refuses what is not of the schema: an event or a
//! field that it does not know, or one that is missing.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bench;
mod cpus;
mod end;
mod line;
mod memory;
#[cfg(feature = "read")]
mod read;
mod record;
mod start;
mod stress;

pub use bench::{Figure, Instructions, Latency};
pub use cpus::{Absent, Cost, Cpu, Interrupts, Measured, Phase, Reached, Roll};
pub use end::{Fault, Kind, Outcome, ReturnAddress, Stopped, Verdict};
pub use line::{EventLine, MAX_LENGTH};
pub use memory::{
    Account, AccountCommon, AccountCpu, Address, Audit, Mapped, Moment, Owner, Owners, Range,
    Reclaim,
};
#[cfg(feature = "read")]
pub use read::read;
pub use record::{Command, Event, Level, Log, Omitted, Record};
pub use start::{Features, Run, Start};
pub use stress::{Memory, Sample, Work, Workload};

/// The schema's version. It grows when a field or an event is renamed, is taken away, or means something
/// else; not when one is added.
pub const SCHEMA: u32 = 3;
