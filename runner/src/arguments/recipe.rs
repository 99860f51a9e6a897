//! A recipe's own arguments, and those that are typed after it.

use muster_arguments::{BENCH, KERNEL, SELFTEST};

use super::error::ArgumentError;
use super::parse::is_in;

/// Parts what is asked for of two runs: the arguments of the one under stress, and of the one of the
/// benchmarks. Those of the machine are for both, as are unknown ones, for [`parse`] to name.
pub fn part(arguments: &[String]) -> (Vec<String>, Vec<String>) {
    let mut parts = (Vec::new(), Vec::new());
    for argument in arguments {
        let name = argument
            .split_once('=')
            .map_or(&**argument, |(name, _)| name);
        let (is_of_stress, is_of_bench) = (
            !is_in(BENCH, name),
            !is_in(KERNEL, name) && !is_in(SELFTEST, name),
        );
        if is_of_stress {
            parts.0.push(argument.clone());
        }
        if is_of_bench {
            parts.1.push(argument.clone());
        }
    }
    parts
}

/// Merges a command's own options with the user's, which override the command's for the same key.
pub fn with_defaults(own: &[impl AsRef<str>], words: &[String]) -> Vec<String> {
    let key = |word: &str| word.split_once('=').map_or("", |(key, _)| key).to_owned();
    let given: Vec<_> = words.iter().map(|word| key(word)).collect();
    let own = own.iter().map(AsRef::as_ref);
    let own = own.filter(|word| !given.contains(&key(word)));
    own.map(String::from).chain(words.iter().cloned()).collect()
}

/// Refuses the options that a recipe sets by itself.
///
/// # Errors
/// [`ArgumentError::Contradiction`] if one of them is given.
pub fn leave_to(recipe: &str, own: &[&str], words: &[String]) -> Result<(), ArgumentError> {
    let names = words
        .iter()
        .filter_map(|word| Some(word.split_once('=')?.0));
    match names.into_iter().find(|name| own.contains(name)) {
        Some(name) => Err(ArgumentError::Contradiction(format!(
            "`just {recipe}` sets {name}= by itself: leave it out"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchmarks_words_are_not_for_the_stress() {
        let words = [
            "4",
            "seconds=2",
            "on=1,4",
            "mem=2G",
            "loader.verbose",
            "nonsense",
        ];
        let (stress, bench) = part(&words.map(String::from));
        assert_eq!(
            stress,
            ["4", "seconds=2", "mem=2G", "loader.verbose", "nonsense"]
        );
        assert_eq!(
            bench,
            ["4", "on=1,4", "mem=2G", "loader.verbose", "nonsense"]
        );
    }
}
