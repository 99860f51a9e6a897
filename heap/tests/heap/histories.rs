//! One thread that plays all CPUs, so that everything happens in an order that can be repeated: CPUs
//! that interrupt each other inside the heap, a platform that uses the heap, and memory that is out at
//! whichever moment.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use muster_heap::hosted::HostedFrames;
use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap, NO_CACHE};

use crate::layout;
use crate::shadow::Random;

type Heap = MagazineHeap<Machine>;

/// CPUs that have a cache. The one after the last has none.
const CPUS: usize = 3;

struct Machine {
    machine: HostedFrames,
    caches: [CpuCache; CPUS],
    current: AtomicUsize,
    /// The heap on this machine, if the other CPUs drain when they are asked.
    drained: AtomicPtr<Heap>,
    calls: AtomicUsize,
    /// The call for frames that is refused, counted from 1.
    refused: AtomicUsize,
    /// Whether no CPU can ask the others to drain now.
    is_held_up: AtomicBool,
}

type Interruption = Box<dyn FnMut()>;

thread_local! {
    /// The interruption that happens where the heap calls the platform.
    static INTERRUPTION: RefCell<Option<Interruption>> = const { RefCell::new(None) };
    /// The action of other CPUs, once, when they have drained for one.
    static AFTER_DRAIN: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
}

/// Not within itself.
fn interrupt() {
    if let Some(mut happens) = INTERRUPTION.take() {
        happens();
        INTERRUPTION.with_borrow_mut(|place| _ = place.get_or_insert(happens));
    }
}

impl Machine {
    fn is_on(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    fn go_to(&self, cpu: usize) {
        self.current.store(cpu, Ordering::Relaxed);
    }
}

// SAFETY: (1), (4), (6) one thread goes from CPU to CPU by itself, and comes back to where it was inside
// the heap as an interrupt handler does. (2), (3) Each CPU with a cache has its own; they have numbers,
// and so has the one without. (5) `HostedFrames`'.
unsafe impl FramePlatform for Machine {
    nothing_interrupts!();

    fn cpu(&self) -> Option<usize> {
        Some(self.is_on())
    }

    fn cache(&self) -> &CpuCache {
        self.caches.get(self.is_on()).unwrap_or(&NO_CACHE)
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        self.caches.iter().for_each(visit);
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        interrupt();
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if call == self.refused.load(Ordering::Relaxed) {
            return None;
        }
        self.machine.allocate_frames(count, align)
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.machine.free_frames(start, count) };
        interrupt();
    }

    fn drain_others(&self) -> bool {
        if self.is_held_up.load(Ordering::Relaxed) {
            return false;
        }
        // SAFETY: the heap that calls this.
        let Some(heap) = (unsafe { self.drained.load(Ordering::Relaxed).as_ref() }) else {
            return true;
        };
        let this = self.is_on();
        for cpu in (0..CPUS).filter(|&cpu| cpu != this) {
            self.go_to(cpu);
            heap.drain();
        }
        self.go_to(this);
        if let Some(happens) = AFTER_DRAIN.take() {
            happens();
        }
        true
    }

    fn capacity(&self) -> usize {
        self.machine.capacity()
    }
}

fn heap(frames: usize) -> Rc<Heap> {
    Rc::new(Heap::new(Machine {
        machine: HostedFrames::new(frames),
        caches: [const { CpuCache::new() }; CPUS],
        current: AtomicUsize::new(0),
        drained: AtomicPtr::new(ptr::null_mut()),
        calls: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
        is_held_up: AtomicBool::new(false),
    }))
}

fn heap_that_drains(frames: usize) -> Rc<Heap> {
    let heap = heap(frames);
    let this = Rc::as_ptr(&heap).cast_mut();
    heap.platform().drained.store(this, Ordering::Relaxed);
    heap
}

fn alloc(heap: &Heap, layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: no test asks for zero bytes.
    NonNull::new(unsafe { heap.alloc(layout) })
}

fn free(heap: &Heap, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests free what they allocated, once, with the layout that it has.
    unsafe { heap.dealloc(block.as_ptr(), layout) };
}

/// Fills this CPU's cache with free blocks.
fn warm(heap: &Heap) {
    let layout = layout(64, 8);
    let blocks: Vec<_> = (0..200).map(|_| alloc(heap, layout).unwrap()).collect();
    (blocks.into_iter()).for_each(|block| free(heap, block, layout));
    assert!(heap.totals().cached_bytes > 0);
}

