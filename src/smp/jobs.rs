//! Jobs for all CPUs: one closure, run once on each, the BSP included; or on each AP, while the BSP
//! does something else.

use conquer_once::spin::OnceCell;
use muster_cross_cpu::{Barrier, Broadcast};
use x86_64::instructions::interrupts;

use super::{ageing, call, cpu, lapic, lazy_tlb, lock, online};
use crate::arch::clock::Deadline;
use crate::arch::idle;

/// A job: called with the slot of the CPU, which is its index among the online ones.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The broadcast by which the BSP submits jobs. Made for the first one, when the roll call is over:
/// from then on the set of online CPUs is fixed.
static BROADCAST: OnceCell<Broadcast<&'static Job<'static>>> = OnceCell::uninit();

/// A barrier with a timeout, whose waiting CPUs serve calls.
pub struct TimedBarrier {
    barrier: Barrier,
    timeout_millis: u64,
}

impl TimedBarrier {
    /// Creates a barrier for `cpus` CPUs, each of which waits at most `timeout_millis` for the
    /// others.
    pub const fn new(cpus: usize, timeout_millis: u64) -> Self {
        Self {
            barrier: Barrier::new(cpus),
            timeout_millis,
        }
    }

    /// Waits until every CPU has arrived.
    ///
    /// # Panics
    ///
    /// If one of them does not arrive in time.
    pub fn wait(&self) {
        let arrival = self.barrier.arrive();
        let deadline = Deadline::after_millis(self.timeout_millis);
        while !arrival.is_released() {
            assert!(
                !deadline.passed(),
                "only {} of {} CPUs arrived at the barrier within {} ms",
                self.barrier.waiting(),
                self.barrier.cpus(),
                self.timeout_millis
            );
            call::relax();
        }
    }
}

/// Runs `job` on every online CPU, in parallel, and waits until all are done.
///
/// # Panics
///
/// If called anywhere but on the BSP, or while a job runs. If a CPU is not done within
/// `timeout_millis` of the BSP's own part: `job` may not go out of scope while a CPU still runs it,
/// so this can't return.
pub fn all(timeout_millis: u64, job: &(dyn Fn(usize) + Sync)) {
    submit(timeout_millis, job, |_| {});
}

/// Runs `job` on every online AP, of which the first has slot 0 then, and `aside` here at the same
/// time, which can ask whether all are done. Waits until they are.
///
/// # Panics
///
/// As [`all`], where `aside` is the BSP's own part.
pub fn others(
    timeout_millis: u64,
    job: &(dyn Fn(usize) + Sync),
    aside: impl FnOnce(&dyn Fn() -> bool),
) {
    let job = |slot: usize| slot.checked_sub(1).map_or((), job);
    submit(timeout_millis, &job, aside);
}

fn submit(
    timeout_millis: u64,
    job: &(dyn Fn(usize) + Sync),
    aside: impl FnOnce(&dyn Fn() -> bool),
) {
    let is_bsp = cpu::with(|here| here.index() == 0);
    let broadcast = BROADCAST.get_or_init(|| Broadcast::new(online::count()));
    // SAFETY: only the lifetime changes. This function does not return, nor unwind
    // (panics end the run), before every CPU has finished with the reference.
    let job: &'static Job<'static> =
        unsafe { core::mem::transmute::<&Job<'_>, &'static Job<'static>>(job) };
    assert!(is_bsp && broadcast.submit(job), "a job within a job");
    for (index, block) in online::cpus().skip(1) {
        assert!(
            lapic::wake(cpu::lapic_id(block)),
            "CPU {index} can't be woken: no interrupt reaches LAPIC id {}",
            cpu::lapic_id(block)
        );
    }
    broadcast.run(0, |job| job(0));
    aside(&|| broadcast.is_done());
    let deadline = Deadline::after_millis(timeout_millis);
    while let Some(slot) = broadcast.first_unfinished() {
        if deadline.passed() {
            let late = online::cpus().nth(slot).map_or(0, |(index, _)| index);
            panic!("CPU {late} did not finish its part within {timeout_millis} ms of the BSP's");
        }
        call::relax();
    }
}

/// Halts this CPU, idle, until something interrupts it: another CPU, or its timer if that is in use
/// ([`super::timer::every`]). Interrupts are enabled together with the halt, and stay so. May
/// return without an interrupt: the caller looks for work itself.
pub fn idle() {
    interrupts::disable();
    halt_unless_aged();
}

/// Halts this CPU until something interrupts it, or drains its caches instead, if they have aged. Called with interrupts disabled,
/// which are enabled then.
fn halt_unless_aged() {
    if ageing::has_aged() {
        interrupts::enable();
        ageing::drain();
        return;
    }
    lazy_tlb::enter_idle();
    idle::enable_and_halt();
    lazy_tlb::leave_idle();
}

/// Halts this CPU, idle, until `is_over`, which is asked with interrupts disabled, at first and after each
/// interrupt.
///
/// # Panics
///
/// If this CPU holds a lock.
#[track_caller]
pub fn idle_until(is_over: impl Fn() -> bool) {
    lock::forbid("this CPU waits for an interrupt");
    loop {
        interrupts::disable();
        if is_over() {
            break interrupts::enable();
        }
        halt_unless_aged();
    }
}

/// Runs jobs on AP `index` as they are submitted, and halts while there are none: the loop of an
/// online AP.
pub fn serve(index: u32) -> ! {
    let slot = || online::cpus().position(|(member, _)| member == index);
    loop {
        // Interrupts are disabled from before the look at the broadcast until the halt: a wake-up sent
        // since then ends the halt, so none is lost (`idle`).
        let found =
            (BROADCAST.get().zip(slot())).filter(|(broadcast, slot)| broadcast.has_job(*slot));
        if let Some((broadcast, slot)) = found {
            interrupts::enable();
            broadcast.run(slot, |job| job(slot));
        } else {
            idle();
        }
        interrupts::disable();
    }
}
