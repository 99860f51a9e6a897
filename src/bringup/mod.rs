//! How the CPUs come up and are held to account: the entry of an AP, the interrupts it takes from then
//! on, the roll call, the loader's memory taken over, and the accounts at the end.
//!
//! Imports [`mm`](crate::mm) and what lies below it.

pub mod account;
pub mod ap;
pub mod audit;
pub mod cpu_state;
pub mod interrupts;
pub mod reclaim;
pub mod recount;
pub mod roll;
pub mod skew;
