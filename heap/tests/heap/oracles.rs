//! Random histories of both heaps against models that say of each step how it must end: of the locked
//! heap, whether there is a gap for the block, and whether the heap may grow; of the magazine heap, on
//! CPUs that take turns, what it holds of each class, and that it is refused nothing that the machine
//! still has.

use core::alloc::{GlobalAlloc, Layout};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use muster_heap::hosted::{Growth, Hosted, HostedFrames};
use muster_heap::{
    Class, CpuCache, FRAME, FastPath, FramePlatform, Heap, MAX_CACHED, MAX_REGIONS, MagazineHeap,
    NO_CACHE, Platform,
};
use proptest::prelude::*;

use crate::oracle::oracle;
use crate::shadow::{Random, Shadow};

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc(Layout),
    AllocZeroed(Layout),
    Free,
    Realloc(usize),
    FreeAll,
    Drain,
    Trim,
}

fn size() -> impl Strategy<Value = usize> + Clone {
    // Spread over its logarithm, so that every size class occurs.
    (0..17_u32, any::<u32>()).prop_map(|(shift, any)| 1 + (any as usize % (1 << shift)))
}

fn layout() -> impl Strategy<Value = Layout> + Clone {
    let align = prop_oneof![
        6 => (0..5_u32).prop_map(|shift| 1_usize << shift),
        1 => (5..17_u32).prop_map(|shift| 1_usize << shift),
    ];
    (size(), align).prop_map(|(size, align)| Layout::from_size_align(size, align).expect("small"))
}

/// Steps, each on one of this many CPUs. Of some layouts a history has many blocks, so that magazines
/// and slabs become full.
fn steps(cpus: usize) -> impl Strategy<Value = Vec<(usize, Step)>> {
    let usual = prop::collection::vec(layout(), 1..4);
    usual
        .prop_flat_map(move |usual| {
            let usual = prop::sample::select(usual);
            let once = prop_oneof![
                6 => usual.clone().prop_map(Step::Alloc),
                4 => layout().prop_map(Step::Alloc),
                1 => layout().prop_map(Step::AllocZeroed),
                7 => Just(Step::Free),
                3 => size().prop_map(Step::Realloc),
                1 => Just(Step::FreeAll),
                1 => Just(Step::Drain),
                1 => Just(Step::Trim),
            ];
            let often = prop_oneof![4 => usual.prop_map(Step::Alloc), 3 => Just(Step::Free)];
            let steps = prop_oneof![3 => (once, Just(1)), 1 => (often, 1..80_usize)];
            prop::collection::vec((0..cpus, steps), 1..100)
        })
        .prop_map(|steps| {
            let repeated = |(cpu, (step, count))| std::iter::repeat_n((cpu, step), count);
            steps.into_iter().flat_map(repeated).collect()
        })
}

/// A machine that remembers what it gave.
struct Giving {
    memory: Hosted,
    /// The start and the end of each piece; touching ones are one.
    pieces: Mutex<Vec<(usize, usize)>>,
    asked: AtomicUsize,
    gave: AtomicUsize,
}

impl Giving {
    fn new(bytes: usize, growth: Growth) -> Self {
        Self {
            memory: Hosted::new(bytes, growth),
            pieces: Mutex::default(),
            asked: AtomicUsize::new(0),
            gave: AtomicUsize::new(0),
        }
    }

    fn growths(&self) -> (usize, usize) {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (load(&self.asked), load(&self.gave))
    }
}

// SAFETY: all is `Hosted`'s.
unsafe impl Platform for Giving {
    type InterruptGuard = ();

    fn disable_interrupts(&self) {}

    fn cpu(&self) -> Option<usize> {
        self.memory.cpu()
    }

    fn grow(&self, at_least: usize) -> Option<NonNull<[u8]>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let piece = self.memory.grow(at_least)?;
        assert!(piece.len() >= at_least);
        self.gave.fetch_add(1, Ordering::Relaxed);
        let start = piece.cast::<u8>().addr().get();
        let end = start + piece.len();
        let mut pieces = self.pieces.lock().unwrap();
        match pieces.iter_mut().find(|piece| piece.1 == start) {
            Some(piece) => piece.1 = end,
            None => pieces.push((start, end)),
        }
        Some(piece)
    }
}

/// The unit of the sizes and addresses of blocks of the locked heap.
const GRAIN: usize = 16;

