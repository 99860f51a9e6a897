//! The events of a run's end: fault reports, and the verdict.

use alloc::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::cpus::Phase;
use crate::memory::Address;

/// The outcomes a run can have. The discriminants are QEMU's exit statuses: odd, because
/// `isa-debug-exit` turns a written `v` into `v << 1 | 1` (QEMU, `hw/misc/debugexit.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum Outcome {
    /// Every CPU that the machine has came up, every workload and the audit passed.
    Passed = 33,
    /// The kernel ran, and something it checks was not as it should be.
    Failed = 35,
    /// The loader or the command line gave something the kernel can't start from.
    Refused = 37,
    /// A panic or a CPU exception.
    Fault = 39,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Passed, Self::Failed, Self::Refused, Self::Fault];

    /// Returns QEMU's exit status.
    pub const fn status(self) -> i32 {
        self as i32
    }

    /// Returns the outcome that QEMU's exit status stands for, if the kernel asked for it.
    pub fn of_status(status: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.status() == status)
    }
}

/// What a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The kernel found something that must not be.
    Panic,
    /// The CPU did.
    Exception,
    /// The heap that checks found a block misused.
    Misuse,
}

/// A panic, an exception or a misuse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault<'a> {
    /// The CPU on which it happened.
    pub cpu: u32,
    /// What it is.
    pub kind: Kind,
    /// What the panic says, the exception's name, or which block was misused, and how.
    pub text: Cow<'a, str>,
    /// Where the panic stands in the source; null for others.
    pub location: Option<Cow<'a, str>>,
    /// The instruction that an exception interrupted; null for others.
    pub instruction: Option<Address>,
    /// An exception's error code; null for others.
    pub error_code: Option<Address>,
    /// The address that a page fault, or a double fault, is about.
    pub address: Option<Address>,
}

/// One return address of the CPU with the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReturnAddress {
    /// Its number, 0 for the innermost.
    pub depth: u32,
    /// The address.
    pub address: Address,
    /// How often it follows itself: of a recursion.
    pub repeated: u32,
}

/// What another CPU was doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stopped<'a> {
    /// The CPU.
    pub cpu: u32,
    /// Where it stopped; null if it did not, or by a fault of its own.
    pub address: Option<Address>,
    /// Its own fault; null if it had none.
    pub fault: Option<Cow<'a, str>>,
    /// What it was doing, in words.
    pub doing: Cow<'a, str>,
    /// The last phase of its bring-up that it reached.
    pub phase: Phase,
}

/// How the run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict<'a> {
    /// The outcome.
    pub outcome: Outcome,
    /// QEMU's exit status.
    pub status: i32,
    /// Why it did not pass; null if it did.
    pub reason: Option<Cow<'a, str>>,
}
