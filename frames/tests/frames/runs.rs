//! Runs in memory of many chunks and several groups of them, much of it used: a run is found if there is one.

use std::ops::Range;

use muster_frames::{
    FRAME_SIZE, Frame, FrameAlign, PhysAddr, PhysRange, RunRequest, RunSearch, SearchStep,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::frames::{allocator, bounds, request};
use crate::oracle::oracle;
use crate::owner::{FrameAllocator, OwnedFrame, OwnedRun, Owner};

/// The ranges of free memory, in frames. The first has three groups of chunks, and begins and ends in the midst of a row.
const RANGES: [(u64, u64); 2] = [(300, 70_021), (70_100, 70_150)];

/// A request, in frames.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    count: u64,
    align: u64,
    below: Option<u64>,
    boundary: Option<u64>,
}

impl Wanted {
    const fn new(count: u64, align: u64) -> Self {
        Self {
            count,
            align,
            below: None,
            boundary: None,
        }
    }

    fn request(self) -> RunRequest {
        let mut request = request(self.count as usize, self.align as usize);
        if let Some(below) = self.below {
            // A part of a frame is none.
            request = request.below(PhysAddr::new(below * FRAME_SIZE + FRAME_SIZE - 1));
        }
        if let Some(boundary) = self.boundary {
            request = request.within(FrameAlign::from_frames(boundary).unwrap());
        }
        request
    }

