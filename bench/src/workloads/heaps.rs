//! The workloads on heaps.

use core::alloc::{GlobalAlloc, Layout};
use core::hint::black_box;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::Workload;
use crate::course::{BASKET, Block, Course, HELD, SHELF, Score, Worker};
use crate::meter::{Lap, step};
use crate::random::Random;

/// Blocks that mixed has on each CPU.
const MIXED: usize = 1000;

/// Blocks that larson replaces before it goes on to another basket.
const TURN: usize = 1000;

/// Blocks that sh8bench allocates before it frees.
const SH8BENCH: usize = 510;

/// Blocks that mstress has on each CPU, beside those on the shelf: one in four goes there.
const MSTRESS: usize = 3 * SHELF;

/// Writes to a block by cache-scratch and cache-thrash: as many as make a shared line felt.
const WRITES: usize = 100;

/// Bytes of a block that cache-scratch and cache-thrash write to: several would fit in a cache line.
const SCRATCH: usize = 8;

/// The size up to which realloc's block grows.
const GROWN: usize = 32 * 1024;

/// Blocks that large has on each CPU.
const LARGE: usize = 8;

/// No allocator: all its blocks are the same word, which is all that the workloads write to. For one
/// CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NoHeap;

// SAFETY: only this module's workloads can use it, which write no more than a word of a block, and
// read it only for a size, which may be any here.
unsafe impl GlobalAlloc for NoHeap {
    #[inline(always)]
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        static WORD: AtomicUsize = AtomicUsize::new(0);
        WORD.as_ptr().cast()
    }

    #[inline(always)]
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, _: Layout, _: usize) -> *mut u8 {
        block
    }
}

/// Runs a workload.
pub(super) fn run<A: GlobalAlloc + Sync>(
    heap: &A,
    workload: Workload,
    course: &Course<'_>,
) -> Score {
    let work: fn(&mut HeapUser<'_, A>, &mut Worker<'_>) -> Lap = match workload {
        Workload::Churn => churn,
        Workload::Mixed => mixed,
        Workload::Larson => larson,
        Workload::Xfree => xfree,
        Workload::Sh8bench => sh8bench,
        Workload::Mstress => mstress,
        Workload::CacheScratch => cache_scratch,
        Workload::CacheThrash => cache_thrash,
        Workload::Realloc => realloc,
        Workload::Large => large,
        Workload::FramePair
        | Workload::FrameRandom
        | Workload::FrameBulk
        | Workload::FrameRepeat
        | Workload::FrameFragmentation => return Score::default(),
    };
    course.measure(&|worker| {
        let mut user = HeapUser {
            heap,
            align: black_box(8),
            failures: 0,
        };
        let lap = work(&mut user, worker);
        (lap, user.failures)
    })
}

/// A CPU as the heap's user.
struct HeapUser<'a, A> {
    heap: &'a A,
    /// Not known to the compiler, as an allocator's layouts are not.
    align: usize,
    failures: u64,
}

impl<A: GlobalAlloc> HeapUser<'_, A> {
    #[inline(always)]
    fn layout(&self, size: usize) -> Layout {
        // SAFETY: the alignment is 8, and no workload's size comes near the most there can be.
        unsafe { Layout::from_size_align_unchecked(size, self.align) }
    }

    /// Allocates a block, of 8 bytes or more, and writes its size into it.
    #[inline(always)]
    fn allocate(&mut self, size: usize) -> Block {
        // SAFETY: no workload asks for zero bytes.
        let start = unsafe { self.heap.alloc(self.layout(size)) };
        if start.is_null() {
            self.failures += 1;
        } else {
            // SAFETY: a new block of a word at least, aligned to one.
            unsafe { start.cast::<usize>().write_volatile(size) };
        }
        Block { start, size }
    }

    #[inline(always)]
    fn free(&mut self, block: Block) {
        if !block.start.is_null() {
            // SAFETY: blocks are values that the workloads move about: each is freed once, with
            // the layout it was allocated with.
            unsafe { self.heap.dealloc(block.start, self.layout(block.size)) };
        }
    }

    /// Frees a block whose size is read from the block.
    #[inline(always)]
    fn free_by_address(&mut self, start: *mut u8) {
        if !start.is_null() {
            // SAFETY: `allocate` wrote it.
            let size = unsafe { start.cast::<usize>().read_volatile() };
            self.free(Block { start, size });
        }
    }

    /// Frees the block at a place and allocates another there.
    #[inline(always)]
    fn replace(&mut self, place: &mut Block, size: usize) {
        self.free(*place);
        *place = self.allocate(size);
    }

    /// Makes a block half as large again, or begins again with a small one.
    #[inline(always)]
    fn grow(&mut self, block: &mut Block) {
        let size = block.size + block.size / 2;
        if block.start.is_null() || size > GROWN {
            self.replace(block, 16);
            return;
        }
        // SAFETY: the block is live, with this layout, and the size is neither zero nor near the
        // most there can be.
        let start = unsafe {
            self.heap
                .realloc(block.start, self.layout(block.size), size)
        };
        if start.is_null() {
            self.failures += 1;
        } else {
            *block = Block { start, size };
        }
    }

    fn fill(&mut self, blocks: &mut [Block], mut size: impl FnMut() -> usize) {
        for block in blocks {
            *block = self.allocate(size());
        }
    }

    fn free_all(&mut self, blocks: &mut [Block]) {
        for block in blocks {
            self.free(core::mem::replace(block, Block::NONE));
        }
    }
}

