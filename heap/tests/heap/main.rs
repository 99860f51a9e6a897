//! The promises of a heap, on machines that grow contiguously, in scattered pieces, or badly.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, not only tests"
)]

use core::alloc::{GlobalAlloc, Layout};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use muster_heap::hosted::{Growth, Hosted};
use muster_heap::{Heap, MAX_REGIONS, Platform, StartError};

/// The guards of a machine whose CPUs nothing interrupts, and where nothing is preempted.
macro_rules! nothing_interrupts {
    () => {
        type NoPreempt = ();
        type InterruptGuard = ();

        fn disable_preemption(&self) {}

        fn disable_interrupts(&self) {}
    };
}

/// The methods that a machine around `HostedFrames` leaves to that field: its CPUs and their caches.
macro_rules! hosted_cpus {
    ($machine:tt) => {
        fn cpu(&self) -> Option<usize> {
            self.$machine.cpu()
        }

        fn cache(&self) -> &CpuCache {
            self.$machine.cache()
        }

        fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
            self.$machine.each_cache(visit);
        }
    };
}

/// The same, and its frames.
macro_rules! hosted_frames {
    () => {
        hosted_cpus!(0);

        fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
            self.0.allocate_frames(count, align)
        }

        unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
            // SAFETY: the caller's promise.
            unsafe { self.0.free_frames(start, count) };
        }
    };
}

/// The one CPU of a machine, which nothing interrupts.
#[cfg(target_os = "linux")]
macro_rules! one_cpu {
    () => {
        nothing_interrupts!();

        fn cpu(&self) -> Option<usize> {
            Some(0)
        }

        fn cache(&self) -> &CpuCache {
            &self.cache
        }

        fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
            visit(&self.cache);
        }
    };
}

mod checked;
mod hands;
mod histories;
mod interrupts;
mod large;
mod magazines;
#[path = "../../../frames/tests/frames/oracle.rs"]
mod oracle;
mod oracles;
#[cfg(target_os = "linux")]
mod places;
#[cfg(target_os = "linux")]
mod regions;
mod relief;
#[cfg(target_os = "linux")]
mod scattered;
mod shadow;
mod shrinking;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod steps;
mod stretches;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tasks;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod unregistered;
mod waiting;
use shadow::{Random, Shadow};

const GROWTHS: [Growth; 2] = [Growth::Contiguous, Growth::Scattered];

fn arena(bytes: usize) -> &'static mut [MaybeUninit<u8>] {
    Box::leak(vec![MaybeUninit::uninit(); bytes].into_boxed_slice())
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

fn alloc<P: Platform>(heap: &Heap<P>, layout: Layout) -> Option<NonNull<u8>> {
    assert!(layout.size() > 0);
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { heap.alloc(layout) })
}

fn free<P: Platform>(heap: &Heap<P>, block: NonNull<u8>, layout: Layout) {
    // SAFETY: every test here frees what it allocated, once, with the same layout.
    unsafe { heap.dealloc(block.as_ptr(), layout) }
}

fn open_heap(bytes: usize, growth: Growth) -> Heap<Hosted> {
    let heap = Heap::new(Hosted::new(bytes, growth));
    heap.open();
    heap
}

#[test]
fn nothing_before_the_boot_arena_and_never_more_than_it_before_open() {
    let heap = Heap::new(Hosted::new(1 << 20, Growth::Contiguous));
    assert_eq!(alloc(&heap, layout(1, 1)), None);
    heap.start_boot(arena(4096)).unwrap();
    let block = alloc(&heap, layout(100, 8)).unwrap();
    assert_eq!(alloc(&heap, layout(4096, 8)), None);
    let statistics = heap.statistics();
    assert_eq!(statistics.live_bytes, 100);
    assert_eq!(statistics.boot_live_bytes, 100);
    assert_eq!(statistics.capacity_bytes, 4096);
    assert_eq!(statistics.growths, 0);
    assert_eq!(statistics.refusals, 2);
    free(&heap, block, layout(100, 8));
}

#[test]
fn boot_blocks_outlive_open_and_go_back_where_they_belong() {
    let heap = Heap::new(Hosted::new(1 << 20, Growth::Contiguous));
    heap.start_boot(arena(4096)).unwrap();
    let early = alloc(&heap, layout(1000, 8)).unwrap();
    heap.open();
    let late = alloc(&heap, layout(1000, 8)).unwrap();
    let statistics = heap.statistics();
    assert_eq!(
        (statistics.live_bytes, statistics.boot_live_bytes),
        (2000, 1000)
    );
    assert_eq!((statistics.live_blocks, statistics.growths), (2, 1));
    free(&heap, early, layout(1000, 8));
    assert_eq!(heap.statistics().boot_live_bytes, 0);
    free(&heap, late, layout(1000, 8));
    let statistics = heap.statistics();
    assert_eq!((statistics.live_bytes, statistics.live_blocks), (0, 0));
    assert_eq!(statistics.peak_live_bytes, 2000);
    let traffic = statistics.traffic();
    assert_eq!((traffic.allocated_bytes, traffic.freed_bytes), (2000, 2000));
}

