//! The frame allocator against a naive model, under random sequences of calls.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::scarce;
use muster_frames::{
    AdoptError, FRAME_SIZE, Frame, FrameAlign, FrameInfo, FrameRun, FramesError, PhysAddr,
    PhysRange, RunRequest,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::oracle::oracle;
use crate::owner::{FrameAllocator, FrameCache, FreeError, OwnedFrame, OwnedRun, Owner};

const OWNERS: [Owner; 3] = [Owner::Heap, Owner::Stacks, Owner::Loader];

fn storage(ranges: &[PhysRange]) -> &'static mut [MaybeUninit<FrameInfo>] {
    let needed = FrameInfo::needed(ranges.iter().copied());
    Box::leak(Box::new_uninit_slice(needed))
}

pub fn allocator(free: &[PhysRange], later: &[PhysRange]) -> FrameAllocator {
    let storage = storage(&[free, later].concat());
    new(free, later, storage).unwrap()
}

/// Asks for frames that are aligned to a power of two of them.
pub fn request(count: usize, align: usize) -> RunRequest {
    RunRequest::new(count).aligned(FrameAlign::from_frames(align as u64).unwrap())
}

fn new(
    free: &[PhysRange],
    later: &[PhysRange],
    storage: &'static mut [MaybeUninit<FrameInfo>],
) -> Result<FrameAllocator, FramesError> {
    // SAFETY: there is no memory of these frames that anything could use.
    unsafe { FrameAllocator::new(free.iter().copied(), later.iter().copied(), storage) }
}

/// Returns the right to frames by their name alone, whoever has it: what safe code can't have.
pub fn forged(run: impl Into<FrameRun>, owner: Owner) -> OwnedRun {
    // SAFETY: there is no memory of these frames that anything could use. Where they aren't the
    // owner's, the conditions are broken on purpose: it must be seen.
    unsafe { OwnedRun::from_raw(run.into(), owner) }
}

/// Takes a frame, and answers its name.
pub fn take(frames: &FrameAllocator, owner: Owner) -> Option<Frame> {
    frames.allocate(owner).map(OwnedFrame::into_raw)
}

/// Frees a frame by its name.
pub fn free_by_name(frames: &FrameAllocator, frame: Frame, owner: Owner) -> Result<(), FreeError> {
    // SAFETY: as for `forged`.
    let forged = unsafe { OwnedFrame::from_raw(frame, owner) };
    frames.free(forged).map_err(|refused| {
        assert_eq!(
            (refused.frames.frame(), refused.frames.owner()),
            (frame, owner)
        );
        refused.error
    })
}

/// Frees frames by their name.
pub fn free_run(frames: &FrameAllocator, run: FrameRun, owner: Owner) -> Result<(), FreeError> {
    frames.free_run(forged(run, owner)).map_err(|refused| {
        assert_eq!((refused.frames.run(), refused.frames.owner()), (run, owner));
        refused.error
    })
}

/// Adopts a range.
pub fn adopt(frames: &FrameAllocator, range: PhysRange) -> Result<usize, AdoptError> {
    // SAFETY: as for `new`.
    unsafe { frames.adopt(range) }
}

pub fn bounds(start: u64, end: u64) -> PhysRange {
    PhysRange::from_bounds(PhysAddr::new(start), PhysAddr::new(end)).unwrap()
}

/// Every frame that may ever be handed out, by its number.
struct Model {
    /// Each zone's frames, and whether it is open.
    zones: Vec<(PhysRange, Vec<u64>, bool)>,
    owners: BTreeMap<u64, Owner>,
}

impl Model {
    fn new(free: &[PhysRange], later: &[PhysRange]) -> Self {
        let zone = |open| {
            move |range: &PhysRange| {
                let inside = |number: u64| {
                    range.start() <= PhysAddr::new(number * FRAME_SIZE)
                        && (number + 1) * FRAME_SIZE <= range.end().get()
                };
                let numbers = (range.start().get() / FRAME_SIZE)..=(range.end().get() / FRAME_SIZE);
                (
                    *range,
                    numbers.filter(|&n| n != 0 && inside(n)).collect(),
                    open,
                )
            }
        };
        let zones: Vec<_> = free
            .iter()
            .map(zone(true))
            .chain(later.iter().map(zone(false)))
            .collect();
        let owners = zones
            .iter()
            .flat_map(|(_, numbers, open): &(_, Vec<u64>, _)| {
                let owner = if *open { Owner::Free } else { Owner::Loader };
                numbers.iter().map(move |&number| (number, owner))
            })
            .collect();
        Self { zones, owners }
    }

