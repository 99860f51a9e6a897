//! The promises of the magazine heap.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{
    Class, CpuCache, FRAME, FramePlatform, MAX_CLASS_SIZE, MagazineHeap, MagazineStatistics,
    NO_CACHE, Traffic,
};

use crate::layout;
use crate::shadow::{Random, Shadow};

fn alloc<P: FramePlatform>(heap: &MagazineHeap<P>, layout: Layout) -> Option<NonNull<u8>> {
    assert!(layout.size() > 0);
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { heap.alloc(layout) })
}

fn free<P: FramePlatform>(heap: &MagazineHeap<P>, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests free what they allocated, once, with the same layout; those that do otherwise do
    // it to see the heap's answer.
    unsafe { heap.dealloc(block.as_ptr(), layout) }
}

/// A machine for tests that don't care which CPU they are on.
pub trait Machine: FramePlatform + Sized {
    /// That this thread runs there.
    type Task;

    /// The part of the work that is enough: tasks that are switched all the time take long.
    const PART: usize = 1;

    fn new(frames: usize) -> Self;
    fn frames_left(&self) -> usize;
    /// Makes this thread one of the machine's, until the result is dropped. Before it uses the heap.
    fn enter(heap: &MagazineHeap<Self>) -> Self::Task;
    /// Waits for other threads, and lets them have this one's CPU.
    fn block<T>(wait: impl FnOnce() -> T) -> T;
    /// Returns whether this many pairs of an allocation and a free are enough.
    fn is_shown(&self, pairs: u64) -> bool;
    /// Drains every CPU whose thread has not. When no other thread uses the heap.
    fn drain_all(heap: &MagazineHeap<Self>);
}

impl Machine for HostedFrames {
    type Task = ();

    fn new(frames: usize) -> Self {
        Self::new(frames)
    }

    fn frames_left(&self) -> usize {
        self.frames_left()
    }

    fn enter(_heap: &MagazineHeap<Self>) {}

    fn block<T>(wait: impl FnOnce() -> T) -> T {
        wait()
    }

    fn is_shown(&self, pairs: u64) -> bool {
        pairs == 1_000_000
    }

    fn drain_all(heap: &MagazineHeap<Self>) {
        assert!(heap.drain());
    }
}

