//! How far each CPU's TSC is from the BSP's: times of several CPUs compare only as far as their counters
//! do.
//!
//! When the roll has been called, the BSP asks one AP after the other for its TSC, some times each. The
//! answer was given between the question and its arrival, which bounds the difference from both sides;
//! all answers together bound it best ([`Offset`]).

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use heapless::String;
use muster_machine::time::{Offset, Round};

use crate::arch::clock::{self, Deadline};
use crate::smp::call::{self, Targets};
use crate::smp::online;
use crate::smp::progress::PROGRESS;

/// How often each AP is asked. The first answer is late, as the AP is idle; of the others some come at
/// once.
const ROUNDS: u64 = 32;

/// How long an AP may take for all of its answers, in milliseconds, and all APs together: a virtual CPU
/// may be off its host core, and this measurement is not worth a longer wait.
const TIMEOUT: u64 = 200;
const TIMEOUT_OF_ALL: u64 = 2000;

/// The distance of two CPUs' TSCs, in nanoseconds, beyond which a warning says that their times
/// don't compare.
const MAX_DISTANCE: u64 = 1000;

/// Instead of a round's number: there are no more.
const OVER: u64 = u64::MAX;

/// How many CPUs stand in one line of the log, which fits a terminal of 80 columns while no number has more
/// than ten digits. That does not depend on the numbers, so that runs look alike.
const COLUMNS: usize = 2;

/// The round that the BSP asks for, from 1 on.
static QUESTION: CachePadded<AtomicU64> = CachePadded::new(AtomicU64::new(0));

/// The round that the AP has answered, and its stamp.
static ANSWER: CachePadded<(AtomicU64, AtomicU64)> =
    CachePadded::new((AtomicU64::new(0), AtomicU64::new(0)));

/// Measures it for each online AP. Called on the BSP, when no CPU has work yet.
pub fn measure() {
    let deadline = Deadline::after_millis(TIMEOUT_OF_ALL);
    for (index, block) in online::cpus().skip(1) {
        if deadline.passed() {
            break;
        }
        if let Some(offset) = ask(index) {
            block.get(&PROGRESS).skew().note(offset);
        }
    }
}

/// Asks one AP. Returns `None` if it does not answer in time, or its answers contradict each other.
fn ask(index: u32) -> Option<Offset> {
    // Relaxed, both: the call publishes them to the AP.
    QUESTION.store(0, Ordering::Relaxed);
    ANSWER.0.store(0, Ordering::Relaxed);
    let pending = call::begin(Targets::One(index), TIMEOUT, &|_| answer()).ok()?;
    let deadline = Deadline::after_millis(TIMEOUT);
    let mut all = None;
    for number in 1..=ROUNDS {
        let Some(round) = ask_once(number, deadline) else {
            break;
        };
        let offset = Offset::of(round);
        all = match all {
            None => offset,
            Some(all) => offset.and_then(|offset| offset.and(all)),
        };
        if all.is_none() {
            break;
        }
    }
    // Release, as each question: it comes after the answer to the one before.
    QUESTION.store(OVER, Ordering::Release);
    // If it has not taken the call, it never will; else it is done now.
    let answered = pending.wait();
    all.filter(|_| answered.is_ok())
}

fn ask_once(number: u64, deadline: Deadline) -> Option<Round> {
    let asked = stamp();
    // Release: the question is seen after the stamp was taken.
    QUESTION.store(number, Ordering::Release);
    // Acquire: with the number comes the stamp that was stored before it.
    while ANSWER.0.load(Ordering::Acquire) != number {
        if deadline.passed() {
            return None;
        }
        call::relax();
    }
    let received = stamp();
    Some(Round {
        asked,
        // Relaxed: the number was acquired.
        answered: ANSWER.1.load(Ordering::Relaxed),
        received,
    })
}

/// Answers on the AP, as a handler, until there are no more questions.
fn answer() {
    let deadline = Deadline::after_millis(TIMEOUT);
    let mut last = 0;
    while !deadline.passed() {
        // Acquire: the stamp is taken after the question.
        match QUESTION.load(Ordering::Acquire) {
            OVER => break,
            number if number != last => {
                // Relaxed: the number that follows releases it.
                ANSWER.1.store(stamp(), Ordering::Relaxed);
                ANSWER.0.store(number, Ordering::Release);
                last = number;
            }
            _ => core::hint::spin_loop(),
        }
    }
}

/// Reads the TSC after all earlier instructions of the program, and before all later ones.
fn stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: every x86-64 CPU has the instructions, CR4.TSD does not bind ring 0, and they write to no
    // memory. `lfence` waits for earlier instructions, and lets none begin before it is done (Intel SDM
    // vol. 2A, LFENCE; vol. 2B, RDTSC). Not `nomem`: loads and stores keep their side of it.
    unsafe {
        core::arch::asm!(
            "lfence",
            "rdtsc",
            "lfence",
            out("eax") low,
            out("edx") high,
            options(nostack, preserves_flags)
        );
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Logs by how many nanoseconds each AP's TSC is ahead of the BSP's, and by how many that may be wrong;
/// with a warning for those too far away for times to compare.
pub fn log() {
    let mut aps = online::cpus().skip(1).peekable();
    if aps.peek().is_none() {
        return;
    }
    log::info!(target: "roll", "ns that each TSC is ahead of the BSP's, and error:");
    while aps.peek().is_some() {
        // An index and two numbers, of at most 19 digits.
        let mut row = String::<{ COLUMNS * 56 }>::new();
        for (index, block) in aps.by_ref().take(COLUMNS) {
            let _ = match block.get(&PROGRESS).skew().nanos() {
                Some((ahead, error)) => write!(row, "{index:>3} {ahead:>+9} {error:<9}"),
                None => write!(row, "{index:>3} {:>9} {:<9}", "-", ""),
            };
        }
        log::info!(target: "roll", "{}", row.trim_end());
    }
    for (index, block) in online::cpus().skip(1) {
        let Some(offset) = block.get(&PROGRESS).skew().offset() else {
            continue;
        };
        let distance = clock::to_nanos(offset.min_distance());
        if distance > MAX_DISTANCE {
            let side = if offset.least > 0 {
                "ahead of"
            } else {
                "behind"
            };
            log::warn!(
                target: "roll",
                "the TSC of CPU {index} is {distance} ns or more {side} the BSP's: their times don't compare"
            );
        }
    }
}
