//! The frame allocator and its caches as several CPUs use them: one after the other against a naive
//! model, and at once.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use muster_frames::{
    AdoptError, FRAME_SIZE, Frame, FrameAlign, FrameRun, PhysAddr, PhysRange, RunRequest,
    RunSearch, SearchStep,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::frames::{adopt, allocator, bounds, forged, request, take};
use crate::oracle::oracle;
use crate::owner::{
    FrameAllocator, FrameCache, FreeError, NotFreed, OwnedFrame, OwnedRun, Owner, Totals,
};

const OWNERS: [Owner; 3] = [Owner::Heap, Owner::Stacks, Owner::PageTables];
const CHUNK: u64 = 512;

/// A call; the first number is the CPU whose cache it uses, if any.
#[derive(Clone, Debug)]
enum Call {
    /// This many frames, one after the other.
    Allocate(usize, usize, Owner),
    AllocateRun(usize, usize, usize, Owner),
    /// Frees, from one of the frames that are handed out on, as many as are its owner's, but no more
    /// than this: one run or a part of it, or several.
    Free(usize, From, usize),
    /// The same, frame by frame.
    FreeSingly(usize, From, usize),
    /// Frees any frames as this owner, or as the first one's, whosever they are.
    FreeAny(usize, u64, usize, Option<Owner>),
    /// Takes all that is left, one frame after the other.
    TakeAll(usize, Owner),
    Drain(usize),
    /// A CPU's cache goes, and another comes in its place.
    Restart(usize),
    /// A shortage begins, and all caches are drained; or it is over.
    Shortage,
    Adopt(Index),
}

/// Where a run that is freed begins.
#[derive(Clone, Copy, Debug)]
enum From {
    /// At one of the frames that are handed out.
    Any(Index),
    /// This many frames before the end of a range, or at its last one.
    End(Index, u64),
}

fn call() -> impl Strategy<Value = Call> {
    let owner = || prop::sample::select(&OWNERS[..]);
    let count = || {
        prop_oneof![
            4 => (0..7u32).prop_map(|order| 1usize << order),
            2 => (7..11u32).prop_map(|order| 1usize << order),
            2 => 1..70usize,
            1 => 1..1100usize,
        ]
    };
    let align = prop_oneof![
        6 => Just(None),
        6 => (0..11u32).prop_map(|order| Some(1 << order)),
    ];
    let run = (0..3usize, count(), align, owner());
    let from = || {
        prop_oneof![
            4 => any::<Index>().prop_map(From::Any),
            1 => (any::<Index>(), 1..70u64).prop_map(|(index, before)| From::End(index, before)),
        ]
    };
    let claimed = prop_oneof![
        3 => Just(None),
        3 => owner().prop_map(Some),
        1 => Just(Some(Owner::Free)),
        1 => Just(Some(Owner::Loader)),
    ];
    prop_oneof![
        6 => (0..3usize, owner()).prop_map(|(c, o)| Call::Allocate(c, 1, o)),
        2 => (0..3usize, count(), owner()).prop_map(|(c, n, o)| Call::Allocate(c, n, o)),
        4 => run.prop_map(|(c, count, align, o)| {
            Call::AllocateRun(c, count, align.unwrap_or(count.next_power_of_two()), o)
        }),
        1 => (0..3usize, owner()).prop_map(|(c, o)| Call::AllocateRun(c, 0, 1, o)),
        4 => (0..3usize, from(), count()).prop_map(|(c, from, n)| Call::FreeSingly(c, from, n)),
        9 => (0..3usize, from(), prop_oneof![1 => Just(1), 2 => count()])
            .prop_map(|(c, from, n)| Call::Free(c, from, n)),
        2 => (0..3usize, 1..2600u64, prop_oneof![1 => Just(1), 2 => count()], claimed)
            .prop_map(|(c, n, count, o)| Call::FreeAny(c, n, count, o)),
        2 => (0..3usize, owner()).prop_map(|(c, o)| Call::TakeAll(c, o)),
        1 => (0..3usize).prop_map(Call::Drain),
        1 => (0..2usize).prop_map(Call::Restart),
        1 => Just(Call::Shortage),
        1 => any::<Index>().prop_map(Call::Adopt),
    ]
}

/// The owner of each frame, by its number; `None` if there is no such frame.
struct Model {
    owners: Vec<Option<Owner>>,
    /// Each range, and whether it is free or was adopted.
    ranges: Vec<(PhysRange, bool)>,
}

impl Model {
    fn new(ranges: &[(PhysRange, bool)]) -> Self {
        let mut owners = vec![None; 4000];
        for (range, is_open) in ranges {
            for frame in range.frames() {
                let owner = if *is_open { Owner::Free } else { Owner::Loader };
                owners[frame.number() as usize] = Some(owner);
            }
        }
        Self {
            owners,
            ranges: ranges.to_vec(),
        }
    }

