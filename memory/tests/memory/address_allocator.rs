//! Addresses, against a model that knows each page of the window.

use muster_memory::{
    AddressAllocator, AddressError, FRAME_SIZE, Features, Levels, Tables, Vacant, VirtRange,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::oracle::oracle;
use crate::ram::Ram;

const WINDOW: u64 = 0xffff_ff10_0000_0000;

/// The proof that a range in which nothing was ever mapped is free.
fn vacate(range: VirtRange) -> Vacant {
    let ram = Ram::new(1 << 36);
    let features = Features::default();
    // SAFETY: the frames of `ram` are used by these tables alone.
    let tables = unsafe { Tables::new(&ram, Levels::Four, features, &ram) }.unwrap();
    tables.vacant(range).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { pages: u64, align: u32 },
    Free(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..12u64, 0..4u32).prop_map(|(pages, align)| Step::Allocate { pages, align }),
        2 => any::<Index>().prop_map(Step::Free),
    ]
}

fn check(pages: u64, offset: u64, steps: Vec<Step>) -> Result<usize, TestCaseError> {
    let count = steps.len();
    let start = WINDOW + offset * FRAME_SIZE;
    let window = VirtRange::new(start, pages * FRAME_SIZE).unwrap();
    let mut addresses = AddressAllocator::new(window);
    prop_assert_eq!(addresses.window(), window);
    let mut held: Vec<VirtRange> = Vec::new();
    for step in steps {
        // Which pages are somebody's.
        let mut taken = vec![false; pages as usize];
        for page in held
            .iter()
            .flat_map(|range| (range.start()..=range.last()).step_by(FRAME_SIZE as usize))
        {
            taken[((page - start) / FRAME_SIZE) as usize] = true;
        }
        match step {
            Step::Allocate {
                pages: wanted,
                align,
            } => {
                let align = FRAME_SIZE << align;
                // The first place where all pages, and one on each side, are nobody's.
                let place = (1..pages).find(|&first| {
                    first + wanted < pages
                        && (start + first * FRAME_SIZE).is_multiple_of(align)
                        && !taken[first as usize - 1..=(first + wanted) as usize].contains(&true)
                });
                let length = wanted * FRAME_SIZE;
                let allocated = addresses.allocate(length, align);
                let expected = place
                    .map(|first| VirtRange::new(start + first * FRAME_SIZE, length).unwrap())
                    .ok_or(AddressError::Exhausted { length, align });
                prop_assert_eq!(allocated, expected);
                held.extend(allocated);
            }
            Step::Free(which) if !held.is_empty() => {
                let range = held.swap_remove(which.index(held.len()));
                prop_assert_eq!(addresses.free(vacate(range)), Ok(()));
                prop_assert!(addresses.free(vacate(range)).is_err());
            }
            Step::Free(_) => {}
        }
        let bytes: u64 = held.iter().map(|range| range.len()).sum();
        prop_assert_eq!(addresses.allocated_bytes(), bytes);
        prop_assert_eq!(addresses.allocated_ranges(), held.len());
    }
    Ok(count)
}

#[test]
fn addresses_are_as_in_the_model() {
    let values = (1..80u64, 0..8u64, prop::collection::vec(step(), 0..80));
    oracle("addresses", 256, values, |(pages, offset, steps)| {
        check(pages, offset, steps)
    });
}

#[test]
fn only_what_was_allocated_comes_back() {
    let window = VirtRange::new(WINDOW, 0x10_0000).unwrap();
    let mut addresses = AddressAllocator::new(window);
    let range = addresses.allocate(0x4000, 1).unwrap();
    let part = VirtRange::new(range.start(), 0x1000).unwrap();
    let inside = VirtRange::new(range.start() + 0x1000, 0x3000).unwrap();
    let more = VirtRange::new(range.start(), 0x5000).unwrap();
    for wrong in [part, inside, more] {
        let error = addresses.free(vacate(wrong)).unwrap_err();
        assert_eq!(error.range, wrong);
        assert!(error.to_string().ends_with("was not allocated as such"));
    }
    assert_eq!(addresses.allocated_bytes(), 0x4000);
    assert_eq!(addresses.free(vacate(range)), Ok(()));
}

#[test]
fn impossible_wishes_are_refused() {
    let mut addresses = AddressAllocator::new(VirtRange::new(WINDOW, 0x10_0000).unwrap());
    for (length, align) in [(0, 0x1000), (0x1800, 0x1000), (0x1000, 0), (0x1000, 0x3000)] {
        let error = addresses.allocate(length, align).unwrap_err();
        assert_eq!(error, AddressError::Malformed { length, align });
        assert!(error.to_string().contains("whole pages"));
    }
    for (length, align) in [(!0xfff, 0x1000), (0xff000, 0x1000), (0x1000, 1 << 63)] {
        let error = addresses.allocate(length, align).unwrap_err();
        assert_eq!(error, AddressError::Exhausted { length, align });
        assert!(error.to_string().contains("has no gap"));
    }
    assert!(addresses.allocate(0xfe000, 0x1000).is_ok());
    // A window of one page is all guard, also where there are no addresses beyond.
    let mut last = AddressAllocator::new(VirtRange::new(!0xfff, 0x1000).unwrap());
    assert!(last.allocate(0x1000, 0x1000).is_err());
}
