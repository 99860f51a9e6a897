//! Memory that a CPU has in transit, between two places, is not out: another one that is short waits.

use core::alloc::{GlobalAlloc, Layout};
use core::hint;
use core::ptr::NonNull;
use std::cell::{Cell, RefCell};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{
    CheckPlatform, CheckedHeap, CpuCache, FRAME, FramePlatform, MAX_QUARANTINED, MagazineHeap,
    Quarantine,
};

use crate::layout;
use crate::shadow::Random;

type Heap = MagazineHeap<Pausing>;

/// A machine of two CPUs, on which one can be held up until the other can do nothing but wait.
struct Pausing {
    machine: HostedFrames,
    /// The activity of each CPU.
    doing: [AtomicU8; 2],
    /// How often each CPU was held up in lockstep.
    steps: [AtomicUsize; 2],
}

/// It runs, in the heap or before.
const WORKS: u8 = 0;
/// It is held up.
const PAUSED: u8 = 1;
/// It waits for memory.
const WAITS: u8 = 2;
/// It is done with all that the test has it do.
const DONE: u8 = 3;

/// A block, and the layout that it is freed with.
type Freed = (NonNull<u8>, Layout);

/// Something to be done with a block.
type Then = (fn(&'static Heap, Freed), Freed);

/// Where a CPU is held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    Never,
    /// The next time it gives frames back.
    Free,
    /// Whenever it asks for frames while it has these many.
    Ask {
        held: usize,
    },
    /// Whenever it asks for frames while it has some, or gives some back: as often as the other one.
    Lockstep,
}

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static PAUSE: Cell<Pause> = const { Cell::new(Pause::Never) };
    /// Frames that this CPU has taken, less those that it has given back.
    static HELD: Cell<usize> = const { Cell::new(0) };
    /// How often interrupts are disabled.
    static DISABLED: Cell<usize> = const { Cell::new(0) };
    /// Large blocks that are freed from within the heap the next time it asks for frames.
    static FREED: Cell<Option<[Freed; 2]>> = const { Cell::new(None) };
    static HEAP: Cell<Option<&'static Heap>> = const { Cell::new(None) };
    /// How often this CPU disables preemption before it is held up there, as an interrupt would, from stage 1 to 2.
    static AT_PREEMPT: Cell<Option<usize>> = const { Cell::new(None) };
    /// The action of the other CPU, once, after it has drained for this one.
    static THEN: Cell<Option<Then>> = const { Cell::new(None) };
}

/// How far two CPUs have come that wait for each other.
static STAGE: AtomicUsize = AtomicUsize::new(0);

fn reach(stage: usize) {
    STAGE.store(stage, Ordering::SeqCst);
}

fn until(stage: usize) {
    while STAGE.load(Ordering::SeqCst) < stage {
        thread::yield_now();
    }
}

/// On its way to another CPU.
struct Sent(Freed);

// SAFETY: a block is memory that whoever has it may use.
unsafe impl Send for Sent {}

impl Pausing {
    fn new(frames: usize) -> Self {
        Self {
            machine: HostedFrames::new(frames),
            doing: [const { AtomicU8::new(WORKS) }; 2],
            steps: [const { AtomicUsize::new(0) }; 2],
        }
    }

    fn does(&self, what: u8) {
        self.doing[CPU.get()].store(what, Ordering::SeqCst);
    }

    fn other(&self) -> u8 {
        self.doing[1 - CPU.get()].load(Ordering::SeqCst)
    }

    /// Holds this CPU up until the other one is held up, too, or can't go on without it.
    fn pause(&self) {
        self.does(PAUSED);
        while self.other() == WORKS {
            thread::yield_now();
        }
        self.does(WORKS);
    }

    /// Holds this CPU up until the other one has been as often, or can't go on without it.
    fn step(&self) {
        let step = self.steps[CPU.get()].fetch_add(1, Ordering::SeqCst) + 1;
        let other = &self.steps[1 - CPU.get()];
        while other.load(Ordering::SeqCst) < step && self.other() == WORKS {
            thread::yield_now();
        }
    }
}

/// Interrupts are disabled.
struct Disabled;

impl Disabled {
    fn new() -> Self {
        DISABLED.set(DISABLED.get() + 1);
        Self
    }
}

impl Drop for Disabled {
    fn drop(&mut self) {
        DISABLED.set(DISABLED.get() - 1);
    }
}

// SAFETY: everything is `HostedFrames`'.
unsafe impl FramePlatform for Pausing {
    type NoPreempt = ();
    type InterruptGuard = Disabled;

