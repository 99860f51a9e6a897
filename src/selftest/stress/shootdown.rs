//! Shootdown: a page is protected, or unmapped, while each of the other CPUs is in one of the states
//! in which it can be asked to flush. After that, each of them must fault there.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use muster::internals::arch::clock::Deadline;
use muster::internals::arch::probe::{self, Fault};
use muster::internals::mm::mapping::Mapping;
use muster::internals::smp::lock::{Level, Lock};
use muster::internals::smp::{call, jobs, timer};
use muster_frames::FRAME_SIZE;
use muster_paging::Access;
use x86_64::instructions::interrupts;

use super::worker::Worker;
use crate::selftest::step;

/// How long a CPU waits for another one to be ready, or done, in milliseconds.
const TIMEOUT: u64 = 60_000;

/// How long a CPU stays unresponsive, once it is asked, in microseconds.
const UNRESPONSIVE: u64 = 50;

/// How often an idle CPU wakes to check, in microseconds.
const IDLE_PERIOD: u64 = 500;

/// The error codes of a store to a page that is not present, and to one that is read-only (Intel SDM
/// vol. 3A, 4.7: the bits P and W/R).
const MISSING: u64 = 0b10;
const READ_ONLY: u64 = 0b11;

/// The state of a CPU when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TargetState {
    /// It works, with interrupts enabled.
    Working,
    /// It holds a lock, and so has interrupts disabled.
    Locked,
    /// It is in an exception's handler.
    Handling,
    /// It waits for something with interrupts disabled, and serves calls.
    Waiting,
    /// It is halted.
    Idle,
    /// It asks others itself.
    Asking,
}

const STATES: [TargetState; 6] = [
    TargetState::Working,
    TargetState::Locked,
    TargetState::Handling,
    TargetState::Waiting,
    TargetState::Idle,
    TargetState::Asking,
];

/// The state that the CPUs of a round share. A barrier publishes the Relaxed stores before it; the others
/// are Release, and Acquire: no CPU's access to the page moves past the shootdown's begin or end.
pub struct Range {
    /// The page's address; 0: there is none in this round.
    address: AtomicU64,
    /// CPUs that are in their state.
    ready: AtomicUsize,
    /// Whether the shootdown has begun, and is done.
    begun: AtomicBool,
    done: AtomicBool,
}