/// Returns the bytes that a block takes: no other begins with the byte after it.
fn room(layout: Layout) -> usize {
    (layout.size() + 1).next_multiple_of(GRAIN)
}

/// Returns whether there is a gap for the block between those that live in one of the pieces.
fn has_gap<H: GlobalAlloc>(
    pieces: &[(usize, usize)],
    shadow: &Shadow<'_, H>,
    wanted: Layout,
) -> bool {
    let align = wanted.align().max(GRAIN);
    let size = room(wanted);
    pieces.iter().any(|&(start, end)| {
        let mut gap = start;
        let inside = shadow
            .blocks()
            .filter(|(block, _)| (start..end).contains(block));
        let taken = inside.map(|(block, layout)| (block, room(layout)));
        taken.chain([(end, 0)]).any(|(block, length)| {
            let fits = gap.next_multiple_of(align) + size <= block;
            gap = block + length;
            fits
        })
    })
}

#[derive(Clone, Copy, Debug)]
struct Start {
    pages: usize,
    growth: Growth,
    /// A boot arena of this many bytes, that many bytes after a grain's start.
    arena: Option<(usize, usize)>,
    /// Before which step the heap is opened.
    open_at: usize,
}

fn start() -> impl Strategy<Value = Start> {
    let growth = prop::sample::select(&[Growth::Contiguous, Growth::Scattered][..]);
    let arena = prop::option::of((64..20_000_usize, 0..GRAIN));
    (1..256_usize, growth, arena, 0..60_usize).prop_map(|(pages, growth, arena, open_at)| Start {
        pages,
        growth,
        arena,
        open_at,
    })
}

/// How an allocation must end: with a block, and whether the machine is asked for memory.
struct Expected {
    is_served: Option<bool>,
    asks: bool,
}

fn expected<H: GlobalAlloc>(
    heap: &Heap<Giving>,
    arena: Option<(usize, usize)>,
    is_open: bool,
    shadow: &Shadow<'_, H>,
    wanted: Layout,
) -> Expected {
    let pieces = heap.platform().pieces.lock().unwrap();
    if !is_open {
        let is_served = Some(has_gap(arena.as_slice(), shadow, wanted));
        return Expected {
            is_served,
            asks: false,
        };
    }
    if has_gap(&pieces, shadow, wanted) {
        return Expected {
            is_served: Some(true),
            asks: false,
        };
    }
    let asks = pieces.len() < MAX_REGIONS;
    Expected {
        // It depends on the machine.
        is_served: (!asks).then_some(false),
        asks,
    }
}

