//! The misuses that the checked heap finds, and those that it must not report.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use std::cell::Cell;
use std::hint;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{
    Callers, CheckPlatform, CheckedHeap, FRAME, MAX_QUARANTINED, MagazineHeap, Misuse, Quarantine,
    Violation,
};
use proptest::prelude::*;

use crate::layout;
use crate::shadow::{Random, Shadow};

/// More CPUs than any test has threads.
const CPUS: usize = 8;

/// The bytes in front of a block that are never another block's.
const FRONT: usize = 128;

/// A machine on which tests say which CPU they are, and catch what is reported.
pub struct Watch {
    quarantines: [Quarantine; CPUS],
    /// Bytes that the machine has.
    capacity: usize,
}

thread_local! {
    static CPU: Cell<Option<usize>> = const { Cell::new(None) };
    static CALLER: Cell<usize> = const { Cell::new(0) };
    static FOUND: Cell<Option<Misuse>> = const { Cell::new(None) };
}

impl Watch {
    pub const fn new() -> Self {
        Self {
            quarantines: [const { Quarantine::new() }; CPUS],
            capacity: usize::MAX,
        }
    }
}

// SAFETY: (1) what tests free lies far within memory, but for the null page; (2) each machine has
// one heap.
unsafe impl CheckPlatform for Watch {
    fn cpu(&self) -> Option<usize> {
        CPU.get()
    }

    fn quarantine(&self) -> &Quarantine {
        &self.quarantines[CPU.get().unwrap_or(0)]
    }

    fn each_quarantine(&self, visit: &mut dyn FnMut(&Quarantine)) {
        self.quarantines.iter().for_each(visit);
    }

    fn may_read(&self, start: usize, _length: usize) -> bool {
        start >= FRAME
    }

