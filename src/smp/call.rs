//! Cross-CPU calls: a CPU has others run a closure, at once.
//!
//! A call is an interrupt to each of its targets, which run the closure as a handler: with
//! interrupts disabled, on top of the code that they interrupt. The closure should be short, takes
//! no locks but those that are held with interrupts disabled, and may allocate and free. It may
//! call other CPUs itself, as allocating does when memory runs out; as deep as
//! [`muster_cross_cpu::MAX_CALLS`].
//!
//! Three things keep CPUs from waiting for each other forever:
//!
//! - A CPU that waits here, or anywhere else for another CPU, serves calls in the meantime, with
//!   interrupts enabled or not: [`serve`]. Every round of such a wait pauses
//!   ([`core::hint::spin_loop`]): where CPUs take turns on one thread of the host, only that lets
//!   the other one run before its turn is over.
//! - No CPU calls others while it holds a lock: the target may be waiting for it with interrupts
//!   disabled.
//! - Every wait has a deadline. A call that a CPU has not taken by then is cancelled for it, and
//!   the error names the CPU; so the closure's references may end. A CPU that has taken a call is
//!   waited for, as it uses these references; if it is not done in a minute the run ends.
//!
//! A CPU that is out of work halts, and the interrupt wakes it. Nothing on the way allocates.

use core::fmt;

use conquer_once::spin::OnceCell;
use muster_cross_cpu::CallQueue;
use x86_64::instructions::interrupts;

use super::activity::ACTIVITY;
use super::counters::CALL_COUNTERS;
use super::cpu::{self, Cpu};
use super::{lapic, lock, online, stop};
use crate::arch::clock::Deadline;

/// How long a CPU that has taken a call may take for it, in milliseconds, before the run ends.
const DONE_TIMEOUT: u64 = 60_000;

/// The closure of a call, run with the index of the CPU that runs it.
pub type Work<'a> = dyn Fn(u32) + Sync + 'a;

/// The resources that a call's closure uses, by which a waiting CPU decides whether to serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uses {
    /// The heap, or it may.
    Heap,
    /// Never the heap, nor any lock: a CPU that waits for a lock of the heap's serves it, too.
    NoHeap,
}

/// The calls under way, in a queue for each [`Uses`], so that a CPU can serve the one kind alone.
struct CallQueues {
    heap: CallQueue<&'static Work<'static>>,
    no_heap: CallQueue<&'static Work<'static>>,
}

impl CallQueues {
    fn of(&self, uses: Uses) -> &CallQueue<&'static Work<'static>> {
        match uses {
            Uses::Heap => &self.heap,
            Uses::NoHeap => &self.no_heap,
        }
    }
}

/// Set up before the first AP is released.
static CALL_QUEUES: OnceCell<CallQueues> = OnceCell::uninit();

/// The online CPUs that a call goes to.
#[derive(Clone, Copy)]
pub enum Targets<'a> {
    /// One, by its index. If it is this CPU, the closure runs here.
    One(u32),
    /// All but this one.
    Others,
    /// All. This one runs the closure while it would wait.
    All,
    /// Those for which this returns `true`.
    Where(&'a dyn Fn(u32) -> bool),
}

impl Targets<'_> {
    fn contain(&self, index: u32, own: u32) -> bool {
        match self {
            Self::One(one) => *one == index,
            Self::Others => index != own,
            Self::All => true,
            Self::Where(holds) => holds(index),
        }
    }
}

/// Why a call was not served, or not by all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallError {
    /// CPUs have not taken the call in time, and now never will.
    Silent {
        /// The first of them.
        cpu: u32,
        /// How many more there are.
        more: usize,
        /// How long the call was open for them, in milliseconds.
        millis: u64,
    },
    /// This CPU is not online.
    NotOnline(u32),
    /// This CPU has too many calls under way, each on top of the wait for another.
    TooDeep,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent { cpu, more, millis } => {
                write!(f, "CPU {cpu}")?;
                if *more > 0 {
                    write!(f, " (and {more} more)")?;
                }
                write!(
                    f,
                    " did not take a call within {millis} ms: it has interrupts disabled, or is stuck"
                )
            }
            Self::NotOnline(cpu) => write!(f, "CPU {cpu} can't be called: it is not online"),
            Self::TooDeep => write!(
                f,
                "{} calls of this CPU are under way, each within another: call less from closures",
                muster_cross_cpu::MAX_CALLS
            ),
        }
    }
}