#[test]
fn second_and_tiny_arenas_are_rejected() {
    let heap = Heap::new(Hosted::new(1 << 20, Growth::Contiguous));
    assert!(matches!(
        heap.start_boot(arena(8)),
        Err(StartError::ArenaTooSmall { bytes: 8, .. })
    ));
    heap.start_boot(arena(4096)).unwrap();
    assert_eq!(
        heap.start_boot(arena(4096)),
        Err(StartError::AlreadyStarted)
    );
}

#[test]
fn smallest_arena_works_wherever_it_starts() {
    let Err(StartError::ArenaTooSmall { min, .. }) =
        Heap::new(Hosted::new(0, Growth::Contiguous)).start_boot(arena(0))
    else {
        panic!("an empty arena was accepted");
    };
    for offset in 0..16 {
        let heap = Heap::new(Hosted::new(0, Growth::Contiguous));
        heap.start_boot(&mut arena(64)[offset..][..min]).unwrap();
        let block = alloc(&heap, layout(16, 16)).unwrap();
        free(&heap, block, layout(16, 16));
    }
}

#[test]
fn impossible_layouts_get_null() {
    for growth in GROWTHS {
        let heap = open_heap(1 << 20, growth);
        let kept = alloc(&heap, layout(64, 8)).unwrap();
        for shift in 0..63 {
            let align = 1_usize << shift;
            let largest = isize::MAX as usize + 1 - align;
            for size in [largest, largest / 2 + 1, largest.saturating_sub(align) | 1] {
                let Ok(layout) = Layout::from_size_align(size, align) else {
                    continue;
                };
                if (2 << 20..).contains(&layout.size()) {
                    assert_eq!(alloc(&heap, layout), None, "{layout:?}");
                }
            }
            if align > 4 << 20 {
                assert_eq!(alloc(&heap, layout(1, align)), None);
            }
        }
        free(&heap, kept, layout(64, 8));
        assert_eq!(heap.statistics().live_bytes, 0);
    }
}

#[test]
fn alignment_beyond_a_page_makes_the_heap_grow_enough() {
    for growth in GROWTHS {
        for shift in 0..=20 {
            let heap = open_heap(8 << 20, growth);
            let layout = layout(24, 1 << shift);
            let blocks = [alloc(&heap, layout).unwrap(), alloc(&heap, layout).unwrap()];
            for block in blocks {
                assert_eq!(block.addr().get() % layout.align(), 0);
                free(&heap, block, layout);
            }
        }
    }
}

#[test]
fn contiguous_growth_is_one_region() {
    let heap = open_heap(1 << 20, Growth::Contiguous);
    let step = layout(3000, 8);
    let mut blocks = Vec::new();
    while let Some(block) = alloc(&heap, step) {
        blocks.push(block);
    }
    assert!(heap.statistics().growths > MAX_REGIONS as u64);
    for block in blocks {
        free(&heap, block, step);
    }
    // Only if all pieces have become one is there room for this.
    let whole = layout(heap.statistics().capacity_bytes as usize - 1, 8);
    let block = alloc(&heap, whole).unwrap();
    free(&heap, block, whole);
}

#[test]
fn scattered_growth_stops_at_the_most_regions() {
    let heap = open_heap(64 << 20, Growth::Scattered);
    let step = layout(4000, 8);
    let mut blocks = Vec::new();
    while let Some(block) = alloc(&heap, step) {
        blocks.push(block);
    }
    assert_eq!(heap.statistics().growths, MAX_REGIONS as u64);
    for block in blocks {
        free(&heap, block, step);
    }
    assert_eq!(heap.statistics().live_blocks, 0);
}

