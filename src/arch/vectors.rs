//! The vectors of interrupts, the kinds of interrupts that are counted, and the counters.

use core::fmt;
use core::ops::AddAssign;
use core::sync::atomic::{AtomicU64, Ordering};

/// The first vector of devices: past those of the legacy interrupt controllers, whose spurious interrupts
/// come even while they are masked. The last one is [`LAST_DEVICE`]: all of them go after the kernel's own.
pub const FIRST_DEVICE: u8 = 0x30;
/// The last vector of devices.
pub const LAST_DEVICE: u8 = TIMER_VECTOR - 1;

/// The interrupt of a CPU's own timer.
pub const TIMER_VECTOR: u8 = 0xe0;

/// The interrupt by which another CPU wakes this one. It carries no more than that: the CPU itself
/// looks for work. Above the timer's, so that it goes first.
pub const WAKE_VECTOR: u8 = 0xf0;

/// The interrupt of a local APIC that has met an error.
pub const ERROR_VECTOR: u8 = 0xfe;

/// The interrupt a CPU gets when another one was withdrawn before it was taken. Its low four bits
/// are all set, as the first APICs have it (Intel SDM vol. 3A, 11.9).
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// The first vector of interrupts; those below are the CPU's own exceptions'. A local APIC delivers
/// interrupts from [`FIRST_DELIVERED`] on as well (Intel SDM vol. 3A, 11.5.2).
pub const FIRST: u8 = 32;
/// The first at which a local APIC delivers.
pub const FIRST_DELIVERED: u8 = 16;

/// The kinds that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// The CPU's own timer.
    Timer,
    /// Another CPU's wake-up.
    Wake,
    /// A device, by a route through an I/O APIC.
    Device,
    /// An error of the local APIC.
    Error,
    /// One that was withdrawn before it was taken.
    Spurious,
    /// An NMI that does not end the run.
    Nmi,
    /// One without a known source.
    Unexpected,
}

// `ALL` has every kind at its discriminant: they are the counters' indices.
const _: () = {
    assert!(Kind::ALL.len() == Kind::Unexpected as usize + 1);
    let mut index = 0;
    while index < Kind::ALL.len() {
        assert!(Kind::ALL[index] as usize == index);
        index += 1;
    }
};

impl Kind {
    /// All of them, in the order of their discriminants.
    const ALL: [Self; 7] = [
        Self::Timer,
        Self::Wake,
        Self::Device,
        Self::Error,
        Self::Spurious,
        Self::Nmi,
        Self::Unexpected,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Timer => "timer",
            Self::Wake => "wake-up",
            Self::Device => "device",
            Self::Error => "error",
            Self::Spurious => "spurious",
            Self::Nmi => "nmi",
            Self::Unexpected => "unexpected",
        }
    }

    /// Returns whether the handler neither allocates nor frees, so that the interrupted code resumes
    /// where it was. Otherwise a restartable sequence of the heap's begins again, which is always
    /// right.
    pub fn leaves_the_heap_alone(self) -> bool {
        match self {
            Self::Timer | Self::Wake | Self::Device => false,
            Self::Error | Self::Spurious | Self::Nmi | Self::Unexpected => true,
        }
    }
}

/// The number of interrupts of each kind that one CPU has taken. That CPU counts, all may read.
pub struct Counters([AtomicU64; Kind::ALL.len()]);

impl Counters {
    /// Creates counters at 0.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Kind::ALL.len()])
    }

    /// Reads the number of each kind. Another CPU's are exact while it takes none.
    pub fn read(&self) -> Counts {
        // Statistics: no reader concludes anything about other memory from them.
        Counts(Kind::ALL.map(|kind| self.0[kind as usize].load(Ordering::Relaxed)))
    }

    /// Counts one more. Called with interrupts disabled on the CPU whose counters these are, so
    /// nothing else writes them at the same time.
    pub fn count(&self, kind: Kind) {
        let counter = &self.0[kind as usize];
        // Relaxed: as for `read`. Two steps are enough, as nothing else writes.
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// The number of interrupts of each kind, from one reading of the counters. All that is printed of
/// one reading agrees, whether it is the sum or the kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; Kind::ALL.len()]);

impl Counts {
    /// Returns the number of this kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// Returns the number of all kinds.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there_were = Kind::ALL.into_iter().zip(self.0);
        let mut before = "";
        for (kind, count) in there_were.filter(|&(_, count)| count > 0) {
            write!(f, "{before}{count} {}", kind.name())?;
            before = ", ";
        }
        f.write_str(if before.is_empty() { "none" } else { "" })
    }
}
