//! Random numbers, the same for the same seed.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014): any seed will do, and it takes four operations.
#[derive(Debug, Clone)]
pub struct Random(u64);

/// The golden ratio in 64 bits, SplitMix64's step.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// Starts the sequence of one CPU in one workload of one run.
    pub fn new(seed: u64, workload: u64, slot: u64) -> Self {
        Self(mix(mix(mix(seed).wrapping_add(workload)).wrapping_add(slot)))
    }

    /// Returns the next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// Returns a number below `bound`, which is not 0. Slightly uneven, which does not matter for
    /// bounds far below 2^64.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Returns a size from 2^`low` to 2^`high`, both included, each doubling as likely as the next.
    pub fn size(&mut self, low: u32, high: u32) -> usize {
        let doubling = low + self.below((high - low) as usize) as u32;
        let base = 1 << doubling;
        base + self.below(base + 1)
    }
}

/// Spreads every bit of `value` over all bits of the result.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