#[test]
fn a_byte_past_a_block_leads_nowhere() {
    for growth in GROWTHS {
        let heap = open_heap(1 << 20, growth);
        let mut random = Random::new(11);
        let mut live = Vec::new();
        for round in 0..4000_usize {
            let layout = layout(1 + random.below(200) as usize, 8);
            if let Some(block) = alloc(&heap, layout) {
                // SAFETY: the block's own bytes, and one more, which this is about.
                unsafe { block.write_bytes(round as u8, layout.size() + 1) };
                live.push((block, layout, round as u8));
            }
            // Holes of all sizes behind blocks that are written past.
            if round % 3 != 0 {
                let victim = random.below(live.len() as u64) as usize;
                let (block, layout, byte) = live.swap_remove(victim);
                // SAFETY: the block's own bytes.
                let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), layout.size()) };
                assert!(bytes.iter().all(|&found| found == byte));
                free(&heap, block, layout);
            }
            for &(block, layout, byte) in &live {
                // SAFETY: as above.
                unsafe {
                    block
                        .add(layout.size())
                        .write(byte.wrapping_add(round as u8))
                };
            }
        }
        for (block, layout, _) in live {
            free(&heap, block, layout);
        }
        assert_eq!(heap.statistics().live_blocks, 0);
        if growth == Growth::Contiguous {
            // Only if all holes have become one is there room for this.
            let whole = layout(heap.statistics().capacity_bytes as usize - 1, 8);
            assert!(alloc(&heap, whole).is_some());
        }
    }
}

#[test]
fn exhaustion_is_null_and_recovery_is_full() {
    for growth in GROWTHS {
        let heap = open_heap(1 << 20, growth);
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut shadow = Shadow::new(&heap);
            while shadow.alloc(layout(16 << 10, 16)) {}
            while shadow.alloc(layout(64, 8)) {}
            held.push(shadow.bytes());
            shadow.free_all();
            assert_eq!(heap.statistics().live_bytes, 0);
            assert_eq!(heap.statistics().live_blocks, 0);
        }
        // The first round grows piece by piece, which may leave gaps that the others don't have.
        assert!(held[0] <= held[1], "{growth:?} {held:?}");
        assert_eq!(held[1], held[2], "{growth:?}");
        assert!(
            held[0] * 100 > heap.statistics().capacity_bytes * 95,
            "{growth:?} {held:?}"
        );
        let statistics = heap.statistics();
        assert!(statistics.refusals >= 6);
        assert!(statistics.capacity_bytes <= 1 << 20);
    }
}

#[test]
fn realloc_keeps_contents_and_accounts() {
    let heap = open_heap(1 << 20, Growth::Contiguous);
    let mut size = 1;
    let mut block = alloc(&heap, layout(size, 1)).unwrap();
    // SAFETY: the block has one byte.
    unsafe { block.write(0xa5) };
    for next in [7, 100, 5000, 70_000, 300, 1] {
        // SAFETY: live with this layout; the new size is not zero.
        let moved = unsafe { heap.realloc(block.as_ptr(), layout(size, 1), next) };
        block = NonNull::new(moved).unwrap();
        size = next;
        // SAFETY: the first byte was written, and realloc carries it over.
        assert_eq!(unsafe { block.read() }, 0xa5);
        assert_eq!(heap.statistics().live_bytes, next as u64);
        assert_eq!(heap.statistics().live_blocks, 1);
    }
    // SAFETY: as above. More than the machine has.
    let refused = unsafe { heap.realloc(block.as_ptr(), layout(size, 1), 2 << 20) };
    assert!(refused.is_null());
    // SAFETY: a failed realloc leaves the block alone.
    assert_eq!(unsafe { block.read() }, 0xa5);
    free(&heap, block, layout(size, 1));
    assert_eq!(heap.statistics().live_bytes, 0);
}

#[test]
fn zeroed_memory_is_zero_even_where_it_was_used_before() {
    let heap = open_heap(1 << 20, Growth::Contiguous);
    let layout = layout(10_000, 8);
    let block = alloc(&heap, layout).unwrap();
    // SAFETY: the block has that many bytes.
    unsafe { block.write_bytes(0xff, layout.size()) };
    free(&heap, block, layout);
    // SAFETY: the size is not zero.
    let block = NonNull::new(unsafe { heap.alloc_zeroed(layout) }).unwrap();
    // SAFETY: all of it was just written.
    let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), layout.size()) };
    assert!(bytes.iter().all(|&byte| byte == 0));
    free(&heap, block, layout);
}

#[test]
#[should_panic(expected = "does not lie in the heap")]
fn foreign_block_is_named_when_freed() {
    let heap = open_heap(1 << 20, Growth::Contiguous);
    free(&heap, NonNull::dangling(), layout(8, 8));
}

