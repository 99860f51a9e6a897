//! Medians, ranges and ratios of rounds, in whole numbers.

use alloc::vec::Vec;
use core::fmt;

/// The median of some rounds, and their range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// The one in the middle; of two, the higher.
    pub median: u64,
    /// The lowest.
    pub low: u64,
    /// The highest.
    pub high: u64,
}

impl Spread {
    /// Makes the summary of these figures; all 0 if there are none.
    pub fn of(figures: &[u64]) -> Self {
        let mut figures = Vec::from(figures);
        figures.sort_unstable();
        match (
            figures.first(),
            figures.get(figures.len() / 2),
            figures.last(),
        ) {
            (Some(&low), Some(&median), Some(&high)) => Self { median, low, high },
            _ => Self::default(),
        }
    }
}

/// Returns the median of the ratios that two allocators have in each round, in thousandths. `None` if there
/// is no round in which the other one did something.
pub fn ratio(figures: &[u64], others: &[u64]) -> Option<u64> {
    let ratios: Vec<u64> = figures
        .iter()
        .zip(others)
        .filter_map(|(&figure, &other)| {
            let ratio = (u128::from(figure) * 1000).checked_div(u128::from(other))?;
            u64::try_from(ratio).ok()
        })
        .collect();
    (!ratios.is_empty()).then(|| Spread::of(&ratios).median)
}

/// Returns the best of some allocators in each round.
pub fn best<'a>(all: impl Iterator<Item = &'a [u64]>) -> Vec<u64> {
    all.fold(Vec::new(), |best, figures| {
        if best.is_empty() {
            return figures.into();
        }
        best.iter().zip(figures).map(|(&a, &b)| a.max(b)).collect()
    })
}

/// A number with decimals, as a whole number of its smallest unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed<const DECIMALS: u32>(pub u64);

impl<const DECIMALS: u32> fmt::Display for Fixed<DECIMALS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = 10_u64.pow(DECIMALS);
        let width = DECIMALS as usize;
        // The whole part takes what is left of the width asked for.
        let left = f.width().unwrap_or(0).saturating_sub(width + 1);
        write!(f, "{:>left$}.{:0width$}", self.0 / unit, self.0 % unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |median, low, high| Spread { median, low, high };
        assert_eq!(Spread::of(&[]), spread(0, 0, 0));
        assert_eq!(Spread::of(&[7]), spread(7, 7, 7));
        assert_eq!(Spread::of(&[9, 1, 5]), spread(5, 1, 9));
        assert_eq!(Spread::of(&[9, 1]), spread(9, 1, 9));
    }

    #[test]
    fn ratios_are_of_the_round() {
        // Each round has its own weather: a median of one by a median of the other would be 2.5.
        assert_eq!(ratio(&[20, 2, 50], &[10, 1, 20]), Some(2000));
        assert_eq!(ratio(&[20, 2], &[0, 4]), Some(500));
        assert_eq!(ratio(&[20], &[0]), None);
        assert_eq!(ratio(&[], &[]), None);
    }

    #[test]
    fn the_best_may_change() {
        assert_eq!(best([&[1, 5][..], &[2, 4]].into_iter()), [2, 5]);
        assert!(best([].into_iter()).is_empty());
    }

    #[test]
    fn decimals_are_kept() {
        assert_eq!(Fixed::<2>(1205).to_string(), "12.05");
        assert_eq!(Fixed::<3>(7).to_string(), "0.007");
        assert_eq!(format!("{:>7}", Fixed::<2>(1205)), "  12.05");
    }
}
