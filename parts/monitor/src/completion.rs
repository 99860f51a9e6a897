//! Completion: what the word at the cursor may become.

use crate::command::Verb;

/// The ways to go on with a line.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    /// What of the word stands there.
    stem: &'a str,
    /// The words it may be one of.
    words: [&'static [&'static str]; 2],
    /// Whether another word of the same kind may follow at once, after a comma.
    is_list: bool,
}

impl<'a> Completion<'a> {
    /// Makes the completion of the text before the cursor.
    pub fn of(before: &'a str) -> Self {
        // As the words are split, which no wider space does.
        let stem_at = before.rfind(|c: char| c.is_ascii_whitespace());
        let (done, stem) = before.split_at(stem_at.map_or(0, |at| at + 1));
        let mut done = done.split_ascii_whitespace();
        let verb = done.next();
        let place = done.count();
        // Other words for a command are taken, and not offered: one is enough to go on with.
        let (words, is_list) = match verb.map(Verb::of) {
            None => ([Verb::NAMES, &[]], false),
            Some(Some(verb)) if place == 0 => (verb.choices(), verb == Verb::Stress),
            Some(_) => ([&[] as &[_], &[]], false),
        };
        let stem = match is_list {
            true => stem.rsplit(',').next().unwrap_or(stem),
            false => stem,
        };
        Self {
            stem,
            words,
            is_list,
        }
    }

    /// Returns the words that begin as the one at the cursor.
    pub fn words(self) -> impl Iterator<Item = &'static str> + Clone + use<'a> {
        let words = self.words.into_iter().flatten().copied();
        words.filter(move |word| {
            let start = word.get(..self.stem.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(self.stem))
        })
    }

    /// Returns the text that can be added without a choice, and the separator between this word and
    /// the next: empty, if more may be added to it.
    pub fn addition(self) -> (&'static str, &'static str) {
        let mut words = self.words();
        let Some(first) = words.next() else {
            return ("", "");
        };
        let mut common = first.len();
        let mut is_alone = true;
        for word in words {
            is_alone = false;
            let equal = first.bytes().zip(word.bytes());
            common = common.min(equal.take_while(|(a, b)| a == b).count());
        }
        // The names are ASCII, and the stem is the beginning of all.
        let addition = first.get(self.stem.len()..common).unwrap_or_default();
        let end = if is_alone && !self.is_list { " " } else { "" };
        (addition, end)
    }
}

#[cfg(test)]
mod tests {
    use muster_arguments::Fault;

    use super::*;

    fn words(before: &str) -> Vec<&'static str> {
        Completion::of(before).words().collect()
    }

    fn addition(before: &str) -> (&'static str, &'static str) {
        Completion::of(before).addition()
    }

    #[test]
    fn commands_are_completed() {
        assert_eq!(words(""), Verb::NAMES);
        assert_eq!(words("st"), ["stress", "stop"]);
        assert_eq!(addition("st"), ("", ""));
        assert_eq!(addition("str"), ("ess", " "));
        assert_eq!(addition("  ma"), ("p", " "));
        assert_eq!(addition("map"), ("", " "));
        assert_eq!(words("x"), [""; 0]);
        assert_eq!(addition("x"), ("", ""));
        assert_eq!(words("help fra"), ["frames"]);
        assert_eq!(words("help map fra"), [""; 0]);
        assert_eq!(words("? fra"), ["frames"]);
        assert_eq!(words("H fra"), ["frames"]);
    }

    #[test]
    fn what_commands_take_is_completed() {
        assert_eq!(addition("fault panic-a"), ("", ""));
        assert_eq!(words("fault panic-a"), ["panic-ap", "panic-all"]);
        assert_eq!(
            words("fault map"),
            ["mapped-stack-overflow", "mapping-overflow", "mapping-leak"]
        );
        assert_eq!(addition("fault ma"), ("pp", ""));
        assert_eq!(addition("fault unresponsive"), ("-ap", " "));
        assert_eq!(addition("call "), ("all", " "));
        assert_eq!(addition("log "), ("", ""));
        assert_eq!(words("nonsense "), [""; 0]);
    }

    #[test]
    fn workloads_are_completed_after_each_comma() {
        assert_eq!(addition("stress mi"), ("xed", ""));
        assert_eq!(words("stress mixed,s"), ["shootdown", "soak"]);
        assert_eq!(addition("stress mixed,so"), ("ak", ""));
        assert!(words("stress ").contains(&"all"));
        assert_eq!(words("stress mixed 1"), [""; 0]);
    }

    #[test]
    fn upper_case_is_completed_and_other_words_are_not_offered() {
        assert_eq!(addition("HE"), ("", ""));
        assert_eq!(words("HE"), ["help", "heap"]);
        assert_eq!(addition("FRA"), ("mes", " "));
        assert_eq!(words("q"), [""; 0]);
        assert_eq!(words("quit "), [""; 0]);
    }

    #[test]
    fn a_wide_space_is_no_space() {
        assert_eq!(words("help \u{3000}x"), [""; 0]);
        assert_eq!(words("\u{3000}"), [""; 0]);
        assert_eq!(words("h\u{3000}"), [""; 0]);
    }

    #[test]
    fn only_what_all_choices_begin_with_is_added() {
        let begin_so: Vec<_> = (Fault::NAMES.iter().copied())
            .filter(|name| name.starts_with('p'))
            .collect();
        assert_eq!(words("fault p"), begin_so);
        assert_eq!(addition("fault pa"), ("nic-", ""));
        assert_eq!(addition("fault panic-in-"), ("", ""));
    }
}
