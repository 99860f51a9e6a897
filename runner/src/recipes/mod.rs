//! What the runner does for the recipes of `just`, and what they share: a file or a folder for each recipe.
//!
//! These may import everything in the runner; only `main.rs` imports them.

pub mod bench;
pub mod check;
pub mod coverage;
pub mod debugger;
pub mod examples;
pub mod fuzz;
pub mod linux;
pub mod models;
pub mod oracles;
pub mod outputs;
pub mod report;
pub mod run;
pub mod soak;
pub mod suite;