    fn callers(&self) -> Callers {
        Callers::new([CALLER.get()])
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn report(&self, misuse: &Misuse) -> ! {
        FOUND.set(Some(*misuse));
        panic::resume_unwind(Box::new(()))
    }
}

type Machine = CheckedHeap<MagazineHeap<HostedFrames>, Watch>;

fn machine(frames: usize) -> Machine {
    CPU.set(Some(0));
    let watch = Watch {
        capacity: frames * FRAME,
        ..Watch::new()
    };
    CheckedHeap::new(MagazineHeap::new(HostedFrames::new(frames)), watch)
}

/// Does something as another CPU.
fn on<T>(cpu: usize, work: impl FnOnce() -> T) -> T {
    struct Back(Option<usize>);
    impl Drop for Back {
        fn drop(&mut self) {
            CPU.set(self.0);
        }
    }

    let _back = Back(CPU.replace(Some(cpu)));
    CALLER.set(1000 + cpu);
    work()
}

fn alloc(heap: &Machine, layout: Layout) -> NonNull<u8> {
    // SAFETY: no test asks for zero bytes.
    NonNull::new(unsafe { heap.alloc(layout) }).unwrap()
}

fn free(heap: &Machine, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests free what they allocated, or want to see the heap's answer.
    unsafe { heap.dealloc(block.as_ptr(), layout) };
}

fn flush(heap: &Machine, cpu: usize) {
    on(cpu, || heap.flush());
}

/// Writes a byte near a block: `offset` counts from its start. The former byte is overwritten.
fn scribble(block: NonNull<u8>, offset: isize) -> u8 {
    // SAFETY: in the block or in what surrounds it, which tests leave to the heap otherwise.
    unsafe {
        let byte = block.offset(offset);
        byte.write(!byte.read());
        byte.read()
    }
}

/// Returns the misuse that is reported in the meantime, of which there must be one.
#[track_caller]
fn reported(work: impl FnOnce()) -> Misuse {
    assert!(panic::catch_unwind(AssertUnwindSafe(work)).is_err());
    FOUND.take().expect("a report")
}

/// Returns the CPUs that a report names: who allocated, who freed, who found. And their callers are
/// theirs.
fn named(misuse: &Misuse) -> [Option<usize>; 3] {
    let origins = [misuse.allocated, misuse.freed, Some(misuse.found)];
    origins.map(|origin| {
        let origin = origin?;
        let cpu = origin.cpu.unwrap();
        let is_flush = origin.callers == Callers::NONE;
        assert!(is_flush || origin.callers == Callers::new([1000 + cpu]));
        Some(cpu)
    })
}

/// Checks that nothing is left of the checked heap, nor of the one it wraps.
#[track_caller]
fn assert_all_back(heap: &Machine, frames: usize) {
    heap.flush();
    assert!(heap.heap().drain());
    heap.heap().trim();
    let totals = heap.totals();
    assert_eq!((totals.live_bytes, totals.live_blocks), (0, 0));
    assert_eq!(totals.quarantined_bytes, 0);
    assert_eq!(heap.heap().totals().frames(), 0);
    assert_eq!(heap.heap().platform().frames_left(), frames);
}

#[test]
fn a_second_free_is_found_and_three_cpus_are_named() {
    let heap = machine(1024);
    let layout = layout(100, 8);
    let block = on(1, || alloc(&heap, layout));
    on(2, || free(&heap, block, layout));
    let misuse = reported(|| on(3, || free(&heap, block, layout)));
    assert_eq!(misuse.violation, Violation::FreedTwice);
    assert_eq!(
        (misuse.block, misuse.layout),
        (block.addr().get(), Some(layout))
    );
    assert_eq!(named(&misuse), [Some(1), Some(2), Some(3)]);
    // And so it is when the block has left the quarantine and nobody else has got it.
    heap.flush();
    let misuse = reported(|| on(4, || free(&heap, block, layout)));
    assert_eq!(misuse.violation, Violation::FreedTwice);
    assert_eq!(named(&misuse), [Some(1), Some(2), Some(4)]);
}

#[test]
fn of_two_cpus_that_free_at_once_one_is_reported() {
    const BLOCKS: usize = 5000;
    let heap = &machine(4096);
    let layout = layout(40, 8);
    let mut blocks: Vec<_> = on(1, || {
        (0..BLOCKS)
            .map(|_| alloc(heap, layout).expose_provenance())
            .collect()
    });
    blocks.sort_unstable();
    let blocks = &blocks;
    // How far each has come, so that they come to each block together.
    let places = &[const { AtomicUsize::new(0) }; 2];
    let mut reports = thread::scope(|scope| {
        [2, 3]
            .map(|cpu| {
                scope.spawn(move || {
                    CPU.set(Some(cpu));
                    CALLER.set(1000 + cpu);
                    let mut reports = Vec::new();
                    for (number, &block) in blocks.iter().enumerate() {
                        let block = NonNull::with_exposed_provenance(block);
                        places[cpu - 2].store(number, Ordering::SeqCst);
                        while places[3 - cpu].load(Ordering::SeqCst) < number {
                            hint::spin_loop();
                        }
                        let work = AssertUnwindSafe(|| free(heap, block, layout));
                        if panic::catch_unwind(work).is_err() {
                            reports.extend(FOUND.take());
                        }
                    }
                    places[cpu - 2].store(BLOCKS, Ordering::SeqCst);
                    reports
                })
            })
            .map(|thread| thread.join().unwrap())
            .concat()
    });
    reports.sort_unstable_by_key(|misuse| misuse.block);
    let reported = reports.iter().map(|misuse| misuse.block);
    assert!(reported.eq(blocks.iter().map(|block| block.get())));
    let mut told = 0;
    for misuse in &reports {
        assert_eq!(
            (misuse.violation, misuse.layout),
            (Violation::FreedTwice, Some(layout))
        );
        let [allocated, freed, found] = named(misuse);
        assert_eq!(allocated, Some(1));
        // The first CPU may be interrupted, amid its free, for longer than the other waits for its
        // record.
        let first = found.map(|found| 5 - found);
        assert!(freed.is_none() || freed == first, "{misuse}");
        told += usize::from(freed.is_some());
    }
    assert!(told > 0, "nobody was told who had been first");
}

#[test]
fn any_byte_past_the_end_is_found() {
    let heap = machine(4096);
    for size in 1..=48 {
        for past in 0..16 {
            let layout = layout(size, 1);
            let block = on(1, || alloc(&heap, layout));
            let found = scribble(block, (size + past) as isize);
            let misuse = reported(|| on(2, || free(&heap, block, layout)));
            let byte = size + past;
            assert_eq!(misuse.violation, Violation::PastEnd { byte, found });
            assert_eq!(misuse.layout, Some(layout));
            assert_eq!(named(&misuse), [Some(1), None, Some(2)]);
        }
    }
}

#[test]
fn any_byte_before_the_start_is_found() {
    let heap = machine(4096);
    for size in [1, 16, 100, 5000, 20_000] {
        for before in 1..=FRONT {
            let layout = layout(size, 8);
            let block = on(1, || alloc(&heap, layout));
            let found = scribble(block, -(before as isize));
            // The record of a free is empty before there is one, and is written then.
            if (17..=64).contains(&before) {
                on(2, || free(&heap, block, layout));
                continue;
            }
            let misuse = reported(|| on(2, || free(&heap, block, layout)));
            assert_eq!(misuse.block, block.addr().get());
            if before <= 16 {
                assert_eq!(misuse.violation, Violation::BeforeStart { before, found });
                assert_eq!(named(&misuse), [Some(1), None, Some(2)]);
            } else {
                assert_eq!(misuse.violation, Violation::Record, "{before}");
                assert_eq!(misuse.found.cpu, Some(2));
            }
        }
    }
}

#[test]
fn any_byte_written_after_the_free_is_found_when_the_block_leaves() {
    let heap = machine(4096);
    for size in [1, 7, 16, 100] {
        for offset in -(FRONT as isize)..(size as isize + 16) {
            let layout = layout(size, 8);
            let block = on(1, || alloc(&heap, layout));
            on(2, || free(&heap, block, layout));
            let found = scribble(block, offset);
            let misuse = reported(|| flush(&heap, 3));
            let expected = match offset {
                ..-16 => Violation::Record,
                -16..0 => Violation::BeforeStart {
                    before: offset.unsigned_abs(),
                    found,
                },
                _ if offset < size as isize => Violation::AfterFree {
                    byte: offset as usize,
                    found,
                    count: 1,
                },
                _ => Violation::PastEnd {
                    byte: offset as usize,
                    found,
                },
            };
            assert_eq!(misuse.violation, expected, "{size} {offset}");
            assert_eq!(misuse.block, block.addr().get());
            if offset >= -16 {
                assert_eq!(named(&misuse), [Some(1), Some(2), Some(3)]);
            }
        }
    }
}

#[test]
fn a_write_after_the_free_is_found_by_who_frees_so_much_that_the_block_must_go() {
    for (size, blocks) in [(100, 2000), (20_000, MAX_QUARANTINED / 20_000 + 1)] {
        let heap = machine(4096);
        let layout = layout(size, 8);
        let block = on(1, || alloc(&heap, layout));
        on(2, || free(&heap, block, layout));
        scribble(block, 10);
        scribble(block, 90);
        // Others' quarantines are their own.
        on(3, || {
            (0..blocks).for_each(|_| free(&heap, alloc(&heap, layout), layout))
        });
        let misuse = reported(|| {
            on(2, || {
                (0..blocks).for_each(|_| free(&heap, alloc(&heap, layout), layout));
            });
        });
        assert!(
            matches!(
                misuse.violation,
                Violation::AfterFree {
                    byte: 10,
                    count: 2,
                    ..
                }
            ),
            "{misuse}"
        );
        assert_eq!(named(&misuse), [Some(1), Some(2), Some(2)]);
    }
}

#[test]
fn a_free_with_another_layout_is_found() {
    let heap = machine(4096);
    let right = layout(100, 8);
    for wrong in [
        layout(99, 8),
        layout(101, 8),
        layout(100, 16),
        layout(100, 4096),
        layout(100_000, 8),
    ] {
        let block = on(1, || alloc(&heap, right));
        let misuse = reported(|| on(2, || free(&heap, block, wrong)));
        assert_eq!(misuse.violation, Violation::FreedAs(wrong));
        assert_eq!(misuse.layout, Some(right));
        assert_eq!(named(&misuse), [Some(1), None, Some(2)]);
    }
}

#[test]
fn a_free_of_no_block_is_found() {
    static READ_ONLY: [u64; 64] = [7; 64];
    let heap = machine(4096);
    let layout = layout(1000, 8);
    let block = on(1, || alloc(&heap, layout));
    // SAFETY: all of it is initialised here, and 1000 bytes long.
    unsafe { block.write_bytes(3, 1000) };
    let within = |offset| block.addr().get() + offset;
    let aligned = (&raw const READ_ONLY[48]).addr().next_multiple_of(16);
    for address in [0, 16, within(1), within(16), within(400), aligned] {
        let misuse = reported(|| {
            on(2, || {
                // SAFETY: to see the heap's answer.
                unsafe { heap.dealloc(ptr::with_exposed_provenance_mut(address), layout) };
            });
        });
        assert_eq!(misuse.violation, Violation::NoBlock(layout));
        assert_eq!((misuse.block, misuse.layout), (address, None));
        assert_eq!(named(&misuse), [None, None, Some(2)]);
    }
    // A copy of a block, with all around it, is none.
    let mut copy = vec![0_u8; 2000];
    let to = copy.as_mut_ptr();
    let room = to.align_offset(16) + FRONT;
    // SAFETY: what is in front of the block and the block itself, to memory that is large enough.
    let copied = unsafe {
        let copied = to.add(room);
        (copied.sub(FRONT)).copy_from_nonoverlapping(block.as_ptr().sub(FRONT), FRONT + 1000);
        NonNull::new(copied).unwrap()
    };
    let misuse = reported(|| on(2, || free(&heap, copied, layout)));
    assert_eq!(misuse.violation, Violation::NoBlock(layout));
    on(2, || free(&heap, block, layout));
}

#[test]
fn large_alignments_are_kept_and_checked() {
    let heap = machine(8192);
    let frames = heap.heap().platform().frames_left();
    for shift in 0..=20 {
        for size in [1, 100, 5000, 100_000] {
            let layout = layout(size, 1 << shift);
            let block = alloc(&heap, layout);
            assert!(block.addr().get().is_multiple_of(layout.align()));
            // SAFETY: the block's own bytes.
            unsafe { block.write_bytes(0xbb, size) };
            free(&heap, block, layout);
        }
    }
    assert_all_back(&heap, frames);
    let layout = layout(100, 4096);
    let block = on(1, || alloc(&heap, layout));
    let found = scribble(block, -1);
    let misuse = reported(|| on(2, || free(&heap, block, layout)));
    assert_eq!(
        misuse.violation,
        Violation::BeforeStart { before: 1, found }
    );
}

#[test]
fn impossible_layouts_get_null() {
    let heap = machine(256);
    let frames = heap.heap().platform().frames_left();
    for shift in 0..63 {
        let align = 1_usize << shift;
        let largest = isize::MAX as usize + 1 - align;
        for size in [largest, largest / 2 + 1, 1] {
            if let Ok(layout) = Layout::from_size_align(size, align)
                && (size > 2 << 20 || align > 4 << 20)
            {
                // SAFETY: the size is not zero.
                assert!(unsafe { heap.alloc(layout) }.is_null(), "{layout:?}");
            }
        }
    }
    assert_all_back(&heap, frames);
}

#[test]
fn what_exceeds_the_machine_leaves_quarantines_alone() {
    const FRAMES: usize = 256;

    let heap = machine(FRAMES);
    let small = layout(100, 8);
    let block = alloc(&heap, small);
    free(&heap, block, small);
    let waiting = heap.totals().quarantined_bytes;
    assert!(waiting > 0);
    for size in [FRAMES * FRAME, 1 << 40, 1 << 60] {
        // SAFETY: the size isn't zero.
        assert!(unsafe { heap.alloc(layout(size, 8)) }.is_null());
    }
    assert_eq!(heap.totals().quarantined_bytes, waiting);
    assert_eq!(heap.heap().totals().refusals, 3);
    // One that the machine might have room for.
    // SAFETY: as above.
    assert!(unsafe { heap.alloc(layout((FRAMES - 1) * FRAME, 8)) }.is_null());
    assert_eq!(heap.totals().quarantined_bytes, 0);
}

#[test]
fn what_is_in_quarantine_is_given_back_before_the_answer_is_null() {
    let heap = machine(300);
    let frames = heap.heap().platform().frames_left();
    let layout = layout(1000, 8);
    let taken = Machine::taken(layout).unwrap().size();
    let mut held = Vec::new();
    for cpu in 0..6 {
        let mut shadow = Shadow::new(&heap);
        // Another CPU each time, so that the rings of those before have what is missing.
        on(cpu, || {
            while shadow.alloc(layout) {}
            held.push(shadow.len());
            shadow.free_all();
        });
        assert!(heap.totals().quarantined_bytes > frames * FRAME / 2);
    }
    assert!(held.iter().all(|&blocks| blocks == held[0]), "{held:?}");
    assert!(held[0] * taken * 10 > frames * FRAME * 8, "{held:?}");
    assert_all_back(&heap, frames);
}

#[test]
fn threads_share_one_checked_heap() {
    const THREADS: usize = 6;
    const STEPS: usize = 3000;
    for frames in [900, 20_000] {
        let heap = &machine(frames);
        let frames = heap.heap().platform().frames_left();
        let start = &Barrier::new(THREADS);
        thread::scope(|scope| {
            let (senders, receivers): (Vec<_>, Vec<_>) =
                (0..THREADS).map(|_| mpsc::sync_channel(32)).unzip();
            for (cpu, inbox) in receivers.into_iter().enumerate() {
                let next = senders[(cpu + 1) % THREADS].clone();
                scope.spawn(move || {
                    CPU.set(Some(cpu));
                    let mut random = Random::new(cpu as u64);
                    let mut shadow = Shadow::new(heap);
                    start.wait();
                    for step in 0..STEPS {
                        shadow.step(&mut random, &next, &inbox);
                        match step % 1000 {
                            250 => flush(heap, cpu),
                            500 => assert!(heap.heap().drain()),
                            750 => heap.heap().trim(),
                            _ => {}
                        }
                    }
                    shadow.free_all();
                    drop(next);
                    for block in inbox {
                        shadow.adopt(block);
                    }
                    shadow.free_all();
                    assert!(heap.heap().drain());
                });
            }
            drop(senders);
        });
        assert_all_back(heap, frames);
        assert!(heap.totals().sound_blocks > (THREADS * STEPS / 4) as u64);
    }
}

#[test]
fn all_cpus_run_out_at_once_and_everything_comes_back() {
    const THREADS: usize = 4;
    let heap = &machine(1024);
    let frames = heap.heap().platform().frames_left();
    let barrier = &Barrier::new(THREADS);
    thread::scope(|scope| {
        for cpu in 0..THREADS {
            scope.spawn(move || {
                CPU.set(Some(cpu));
                let mut random = Random::new(cpu as u64);
                for _ in 0..3 {
                    barrier.wait();
                    let mut shadow = Shadow::new(heap);
                    while shadow.alloc(layout(1 + random.below(5000) as usize, 8)) {}
                    barrier.wait();
                    shadow.free_all();
                    barrier.wait();
                    assert!(heap.heap().drain());
                }
            });
        }
    });
    assert_all_back(heap, frames);
}

/// A misuse of a block by a program.
#[derive(Clone, Copy, Debug)]
enum Crime {
    FreeTwice,
    Past(usize),
    Before(usize),
    AfterFree(usize),
    WrongSize(usize),
}

fn crimes() -> impl Strategy<Value = Crime> {
    prop_oneof![
        Just(Crime::FreeTwice),
        (0..16_usize).prop_map(Crime::Past),
        (1..=16_usize).prop_map(Crime::Before),
        any::<usize>().prop_map(Crime::AfterFree),
        (1..100_usize).prop_map(Crime::WrongSize),
    ]
}

fn programs() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..CPUS, 0..10_u8), 1..150)
}