/// Makes a test of each function, for each kind of machine: threads that are CPUs, and tasks that a
/// timer switches and migrates.
macro_rules! on_all_machines {
    ($(fn $name:ident<M: Machine>() $body:block)*) => {
        $(fn $name<M: Machine>() $body)*

        mod on_threads {
            $(#[test] fn $name() { super::$name::<super::HostedFrames>(); })*
        }

        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        mod in_flagged_tasks {
            use crate::tasks::{FLAGGED, Tasks};
            $(#[test] fn $name() { super::$name::<Tasks<FLAGGED>>(); })*
        }

        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        mod in_restarted_tasks {
            use crate::tasks::{RESTARTED, Tasks};
            $(#[test] fn $name() { super::$name::<Tasks<RESTARTED>>(); })*
        }

        /// Machines that do it wrong, which some test must detect: see `mistakes_are_found`.
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        mod wrong {
            use crate::tasks::{NOT_DISABLED, NOT_RESTARTED, Tasks};

            mod not_restarted {
                $(#[test] #[ignore = "fails"] fn $name() {
                    super::super::$name::<super::Tasks<{ super::NOT_RESTARTED }>>();
                })*
            }

            mod not_disabled {
                $(#[test] #[ignore = "fails"] fn $name() {
                    super::super::$name::<super::Tasks<{ super::NOT_DISABLED }>>();
                })*
            }
        }
    };
}

/// Drains, and expects all frames back.
fn assert_all_back<M: Machine>(heap: &MagazineHeap<M>, frames: usize) {
    M::drain_all(heap);
    heap.trim();
    let totals = heap.totals();
    assert_eq!((totals.live_bytes, totals.live_blocks), (0, 0));
    assert_eq!(totals.cached_bytes, 0);
    assert_eq!(totals.frames(), 0, "{totals:?}");
    assert_eq!(heap.platform().frames_left(), frames);
}

on_all_machines! {
    fn a_block_has_one_owner<M: Machine>() {
        const THREADS: u64 = 4;
        let heap = &MagazineHeap::new(M::new(1024));
        let frames = {
            let _task = M::enter(heap);
            heap.platform().frames_left()
        };
        thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    let _task = M::enter(heap);
                    let layout = Layout::new::<[u64; 4]>();
                    let mut pair = 0;
                    while !heap.platform().is_shown(pair) {
                        pair += 1;
                        let block = alloc(heap, layout).unwrap().cast::<[u64; 4]>();
                        let mark = [thread << 32 | pair; 4];
                        // SAFETY: the block's own bytes, if it has one owner.
                        let found = unsafe {
                            block.write_volatile(mark);
                            block.read_volatile()
                        };
                        assert_eq!(found, mark);
                        free(heap, block.cast(), layout);
                    }
                    assert!(heap.drain());
                });
            }
        });
        let _task = M::enter(heap);
        assert_all_back(heap, frames);
    }

    fn impossible_layouts_get_null<M: Machine>() {
        let heap = MagazineHeap::new(M::new(256));
        let _task = M::enter(&heap);
        let frames = heap.platform().frames_left();
        for shift in 0..63 {
            let align = 1_usize << shift;
            let largest = isize::MAX as usize + 1 - align;
            for size in [largest, largest / 2 + 1, largest.saturating_sub(align) | 1] {
                if let Ok(layout) = Layout::from_size_align(size, align)
                    && layout.size() > 2 << 20
                {
                    assert_eq!(alloc(&heap, layout), None, "{layout:?}");
                }
            }
            if align > 4 << 20 {
                assert_eq!(alloc(&heap, layout(1, align)), None);
            }
        }
        assert_all_back(&heap, frames);
    }

    fn all_alignments_are_kept<M: Machine>() {
        let heap = MagazineHeap::new(M::new(4096));
        let _task = M::enter(&heap);
        let frames = heap.platform().frames_left();
        for shift in 0..=20 {
            for size in [1, 24, 100, 3000, MAX_CLASS_SIZE, 100_000] {
                let layout = layout(size, 1 << shift);
                let blocks = [alloc(&heap, layout).unwrap(), alloc(&heap, layout).unwrap()];
                for block in blocks {
                    assert_eq!(block.addr().get() % layout.align(), 0);
                    free(&heap, block, layout);
                }
            }
        }
        assert_all_back(&heap, frames);
    }

    fn exhaustion_is_null_and_uses_the_last_frame<M: Machine>() {
        for size in [16, 100, 1000, 4096, 5000, 8192] {
            let heap = MagazineHeap::new(M::new(if size < 1000 { 60 } else { 300 }));
            let _task = M::enter(&heap);
            let frames = heap.platform().frames_left();
            let mut held = Vec::new();
            for _ in 0..3 {
                let mut shadow = Shadow::new(&heap);
                while shadow.alloc(layout(size, 16)) {}
                held.push(shadow.bytes());
                shadow.free_all();
            }
            let possible = (frames * FRAME) as u64;
            // Descriptions take up to a 64th, slabs lose up to an eighth, and what a CPU caches, too, is
            // asked for before the answer is null.
            assert!(held[0] * 100 > possible * 80, "{size} {held:?}");
            assert!(held[2] * 100 > possible * 80, "{size} {held:?}");
            assert_all_back(&heap, frames);
        }
    }

    fn all_cpus_run_out_at_once_and_everything_comes_back<M: Machine>() {
        const THREADS: usize = 4;
        for size in [64, 3000, 20_000] {
            let heap = &MagazineHeap::new(M::new(1024 / M::PART));
            let _task = M::enter(heap);
            let frames = heap.platform().frames_left();
            let barrier = &Barrier::new(THREADS);
            M::block(|| thread::scope(|scope| {
                for seed in 0..THREADS {
                    scope.spawn(move || {
                        let _task = M::enter(heap);
                        let mut random = Random::new(seed as u64);
                        for _ in 0..3 {
                            M::block(|| barrier.wait());
                            let mut shadow = Shadow::new(heap);
                            while shadow.alloc(layout(1 + random.below(size) as usize, 8)) {}
                            M::block(|| barrier.wait());
                            shadow.free_all();
                            M::block(|| barrier.wait());
                            assert!(heap.drain());
                        }
                    });
                }
            }));
            assert!(heap.totals().refusals >= 3 * THREADS as u64);
            assert_all_back(heap, frames);
        }
    }

    fn threads_share_one_magazine_heap<M: Machine>() {
        const THREADS: u64 = 8;
        let steps = 4000 / M::PART;
        for machine in [700, 20_000] {
            let heap = &MagazineHeap::new(M::new(machine));
            let _task = M::enter(heap);
            let frames = heap.platform().frames_left();
            let start = &Barrier::new(THREADS as usize);
            M::block(|| thread::scope(|scope| {
                let (senders, receivers): (Vec<_>, Vec<_>) =
                    (0..THREADS).map(|_| mpsc::sync_channel(32)).unzip();
                for (seed, inbox) in receivers.into_iter().enumerate() {
                    let next = senders[(seed + 1) % senders.len()].clone();
                    scope.spawn(move || {
                        let _task = M::enter(heap);
                        let mut random = Random::new(seed as u64);
                        let mut shadow = Shadow::new(heap);
                        M::block(|| start.wait());
                        for step in 0..steps {
                            shadow.step(&mut random, &next, &inbox);
                            match step % 1000 {
                                500 => assert!(heap.drain()),
                                750 => heap.trim(),
                                _ => {}
                            }
                        }
                        shadow.free_all();
                        drop(next);
                        for block in M::block(|| inbox.into_iter().collect::<Vec<_>>()) {
                            shadow.adopt(block);
                        }
                        shadow.free_all();
                        assert!(heap.drain());
                    });
                }
                drop(senders);
            }));
            assert_all_back(heap, frames);
        }
    }

    fn blocks_freed_elsewhere_return_through_the_depot<M: Machine>() {
        let rounds = 50 / M::PART;
        const BLOCKS: usize = 1000;
        let heap = &MagazineHeap::new(M::new(1024));
        let _task = M::enter(heap);
        let frames = heap.platform().frames_left();
        let layout = layout(64, 8);
        let class = Class::of(layout).unwrap();
        M::block(|| thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(1);
            scope.spawn(move || {
                let _task = M::enter(heap);
                for _ in 0..rounds {
                    let blocks = (0..BLOCKS).map(|_| alloc(heap, layout).unwrap().as_ptr().expose_provenance());
                    sender.send(blocks.collect::<Vec<_>>()).unwrap();
                }
                assert!(heap.drain());
            });
            scope.spawn(move || {
                let _task = M::enter(heap);
                for blocks in receiver {
                    for block in blocks {
                        let block = ptr::with_exposed_provenance_mut(block);
                        free(heap, NonNull::new(block).unwrap(), layout);
                    }
                }
                // At most three batches are under way, so most blocks were used many times.
                let shared = heap.class_statistics(class);
                assert!(shared.slab_frames * FRAME / 64 < 8 * BLOCKS, "{shared:?}");
                assert!(heap.drain());
            });
        }));
        let shared = heap.class_statistics(class);
        assert!(shared.peak_used_blocks >= BLOCKS, "{shared:?}");
        // Tasks may have been on one CPU all the time.
        assert!(shared.remote_blocks > 0 || M::PART > 1, "{shared:?}");
        assert_all_back(heap, frames);
    }

    fn large_blocks_that_are_resized_where_they_are_count_like_others<M: Machine>() {
        let heap = MagazineHeap::new(M::new(4096));
        let _task = M::enter(&heap);
        for round in 1..=1000 {
            for (first, second) in [(8200, 12_000), (12_000, 8200), (40_000, 20_000)] {
                let (old, new) = (layout(first, 8), layout(second, 8));
                let block = alloc(&heap, old).unwrap();
                // SAFETY: live with this layout; the new size is not zero.
                let block = unsafe { heap.realloc(block.as_ptr(), old, second) };
                assert_eq!(traffic(&heap).live_bytes(), second as i64);
                free(&heap, NonNull::new(block).unwrap(), new);
            }
            assert_eq!(traffic(&heap).live_bytes(), 0);
            // Both only grow, and what shrank counts as freed.
            assert_eq!(
                traffic(&heap).freed_bytes,
                round * (12_000 + 12_000 + 40_000)
            );
        }
        // All of it was some CPU's.
        assert_eq!(heap.common_traffic(), Traffic::default());
    }

    fn refusals_are_the_nulls_that_were_answered<M: Machine>() {
        let heap = MagazineHeap::new(M::new(256));
        let _task = M::enter(&heap);
        let huge = layout(isize::MAX as usize - 7, 8);
        assert_eq!(alloc(&heap, huge), None);
        assert_eq!(heap.totals().refusals, 1);
        assert_eq!(alloc(&heap, layout(1, 1 << 40)), None);
        assert_eq!(heap.totals().refusals, 2);
        let small = layout(16, 8);
        let block = alloc(&heap, small).unwrap();
        // SAFETY: live with this layout, and the size isn't zero.
        assert!(unsafe { heap.realloc(block.as_ptr(), small, 1 << 30) }.is_null());
        assert_eq!(heap.totals().refusals, 3);
        free(&heap, block, small);
    }

    fn a_slab_leaves_its_description_the_frames_that_it_needs<M: Machine>() {
        // The maximum number of tables of a slab's description, when there is no other.
        const TABLES: usize = 3;
        for left in 0..16 {
            for class in Class::all() {
                let heap = MagazineHeap::new(M::new(64));
                let _task = M::enter(&heap);
                let frames = heap.platform().frames_left();
                let large = layout((frames - left) * FRAME, 8);
                let taken = alloc(&heap, large).unwrap();
                let least = class.size().div_ceil(FRAME).next_power_of_two();
                let run = heap.platform().allocate_frames(least, least);
                let fits = run.is_some_and(|run| {
                    let fits = heap.platform().frames_left() >= TABLES;
                    // SAFETY: just allocated, and used by nobody.
                    unsafe { heap.platform().free_frames(run, least) };
                    fits
                });
                let wanted = layout(class.size(), 8);
                let block = alloc(&heap, wanted);
                assert_eq!(block.is_some(), fits, "{left} frames left, {class:?}");
                if let Some(block) = block {
                    free(&heap, block, wanted);
                }
                free(&heap, taken, large);
                assert_all_back(&heap, frames);
            }
        }
    }
}

