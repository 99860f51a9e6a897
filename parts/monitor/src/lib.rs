//! The monitor's side of the keyboard: from the bytes that a terminal sends to a [`Command`].
//!
//! Plain data and logic without the kernel, which shows what is to be shown and does what is asked
//! for. Nothing here allocates: the prompt has to answer while a workload has taken all the memory.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod command;
mod completion;
mod editor;
mod keys;

pub use command::{Command, CommandError, Kind, Verb, Whom};
pub use completion::Completion;
pub use editor::{Editor, Event, InputLine, LINE, PROMPT, QUESTION};
