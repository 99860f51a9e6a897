//! What can be said of time by counters: how fast the TSC counts, whether that is what the CPU reports, and
//! how far one CPU's TSC is from another's.

/// Input clock of the 8253/8254 timer, in Hz (Intel 82C54 datasheet: 14.31818 MHz / 12).
pub const PIT_HZ: u64 = 1_193_182;

/// Rate of the ACPI power-management timer, in Hz (ACPI 6.5, 4.8.3.3).
pub const PM_TIMER_HZ: u64 = 3_579_545;

/// A reported rate may be wrong by one part in this many: crystals are better by far, the wrong ones
/// that CPUs have reported are wrong by 4 % and more.
const TOLERANCE: u128 = 100;

/// Returns a rate in MHz, rounded.
pub const fn mhz(hz: u64) -> u64 {
    hz.saturating_add(500_000) / 1_000_000
}

/// Returns how far a counter of `bits` bits, 1 to 32, has come that counts up and wraps.
///
/// ```
/// use muster_machine::time::elapsed;
///
/// assert_eq!(elapsed(0xff_fffe, 3, 24), 5);
/// ```
pub const fn elapsed(first: u32, last: u32, bits: u32) -> u32 {
    last.wrapping_sub(first) & (u32::MAX >> (32 - bits))
}

/// A stretch of time, by the TSC and by a counter whose rate is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Ticks of the TSC.
    pub ticks: u64,
    /// By how many ticks that may be off: the two counters can't be read in one moment.
    pub blur: u64,
    /// Counts of the other counter.
    pub counts: u32,
}

impl Window {
    /// Returns the TSC's rate in Hz, if the other counter's is `reference`. `None` if nothing was counted.
    pub fn rate(&self, reference: u64) -> Option<u64> {
        let ticks = u128::from(self.ticks) * u128::from(reference);
        let hz = ticks.checked_div(self.counts.into())?;
        u64::try_from(hz).ok().filter(|&hz| hz > 0)
    }

    /// Returns whether the TSC's rate may be the reported one.
    pub fn allows(&self, told: u64, reference: u64) -> bool {
        let (told, reference) = (u128::from(told), u128::from(reference.max(1)));
        let expected = told * u128::from(self.counts) / reference;
        // Either reading may be a count off.
        let count = told / reference + 1;
        let slack = u128::from(self.blur) + count + expected / TOLERANCE;
        expected.abs_diff(self.ticks.into()) <= slack
    }
}

/// What was measured of the TSC's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the reported one.
    Confirmed,
    /// It is not, or none was reported; it is this one, in Hz.
    Measured(u64),
}

/// Judges by windows against a counter of the rate `reference`, what the TSC's rate is, if this one was
/// told. `None` if there is no window.
///
/// A virtual CPU may lose its core for so long that the other counter wraps unseen. That only ever makes
/// the TSC look too fast, so the slowest of the windows stands, and one undisturbed window will do.
pub fn judge(windows: &[Window], reference: u64, told: Option<u64>) -> Option<Verdict> {
    let rated = |window: &Window| Some((window.rate(reference)?, *window));
    let slowest = windows.iter().filter_map(rated).min_by_key(|&(hz, _)| hz);
    let (hz, window) = slowest?;
    Some(match told {
        Some(told) if window.allows(told, reference) => Verdict::Confirmed,
        _ => Verdict::Measured(hz),
    })
}

/// One round of a handshake between two CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// When one asked, by its own TSC.
    pub asked: u64,
    /// When the other one answered, by that one's.
    pub answered: u64,
    /// When the first one had the answer, by its own.
    pub received: u64,
}

/// How far the other CPU's TSC is ahead of the first one's, within bounds that are sure if neither is
/// faster than the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The least it can be, in ticks: negative if the other one may be behind.
    pub least: i64,
    /// The most.
    pub most: i64,
}

