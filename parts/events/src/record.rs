//! A record, which is one line: when it was emitted, by which CPU, and one of all events; and the events that belong
//! to no other file.

use alloc::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::bench::{Figure, Instructions, Latency};
use crate::cpus::{Absent, Cost, Cpu, Interrupts, Roll};
use crate::end::{Fault, ReturnAddress, Stopped, Verdict};
use crate::memory::{Account, AccountCommon, AccountCpu, Audit, Mapped, Range, Reclaim};
use crate::start::{Run, Start};
use crate::stress::{Memory, Sample, Work, Workload};

/// One line.
///
/// Lines stand in the order in which they were written. Two CPUs that write at once may have looked at
/// the clock the other way round, so [`us`](Self::us) may go back by a little.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record<'a> {
    /// When it was said, in microseconds since the kernel's entry.
    pub us: u64,
    /// The index of the CPU that said it; `None` if it was the runner.
    pub by: Option<u32>,
    /// What was said: its name in the field `event`, its own fields beside it.
    #[serde(flatten)]
    pub event: Event<'a>,
}

macro_rules! events {
    ($($(#[$about:meta])* $Variant:ident($Type:ty) = $name:literal,)+) => {
        /// All events, in about the order in which a run writes them.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "event")]
        pub enum Event<'a> {
            $($(#[$about])* #[serde(rename = $name)] $Variant($Type),)+
        }

        impl Event<'_> {
            /// The names of all, in the field `event`.
            pub const NAMES: &'static [&'static str] = &[$($name,)+];

            /// Returns its name.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$Variant(_) => $name,)+
                }
            }
        }

        $(impl<'a> From<$Type> for Event<'a> {
            fn from(event: $Type) -> Self {
                Self::$Variant(event)
            }
        })+
    };
}

events! {
    /// What the runner knows of the run. Its line is the first where there is a runner.
    Run(Run<'a>) = "run",
    /// What the kernel found when it started: the kernel's first line.
    Start(Start<'a>) = "start",
    /// A line of the log for people.
    Log(Log<'a>) = "log",
    /// How memory is mapped.
    Mapped(Mapped) = "mapped",
    /// How far one CPU has come, and when it was where.
    Cpu(Cpu) = "cpu",
    /// How the roll call ended.
    Roll(Roll) = "roll",
    /// A CPU that should be here and is not.
    Absent(Absent) = "absent",
    /// What became of the loader's memory.
    Reclaim(Reclaim<'a>) = "reclaim",
    /// A stretch of physical memory and whose it is.
    Range(Range) = "range",
    /// What something costs that CPUs do to one another.
    Cost(Cost) = "cost",
    /// What somebody typed at the monitor's prompt, and whether it is done.
    Command(Command<'a>) = "command",
    /// What one CPU has done so far, while the stress is on.
    Sample(Sample<'a>) = "sample",
    /// How much memory is whose, while the stress is on.
    Memory(Memory<'a>) = "memory",
    /// What one CPU did in one workload.
    Work(Work<'a>) = "work",
    /// What all CPUs did in one workload.
    Workload(Workload<'a>) = "workload",
    /// What an allocator did in a benchmark.
    Figure(Figure<'a>) = "figure",
    /// How long single steps of a benchmark took.
    Latency(Latency<'a>) = "latency",
    /// How many instructions an allocator takes.
    Instructions(Instructions<'a>) = "instructions",
    /// What one CPU has of memory, and has done.
    AccountCpu(AccountCpu) = "account_cpu",
    /// What no CPU has of memory.
    AccountCommon(AccountCommon) = "account_common",
    /// Whose all memory is, in the end.
    Account(Account) = "account",
    /// What was found of what is left.
    Audit(Audit) = "audit",
    /// The interrupts that one CPU has taken.
    Interrupts(Interrupts) = "interrupts",
    /// A panic or an exception, which ends the run.
    Fault(Fault<'a>) = "fault",
    /// One return address of the CPU with the fault.
    ReturnAddress(ReturnAddress) = "return_address",
    /// What another CPU was doing then.
    Stopped(Stopped<'a>) = "stopped",
    /// How the run ended: the last line.
    Verdict(Verdict<'a>) = "verdict",
    /// A line that would have been too long.
    Omitted(Omitted<'a>) = "omitted",
}

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The run fails.
    Error,
    /// Something is not as it should be, but the kernel carries on.
    Warn,
    /// What happens.
    Info,
    /// What each CPU does.
    Debug,
    /// Everything.
    Trace,
}

/// A line of the log for people, of those that `log=` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log<'a> {
    /// How much it matters.
    pub level: Level,
    /// The part of the kernel that speaks.
    pub target: Cow<'a, str>,
    /// What it says.
    pub text: Cow<'a, str>,
}

/// A line that somebody typed at the monitor's prompt: once when it is taken, and once when it is done.
/// What is said between the two answers it, or goes on beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command<'a> {
    /// The line.
    pub line: Cow<'a, str>,
    /// Whether it is done.
    pub is_done: bool,
}

/// An event whose line would have been longer than [`MAX_LENGTH`](crate::MAX_LENGTH).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Omitted<'a> {
    /// The event's name.
    pub name: Cow<'a, str>,
}