    fn count(&self, owner: Owner) -> usize {
        self.owners.iter().filter(|o| **o == Some(owner)).count()
    }

    fn change(&mut self, run: FrameRun, from: Owner, to: Owner) -> Result<(), TestCaseError> {
        for frame in run.frames() {
            let before = self.owners[frame.number() as usize].replace(to);
            prop_assert_eq!(before, Some(from), "{}", frame);
        }
        Ok(())
    }

    fn has_run(&self, count: usize, align: usize) -> bool {
        count != 0
            && self.ranges.iter().any(|(range, _)| {
                let numbers: Vec<_> = range.frames().map(Frame::number).collect();
                let mut length = 0;
                // From the last on: how many are free from this one to the next used one.
                numbers.iter().rev().any(|&number| {
                    let free = self.owners[number as usize] == Some(Owner::Free);
                    length = if free { length + 1 } else { 0 };
                    length >= count && number.is_multiple_of(align as u64)
                })
            })
    }

    /// As many frames that are handed out from one on, and their owner.
    fn handed_out(&self, from: From, most: usize) -> Option<(FrameRun, Owner)> {
        let is_out =
            |number: u64| self.owners[number as usize].is_some_and(|owner| OWNERS.contains(&owner));
        let first = match from {
            From::Any(index) => {
                let out: Vec<u64> = (0..self.owners.len() as u64)
                    .filter(|&n| is_out(n))
                    .collect();
                *out.get(index.index(out.len().max(1)))?
            }
            From::End(index, before) => {
                let end = index.get(&self.ranges).0.end().get() / 4096;
                let first = end.saturating_sub(before);
                [first, end - 1]
                    .into_iter()
                    .find(|&number| is_out(number))?
            }
        };
        let owner = self.owners[first as usize]?;
        let count = self.owners[first as usize..]
            .iter()
            .take(most)
            .take_while(|whose| **whose == Some(owner))
            .count();
        Some((run(first, count), owner))
    }

    fn expected(&self, frame: Frame, claimed: Owner) -> Result<(), FreeError> {
        match self.owners[frame.number() as usize] {
            None | Some(Owner::Loader) => Err(FreeError::Foreign { frame }),
            Some(Owner::Free) => Err(FreeError::AlreadyFree { frame }),
            Some(recorded) if recorded != claimed => Err(FreeError::WrongOwner {
                frame,
                claimed,
                recorded,
            }),
            Some(_) => Ok(()),
        }
    }
}

fn run(first: u64, count: usize) -> FrameRun {
    let range = PhysRange::new(PhysAddr::new(first * 4096), count as u64 * 4096).unwrap();
    FrameRun::from_range(range).unwrap()
}

/// Searches in steps.
fn search(cache: &mut FrameCache, request: RunRequest, owner: Owner) -> Option<OwnedRun> {
    let mut search = RunSearch::new(request);
    loop {
        match cache.search_run(&mut search, owner) {
            SearchStep::Found(run) => return Some(run),
            SearchStep::Unfinished => {}
            SearchStep::NotFree => return None,
        }
    }
}

#[test]
fn a_search_empties_the_cache_of_each_cpu_that_it_comes_to() {
    let frames = allocator(&[bounds(0x20_0000, 0x28_0000)], &[])
        .with_caches(2)
        .unwrap();
    let mut caches = [(); 2].map(|()| frames.cache().unwrap());
    // Each has a row.
    for cache in &mut caches {
        let run = cache.allocate_run(request(64, 64), Owner::Heap).unwrap();
        cache.free_run(run).unwrap();
    }
    assert_eq!(frames.cached_frames(), 128);
    let mut search = RunSearch::new(request(128, 1));
    let mut step = |cpu: usize| caches[cpu].search_run(&mut search, Owner::Heap);
    while step(0) == SearchStep::Unfinished && frames.cached_frames() == 128 {}
    // The rest on the other one.
    let found = loop {
        match step(1) {
            SearchStep::Unfinished => {}
            step => break step,
        }
    };
    assert!(matches!(found, SearchStep::Found(_)), "{found:?}");
}

/// Frees frames by their name.
fn free_run(
    frames: &FrameAllocator,
    cache: Option<&mut FrameCache>,
    run: FrameRun,
    owner: Owner,
) -> Result<(), FreeError> {
    let forged = forged(run, owner);
    let freed = match cache {
        Some(cache) => cache.free_run(forged),
        None => frames.free_run(forged),
    };
    freed.map_err(|NotFreed { frames, error }| {
        assert_eq!((frames.run(), frames.owner()), (run, owner));
        error
    })
}

