//! Time: the time-stamp counter, its origin at the kernel's entry, and its rate.
//!
//! The rate that CPUID reports is used if a window of the PIT confirms it, or of the ACPI timer where
//! there is no PIT: emulators and firmware report wrong ones. Where both timers are missing the
//! reported rate stands, with a warning.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use muster_machine::acpi::PmTimer;
use muster_machine::time::{self, PIT_HZ, PM_TIMER_HZ, Verdict, Window, elapsed, judge};
use raw_cpuid::CpuId;
use x86_64::instructions::port::Port;

/// How many windows there are in a second: each lasts 2 ms.
const WINDOWS_PER_SECOND: u64 = 500;

/// How many windows are measured at first, and at most: a virtual CPU may lose its host core in any of
/// them, so the first ones do not refute a reported rate.
const WINDOWS: usize = 3;
const MAX_WINDOWS: usize = 9;

/// Polls before a timer counts as absent: each poll is several port
/// reads of about a microsecond, so this is well over a window.
const MAX_POLLS: u32 = 50_000;

/// The rate assumed when nothing reports it, in Hz: faster than any CPU, so that every deadline is
/// rather too late than too early. Times then show only the order of events.
const ASSUMED_HZ: u64 = 8_000_000_000;

/// A counter of known rate, by which the TSC is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// Counter 0 of the 8254, whose gate is always open: the PC speaker's counter 2 needs port 0x61,
    /// which small machines lack.
    Pit,
    /// The ACPI power-management timer.
    PmTimer(PmTimer),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pit => "the PIT",
            Self::PmTimer(_) => "the ACPI timer",
        })
    }
}

/// The source of a reported TSC rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Informant {
    /// CPUID leaf 0x15 (Intel SDM vol. 2A, CPUID).
    Cpuid,
    /// The hypervisor's timing leaf 0x4000_0010 (VMware's proposal, also KVM's).
    Hypervisor,
}

impl fmt::Display for Informant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpuid => "CPUID",
            Self::Hypervisor => "the hypervisor",
        })
    }
}

/// Where the counter's rate was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RateSource {
    /// It was reported, and a measurement agrees.
    Confirmed(Informant, Reference),
    /// It was reported, and there was nothing to measure it by.
    Unconfirmed(Informant),
    /// It was measured.
    Measured(Reference),
    /// Not found.
    Assumed,
}

impl fmt::Display for RateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Confirmed(informant, reference) => {
                write!(f, "reported by {informant}, confirmed by {reference}")
            }
            Self::Unconfirmed(informant) => write!(f, "reported by {informant}, not confirmed"),
            Self::Measured(reference) => write!(f, "measured by {reference}"),
            Self::Assumed => f.write_str("assumed: times are not to scale"),
        }
    }
}

/// The counter's rate, and how it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    hz: u64,
    source: RateSource,
    /// The rate that was reported and is wrong.
    refuted: Option<(Informant, u64)>,
}

impl Rate {
    /// Returns the rate in Hz.
    pub const fn hz(&self) -> u64 {
        self.hz
    }

    /// Finds the rate by a counter and the reported rate, if there is one. Returns `None` if the
    /// counter does not count.
    fn by(reference: Reference) -> Option<Self> {
        let reported = reported();
        let hz = reported.map(|(_, hz)| hz);
        let counter = Counter::start(reference);
        // The counter may not have taken its new period yet: the first window is for that.
        counter.window()?;
        let mut windows = heapless::Vec::<Window, MAX_WINDOWS>::new();
        let verdict = loop {
            for _ in 0..WINDOWS {
                // There is room.
                let _ = windows.push(counter.window()?);
            }
            let verdict = judge(&windows, counter.hz, hz)?;
            if hz.is_none() || verdict == Verdict::Confirmed || windows.is_full() {
                break verdict;
            }
        };
        Some(match (verdict, reported) {
            (Verdict::Confirmed, Some((informant, hz))) => Self {
                hz,
                source: RateSource::Confirmed(informant, reference),
                refuted: None,
            },
            (Verdict::Confirmed, None) => return None,
            (Verdict::Measured(hz), refuted) => Self {
                hz,
                source: RateSource::Measured(reference),
                refuted,
            },
        })
    }

    /// Returns whether it was measured, or confirmed by a measurement.
    const fn is_sure(&self) -> bool {
        matches!(
            self.source,
            RateSource::Confirmed(..) | RateSource::Measured(_)
        )
    }

    /// Logs the rate, and a reported one that is wrong.
    pub fn log(&self) {
        let kind = match has_invariant_tsc() {
            true => "invariant",
            false => "not invariant",
        };
        log::info!("TSC at {} MHz, {}; {kind}", time::mhz(self.hz), self.source);
        if let Some((informant, hz)) = self.refuted {
            log::warn!(
                "{informant} reports {} MHz for the TSC, which is wrong: the {} MHz that were measured are used",
                time::mhz(hz),
                time::mhz(self.hz)
            );
        }
    }
}

