//! A map from physical ranges to values, in which neighbours with equal values are one.

use nodit::{Interval, NoditMap, interval::ii};

use crate::{PhysAddr, PhysRange};

/// Values of physical ranges; what has none is absent. Two touching ranges never have equal values:
/// they are merged when the second is put in.
///
/// # Aborts
///
/// Where the heap has no memory, what adds to the map ends in
/// [`handle_alloc_error`](alloc::alloc::handle_alloc_error).
#[derive(Clone, Debug)]
pub struct RangeMap<V>(NoditMap<u64, Interval<u64>, V>);

impl<V: Copy + Eq> RangeMap<V> {
    /// Creates a map without values.
    pub fn new() -> Self {
        Self(NoditMap::new())
    }

    /// Sets the whole of `range` to this value.
    pub fn put(&mut self, range: PhysRange, value: V) {
        self.remove(range);
        let inserted = self
            .0
            .insert_merge_touching_if_values_equal(interval(range), value);
        debug_assert!(inserted.is_ok(), "{range} overlaps what was just removed");
    }

    /// Takes the whole of `range` out.
    pub fn remove(&mut self, range: PhysRange) {
        drop(self.0.cut(&interval(range)));
    }

    /// Returns the value of an address.
    pub fn get(&self, addr: PhysAddr) -> Option<V> {
        self.0.get_at_point(&addr.get()).copied()
    }

    /// Iterates over all ranges with their values, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (PhysRange, V)> {
        self.0.iter().filter_map(entry)
    }

    /// Returns the parts of the map that lie in `window`, trimmed to it.
    pub fn overlapping(
        &self,
        window: PhysRange,
    ) -> impl DoubleEndedIterator<Item = (PhysRange, V)> {
        self.0
            .overlapping(&interval(window))
            .filter_map(entry)
            .filter_map(move |(range, value)| Some((range.intersection(window)?, value)))
    }
}

impl<V: Copy + Eq> Default for RangeMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

/// Converts a range to an interval of the map, which includes its end.
fn interval(range: PhysRange) -> Interval<u64> {
    ii(range.start().get(), range.end().get() - 1)
}

/// Converts an entry of the map to a range; never `None`, as every interval in the map was made from a
/// range, or cut or merged from such.
fn entry<V: Copy>((interval, value): (&Interval<u64>, &V)) -> Option<(PhysRange, V)> {
    Some((
        PhysRange::from_bounds(
            PhysAddr::new(*interval.start()),
            PhysAddr::new(interval.end() + 1),
        )?,
        *value,
    ))
}
