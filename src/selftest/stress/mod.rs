//! The stress: every CPU allocates and frees at once, and every byte is checked.
//!
//! A workload is a loop that each CPU runs on state of its own until its time is up. Each block is
//! filled with a pattern that only its owner could have written, and checked when it is freed: so
//! two owners of one byte are detected.

mod block;
mod calls;
mod churn;
mod exhaustion;
mod growth;
mod handover;
mod interrupts;
mod mappings;
mod marked;
mod mixed;
mod random;
pub mod sample;
mod shared_state;
mod shootdown;
mod soak;
mod timer;
mod worker;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use crossbeam_utils::CachePadded;
use muster::internals::arch::clock::{self, Deadline};
use muster::internals::boot::bytes::Bytes;
use muster::internals::mm::{heap, shared};
use muster::internals::report::events;
use muster::internals::smp::activity::ACTIVITY;
use muster::internals::smp::jobs::{self, TimedBarrier};
use muster::internals::smp::lock::{Level, Lock};
use muster::internals::smp::{cpu, online};
use muster_arguments::{Arguments, HeapKind, Workload, Workloads};

use self::random::Random;
use self::sample::Sampler;
use self::shared_state::SharedState;
use self::worker::{ProgressLine, Rendezvous, Tally, Worker};

/// How long a CPU may take beyond a workload's time before it counts as hung, in milliseconds:
/// freeing the remaining blocks takes a while with many CPUs and few cores.
const TIMEOUT: u64 = 60_000;

/// The additional timeout for each MiB that exhaustion has to fill and check, in milliseconds.
const TIMEOUT_PER_MIB: u64 = 20;

/// Free memory that the stress needs for each CPU, in bytes: with less its own records would run
/// out of memory.
const MIN_PER_CPU: u64 = 512 * 1024;

/// A stress on the other CPUs, beside the monitor's prompt.
pub struct BackgroundWork<'a> {
    is_done: &'a dyn Fn() -> bool,
    is_stopped: &'a AtomicBool,
    sampler: Sampler,
}

impl BackgroundWork<'_> {
    /// Returns whether all CPUs are done with it.
    pub fn is_done(&self) -> bool {
        (self.is_done)()
    }

    /// Takes a sample of all CPUs' progress, if it is time: to be called repeatedly.
    pub fn sample(&self) {
        self.sampler.look();
    }

    /// Returns the workload.
    pub fn workload(&self) -> Workload {
        self.sampler.workload()
    }

    /// Has all CPUs stop.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }
}

/// The CPUs of a workload.
enum Party<'a> {
    /// All CPUs.
    All,
    /// All but this one, which runs this closure: the work ends when it returns, if not before.
    Others(&'a mut dyn FnMut(&BackgroundWork<'_>)),
}

impl Party<'_> {
    /// Returns the slot of its first CPU among the online ones.
    fn first(&self) -> usize {
        match self {
            Self::All => 0,
            Self::Others(_) => 1,
        }
    }
}

/// Runs the workloads that are asked for on all CPUs, one after another, on the heap
/// that is asked for, or on one after the other to compare them.
///
/// # Errors
///
/// If any block was corrupt, or a workload did nothing at all.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let kinds = arguments.heap.kinds();
    let workloads = possible(arguments.selftest.stress, kinds);
    let runs = workloads.len() * kinds.len();
    let Some(millis) = arguments.selftest.stress_millis.checked_div(runs as u64) else {
        log::info!("no stress asked for");
        return Ok(());
    };
    let cpus = online::count();
    check_memory(cpus)?;
    let mut failures = Vec::new();
    let mut rates: Vec<Vec<u64>> = Vec::new();
    for &kind in kinds {
        heap::open(kind);
        log::info!(
            "{} workloads on {cpus} CPUs, {millis} ms each, seed {}",
            workloads.len(),
            arguments.selftest.seed
        );
        log::info!("heap: {}", kind.name());
        rates.push(run_all(
            &workloads,
            arguments,
            millis,
            &mut Party::All,
            &mut failures,
        ));
    }
    heap::log_usage();
    if let [first, second] = &rates[..] {
        compare(&workloads, kinds, first, second);
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures.join(", "))
    }
}

/// How long a workload's turn is in a stress without an end, in milliseconds.
const TURN: u64 = 10_000;

