//! The options of the self-test, read.

use crate::form::millis;
use crate::values::{ApFault, Fault, Step, Workloads};

/// What the self-test is asked to do, and to have the kernel fail at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfTest {
    /// The workloads of the stress.
    pub stress: Workloads,
    /// How long the stress lasts, all workloads together, in milliseconds.
    pub stress_millis: u64,
    /// The seed of everything random.
    pub seed: u64,
    /// A fault to inject, to see it reported.
    pub fault: Option<Fault>,
    /// Whether to do what is typed at the serial port instead of the stress.
    pub monitor: bool,
    /// The fault of the last AP during bring-up, and its phase.
    pub ap_fault: Option<(ApFault, Step)>,
    /// The request for frames that is refused, counted from 1.
    pub frames_fail: Option<u64>,
    /// Whether CPUs send each other NMIs during the stress.
    pub nmis: bool,
}

impl Default for SelfTest {
    fn default() -> Self {
        Self {
            stress: Workloads::all(),
            stress_millis: 8_000,
            seed: 1,
            fault: None,
            monitor: false,
            ap_fault: None,
            frames_fail: None,
            nmis: false,
        }
    }
}

impl SelfTest {
    /// Takes an option. Returns `None` if it has no such name or value.
    pub(crate) fn take(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "stress" => self.stress = Workloads::parse(value)?,
            "seconds" => self.stress_millis = millis(value)?,
            "seed" => self.seed = value.parse().ok()?,
            "fault" => self.fault = Some(Fault::parse(value)?),
            "monitor" => self.monitor = value == "yes",
            "frames-fail" => self.frames_fail = Some(value.parse().ok()?),
            "nmis" => self.nmis = value == "yes",
            _ => self.ap_fault = Some((ApFault::parse(name)?, Step::parse(value)?)),
        }
        Some(())
    }
}
