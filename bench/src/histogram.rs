//! How long operations take, counted by time.

use alloc::vec::Vec;

/// Parts that each power of two is cut into: a bucket's time is wrong by at most a 16th.
const PARTS: u64 = 16;
const PART_BITS: u32 = PARTS.trailing_zeros();

/// Times up to [`PARTS`] have a bucket each, and each power of two above it has [`PARTS`].
const BUCKETS: usize = (64 - PART_BITS as usize + 1) * PARTS as usize;

/// Times in ticks, by powers of two in 16 parts. It has a place for every time there can be, and so
/// never allocates.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u32; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
        }
    }
}

impl Histogram {
    /// Counts one time.
    #[inline]
    pub fn count(&mut self, ticks: u64) {
        if let Some(count) = self.counts.get_mut(bucket(ticks)) {
            *count = count.saturating_add(1);
        }
    }

    /// Counts all that the other one has.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts = [0; BUCKETS];
    }

    /// Returns the time that `share` of 1000 do not exceed, rounded up to the end of its bucket;
    /// `None` if nothing was counted.
    pub fn per_mille(&self, share: u64) -> Option<u64> {
        let total: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        let wanted = (total * share).div_ceil(1000).max(1);
        let mut seen = 0;
        self.counts.iter().zip(0..).find_map(|(&count, index)| {
            seen += u64::from(count);
            (seen >= wanted).then(|| last_of(index))
        })
    }
}

/// The times of [`Histogram::steps`], in nanoseconds: 1, 2, 3, 4, 6, 8, 12 and so on, up to six seconds.
const STEPS: [u64; 64] = {
    let mut steps = [1; 64];
    let mut place = 1;
    while place < steps.len() {
        steps[place] = match place % 2 {
            1 => 2 << (place / 2),
            _ => 3 << (place / 2 - 1),
        };
        place += 1;
    }
    steps
};

impl Histogram {
    /// Returns how many took how long, by what ticks are in nanoseconds: `(ns, count)` for those that took at
    /// most so long and longer than those before, where there are any. By powers of two in two parts;
    /// whatever took longer than there are parts for is in the last one.
    pub fn steps(&self, in_ns: impl Fn(u64) -> u64) -> Vec<(u64, u64)> {
        let mut steps = STEPS.map(|ns| (ns, 0));
        for (&count, index) in self.counts.iter().zip(0..) {
            if count > 0 {
                let ns = in_ns(last_of(index));
                let place = STEPS.partition_point(|&end| end < ns);
                steps[place.min(STEPS.len() - 1)].1 += u64::from(count);
            }
        }
        let steps = steps.into_iter();
        steps.filter(|(_, count)| *count > 0).collect()
    }
}

fn bucket(ticks: u64) -> usize {
    if ticks < PARTS {
        return ticks as usize;
    }
    let power = ticks.ilog2();
    let part = (ticks >> (power - PART_BITS)) % PARTS;
    (u64::from(power - PART_BITS + 1) * PARTS + part) as usize
}

/// Returns the longest time of a bucket.
fn last_of(bucket: u64) -> u64 {
    match (bucket / PARTS).checked_sub(1) {
        None => bucket,
        Some(shift) => {
            let first = (PARTS + bucket % PARTS) << shift;
            first + ((1 << shift) - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bucket_that_is_near() {
        for shift in 0..64 {
            for ticks in [1 << shift, (1 << shift) + 1, u64::MAX >> shift] {
                let last = last_of(bucket(ticks) as u64);
                assert!(last >= ticks && last - ticks <= ticks / PARTS, "{ticks}");
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(last_of(BUCKETS as u64 - 1), u64::MAX);
    }

    #[test]
    fn buckets_follow_one_another() {
        for index in 1..BUCKETS as u64 {
            assert_eq!(bucket(last_of(index - 1) + 1), index as usize);
        }
    }

    #[test]
    fn steps_are_all_that_was_counted() {
        assert_eq!(STEPS[..8], [1, 2, 3, 4, 6, 8, 12, 16]);
        assert!(STEPS.is_sorted_by(|a, b| a < b));
        let mut histogram = Histogram::default();
        for ticks in [0, 5, 6, 7, 7, u64::MAX] {
            histogram.count(ticks);
        }
        let expected = [(1, 1), (6, 2), (8, 2), (STEPS[63], 1)];
        assert_eq!(histogram.steps(|ticks| ticks), expected);
        assert_eq!(histogram.steps(|_| 3), [(3, 6)]);
    }

    #[test]
    fn the_slowest_of_1000_is_told_apart() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.per_mille(999), None);
        for _ in 0..998 {
            histogram.count(5);
        }
        histogram.count(10);
        assert_eq!(histogram.per_mille(999), Some(10));
        let mut other = histogram.clone();
        other.count(1 << 20);
        other.count(1 << 20);
        assert_eq!(other.per_mille(500), Some(5));
        assert!(other.per_mille(999).unwrap() >= 1 << 20);
        histogram.add(&other);
        assert!(histogram.per_mille(1000).unwrap() >= 1 << 20);
        histogram.clear();
        assert_eq!(histogram.per_mille(500), None);
    }
}