fn churn<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    let size = black_box(64);
    let (mut meter, ..) = worker.start();
    while !meter.is_over() {
        step!(meter, {
            let mut block = user.allocate(size);
            // The compiler must not use for the free what it computed for the allocation.
            block.size = black_box(block.size);
            user.free(block);
        });
    }
    meter.end()
}

/// Replaces random ones of `LIVE` blocks.
#[inline(always)]
fn random_lifetimes<A: GlobalAlloc, const LIVE: usize>(
    user: &mut HeapUser<'_, A>,
    worker: &mut Worker<'_>,
    size: impl Fn(&mut Random) -> usize,
) -> Lap {
    let random = &mut worker.random;
    let live = worker.blocks.first_chunk_mut::<LIVE>();
    user.fill(live.map_or(&mut [], |live| live), || size(random));
    let (mut meter, blocks, _, random) = worker.start();
    let Some(live) = blocks.first_chunk_mut::<LIVE>() else {
        return meter.end();
    };
    while !meter.is_over() {
        step!(
            meter,
            user.replace(&mut live[random.below(LIVE)], size(random))
        );
    }
    let lap = meter.end();
    user.free_all(live);
    lap
}

fn mixed<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    random_lifetimes::<A, MIXED>(user, worker, Random::mixed)
}

fn large<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    random_lifetimes::<A, LARGE>(user, worker, |random| random.size(8192, 8))
}

fn larson<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    let size = |random: &mut Random| 16 + random.below(1009);
    let baskets = worker.baskets();
    let own = || baskets.iter().skip(2 * worker.place.cpu).take(2);
    for basket in own() {
        let random = &mut worker.random;
        user.fill(&mut basket.0.lock(), || size(random));
    }
    let (line, cpu) = (worker.place.line, worker.place.cpu);
    let (mut meter, _, _, random) = worker.start();
    // There are twice as many baskets as CPUs, so nobody waits for one.
    let mut free = baskets.iter().cycle().skip(2 * cpu);
    while !meter.is_over() {
        let Some(mut basket) = free.find_map(|basket| basket.0.try_lock()) else {
            break;
        };
        let Some(live) = basket.first_chunk_mut::<BASKET>() else {
            break;
        };
        for _ in 0..TURN {
            step!(
                meter,
                user.replace(&mut live[random.below(BASKET)], size(random))
            );
            if meter.is_over() {
                break;
            }
        }
    }
    let lap = meter.end();
    line();
    for basket in baskets.iter().skip(2 * cpu).take(2) {
        user.free_all(&mut basket.0.lock());
    }
    lap
}

fn xfree<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    let is_producer = worker.place.cpu.is_multiple_of(2);
    let size = black_box(64);
    let ring = worker.ring();
    if let Some(ring) = ring.filter(|_| is_producer) {
        ring.reset();
    }
    let (mut meter, ..) = worker.start();
    let Some(ring) = ring else {
        return meter.end();
    };
    if is_producer {
        while !meter.is_over() {
            if ring.has_room() {
                ring.put(|| step!(meter, user.allocate(size).start));
            } else {
                meter.wait();
            }
        }
        ring.finish();
        // A pair is counted where it is freed.
        return Lap {
            steps: 0,
            ..meter.end()
        };
    }
    loop {
        // In this order: what came before the end is seen.
        let is_done = ring.is_done();
        if !ring.take(|start| step!(meter, user.free(Block { start, size }))) {
            if is_done {
                return meter.end();
            }
            core::hint::spin_loop();
        }
    }
}

