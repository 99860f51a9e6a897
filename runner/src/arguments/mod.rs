//! The arguments of a run, `[CPUS] [key=value…]`, read, checked and explained by the table of options.

mod contradictions;
mod error;
mod help;
mod parse;
mod recipe;
mod run;

pub use error::ArgumentError;
pub use help::help;
pub use parse::{is_in, number, parse};
pub use recipe::{leave_to, part, with_defaults};
pub use run::{Boot, Build, Drive, Events, Firmware, MONITOR, Run};
