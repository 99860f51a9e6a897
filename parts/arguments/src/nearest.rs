//! The name that was probably meant.

/// The longest name, in bytes, for which one is found. Nothing here allocates: the kernel's prompt answers
/// by it when memory is out.
const MAX_LEN: usize = 32;

/// Returns the candidate that a word was probably meant for: that with the fewest letters to insert, delete,
/// replace or swap with the next one, if these are no more than a third of the word's and less than half of
/// the candidate's: of two letters, one alone says nothing. The case of a letter does not count. The first
/// of several.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (word.len() / 3).max(1);
    candidates
        .into_iter()
        .filter_map(|candidate| Some((distance(word, candidate)?, candidate)))
        .filter(|&(distance, candidate)| distance <= most && 2 * distance < candidate.len())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Returns how many letters are to be inserted, deleted, replaced or swapped with the next one to make one
/// word of another, each letter once: the optimal string alignment distance. `None`: one of them is too
/// long. The well-kept crates for it need `std`, or allocate.
fn distance(one: &str, other: &str) -> Option<usize> {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() > MAX_LEN || other.len() > MAX_LEN {
        return None;
    }
    let is_same = |i: usize, j: usize| one[i].eq_ignore_ascii_case(&other[j]);
    // Of the first `i` letters of `one` from the first `j` of `other`, in the row of `i`, of which the last
    // three are kept.
    let mut rows = [[0; MAX_LEN + 1]; 3];
    rows[0] = core::array::from_fn(|j| j);
    for i in 1..=one.len() {
        let row = |back: usize| (i - back) % 3;
        rows[row(0)][0] = i;
        for j in 1..=other.len() {
            let replaced = rows[row(1)][j - 1] + usize::from(!is_same(i - 1, j - 1));
            let mut least = replaced
                .min(rows[row(1)][j] + 1)
                .min(rows[row(0)][j - 1] + 1);
            if i > 1 && j > 1 && is_same(i - 1, j - 2) && is_same(i - 2, j - 1) {
                least = least.min(rows[row(2)][j - 2] + 1);
            }
            rows[row(0)][j] = least;
        }
    }
    Some(rows[one.len() % 3][other.len()])
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
            assert_eq!(distance(one, other), Some(expected), "{one} {other}");
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
            ("no", None),
            ("ON", Some("on")),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, NAMES), expected, "{word}");
        }
        let long = "x".repeat(MAX_LEN + 1);
        assert_eq!(nearest(&long, [&long[1..]]), None);
        assert_eq!(nearest(&long[2..], [&long[1..]]), Some(&long[1..]));
    }

    proptest! {
        #[test]
        fn a_distance_is_one(one in "[a-c]{0,6}", other in "[a-c]{0,6}") {
            let here = distance(&one, &other).unwrap();
            prop_assert_eq!(Some(here), distance(&other, &one));
            prop_assert_eq!(here == 0, one == other);
            prop_assert!(here <= one.len().max(other.len()));
            prop_assert!(here >= one.len().abs_diff(other.len()));
        }
    }
}
