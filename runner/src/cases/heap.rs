//! The boot tests of the heaps, and of what is done wrong with their blocks.

use super::case::{BACKTRACE, Case, panics, passes};

/// What a checked heap says in the end.
const CHECKED: &str = r"heap: \d{4,} blocks checked, none misused";

/// Who allocated the block that a fault misuses, down to the line; and who freed it, or frees it.
const ALLOCATED: &str = r"allocated on CPU 1:\n[^#]+ #0 0x[0-9a-f]{16} in [^#]+ muster::selftest::misuse::allocate \(src/selftest/misuse.rs:\d+\)";
const FREED: &str = r" (freed|found) on CPU 2:\n[^#]+ #0 0x[0-9a-f]{16} in [^#]+ muster::selftest::misuse::free \(src/selftest/misuse.rs:\d+\)";
const FREED_AGAIN: &str = r" freed again on CPU 3:\n[^#]+ #0 0x[0-9a-f]{16} in [^#]+ muster::selftest::misuse::free_again \(src/selftest/misuse.rs:\d+\)";
const FREED_OTHERWISE: &str = r" freed on CPU 3:\n[^#]+ #0 0x[0-9a-f]{16} in [^#]+ muster::selftest::misuse::free_otherwise \(src/selftest/misuse.rs:\d+\)";

/// The cases of every test run.
pub const CASES: &[Case] = &[
    passes(
        "heap-linked-list",
        &["8", "heap=linked-list", "seconds=1"],
        &["exhaustion", "audit: clean"],
    ),
    passes(
        "heap-checked-1",
        &["1", "heap=checked", "seconds=1"],
        &[CHECKED, "exhaustion", "audit: clean"],
    ),
    passes(
        "heap-checked-8",
        &["8", "heap=checked", "seconds=4"],
        &[CHECKED, "exhaustion", "audit: clean"],
    ),
    passes(
        "heap-checked-32",
        &[
            "32",
            "heap=checked",
            "stress=churn,mixed,handover,growth,timer,calls",
            "seconds=2",
        ],
        &[CHECKED, "audit: clean"],
    ),
    passes(
        "heap-checked-64m",
        &["4", "heap=checked", "mem=64M", "seconds=1"],
        &[CHECKED, "exhaustion", "audit: clean"],
    ),
    passes(
        "heap-checked-soak",
        &["8", "heap=checked", "stress=soak", "seconds=5"],
        &[CHECKED, "account: adds up", "audit: clean"],
    ),
    panics(
        "heap-double-free",
        &["4", "heap=checked", "fault=heap-double-free"],
        &[
            "CPU 3 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was freed twice\n",
            ALLOCATED,
            FREED,
            FREED_AGAIN,
            BACKTRACE,
        ],
    ),
    panics(
        "heap-overflow",
        &["4", "heap=checked", "fault=heap-overflow"],
        &[
            "CPU 2 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was written past its end: byte 100 is 0x21\n",
            ALLOCATED,
            FREED,
            BACKTRACE,
        ],
    ),
    panics(
        "heap-underflow",
        &["4", "heap=checked", "fault=heap-underflow"],
        &[
            "CPU 2 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was written before its start: byte -1 is 0x21\n",
            ALLOCATED,
            FREED,
            BACKTRACE,
        ],
    ),
    panics(
        "heap-use-after-free",
        &["4", "heap=checked", "fault=heap-use-after-free"],
        &[
            "CPU 0 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was written after its free: byte 8 is 0x21, 1 in all\n",
            ALLOCATED,
            FREED,
            "found on CPU 0\n",
            BACKTRACE,
        ],
    ),
    panics(
        "heap-wrong-layout",
        &["4", "heap=checked", "fault=heap-wrong-layout"],
        &[
            "CPU 3 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was freed as one of 1000 bytes, aligned to 4\n",
            ALLOCATED,
            FREED_OTHERWISE,
            BACKTRACE,
        ],
    ),
    // Without the checks it is found when the blocks go back to their slabs.
    panics(
        "heap-double-free-unchecked",
        &["4", "fault=heap-double-free"],
        &[
            r"0x[0-9a-f]+, a block of up to 112 bytes, was freed twice",
            BACKTRACE,
        ],
    ),
    panics(
        "heap-wrong-layout-unchecked",
        &["4", "fault=heap-wrong-layout"],
        &[
            r"0x[0-9a-f]+ was freed as a block of up to 1024 bytes, but no such block is there",
            BACKTRACE,
        ],
    ),
    passes(
        "heap-compare",
        &["4", "heap=compare", "seconds=2"],
        &["magazines  linked-list    ratio", "audit: clean"],
    ),
];