    fn disable_preemption(&self) {
        if let Some(left) = AT_PREEMPT.get() {
            AT_PREEMPT.set(left.checked_sub(1));
            if left == 0 {
                reach(1);
                until(2);
            }
        }
    }

    fn disable_interrupts(&self) -> Disabled {
        Disabled::new()
    }

    hosted_cpus!(machine);

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        if let (Some(blocks), Some(heap)) = (FREED.take(), HEAP.get()) {
            (blocks.into_iter()).for_each(|(block, layout)| free(heap, block, layout));
        }
        assert!(DISABLED.get() > 0);
        match PAUSE.get() {
            Pause::Ask { held } if held == HELD.get() => self.pause(),
            Pause::Lockstep if HELD.get() > 0 => self.step(),
            _ => {}
        }
        let start = self.machine.allocate_frames(count, align);
        if start.is_some() {
            HELD.set(HELD.get() + count);
        }
        start
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        match PAUSE.get() {
            Pause::Free => {
                PAUSE.set(Pause::Never);
                self.pause();
            }
            Pause::Lockstep => self.step(),
            _ => {}
        }
        // Another CPU may have taken them.
        HELD.set(HELD.get().saturating_sub(count));
        // SAFETY: the caller's promise.
        unsafe { self.machine.free_frames(start, count) };
    }

    fn drain_others(&self) -> bool {
        let (Some(heap), Some((then, freed))) = (HEAP.get(), THEN.take()) else {
            return true;
        };
        let sent = Sent(freed);
        thread::scope(|scope| {
            scope.spawn(move || {
                // The whole of it, not its parts.
                let Sent(freed) = { sent };
                then(heap, freed);
            });
        });
        true
    }

    /// Without a bound: the other CPU may not have a core for long.
    fn wait_for_memory(&self, _state: &mut u64) -> bool {
        assert_eq!(DISABLED.get(), 0, "interrupts are as the caller has them");
        self.does(WAITS);
        thread::yield_now();
        self.does(WORKS);
        true
    }
}

fn heap(frames: usize) -> &'static Heap {
    Box::leak(Box::new(MagazineHeap::new(Pausing::new(frames))))
}

fn alloc<P: FramePlatform>(heap: &MagazineHeap<P>, layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: no test asks for zero bytes.
    NonNull::new(unsafe { heap.alloc(layout) })
}

fn free<P: FramePlatform>(heap: &MagazineHeap<P>, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests free what they allocated, once, with the same layout.
    unsafe { heap.dealloc(block.as_ptr(), layout) };
}