/// Returns one to four ranges of a frame to over 2 MiB, some next to each other, some to be adopted
/// later.
fn ranges() -> impl Strategy<Value = Vec<(PhysRange, bool)>> {
    let gap = prop::sample::select(&[0u64, 0, 1, 100][..]);
    let length = prop_oneof![1 => 1..70u64, 2 => 1..1200u64];
    let range = (gap, length, prop::bool::weighted(0.8));
    prop::collection::vec(range, 1..5).prop_map(|ranges| {
        let mut at = 0;
        let place = |(gap, length, is_open): (u64, u64, bool)| {
            let start = at + gap;
            at = (start + length).min(2600);
            Some((
                PhysRange::from_bounds(PhysAddr::new(start * 4096), PhysAddr::new(at * 4096))?,
                is_open,
            ))
        };
        ranges.into_iter().filter_map(place).collect()
    })
}

fn behave_as_the_model(
    ranges: &[(PhysRange, bool)],
    calls: &[Call],
    freed_across: &Cell<usize>,
) -> Result<usize, TestCaseError> {
    let of_kind = |open| {
        let ranges = ranges.iter().filter(move |(_, is_open)| *is_open == open);
        ranges.map(|(range, _)| *range).collect::<Vec<_>>()
    };
    let frames = allocator(&of_kind(true), &of_kind(false))
        .with_caches(2)
        .unwrap();
    let mut model = Model::new(ranges);
    let mut caches: Vec<FrameCache> = std::iter::from_fn(|| frames.cache()).collect();
    let mut shortage = None;
    for call in calls.iter().cloned() {
        match call {
            Call::Shortage => {
                shortage = match shortage {
                    Some(_) => None,
                    None => Some(frames.begin_shortage()),
                };
                caches.iter_mut().for_each(|cache| {
                    cache.drain();
                });
            }
            Call::Allocate(cpu, count, owner) => {
                for _ in 0..count {
                    let frame = match caches.get_mut(cpu) {
                        Some(cache) => cache.allocate(owner),
                        None => frames.allocate(owner),
                    };
                    let Some(frame) = frame.map(OwnedFrame::into_raw) else {
                        prop_assert_eq!(frames.free_frames(), frames.cached_frames());
                        prop_assert!(caches.get(cpu).is_none_or(FrameCache::is_empty));
                        break;
                    };
                    model.change(frame.into(), Owner::Free, owner)?;
                }
            }
            Call::AllocateRun(cpu, count, align, owner) => {
                let possible = model.has_run(count, align);
                let allocate = |caches: &mut [FrameCache]| {
                    let run = match caches.get_mut(cpu) {
                        // The one as well as the other.
                        Some(cache) if count % 3 == 0 => {
                            search(cache, request(count, align), owner)
                        }
                        Some(cache) => cache.allocate_run(request(count, align), owner),
                        None => frames.allocate_run(request(count, align), owner),
                    };
                    run.map(OwnedRun::into_raw)
                };
                let mut run = allocate(&mut caches);
                if run.is_none() {
                    caches.iter_mut().for_each(|cache| {
                        cache.drain();
                    });
                    run = allocate(&mut caches);
                }
                prop_assert_eq!(run.is_some(), possible, "{} at {}", count, align);
                if let Some(run) = run {
                    prop_assert_eq!(run.count(), count);
                    prop_assert!(run.first().number().is_multiple_of(align as u64));
                    model.change(run, Owner::Free, owner)?;
                }
            }
            Call::Free(cpu, from, most) => {
                let Some((run, owner)) = model.handed_out(from, most) else {
                    continue;
                };
                let freed = free_run(&frames, caches.get_mut(cpu), run, owner);
                prop_assert_eq!(freed, Ok(()));
                model.change(run, owner, Owner::Free)?;
                let is_inside = |(range, _): &(PhysRange, bool)| range.encloses(run.range());
                if !model.ranges.iter().any(is_inside) {
                    freed_across.set(freed_across.get() + 1);
                }
            }
            Call::FreeSingly(cpu, from, most) => {
                let Some((run, owner)) = model.handed_out(from, most) else {
                    continue;
                };
                for frame in run.frames() {
                    let freed = free_run(&frames, caches.get_mut(cpu), frame.into(), owner);
                    prop_assert_eq!(freed, Ok(()));
                }
                model.change(run, owner, Owner::Free)?;
            }
            Call::FreeAny(cpu, number, count, owner) => {
                let run = run(number, count);
                let owner = owner.or(model.owners[number as usize]);
                let owner = owner.unwrap_or(Owner::Heap);
                let expected = run
                    .frames()
                    .try_for_each(|frame| model.expected(frame, owner));
                let freed = free_run(&frames, caches.get_mut(cpu), run, owner);
                prop_assert_eq!(freed, expected);
                if expected.is_ok() {
                    model.change(run, owner, Owner::Free)?;
                }
                for frame in run.frames() {
                    let whose = model.owners[frame.number() as usize];
                    prop_assert_eq!(frames.owner_of(frame), whose);
                }
            }
            Call::TakeAll(cpu, owner) => {
                caches.iter_mut().for_each(|cache| {
                    cache.drain();
                });
                let mut allocate = || {
                    let frame = match caches.get_mut(cpu) {
                        Some(cache) => cache.allocate(owner),
                        None => frames.allocate(owner),
                    };
                    frame.map(OwnedFrame::into_raw)
                };
                while let Some(frame) = allocate() {
                    model.change(frame.into(), Owner::Free, owner)?;
                }
                prop_assert_eq!(model.count(Owner::Free), 0);
            }
            Call::Drain(cpu) => {
                if let Some(cache) = caches.get_mut(cpu) {
                    let cached = cache.len();
                    prop_assert_eq!(cache.drain(), cached);
                    prop_assert!(cache.is_empty());
                }
            }
            Call::Restart(cpu) => {
                if cpu < caches.len() {
                    prop_assert!(frames.cache().is_none());
                    drop(caches.swap_remove(cpu));
                    caches.extend(frames.cache());
                    prop_assert_eq!(caches.len(), 2);
                }
            }
            Call::Adopt(index) => {
                let (range, is_open) = index.get_mut(&mut model.ranges);
                let (range, count) = (*range, range.frames().count());
                if *is_open || count == 0 {
                    prop_assert_eq!(adopt(&frames, range), Err(AdoptError { range }));
                } else {
                    *is_open = true;
                    prop_assert_eq!(adopt(&frames, range), Ok(count));
                    let first = range.frames().next().unwrap().number();
                    model.change(run(first, count), Owner::Loader, Owner::Free)?;
                }
            }
        }
        let mut totals = Totals::default();
        for owner in model.owners.iter().flatten() {
            totals[*owner] += 4096;
        }
        prop_assert_eq!(frames.totals(), totals);
        prop_assert_eq!(frames.free_frames() as u64 * 4096, totals[Owner::Free]);
        let cached: usize = caches.iter().map(FrameCache::len).sum();
        prop_assert_eq!(frames.cached_frames(), cached);
        prop_assert!(shortage.is_none() || cached == 0, "{} are kept", cached);
    }

    drop(caches);
    for number in 0..model.owners.len() {
        if let Some(owner) = model.owners[number].filter(|owner| OWNERS.contains(owner)) {
            let run = run(number as u64, 1);
            prop_assert_eq!(frames.free_run(forged(run, owner)), Ok(()));
            model.change(run, owner, Owner::Free)?;
        }
    }
    let whole = |(range, is_open): &(PhysRange, bool)| {
        let (start, end) = (
            range.start().get().div_ceil(4096 * CHUNK),
            range.end().get() / (4096 * CHUNK),
        );
        // Frame 0 is never free, so neither is the first chunk.
        if *is_open {
            end.saturating_sub(start.max(1)) as usize
        } else {
            0
        }
    };
    let chunks = model.ranges.iter().map(whole).sum::<usize>();
    prop_assert_eq!(frames.free_runs_2mib(), chunks);
    let left = std::iter::from_fn(|| frames.allocate(Owner::Heap)).count();
    prop_assert_eq!(left, model.count(Owner::Free));
    prop_assert_eq!(left + model.count(Owner::Loader), frames.capacity());
    Ok(calls.len())
}