fn check_heap(
    start: Start,
    steps: Vec<(usize, Step)>,
    seed: u64,
    refused: &Cell<u64>,
) -> Result<usize, TestCaseError> {
    let count = steps.len();
    let heap = Heap::new(Giving::new(start.pages * FRAME, start.growth));
    let mut arena = None;
    if let Some((bytes, skew)) = start.arena {
        let memory = vec![MaybeUninit::<u128>::uninit(); bytes.div_ceil(GRAIN) + 1].leak();
        let first = memory.as_ptr().addr() + skew;
        // SAFETY: bytes of the memory that was just leaked, whatever they are.
        let memory = unsafe {
            core::slice::from_raw_parts_mut(
                memory.as_mut_ptr().cast::<u8>().add(skew).cast(),
                bytes,
            )
        };
        heap.start_boot(memory).unwrap();
        let end = (first + bytes) / GRAIN * GRAIN;
        arena = Some((first.next_multiple_of(GRAIN), end));
    }
    let arena_bytes = arena.map_or(0, |(start, end)| end - start) as u64;

    let mut random = Random::new(seed);
    let mut shadow = Shadow::new(&heap);
    let (mut refusals, mut peak, mut allocated) = (0, 0, 0);
    for (number, (_, step)) in steps.into_iter().enumerate() {
        let is_open = number >= start.open_at;
        if number == start.open_at {
            heap.open();
        }
        let picked = shadow.any(&mut random);
        let wanted = match (step, picked) {
            (Step::Alloc(layout) | Step::AllocZeroed(layout), _) => Some(layout),
            (Step::Realloc(size), Some((_, layout))) => {
                Some(Layout::from_size_align(size, layout.align()).unwrap())
            }
            _ => None,
        };
        let expected = wanted.map(|wanted| expected(&heap, arena, is_open, &shadow, wanted));
        let (asked, gave) = heap.platform().growths();
        let live = shadow.bytes();
        let is_served = match (step, picked) {
            (Step::Alloc(layout), _) => shadow.alloc(layout),
            (Step::AllocZeroed(layout), _) => shadow.alloc_zeroed(layout),
            (Step::Realloc(size), Some((block, _))) => shadow.realloc(block, size),
            (Step::Free, Some((block, _))) => {
                shadow.free(block);
                true
            }
            (Step::FreeAll, _) => {
                shadow.free_all();
                true
            }
            _ => true,
        };
        let (now_asked, now_gave) = heap.platform().growths();
        if let (
            Some(Expected {
                is_served: served,
                asks,
            }),
            Some(wanted),
        ) = (expected, wanted)
        {
            prop_assert_eq!(now_asked > asked, asks, "for {:?}", wanted);
            let served = served.unwrap_or(now_gave > gave);
            prop_assert_eq!(is_served, served, "{:?}", wanted);
            if served {
                // A realloc holds two blocks for an instant.
                peak = peak.max(live + wanted.size() as u64);
                allocated += wanted.size() as u64;
            } else {
                refusals += 1;
            }
        }

        let statistics = heap.statistics();
        let in_arena =
            |block: usize| arena.is_some_and(|(start, end)| (start..end).contains(&block));
        let boot: usize = (shadow.blocks())
            .filter(|(block, _)| in_arena(*block))
            .map(|(_, layout)| layout.size())
            .sum();
        let pieces = heap.platform().pieces.lock().unwrap();
        let given: usize = pieces.iter().map(|(start, end)| end - start).sum();
        prop_assert_eq!(statistics.live_blocks, shadow.len() as u64);
        prop_assert_eq!(statistics.live_bytes, shadow.bytes());
        prop_assert_eq!(statistics.boot_live_bytes, boot as u64);
        prop_assert_eq!(statistics.refusals, refusals);
        prop_assert_eq!(statistics.peak_live_bytes, peak);
        prop_assert_eq!(statistics.allocated_bytes, allocated);
        prop_assert_eq!(statistics.growths, now_gave as u64);
        prop_assert_eq!(statistics.capacity_bytes, arena_bytes + given as u64);
    }
    shadow.free_all();
    prop_assert_eq!(heap.statistics().live_bytes, 0);
    prop_assert_eq!(heap.statistics().live_blocks, 0);
    refused.set(refused.get() + refusals);
    Ok(count)
}

#[test]
fn the_locked_heap_does_as_the_model_says() {
    let values = (start(), steps(1), any::<u64>());
    let refused = Cell::new(0);
    oracle("the locked heap", 128, values, |(start, steps, seed)| {
        check_heap(start, steps, seed, &refused)
    });
    assert!(refused.get() > 0, "memory never ran out");
}

/// CPUs that have a cache; one more, the last, has neither that nor a number.
const CPUS: usize = 3;

/// A machine whose CPUs take turns on one thread.
struct Turns<const FLAGGED: bool> {
    machine: HostedFrames,
    caches: [CpuCache; CPUS],
    /// The thread that has the turn.
    turn: AtomicUsize,
    heap: Weak<MagazineHeap<Self>>,
}

impl<const FLAGGED: bool> Turns<FLAGGED> {
    fn heap(frames: usize) -> Arc<MagazineHeap<Self>> {
        Arc::new_cyclic(|heap| {
            MagazineHeap::new(Self {
                machine: HostedFrames::new(frames),
                caches: [const { CpuCache::new() }; CPUS],
                turn: AtomicUsize::new(0),
                heap: heap.clone(),
            })
        })
    }

    /// Does something on a CPU.
    fn on<T>(&self, cpu: usize, work: impl FnOnce() -> T) -> T {
        let before = self.turn.swap(cpu, Ordering::Relaxed);
        let result = work();
        self.turn.store(before, Ordering::Relaxed);
        result
    }

