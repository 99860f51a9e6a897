//! How the CPUs come up, and how all is accounted for: the entry of an AP, the interrupts it takes
//! from then on, the roll call, the loader's memory taken over, the account and the audit at the end.
//!
//! Imports [`mm`](crate::mm) and the rooms below it.

pub mod account;
pub mod ap;
pub mod audit;
pub mod cpu_state;
pub mod interrupts;
pub mod reclaim;
pub mod recount;
pub mod roll;
pub mod routes;
pub mod skew;