#[test]
fn what_a_cpu_drains_by_itself_is_found_after_a_relief_that_did_not_help() {
    let heap = heap(64);
    let cpus = heap.platform();
    cpus.go_to(1);
    warm(&heap);
    cpus.go_to(0);
    let all = cpus.machine.frames_left() + heap.totals().frames();
    let large = layout(all * FRAME, 8);
    // CPU 1 isn't asked on this machine.
    assert_eq!(alloc(&heap, large), None);
    cpus.go_to(1);
    assert!(heap.drain());
    cpus.go_to(0);
    let block = alloc(&heap, large).unwrap();
    free(&heap, block, large);
}

#[test]
fn a_cpu_that_could_not_drain_is_asked_again() {
    let heap = heap_that_drains(256);
    let cpus = heap.platform();
    cpus.go_to(1);
    // More frames than a block has that a CPU keeps.
    let small = layout(65 * FRAME, 8);
    let hole = alloc(&heap, small).unwrap();
    warm(&heap);
    free(&heap, hole, small);
    let all = cpus.machine.frames_left() + heap.totals().frames();
    let large = layout((all - 65) * FRAME, 8);
    let refusals = heap.totals().refusals;
    let of_cpu_0 = heap.clone();
    INTERRUPTION.set(Some(Box::new(move || {
        // While CPU 1 is inside the heap.
        of_cpu_0.platform().go_to(0);
        assert_eq!(alloc(&of_cpu_0, large), None);
        of_cpu_0.platform().go_to(1);
    })));
    let kept = alloc(&heap, small).unwrap();
    INTERRUPTION.set(None);
    assert_eq!(heap.totals().refusals, refusals + 1);
    cpus.go_to(0);
    let block = alloc(&heap, large).unwrap();
    free(&heap, block, large);
    free(&heap, kept, small);
}

#[test]
fn a_block_that_shrinks_within_its_frames_needs_nothing_inside_the_heap_either() {
    let heap = heap(256);
    let old = layout(10 * FRAME, 8);
    let block = alloc(&heap, old).unwrap();
    let nested = heap.clone();
    INTERRUPTION.set(Some(Box::new(move || {
        // SAFETY: live, of this layout, until it is one of the new size with the second call.
        unsafe {
            let size = old.size() - 1;
            assert_eq!(nested.realloc(block.as_ptr(), old, size), block.as_ptr());
            let new = layout(size, 8);
            let again = nested.realloc(block.as_ptr(), new, old.size());
            assert_eq!(again, block.as_ptr());
        }
    })));
    let other = alloc(&heap, layout(20_000, 8)).unwrap();
    INTERRUPTION.set(None);
    free(&heap, other, layout(20_000, 8));
    free(&heap, block, old);
}

#[test]
fn a_block_whose_free_has_to_wait_is_not_live() {
    let heap = heap(256);
    let layouts = [layout(64, 8), layout(10 * FRAME, 8)];
    let blocks = layouts.map(|layout| alloc(&heap, layout).unwrap());
    let nested = heap.clone();
    INTERRUPTION.set(Some(Box::new(move || {
        for (block, layout) in blocks.into_iter().zip(layouts) {
            free(&nested, block, layout);
        }
        let totals = nested.totals();
        assert_eq!((totals.live_blocks, totals.live_bytes), (0, 0));
        INTERRUPTION.set(Some(Box::new(|| {})));
    })));
    let other = alloc(&heap, layout(20_000, 8)).unwrap();
    INTERRUPTION.set(None);
    assert_eq!(heap.totals().live_blocks, 1);
    free(&heap, other, layout(20_000, 8));
    assert!(heap.drain());
    assert_eq!(heap.totals().live_blocks, 0);
}

/// A live block, all of whose bytes are one.
struct Held {
    block: NonNull<u8>,
    layout: Layout,
    byte: u8,
}

impl Held {
    fn write(&self) {
        // SAFETY: the block has this many bytes.
        unsafe { self.block.write_bytes(self.byte, self.layout.size()) };
    }

    fn check(&self, bytes: usize) {
        // SAFETY: the block has this many bytes, which were written.
        let bytes = unsafe { core::slice::from_raw_parts(self.block.as_ptr(), bytes) };
        assert!(bytes.iter().all(|&byte| byte == self.byte));
        assert!((self.block.addr().get()).is_multiple_of(self.layout.align()));
    }
}