/// Sets calls up for this number of CPUs. Called once, by the BSP, when the heap is open and no AP
/// released.
pub fn start(cpus: usize) {
    // Made first: an allocation without memory serves calls, and would wait for this very
    // initialisation.
    let queues = CallQueues {
        heap: CallQueue::new(cpus),
        no_heap: CallQueue::new(cpus),
    };
    CALL_QUEUES.init_once(|| queues);
}

/// Has `targets` run `work`, and waits until they have done so.
///
/// # Errors
///
/// [`CallError`]. All other targets have run it.
///
/// # Panics
///
/// If this CPU holds a lock. If a CPU has taken the call and is not done with it within a minute.
pub fn run(targets: Targets<'_>, timeout_millis: u64, work: &Work<'_>) -> Result<(), CallError> {
    run_using(Uses::Heap, targets, timeout_millis, work)
}

fn run_using(
    uses: Uses,
    targets: Targets<'_>,
    timeout_millis: u64,
    work: &Work<'_>,
) -> Result<(), CallError> {
    // SAFETY: only the lifetime changes. Every way out of this function leads past the end of
    // `Pending::finish`, after which no CPU has the reference; nothing unwinds (panics end the run).
    let work = unsafe { core::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
    begin_using(uses, targets, timeout_millis, work)?.wait()
}

/// Does the same as [`run`], but where this CPU has too many calls under way it retries until one
/// of them is done: for callers that can't do without.
///
/// # Errors
///
/// As [`run`]; [`CallError::TooDeep`] only if none is done in time.
///
/// # Panics
///
/// As [`run`].
pub fn insist(
    uses: Uses,
    targets: Targets<'_>,
    timeout_millis: u64,
    work: &Work<'_>,
) -> Result<(), CallError> {
    let deadline = Deadline::after_millis(timeout_millis);
    loop {
        match run_using(uses, targets, timeout_millis, work) {
            Err(CallError::TooDeep) if !deadline.passed() => {
                relax();
            }
            result => return result,
        }
    }
}

/// Has `targets` run `work`, and does not wait.
///
/// # Errors
///
/// [`CallError`]: no CPU is called then.
///
/// # Panics
///
/// If this CPU holds a lock.
pub fn begin(
    targets: Targets<'_>,
    timeout_millis: u64,
    work: &'static Work<'static>,
) -> Result<Pending, CallError> {
    begin_using(Uses::Heap, targets, timeout_millis, work)
}

fn begin_using(
    uses: Uses,
    targets: Targets<'_>,
    timeout_millis: u64,
    work: &'static Work<'static>,
) -> Result<Pending, CallError> {
    lock::forbid("CPUs may not be called");
    let own = cpu::with(|here| here.index());
    let is_online = |index| online::cpus().any(|(online, _)| online == index);
    if let Targets::One(index) = targets
        && !is_online(index)
    {
        return Err(CallError::NotOnline(index));
    }
    let queues = CALL_QUEUES.get().ok_or(CallError::NotOnline(own))?;
    let call = (queues.of(uses))
        .call(own as usize, work)
        .ok_or(CallError::TooDeep)?;
    let pending = Pending {
        call,
        timeout_millis,
        deadline: Deadline::after_millis(timeout_millis),
    };
    let mut sent = 0;
    for (index, block) in online::cpus() {
        let is_meant = index != own && targets.contain(index, own);
        // Each online CPU is sent it once, and has a part of the queue.
        if is_meant && pending.call.send(index as usize).is_ok() {
            // If it can't be woken it does not answer, and the error names it.
            lapic::wake(cpu::lapic_id(block));
            sent += 1;
        }
    }
    Cpu::with_own(&CALL_COUNTERS, |counters| counters.count_sent(sent));
    if targets.contain(own, own) {
        interrupts::without_interrupts(|| work(own));
    }
    Ok(pending)
}

/// A call under way. Waits for its targets when dropped.
#[must_use = "dropped at once it waits at once; `leave` does not wait"]
pub struct Pending {
    call: muster_cross_cpu::Call<'static, &'static Work<'static>>,
    timeout_millis: u64,
    deadline: Deadline,
}

impl Pending {
    /// Waits until every target has run the closure.
    ///
    /// # Errors
    ///
    /// [`CallError::Silent`].
    ///
    /// # Panics
    ///
    /// As [`run`].
    pub fn wait(self) -> Result<(), CallError> {
        let result = self.finish();
        // No target is left; the call is to be freed, without another wait.
        self.leave();
        result
    }

    /// Leaves the targets to run the closure when they can. No CPU waits for it, and one of this
    /// CPU's calls is in use until they have.
    pub fn leave(self) {
        let this = core::mem::ManuallyDrop::new(self);
        // SAFETY: read once, and `this` is not used again, nor dropped.
        drop(unsafe { core::ptr::read(&raw const this.call) });
    }

    /// Waits until no target has the closure any more.
    fn finish(&self) -> Result<(), CallError> {
        while !self.call.is_done() && !self.deadline.passed() {
            relax();
        }
        let mut silent = self.call.pending().filter(|&cpu| self.call.cancel(cpu));
        let error = silent.next().map(|cpu| CallError::Silent {
            cpu: cpu as u32,
            more: silent.count(),
            millis: self.timeout_millis,
        });
        let deadline = Deadline::after_millis(DONE_TIMEOUT);
        while let Some(cpu) = self.call.pending().next() {
            assert!(
                !deadline.passed(),
                "CPU {cpu} has taken a call and is not done with it after {} s",
                DONE_TIMEOUT / 1000
            );
            relax();
        }
        error.map_or(Ok(()), Err)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            log::error!("{error}");
        }
    }
}

