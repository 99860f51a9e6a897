//! The boot tests of faults that end the run: panics, exceptions, CPUs that do not answer, and locks that
//! are misused.

use super::case::{BACKTRACE, Case, Debugged, panics};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    panics(
        "panic-bsp",
        &["4", "fault=panic-bsp"],
        &["CPU 0 panicked", BACKTRACE],
    ),
    panics(
        "panic-ap",
        &["4", "fault=panic-ap"],
        &["CPU [1-3] panicked", BACKTRACE],
    ),
    panics(
        "panic-two",
        &["4", "fault=panic-two"],
        &[r"CPU 3 panicked", r"CPU 2 too: panic", BACKTRACE],
    ),
    panics(
        "panic-all",
        &["8", "fault=panic-all"],
        &[r"CPU \d panicked", BACKTRACE],
    ),
    panics(
        "stack-overflow",
        &["4", "fault=stack-overflow"],
        &[
            "double fault|page fault",
            "the guard page below the stack of CPU",
            BACKTRACE,
        ],
    ),
    panics(
        "boot-stack-overflow",
        &["4", "fault=boot-stack-overflow"],
        &[
            "CPU 0: double fault",
            "the guard page below the boot stack: stack overflow",
            r"in muster::arch::failpoint::injected::overflow",
            BACKTRACE,
        ],
    ),
    panics(
        "mapped-stack-overflow",
        &["4", "fault=mapped-stack-overflow"],
        &[
            "CPU 3: double fault",
            "the guard page of a stack that was mapped for some work",
            BACKTRACE,
        ],
    ),
    panics(
        "null-read",
        &["4", "fault=null-read"],
        &[
            "page fault",
            "tried to read 0x0:",
            "null pointer",
            BACKTRACE,
        ],
    ),
    panics(
        "write-text",
        &["4", "fault=write-text"],
        &["page fault", "tried to write", BACKTRACE],
    ),
    panics(
        "execute-heap",
        &["4", "fault=execute-heap"],
        &["page fault", "tried to execute", BACKTRACE],
    ),
    panics(
        "unmapped-read",
        &["4", "fault=unmapped-read"],
        &[
            "every CPU used 2.3 MiB of a mapping",
            "CPU 3: page fault",
            "tried to read 0xffffff10",
            "nothing is mapped there .*a mapping",
            BACKTRACE,
        ],
    ),
    panics(
        "protected-write",
        &["4", "fault=protected-write"],
        &[
            "every CPU used 12.0 KiB of a mapping",
            "CPU 3: page fault",
            "tried to write 0xffffff10",
            "its page does not allow that .*a mapping",
            BACKTRACE,
        ],
    ),
    panics(
        "mapping-overflow",
        &["1", "fault=mapping-overflow"],
        &[
            "page fault",
            "tried to write 0xffffff10",
            "nothing is mapped there .*a mapping",
            BACKTRACE,
        ],
    ),
    panics(
        "unresponsive-ap",
        &["4", "fault=unresponsive-ap"],
        &[
            "2 CPUs have answered",
            "CPU 3 did not take a call within 1000 ms",
            "CPU 3, at work, stopped at 0x[0-9a-f]+ in muster::",
            BACKTRACE,
        ],
    ),
    // For as long as a CPU may take to take a call.
    panics(
        "halt-in-heap",
        &["4", "heap=linked-list", "fault=halt-in-heap"],
        &[
            "CPU 0 panicked",
            "CPU 3 holds a lock of the heap and does not go on",
            // What it stands in is inlined there, or not, as the compiler likes.
            "CPU 3, at work, stopped at 0x[0-9a-f]+ in .*(hlt|grow|muster_heap::heap::Heap)",
            BACKTRACE,
        ],
    ),
    panics(
        "halt-in-lock",
        &["4", "fault=halt-in-lock"],
        &[
            "CPU 0 panicked",
            "CPU 3 holds the lock of the workload's state and does not go on",
            "CPU 3, at work, stopped at 0x[0-9a-f]+ in muster::selftest::fault::",
            BACKTRACE,
        ],
    ),
    panics(
        "lock-order",
        &["4", "fault=lock-order"],
        &[
            "CPU 3 panicked",
            "the lock of the workload's state may not be taken while that of the page tables is held",
            BACKTRACE,
        ],
    ),
    panics(
        "call-locked",
        &["4", "fault=call-locked"],
        &[
            "CPU 3 panicked",
            "CPUs may not be called while the lock of the page tables is held",
            BACKTRACE,
        ],
    ),
    panics(
        "panic-in-call",
        &["4", "fault=panic-in-call"],
        &[
            "CPU 3 panicked",
            r"CPU 0, at work, stopped at 0x[0-9a-f]+ in .*\(.*:\d+\)\n",
            // One line for each.
            r"CPU 1, idle, stopped at .* in .*\n.* CPU 2, idle, stopped at .* in .*\n",
            BACKTRACE,
        ],
    ),
    panics(
        "panic-in-shootdown",
        &["4", "fault=panic-in-shootdown"],
        &[
            "CPU 3 panicked",
            "CPU 0, .*, stopped at",
            "CPU 1, .*, stopped at",
            "CPU 2, .*, stopped at",
            BACKTRACE,
        ],
    ),
    // An error of the data cache, read by CPU 1, with an address; after the roll call.
    Case {
        debugged: Some(Debugged {
            asks: &[
                "hbreak muster::bringup::reclaim::reclaim",
                "continue",
                "delete",
                "monitor mce 1 3 0xbd80000000100134 0x5 0x1234000 0x8c",
            ],
            answers: &[],
            agrees: &[],
        }),
        ..panics(
            "machine-check",
            &[
                "2",
                "stress=churn",
                "seconds=2",
                "deadline=60000",
                "timeout=60",
            ],
            &[
                "CPU 1: machine check, error code 0x0",
                r"what was interrupted could go on; the error is of no instruction in particular \(status 0x5\)",
                "machine-check bank 3, now: a cache error, not corrected",
                "  status 0xbd80000000100134, address 0x1234000, misc 0x8c",
                BACKTRACE,
            ],
        )
    },
];
