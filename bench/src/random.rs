//! Random numbers that cost little beside an allocation.

/// Xorshift (Marsaglia, *Xorshift RNGs*, 2003).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts the sequence of this seed.
    pub fn new(seed: usize) -> Self {
        Self((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Returns any number but 0.
    #[inline]
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `end`, which is below 2^32.
    #[inline]
    pub fn below(&mut self, end: usize) -> usize {
        // Lemire's reduction: a product instead of a division.
        (((self.any() >> 32) * end as u64) >> 32) as usize
    }

    /// Returns a size of `octaves` powers of two from `low` on, each as likely as the others.
    #[inline]
    pub fn size(&mut self, low: usize, octaves: usize) -> usize {
        let low = low << self.below(octaves);
        low + self.below(low)
    }

    /// Returns a size from 16 bytes to 8 KiB.
    #[inline]
    pub fn mixed(&mut self) -> usize {
        self.size(16, 9)
    }
}
