//! What the workloads do to an allocator, seen by allocators that look closely.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::{Barrier, Mutex};
use std::time::Instant;
use std::{fmt, ptr, thread};

use muster_bench::contenders;
use muster_bench::meter::Limit;
use muster_bench::report::Console;
use muster_bench::{
    BuddyFrames, Contender, Course, Empty, Kind, Machine, MusterFrames, OnFrames, OnHeap, Options,
    Place, Problem, Room, Workload, compare,
};
use muster_frames::{FrameAllocator, FrameInfo, PhysAddr, PhysRange};

/// Steps of each CPU.
const STEPS: u32 = 1000;

/// Threads for CPUs.
struct Threads {
    cpus: usize,
    start: Instant,
}

impl Threads {
    fn new(cpus: usize) -> Self {
        Self {
            cpus,
            start: Instant::now(),
        }
    }
}

impl Machine for Threads {
    fn cpus(&self) -> usize {
        self.cpus
    }

    fn ticks(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn ticks_per_second(&self) -> u64 {
        1_000_000_000
    }

    fn run(&self, cpus: usize, work: &(dyn Fn(Place<'_>) + Sync)) {
        let barrier = Barrier::new(cpus);
        let line = || {
            barrier.wait();
        };
        thread::scope(|scope| {
            for cpu in 0..cpus {
                let line = &line;
                scope.spawn(move || work(Place { cpu, line }));
            }
        });
    }
}

/// Knows every block that is live, and refuses one in a number of allocations.
struct Ledger {
    live: Mutex<HashMap<usize, Layout>>,
    refused: Mutex<(u64, u64)>,
}

impl Ledger {
    fn new(refused_of: u64) -> Self {
        Self {
            live: Mutex::default(),
            refused: Mutex::new((0, refused_of)),
        }
    }

    fn refuses(&self) -> bool {
        let (count, refused_of) = &mut *self.refused.lock().unwrap();
        *count += 1;
        count.is_multiple_of(*refused_of)
    }
}

// SAFETY: the system's allocator, or null.
unsafe impl GlobalAlloc for Ledger {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.refuses() {
            return ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        let block = unsafe { System.alloc(layout) };
        let old = self.live.lock().unwrap().insert(block.addr(), layout);
        assert_eq!(old, None);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let found = self.live.lock().unwrap().remove(&block.addr());
        assert_eq!(found, Some(layout));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

fn numbers_of_cpus(workload: Workload) -> impl Iterator<Item = usize> {
    [1, 2, 3, 4]
        .into_iter()
        .filter(move |&cpus| workload.runs_on(cpus))
}

/// Runs a contender in all its workloads, for some steps each.
fn run_all(contender: &dyn Contender, mut check: impl FnMut(Workload, u64)) {
    let machine = Threads::new(4);
    let room = Room::new(4);
    for workload in Workload::ALL {
        if !contender.takes_part(workload) {
            continue;
        }
        for cpus in numbers_of_cpus(workload) {
            let course = Course {
                machine: &machine,
                room: &room,
                cpus,
                limit: Limit::Steps(STEPS),
            };
            let score = contender.run(workload, &course);
            assert!(score.steps >= u64::from(STEPS), "{workload:?} on {cpus}");
            assert!(score.millisteps_per_second > 0 && score.ticks > 0);
            check(workload, score.failures);
        }
    }
}

#[test]
fn every_block_goes_back_once_with_its_layout() {
    let contender = OnHeap::new("ledger", Kind::Kernel, Ledger::new(u64::MAX));
    run_all(&contender, |workload, failures| {
        assert_eq!(failures, 0, "{workload:?}");
        assert!(
            contender.heap().live.lock().unwrap().is_empty(),
            "{workload:?}"
        );
    });
}

#[test]
fn refused_allocations_are_counted_and_survived() {
    let contender = OnHeap::new("ledger", Kind::Kernel, Ledger::new(7));
    run_all(&contender, |workload, failures| {
        assert!(failures > 0, "{workload:?}");
        assert!(
            contender.heap().live.lock().unwrap().is_empty(),
            "{workload:?}"
        );
    });
}

#[test]
fn every_allocator_does_every_workload() {
    fn arena() -> contenders::Arena {
        Box::leak(vec![MaybeUninit::uninit(); 64 << 20].into_boxed_slice())
    }
    let all: [&dyn Contender; 5] = [
        &OnHeap::new(
            "linked_list",
            Kind::Kernel,
            contenders::linked_list(arena()),
        ),
        &OnHeap::new("talc", Kind::Kernel, contenders::talc(arena())),
        &OnHeap::new(
            "buddy_system",
            Kind::Kernel,
            contenders::buddy_system(arena()),
        ),
        &OnHeap::new("rlsf", Kind::Kernel, contenders::rlsf(arena())),
        &OnHeap::new(
            "good_memory",
            Kind::Kernel,
            contenders::good_memory(arena()),
        ),
    ];
    for contender in all {
        run_all(contender, |workload, failures| {
            assert_eq!(failures, 0, "{workload:?} of {}", contender.name());
        });
    }
}

#[test]
fn every_frame_goes_back() {
    let range =
        PhysRange::from_bounds(PhysAddr::new(0x1000_0000), PhysAddr::new(0x1800_0000)).unwrap();
    let records = FrameInfo::needed([range].into_iter());
    let records = Box::leak(Box::new_uninit_slice(records));
    // SAFETY: nothing uses the memory of these frames, which is none.
    let frames =
        unsafe { FrameAllocator::new([range].into_iter(), [].into_iter(), records) }.unwrap();
    let frames = frames.with_caches(4).unwrap();
    let muster = OnFrames::new("muster", Kind::Muster, MusterFrames(&frames));
    run_all(&muster, |workload, failures| {
        assert_eq!(failures, 0, "{workload:?}");
        assert_eq!(frames.free_frames(), frames.capacity(), "{workload:?}");
    });
    let buddy = BuddyFrames::new(0x1_0000..0x1_8000);
    let buddy = OnFrames::new("buddy_system", Kind::Kernel, buddy);
    run_all(&buddy, |workload, failures| {
        assert_eq!(failures, 0, "{workload:?}")
    });
    // As many CPUs as caches: one more is told, and nobody waits for it in vain.
    let frames = frames.with_caches(1).unwrap();
    let short = OnFrames::new("muster", Kind::Muster, MusterFrames(&frames));
    let course = Course {
        machine: &Threads::new(2),
        room: &Room::new(2),
        cpus: 2,
        limit: Limit::Steps(100),
    };
    assert_eq!(short.run(Workload::FramePair, &course).failures, 1);
}

/// The report, line by line.
#[derive(Default)]
struct Lines(Vec<String>);

impl Console for Lines {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        self.0.push(text.to_string());
    }

    fn progress(&mut self, _: fmt::Arguments<'_>) {}
}

fn report(words: &[(&str, &str)]) -> (Vec<String>, Result<(), Problem>) {
    let mut options = Options::default();
    for (key, value) in words {
        options.take(key, value).unwrap();
    }
    let arena = Box::leak(vec![MaybeUninit::uninit(); 64 << 20].into_boxed_slice());
    let list = OnHeap::new("linked_list", Kind::Kernel, contenders::linked_list(arena));
    let system = OnHeap::new("muster", Kind::Muster, System);
    let mut lines = Lines::default();
    let machine = Threads::new(2);
    let result = compare(&machine, &[&list, &system], &options, &mut lines);
    (lines.0, result)
}

#[test]
fn a_comparison_tells_what_it_was_asked_for() {
    let words = [
        ("bench", "churn,xfree"),
        ("on", "1,2,64"),
        ("rounds", "3"),
        ("time", "1"),
    ];
    let (lines, result) = report(&words);
    assert_eq!(result, Ok(()));
    let heats: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("CPUs: "))
        .collect();
    assert_eq!(
        heats,
        ["churn, CPUs: 1", "churn, CPUs: 2", "xfree, CPUs: 2"]
    );
    assert!(lines.iter().all(|line| line.len() <= 52), "{lines:#?}");
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.starts_with("muster to the best"))
            .count(),
        3
    );

    let words = [&words[..], &[("format", "json"), ("allocators", "muster")]].concat();
    let (lines, result) = report(&words);
    assert_eq!((lines.len(), result), (3, Ok(())));
    for line in lines {
        assert!(
            line.contains("\"allocator\":\"muster\"") && line.contains("list\":null"),
            "{line}"
        );
    }
}

#[test]
fn what_cannot_be_compared_is_said() {
    assert_eq!(
        report(&[("allocators", "mimalloc")]).1,
        Err(Problem::Nothing)
    );
    assert_eq!(
        report(&[("bench", "xfree"), ("on", "1")]).1,
        Err(Problem::Nothing)
    );
    assert_eq!(report(&[("bench", "frames")]).1, Err(Problem::Nothing));
    // This clock counts nanoseconds.
    let counted = report(&[("measure", "instructions"), ("bench", "churn")]).1;
    assert!(
        matches!(counted, Err(Problem::NoCount { .. })),
        "{counted:?}"
    );
}

#[test]
fn the_empty_loop_is_a_contender() {
    let room = Room::new(1);
    for workload in Workload::ALL
        .into_iter()
        .filter(|workload| workload.runs_on(1))
    {
        let course = Course {
            machine: &Threads::new(1),
            room: &room,
            cpus: 1,
            limit: Limit::Steps(4096),
        };
        let score = Empty.run(workload, &course);
        assert!(score.steps >= 4096 && score.failures == 0, "{workload:?}");
    }
}