/// Serves the calls of others, at most as many as each may have under way: so it ends, however fast
/// they call again. For every loop that waits, which calls it again.
pub fn serve() {
    serve_using(Uses::NoHeap);
    serve_using(Uses::Heap);
}

/// Serves only calls that never use the heap: for a CPU that waits for a lock of the heap's.
pub fn serve_without_heap() {
    serve_using(Uses::NoHeap);
}

fn serve_using(uses: Uses) {
    stop::stop_if_over();
    let Some(queues) = CALL_QUEUES.get() else {
        return;
    };
    let queue = queues.of(uses);
    cpu::try_with(|here| {
        let own = here.index();
        // A waiting CPU comes here again and again.
        if !queue.is_called(own as usize) {
            return;
        }
        interrupts::without_interrupts(|| {
            let max_calls = cpu::all().len() * muster_cross_cpu::MAX_CALLS;
            for _ in 0..max_calls {
                let served = queue.serve(own as usize, |work| {
                    here.get(&ACTIVITY).answer(|| work(own));
                    here.get(&CALL_COUNTERS).count_served();
                });
                if !served {
                    break;
                }
            }
        });
    });
}

/// Lets a round of a waiting loop pass: serves the calls of other CPUs, and pauses.
pub fn relax() {
    serve();
    core::hint::spin_loop();
}

/// Serves calls in the handler of the wake-up, and wakes this CPU again if any are left: the
/// handler is not a loop.
pub fn answer() {
    serve();
    let is_called = |own: u32| {
        CALL_QUEUES.get().is_some_and(|queues| {
            [Uses::NoHeap, Uses::Heap]
                .into_iter()
                .any(|uses| queues.of(uses).is_called(own as usize))
        })
    };
    cpu::try_with(|here| {
        if is_called(here.index()) {
            lapic::wake(cpu::lapic_id(here.block()));
        }
    });
}
