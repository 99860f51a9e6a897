//! The boot tests on Bochs, an emulator that shares no line with QEMU, by Limine. Memory is little and
//! the stress short: it interprets, and the CPUs take turns in one thread.

use super::case::{BACKTRACE, Case, fails, panics, passes, refuses};

/// All that goes from CPU to CPU, and the use of memory.
const SHORT: &str = "stress=mixed,calls,mappings,shootdown";

/// What every run says whose CPUs all came.
macro_rules! comes_up {
    ($name:literal, $cpus:literal, $model:literal, $says:expr, $stress:expr) => {
        passes(
            concat!("bochs-", $name),
            &[
                $cpus,
                "machine=bochs",
                concat!("cpu=", $model),
                "mem=64M",
                $stress,
                "seconds=0.2",
            ],
            &[
                concat!("roll: ", $cpus, " of ", $cpus, " CPUs online"),
                $says,
                "account: adds up, to the byte",
                "audit: clean",
            ],
        )
    };
}

/// What goes wrong on the last of three CPUs.
macro_rules! panics_by {
    ($fault:literal, $says:expr) => {
        panics(
            concat!("bochs-", $fault),
            &[
                "3",
                "machine=bochs",
                "cpu=athlon64_venice",
                "mem=64M",
                "stress=none",
                concat!("fault=", $fault),
            ],
            &[$says, "verdict: failed: CPU 2: ", BACKTRACE],
        )
    };
}

/// The cases of every test run.
pub const CASES: &[Case] = &[
    // The whole default stress, in x2APIC mode, with INVPCID, where the TSC's deadline is the timer.
    passes(
        "bochs-haswell",
        &[
            "4",
            "machine=bochs",
            "cpu=corei7_haswell_4770",
            "mem=64M",
            "seconds=0.2",
            "log=debug",
        ],
        &[
            r"(?m)  3 DEBUG lapic +local APIC in x2APIC mode$",
            "timers by TSC deadline",
            "roll: 4 of 4 CPUs online",
            "a flush by INVPCID",
            "exhaustion",
            "account: adds up, to the byte",
            "audit: clean",
        ],
    ),
    // The same on a CPU of 2005 in xAPIC mode, whose local APIC counts the time.
    comes_up!("venice", "8", "athlon64_venice", "timers by", "stress=all"),
    // SMAP and 512-bit registers.
    comes_up!("skylake", "2", "corei7_skylake_x", "smep smap", SHORT),
    comes_up!("ryzen", "2", "ryzen", "smep smap", SHORT),
    comes_up!("penryn", "2", "core2_penryn_t9600", "timers by", SHORT),
    panics_by!("panic-ap", "CPU 2 panicked"),
    panics_by!("stack-overflow", "CPU 2: double fault"),
    panics_by!("null-read", "CPU 2: page fault"),
    panics_by!("write-text", "CPU 2: page fault"),
    panics_by!("execute-heap", "CPU 2: page fault"),
    panics_by!("protected-write", "CPU 2: page fault"),
    fails(
        "bochs-ap-halt-block",
        &[
            "3",
            "machine=bochs",
            "cpu=athlon64_venice",
            "mem=64M",
            "ap-halt=block",
            SHORT,
            "seconds=0.2",
        ],
        &[
            "roll: 2 of 3 CPUs online",
            r"CPU 2 \(LAPIC 2\) did not answer within 2000 ms; last phase: block",
            "audit: clean",
            r"verdict: failed: 1 CPUs are missing, with LAPIC ids \[2\]",
        ],
    ),
    refuses(
        "bochs-refused",
        &["1", "machine=bochs", "mem=64M", "frames-fail=1"],
        &["too little memory|give it more|add memory"],
    ),
    Case {
        types: &[("`help` lists", "cpus"), ("^  1 +1 ", "off")],
        hides: &[],
        ..passes(
            "bochs-monitor",
            &[
                "2",
                "machine=bochs",
                "mem=64M",
                "monitor=yes",
                "timeout=600",
            ],
            &["audit: clean"],
        )
    },
];