    /// Returns whether this many frames could be had, aligned so, and then some single ones.
    fn could_give(&self, count: usize, align: usize, more: usize) -> bool {
        let Some(run) = self.machine.allocate_frames(count, align) else {
            return false;
        };
        let singles: Vec<_> = (0..more)
            .map_while(|_| self.machine.allocate_frames(1, 1))
            .collect();
        let could = singles.len() == more;
        for (start, count) in singles
            .into_iter()
            .map(|start| (start, 1))
            .chain([(run, count)])
        {
            // SAFETY: just allocated, and used by nobody.
            unsafe { self.machine.free_frames(start, count) };
        }
        could
    }
}

// SAFETY: (1) One thread does one thing after another. (2), (3) Each CPU has its own cache, and a
// number if it has one. (4), (6) Nothing interrupts it. (5) As `HostedFrames`.
unsafe impl<const FLAGGED: bool> FramePlatform for Turns<FLAGGED> {
    const FAST_PATH: FastPath = if FLAGGED {
        FastPath::Flagged
    } else {
        FastPath::Uninterrupted
    };

    nothing_interrupts!();

    fn cpu(&self) -> Option<usize> {
        Some(self.turn.load(Ordering::Relaxed)).filter(|cpu| *cpu < CPUS)
    }

    fn cache(&self) -> &CpuCache {
        let turn = self.turn.load(Ordering::Relaxed);
        self.caches.get(turn).unwrap_or(&NO_CACHE)
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        self.caches.iter().for_each(visit);
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        self.machine.allocate_frames(count, align)
    }

    unsafe fn extend_frames(&self, start: NonNull<u8>, count: usize, more: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.machine.extend_frames(start, count, more) }
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.machine.free_frames(start, count) };
    }

    fn drain_others(&self) -> bool {
        let own = self.turn.load(Ordering::Relaxed);
        let Some(heap) = self.heap.upgrade() else {
            return true;
        };
        for cpu in (0..CPUS).filter(|cpu| *cpu != own) {
            assert!(self.on(cpu, || heap.drain()));
        }
        true
    }
}

/// Returns whether the machine still has what it takes to serve this, once all that CPUs and depots
/// cached has been given back.
fn is_there_room<const FLAGGED: bool>(machine: &Turns<FLAGGED>, wanted: Layout) -> bool {
    match Class::of(wanted) {
        // The least slab, and three frames, which is what it may take to describe it.
        Some(class) => {
            let least = class.size().div_ceil(FRAME).next_power_of_two();
            machine.could_give(least, least, 3)
        }
        None => {
            let align = wanted.align().div_ceil(FRAME);
            machine.could_give(wanted.size().div_ceil(FRAME), align, 0)
        }
    }
}