/// Runs the workloads on all other CPUs, one after the other, for `millis` together, or in turns
/// until they are stopped; and runs `attend` on this one, once for each workload, until it is done.
///
/// Returns the failures, as [`run`] does.
///
/// # Errors
///
/// Why there is no such work, in words: no other CPU, or too little memory.
pub fn run_beside(
    workloads: Workloads,
    millis: Option<u64>,
    arguments: &Arguments,
    attend: &mut dyn FnMut(&BackgroundWork<'_>),
) -> Result<Vec<String>, String> {
    let cpus = online::count() - 1;
    if cpus == 0 {
        return Err(String::from("there is no other CPU to put to work"));
    }
    let workloads = possible(workloads, arguments.heap.kinds());
    check_memory(cpus)?;
    let each = match (millis, workloads.len()) {
        (_, 0) => return Ok(Vec::new()),
        (Some(millis), workloads) => millis / workloads as u64,
        (None, 1) => u64::MAX,
        (None, _) => TURN,
    };
    let mut failures = Vec::new();
    let mut is_stopped = false;
    while !is_stopped {
        let mut party = Party::Others(&mut |work| {
            attend(work);
            is_stopped |= work.is_stopped.load(Ordering::Relaxed);
        });
        run_all(&workloads, arguments, each, &mut party, &mut failures);
        if millis.is_some() || !failures.is_empty() {
            break;
        }
    }
    Ok(failures)
}

/// Returns the workloads that can run on this machine, on these heaps.
fn possible(workloads: Workloads, kinds: &[HeapKind]) -> Vec<Workload> {
    let mut workloads: Vec<Workload> = workloads.iter().collect();
    let mut leave_out = |why: &str, which: &[Workload]| {
        workloads.retain(|workload| {
            let is_possible = !which.contains(workload);
            if !is_possible {
                log::warn!("the workload {} is left out: {why}", workload.name());
            }
            is_possible
        });
    };
    if !muster::internals::smp::timer::is_there() {
        leave_out("no CPU has a timer", &[Workload::Timer]);
    }
    if kinds.contains(&HeapKind::LinkedList) {
        // Left out for both heaps if they are compared.
        leave_out(
            "the list answers a handler on top of it with null, and can't free what that frees",
            &[
                Workload::Interrupts,
                Workload::Timer,
                Workload::Calls,
                Workload::Soak,
            ],
        );
    }
    workloads
}

/// Checks that there is memory for a stress on this number of CPUs.
fn check_memory(cpus: usize) -> Result<(), String> {
    let (available, needed) = (available(), MIN_PER_CPU * cpus as u64);
    if available < needed {
        return Err(format!(
            "too little memory for the stress: {} free, {} needed",
            Bytes(available),
            Bytes(needed)
        ));
    }
    Ok(())
}

/// Runs the workloads on the heap in use. Returns the operations per second of each, and adds to
/// `failures`.
fn run_all(
    workloads: &[Workload],
    arguments: &Arguments,
    millis: u64,
    party: &mut Party<'_>,
    failures: &mut Vec<String>,
) -> Vec<u64> {
    let first = party.first();
    let cpus = online::count() - first;
    let mut per_cpu: Vec<Tally> = (0..cpus).map(|_| Tally::default()).collect();
    let mut rates = Vec::new();
    log::info!("workload   operations per second     bytes corrupt");
    for &workload in workloads {
        let tallies: Vec<CachePadded<Lock<Tally>>> = (0..cpus)
            .map(|_| CachePadded::new(Lock::new(Level::Workload, Tally::default())))
            .collect();
        let Stint { micros, is_whole } = run_one(workload, arguments, millis, &tallies, party);
        let mut all = Tally::default();
        for (sum, tally) in per_cpu.iter_mut().zip(&tallies) {
            sum.add(&tally.lock());
            all.add(&tally.lock());
        }
        let rate = all.operations * 1_000_000 / micros.max(1);
        rates.push(rate);
        log::info!(
            "{:<10} {:>10} {rate:>10} {:>9} {:>7}",
            workload.name(),
            all.operations,
            Bytes(all.bytes),
            all.corrupt
        );
        events::emit(muster_events::Workload {
            workload: workload.name().into(),
            heap: heap::kind().name().into(),
            cpus: cpus as u32,
            took_us: micros,
            operations: all.operations,
            operations_per_s: rate,
            bytes: all.bytes,
            refused: all.refused,
            corrupt: all.corrupt,
        });
        if matches!(workload, Workload::Timer | Workload::Soak) {
            log_interrupts(&tallies, micros);
        }
        if all.corrupt > 0 {
            failures.push(format!(
                "{}: {} corrupt blocks",
                workload.name(),
                all.corrupt
            ));
        }
        if workload == Workload::Exhaustion && all.refused == 0 && is_whole {
            failures.push(String::from("exhaustion: memory never ran out"));
        }
        if all.operations == 0 && is_whole {
            failures.push(format!("{}: not one operation", workload.name()));
        }
        if !is_whole {
            break;
        }
    }
    log::info!("what each CPU did:");
    log::info!("cpu operations     bytes refused corrupt slowest/us");
    for ((cpu, _), tally) in online::cpus().skip(first).zip(&per_cpu) {
        log::info!(
            "{cpu:>3} {:>10} {:>9} {:>7} {:>7} {:>10}",
            tally.operations,
            Bytes(tally.bytes),
            tally.refused,
            tally.corrupt,
            clock::to_micros(tally.slowest)
        );
    }
    rates
}

/// Logs how often the CPUs were interrupted by their timers.
fn log_interrupts(tallies: &[CachePadded<Lock<Tally>>], micros: u64) {
    let rates = || {
        tallies
            .iter()
            .map(|tally| tally.lock().interrupts * 1_000_000 / micros.max(1))
    };
    log::info!(
        "{} interrupts a second on each CPU, {} to {}",
        rates().sum::<u64>() / tallies.len().max(1) as u64,
        rates().min().unwrap_or(0),
        rates().max().unwrap_or(0)
    );
}

/// Logs two heaps' figures side by side. Both include the time for filling and checking the blocks.
/// Exhaustion is left out: in a virtual machine it measures how fast the host finds memory for the
/// first one.
fn compare(workloads: &[Workload], kinds: &[HeapKind], first: &[u64], second: &[u64]) {
    let [a, b] = kinds else { return };
    log::info!("operations per second, every byte checked:");
    log::info!(
        "workload   {:>12} {:>12} {:>8}",
        a.name(),
        b.name(),
        "ratio"
    );
    for ((workload, &a), &b) in workloads.iter().zip(first).zip(second) {
        if *workload == Workload::Exhaustion {
            continue;
        }
        let tenths = a.saturating_mul(10) / b.max(1);
        log::info!(
            "{:<10} {a:>12} {b:>12} {:>6}.{}",
            workload.name(),
            tenths / 10,
            tenths % 10
        );
    }
}

/// Returns the LAPIC id of the online CPU that NMIs go to, if they are asked for.
fn target(nmis: bool, member: usize) -> Option<u32> {
    let (_, target) = nmis.then(|| online::cpus().nth(member)).flatten()?;
    Some(cpu::lapic_id(target))
}

/// Returns the bytes that can be allocated, in the heap and in free frames.
fn available() -> u64 {
    shared::get().free_bytes() + heap::unused_bytes()
}

/// The duration of a workload.
struct Stint {
    micros: u64,
    /// Whether it had all of its time.
    is_whole: bool,
}

/// Runs one workload.
fn run_one(
    workload: Workload,
    arguments: &Arguments,
    millis: u64,
    tallies: &[CachePadded<Lock<Tally>>],
    party: &mut Party<'_>,
) -> Stint {
    let cpus = tallies.len();
    let available = available();
    let timeout = TIMEOUT + (available >> 20) * TIMEOUT_PER_MIB;
    // Half of it, so that no workload but exhaustion runs out of memory.
    let budget = (available / 2) as usize / cpus;
    let largest_piece = exhaustion::largest_piece(available);
    let rendezvous = Rendezvous {
        barrier: TimedBarrier::new(cpus, timeout),
        goes_on: AtomicBool::new(true),
        is_stopped: AtomicBool::new(false),
    };
    let first = party.first();
    // A CPU at the prompt shows the progress on request, and samples.
    let progress = (first == 0).then(|| ProgressLine::new(workload));
    let shared_state = SharedState::new(cpus);
    let started = clock::ticks();
    let job = |slot: usize| {
        // There are as many slots as online CPUs.
        let Some((_, block)) = online::cpus().nth(first + slot) else {
            return;
        };
        let activity = block.get(&ACTIVITY);
        rendezvous.barrier.wait();
        let mut worker = Worker {
            slot,
            cpus,
            first,
            budget,
            largest_piece,
            random: Random::new(arguments.selftest.seed, workload as u64, slot as u64),
            tally: Tally::default(),
            rounds: 0,
            until: Deadline::after_millis(millis),
            rendezvous: &rendezvous,
            progress: progress.as_ref(),
            activity,
            target: target(arguments.selftest.nmis, first + (slot + 1) % cpus),
        };
        activity.begin(workload);
        match workload {
            Workload::Churn => churn::run(&mut worker),
            Workload::Mixed => mixed::run(&mut worker, &shared_state.ledger),
            Workload::Handover => handover::run(&mut worker, &shared_state.mailboxes),
            Workload::Growth => growth::run(&mut worker),
            Workload::Interrupts => interrupts::run(&mut worker),
            Workload::Timer => timer::run(&mut worker),
            Workload::Calls => calls::run(&mut worker),
            Workload::Mappings => mappings::run(&mut worker, &shared_state.shared_mappings),
            Workload::Shootdown => shootdown::run(&mut worker, &shared_state.range),
            Workload::Exhaustion => exhaustion::run(&mut worker),
            Workload::Soak => soak::run(&mut worker, &shared_state),
        }
        activity.end();
        worker.tally.log(workload);
        if let Some(tally) = tallies.get(slot) {
            *tally.lock() = worker.tally;
        }
    };
    match party {
        Party::All => jobs::all(millis.saturating_add(timeout), &job),
        Party::Others(attend) => jobs::others(timeout, &job, |is_done| {
            let work = BackgroundWork {
                is_done,
                is_stopped: &rendezvous.is_stopped,
                sampler: Sampler::new(workload),
            };
            attend(&work);
            if !work.is_done() {
                work.stop();
            }
        }),
    }
    Stint {
        micros: clock::to_micros(clock::ticks().saturating_sub(started)),
        is_whole: !rendezvous.is_stopped.into_inner(),
    }
}
