//! A CPU's activity in words: for the monitor, and for fault reports.

use core::fmt::{self, Write};

use heapless::String;

use super::activity::ACTIVITY;
use super::cpu::Block;
use super::lazy_tlb::IDLE;

/// A CPU's activity, in words.
pub struct Doing<'a>(pub &'a Block);

impl fmt::Display for Doing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let activity = &self.0.get(&ACTIVITY);
        let own = if activity.is_answering() {
            "answering a call"
        } else if activity.is_at_prompt() {
            // Halted or not: it is idle between keys.
            "at its prompt"
        } else if self.0.get(&IDLE).is_idle() {
            "idle"
        } else {
            "at work"
        };
        match activity.workload() {
            Some(workload) => {
                // Each of the words is shorter than half of this.
                let mut words = String::<64>::new();
                write!(words, "{own}, in {}", workload.name())?;
                f.pad(&words)
            }
            None => f.pad(own),
        }
    }
}