// The origin and the rate are Relaxed: the BSP writes them before any AP is released, which publishes them,
// and nothing else is read by them.
static ORIGIN: AtomicU64 = AtomicU64::new(0);
static HZ: AtomicU64 = AtomicU64::new(ASSUMED_HZ);

/// Reads the time-stamp counter. Not ordered against other instructions: fit for stamps and
/// deadlines, not for counting single instructions.
pub fn ticks() -> u64 {
    // SAFETY: `rdtsc` has no operands and no effect on memory; every x86-64 CPU
    // has it, and CR4.TSD does not bind ring 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Sets the origin of all times to now. Called once, first thing on the BSP.
pub fn start() {
    ORIGIN.store(ticks(), Ordering::Relaxed);
}

/// Finds the counter's rate, as far as that is possible without the firmware's tables. Called once on the
/// BSP, before any AP runs.
pub fn calibrate() -> Rate {
    let rate = Rate::by(Reference::Pit).unwrap_or_else(|| match reported() {
        Some((informant, hz)) => Rate {
            hz,
            source: RateSource::Unconfirmed(informant),
            refuted: None,
        },
        None => Rate {
            hz: ASSUMED_HZ,
            source: RateSource::Assumed,
            refuted: None,
        },
    });
    HZ.store(rate.hz, Ordering::Relaxed);
    rate
}

/// Finds it by the ACPI timer, if `rate` is not sure yet, and logs what comes of it. Called once on the
/// BSP, before any AP runs.
pub fn make_sure(rate: Rate, pm_timer: impl FnOnce() -> Option<PmTimer>) {
    if rate.is_sure() {
        return;
    }
    let found = pm_timer().and_then(|timer| Rate::by(Reference::PmTimer(timer)));
    if let Some(found) = found {
        HZ.store(found.hz, Ordering::Relaxed);
        found.log();
        return;
    }
    match rate.source {
        RateSource::Unconfirmed(informant) => log::warn!(
            "neither a PIT nor an ACPI timer confirms the TSC's rate, which {informant} reports"
        ),
        _ => log::warn!(
            "the TSC's rate is assumed, as neither CPUID, a hypervisor, a PIT nor an ACPI timer reports \
             it: times are not to scale, and deadlines are later than they say"
        ),
    }
}

/// Returns whether the TSC counts at one rate whatever the CPU's clock does, and while it halts (CPUID
/// 8000_0007h, EDX bit 8; Intel SDM vol. 3B, 18.17.1).
pub fn has_invariant_tsc() -> bool {
    CpuId::new()
        .get_advanced_power_mgmt_info()
        .is_some_and(|leaf| leaf.has_invariant_tsc())
}

/// Returns the counter's rate in Hz, as far as it is known.
#[cfg(feature = "bench")]
pub fn hz() -> u64 {
    HZ.load(Ordering::Relaxed).max(1)
}

/// Returns the microseconds from the kernel's entry to the stamp `at`.
pub fn micros_since_entry(at: u64) -> u64 {
    to_micros(at.saturating_sub(ORIGIN.load(Ordering::Relaxed)))
}

/// Returns the microseconds since the kernel's entry.
pub fn micros() -> u64 {
    micros_since_entry(ticks())
}

/// Returns the microseconds from the machine's reset to the kernel's entry: the counter starts at
/// zero on reset (Intel SDM vol. 3B, 18.17).
pub fn micros_before_entry() -> u64 {
    to_micros(ORIGIN.load(Ordering::Relaxed))
}

/// Converts counter ticks to microseconds.
pub fn to_micros(ticks: u64) -> u64 {
    to_units(ticks, 1_000_000)
}

/// Converts counter ticks to nanoseconds.
pub fn to_nanos(ticks: u64) -> u64 {
    to_units(ticks, 1_000_000_000)
}

/// Converts counter ticks to units of which a second has `per_second`.
fn to_units(ticks: u64, per_second: u64) -> u64 {
    let hz = u128::from(HZ.load(Ordering::Relaxed).max(1));
    let units = u128::from(ticks) * u128::from(per_second) / hz;
    u64::try_from(units).unwrap_or(u64::MAX)
}

/// Converts microseconds to counter ticks.
pub fn from_micros(micros: u64) -> u64 {
    let ticks = u128::from(micros) * u128::from(HZ.load(Ordering::Relaxed)) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// Adds the time since the last look at a wait's condition, and returns whether the wait has lasted
/// longer than `millis` milliseconds.
///
/// `state` is 0 at the first look; it keeps the time of the last one, and how long the wait has lasted so
/// far, 32 bits each. A long time between two looks counts as a short one: then this CPU stood still, as
/// it does while a host stops the whole machine.
pub fn has_waited(state: &mut u64, millis: u64) -> bool {
    /// Ticks in a unit of time: half a millisecond at 2 GHz.
    const UNIT_SHIFT: u32 = 20;
    /// The longest time between two looks that counts, in milliseconds.
    const MAX_STEP: u64 = 100;

    let units = |millis: u64| from_micros(millis * 1000) >> UNIT_SHIFT;
    // 32 bits of these units are weeks; they wrap.
    let now = (ticks() >> UNIT_SHIFT) as u32;
    let (last, waited) = ((*state >> 32) as u32, *state & u64::from(u32::MAX));
    let step = if *state == 0 {
        1
    } else {
        u64::from(now.wrapping_sub(last)).min(units(MAX_STEP))
    };
    let waited = waited + step;
    *state = u64::from(now) << 32 | waited;
    waited > units(millis)
}

/// A point in time that a wait may not go past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// Returns the point `micros` microseconds from now.
    pub fn after_micros(micros: u64) -> Self {
        Self(ticks().saturating_add(from_micros(micros)))
    }

    /// Returns the point `millis` milliseconds from now.
    pub fn after_millis(millis: u64) -> Self {
        Self::after_micros(millis.saturating_mul(1000))
    }

    /// Returns whether the point has passed.
    pub fn passed(self) -> bool {
        ticks() >= self.0
    }
}

/// Returns the reported rate, in Hz, and its source.
fn reported() -> Option<(Informant, u64)> {
    let cpuid = || {
        let hz = CpuId::new().get_tsc_info()?.tsc_frequency()?;
        Some((Informant::Cpuid, hz))
    };
    let hypervisor = || {
        let khz = CpuId::new().get_hypervisor_info()?.tsc_frequency()?;
        Some((Informant::Hypervisor, u64::from(khz) * 1000))
    };
    let sound = |&(_, hz): &(Informant, u64)| hz > 0;
    cpuid().filter(sound).or_else(|| hypervisor().filter(sound))
}

/// A count with the stamp that belongs to it.
struct CounterReading {
    count: u32,
    at: u64,
    /// How long it took to read.
    width: u64,
}

/// A reference that counts.
#[derive(Clone, Copy)]
struct Counter {
    reference: Reference,
    hz: u64,
}

impl Counter {
    fn start(reference: Reference) -> Self {
        let hz = match reference {
            Reference::Pit => {
                // SAFETY: ports 0x40 and 0x43 are the PIT's on every PC, or unused. Mode 2, both
                // bytes, full period: the interrupt it would raise is masked, since interrupts are
                // off and no one enables IRQ 0.
                unsafe {
                    Port::<u8>::new(0x43).write(0x34);
                    Port::<u8>::new(0x40).write(0x00);
                    Port::<u8>::new(0x40).write(0x00);
                }
                PIT_HZ
            }
            Reference::PmTimer(_) => PM_TIMER_HZ,
        };
        Self { reference, hz }
    }

    /// Reads the count alone.
    fn count(&self) -> u32 {
        match self.reference {
            // SAFETY: the PIT's ports, as in `start`. The latch command freezes
            // one 16-bit count, read low byte first; interrupts are off and only
            // the BSP runs, so no one else latches in between.
            Reference::Pit => unsafe {
                Port::<u8>::new(0x43).write(0x00);
                let mut counter = Port::<u8>::new(0x40);
                let count = u16::from(counter.read()) | u16::from(counter.read()) << 8;
                // It counts down.
                u32::from(!count)
            },
            // SAFETY: the FADT has the timer at this port; reading it has no side effect.
            Reference::PmTimer(timer) => unsafe { Port::<u32>::new(timer.port).read() },
        }
    }

    /// Reads the counter a few times and returns the reading that took the shortest: in another,
    /// the CPU may have lost its core between the stamp and the count.
    fn read(&self) -> CounterReading {
        let once = || {
            let before = ticks();
            let count = self.count();
            let width = ticks().wrapping_sub(before);
            CounterReading {
                count,
                at: before + width / 2,
                width,
            }
        };
        let quicker = |one: CounterReading, other: CounterReading| match one.width <= other.width {
            true => one,
            false => other,
        };
        quicker(quicker(once(), once()), once())
    }

    /// Measures one window. Returns `None` if the counter does not count.
    fn window(&self) -> Option<Window> {
        let bits = match self.reference {
            Reference::Pit => 16,
            Reference::PmTimer(timer) => timer.bits,
        };
        let first = self.read();
        for _ in 0..MAX_POLLS {
            let last = self.read();
            let counts = elapsed(first.count, last.count, bits);
            if u64::from(counts) >= self.hz / WINDOWS_PER_SECOND {
                return Some(Window {
                    ticks: last.at.checked_sub(first.at)?,
                    blur: (first.width + last.width).div_ceil(2),
                    counts,
                });
            }
        }
        None
    }
}