fn sh8bench<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    let (mut meter, blocks, _, random) = worker.start();
    let Some(blocks) = blocks.first_chunk_mut::<SH8BENCH>() else {
        return meter.end();
    };
    let mut stays = 0;
    while !meter.is_over() {
        for block in blocks.iter_mut().filter(|block| block.start.is_null()) {
            // The square makes small ones the most.
            let part = random.below(992);
            *block = step!(meter, user.allocate(16 + part * part / 1024));
        }
        stays = (stays + 1) % 3;
        for block in blocks.iter_mut().skip((stays + 1) % 3).step_by(3) {
            step!(meter, user.free(core::mem::replace(block, Block::NONE)));
        }
        for block in blocks.iter_mut().skip((stays + 2) % 3).step_by(3).rev() {
            step!(meter, user.free(core::mem::replace(block, Block::NONE)));
        }
    }
    let lap = meter.end();
    user.free_all(blocks);
    lap
}

fn mstress<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    // One in 32 is large.
    let size = |random: &mut Random| match random.below(32) {
        0 => random.size(2048, 5),
        _ => random.size(16, 7),
    };
    let (cpus, line, cpu) = (worker.course.cpus, worker.place.line, worker.place.cpu);
    let shelf = worker.shelf();
    let random = &mut worker.random;
    if let Some(own) = worker.blocks.first_chunk_mut::<MSTRESS>() {
        user.fill(own, || size(random));
    }
    let (mut meter, blocks, _, random) = worker.start();
    let Some(own) = blocks.first_chunk_mut::<MSTRESS>() else {
        return meter.end();
    };
    while !meter.is_over() {
        let size = size(random);
        let place = random.below(MSTRESS + SHELF);
        step!(
            meter,
            match place.checked_sub(MSTRESS) {
                None => user.replace(&mut own[place], size),
                Some(place) => {
                    let block = user.allocate(size);
                    if let Some(place) = shelf.get(place) {
                        // AcqRel: the next CPU reads what this one wrote into the block, and this one what
                        // the last wrote.
                        user.free_by_address(place.swap(block.start, Ordering::AcqRel));
                    }
                }
            }
        );
    }
    let lap = meter.end();
    user.free_all(own);
    line();
    for place in shelf.iter().skip(cpu).step_by(cpus) {
        user.free_by_address(place.swap(ptr::null_mut(), Ordering::AcqRel));
    }
    lap
}

fn cache_scratch<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    let (cpus, place) = (worker.course.cpus, worker.place);
    let shelf = worker.shelf();
    if place.cpu == 0 {
        for place in shelf.iter().take(cpus) {
            // Release: the CPU that takes it reads its size.
            place.store(user.allocate(SCRATCH).start, Ordering::Release);
        }
    }
    (place.line)();
    if let Some(passed) = shelf.get(place.cpu) {
        user.free_by_address(passed.swap(ptr::null_mut(), Ordering::AcqRel));
    }
    cache_thrash(user, worker)
}

fn cache_thrash<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    let size = black_box(SCRATCH);
    let (mut meter, ..) = worker.start();
    while !meter.is_over() {
        step!(meter, {
            let block = user.allocate(size);
            if !block.start.is_null() {
                for number in 0..WRITES {
                    // SAFETY: a live block of a word, aligned to one.
                    unsafe { block.start.cast::<usize>().write_volatile(number) };
                }
            }
            user.free(block);
        });
    }
    meter.end()
}

fn realloc<A: GlobalAlloc>(user: &mut HeapUser<'_, A>, worker: &mut Worker<'_>) -> Lap {
    let (mut meter, ..) = worker.start();
    let mut block = Block::NONE;
    while !meter.is_over() {
        step!(meter, user.grow(&mut block));
    }
    let lap = meter.end();
    user.free(block);
    lap
}

// The workloads' blocks have places.
const _: () = assert!(MIXED <= HELD && MSTRESS <= HELD && SH8BENCH.is_multiple_of(3));