#[test]
fn every_class_is_served_from_the_cpu_once_it_is_warm() {
    let heap = MagazineHeap::new(HostedFrames::new(1024));
    let frames = heap.platform().frames_left();
    for class in Class::all() {
        let layout = layout(class.size(), 16);
        let block = alloc(&heap, layout).unwrap();
        free(&heap, block, layout);
        let before = heap.platform().cache().statistics(class);
        for _ in 0..100 {
            // The block freed last is in the caches of the CPU: it is the first to be used again.
            assert_eq!(alloc(&heap, layout), Some(block));
            free(&heap, block, layout);
        }
        let after = heap.platform().cache().statistics(class);
        assert_eq!(after.allocations, before.allocations + 100);
        assert_eq!(after.refills, before.refills);
        assert_eq!(after.flushes, before.flushes);
    }
    assert_all_back(&heap, frames);
}

#[test]
fn realloc_moves_only_between_classes() {
    let heap = MagazineHeap::new(HostedFrames::new(256));
    let frames = heap.platform().frames_left();
    let mut size = 1;
    let mut block = alloc(&heap, layout(size, 1)).unwrap();
    // SAFETY: the block has one byte.
    unsafe { block.write(0xa5) };
    for next in [16, 17, 100, 5000, 70_000, 70_100, 300, 290, 1] {
        // SAFETY: live with this layout; the new size is not zero.
        let moved = unsafe { heap.realloc(block.as_ptr(), layout(size, 1), next) };
        let moved = NonNull::new(moved).unwrap();
        let stays = match (Class::of(layout(size, 1)), Class::of(layout(next, 1))) {
            (None, None) => size.div_ceil(FRAME) == next.div_ceil(FRAME),
            (old, new) => old == new,
        };
        assert_eq!(moved == block, stays, "{size} to {next}");
        (block, size) = (moved, next);
        // SAFETY: the first byte was written, and realloc carries it over.
        assert_eq!(unsafe { block.read() }, 0xa5);
        let totals = heap.totals();
        assert_eq!((totals.live_bytes, totals.live_blocks), (next as i64, 1));
    }
    // SAFETY: as above. More than the machine has.
    let refused = unsafe { heap.realloc(block.as_ptr(), layout(size, 1), 2 << 20) };
    assert!(refused.is_null());
    // SAFETY: a failed realloc leaves the block alone.
    assert_eq!(unsafe { block.read() }, 0xa5);
    free(&heap, block, layout(size, 1));
    assert_all_back(&heap, frames);
}

