//! Random memory maps, and what the HHDM must show of them.

use muster_boot::{Kind, MemoryEntry};
use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};
use muster_paging::PageSize;
use proptest::prelude::*;

/// The low ends of the higher halves for four and five levels.
pub const HALF_4: u64 = 0xffff_8000_0000_0000;
pub const HALF_5: u64 = 0xff00_0000_0000_0000;

#[derive(Clone, Debug)]
enum Gap {
    Frames(u64),
    Align(u64),
    Jump(u64),
}

fn gap() -> impl Strategy<Value = Gap> {
    prop_oneof![
        12 => Just(Gap::Frames(0)),
        6 => (1..4u64).prop_map(Gap::Frames),
        4 => Just(Gap::Align(PageSize::Size2MiB.bytes())),
        2 => Just(Gap::Align(PageSize::Size1GiB.bytes())),
        1 => Just(Gap::Jump(4 << 30)),
        1 => Just(Gap::Jump(1 << 40)),
    ]
}

fn frames(largest: PageSize) -> impl Strategy<Value = u64> {
    let large = if largest == PageSize::Size1GiB { 2 } else { 0 };
    prop_oneof![
        3 => Just(1),
        4 => 1..40u64,
        2 => (1..4u64, 0..3u64).prop_map(|(pages, more)| pages * 512 + more),
        large => (1..3u64, 0..600u64).prop_map(|(pages, more)| (pages << 18) + more),
    ]
}

/// Memory maps with up to `count` entries: touching ones and holes, large ones (if `largest` allows)
/// and small ones, some beyond 4 GiB or 1 TiB. Usable and reclaimable ones consist of whole frames
/// and overlap no other of their kind; all others have any borders and may overlap anything.
pub fn memory_map(
    count: std::ops::Range<usize>,
    largest: PageSize,
) -> impl Strategy<Value = Vec<MemoryEntry>> {
    let kind = prop_oneof![
        8 => Just(Kind::Usable),
        3 => Just(Kind::BootloaderReclaimable),
        2 => Just(Kind::ExecutableAndModules),
        1 => Just(Kind::Framebuffer),
        2 => prop::sample::select(&Kind::ALL[2..]),
    ];
    let skew = || prop_oneof![Just(0), 0..0x1800u64];
    let entry = (gap(), frames(largest), kind, skew(), skew());
    prop::collection::vec(entry, count).prop_map(|entries| {
        let mut at = 0;
        let entry = |(gap, frames, kind, skew_start, skew_end)| {
            match gap {
                Gap::Frames(frames) => at += frames * FRAME_SIZE,
                Gap::Align(align) => at = u64::next_multiple_of(at, align),
                // The lower half of what a 48-bit address space can show.
                Gap::Jump(distance) if at < 1 << 45 => at += distance,
                Gap::Jump(_) => {}
            }
            let (start, end) = (at, at + frames * FRAME_SIZE);
            at = end;
            let range = match kind {
                Kind::Usable | Kind::BootloaderReclaimable => {
                    PhysRange::from_bounds(PhysAddr::new(start), PhysAddr::new(end))
                }
                _ => PhysRange::from_bounds(
                    PhysAddr::new(start.saturating_sub(skew_start)),
                    PhysAddr::new(end + skew_end),
                ),
            };
            MemoryEntry {
                range: range.unwrap(),
                kind,
            }
        };
        entries.into_iter().map(entry).collect()
    })
}
