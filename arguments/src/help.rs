//! The words that are understood, for people.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::arguments::Key;
use crate::values::{Fault, Heap, LogLevel, Output, Reclaim, Step, Workload};

/// The longest line, in bytes: on a terminal of 80 columns behind what the log begins its lines with.
const WIDTH: usize = 56;

/// The words the kernel knows, line by line.
pub fn help() -> Vec<String> {
    let mut lines = Vec::from([String::from("the words are:")]);
    for &key in Key::ALL {
        let word = match key {
            Key::Stress => format!(
                "all (but soak), none, or some of {}",
                Workload::NAMES.join(",")
            ),
            Key::Seconds => "N, of all workloads together".into(),
            Key::Seed => "N, of everything random".into(),
            Key::Cpus => "N, at most".into(),
            Key::Deadline => "MILLISECONDS, for the APs".into(),
            Key::Heap => one_of(Heap::NAMES),
            Key::Reclaim => format!("{}, the loader's memory", one_of(Reclaim::NAMES)),
            Key::Log => one_of(LogLevel::NAMES),
            Key::Output => format!("{}, events on COM2", one_of(Output::NAMES)),
            Key::ShowAddresses => "yes or no, of the kernel".into(),
            Key::Fault => one_of(Fault::NAMES),
            Key::Monitor => "yes or no, instead of the stress".into(),
            Key::Die => format!("{}, the last AP halts there", one_of(Step::NAMES)),
            Key::Fall => "one of these, and it takes an exception".into(),
            Key::Late => "one of these, and it waits till it is given up".into(),
            Key::FramesFail => "N, refuse the N-th request for frames".into(),
            Key::Nmis => "yes or no, NMIs from CPU to CPU under stress".into(),
        };
        wrap(&format!("{}={word}", key.name()), &mut lines);
    }
    #[cfg(feature = "bench")]
    lines.extend(muster_bench::HELP.map(String::from));
    lines
}

/// `a, b or c`.
fn one_of(names: &[&str]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => names.concat(),
    }
}

/// Adds a word to the lines, broken after commas and spaces and then indented.
fn wrap(word: &str, lines: &mut Vec<String>) {
    let mut line = String::new();
    for piece in word.split_inclusive([',', ' ']) {
        if line.len() + piece.trim_end().len() > WIDTH {
            line.truncate(line.trim_end().len());
            lines.push(core::mem::replace(&mut line, "  ".into()));
        }
        if !(piece == " " && line.trim_start().is_empty()) {
            line.push_str(piece);
        }
    }
    lines.push(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_begins_a_line_and_every_name_is_listed() {
        let lines = help();
        for key in Key::ALL {
            let begins = format!("{}=", key.name());
            let count = lines.iter().filter(|line| line.starts_with(&begins));
            assert_eq!(count.count(), 1, "{begins}");
        }
        let text = lines.join("\n");
        let words: Vec<&str> = text.split([' ', ',', '=', '\n']).collect();
        for names in [
            Workload::NAMES,
            Heap::NAMES,
            Reclaim::NAMES,
            LogLevel::NAMES,
            Output::NAMES,
            Fault::NAMES,
        ] {
            for name in names {
                assert!(words.contains(name), "{name}");
            }
        }
    }

    #[test]
    fn lines_are_short_and_end_without_a_space() {
        for line in help() {
            assert!(line.len() <= WIDTH && !line.ends_with(' '), "{line:?}");
        }
    }

    #[test]
    fn long_words_break_after_commas_and_spaces() {
        let mut lines = Vec::new();
        let names = ["some-long-name"; 6].join(", ");
        wrap(&names, &mut lines);
        wrap("short=1", &mut lines);
        let three = "some-long-name, some-long-name, some-long-name,";
        let rest = "  some-long-name, some-long-name, some-long-name";
        assert_eq!(lines, [three, rest, "short=1"]);
    }

    #[test]
    fn choices_end_with_or() {
        assert_eq!(one_of(&["a"]), "a");
        assert_eq!(one_of(&["a", "b", "c"]), "a, b or c");
    }
}
