//! The boot tests, by subject: what is booted, how it must end, and what it must have said.

mod benchmarks;
pub mod bochs;
mod case;
mod debugger;
mod faults;
mod hangs;
mod heap;
mod interrupts;
mod loader;
pub mod matrix;
mod memory;
mod monitor;
mod options;
mod output;
mod panics;
mod registers;
mod screen;
pub mod script;
mod stress;
mod time;

pub use case::{Case, Debugged, Limit};

/// The cases of every test run.
const SUBJECTS: [&[Case]; 18] = [
    time::CASES,
    interrupts::CASES,
    stress::CASES,
    heap::CASES,
    benchmarks::CASES,
    output::CASES,
    registers::CASES,
    memory::CASES,
    loader::CASES,
    panics::CASES,
    screen::CASES,
    debugger::CASES,
    options::CASES,
    monitor::CASES,
    hangs::CASES,
    faults::CASES,
    matrix::CASES,
    bochs::CASES,
];

/// Returns the cases of every test run.
pub fn all() -> impl Iterator<Item = &'static Case> {
    SUBJECTS.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;
    use crate::cases::script::Script;
    use regex_lite::Regex;
    use std::collections::HashSet;

    /// Returns those that take minutes, too.
    fn all_and_long() -> impl Iterator<Item = Case> {
        all().copied().chain(matrix::long())
    }

    #[test]
    fn every_case_can_be_run() {
        for case in all_and_long() {
            assert!(case.boots().count() > 0 && !case.ends.is_empty());
            for arguments in case.boots() {
                arguments::parse(&arguments).unwrap();
            }
            for pattern in case.says.iter().chain(case.never).chain(case.hides) {
                Regex::new(pattern).unwrap();
            }
        }
    }

    #[test]
    fn every_case_ends() {
        for case in all() {
            let run = arguments::parse(case.arguments).unwrap();
            assert!(run.time_limit.is_some(), "{}", case.name);
            assert_eq!(run.is_monitored(), !case.types.is_empty(), "{}", case.name);
            Script::new(case.types, None).unwrap();
        }
    }

    #[test]
    fn names_are_unique() {
        let names: HashSet<_> = all_and_long().map(|case| case.name).collect();
        assert_eq!(names.len(), all_and_long().count());
    }
}
