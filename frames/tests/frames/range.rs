//! Ranges against a naive bitmap, and their edges.

use muster_frames::{FRAME_SIZE, Frame, FrameRun, PHYSICAL_LIMIT, PhysAddr, PhysRange};
use proptest::prelude::*;

/// Small addresses, so that a bitmap of the bytes can be kept.
const LIMIT: u64 = 5 * FRAME_SIZE;

fn range() -> impl Strategy<Value = PhysRange> {
    // Steps of 512 bytes make touching, equal and unaligned borders common.
    (0..LIMIT / 512, 1..=LIMIT / 512).prop_filter_map("too long", |(start, length)| {
        let range = PhysRange::new(PhysAddr::new(start * 512), length * 512)?;
        (range.end() <= PhysAddr::new(LIMIT)).then_some(range)
    })
}

fn bits(ranges: impl IntoIterator<Item = PhysRange>) -> Vec<u32> {
    let mut bits = vec![0; LIMIT as usize];
    for range in ranges {
        for bit in &mut bits[range.start().get() as usize..range.end().get() as usize] {
            *bit += 1;
        }
    }
    bits
}

proptest! {
    #[test]
    fn cutting_neither_loses_nor_invents_a_byte(whole in range(), hole in range()) {
        let cut = whole.cut(hole);
        let kept = bits(cut.before.into_iter().chain(cut.after));
        let (whole_bits, hole_bits) = (bits([whole]), bits([hole]));
        for at in 0..LIMIT as usize {
            prop_assert_eq!(kept[at], whole_bits[at] * (1 - hole_bits[at]), "byte {:#x}", at);
        }
        let common = bits(whole.intersection(hole));
        for at in 0..LIMIT as usize {
            prop_assert_eq!(common[at], whole_bits[at] * hole_bits[at], "byte {:#x}", at);
        }
        prop_assert_eq!(whole.overlaps(hole), whole.intersection(hole).is_some());
        prop_assert_eq!(whole.encloses(hole), whole.intersection(hole) == Some(hole));
        if let Some(before) = cut.before {
            prop_assert!(before.end() <= hole.start() && before.start() == whole.start());
        }
        if let Some(after) = cut.after {
            prop_assert!(after.start() >= hole.end() && after.end() == whole.end());
        }
    }

    #[test]
    fn frames_are_those_whose_every_byte_lies_inside(range in range()) {
        let inside = |number: u64| {
            (number * FRAME_SIZE..(number + 1) * FRAME_SIZE).all(|addr| range.contains(PhysAddr::new(addr)))
        };
        let touched = |number: u64| {
            (number * FRAME_SIZE..(number + 1) * FRAME_SIZE).any(|addr| range.contains(PhysAddr::new(addr)))
        };
        let expected: Vec<u64> = (1..LIMIT / FRAME_SIZE).filter(|&n| inside(n)).collect();
        let frames: Vec<u64> = range.frames().map(Frame::number).collect();
        prop_assert_eq!(frames, expected);

        let covering = range.covering_frames();
        for number in 0..LIMIT / FRAME_SIZE {
            let start = number * FRAME_SIZE;
            prop_assert_eq!(covering.contains(PhysAddr::new(start)), touched(number));
            let whole = range.whole_frames().is_some_and(|whole| whole.contains(PhysAddr::new(start)));
            prop_assert_eq!(whole, inside(number));
        }
    }
}

#[test]
fn what_is_no_range_cannot_be_made() {
    assert_eq!(PhysRange::new(PhysAddr::new(0x1000), 0), None);
    assert_eq!(PhysRange::new(PhysAddr::new(u64::MAX), 1), None);
    assert_eq!(PhysRange::new(PhysAddr::new(u64::MAX - 5), 100), None);
    assert_eq!(PhysRange::new(PhysAddr::new(PHYSICAL_LIMIT.get()), 1), None);
    assert_eq!(
        PhysRange::new(PhysAddr::new(PHYSICAL_LIMIT - PhysAddr::new(1)), 2),
        None
    );
    assert_eq!(
        PhysRange::from_bounds(PhysAddr::new(2), PhysAddr::new(1)),
        None
    );
    assert_eq!(
        PhysRange::from_bounds(PhysAddr::new(2), PhysAddr::new(2)),
        None
    );
    let last = PhysRange::new(PhysAddr::new(PHYSICAL_LIMIT - PhysAddr::new(1)), 1).unwrap();
    assert_eq!(last.len(), 1);
    assert_eq!(last.covering_frames().end(), PHYSICAL_LIMIT);
    assert_eq!(last.whole_frames(), None);
    assert_eq!(
        PhysRange::new(PhysAddr::new(0), PHYSICAL_LIMIT.get())
            .unwrap()
            .to_string(),
        "0x0..0x10000000000000"
    );
}

#[test]
fn frame_0_cannot_be_named() {
    assert_eq!(Frame::from_start(PhysAddr::new(0)), None);
    assert_eq!(Frame::containing(PhysAddr::new(0xfff)), None);
    assert_eq!(Frame::from_number(0), None);
    assert_eq!(Frame::from_start(PhysAddr::new(0x1001)), None);
    assert_eq!(Frame::from_start(PhysAddr::new(PHYSICAL_LIMIT.get())), None);
    let frame = Frame::containing(PhysAddr::new(0x1fff)).unwrap();
    assert_eq!(
        (
            frame.start().get(),
            frame.number(),
            frame.range().end().get()
        ),
        (0x1000, 1, 0x2000)
    );
    assert_eq!(frame.to_string(), "frame 0x1000");
}

#[test]
fn a_run_consists_of_whole_frames() {
    let run = |start, end| {
        FrameRun::from_range(
            PhysRange::from_bounds(PhysAddr::new(start), PhysAddr::new(end)).unwrap(),
        )
    };
    assert_eq!(run(0, 0x2000), None);
    assert_eq!(run(0x1000, 0x2001), None);
    assert_eq!(run(0x1001, 0x3000), None);
    let run = run(0x1000, 0x3000).unwrap();
    assert_eq!(
        (run.start().get(), run.count(), run.frames().count()),
        (0x1000, 2, 2)
    );
    assert_eq!(run.to_string(), "frames 0x1000..0x3000");
}
