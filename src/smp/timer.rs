//! Each CPU's own timer: the local APIC's, set again for every interrupt.
//!
//! Where the CPU has it, the timer fires at a stamp of the TSC; elsewhere it counts down at a rate
//! of its own, which is measured against the TSC. In both cases the next interrupt is set when the
//! handler is done: a handler that takes longer than the period slows the timer down, and never
//! starves the code that it interrupts.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use muster_machine::time;
use muster_percpu::cpu_local;
use raw_cpuid::CpuId;
use x86_64::instructions::interrupts;

use super::{cpu, lapic};
use crate::arch::clock::{self, Deadline};
use crate::arch::timer::{Timer, TimerHandler};

/// How long one measurement of the counter takes, in microseconds, and how many there are. Of
/// several, the median: a virtual CPU may lose its host core in the middle of one.
const WINDOW: u64 = 1_000;
const WINDOWS: usize = 3;

/// Counts per 2^32 ticks of the TSC. Relaxed: the BSP stores it before any AP is released.
static RATE: AtomicU64 = AtomicU64::new(NO_TIMER);

/// Instead of a rate: there is no timer.
const NO_TIMER: u64 = 0;

/// Instead of a rate: the timer takes stamps of the TSC itself.
const BY_DEADLINE: u64 = u64::MAX;

/// The source by which the timers fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerSource {
    /// A stamp of the TSC.
    Deadline,
    /// The APIC's counter, at this many counts a second.
    Counter(u64),
}

impl fmt::Display for TimerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline => f.write_str("by TSC deadline"),
            Self::Counter(hz) => write!(f, "by the APIC's counter at {} MHz", time::mhz(*hz)),
        }
    }
}

/// Finds the source of the timers, and its rate. Called once on the BSP, when its APIC is enabled;
/// the timers of all CPUs run at one rate (Intel SDM vol. 3A, 11.5.4: the bus or crystal clock).
///
/// Returns `None` if there is no APIC, or its counter stands still.
pub fn calibrate() -> Option<TimerSource> {
    let has_deadline = CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_tsc_deadline());
    if has_deadline {
        // This fails if there is no APIC.
        lapic::counter()?;
        RATE.store(BY_DEADLINE, Ordering::Relaxed);
        return Some(TimerSource::Deadline);
    }
    let mut rates = [0; WINDOWS];
    for rate in &mut rates {
        lapic::arm_counter(u32::MAX, lapic::Fires::Never)?;
        let (first, began) = reading()?;
        let deadline = Deadline::after_micros(WINDOW);
        while !deadline.passed() {
            core::hint::spin_loop();
        }
        let (last, ended) = reading()?;
        *rate = (u64::from(first.checked_sub(last)?) << 32).checked_div(ended - began)?;
    }
    lapic::disarm();
    rates.sort_unstable();
    let rate = Some(rates[WINDOWS / 2]).filter(|&rate| rate > 0)?;
    RATE.store(rate, Ordering::Relaxed);
    let hz = clock::from_micros(1_000_000).saturating_mul(rate >> 8) >> 24;
    Some(TimerSource::Counter(hz))
}

/// Returns whether the CPUs have timers.
pub fn is_there() -> bool {
    RATE.load(Ordering::Relaxed) != NO_TIMER
}

/// Reads the counter with the stamp that belongs to it: of a few readings, the quickest.
fn reading() -> Option<(u32, u64)> {
    let mut best: Option<(u64, u32, u64)> = None;
    for _ in 0..3 {
        let before = clock::ticks();
        let count = lapic::counter()?;
        let width = clock::ticks().wrapping_sub(before);
        if best.is_none_or(|(shortest, ..)| width < shortest) {
            best = Some((width, count, before + width / 2));
        }
    }
    best.map(|(_, count, at)| (count, at))
}

cpu_local! {
    /// The handler and the period of the CPU's timer.
    static TIMER: Timer = Timer::new();
}

/// Sets this CPU's timer for an interrupt in this many ticks of the TSC.
fn arm(ticks: u64) {
    match RATE.load(Ordering::Relaxed) {
        NO_TIMER => {}
        BY_DEADLINE => lapic::arm_deadline(clock::ticks().saturating_add(ticks)),
        rate => {
            let counts = (u128::from(ticks) * u128::from(rate)) >> 32;
            let counts = u32::try_from(counts).unwrap_or(u32::MAX).max(1);
            // There is an APIC: it was calibrated.
            let _ = lapic::arm_counter(counts, lapic::Fires::Once);
        }
    }
}

/// Runs `work`, and lets the timer interrupt it with `handler`: `micros` microseconds after the
/// start and then after each end of the handler, while `work` has interrupts enabled. Never where
/// there is no timer.
///
/// # Panics
///
/// If this CPU's timer is in use.
pub fn every(micros: u64, handler: TimerHandler<'_>, work: impl FnOnce()) {
    cpu::with(|here| {
        let timer = here.get(&TIMER);
        assert!(timer.handler().is_none(), "the timer is in use");
        // SAFETY: only the lifetime changes, and the handler is forgotten before this returns;
        // `work` can't unwind (panics end the run).
        let handler = unsafe {
            core::mem::transmute::<&TimerHandler<'_>, &'static TimerHandler<'static>>(&handler)
        };
        // A last interrupt of the timer's last use may still come: it must find all or nothing.
        interrupts::without_interrupts(|| {
            timer.lend(handler, clock::from_micros(micros));
            arm(timer.period());
        });
        work();
        interrupts::without_interrupts(|| {
            timer.take_back();
            timer.set_ends_halt(false);
            lapic::disarm();
        });
    });
}

/// Handles the timer's interrupt.
pub fn fired() {
    cpu::try_with(|here| {
        let timer = here.get(&TIMER);
        // None: it was pending when the timer was disarmed.
        if let Some(handler) = timer.handler() {
            handler();
            arm(timer.period());
        }
        timer.set_ends_halt(false);
    });
}

/// Has the timer end this CPU's halt after that many ticks of the TSC, unless it is in use, or is to end a halt already. To be
/// called with interrupts disabled.
pub fn end_halt_after(ticks: u64) {
    cpu::try_with(|here| {
        let timer = here.get(&TIMER);
        if timer.handler().is_none() && !timer.ends_halt() && is_there() {
            timer.set_ends_halt(true);
            arm(ticks);
        }
    });
}