struct History {
    heap: Rc<Heap>,
    random: RefCell<Random>,
    live: RefCell<Vec<Held>>,
}

impl History {
    fn below(&self, end: usize) -> usize {
        self.random.borrow_mut().below(end as u64) as usize
    }

    fn size(&self) -> usize {
        match self.below(6) {
            0 => 1 + self.below(64),
            1 => 1 + self.below(1024),
            2 => 1 + self.below(8192),
            3 => 8192 + self.below(100),
            4 => 1 + self.below(60_000),
            _ => FRAME * (1 + self.below(8)) - self.below(2),
        }
    }

    fn any(&self) -> Option<Held> {
        let length = self.live.borrow().len();
        (length > 0).then(|| {
            let at = self.below(length);
            self.live.borrow_mut().swap_remove(at)
        })
    }

    /// On the CPU that the thread is on.
    fn step(&self) {
        let heap = &*self.heap;
        match self.below(20) {
            0..8 => {
                let align = 1 << [0, 3, 4, 5, 7, 12, 13, 14, 16][self.below(9)];
                let layout = layout(self.size(), align);
                if let Some(block) = alloc(heap, layout) {
                    let byte = self.below(256) as u8;
                    let held = Held {
                        block,
                        layout,
                        byte,
                    };
                    held.write();
                    self.live.borrow_mut().push(held);
                }
            }
            8..13 => {
                if let Some(held) = self.any() {
                    held.check(held.layout.size());
                    free(heap, held.block, held.layout);
                }
            }
            13..19 => {
                let Some(mut held) = self.any() else { return };
                let (old, size) = (held.layout, self.size());
                // SAFETY: live, with this layout, and the size isn't zero.
                let moved = unsafe { heap.realloc(held.block.as_ptr(), old, size) };
                if let Some(moved) = NonNull::new(moved) {
                    (held.block, held.layout) = (moved, layout(size, old.align()));
                    held.check(old.size().min(size));
                    held.write();
                } else {
                    held.check(old.size());
                }
                self.live.borrow_mut().push(held);
            }
            _ if self.below(4) == 0 => heap.trim(),
            _ => _ = heap.drain(),
        }
    }
}

/// Runs a history to its end, of which nothing must be left, and returns how often the platform was asked
/// for frames.
fn run(seed: u64, frames: usize, steps: usize, is_interrupted: bool, refused: usize) -> usize {
    let heap = heap_that_drains(frames);
    let cpus = heap.platform();
    let all = cpus.machine.frames_left();
    cpus.refused.store(refused, Ordering::Relaxed);
    let history = Rc::new(History {
        heap: heap.clone(),
        random: RefCell::new(Random::new(seed)),
        live: RefCell::new(Vec::new()),
    });
    if is_interrupted {
        let history = history.clone();
        INTERRUPTION.set(Some(Box::new(move || {
            // A CPU without a cache can't be told from one that is inside already.
            if history.heap.platform().is_on() < CPUS && history.below(3) == 0 {
                (0..history.below(4)).for_each(|_| history.step());
            }
        })));
    }
    for _ in 0..steps {
        cpus.go_to(history.below(CPUS + 1));
        history.step();
    }
    INTERRUPTION.set(None);
    cpus.refused.store(0, Ordering::Relaxed);

    let live = history.live.take();
    let bytes: usize = live.iter().map(|held| held.layout.size()).sum();
    let totals = heap.totals();
    let context = format!("seed {seed}, {frames} frames, {is_interrupted}, {refused}");
    assert_eq!(totals.live_bytes, bytes as i64, "{context}");
    assert_eq!(totals.live_blocks, live.len() as i64, "{context}");
    for (number, held) in live.into_iter().enumerate() {
        cpus.go_to(number % (CPUS + 1));
        held.check(held.layout.size());
        free(&heap, held.block, held.layout);
    }
    for cpu in 0..CPUS {
        cpus.go_to(cpu);
        assert!(heap.drain());
    }
    heap.trim();
    let totals = heap.totals();
    assert_eq!((totals.live_bytes, totals.live_blocks), (0, 0), "{context}");
    assert_eq!((totals.cached_bytes, totals.frames()), (0, 0), "{context}");
    assert_eq!(cpus.machine.frames_left(), all, "{context}");
    cpus.calls.load(Ordering::Relaxed)
}