#[test]
fn cpus_in_turn_behave_as_the_model() {
    let calls = prop::collection::vec(call(), 0..300);
    let freed_across = Cell::new(0);
    oracle(
        "frames and their caches",
        64,
        (ranges(), calls),
        |(ranges, calls)| behave_as_the_model(&ranges, &calls, &freed_across),
    );
    assert!(freed_across.get() > 0, "no run was freed across two ranges");
}

/// Free memory of this many chunks, from the first on that is not at frame 0.
fn chunks(count: u64) -> FrameAllocator {
    allocator(&[bounds(CHUNK * 4096, (count + 1) * CHUNK * 4096)], &[])
}

#[test]
fn cpus_at_once_never_share_a_frame_and_lose_none() {
    const CPUS: usize = 4;
    const CHUNKS: u64 = 8;
    let frames = chunks(CHUNKS).with_caches(CPUS).unwrap();
    let used: Vec<AtomicBool> = (0..(CHUNKS + 1) * CHUNK)
        .map(|_| AtomicBool::new(false))
        .collect();
    let handed_over = Mutex::new(Vec::<OwnedRun>::new());
    let refused = AtomicUsize::new(0);
    let barrier = Barrier::new(CPUS);

    let mark = |run: FrameRun, used_now: bool| {
        for frame in run.frames() {
            let before = used[frame.number() as usize].swap(used_now, Ordering::Relaxed);
            assert_ne!(before, used_now, "{frame}");
        }
    };
    thread::scope(|scope| {
        for cpu in 0..CPUS as u64 {
            let (frames, handed_over, refused) = (&frames, &handed_over, &refused);
            let (mark, barrier) = (&mark, &barrier);
            scope.spawn(move || {
                let mut cache = frames.cache().unwrap();
                let mut held: Vec<OwnedRun> = Vec::new();
                let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ (cpu + 1);
                barrier.wait();
                for _ in 0..25_000 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let pick = (random >> 16) as usize;
                    let run = match random % 16 {
                        0..6 => cache.allocate(Owner::Heap).map(OwnedRun::from),
                        6..8 => {
                            let count = 1 << (pick % 7);
                            cache.allocate_run(request(count, count), Owner::Heap)
                        }
                        8 => cache.allocate_run(request(pick % 200 + 1, 1), Owner::Heap),
                        9 if pick.is_multiple_of(16) => {
                            cache.allocate_run(request(512, 512), Owner::Heap)
                        }
                        10 if pick.is_multiple_of(64) => {
                            cache.drain();
                            continue;
                        }
                        11 => {
                            let mut runs = handed_over.lock().unwrap();
                            runs.extend(held.pop());
                            let index = pick % runs.len().max(1);
                            if index < runs.len() {
                                held.push(runs.swap_remove(index));
                            }
                            continue;
                        }
                        _ if !held.is_empty() => {
                            let run = held.swap_remove(pick % held.len());
                            mark(run.run(), false);
                            cache.free_run(run).unwrap();
                            continue;
                        }
                        _ => continue,
                    };
                    match run {
                        Some(run) => {
                            mark(run.run(), true);
                            held.push(run);
                        }
                        // Everything goes back, so that memory fills up again and again.
                        None => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            for run in held.drain(..) {
                                mark(run.run(), false);
                                cache.free_run(run).unwrap();
                            }
                        }
                    }
                }
                handed_over.lock().unwrap().append(&mut held);
            });
        }
    });

    assert!(refused.into_inner() > 0, "memory never ran out");
    let left = handed_over.into_inner().unwrap();
    let count: usize = left.iter().map(|run| run.run().count()).sum();
    assert_eq!(frames.totals()[Owner::Heap], count as u64 * 4096);
    for run in left {
        mark(run.run(), false);
        frames.free_run(run).unwrap();
    }
    assert_eq!(frames.cached_frames(), 0);
    assert_eq!(frames.free_frames(), frames.capacity());
    assert_eq!(frames.free_runs_2mib() as u64, CHUNKS);
}

