//! Seals on what the heap writes into memory that others may write to as well: by mistake.

/// Goes on with a seal for one more word: one to one in each of the two, as are an odd factor and a
/// shift's exclusive or. So a seal over some words tells apart any two that differ in one of them.
pub(crate) const fn mix(seal: u64, word: u64) -> u64 {
    // The golden ratio's bits, as in SplitMix64.
    let product = (seal ^ word)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 29)
}
