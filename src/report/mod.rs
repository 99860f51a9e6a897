//! All output: the log on serial port and screen, events for programs, fault reports, and the verdict
//! with which a run ends.
//!
//! Imports [`smp`](crate::smp) and the rooms below it. All rooms above may report.

pub mod events;
pub mod exit;
pub mod journal;
pub mod panic;
pub mod screen;
pub mod serial;
