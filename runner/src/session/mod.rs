//! One run of an emulator, watched from its start to its end, and how it ended.
//!
//! Part of the library: it gets the emulator as a command to start ([`Launch`]), and knows neither options nor
//! recipes.

mod interrupt;
mod launch;
mod outcome;
mod typist;
mod watch;

pub use interrupt::Interrupt;
pub use launch::{Guest, Launch};
pub use outcome::{Outcome, PASSED, Verdict};
pub use typist::{KernelInput, Typist};
pub use watch::{Rules, run};