#[test]
fn a_large_block_grows_where_it_is_while_the_frames_behind_it_are_free() {
    const STEP: usize = 64 << 10;

    let heap = MagazineHeap::new(HostedFrames::new(4096));
    let frames = heap.platform().frames_left();
    let mut block = alloc(&heap, layout(STEP, 1)).unwrap();
    let mut moves = 0;
    let mut grow = |block: &mut NonNull<u8>, size: usize| {
        // SAFETY: live with this layout; the new size is not zero.
        let grown = unsafe { heap.realloc(block.as_ptr(), layout(size - STEP, 1), size) };
        let grown = NonNull::new(grown).unwrap();
        moves += usize::from(grown != *block);
        *block = grown;
        // SAFETY: as long as that.
        unsafe {
            grown.add(size - 1).write(size.ilog2() as u8);
            assert_eq!(grown.add(STEP - 1).read(), 0xa5);
        }
        let totals = heap.totals();
        assert_eq!((totals.live_bytes, totals.live_blocks), (size as i64, 1));
        moves
    };
    // SAFETY: as long as that.
    unsafe { block.add(STEP - 1).write(0xa5) };
    let most = 6 << 20;
    for size in (2 * STEP..=most).step_by(STEP) {
        assert_eq!(grow(&mut block, size), 0);
    }
    // More than the machine has: it stays.
    // SAFETY: as in `grow`.
    let refused = unsafe { heap.realloc(block.as_ptr(), layout(most, 1), 4097 * FRAME) };
    assert!(refused.is_null());

    // One that has another behind it moves.
    // SAFETY: as above.
    let shrunk = unsafe { heap.realloc(block.as_ptr(), layout(most, 1), STEP) };
    assert_eq!(NonNull::new(shrunk), Some(block));
    let behind = alloc(&heap, layout(2 * FRAME + 1, 1)).unwrap();
    assert_eq!(behind.addr().get(), block.addr().get() + STEP);
    // SAFETY: as above.
    let moved = unsafe { heap.realloc(block.as_ptr(), layout(STEP, 1), 2 * STEP) };
    let moved = NonNull::new(moved).filter(|&moved| moved != block).unwrap();
    // SAFETY: as long as that.
    assert_eq!(unsafe { moved.add(STEP - 1).read() }, 0xa5);
    free(&heap, behind, layout(2 * FRAME + 1, 1));
    free(&heap, moved, layout(2 * STEP, 1));
    assert_all_back(&heap, frames);
}