/// Runs two CPUs, the second one from when the first is held up, and returns what that gets.
fn second_gets(
    heap: &'static Heap,
    first: fn(&'static Heap),
    second: Layout,
) -> Option<NonNull<u8>> {
    let machine = heap.platform();
    thread::scope(|scope| {
        scope.spawn(move || {
            CPU.set(0);
            first(heap);
            machine.does(DONE);
        });
        CPU.set(1);
        while machine.other() != PAUSED {
            thread::yield_now();
        }
        let block = alloc(heap, second);
        machine.does(DONE);
        block
    })
}

/// Returns whether a request for all frames of a machine is met, while the other CPU has some of them
/// in transit.
#[track_caller]
fn assert_all_found(frames: usize, first: fn(&'static Heap)) {
    let heap = heap(frames);
    let all = layout(heap.platform().machine.frames_left() * FRAME, 8);
    assert!(second_gets(heap, first, all).is_some());
}

#[test]
fn a_slab_that_another_cpu_trims_is_not_out() {
    assert_all_found(64, |heap| {
        let layout = layout(8192, 8);
        let block = alloc(heap, layout).unwrap();
        free(heap, block, layout);
        assert!(heap.drain());
        assert!(heap.totals().slab_frames > 0, "an empty slab is kept");
        PAUSE.set(Pause::Free);
        heap.trim();
    });
}

#[test]
fn frees_that_had_to_wait_and_that_another_cpu_does_are_not_out() {
    assert_all_found(64, |heap| {
        // So aligned, a CPU does not keep them.
        let layouts = [layout(20 * FRAME, 2 * FRAME), layout(3 * FRAME, 2 * FRAME)];
        let blocks = layouts.map(|layout| (alloc(heap, layout).unwrap(), layout));
        HEAP.set(Some(heap));
        FREED.set(Some(blocks));
        // They have to wait as this asks for frames, and are done by the relief that follows.
        PAUSE.set(Pause::Free);
        assert_eq!(alloc(heap, layout(1000 * FRAME, 8)), None);
    });
}

/// Of which three are left: a slab takes one, and its description does not fit in the others.
const TOO_FEW: usize = 4;
/// One more, which is enough for one slab.
const FOR_ONE: usize = 5;

#[test]
fn frames_of_an_attempt_that_fails_are_not_out() {
    assert_all_found(TOO_FEW, |heap| {
        PAUSE.set(Pause::Free);
        assert_eq!(alloc(heap, layout(64, 8)), None);
    });
}

#[test]
fn a_slab_that_another_cpu_makes_of_the_last_frames_is_not_out() {
    for held in 1..4 {
        let heap = heap(FOR_ONE);
        assert_eq!(heap.platform().machine.frames_left(), 4);
        let first = match held {
            1 => |heap| pauses_with(heap, 1),
            2 => |heap| pauses_with(heap, 2),
            _ => |heap| pauses_with(heap, 3),
        };
        assert!(second_gets(heap, first, layout(64, 8)).is_some(), "{held}");
    }

    fn pauses_with(heap: &'static Heap, held: usize) {
        PAUSE.set(Pause::Ask { held });
        assert!(alloc(heap, layout(64, 8)).is_some());
    }
}

#[test]
fn a_cpu_caches_nothing_while_another_one_is_short() {
    let heap = heap(FOR_ONE);
    let (half, all) = (layout(FRAME / 2, 8), layout(4 * FRAME, 8));
    let block = alloc(heap, all).unwrap();
    HEAP.set(Some(heap));
    let then = |heap: &'static Heap, (block, all)| {
        free(heap, block, all);
        // One of two that there are then.
        assert!(alloc(heap, layout(FRAME / 2, 8)).is_some());
    };
    THEN.set(Some((then, (block, all))));
    assert!(alloc(heap, half).is_some());
}

/// The same for one that has looked whether another is short, and is interrupted before it takes blocks.
#[test]
fn a_cpu_that_is_interrupted_caches_nothing_while_another_one_is_short_either() {
    let heap = heap(FOR_ONE);
    let (half, all) = (layout(FRAME / 2, 8), layout(4 * FRAME, 8));
    let block = alloc(heap, all).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            CPU.set(1);
            // Two looks at the cache come first.
            AT_PREEMPT.set(Some(2));
            assert!(alloc(heap, half).is_some());
            reach(3);
        });
        until(1);
        HEAP.set(Some(heap));
        let then = |heap: &'static Heap, (block, all)| {
            free(heap, block, all);
            reach(2);
            until(3);
        };
        THEN.set(Some((then, (block, all))));
        assert!(alloc(heap, half).is_some());
    });
}

/// As often as a CPU has taken some of the last frames, so has the other one. One of them must get all.
#[test]
fn two_cpus_do_not_keep_the_last_frames_from_each_other() {
    let heap = heap(FOR_ONE);
    let got = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (cpu, size) in [64, 512].into_iter().enumerate() {
            let got = &got;
            scope.spawn(move || {
                CPU.set(cpu);
                PAUSE.set(Pause::Lockstep);
                if alloc(heap, layout(size, 8)).is_some() {
                    got.fetch_add(1, Ordering::SeqCst);
                }
                heap.platform().does(DONE);
            });
        }
    });
    assert_eq!(got.into_inner(), 1);
    assert_eq!(heap.totals().frames(), 4);
}

/// The same, as it happens.
#[test]
fn of_cpus_that_want_the_last_frames_at_once_one_gets_them() {
    const ROUNDS: usize = 5000;

    let heap = MagazineHeap::new(Yielding(HostedFrames::new(FOR_ONE)));
    let [start, end] = [(); 2].map(|()| Barrier::new(2));
    let got = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (cpu, size) in [64, 512].into_iter().enumerate() {
            let (heap, start, end, got) = (&heap, &start, &end, &got);
            scope.spawn(move || {
                CPU.set(cpu);
                let layout = layout(size, 8);
                for _ in 0..ROUNDS {
                    start.wait();
                    let block = alloc(heap, layout);
                    got.fetch_add(usize::from(block.is_some()), Ordering::SeqCst);
                    end.wait();
                    if let Some(block) = block {
                        free(heap, block, layout);
                        assert!(heap.drain());
                        heap.trim();
                    }
                }
            });
        }
    });
    assert_eq!(got.into_inner(), ROUNDS);
    assert_eq!(heap.totals().frames(), 0);
}