thread_local! {
    static CPU: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A platform whose growth does what the test wants, on a CPU of the test's choice.
struct Scripted<G> {
    memory: Hosted,
    in_growth: G,
}

// SAFETY: tests give each thread another CPU number; the rest is `Hosted`'s.
unsafe impl<G: Fn() + Sync> Platform for Scripted<G> {
    type InterruptGuard = ();

    fn disable_interrupts(&self) {}

    fn cpu(&self) -> Option<usize> {
        CPU.get()
    }

    fn grow(&self, at_least: usize) -> Option<NonNull<[u8]>> {
        (self.in_growth)();
        self.memory.grow(at_least)
    }
}

static RECURSIVE: Heap<Scripted<fn()>> = Heap::new(Scripted {
    memory: Hosted::new(1 << 20, Growth::Contiguous),
    in_growth: grow_by_allocating,
});
static NESTED_NULLS: AtomicUsize = AtomicUsize::new(0);

fn grow_by_allocating() {
    let small = layout(8, 8);
    assert!(CPU.get().is_none() || RECURSIVE.is_held_here());
    if let Some(block) = alloc(&RECURSIVE, small) {
        free(&RECURSIVE, block, small);
    } else {
        NESTED_NULLS.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn allocating_while_growing_gets_null_and_no_deadlock() {
    RECURSIVE.open();
    let mut blocks = Vec::new();
    for (cpu, size) in [(Some(0), 1000), (None, 200_000), (Some(7), 300_000)] {
        CPU.set(cpu);
        blocks.push((alloc(&RECURSIVE, layout(size, 8)).unwrap(), layout(size, 8)));
    }
    // The nameless CPU found a free block; the others were refused though there was one, too.
    assert_eq!(NESTED_NULLS.load(Ordering::Relaxed), 2);
    assert_eq!(RECURSIVE.statistics().refusals, 2);
    for (block, layout) in blocks {
        free(&RECURSIVE, block, layout);
    }
    assert_eq!(RECURSIVE.statistics().live_bytes, 0);
}

static FREEING: Heap<Scripted<fn()>> = Heap::new(Scripted {
    memory: Hosted::new(1 << 20, Growth::Contiguous),
    in_growth: grow_by_freeing,
});
thread_local! {
    static TO_FREE: Cell<Option<NonNull<u8>>> = const { Cell::new(None) };
}

fn grow_by_freeing() {
    if let Some(block) = TO_FREE.take() {
        free(&FREEING, block, layout(40, 8));
    }
}

#[test]
fn freeing_while_growing_works() {
    CPU.set(Some(0));
    FREEING.open();
    TO_FREE.set(alloc(&FREEING, layout(40, 8)));
    let block = alloc(&FREEING, layout(100_000, 8)).unwrap();
    assert_eq!(FREEING.statistics().live_bytes, 100_000);
    free(&FREEING, block, layout(100_000, 8));
}

#[test]
fn other_cpus_free_and_allocate_while_one_grows() {
    let at_growth = Barrier::new(2);
    let leave_growth = Barrier::new(2);
    thread_local! {
        static SLOW: Cell<bool> = const { Cell::new(false) };
    }
    let heap = Heap::new(Scripted {
        memory: Hosted::new(1 << 20, Growth::Contiguous),
        in_growth: || {
            if SLOW.get() {
                at_growth.wait();
                leave_growth.wait();
            }
        },
    });
    CPU.set(Some(0));
    heap.open();
    let small = layout(100, 8);
    let block = alloc(&heap, small).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            CPU.set(Some(1));
            SLOW.set(true);
            let large = layout(100_000, 8);
            let block = alloc(&heap, large).unwrap();
            free(&heap, block, large);
        });
        at_growth.wait();
        free(&heap, block, small);
        let block = alloc(&heap, small).unwrap();
        free(&heap, block, small);
        // A CPU without a number can't tell whether it waits for itself, so it doesn't wait.
        CPU.set(None);
        assert_eq!(alloc(&heap, layout(200_000, 8)), None);
        leave_growth.wait();
    });
    assert_eq!(heap.statistics().live_bytes, 0);
}

#[test]
fn threads_share_one_heap() {
    const THREADS: u64 = 8;
    const STEPS: usize = 3000;
    for growth in GROWTHS {
        // Little enough for refusals to happen, too.
        let heap = open_heap(2 << 20, growth);
        let heap = &heap;
        let start = &Barrier::new(THREADS as usize);
        thread::scope(|scope| {
            let (senders, receivers): (Vec<_>, Vec<_>) =
                (0..THREADS).map(|_| mpsc::sync_channel(32)).unzip();
            for (seed, inbox) in receivers.into_iter().enumerate() {
                let next = senders[(seed + 1) % senders.len()].clone();
                scope.spawn(move || {
                    let mut random = Random::new(seed as u64);
                    let mut shadow = Shadow::new(heap);
                    start.wait();
                    for _ in 0..STEPS {
                        shadow.step(&mut random, &next, &inbox);
                    }
                    shadow.free_all();
                    drop(next);
                    for block in inbox {
                        shadow.adopt(block);
                    }
                    shadow.free_all();
                });
            }
            drop(senders);
        });
        let statistics = heap.statistics();
        assert_eq!((statistics.live_bytes, statistics.live_blocks), (0, 0));
        assert!(statistics.peak_live_bytes <= statistics.capacity_bytes);
    }
}