impl Range {
    /// Creates that of a workload that has not begun.
    pub const fn new() -> Self {
        Self {
            address: AtomicU64::new(0),
            ready: AtomicUsize::new(0),
            begun: AtomicBool::new(false),
            done: AtomicBool::new(false),
        }
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}

/// Waits until a condition holds, in a loop that calls `body`.
fn wait_until(is_so: impl Fn() -> bool, mut body: impl FnMut()) {
    let deadline = Deadline::after_millis(TIMEOUT);
    while !is_so() {
        assert!(
            !deadline.passed(),
            "a CPU waits in vain in the shootdown workload"
        );
        body();
        core::hint::spin_loop();
    }
}

/// Runs the workload on this CPU.
pub fn run(worker: &mut Worker<'_>, range: &Range) {
    let mut round = 0;
    loop {
        let unmaps = round % 2 == 0;
        if round % worker.cpus == worker.slot {
            shoot(worker, range, unmaps);
        } else {
            let state = STATES[(round / 2 + worker.slot) % STATES.len()];
            stand(worker, range, state, unmaps);
        }
        round += 1;
        if !worker.all_go_on() {
            return;
        }
    }
}

/// Maps a page, and unmaps it, or makes it read-only.
fn shoot(worker: &mut Worker<'_>, range: &Range, unmaps: bool) {
    let page = Mapping::memory(FRAME_SIZE);
    let address = page
        .as_ref()
        .map_or(0, |page| page.start().expose_provenance() as u64);
    range.ready.store(0, Ordering::Relaxed);
    range.begun.store(false, Ordering::Relaxed);
    range.done.store(false, Ordering::Relaxed);
    range.address.store(address, Ordering::Relaxed);
    worker.wait_for_all();
    match page {
        Ok(mut page) => {
            let others = worker.cpus - 1;
            wait_until(
                || range.ready.load(Ordering::Acquire) == others,
                call::serve,
            );
            range.begun.store(true, Ordering::Release);
            if unmaps {
                worker.timed(|| drop(page));
                range.done.store(true, Ordering::Release);
                worker.wait_for_all();
            } else {
                // SAFETY: no reference to the memory is left, and all later writes are probes.
                let protected = worker.timed(|| unsafe { page.protect(Access::ReadOnly) });
                if let Err(error) = protected {
                    worker.tally.corrupt += 1;
                    log::error!("a mapping can't be protected: {error}");
                }
                range.done.store(true, Ordering::Release);
                // It stays until all have tried it.
                worker.wait_for_all();
            }
            worker.tally.bytes += FRAME_SIZE;
        }
        Err(_) => {
            worker.tally.refused += 1;
            worker.wait_for_all();
        }
    }
}

/// Uses the page, is in a state during the shootdown, and must fault there afterwards.
fn stand(worker: &mut Worker<'_>, range: &Range, state: TargetState, unmaps: bool) {
    // Mapped before and unmapped after the other, so that it can't be mapped at its address.
    let mut own = (state == TargetState::Asking)
        .then(|| Mapping::memory(FRAME_SIZE).ok())
        .flatten();
    worker.wait_for_all();
    let address = range.address.load(Ordering::Relaxed);
    if address != 0 {
        let word = address + worker.slot as u64 % (FRAME_SIZE / 8) * 8;
        let expect = |expected: Result<(), Fault>| {
            let pointer = core::ptr::with_exposed_provenance_mut(word as usize);
            // SAFETY: where it is mapped, the word is this CPU's (or shared with some that store the
            // same); nothing else is mapped there before all have met at the barrier.
            let result = unsafe { probe::store(pointer, address) };
            if result != expected {
                log::error!("a store to {word:#x} came to {result:?}, not {expected:?}, {state:?}");
            }
            result == expected
        };
        let could_write = expect(Ok(()));
        be(state, range, own.as_mut());
        let error = if unmaps { MISSING } else { READ_ONLY };
        let could_not = expect(Err(Fault {
            address: word,
            error,
        }));
        worker.tally.corrupt += u64::from(!could_write) + u64::from(!could_not);
        worker.tally.operations += 2;
    }
    worker.wait_for_all();
}

/// Stays in a state from before the shootdown begins until it is done.
fn be(state: TargetState, range: &Range, own: Option<&mut Mapping>) {
    let ready = || {
        range.ready.fetch_add(1, Ordering::AcqRel);
    };
    let stay_unresponsive = || {
        ready();
        wait_until(|| range.has_begun(), || {});
        let deadline = Deadline::after_micros(UNRESPONSIVE);
        while !deadline.passed() {
            core::hint::spin_loop();
        }
    };
    match state {
        TargetState::Working => ready(),
        TargetState::Locked => {
            let lock = Lock::new(Level::Workload, ());
            let held = lock.lock();
            stay_unresponsive();
            drop(held);
        }
        TargetState::Handling => {
            step::run(1, &stay_unresponsive, &|| {});
        }
        TargetState::Waiting => {
            ready();
            interrupts::without_interrupts(|| wait_until(|| range.is_done(), call::serve));
        }
        TargetState::Idle if timer::is_there() => {
            ready();
            timer::every(IDLE_PERIOD, &|| {}, || {
                wait_until(|| range.is_done(), jobs::idle)
            });
        }
        TargetState::Idle => ready(),
        TargetState::Asking => {
            ready();
            let mut access = Access::ReadOnly;
            if let Some(own) = own {
                wait_until(
                    || range.is_done(),
                    || {
                        // SAFETY: there is no reference to the memory, and nothing uses it.
                        let changed = unsafe { own.protect(access) };
                        assert!(changed.is_ok(), "a mapping can't be protected: {changed:?}");
                        access = match access {
                            Access::ReadOnly => Access::ReadWrite,
                            _ => Access::ReadOnly,
                        };
                    },
                );
            }
        }
    }
    wait_until(|| range.is_done(), || {});
}