    fn is_open(&self, number: u64) -> bool {
        self.zones
            .iter()
            .any(|(_, numbers, open)| *open && numbers.contains(&number))
    }

    fn free(&self, number: u64, owner: Owner) -> Result<(), FreeError> {
        let frame = Frame::from_number(number).unwrap();
        match self.owners.get(&number) {
            Some(_) if !self.is_open(number) => Err(FreeError::Foreign { frame }),
            None => Err(FreeError::Foreign { frame }),
            Some(Owner::Free) => Err(FreeError::AlreadyFree { frame }),
            Some(&recorded) if recorded != owner => Err(FreeError::WrongOwner {
                frame,
                claimed: owner,
                recorded,
            }),
            Some(_) => Ok(()),
        }
    }

    fn has_run(&self, count: usize, align: usize) -> bool {
        count != 0
            && self.zones.iter().any(|(_, numbers, _)| {
                numbers.windows(count).any(|run| {
                    run[0].is_multiple_of(align as u64)
                        && run.iter().all(|number| self.owners[number] == Owner::Free)
                })
            })
    }

    fn check(&self, frames: &FrameAllocator) -> Result<(), TestCaseError> {
        let totals = frames.totals();
        for owner in Owner::all() {
            let count = self
                .owners
                .values()
                .filter(|whose| **whose == owner)
                .count() as u64;
            prop_assert_eq!(totals[owner], count * FRAME_SIZE, "{}", owner);
        }
        prop_assert_eq!(frames.capacity(), self.owners.len());
        prop_assert_eq!(
            frames.free_frames() as u64 * FRAME_SIZE,
            totals[Owner::Free]
        );
        for number in 1..160 {
            let frame = Frame::from_number(number).unwrap();
            prop_assert_eq!(frames.owner_of(frame), self.owners.get(&number).copied());
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Call {
    Allocate(Owner),
    AllocateRun(usize, usize, Owner),
    /// Frees one of the frames that are handed out, as this owner.
    Free(Index, Owner),
    /// Frees any frame, as this owner.
    FreeAny(u64, Owner),
    /// Frees a run from one of the frames that are handed out on.
    FreeRun(Index, u64, Owner),
    Adopt(Index),
}

fn call() -> impl Strategy<Value = Call> {
    let owner = || prop::sample::select(&OWNERS[..]);
    let align = prop::sample::select(&[1usize, 1, 2, 4, 8, 16][..]);
    prop_oneof![
        6 => owner().prop_map(Call::Allocate),
        3 => (0..20usize, align, owner()).prop_map(|(n, a, o)| Call::AllocateRun(n, a, o)),
        6 => (any::<Index>(), owner()).prop_map(|(i, o)| Call::Free(i, o)),
        1 => (1..160u64, owner()).prop_map(|(n, o)| Call::FreeAny(n, o)),
        2 => (any::<Index>(), 1..10u64, owner()).prop_map(|(i, n, o)| Call::FreeRun(i, n, o)),
        1 => any::<Index>().prop_map(Call::Adopt),
    ]
}

/// Disjoint ranges with gaps of 0 to 2 frames, unaligned borders, and whether each is free at once.
fn ranges() -> impl Strategy<Value = (Vec<PhysRange>, Vec<PhysRange>)> {
    let range = (0..16u64, 1..160u64, any::<bool>());
    prop::collection::vec(range, 1..7).prop_map(|ranges| {
        let (mut free, mut later, mut at) = (Vec::new(), Vec::new(), 0);
        for (gap, length, is_free) in ranges {
            let start = at + gap * 512;
            at = start + length * 512;
            if is_free { &mut free } else { &mut later }.push(bounds(start, at));
        }
        (free, later)
    })
}

fn behave_as_the_model(
    free: &[PhysRange],
    later: &[PhysRange],
    calls: Vec<Call>,
) -> Result<usize, TestCaseError> {
    let count = calls.len();
    let frames = allocator(free, later);
    let mut model = Model::new(free, later);
    model.check(&frames)?;
    for call in calls {
        let held: Vec<u64> = model
            .owners
            .iter()
            .filter(|&(&number, owner)| *owner != Owner::Free && model.is_open(number))
            .map(|(&number, _)| number)
            .collect();
        match call {
            Call::Allocate(owner) => match frames.allocate(owner) {
                Some(owned) => {
                    let frame = owned.into_raw();
                    let before = model.owners.insert(frame.number(), owner);
                    prop_assert_eq!(before, Some(Owner::Free), "{}", frame);
                }
                None => prop_assert!(model.owners.values().all(|o| *o != Owner::Free)),
            },
            Call::AllocateRun(count, align, owner) => {
                let possible = model.has_run(count, align);
                match frames.allocate_run(request(count, align), owner) {
                    Some(owned) => {
                        let run = owned.into_raw();
                        prop_assert!(possible);
                        prop_assert_eq!(run.count(), count);
                        prop_assert!(run.first().number().is_multiple_of(align as u64));
                        for frame in run.frames() {
                            let before = model.owners.insert(frame.number(), owner);
                            prop_assert_eq!(before, Some(Owner::Free), "{}", frame);
                        }
                    }
                    None => prop_assert!(!possible, "no run of {} found", count),
                }
            }
            Call::Free(index, owner) if !held.is_empty() => {
                let number = *index.get(&held);
                let expected = model.free(number, owner);
                let frame = Frame::from_number(number).unwrap();
                prop_assert_eq!(free_by_name(&frames, frame, owner), expected);
                if expected.is_ok() {
                    model.owners.insert(number, Owner::Free);
                }
            }
            Call::FreeAny(number, owner) => {
                let expected = model.free(number, owner);
                let frame = Frame::from_number(number).unwrap();
                prop_assert_eq!(free_by_name(&frames, frame, owner), expected);
                if expected.is_ok() {
                    model.owners.insert(number, Owner::Free);
                }
            }
            Call::FreeRun(index, count, owner) if !held.is_empty() => {
                let first = *index.get(&held);
                let numbers = first..first + count;
                let expected = numbers
                    .clone()
                    .try_for_each(|number| model.free(number, owner));
                let range = bounds(first * FRAME_SIZE, (first + count) * FRAME_SIZE);
                let run = FrameRun::from_range(range).unwrap();
                prop_assert_eq!(free_run(&frames, run, owner), expected);
                if expected.is_ok() {
                    numbers.for_each(|number| {
                        model.owners.insert(number, Owner::Free);
                    });
                }
            }
            Call::Adopt(index) => {
                let (range, numbers, open) = &mut *index.get_mut(&mut model.zones);
                if *open || numbers.is_empty() {
                    prop_assert_eq!(adopt(&frames, *range), Err(AdoptError { range: *range }));
                } else {
                    prop_assert_eq!(adopt(&frames, *range), Ok(numbers.len()));
                    *open = true;
                    for number in numbers {
                        model.owners.insert(*number, Owner::Free);
                    }
                }
            }
            Call::Free(..) | Call::FreeRun(..) => {}
        }
        model.check(&frames)?;
    }

    // In any case exactly the free frames can still be allocated, each once.
    while let Some(frame) = take(&frames, Owner::PerCpu) {
        prop_assert_eq!(
            model.owners.insert(frame.number(), Owner::PerCpu),
            Some(Owner::Free)
        );
    }
    model.check(&frames)?;
    Ok(count)
}

#[test]
fn behaves_as_the_model_under_any_calls() {
    let values = (ranges(), prop::collection::vec(call(), 0..120));
    oracle("frames", 256, values, |((free, later), calls)| {
        behave_as_the_model(&free, &later, calls)
    });
}

#[test]
fn frames_come_lowest_first() {
    let frames = allocator(&[bounds(0x8000, 0xa000), bounds(0, 0x2fff)], &[]);
    let starts: Vec<u64> = std::iter::from_fn(|| frames.allocate(Owner::Heap))
        .map(|frame| frame.frame().start().get())
        .collect();
    assert_eq!(starts, [0x1000, 0x8000, 0x9000]);
    for start in [0x9000, 0x1000] {
        free_by_name(
            &frames,
            Frame::from_start(PhysAddr::new(start)).unwrap(),
            Owner::Heap,
        )
        .unwrap();
    }
    assert_eq!(
        take(&frames, Owner::Heap),
        Frame::from_start(PhysAddr::new(0x1000))
    );
    assert_eq!(
        take(&frames, Owner::Heap),
        Frame::from_start(PhysAddr::new(0x9000))
    );
    assert_eq!(take(&frames, Owner::Heap), None);
}

#[test]
fn frames_passed_over_by_an_aligned_run_are_not_lost() {
    let frames = allocator(&[bounds(0x1000, 0x40_0000)], &[]);
    let run = frames.allocate_run(request(512, 512), Owner::Heap).unwrap();
    assert_eq!(run.run().start(), PhysAddr::new(0x20_0000));
    assert_eq!(frames.free_frames(), 511);
    let low = frames.allocate_run(request(511, 1), Owner::Stacks).unwrap();
    assert_eq!(low.run().start(), PhysAddr::new(0x1000));
    assert_eq!(take(&frames, Owner::Heap), None);
    frames.free_run(low).unwrap();
    assert_eq!(
        take(&frames, Owner::Heap),
        Frame::from_start(PhysAddr::new(0x1000))
    );
}

#[test]
fn a_run_may_begin_with_freed_frames_and_end_with_fresh_ones() {
    let frames = allocator(&[bounds(0x1000, 0x9000)], &[]);
    let low = frames.allocate_run(request(5, 1), Owner::Heap).unwrap();
    let kept = frames.allocate(Owner::Stacks).unwrap();
    frames.free_run(low).unwrap();
    frames.free(kept).unwrap();
    let run = frames.allocate_run(request(5, 4), Owner::PerCpu).unwrap();
    assert_eq!(run.run().range(), bounds(0x4000, 0x9000));
    assert_eq!(frames.free_frames(), 3);
    let starts: Vec<u64> = std::iter::from_fn(|| frames.allocate(Owner::Heap))
        .map(|frame| frame.frame().start().get())
        .collect();
    assert_eq!(starts, [0x1000, 0x2000, 0x3000]);
    assert_eq!(frames.totals()[Owner::PerCpu], 0x5000);
}

#[test]
fn a_large_machine_costs_little_up_front() {
    // 20 GiB in two pieces: 6.25 MiB of records.
    let ranges = [
        bounds(0x10_0000, 0xc000_0000),
        bounds(0x1_0000_0000, 0x5_4000_0000),
    ];
    let frames = allocator(&ranges, &[]);
    assert_eq!(
        frames.capacity() as u64,
        ranges.iter().map(|r| r.len()).sum::<u64>() / FRAME_SIZE
    );
    assert_eq!(
        take(&frames, Owner::Heap),
        Frame::from_start(PhysAddr::new(0x10_0000))
    );
    let run = frames
        .allocate_run(request(1 << 18, 1 << 18), Owner::Heap)
        .unwrap();
    assert_eq!(run.run().start(), PhysAddr::new(0x4000_0000));
}

#[test]
fn bad_ranges_and_storage_are_refused() {
    let (low, high) = (bounds(0x1000, 0x4000), bounds(0x3000, 0x8000));
    let error = new(&[high], &[low], storage(&[low, high]));
    assert_eq!(
        error.unwrap_err(),
        FramesError::Overlap {
            first: low,
            second: high
        }
    );

    // Part of a chunk, a whole one, and part of a third.
    let large = bounds(0x3f_f000, 0x60_1000);
    let error = new(&[large], &[], storage(&[low]));
    let error = error.unwrap_err();
    assert_eq!(
        error,
        FramesError::StorageTooSmall {
            needed: 4,
            given: 2
        }
    );
    assert!(error.to_string().contains("room for 4"));
    assert!(
        FramesError::Overlap {
            first: low,
            second: high
        }
        .to_string()
        .contains("0x3000")
    );
}

#[test]
fn messages_name_the_frame() {
    let frames = allocator(&[bounds(0x1000, 0x3000)], &[bounds(0x8000, 0x9000)]);
    let owned = frames.allocate(Owner::Heap).unwrap();
    let frame = owned.frame();
    let error = free_by_name(&frames, frame, Owner::Stacks).unwrap_err();
    assert_eq!(
        error.to_string(),
        "frame 0x1000 was freed by stacks but belongs to heap"
    );
    frames.free(owned).unwrap();
    let error = free_by_name(&frames, frame, Owner::Heap).unwrap_err();
    assert_eq!(error.to_string(), "frame 0x1000 was freed twice");
    let foreign = Frame::from_start(PhysAddr::new(0x8000)).unwrap();
    let error = free_by_name(&frames, foreign, Owner::Loader).unwrap_err();
    assert!(error.to_string().contains("never came from"));
    let error = adopt(&frames, bounds(0x8000, 0xa000)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("0x8000..0xa000 cannot be adopted")
    );
    assert!(format!("{frames:?}").contains("zones: 2"));
}

#[test]
fn no_run_is_extended_beyond_its_range() {
    let frames = allocator(&[bounds(0x2000, 0x4000), bounds(0x4000, 0x6000)], &[]);
    let mut run = (frames.allocate_run(request(1, 1), Owner::Heap)).unwrap();
    assert!(!frames.extend_run(&mut run, 2));
    assert!(frames.extend_run(&mut run, 1));
    assert!(!frames.extend_run(&mut run, 1));
    assert!(frames.allocate_run(request(3, 1), Owner::Heap).is_none());
}

#[test]
fn a_range_is_adopted_by_its_whole_frames() {
    let frames = allocator(&[], &[bounds(0x2000, 0x4000)]);
    for range in [(0x2000, 0x3fff), (0x1000, 0x4000), (0x2000, 0x5000)] {
        let range = bounds(range.0, range.1);
        assert_eq!(adopt(&frames, range), Err(AdoptError { range }));
    }
    assert_eq!(adopt(&frames, bounds(0x1800, 0x4800)), Ok(2));
}

#[test]
#[should_panic(expected = "to nobody")]
fn a_frame_for_nobody_is_a_mistake() {
    let _ = allocator(&[bounds(0x1000, 0x3000)], &[]).allocate(Owner::Free);
}

#[test]
#[should_panic(expected = "to nobody")]
fn a_run_for_nobody_is_a_mistake() {
    let _ = allocator(&[bounds(0x1000, 0x3000)], &[]).allocate_run(request(1, 1), Owner::Free);
}

#[test]
fn no_frame_is_handed_out_to_an_owner_that_has_no_count_of_them() {
    let frames = allocator(&[bounds(0x20_0000, 0x40_0000)], &[])
        .with_caches(1)
        .unwrap();
    let mut cache = frames.cache().unwrap();
    let nobody = [
        Owner::Free,
        Owner::NullFrame,
        Owner::LowMemory,
        Owner::NotWriteBack,
    ];
    for owner in nobody {
        let mut refuse = |work: &mut dyn FnMut(&mut FrameCache<'_>)| {
            let refused = catch_unwind(AssertUnwindSafe(|| work(&mut cache))).unwrap_err();
            let words = refused.downcast::<&str>().unwrap();
            assert!(words.contains("to nobody"), "{words}");
        };
        refuse(&mut |_| assert!(frames.allocate(owner).is_none()));
        refuse(&mut |_| assert!(frames.allocate_run(request(3, 1), owner).is_none()));
        refuse(&mut |cache| assert!(cache.allocate(owner).is_none()));
        refuse(&mut |cache| assert!(cache.allocate_run(request(3, 1), owner).is_none()));
    }
    // Each of the others is counted, and none of the frames is lost.
    let owned = |owner: &Owner| !nobody.contains(owner);
    for owner in Owner::all().filter(owned) {
        let frame = cache.allocate(owner).unwrap();
        let run = frames.allocate_run(request(3, 1), owner).unwrap();
        assert_eq!(frames.totals()[owner], 4 * FRAME_SIZE, "{owner}");
        cache.free(frame).unwrap();
        frames.free_run(run).unwrap();
    }
    assert_eq!(cache.len() + frames.uncached_frames(), 512);
}

#[test]
fn no_memory_for_the_list_of_zones_is_an_answer() {
    let range = bounds(0, 1 << 30);
    let storage = storage(&[range]);
    // Enough for that of the ranges.
    let error = scarce::with_blocks_up_to(128, || new(&[range], &[], storage).err());
    let Some(FramesError::OutOfMemory { bytes }) = error else {
        panic!("{error:?}");
    };
    assert!(bytes > 128);
    assert!(error.unwrap().to_string().contains("larger boot arena"));
}

#[test]
fn what_is_taken_of_the_heap_does_not_grow_with_the_memory() {
    let range = bounds(0, 1 << 36);
    let storage = storage(&[range]);
    let frames = scarce::with_blocks_up_to(1024, || new(&[range], &[], storage)).unwrap();
    assert_eq!(frames.free_runs_2mib(), (1 << 15) - 1);
    // In the last group of chunks, too.
    let last = frames.allocate_run(request(1, 1), Owner::Heap).unwrap();
    assert_eq!(last.run().start(), PhysAddr::new(0x1000));
    while frames
        .allocate_run(request(512, 512), Owner::Heap)
        .is_some_and(|run| {
            let start = run.run().start();
            let _ = run.into_raw();
            start < PhysAddr::new((1 << 36) - (2 << 20))
        })
    {}
    assert_eq!(frames.free_runs_2mib(), 0);
}

#[test]
fn the_storage_has_room_for_the_summaries_of_any_memory() {
    // A record of 640 bytes for 2 MiB, and 544 bytes for 128 MiB.
    for (tib, records) in [(4, (2 << 20) + 27853), (16, (8 << 20) + 111_412)] {
        let all = bounds(0, tib << 40);
        assert_eq!(FrameInfo::needed([all].into_iter()), records);
        // In two pieces.
        let (low, high) = (bounds(0, 1 << 32), bounds(1 << 33, (tib << 40) + (1 << 32)));
        let pieces = FrameInfo::needed([low, high].into_iter());
        assert_eq!(pieces, records);
    }
    // As many ranges of a page as take 17 records of their own for every twenty.
    for count in [0, 1, 20, 21] {
        let pages = (1..=count).map(|chunk| bounds(chunk << 21, (chunk << 21) + 0x1000));
        let records = count + (17 * count).div_ceil(20);
        assert_eq!(FrameInfo::needed(pages) as u64, records);
    }
}

#[test]
fn no_memory_for_the_list_of_ranges_is_an_answer() {
    let ranges = [bounds(0x1000, 0x4000), bounds(0x8000, 0x9000)];
    let storage = storage(&ranges);
    let error = scarce::with_blocks_up_to(0, || new(&ranges, &[], storage).err());
    assert!(matches!(error, Some(FramesError::OutOfMemory { bytes }) if bytes > 0));
}

#[test]
fn no_memory_for_caches_is_an_error() {
    for (cpus, bytes) in [(4, 512), (usize::MAX, usize::MAX)] {
        let frames = allocator(&[bounds(0x1000, 0x4000)], &[]);
        let error = scarce::with_blocks_up_to(511, || frames.with_caches(cpus).err()).unwrap();
        assert_eq!(error, FramesError::NoCaches { cpus, bytes });
        assert!(
            error
                .to_string()
                .contains("larger boot arena, or have fewer")
        );
    }
}

#[test]
fn another_allocator_s_frames_are_refused_and_stay_their_owner_s() {
    let mine = allocator(&[bounds(0x1000, 0x4000)], &[]);
    let others = allocator(&[bounds(0x4000, 0x9000)], &[])
        .with_caches(1)
        .unwrap();
    let mut cache = others.cache().unwrap();
    let frame = mine.allocate(Owner::Heap).unwrap();
    let run = mine.allocate_run(request(2, 1), Owner::Stacks).unwrap();
    let refused = others.free(frame).unwrap_err();
    let foreign = FreeError::Foreign {
        frame: Frame::from_start(PhysAddr::new(0x1000)).unwrap(),
    };
    assert_eq!(refused.error, foreign);
    assert_eq!(refused.to_string(), foreign.to_string());
    let refused = cache.free(refused.frames).unwrap_err();
    let frame = cache.free_quickly(refused.frames).unwrap_err();
    let run = others.free_run(run).unwrap_err().frames;
    let run = cache.free_run(run).unwrap_err().frames;
    assert_eq!((mine.free_frames(), others.free_frames()), (0, 5));

    // A part of a run at a time, and one more frame.
    let (first, second) = run.split_at(1).unwrap();
    assert_eq!((first.owner(), second.run().count()), (Owner::Stacks, 1));
    let second = second.split_at(0).unwrap_err().split_at(usize::MAX);
    let second = second.unwrap_err().split_at(1).unwrap_err();
    mine.free_run(second).unwrap();
    mine.free_run(frame.into()).unwrap();
    mine.free_run(first).unwrap();
    assert_eq!(mine.free_frames(), 3);
}

#[test]
fn a_frame_of_an_allocator_inside_another_s_run_is_never_with_both() {
    let outer = allocator(&[bounds(0x1000, 0x5000)], &[]);
    let run = outer
        .allocate_run(request(4, 1), Owner::Heap)
        .unwrap()
        .into_raw();
    let inner = allocator(&[run.range()], &[]);

    // The outer one has the same owner recorded, and takes it.
    let frame = inner.allocate(Owner::Heap).unwrap();
    let moved = frame.frame();
    outer.free(frame).unwrap();
    let inside: Vec<_> = std::iter::from_fn(|| inner.allocate(Owner::Heap)).collect();
    assert_eq!(inside.len(), 3);
    assert!(inside.iter().all(|frame| frame.frame() != moved));
    let frame = outer.allocate(Owner::Heap).unwrap();
    assert_eq!(frame.frame(), moved);
    assert!(outer.allocate(Owner::Heap).is_none());

    // And back again.
    inner.free(frame).unwrap();
    assert_eq!((inner.free_frames(), outer.free_frames()), (1, 0));

    // With another owner it stays where it is from.
    let frame = inner.allocate(Owner::Stacks).unwrap();
    let refused = outer.free(frame).unwrap_err();
    assert!(matches!(refused.error, FreeError::WrongOwner { .. }));
    inner.free(refused.frames).unwrap();
}

#[test]
fn caches_made_anew_keep_the_totals() {
    let frames = allocator(&[bounds(0x1000, 0x9000)], &[])
        .with_caches(1)
        .unwrap();
    let kept = frames.cache().unwrap().allocate(Owner::Heap).unwrap();
    let frames = frames.with_caches(2).unwrap();
    assert_eq!(frames.totals()[Owner::Heap], FRAME_SIZE);
    assert_eq!(frames.common_share().handed_out(Owner::Heap), 1);
    frames.cache().unwrap().free(kept).unwrap();
    assert_eq!(frames.free_frames(), frames.capacity());
}

/// An owner whose number is what a test says, whatever it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fickle {
    Nobody,
    Owner,
}

thread_local! {
    static NUMBER: Cell<u8> = const { Cell::new(1) };
}

impl muster_frames::Owner for Fickle {
    const ALL: &'static [Self] = &[Self::Nobody, Self::Owner];
    const FREE: Self = Self::Nobody;
    const LATER: Self = Self::Nobody;
    const REST: Self = Self::Nobody;
    const NULL_FRAME: Self = Self::Nobody;

    fn number(self) -> u8 {
        match self {
            Self::Nobody => 0,
            Self::Owner => NUMBER.get(),
        }
    }
}

impl std::fmt::Display for Fickle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("fickle")
    }
}

