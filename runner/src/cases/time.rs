//! The boot tests of time: the timer of each CPU, and how the rate of the TSC is found.

use super::case::{Case, passes};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    passes(
        "timer-1",
        &["1", "stress=timer", "seconds=0.5"],
        // On a CPU of the host's own.
        &[r"\d{3,} interrupts a second on each CPU"],
    ),
    passes(
        "timer-8",
        &["8", "stress=timer", "seconds=1"],
        &[r"\d interrupts a second on each CPU", "audit: clean"],
    ),
    passes(
        "timer-32",
        &["32", "stress=timer", "seconds=0.5"],
        &[r"\d interrupts a second on each CPU", "audit: clean"],
    ),
    // In the guest's own time, which the host can't take from it.
    passes(
        "timer-every-cpu",
        &["8", "accel=icount", "stress=timer", "seconds=0.1"],
        &[
            r"\d{4,} interrupts a second on each CPU, \d{4,} to",
            "audit: clean",
        ],
    ),
    passes(
        "tsc-by-the-pit",
        &["1", "accel=icount", "stress=none"],
        // One nanosecond for each instruction; as QEMU says, not invariant.
        &[r"INFO .*TSC at 1000 MHz, measured by the PIT; not invariant"],
    ),
    passes(
        "tsc-by-the-acpi-timer",
        &[
            "2",
            "accel=icount",
            "qemu-args=-M q35,pit=off",
            "stress=calls",
            "seconds=0.1",
        ],
        &[
            "INFO .*TSC at 8000 MHz, assumed",
            "INFO .*TSC at 1000 MHz, measured by the ACPI timer",
            "audit: clean",
        ],
    ),
    // One clock for all CPUs: none may be ahead, or behind, for sure.
    Case {
        never: &[" ERROR ", "(?i)panicked", "their times don't compare"],
        ..passes(
            "tsc-offsets",
            &["4", "accel=icount", "stress=none"],
            &[
                r"that each TSC is ahead .*\n.* {3}1 +[+-]\d+ \d+ +2 +[+-]\d+ \d+\n.* {3}3 +[+-]\d+ \d+\n",
            ],
        )
    },
    // It reports the rate of the CPU that it imitates, and runs at what its configuration says.
    passes(
        "tsc-reported-wrongly",
        &[
            "2",
            "machine=bochs",
            "cpu=corei7_icelake_u",
            "mem=64M",
            "stress=calls",
            "seconds=0.1",
        ],
        &[
            "INFO .*TSC at 10 MHz, measured by the PIT; invariant",
            "WARN .*CPUID reports 1498 MHz for the TSC, which is wrong: the 10 MHz that were measured are used",
            "audit: clean",
        ],
    ),
    passes(
        "tsc-assumed",
        &[
            "2",
            "machine=microvm",
            "qemu-args=-M microvm,pit=off",
            "stress=calls",
            "seconds=0.1",
        ],
        &["WARN .*the TSC's rate is assumed", "audit: clean"],
    ),
];