/// One CPU wants all frames, and another one more than there are: it takes some, again and again.
#[test]
fn frames_of_attempts_that_fail_again_and_again_are_not_out() {
    const ROUNDS: usize = 5000;

    let heap = MagazineHeap::new(Yielding(HostedFrames::new(TOO_FEW)));
    let all = layout((TOO_FEW - 1) * FRAME, 8);
    let is_over = AtomicBool::new(false);
    let refused = thread::scope(|scope| {
        scope.spawn(|| {
            CPU.set(1);
            while !is_over.load(Ordering::SeqCst) {
                assert_eq!(alloc(&heap, layout(64, 8)), None);
            }
        });
        let refused = (0..ROUNDS)
            .filter(|_| match alloc(&heap, all) {
                Some(block) => {
                    free(&heap, block, all);
                    false
                }
                None => true,
            })
            .count();
        is_over.store(true, Ordering::SeqCst);
        refused
    });
    assert_eq!(refused, 0);
}

/// A machine whose CPUs are slow with their frames, each time for another while, and share the cores of a
/// busy host.
struct Yielding(HostedFrames);

thread_local! {
    static RANDOM: RefCell<Random> = RefCell::new(Random::new(CPU.get() as u64));
}

impl Yielding {
    fn linger() {
        let turns = RANDOM.with_borrow_mut(|random| random.below(1000));
        (0..turns).for_each(|_| hint::spin_loop());
    }
}

// SAFETY: everything is `HostedFrames`'.
unsafe impl FramePlatform for Yielding {
    nothing_interrupts!();

    hosted_cpus!(0);

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        Self::linger();
        self.0.allocate_frames(count, align)
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        Self::linger();
        // SAFETY: the caller's promise.
        unsafe { self.0.free_frames(start, count) };
    }

    fn wait_for_memory(&self, _state: &mut u64) -> bool {
        thread::yield_now();
        true
    }
}

type Checked = CheckedHeap<Heap, OneQuarantine>;

/// A machine whose CPUs have one quarantine.
struct OneQuarantine(Quarantine);

thread_local! {
    /// The heap in which this CPU waits for what another one releases.
    static WAITS_IN: Cell<Option<&'static Checked>> = const { Cell::new(None) };
}

// SAFETY: (1) the test frees nothing but blocks; (2) the quarantine is one heap's.
unsafe impl CheckPlatform for OneQuarantine {
    fn cpu(&self) -> Option<usize> {
        None
    }

    fn quarantine(&self) -> &Quarantine {
        &self.0
    }

    fn each_quarantine(&self, visit: &mut dyn FnMut(&Quarantine)) {
        visit(&self.0);
    }

    fn may_read(&self, _start: usize, _length: usize) -> bool {
        true
    }

    /// Without a bound: the other CPU, which goes on now, may not have a core for long.
    fn wait_for_release(&self, _state: &mut u64) -> bool {
        if let Some(heap) = WAITS_IN.get() {
            heap.heap().platform().does(DONE);
        }
        thread::yield_now();
        true
    }
}

#[test]
fn a_block_on_its_way_from_a_quarantine_is_not_out() {
    let [first, second, third] = [600, 500, 590].map(|kib| layout(kib << 10, 8));
    assert!(first.size() < MAX_QUARANTINED && first.size() + second.size() > MAX_QUARANTINED);
    // Room for the first two, and not for the third beside either.
    let machine = OneQuarantine(Quarantine::new());
    let heap = MagazineHeap::new(Pausing::new(282));
    let heap: &'static Checked = Box::leak(Box::new(CheckedHeap::new(heap, machine)));
    let platform = heap.heap().platform();
    // SAFETY: nothing is zero bytes; each is freed once, with its layout.
    unsafe {
        let blocks = [first, second].map(|layout| (heap.alloc(layout).addr(), layout));
        assert!(blocks.iter().all(|&(block, _)| block != 0));
        let free = move |(block, layout): (usize, Layout)| {
            heap.dealloc(core::ptr::with_exposed_provenance_mut(block), layout);
        };
        free(blocks[0]);
        let found = thread::scope(|scope| {
            scope.spawn(move || {
                CPU.set(0);
                PAUSE.set(Pause::Free);
                // The first block goes for this one.
                free(blocks[1]);
            });
            CPU.set(1);
            while platform.other() != PAUSED {
                thread::yield_now();
            }
            WAITS_IN.set(Some(heap));
            let found = heap.alloc(third);
            platform.does(DONE);
            found
        });
        assert!(!found.is_null());
    }
}
