//! The name that was probably meant.

use alloc::vec::Vec;

/// Returns the candidate that a word was probably meant for: that with the fewest letters to insert, delete,
/// replace or swap with the next one, if these are no more than a third of the word's. The case of a letter
/// does not count. The first of several.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= most && distance < candidate.chars().count())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Returns how many letters are to be inserted, deleted, replaced or swapped with the next one to make one
/// word of another, each letter once: the optimal string alignment distance. The well-kept crates for it
/// need `std`, and the kernel answers by it, too.
fn distance(one: &str, other: &str) -> usize {
    let lower =
        |text: &str| -> Vec<char> { text.chars().map(|c| c.to_ascii_lowercase()).collect() };
    let (one, other) = (lower(one), lower(other));
    // Of the first `i` letters of `one` from the first `j` of `other`.
    let mut rows: Vec<Vec<usize>> = Vec::from([(0..=other.len()).collect()]);
    for i in 1..=one.len() {
        let mut row = Vec::from([i]);
        for j in 1..=other.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn distances_are_those_that_one_counts() {
        for (one, other, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("stress", "stress", 0),
            ("sterss", "stress", 1),
            ("stres", "stress", 1),
            ("strass", "stress", 1),
            ("STRESS", "stress", 0),
            ("kitten", "sitting", 3),
            ("ca", "abc", 3),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn a_slip_is_understood_and_another_word_is_not() {
        const NAMES: [&str; 4] = ["stress", "seconds", "seed", "on"];
        for (word, expected) in [
            ("stres", Some("stress")),
            ("secs", None),
            ("sead", Some("seed")),
            ("SEED", Some("seed")),
            ("second", Some("seconds")),
            ("fast", None),
            ("no", Some("on")),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, NAMES), expected, "{word}");
        }
    }

    proptest! {
        #[test]
        fn a_distance_is_one(one in "[a-c]{0,6}", other in "[a-c]{0,6}") {
            let here = distance(&one, &other);
            prop_assert_eq!(here, distance(&other, &one));
            prop_assert_eq!(here == 0, one == other);
            prop_assert!(here <= one.len().max(other.len()));
            prop_assert!(here >= one.len().abs_diff(other.len()));
        }
    }
}