#[test]
fn whenever_all_is_quiet_whole_chunks_are_known_to_be_whole() {
    const CPUS: u64 = 3;
    let frames = chunks(2);
    let barrier = Barrier::new(CPUS as usize);
    thread::scope(|scope| {
        for cpu in 0..CPUS {
            let (frames, barrier) = (&frames, &barrier);
            scope.spawn(move || {
                for round in 0..500 {
                    // So few that all of them meet in the same two chunks, empty and full ones.
                    for count in [512, 1, 256, 512 >> ((round + cpu) % 10)] {
                        let run = frames.allocate_run(request(count, count), Owner::Heap);
                        if let Some(run) = run {
                            frames.free_run(run).unwrap();
                        }
                    }
                    barrier.wait();
                    assert_eq!(frames.free_runs_2mib(), 2);
                    assert_eq!(frames.free_frames(), 1024);
                    barrier.wait();
                }
            });
        }
    });
}

#[test]
fn of_cpus_that_free_a_run_at_once_one_succeeds() {
    let frames = chunks(1);
    let (start, end) = (Barrier::new(2), Barrier::new(2));
    let freed = AtomicUsize::new(0);
    let run = FrameRun::from_range(bounds(0x20_0000, 0x21_0000)).unwrap();
    thread::scope(|scope| {
        for first in [true, false] {
            let (frames, freed, start, end) = (&frames, &freed, &start, &end);
            scope.spawn(move || {
                for round in 1..=1000 {
                    if first {
                        let taken = frames.allocate_run(request(16, 16), Owner::Heap).unwrap();
                        assert_eq!(taken.into_raw(), run);
                    }
                    start.wait();
                    match frames.free_run(forged(run, Owner::Heap)) {
                        Ok(()) => {
                            freed.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(refused) => {
                            assert!(matches!(refused.error, FreeError::AlreadyFree { .. }));
                        }
                    }
                    end.wait();
                    assert_eq!(freed.load(Ordering::Relaxed), round);
                    assert_eq!(frames.free_frames(), 512);
                    start.wait();
                }
            });
        }
    });
}

#[test]
fn small_runs_stay_together_and_leave_large_ones() {
    let frames = chunks(16).with_caches(2).unwrap();
    let mut caches = [frames.cache().unwrap(), frames.cache().unwrap()];
    let mut held = Vec::new();
    for step in 0..600 {
        let cache = &mut caches[step % 2];
        let count = [1, 1, 2, 4, 1, 8][step % 6];
        held.push(
            cache
                .allocate_run(request(count, count), Owner::Heap)
                .unwrap(),
        );
        if step % 3 == 0 {
            let run = held.swap_remove(step * 7919 % held.len());
            cache.free_run(run).unwrap();
        }
    }
    let used: usize = held.iter().map(|run| run.run().count()).sum();
    // The used frames would fill this many chunks; each CPU may have begun another.
    let min = used.div_ceil(512);
    assert!(frames.free_runs_2mib() >= 16 - min - 2);
    for run in held {
        caches[0].free_run(run).unwrap();
    }
    drop(caches);
    assert_eq!(frames.free_runs_2mib(), 16);
}

#[test]
fn small_runs_come_from_a_row_that_the_cache_has_and_go_back_there() {
    let frames = chunks(1).with_caches(1).unwrap();
    let mut cache = frames.cache().unwrap();
    let first = cache.allocate_run(request(8, 8), Owner::Heap).unwrap();
    let row = first.run().first().number() / 64;
    assert_eq!((cache.len(), frames.uncached_frames()), (56, 512 - 64));
    let second = cache.allocate_run(request(3, 1), Owner::Stacks).unwrap();
    assert_eq!(second.run().first().number() / 64, row);
    assert_eq!(cache.len(), 53);
    cache.free_run(first).unwrap();
    cache.free_run(second).unwrap();
    assert_eq!((cache.len(), frames.uncached_frames()), (64, 512 - 64));
    let all = cache.allocate_run(request(64, 64), Owner::Heap).unwrap();
    assert_eq!(all.run().first().number() / 64, row);
    assert!(cache.is_empty());
    cache.free_run(all).unwrap();
    assert_eq!(cache.drain(), 64);
    assert_eq!(frames.free_runs_2mib(), 1);
}

#[test]
fn a_run_grows_over_the_end_of_a_row_of_which_the_cache_has_the_rest() {
    let frames = chunks(1).with_caches(1).unwrap();
    let mut cache = frames.cache().unwrap();
    let mut run = cache.allocate_run(request(60, 64), Owner::Heap).unwrap();
    assert_eq!(cache.len(), 4);
    assert!(cache.extend_run(&mut run, 8));
    assert_eq!((run.run().count(), cache.len()), (68, 0));
    // What it has is given up also where the run can't grow.
    let behind = cache.allocate_run(request(2, 2), Owner::Heap).unwrap();
    let left = cache.len();
    assert!(left > 0 && !cache.extend_run(&mut run, 512));
    cache.free_run(run).unwrap();
    cache.free_run(behind).unwrap();
    drop(cache);
    assert_eq!(frames.free_runs_2mib(), 1);
}

#[test]
fn a_run_of_nothing_costs_the_cache_nothing() {
    let frames = chunks(1).with_caches(1).unwrap();
    let mut cache = frames.cache().unwrap();
    let run = cache.allocate_run(request(2, 1), Owner::Heap).unwrap();
    let cached = cache.len();
    assert!(cache.allocate_run(request(0, 1), Owner::Heap).is_none());
    assert_eq!(cache.len(), cached);
    cache.free_run(run).unwrap();
}

#[test]
fn a_search_that_can_find_nothing_costs_the_cache_nothing() {
    let frames = chunks(1).with_caches(1).unwrap();
    let mut cache = frames.cache().unwrap();
    let run = cache.allocate_run(request(2, 1), Owner::Heap).unwrap();
    let cached = cache.len();
    let wide = RunRequest::new(17).within(FrameAlign::from_frames(16).unwrap());
    for request in [request(0, 1), wide] {
        let mut search = RunSearch::new(request);
        let step = cache.search_run(&mut search, Owner::Heap);
        assert_eq!((step, cache.len()), (SearchStep::NotFree, cached));
    }
    cache.free_run(run).unwrap();
}

#[test]
fn what_a_handler_frees_during_a_search_is_found() {
    // Before the second step, and so on, until after the cache was drained.
    for before_step in 2..=5 {
        let frames = allocator(&[bounds(0x8000, 0xd000)], &[]);
        let frames = frames.with_caches(1).unwrap();
        let mut cache = frames.cache().unwrap();
        let _rest = cache.allocate_run(request(2, 1), Owner::Heap).unwrap();
        let mut run = cache.allocate_run(request(2, 1), Owner::Heap);
        let single = cache.allocate(Owner::Heap).unwrap();
        cache.free(single).unwrap();
        let mut search = RunSearch::new(request(2, 1));
        let mut steps = 1;
        let found = loop {
            match cache.search_run(&mut search, Owner::Heap) {
                SearchStep::Unfinished => {
                    steps += 1;
                    if steps == before_step {
                        cache.free_run(run.take().unwrap()).unwrap();
                    }
                }
                SearchStep::Found(run) => break Some(run),
                SearchStep::NotFree => break None,
            }
        };
        assert!(run.is_none() && found.is_some(), "{before_step}");
    }
}

#[test]
fn what_a_cache_has_for_runs_has_a_bound() {
    let frames = chunks(16).with_caches(1).unwrap();
    let mut cache = frames.cache().unwrap();
    for count in [1, 2, 3, 5, 17, 33, 63, 64] {
        let runs: Vec<_> = (0..100)
            .map(|_| cache.allocate_run(request(count, 1), Owner::Heap).unwrap())
            .collect();
        for run in runs {
            cache.free_run(run).unwrap();
            assert!(cache.len() <= 128 + 256, "{count}: {}", cache.len());
        }
        assert_eq!(cache.len() + frames.uncached_frames(), frames.capacity());
    }
    drop(cache);
    assert_eq!(frames.free_runs_2mib(), 16);
}

#[test]
fn single_frames_are_found_among_those_that_a_cache_has_for_runs() {
    let frames = allocator(&[bounds(0x1000, 0x9000)], &[])
        .with_caches(1)
        .unwrap();
    let mut cache = frames.cache().unwrap();
    let run = cache.allocate_run(request(2, 1), Owner::Heap).unwrap();
    assert_eq!((cache.len(), frames.uncached_frames()), (6, 0));
    let singles: Vec<_> = std::iter::from_fn(|| cache.allocate(Owner::Heap)).collect();
    assert_eq!(singles.len(), 6);
    for single in singles {
        cache.free(single).unwrap();
    }
    // And runs among single ones.
    let other = cache.allocate_run(request(6, 1), Owner::Heap).unwrap();
    cache.free_run(other).unwrap();
    cache.free_run(run).unwrap();
    assert_eq!((cache.drain(), frames.free_frames()), (8, 8));
}

#[test]
fn a_cache_takes_what_is_left_and_gives_it_back() {
    let frames = allocator(&[bounds(0x1000, 0x6000)], &[])
        .with_caches(2)
        .unwrap();
    let mut first = frames.cache().unwrap();
    let mut second = frames.cache().unwrap();
    assert!(frames.cache().is_none());

    let owned = first.allocate(Owner::Stacks).unwrap();
    let frame = owned.frame();
    assert_eq!(frame.start(), PhysAddr::new(0x1000));
    assert_eq!((first.len(), frames.cached_frames()), (4, 4));
    assert_eq!(frames.free_frames(), 4);
    assert_eq!(
        frames.owner_of(Frame::from_start(PhysAddr::new(0x2000)).unwrap()),
        Some(Owner::Free)
    );
    assert_eq!(second.allocate(Owner::Heap), None);

    // Any CPU may free it.
    second.free(owned).unwrap();
    let already = Err(FreeError::AlreadyFree { frame });
    let freed = free_run(&frames, Some(&mut second), frame.into(), Owner::Stacks);
    assert_eq!(freed, already);
    let freed = free_run(&frames, Some(&mut first), frame.into(), Owner::Free);
    assert_eq!(freed, already);
    assert_eq!(frames.free_frames(), 5);
    assert_eq!(frames.allocate_run(request(5, 1), Owner::Heap), None);

    assert_eq!(first.drain(), 4);
    // Its own frames are in the way only until it gives them back by itself.
    let run = second.allocate_run(request(5, 1), Owner::Heap).unwrap();
    assert_eq!(run.run().count(), 5);
    assert!(format!("{second:?}").contains("len: 0"));
    second.free_run(run).unwrap();
    drop(second);
    let again = frames.cache().unwrap().allocate(Owner::Heap).unwrap();
    assert_eq!(again.into_raw(), frame);
    assert_eq!(frames.totals()[Owner::Heap], 4096);
}

#[test]
fn each_share_is_told_and_all_add_up() {
    let frames = allocator(&[bounds(0x1000, 0x9000)], &[])
        .with_caches(2)
        .unwrap();
    let mut second = frames.cache_of(1).unwrap();
    assert!(frames.cache_of(1).is_none() && frames.cache_of(2).is_none());
    let mut first = frames.cache().unwrap();

    let frame = first.allocate(Owner::Mappings).unwrap();
    let other = frames.allocate_run(request(2, 1), Owner::Mappings);
    assert_eq!(other, None, "the first has all of them");
    second.free(frame).unwrap();
    let cached = |number| frames.share(number).map(|share| share.cached());
    assert_eq!((frames.cached_frames(), frames.uncached_frames()), (8, 0));
    assert_eq!([cached(0), cached(1), cached(2)], [Some(7), Some(1), None]);
    let handed_out = |number: usize| {
        let share = frames.share(number).unwrap_or(frames.common_share());
        share.handed_out(Owner::Mappings)
    };
    assert_eq!([handed_out(0), handed_out(1), handed_out(2)], [1, -1, 0]);

    drop((first, second));
    assert_eq!((frames.cached_frames(), frames.uncached_frames()), (0, 8));
    assert!(take(&frames, Owner::Mappings).is_some());
    let sum: i64 = (0..=2).map(handed_out).sum();
    assert_eq!(sum as u64 * FRAME_SIZE, frames.totals()[Owner::Mappings]);
    assert_eq!([handed_out(0), handed_out(1), handed_out(2)], [1, -1, 1]);
    assert_eq!((cached(0), frames.common_share().cached()), (Some(0), 0));
}

#[test]
#[should_panic(expected = "to nobody")]
fn a_cached_frame_for_nobody_is_a_mistake() {
    let frames = chunks(1).with_caches(1).unwrap();
    let _ = frames.cache().unwrap().allocate(Owner::Free);
}

/// As long as caches may live, its frames count as cached; once none can, they are free again.
#[test]
fn the_frames_of_a_cache_that_was_forgotten_come_back_when_caches_are_made_anew() {
    let ranges = [bounds(0x1000, 0x9000), bounds(0x1f_e000, 0x20_3000)];
    let later = [bounds(0x40_0000, 0x40_8000)];
    let frames = allocator(&ranges, &later).with_caches(2).unwrap();
    let mut caches = [(); 2].map(|()| frames.cache().unwrap());
    let run = caches[1]
        .allocate_run(request(2, 1), Owner::Stacks)
        .unwrap();
    let kept = caches[0].allocate(Owner::Heap).unwrap();
    let other = caches[0].allocate(Owner::PageTables).unwrap();
    let cached = frames.cached_frames();
    assert!(cached > 0);
    std::mem::forget(caches);
    assert!(frames.cache().is_none());
    assert_eq!(frames.cached_frames(), cached);
    assert_eq!(frames.cached_frames() + frames.uncached_frames(), 13 - 4);

    let frames = frames.with_caches(1).unwrap();
    assert_eq!((frames.cached_frames(), frames.uncached_frames()), (0, 9));
    assert_eq!(frames.free_frames(), 9);
    let mut cache = frames.cache().unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| cache.allocate(Owner::Heap)).collect();
    taken.push(kept);
    let mut numbers: Vec<_> = taken.iter().map(|owned| owned.frame().number()).collect();
    numbers.extend(run.run().frames().map(|frame| frame.number()));
    numbers.push(other.frame().number());
    numbers.sort_unstable();
    assert_eq!(
        numbers,
        [(1..9).collect::<Vec<u64>>(), (0x1fe..0x203).collect()].concat()
    );
    for owned in taken {
        cache.free(owned).unwrap();
    }
    cache.free_run(run).unwrap();
    cache.free(other).unwrap();
    assert_eq!(frames.free_frames(), 13);
    // SAFETY: nothing uses the memory of these frames, which is none.
    assert_eq!(unsafe { frames.adopt(later[0]) }, Ok(8));
}