fn check_magazines<const FLAGGED: bool>(
    pages: usize,
    steps: Vec<(usize, Step)>,
    seed: u64,
    refused: &Cell<u64>,
) -> Result<usize, TestCaseError> {
    let count = steps.len();
    let heap = Turns::<FLAGGED>::heap(pages);
    let machine = heap.platform();
    let frames = machine.machine.frames_left();
    let mut random = Random::new(seed);
    let mut shadow = Shadow::new(&*heap);
    let mut refusals = 0;
    for (number, (cpu, step)) in steps.into_iter().enumerate() {
        let picked = shadow.any(&mut random);
        let (wanted, is_served) = machine.on(cpu, || match (step, picked) {
            (Step::Alloc(layout), _) => (Some(layout), shadow.alloc(layout)),
            (Step::AllocZeroed(layout), _) => (Some(layout), shadow.alloc_zeroed(layout)),
            (Step::Realloc(size), Some((block, layout))) => {
                let wanted = Layout::from_size_align(size, layout.align()).unwrap();
                (Some(wanted), shadow.realloc(block, size))
            }
            (Step::Free, Some((block, _))) => {
                shadow.free(block);
                (None, true)
            }
            (Step::FreeAll, _) => {
                shadow.free_all();
                (None, true)
            }
            (Step::Drain, _) => (None, heap.drain()),
            (Step::Trim, _) => {
                heap.trim();
                (None, true)
            }
            (Step::Realloc(_) | Step::Free, None) => (None, true),
        });
        let totals = heap.totals();
        if let Some(wanted) = wanted.filter(|_| !is_served) {
            refusals += 1;
            let shrinks_from = match (step, picked) {
                (Step::Realloc(size), Some((_, old))) if size <= old.size() => Some(old),
                _ => None,
            };
            match shrinks_from {
                None => {
                    prop_assert_eq!(totals.cached_bytes, 0, "cached, but {:?} refused", wanted);
                    prop_assert!(!is_there_room(machine, wanted), "{:?}: {:?}", wanted, heap);
                }
                // Nothing is missing but the description of a first slab.
                Some(old) => {
                    let given_back = old.size().div_ceil(FRAME) - wanted.size().div_ceil(FRAME);
                    prop_assert!(Class::of(old).is_none() && Class::of(wanted).is_some());
                    prop_assert!(given_back + machine.machine.frames_left() < 3);
                }
            }
        } else {
            prop_assert!(is_served, "a drain was refused");
        }

        prop_assert_eq!(totals.live_blocks, shadow.len() as i64);
        prop_assert_eq!(totals.live_bytes, shadow.bytes() as i64);
        prop_assert_eq!(totals.refusals, refusals);
        prop_assert_eq!(totals.frames() + machine.machine.frames_left(), frames);
        let large = shadow
            .blocks()
            .filter(|(_, layout)| Class::of(*layout).is_none());
        let large: usize = large.map(|(_, layout)| layout.size().div_ceil(FRAME)).sum();
        let kept: usize = machine
            .caches
            .iter()
            .map(CpuCache::cached_large_bytes)
            .sum();
        prop_assert_eq!(totals.large_frames, large + kept / FRAME);
        for cache in &machine.caches {
            prop_assert!(cache.cached_bytes() <= MAX_CACHED);
        }
        if matches!(step, Step::Drain) && cpu < CPUS {
            prop_assert_eq!(machine.caches[cpu].cached_bytes(), 0);
        }
        // In a debug build, going through all classes takes its time.
        if number.is_multiple_of(8) {
            check_classes(&heap, &shadow)?;
        }
    }
    shadow.free_all();
    for cpu in 0..=CPUS {
        prop_assert!(machine.on(cpu, || heap.drain()));
    }
    heap.trim();
    prop_assert_eq!(heap.totals().frames(), 0);
    prop_assert_eq!(machine.machine.frames_left(), frames);
    refused.set(refused.get() + refusals);
    Ok(count)
}

/// Checks that each used block of all classes is live, in a cache or in a depot, and that the blocks of
/// each class fit in its slabs. Not of each class what is used is there as one of that class: a block
/// that shrank where it was is not.
fn check_classes<const FLAGGED: bool>(
    heap: &MagazineHeap<Turns<FLAGGED>>,
    shadow: &Shadow<'_, MagazineHeap<Turns<FLAGGED>>>,
) -> Result<(), TestCaseError> {
    let is_small = |(_, layout): &(usize, Layout)| Class::of(*layout).is_some();
    let live = shadow.blocks().filter(is_small).count();
    let (mut slab_frames, mut cached_bytes, mut used, mut idle_blocks) = (0, 0, 0, 0);
    for class in Class::all() {
        let shared = heap.class_statistics(class);
        let caches = heap.platform().caches.iter();
        let cached: usize = caches
            .map(|cache| cache.statistics(class).cached_blocks)
            .sum();
        let idle = cached + shared.depot_blocks;
        used += shared.used_blocks;
        idle_blocks += idle;
        prop_assert!(shared.used_blocks <= shared.peak_used_blocks);
        prop_assert!(shared.used_blocks * class.size() <= shared.slab_frames * FRAME);
        slab_frames += shared.slab_frames;
        cached_bytes += idle * class.size();
    }
    prop_assert_eq!(used, live + idle_blocks);
    let totals = heap.totals();
    prop_assert_eq!(totals.slab_frames, slab_frames);
    let large = heap
        .platform()
        .caches
        .iter()
        .map(CpuCache::cached_large_bytes);
    prop_assert_eq!(totals.cached_bytes, cached_bytes + large.sum::<usize>());
    Ok(())
}

#[test]
fn the_magazine_heap_does_as_the_model_says() {
    let values = || (1_usize..400, steps(CPUS + 1), any::<u64>());
    let refused = Cell::new(0);
    oracle("the magazine heap", 96, values(), |(pages, steps, seed)| {
        check_magazines::<false>(pages, steps, seed, &refused)
    });
    oracle(
        "the magazine heap, flagged",
        96,
        values(),
        |(pages, steps, seed)| check_magazines::<true>(pages, steps, seed, &refused),
    );
    assert!(refused.get() > 0, "memory never ran out");
}