impl Offset {
    /// Returns what a single round says: the answer came after the question and before it was received.
    /// `None` if the first CPU's TSC went backwards, or the two are further apart than can be said.
    pub fn of(round: Round) -> Option<Self> {
        let Round {
            asked,
            answered,
            received,
        } = round;
        let least = i128::from(answered) - i128::from(received);
        let most = i128::from(answered) - i128::from(asked);
        Some(Self {
            least: least.try_into().ok()?,
            most: most.try_into().ok()?,
        })
        .filter(|offset| offset.least <= offset.most)
    }

    /// Returns what both say. `None` if they contradict each other: one TSC is faster than the other, or
    /// was set between the two.
    #[must_use]
    pub fn and(self, other: Self) -> Option<Self> {
        let both = Self {
            least: self.least.max(other.least),
            most: self.most.min(other.most),
        };
        Some(both).filter(|both| both.least <= both.most)
    }

    /// Returns the middle of the two bounds.
    pub const fn middle(self) -> i64 {
        self.least.midpoint(self.most)
    }

    /// Returns how far either bound is from the middle.
    pub const fn uncertainty(self) -> u64 {
        self.most.abs_diff(self.middle())
    }

    /// Returns how far the two are apart for sure.
    pub const fn min_distance(self) -> u64 {
        if self.least <= 0 && self.most >= 0 {
            0
        } else if self.least > 0 {
            self.least.unsigned_abs()
        } else {
            self.most.unsigned_abs()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn megahertz_are_rounded() {
        assert_eq!(mhz(2_599_679_582), 2600);
        assert_eq!(mhz(2_599_499_999), 2599);
        assert_eq!((mhz(499_999), mhz(500_000)), (0, 1));
        assert!(mhz(u64::MAX) > 0);
    }

    #[test]
    fn counters_wrap() {
        assert_eq!(elapsed(5, 5, 24), 0);
        assert_eq!(elapsed(0xff_ffff, 0, 24), 1);
        // What lies above the timer's bits is reserved.
        assert_eq!(elapsed(0xabff_ffff, 0, 24), 1);
        assert_eq!(elapsed(0xffff_ffff, 1, 32), 2);
        assert_eq!(elapsed(u32::from(!3_u16), u32::from(!9_u16), 16), 0xfffa);
    }

    /// Returns a window of 2 ms against the PIT.
    fn window(hz: u64) -> Window {
        Window {
            ticks: hz / 500,
            blur: hz / 500_000,
            counts: (PIT_HZ / 500) as u32,
        }
    }

    #[test]
    fn what_is_told_stands_only_if_a_window_agrees() {
        // Bochs' Icelake.
        let windows = [window(10_000_000); 3];
        let verdict = judge(&windows, PIT_HZ, Some(1_497_000_000));
        let Some(Verdict::Measured(hz)) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(mhz(hz), 10);
        // A crystal of 25 MHz that is taken for one of 24.
        let windows = [window(3_000_000_000); 3];
        let wrong = judge(&windows, PIT_HZ, Some(3_125_000_000));
        assert!(matches!(wrong, Some(Verdict::Measured(_))), "{wrong:?}");
        let right = judge(&windows, PIT_HZ, Some(3_000_000_000));
        assert_eq!(right, Some(Verdict::Confirmed));
        let none = judge(&windows, PIT_HZ, None);
        assert!(matches!(none, Some(Verdict::Measured(_))), "{none:?}");
        assert_eq!(judge(&[], PIT_HZ, Some(1)), None);
        let nothing = Window {
            counts: 0,
            ..window(1)
        };
        assert_eq!(judge(&[nothing], PIT_HZ, Some(1)), None);
    }

    proptest! {
        #[test]
        fn one_undisturbed_window_confirms_the_truth(
            hz in 1_000_000_u64..8_000_000_000,
            off in -5_000_i64..5_000,
            // By how many periods of the PIT's counter, and ticks, the others are too long.
            others in prop::collection::vec((1_u64..100, 0_u64..1_000_000), 0..4),
            place in any::<prop::sample::Index>(),
        ) {
            // Half a percent at most.
            let told = hz.saturating_add_signed(hz as i64 / 1_000_000 * off);
            let mut windows: Vec<_> = others
                .into_iter()
                .map(|(periods, ticks)| Window {
                    ticks: window(hz).ticks + periods * hz * 65_536 / PIT_HZ + ticks,
                    ..window(hz)
                })
                .collect();
            windows.insert(place.index(windows.len() + 1), window(hz));
            prop_assert_eq!(judge(&windows, PIT_HZ, Some(told)), Some(Verdict::Confirmed));
            let Some(Verdict::Measured(found)) = judge(&windows, PIT_HZ, None) else {
                return Err(TestCaseError::fail("nothing measured"));
            };
            prop_assert!(found.abs_diff(hz) <= hz / 100, "{} of {}", found, hz);
        }

        #[test]
        fn what_is_off_by_more_is_refuted(
            hz in 10_000_000_u64..8_000_000_000,
            percent in 3_u64..400,
            is_more in any::<bool>(),
        ) {
            let told = if is_more { hz + hz / 100 * percent } else { hz * 100 / (100 + percent) };
            let verdict = judge(&[window(hz)], PIT_HZ, Some(told));
            prop_assert!(matches!(verdict, Some(Verdict::Measured(_))), "{:?}", verdict);
        }

        #[test]
        fn rates_of_any_windows_are_found_without_a_panic(
            ticks in any::<u64>(),
            blur in any::<u64>(),
            counts in any::<u32>(),
            told in any::<u64>(),
            reference in any::<u64>(),
        ) {
            let window = Window { ticks, blur, counts };
            let _ = judge(&[window], reference, Some(told));
        }

        #[test]
        fn the_true_offset_lies_within_the_bounds(
            offset in any::<i32>(),
            ways in prop::collection::vec((0_u32..1_000_000, 0_u32..1_000_000), 1..20),
        ) {
            let mut now = 1_u64 << 40;
            let offset = i64::from(offset);
            let rounds = ways.iter().map(|&(there, back)| {
                let asked = now;
                let answered = asked + u64::from(there);
                now = answered + u64::from(back);
                Round { asked, answered: answered.saturating_add_signed(offset), received: now }
            });
            let offsets: Vec<_> = rounds.map(|round| Offset::of(round).unwrap()).collect();
            let all = offsets.iter().copied().map(Some).reduce(|all, next| all?.and(next?));
            let all = all.flatten().unwrap();
            prop_assert!((all.least..=all.most).contains(&offset), "{:?}", all);
            prop_assert!(all.middle().abs_diff(offset) <= all.uncertainty());
            prop_assert!(all.min_distance() <= offset.unsigned_abs());
            let quickest = ways.iter().map(|(there, back)| u64::from(there + back)).min().unwrap();
            prop_assert!(all.uncertainty() <= quickest.div_ceil(2), "{:?}", all);
        }

        #[test]
        fn any_stamps_are_taken(
            asked in any::<u64>(),
            answered in any::<u64>(),
            received in any::<u64>(),
        ) {
            let offset = Offset::of(Round { asked, answered, received });
            prop_assert!(offset.is_none() || asked <= received);
            if let Some(offset) = offset {
                let _ = (offset.middle(), offset.uncertainty(), offset.min_distance());
            }
        }
    }

    #[test]
    fn bounds_that_do_not_meet_are_no_offset() {
        let offset = |least, most| Offset { least, most };
        assert_eq!(offset(1, 5).and(offset(3, 9)), Some(offset(3, 5)));
        assert_eq!(offset(1, 5).and(offset(6, 9)), None);
        assert_eq!(offset(-9, -3).min_distance(), 3);
        assert_eq!(offset(4, 9).min_distance(), 4);
        assert_eq!(offset(-4, 9).min_distance(), 0);
    }
}