#[test]
fn no_frames_and_frames_at_a_multiple_of_nothing_are_nowhere() {
    let machine = HostedFrames::new(16);
    let left = machine.frames_left();
    for (count, align) in [(0, 1), (1, 0), (0, 0)] {
        assert_eq!(machine.allocate_frames(count, align), None);
    }
    let start = machine.allocate_frames(1, 1).unwrap();
    for more in [usize::MAX, usize::MAX - 1, usize::MAX / FRAME] {
        // SAFETY: in use, given above.
        assert!(!unsafe { machine.extend_frames(start, 1, more) }, "{more}");
    }
    // SAFETY: given above, and used by nobody.
    unsafe { machine.free_frames(start, 1) };
    assert_eq!(machine.frames_left(), left);
}

/// Returns the traffic of all CPUs, and of code without a cache.
fn traffic(heap: &MagazineHeap<impl FramePlatform>) -> Traffic {
    let mut sum = heap.common_traffic();
    (heap.platform()).each_cache(&mut |cache| sum = sum + cache.traffic());
    sum
}

#[test]
fn what_cpus_count_is_together_what_is_live_whoever_frees() {
    let heap = &MagazineHeap::new(HostedFrames::new(4096));
    let (sender, receiver) = mpsc::sync_channel::<(usize, Layout)>(64);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut random = Random::new(5);
            for _ in 0..5000 {
                let layout = layout(1 + random.below(20_000) as usize, 8);
                let block = alloc(heap, layout).unwrap();
                sender
                    .send((block.expose_provenance().get(), layout))
                    .unwrap();
            }
            assert_eq!(heap.platform().cache().traffic().freed_bytes, 0);
        });
        scope.spawn(move || {
            let mut freed = 0;
            for (block, layout) in receiver {
                let block = ptr::with_exposed_provenance_mut(block);
                free(heap, NonNull::new(block).unwrap(), layout);
                freed += layout.size() as u64;
            }
            let traffic = heap.platform().cache().traffic();
            assert_eq!((traffic.allocated_bytes, traffic.freed_bytes), (0, freed));
            assert!(traffic.live_bytes() < 0);
        });
    });
    assert_eq!(traffic(heap).live_bytes(), 0);
    assert_eq!(heap.totals().live_bytes, 0);
}