#[test]
fn a_run_grows_by_free_frames_behind_it_and_they_count_where_they_are_taken() {
    let ranges = [bounds(0x10_0000, 0x14_0000), bounds(0x14_0000, 0x15_0000)];
    let frames = allocator(&ranges, &[]).with_caches(1).unwrap();
    let mut cache = frames.cache().unwrap();
    let mut run = cache.allocate_run(request(48, 64), Owner::Heap).unwrap();
    assert!(cache.extend_run(&mut run, 8));
    // What a cache has is free for that cache alone, whether all of it is asked for, or more.
    assert!(!frames.extend_run(&mut run, 3));
    assert!(cache.extend_run(&mut run, 4));
    assert_eq!((cache.len(), cache.drain()), (4, 4));
    assert!(frames.extend_run(&mut run, 3));
    let shares = [frames.share(0), Some(frames.common_share())];
    let handed_out = shares.map(|share| share.unwrap().handed_out(Owner::Heap));
    assert_eq!((run.run().count(), handed_out), (63, [60, 3]));
    // Not beyond its range, by none, nor over the end of all memory.
    for more in [0, 2, 1 << 40, usize::MAX] {
        assert!(!cache.extend_run(&mut run, more) && !frames.extend_run(&mut run, more));
    }
    assert!(frames.extend_run(&mut run, 1));
    assert_eq!(frames.free_frames(), 16);

    // Also where the cache has a part of what is asked for.
    let (first, rest) = run.split_at(40).unwrap();
    cache.free_run(rest).unwrap();
    let mut run = first;
    assert_eq!(cache.len(), 24);
    assert!(cache.extend_run(&mut run, 24));
    assert!(cache.is_empty());

    // Nor over what is used; and what is no run of this owner's here does not grow.
    let (mut first, second) = run.split_at(32).unwrap();
    assert!(!frames.extend_run(&mut first, 1));
    cache.free_run(second).unwrap();
    cache.drain();
    let mut others = forged(first.run(), Owner::Stacks);
    assert!(!frames.extend_run(&mut others, 1));
    assert!(!allocator(&[bounds(0x20_0000, 0x30_0000)], &[]).extend_run(&mut first, 1));
    assert!(frames.extend_run(&mut first, 1));
    frames.free_run(first).unwrap();
    assert_eq!(frames.free_frames(), 80);
}