#[test]
fn any_history_ends_with_nothing_left() {
    for seed in 0..60 {
        for frames in [8, 24, 64, 200] {
            run(seed, frames, 600, false, 0);
            run(seed, frames, 600, true, 0);
        }
    }
}

#[test]
fn any_history_ends_with_nothing_left_whichever_request_for_frames_is_refused() {
    for (seed, is_interrupted) in [(0, false), (1, true), (2, false), (3, true)] {
        for frames in [24, 150] {
            let calls = run(seed, frames, 120, is_interrupted, 0);
            for refused in 1..=calls {
                run(seed, frames, 120, is_interrupted, refused);
            }
        }
    }
}

/// A relief for one CPU may not have reached another's blocks; these are still that one's own.
#[test]
fn a_cpu_has_its_own_blocks_after_a_relief_of_another_that_did_not_reach_them() {
    let heap = heap(64);
    let cpus = heap.platform();
    cpus.go_to(1);
    let page = layout(4096, 8);
    let blocks: Vec<_> = (0..16).map(|_| alloc(&heap, page).unwrap()).collect();
    cpus.go_to(0);
    let large = layout(3 * FRAME, 8);
    let rest: Vec<_> = std::iter::from_fn(|| alloc(&heap, large)).collect();
    let single = layout(8, 8);
    let mut singles: Vec<_> = std::iter::from_fn(|| alloc(&heap, page)).collect();
    cpus.go_to(1);
    blocks
        .into_iter()
        .for_each(|block| free(&heap, block, page));
    cpus.go_to(0);
    assert_eq!(alloc(&heap, large), None);
    cpus.go_to(1);
    let block = alloc(&heap, single).unwrap();
    free(&heap, block, single);
    rest.into_iter().for_each(|block| free(&heap, block, large));
    singles.drain(..).for_each(|block| free(&heap, block, page));
}

#[test]
fn frames_that_go_from_one_cpu_to_another_count_once_for_the_peak() {
    let heap = heap(100);
    let cpus = heap.platform();
    let large = layout(90 * FRAME, 8);
    let block = alloc(&heap, large).unwrap();
    let other = heap.clone();
    let taken = Rc::new(Cell::new(None));
    let takes = taken.clone();
    INTERRUPTION.set(Some(Box::new(move || {
        if takes.get().is_none() {
            other.platform().go_to(1);
            takes.set(alloc(&other, large));
            other.platform().go_to(0);
        }
    })));
    free(&heap, block, large);
    INTERRUPTION.set(None);
    assert_eq!(heap.totals().peak_frames, 90);
    cpus.go_to(1);
    free(&heap, taken.get().unwrap(), large);
}

#[test]
fn a_relief_that_could_ask_nobody_says_nothing_of_one_that_can() {
    let heap = heap_that_drains(64);
    let cpus = heap.platform();
    let all = layout(cpus.machine.frames_left() * FRAME, 8);
    cpus.go_to(1);
    warm(&heap);
    cpus.go_to(0);
    cpus.is_held_up.store(true, Ordering::Relaxed);
    assert_eq!(alloc(&heap, all), None);
    cpus.is_held_up.store(false, Ordering::Relaxed);
    let block = alloc(&heap, all).unwrap();
    free(&heap, block, all);
}

/// There is a free block at any instant.
#[test]
fn a_cpu_that_has_drained_for_another_does_not_keep_what_it_frees_next() {
    let heap = heap_that_drains(64);
    let cpus = heap.platform();
    let page = layout(4096, 8);
    cpus.go_to(1);
    let [first, second] = [(); 2].map(|()| alloc(&heap, page).unwrap());
    cpus.go_to(0);
    let rest: Vec<_> = std::iter::from_fn(|| alloc(&heap, page)).collect();
    cpus.go_to(1);
    free(&heap, first, page);
    cpus.go_to(0);
    let other = heap.clone();
    AFTER_DRAIN.set(Some(Box::new(move || {
        other.platform().go_to(1);
        free(&other, second, page);
        other.platform().go_to(2);
        assert!(alloc(&other, page).is_some());
        other.platform().go_to(0);
    })));
    assert!(alloc(&heap, page).is_some());
    rest.into_iter().for_each(|block| free(&heap, block, page));
}