#[test]
fn a_new_cache_is_empty() {
    let cache = CpuCache::default();
    assert_eq!(cache.cached_bytes(), 0);
    for class in Class::all() {
        let statistics = cache.statistics(class);
        assert_eq!(statistics, MagazineStatistics::default(), "{class:?}");
    }
}

#[test]
fn what_heaps_hold_can_be_shown() {
    let heap = MagazineHeap::new(HostedFrames::new(64));
    let layout = layout(100, 8);
    let block = alloc(&heap, layout).unwrap();
    let left = heap.platform().frames_left();
    assert!(format!("{heap:?}").contains("live_bytes: 100, live_blocks: 1,"));
    assert_eq!(
        format!("{:?}", heap.platform()),
        format!("HostedFrames {{ count: 64, free: {left}, .. }}")
    );
    let cached = heap.platform().cache().cached_bytes();
    assert_eq!(
        format!("{:?}", heap.platform().cache()),
        format!(
            "CpuCache {{ traffic: Traffic {{ allocated_bytes: 100, freed_bytes: 0 }}, \
             cached_bytes: {cached}, .. }}"
        )
    );
    assert_eq!(
        format!("{:?}", Class::of(layout).unwrap()),
        "Class(112 bytes)"
    );
    free(&heap, block, layout);
}

#[test]
#[should_panic(expected = "was freed twice")]
fn double_free_is_found_when_the_block_comes_to_its_slab() {
    let heap = MagazineHeap::new(HostedFrames::new(64));
    let layout = layout(64, 8);
    let block = alloc(&heap, layout).unwrap();
    free(&heap, block, layout);
    free(&heap, block, layout);
    heap.drain();
}

#[test]
#[should_panic(expected = "no such block is there")]
fn foreign_block_is_found() {
    let heap = MagazineHeap::new(HostedFrames::new(64));
    free(&heap, NonNull::from(&heap).cast(), layout(64, 8));
    heap.drain();
}

#[test]
#[should_panic(expected = "no such block is there")]
fn free_with_another_size_is_found() {
    let heap = MagazineHeap::new(HostedFrames::new(64));
    let block = alloc(&heap, layout(64, 8)).unwrap();
    free(&heap, block, layout(100, 8));
    heap.drain();
}

