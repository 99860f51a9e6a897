//! The progress of a CPU's bring-up.

use core::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};

use muster_cross_cpu::{Admission, Outcome};
use muster_events::{Phase, Reached};
use muster_machine::time::Offset;
use muster_percpu::cpu_local;

use crate::arch::clock;

cpu_local! {
    /// The progress of the CPU's bring-up.
    pub shared static PROGRESS: Progress = Progress::new();
}

/// One CPU's report of its bring-up. Written by that CPU, but for the release and the end of the
/// roll call, which are the BSP's; read by all.
///
/// # Ordering
///
/// A phase is published with Release after its stamp, and read with Acquire: a CPU that sees a
/// phase sees its stamp, and all that the other CPU wrote before.
#[derive(Debug)]
pub struct Progress {
    phase: AtomicU8,
    admission: Admission,
    stamps: [AtomicU64; Phase::COUNT],
    skew: Skew,
}

impl Progress {
    /// Creates the report of a CPU that the loader has parked.
    pub const fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Parked as u8),
            admission: Admission::new(),
            stamps: [const { AtomicU64::new(0) }; Phase::COUNT],
            skew: Skew::new(),
        }
    }

    /// Reports that this CPU has reached `phase`.
    pub fn reach(&self, phase: Phase) {
        self.stamps[phase as usize].store(clock::ticks(), Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Returns the last phase reached.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire)).min(Phase::COUNT - 1)]
    }

    /// Returns when `phase` was reached, as a stamp of the TSC.
    pub fn stamp(&self, phase: Phase) -> Option<u64> {
        Some(self.stamps[phase as usize].load(Ordering::Relaxed)).filter(|&stamp| stamp != 0)
    }

    /// Returns when each phase was reached, in microseconds since the kernel's entry.
    pub fn reached(&self) -> Reached {
        let at = |phase| self.stamp(phase).map(clock::micros_since_entry);
        Reached {
            released: at(Phase::Released),
            entered: at(Phase::Entered),
            block: at(Phase::Block),
            control: at(Phase::Control),
            tables: at(Phase::Tables),
            stack: at(Phase::Stack),
            descriptors: at(Phase::Descriptors),
            online: at(Phase::Online),
        }
    }

    /// Returns its TSC's distance from the BSP's.
    pub const fn skew(&self) -> &Skew {
        &self.skew
    }

    /// Joins the online CPUs: the CPU's last step. Returns `false` if the roll call has given it
    /// up.
    pub fn join(&self) -> bool {
        self.admission.join()
    }

    /// Gives a silent CPU up: the roll call's last step. Returns `false` if the CPU has joined in
    /// this very moment.
    pub fn give_up(&self) -> bool {
        self.admission.give_up()
    }

    /// Returns whether the CPU has joined, or was given up by the roll call or by itself.
    pub fn admission(&self) -> Outcome {
        self.admission.outcome()
    }
}

/// The measured distance of one CPU's TSC from the BSP's. The BSP alone writes and reads it, so
/// Relaxed is enough for all accesses.
#[derive(Debug)]
pub struct Skew {
    least: AtomicI64,
    most: AtomicI64,
}

impl Skew {
    /// Creates one that is not measured: its bounds contradict each other.
    pub const fn new() -> Self {
        Self {
            least: AtomicI64::new(i64::MAX),
            most: AtomicI64::new(i64::MIN),
        }
    }

    /// Records it.
    pub fn note(&self, offset: Offset) {
        self.least.store(offset.least, Ordering::Relaxed);
        self.most.store(offset.most, Ordering::Relaxed);
    }

    /// Returns by how many nanoseconds the CPU's TSC is ahead of the BSP's, and by how many that may be
    /// wrong. `None`: it was not measured.
    pub fn nanos(&self) -> Option<(i64, u64)> {
        let offset = self.offset()?;
        let ahead = nanos(offset.middle());
        Some((ahead, clock::to_nanos(offset.uncertainty())))
    }

    /// Returns it, if it was measured.
    pub fn offset(&self) -> Option<Offset> {
        let offset = Offset {
            least: self.least.load(Ordering::Relaxed),
            most: self.most.load(Ordering::Relaxed),
        };
        Some(offset).filter(|offset| offset.least <= offset.most)
    }
}

/// Converts a difference of ticks to nanoseconds.
fn nanos(ticks: i64) -> i64 {
    let nanos = clock::to_nanos(ticks.unsigned_abs()).min(i64::MAX as u64) as i64;
    if ticks < 0 { -nanos } else { nanos }
}