    fn is_met_by(self, start: u64) -> bool {
        let last = start + self.count - 1;
        start.is_multiple_of(self.align)
            && self.below.is_none_or(|below| last < below)
            && (self.boundary).is_none_or(|boundary| start / boundary == last / boundary)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Allocate(Wanted),
    /// The same in steps.
    Search(Wanted),
    Free(Index),
    /// A part of a run that is held, from its beginning.
    FreePart(Index, Index),
    Extend(Index, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let count = prop_oneof![
        8 => 1..12_u64,
        4 => 12..140_u64,
        2 => 140..1100_u64,
        1 => 1100..40_000_u64,
        3 => select(&[2, 4, 8, 16, 32, 64, 128, 256, 512, 1024][..]),
    ];
    let align = prop_oneof![
        3 => Just(1),
        2 => select(&[2, 4, 8, 16, 64, 512, 4096][..]),
    ];
    let below = prop_oneof![
        2 => Just(None),
        1 => (0..72_000_u64).prop_map(Some),
        1 => (300..900_u64).prop_map(Some),
    ];
    let boundary = prop_oneof![Just(None), (0..18_u32).prop_map(|order| Some(1 << order))];
    let natural = (0..10_u32).prop_map(|order| Wanted::new(1 << order, 1 << order));
    let wanted = prop_oneof![
        3 => (count, align).prop_map(|(count, align)| Wanted::new(count, align)),
        2 => natural,
    ];
    let placed = (wanted.clone(), below, boundary).prop_map(|(wanted, below, boundary)| Wanted {
        below,
        boundary,
        ..wanted
    });
    prop_oneof![
        4 => wanted.prop_map(Step::Allocate),
        2 => placed.clone().prop_map(Step::Allocate),
        2 => placed.prop_map(Step::Search),
        3 => any::<Index>().prop_map(Step::Free),
        1 => any::<(Index, Index)>().prop_map(|(run, at)| Step::FreePart(run, at)),
        1 => (any::<Index>(), 0..40_u64).prop_map(|(run, more)| Step::Extend(run, more)),
    ]
}

/// A frame by frame look at what is free.
struct Naive(Vec<bool>);

impl Naive {
    fn has_run(&self, wanted: Wanted) -> bool {
        RANGES.iter().any(|&(first, end)| {
            let mut stretch = 0;
            (first..end).any(|frame| {
                stretch = if self.0[frame as usize] {
                    stretch + 1
                } else {
                    0
                };
                // One that ends here.
                let start = (frame + 1).checked_sub(wanted.count);
                stretch >= wanted.count && start.is_some_and(|start| wanted.is_met_by(start))
            })
        })
    }

    fn set(&mut self, range: PhysRange, is_free: bool) {
        let frames =
            (range.start().get() / FRAME_SIZE) as usize..(range.end().get() / FRAME_SIZE) as usize;
        assert!(self.0[frames.clone()].iter().all(|&frame| frame != is_free));
        self.0[frames].fill(is_free);
    }
}

/// Searches in steps, and says how many they were.
fn search(frames: &FrameAllocator, request: RunRequest) -> (Option<OwnedRun>, usize) {
    let mut search = RunSearch::new(request);
    let mut steps = 0;
    loop {
        steps += 1;
        match frames.search_run(&mut search, Owner::Heap) {
            SearchStep::Found(run) => return (Some(run), steps),
            SearchStep::Unfinished => {}
            SearchStep::NotFree => return (None, steps),
        }
    }
}

/// Takes all memory in runs of these lengths, in turn, frees one of `one_in`, and does the steps.
fn check(lengths: &[usize], one_in: usize, steps: &[Step]) -> Result<usize, TestCaseError> {
    let ranges = RANGES.map(|(first, end)| bounds(first * FRAME_SIZE, end * FRAME_SIZE));
    let frames = allocator(&ranges, &[]);
    let mut naive = Naive(vec![false; 70_150]);
    let mut held: Vec<OwnedRun> = Vec::new();
    let mut lengths = lengths.iter().chain([&1]).cycle();
    while frames.free_frames() > 0 {
        let length = *lengths.next().unwrap();
        held.extend(frames.allocate_run(RunRequest::new(length), Owner::Heap));
    }
    let mut kept = Vec::new();
    for (number, run) in held.into_iter().enumerate() {
        if number % one_in == 0 {
            naive.set(run.run().range(), true);
            frames.free_run(run).unwrap();
        } else {
            kept.push(run);
        }
    }
    for &step in steps {
        match step {
            Step::Allocate(wanted) | Step::Search(wanted) => {
                let run = match step {
                    Step::Allocate(_) => frames.allocate_run(wanted.request(), Owner::Heap),
                    _ => search(&frames, wanted.request()).0,
                };
                prop_assert_eq!(run.is_some(), naive.has_run(wanted), "{:?}", step);
                let Some(run) = run else {
                    continue;
                };
                prop_assert!(wanted.is_met_by(run.run().first().number()));
                prop_assert_eq!(run.run().count() as u64, wanted.count);
                naive.set(run.run().range(), false);
                kept.push(run);
            }
            Step::Free(which) if !kept.is_empty() => {
                let run = kept.swap_remove(which.index(kept.len()));
                naive.set(run.run().range(), true);
                frames.free_run(run).unwrap();
            }
            Step::FreePart(which, at) if !kept.is_empty() => {
                let run = kept.swap_remove(which.index(kept.len()));
                let count = run.run().count();
                match run.split_at(at.index(count)) {
                    Ok((part, rest)) => {
                        naive.set(part.run().range(), true);
                        frames.free_run(part).unwrap();
                        kept.push(rest);
                    }
                    Err(run) => kept.push(run),
                }
            }
            Step::Extend(which, more) if !kept.is_empty() => {
                let which = which.index(kept.len());
                let run = &mut kept[which];
                let (start, end) = (run.run().start(), run.run().range().end());
                let next = end.get() / FRAME_SIZE..end.get() / FRAME_SIZE + more;
                // The ranges do not touch, and behind the last one is nothing.
                let are_free = more > 0
                    && next
                        .clone()
                        .all(|frame| naive.0.get(frame as usize) == Some(&true));
                prop_assert_eq!(frames.extend_run(run, more as usize), are_free);
                prop_assert_eq!(run.run().start(), start);
                let added = if are_free { more } else { 0 };
                prop_assert_eq!(run.run().range().end(), end + added * FRAME_SIZE);
                if let Some(range) = PhysRange::new(end, added * FRAME_SIZE) {
                    naive.set(range, false);
                }
                prop_assert_eq!(frames.owner_of(run.run().first()), Some(Owner::Heap));
            }
            Step::Free(_) | Step::FreePart(..) | Step::Extend(..) => {}
        }
    }
    Ok(steps.len())
}

#[test]
fn a_run_is_found_if_there_is_one() {
    let lengths = prop::collection::vec(1..40_usize, 1..9);
    let steps = prop::collection::vec(step(), 0..300);
    let values = (lengths, 2..9_usize, steps);
    oracle(
        "runs in much memory",
        24,
        values,
        |(lengths, one_in, steps)| check(&lengths, one_in, &steps),
    );
}

/// The number of a frame never comes near the end of such an alignment.
#[test]
fn an_alignment_beyond_all_memory_is_met_by_no_run() {
    let ranges = [bounds(FRAME_SIZE, 1024 * FRAME_SIZE)];
    let frames = allocator(&ranges, &[]);
    for count in [1, 2, 300, 600, usize::MAX] {
        let run = frames.allocate_run(request(count, 1 << 51), Owner::Heap);
        assert!(run.is_none(), "{count} frames");
    }
    assert_eq!(FrameAlign::from_frames(1 << 52), None);
    assert_eq!(frames.free_frames(), 1023);
}

/// Much memory, of which every other frame is used, but for these frames.
fn every_other_but(free: Range<u64>) -> FrameAllocator {
    let frames = allocator(&[bounds(FRAME_SIZE, END * FRAME_SIZE)], &[]);
    let all = frames.allocate_run(RunRequest::new((END - 1) as usize), Owner::Heap);
    let all = all.unwrap().into_raw();
    let is_free =
        |frame: &Frame| frame.number().is_multiple_of(2) || free.contains(&frame.number());
    for frame in all.frames().filter(is_free) {
        // SAFETY: the right to the whole run was given up, and this is a part that nobody else frees.
        let frame = unsafe { OwnedFrame::from_raw(frame, Owner::Heap) };
        frames.free(frame).unwrap();
    }
    frames
}

/// Frames of a group, for which there is one hint.
const GROUP: u64 = 1 << 15;
/// One past the last frame: the last group is not a whole one.
const END: u64 = 7 * GROUP + 1077;

#[test]
fn a_search_takes_steps_that_have_a_bound_and_remembers_what_it_has_seen() {
    // Nowhere; at the very end; across the border of two groups.
    for place in [0..0, END - 8..END, 5 * GROUP - 3..5 * GROUP + 5] {
        let frames = every_other_but(place.clone());
        // So that the first step does not find it.
        let request = RunRequest::new(8).within(FrameAlign::GIB_1);
        let (run, steps) = search(&frames, request);
        assert_eq!(run.is_some(), !place.is_empty(), "{place:?}");
        // One for every 13 or 14 chunks of 2 MiB, up to the run.
        let chunks = match &run {
            Some(run) => run.run().first().number() / 512,
            None => END / 512,
        } as usize;
        let few = chunks / 14..=chunks / 13 + 3;
        assert!(few.contains(&steps), "{place:?}: {steps} not in {few:?}");
        if let Some(run) = run {
            // With the frame before it, if that is free as every other is.
            assert_eq!(run.run().first().number(), place.start / 2 * 2);
            frames.free_run(run).unwrap();
        } else {
            // At once, as all of it is remembered: the first step, one for the range, and one for the end.
            assert_eq!(search(&frames, request).1, 3);
            assert_eq!(frames.allocate_run(request, Owner::Heap), None);
        }
    }
}