thread_local! {
    static HAS_CACHE: Cell<bool> = const { Cell::new(true) };
    static IN_HOOK: Cell<bool> = const { Cell::new(false) };
}

/// A machine that does what the test wants when the heap asks for frames or drains.
struct Scripted<F, D> {
    machine: HostedFrames,
    on_frames: F,
    on_drain: D,
}

// SAFETY: everything is `HostedFrames`', except that a CPU may say that it has no cache, which it
// has or hasn't for as long as it uses the heap.
unsafe impl<F: Fn() + Sync, D: Fn() + Sync> FramePlatform for Scripted<F, D> {
    nothing_interrupts!();

    fn cpu(&self) -> Option<usize> {
        self.machine.cpu()
    }

    fn cache(&self) -> &CpuCache {
        if HAS_CACHE.get() {
            self.machine.cache()
        } else {
            &NO_CACHE
        }
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        self.machine.each_cache(visit);
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        (self.on_frames)();
        self.machine.allocate_frames(count, align)
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        (self.on_frames)();
        // SAFETY: the caller's promise.
        unsafe { self.machine.free_frames(start, count) };
    }

    fn drain_others(&self) -> bool {
        (self.on_drain)();
        true
    }
}

#[test]
fn cpus_without_a_cache_go_to_the_slabs() {
    HAS_CACHE.set(false);
    let heap = MagazineHeap::new(Scripted {
        machine: HostedFrames::new(256),
        on_frames: || {},
        on_drain: || {},
    });
    let frames = heap.platform().machine.frames_left();
    let mut random = Random::new(1);
    let mut shadow = Shadow::new(&heap);
    for _ in 0..2000 {
        if random.below(2) == 0 {
            shadow.alloc(random.layout());
        } else {
            shadow.free_any(&mut random);
        }
        assert_eq!(heap.totals().live_bytes, shadow.bytes() as i64);
    }
    shadow.free_all();
    assert_eq!(heap.totals().cached_bytes, 0);
    heap.trim();
    assert_eq!(heap.platform().machine.frames_left(), frames);
}

type Hook = fn();
static REENTERED: MagazineHeap<Scripted<Hook, Hook>> = MagazineHeap::new(Scripted {
    machine: HostedFrames::new(2048),
    on_frames: use_the_heap,
    on_drain: || {},
});
static NESTED: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    /// The block that the hook frees next.
    static TO_FREE: Cell<Option<(NonNull<u8>, Layout)>> = const { Cell::new(None) };
}

/// Allocates and frees in the middle of a slow path, as an NMI may.
fn use_the_heap() {
    if IN_HOOK.replace(true) {
        return;
    }
    for size in [40, 64, 3000, 50_000] {
        let layout = layout(size, 8);
        if let Some(block) = alloc(&REENTERED, layout) {
            NESTED.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the block has this many bytes.
            unsafe { block.write_bytes(0xee, size) };
            if let Some((block, layout)) = TO_FREE.replace(Some((block, layout))) {
                free(&REENTERED, block, layout);
            }
        }
    }
    assert!(!REENTERED.drain());
    REENTERED.trim();
    IN_HOOK.set(false);
}

#[test]
fn platform_that_uses_the_heap_is_served_or_refused_but_never_stuck() {
    let heap = &REENTERED;
    let frames = heap.platform().machine.frames_left();
    let mut random = Random::new(7);
    let mut shadow = Shadow::new(heap);
    for _ in 0..5000 {
        if random.below(9) < 5 {
            shadow.alloc(random.layout());
        } else {
            shadow.free_any(&mut random);
        }
    }
    shadow.free_all();
    // From here on, nothing new comes in.
    IN_HOOK.set(true);
    if let Some((block, layout)) = TO_FREE.take() {
        free(heap, block, layout);
    }
    assert!(NESTED.load(Ordering::Relaxed) > 0);
    assert!(heap.totals().reentries > 0);
    assert!(heap.drain());
    heap.trim();
    assert_eq!(heap.totals().frames(), 0, "{heap:?}");
    assert_eq!(heap.platform().machine.frames_left(), frames);
}