/// Runs a correct program on some CPUs.
fn run(shadow: &mut Shadow<'_, Machine>, random: &mut Random, program: &[(usize, u8)]) {
    for &(cpu, step) in program {
        on(cpu, || match step {
            0..5 => {
                shadow.alloc(random.layout());
            }
            5 => {
                let size = 1 + random.below(3000) as usize;
                shadow.realloc_any(random, size);
            }
            _ => shadow.free_any(random),
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn who_does_nothing_wrong_is_never_accused(
        program in programs(),
        frames in 16_usize..2000,
        seed in any::<u64>(),
    ) {
        let heap = machine(frames);
        let frames = heap.heap().platform().frames_left();
        let mut shadow = Shadow::new(&heap);
        let mut random = Random::new(seed);
        run(&mut shadow, &mut random, &program);
        let totals = heap.totals();
        prop_assert_eq!(totals.live_blocks, shadow.len() as i64);
        prop_assert_eq!(totals.live_bytes, shadow.bytes() as i64);
        // One that is larger than that alone has gone.
        prop_assert!(totals.quarantined_bytes <= CPUS * MAX_QUARANTINED);
        shadow.free_all();
        assert_all_back(&heap, frames);
    }

    #[test]
    fn who_does_is_found_among_those_who_do_not(
        (before, after) in (programs(), programs()),
        crime in crimes(),
        layout in (1..3000_usize, 0..13_u32),
        (allocates, frees, misuses) in (0..CPUS, 0..CPUS, 0..CPUS),
        seed in any::<u64>(),
    ) {
        let heap = machine(20_000);
        let mut shadow = Shadow::new(&heap);
        let mut random = Random::new(seed);
        let layout = Layout::from_size_align(layout.0, 1 << layout.1).unwrap();
        run(&mut shadow, &mut random, &before);
        let block = on(allocates, || alloc(&heap, layout));
        // SAFETY: the block's own bytes.
        unsafe { block.write_bytes(seed as u8, layout.size()) };
        run(&mut shadow, &mut random, &before);
        let free = |as_layout| free(&heap, block, as_layout);
        let size = layout.size();
        let (misuse, violation, freed, found) = match crime {
            Crime::FreeTwice => {
                on(frees, || free(layout));
                // Not so much that the block's memory is somebody else's again.
                let few = after.len().min(20);
                run(&mut shadow, &mut random, &after[..few]);
                let misuse = reported(|| on(misuses, || free(layout)));
                (misuse, Violation::FreedTwice, Some(frees), misuses)
            }
            Crime::Past(past) => {
                let found = scribble(block, (size + past) as isize);
                run(&mut shadow, &mut random, &after);
                let misuse = reported(|| on(misuses, || free(layout)));
                let byte = size + past;
                (misuse, Violation::PastEnd { byte, found }, None, misuses)
            }
            Crime::Before(before) => {
                let found = scribble(block, -(before as isize));
                run(&mut shadow, &mut random, &after);
                let misuse = reported(|| on(misuses, || free(layout)));
                (misuse, Violation::BeforeStart { before, found }, None, misuses)
            }
            Crime::AfterFree(any) => {
                let byte = any % size;
                on(frees, || free(layout));
                let found = scribble(block, byte as isize);
                let misuse = reported(|| flush(&heap, misuses));
                (misuse, Violation::AfterFree { byte, found, count: 1 }, Some(frees), misuses)
            }
            Crime::WrongSize(more) => {
                run(&mut shadow, &mut random, &after);
                let wrong = Layout::from_size_align(size + more, layout.align()).unwrap();
                let misuse = reported(|| on(misuses, || free(wrong)));
                (misuse, Violation::FreedAs(wrong), None, misuses)
            }
        };
        prop_assert_eq!(misuse.violation, violation);
        prop_assert_eq!((misuse.block, misuse.layout), (block.addr().get(), Some(layout)));
        let cpus = named(&misuse);
        prop_assert_eq!(cpus, [Some(allocates), freed, Some(found)]);
    }
}
