//! Random histories against a shadow of what is live.

use core::alloc::Layout;

use muster_heap::hosted::{Growth, Hosted, HostedFrames};
use muster_heap::{FRAME, Heap, MagazineHeap};
use proptest::prelude::*;

use crate::shadow::{Random, Shadow};

#[derive(Clone, Debug)]
enum Step {
    Alloc(Layout),
    Free,
    Realloc(usize),
    FreeAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Sizes spread over their logarithm, so that every size class occurs.
    let size = (0..17_u32, any::<u32>()).prop_map(|(shift, any)| 1 + (any as usize % (1 << shift)));
    let align = prop_oneof![
        6 => (0..5_u32).prop_map(|shift| 1_usize << shift),
        1 => (5..17_u32).prop_map(|shift| 1_usize << shift),
    ];
    let layout = (size.clone(), align)
        .prop_map(|(size, align)| Layout::from_size_align(size, align).expect("small"));
    let step = prop_oneof![
        10 => layout.prop_map(Step::Alloc),
        7 => Just(Step::Free),
        3 => size.prop_map(Step::Realloc),
        1 => Just(Step::FreeAll),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn heap_agrees_with_its_shadow(
        steps in steps(),
        scattered in any::<bool>(),
        machine in 1_usize..256,
        seed in any::<u64>(),
    ) {
        let growth = if scattered { Growth::Scattered } else { Growth::Contiguous };
        let heap = Heap::new(Hosted::new(machine << 12, growth));
        heap.open();
        let mut random = Random::new(seed);
        let mut shadow = Shadow::new(&heap);
        let mut refusals = 0;
        let mut peak = 0;
        for step in steps {
            let served = match step {
                Step::Alloc(layout) => shadow.alloc(layout),
                Step::Free => {
                    shadow.free_any(&mut random);
                    true
                }
                Step::Realloc(size) => shadow.realloc_any(&mut random, size),
                Step::FreeAll => {
                    shadow.free_all();
                    true
                }
            };
            refusals += u64::from(!served);
            let statistics = heap.statistics();
            peak = peak.max(shadow.bytes());
            prop_assert_eq!(statistics.live_blocks, shadow.len() as u64);
            prop_assert_eq!(statistics.live_bytes, shadow.bytes());
            prop_assert_eq!(statistics.refusals, refusals);
            // A realloc holds two blocks for an instant.
            prop_assert!(statistics.peak_live_bytes >= peak);
            prop_assert!(statistics.live_bytes <= statistics.capacity_bytes);
            prop_assert!(statistics.capacity_bytes <= (machine as u64) << 12);
        }
        shadow.free_all();
        prop_assert_eq!(heap.statistics().live_bytes, 0);
        prop_assert_eq!(heap.statistics().live_blocks, 0);
    }

    #[test]
    fn magazine_heap_agrees_with_its_shadow(
        steps in steps(),
        machine in 1_usize..256,
        seed in any::<u64>(),
    ) {
        let heap = MagazineHeap::new(HostedFrames::new(machine));
        let frames = heap.platform().frames_left();
        let mut random = Random::new(seed);
        let mut shadow = Shadow::new(&heap);
        let mut refusals = 0;
        for (number, step) in steps.into_iter().enumerate() {
            let served = match step {
                Step::Alloc(layout) => shadow.alloc(layout),
                Step::Free => {
                    shadow.free_any(&mut random);
                    true
                }
                Step::Realloc(size) => shadow.realloc_any(&mut random, size),
                Step::FreeAll => {
                    shadow.free_all();
                    prop_assert!(heap.drain());
                    true
                }
            };
            refusals += u64::from(!served);
            // In a debug build, the totals of 64 CPUs take their time.
            if number % 8 != 0 {
                continue;
            }
            let totals = heap.totals();
            prop_assert_eq!(totals.live_blocks, shadow.len() as i64);
            prop_assert_eq!(totals.live_bytes, shadow.bytes() as i64);
            prop_assert_eq!(totals.refusals, refusals);
            prop_assert_eq!(totals.frames() + heap.platform().frames_left(), frames);
            prop_assert!(totals.live_bytes as usize <= totals.frames() * FRAME);
        }
        shadow.free_all();
        prop_assert!(heap.drain());
        heap.trim();
        prop_assert_eq!(heap.totals().frames(), 0);
        prop_assert_eq!(heap.platform().frames_left(), frames);
    }
}