#[test]
fn what_others_cache_is_asked_for_before_the_answer_is_null() {
    let (ask, asked) = mpsc::channel::<()>();
    let (answer, answered) = mpsc::channel::<()>();
    let answered = std::sync::Mutex::new(answered);
    let (warm, warmed) = mpsc::channel::<()>();
    let heap = &MagazineHeap::new(Scripted {
        machine: HostedFrames::new(100),
        on_frames: || {},
        on_drain: || {
            if ask.send(()).is_ok() {
                answered.lock().unwrap().recv().unwrap();
            }
        },
    });
    thread::scope(|scope| {
        scope.spawn(move || {
            let block = alloc(heap, layout(8192, 8)).unwrap();
            free(heap, block, layout(8192, 8));
            warm.send(()).unwrap();
            asked.recv().unwrap();
            assert!(heap.platform().cache().cached_bytes() > 0);
            assert!(heap.drain());
            drop(asked);
            answer.send(()).unwrap();
        });
        warmed.recv().unwrap();
        let mut shadow = Shadow::new(heap);
        while shadow.alloc(layout(FRAME, 8)) {}
        // All but the descriptions, and the frames that keep this machine's own accounts.
        assert!(shadow.bytes() >= 94 * FRAME as u64, "{heap:?}");
        shadow.free_all();
    });
}

#[test]
fn a_machine_that_no_memory_could_hold_has_no_frames() {
    for frames in [usize::MAX / FRAME + 2, usize::MAX] {
        let machine = HostedFrames::new(frames);
        assert_eq!(machine.frames_left(), 0);
        assert_eq!(machine.allocate_frames(1, 1), None);
    }
}

#[test]
fn no_block_has_two_owners_after_the_platform_has_panicked() {
    thread_local! {
        static PANICS: Cell<bool> = const { Cell::new(false) };
    }
    HAS_CACHE.set(true);
    let heap = MagazineHeap::new(Scripted {
        machine: HostedFrames::new(4096),
        on_frames: || assert!(!PANICS.replace(false), "the platform has found something"),
        on_drain: || {},
    });
    let layout = layout(64, 16);
    let blocks: Vec<_> = (0..400).map(|_| alloc(&heap, layout).unwrap()).collect();
    (blocks.into_iter()).for_each(|block| free(&heap, block, layout));
    PANICS.set(true);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| heap.drain()));
    assert!(caught.is_err());
    let mut blocks: Vec<_> = (0..2000).map(|_| alloc(&heap, layout).unwrap()).collect();
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!(blocks.len(), 2000);
}

/// A block that another thread is given.
struct Sent(NonNull<u8>);

// SAFETY: a block is memory that its holder alone may touch, whichever thread that is.
unsafe impl Send for Sent {}

/// False sharing: a CPU that is handed a block, and begins with it, would share its line for ever.
#[test]
fn a_block_that_shares_its_line_goes_back_to_its_slab_from_another_cpu() {
    for size in [8, 16, 32, 48] {
        let (heap, layout) = (MagazineHeap::new(HostedFrames::new(64)), layout(size, 8));
        let line = |block: NonNull<u8>| block.addr().get() / 64;
        let mut kept: Vec<_> = (0..16).map(|_| alloc(&heap, layout).unwrap()).collect();
        let shares = |&place: &usize| {
            let other = |other: usize| other != place && line(kept[other]) == line(kept[place]);
            (0..16).any(other)
        };
        let place = (0..16).find(shares).unwrap();
        let passed = Sent(kept.swap_remove(place));
        let lines: Vec<_> = kept.iter().map(|&block| line(block)).collect();
        let heap = &heap;
        let own = thread::scope(|scope| {
            let other = scope.spawn(move || {
                let Sent(block) = { passed };
                free(heap, block, layout);
                Sent(alloc(heap, layout).unwrap())
            });
            other.join().unwrap()
        });
        assert!(!lines.contains(&line(own.0)), "{size} bytes");
        free(heap, own.0, layout);
        kept.iter().for_each(|&block| free(heap, block, layout));
    }
}