#[test]
fn a_frame_of_an_owner_that_contradicts_itself_is_not_handed_out_twice() {
    let ranges = [bounds(0x20_0000, 0x40_0000)];
    // SAFETY: there is no memory of these frames that anything could use.
    let frames = unsafe {
        muster_frames::FrameAllocator::new(ranges.into_iter(), [].into_iter(), storage(&ranges))
    };
    let frames = frames.unwrap().with_caches(1).unwrap();
    let first = frames.allocate(Fickle::Owner).unwrap();
    let mut cache = frames.cache().unwrap();
    let second = cache.allocate(Fickle::Owner).unwrap();
    // By this number their records would be those of frames in a forgotten cache, which come back.
    NUMBER.set(0);
    for refused in [
        catch_unwind(AssertUnwindSafe(|| {
            frames.allocate(Fickle::Owner).is_some()
        })),
        catch_unwind(AssertUnwindSafe(|| {
            frames.allocate_run(request(3, 1), Fickle::Owner).is_some()
        })),
        catch_unwind(AssertUnwindSafe(|| cache.allocate(Fickle::Owner).is_some())),
        catch_unwind(AssertUnwindSafe(|| {
            cache.allocate_run(request(3, 1), Fickle::Owner).is_some()
        })),
    ] {
        assert!(refused.is_err());
    }
    std::mem::forget(cache);
    let frames = frames.with_caches(1).unwrap();
    NUMBER.set(1);
    let mut rest = std::iter::from_fn(|| frames.allocate(Fickle::Owner));
    assert!(rest.all(|frame| ![first.frame(), second.frame()].contains(&frame.into_raw())));
    // Each is freed by the number that it was handed out by.
    NUMBER.set(7);
    frames.free(first).unwrap();
    frames.free(second).unwrap();
}
