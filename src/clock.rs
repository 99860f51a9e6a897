//! Time: the time-stamp counter, its origin at the kernel's entry, and its rate.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::CpuId;
use x86_64::instructions::port::Port;

/// Input clock of the 8253/8254 timer, in Hz (Intel 82C54 datasheet: 14.31818 MHz / 12).
const PIT_HZ: u64 = 1_193_182;

/// How many PIT ticks one calibration window lasts: 2 ms.
const PIT_WINDOW: u16 = (PIT_HZ / 500) as u16;

/// How many windows are measured. A virtual CPU may lose its host core for so
/// long that the PIT's 55 ms period wraps unseen; that only ever makes the
/// rate look too high, so the lowest of the windows stands.
const PIT_WINDOWS: usize = 3;

/// PIT polls before the timer counts as absent: each poll is several port
/// reads of about a microsecond, so this is well over a window.
const PIT_POLLS: u32 = 50_000;

/// The rate assumed when nothing tells it, in Hz: faster than any CPU, so that every
/// deadline is rather too late than too early, and times are only an order.
const ASSUMED_HZ: u64 = 8_000_000_000;

impl fmt::Display for RateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpuid => "told by CPUID",
            Self::Hypervisor => "told by the hypervisor",
            Self::Pit => "measured by the PIT",
            Self::Assumed => "assumed: times are not to scale",
        })
    }
}

static ORIGIN: AtomicU64 = AtomicU64::new(0);
static HZ: AtomicU64 = AtomicU64::new(ASSUMED_HZ);

/// Where the counter's rate was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateSource {
    /// CPUID leaf 0x15 (Intel SDM vol. 2A, CPUID).
    Cpuid,
    /// The hypervisor's timing leaf 0x4000_0010 (VMware's proposal, also KVM's).
    Hypervisor,
    /// Measured against the 8254 timer.
    Pit,
    /// Not found.
    Assumed,
}

/// The time-stamp counter. Not ordered against other instructions: fit for
/// stamps and deadlines, not for counting single instructions.
pub fn ticks() -> u64 {
    // SAFETY: `rdtsc` has no operands and no effect on memory; every x86-64 CPU
    // has it, and CR4.TSD does not bind ring 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Sets the origin of all times to now. Called once, first thing on the BSP.
pub fn start() {
    ORIGIN.store(ticks(), Ordering::Relaxed);
}

/// Finds the counter's rate. Called once on the BSP, before any AP runs.
pub fn calibrate() -> (u64, RateSource) {
    let (hz, source) = cpuid_rate()
        .map(|hz| (hz, RateSource::Cpuid))
        .or_else(|| hypervisor_rate().map(|hz| (hz, RateSource::Hypervisor)))
        .or_else(|| pit_rate().map(|hz| (hz, RateSource::Pit)))
        .unwrap_or((ASSUMED_HZ, RateSource::Assumed));
    HZ.store(hz, Ordering::Relaxed);
    (hz, source)
}

/// The counter's rate in Hz, as far as it is known.
#[cfg(feature = "bench")]
pub fn hz() -> u64 {
    HZ.load(Ordering::Relaxed).max(1)
}

/// Microseconds from the kernel's entry to the stamp `at`.
pub fn micros_since_entry(at: u64) -> u64 {
    to_micros(at.saturating_sub(ORIGIN.load(Ordering::Relaxed)))
}

/// Microseconds since the kernel's entry.
pub fn micros() -> u64 {
    micros_since_entry(ticks())
}

/// Microseconds from the machine's reset to the kernel's entry: the counter
/// starts at zero on reset (Intel SDM vol. 3B, 18.17).
pub fn micros_before_entry() -> u64 {
    to_micros(ORIGIN.load(Ordering::Relaxed))
}

/// A number of counter ticks in microseconds.
pub fn to_micros(ticks: u64) -> u64 {
    let micros = u128::from(ticks) * 1_000_000 / u128::from(HZ.load(Ordering::Relaxed).max(1));
    u64::try_from(micros).unwrap_or(u64::MAX)
}

/// A number of microseconds in counter ticks.
pub fn from_micros(micros: u64) -> u64 {
    let ticks = u128::from(micros) * u128::from(HZ.load(Ordering::Relaxed)) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// A point in time that a wait may not go past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// The point `micros` microseconds from now.
    pub fn after_micros(micros: u64) -> Self {
        Self(ticks().saturating_add(from_micros(micros)))
    }

    /// The point `millis` milliseconds from now.
    pub fn after_millis(millis: u64) -> Self {
        Self::after_micros(millis.saturating_mul(1000))
    }

    /// Whether the point has passed.
    pub fn passed(self) -> bool {
        ticks() >= self.0
    }
}

fn cpuid_rate() -> Option<u64> {
    CpuId::new()
        .get_tsc_info()?
        .tsc_frequency()
        .filter(|&hz| hz > 0)
}

fn hypervisor_rate() -> Option<u64> {
    let khz = CpuId::new().get_hypervisor_info()?.tsc_frequency()?;
    Some(u64::from(khz) * 1000).filter(|&hz| hz > 0)
}

/// Measures the counter against PIT channel 0, whose gate is always open: the
/// PC speaker's channel 2 needs port 0x61, which small machines lack.
fn pit_rate() -> Option<u64> {
    // SAFETY: ports 0x40 and 0x43 are the PIT's on every PC (or nobody's). Mode 2,
    // both bytes, full period: the interrupt it would raise is masked, since
    // interrupts are off and no one enables IRQ 0.
    unsafe {
        Port::<u8>::new(0x43).write(0x34);
        Port::<u8>::new(0x40).write(0x00);
        Port::<u8>::new(0x40).write(0x00);
    }
    // The counter may not have taken its new period yet: the first window is for that.
    pit_window()?;
    let mut lowest = None;
    for _ in 0..PIT_WINDOWS {
        let hz = pit_window()?;
        lowest = Some(lowest.map_or(hz, |low: u64| low.min(hz)));
    }
    lowest
}

/// One reading of the PIT's count with the stamp that belongs to it.
fn pit_read() -> (u16, u64) {
    let mut best: Option<(u64, u16, u64)> = None;
    // Of a few readings the one with the shortest way around it: another may
    // have lost its core between the stamp and the count.
    for _ in 0..3 {
        let before = ticks();
        // SAFETY: the PIT's ports, as in `pit_rate`. The latch command freezes
        // one 16-bit count, read low byte first; interrupts are off and only
        // the BSP runs, so no one else latches in between.
        let count = unsafe {
            Port::<u8>::new(0x43).write(0x00);
            let mut counter = Port::<u8>::new(0x40);
            u16::from(counter.read()) | u16::from(counter.read()) << 8
        };
        let after = ticks();
        let width = after.wrapping_sub(before);
        if best.is_none_or(|(shortest, ..)| width < shortest) {
            best = Some((width, count, before + width / 2));
        }
    }
    best.map_or((0, 0), |(_, count, at)| (count, at))
}

fn pit_window() -> Option<u64> {
    let (first, began) = pit_read();
    for _ in 0..PIT_POLLS {
        let (count, now) = pit_read();
        // The counter counts down.
        let elapsed = first.wrapping_sub(count);
        if elapsed >= PIT_WINDOW {
            let span = u128::from(now.checked_sub(began)?);
            return u64::try_from(span * u128::from(PIT_HZ) / u128::from(elapsed)).ok();
        }
    }
    None
}
