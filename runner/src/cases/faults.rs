//! Fault injection in bring-up and in the run: CPUs that halt, fault, are delayed, stop or are
//! interrupted by NMIs, and memory that is not available.

use super::case::{BACKTRACE, Case, Sweep, fails, panics, passes};
use crate::session::Verdict;

/// Enough work for the remaining CPUs to have used each other and memory.
const FEW_CALLS: &str = "stress=mixed,calls,mappings";

/// Forbidden in a run in which a CPU is missing: it may be in the loader's memory.
const KEPT: &[&str] = &["reclaimed", "(?i)panicked"];

/// The last AP halts when it has reported a phase.
macro_rules! halts_at {
    ($step:literal) => {
        Case {
            never: KEPT,
            ..fails(
                concat!("ap-halt-", $step),
                &[
                    "3",
                    concat!("ap-halt=", $step),
                    FEW_CALLS,
                    "seconds=0.3",
                    "deadline=1000",
                ],
                &[
                    "roll: 2 of 3 CPUs online",
                    concat!(
                        r"CPU 2 \(LAPIC 2\) did not answer within 1000 ms; last phase: ",
                        $step
                    ),
                    r"the loader keeps its .*: CPUs with LAPIC ids \[2\] are missing",
                    "audit: clean",
                    r"verdict: failed: 1 CPUs are missing, with LAPIC ids \[2\]",
                ],
            )
        }
    };
}

/// It takes an exception there.
macro_rules! faults_at {
    ($step:literal) => {
        panics(
            concat!("ap-fault-", $step),
            &["3", concat!("ap-fault=", $step), "stress=none"],
            &[
                "CPU 2: invalid opcode, error code",
                "CPU 1.* (did not stop|stopped at)",
                BACKTRACE,
            ],
        )
    };
}

/// It takes an exception there, where in xAPIC mode it can't send the others an NMI yet, but has the
/// serial port's lock for good: the BSP stops, which waits for the lock, or for an AP that has stopped.
macro_rules! faults_early_at {
    ($step:literal) => {
        panics(
            concat!("ap-fault-early-", $step),
            &[
                "3",
                "cpu=max,-x2apic",
                concat!("ap-fault=", $step),
                "stress=none",
                "deadline=300",
            ],
            &[
                "CPU 2: invalid opcode, error code",
                "CPU 0, at work, stopped at .* in muster::smp::stop::stop_if_over",
                BACKTRACE,
            ],
        )
    };
}

/// It waits there until it has been given up.
macro_rules! is_delayed_at {
    ($step:literal) => {
        Case {
            never: KEPT,
            ..fails(
                concat!("ap-delay-", $step),
                &[
                    "3",
                    concat!("ap-delay=", $step),
                    FEW_CALLS,
                    "seconds=1",
                    "deadline=1000",
                ],
                &[
                    "roll: 2 of 3 CPUs online",
                    "CPU 2 came after the roll call's deadline and stays out",
                    r"CPU 2 \(LAPIC 2\) did not answer within 1000 ms",
                    r"the loader keeps its .*: CPUs with LAPIC ids \[2\] are missing",
                    "audit: clean",
                    r"verdict: failed: 1 CPUs are missing, with LAPIC ids \[2\]",
                ],
            )
        }
    };
}

/// The faults of every test run.
pub const CASES: &[Case] = &[
    halts_at!("entered"),
    halts_at!("block"),
    halts_at!("control"),
    halts_at!("tables"),
    halts_at!("stack"),
    halts_at!("descriptors"),
    // A CPU that was online is not missed until another one calls it.
    panics(
        "ap-halt-online",
        &["3", "ap-halt=online", "stress=none"],
        &[
            "CPU 2 did not take a call within 10000 ms",
            "CPU 2.* stopped at",
            BACKTRACE,
        ],
    ),
    faults_at!("entered"),
    faults_at!("block"),
    faults_at!("control"),
    faults_at!("tables"),
    faults_at!("stack"),
    faults_at!("descriptors"),
    faults_at!("online"),
    faults_early_at!("entered"),
    faults_early_at!("block"),
    faults_early_at!("control"),
    is_delayed_at!("entered"),
    is_delayed_at!("block"),
    is_delayed_at!("control"),
    is_delayed_at!("tables"),
    is_delayed_at!("stack"),
    is_delayed_at!("descriptors"),
    panics(
        "panic-in-panic",
        &["4", "fault=panic-in-panic"],
        &[
            "CPU 3 panicked",
            "a fault within the report of that fault",
            "verdict: failed: CPU 3: a fault within the fault report",
        ],
    ),
    // A host that gives one CPU no time for four seconds, in whatever it does: all who need it wait.
    pausing(
        "pause-churn",
        &["4", "stress=churn", "seconds=1", "pause=2:4"],
    ),
    pausing(
        "pause-handover",
        &["4", "stress=handover", "seconds=1", "pause=2:4"],
    ),
    pausing(
        "pause-calls",
        &["4", "stress=calls", "seconds=1", "pause=2:4"],
    ),
    pausing(
        "pause-mappings",
        &["4", "stress=mappings", "seconds=1", "pause=2:4"],
    ),
    pausing(
        "pause-exhaustion",
        &[
            "4",
            "mem=64M",
            "stress=exhaustion",
            "seconds=1",
            "pause=2:4",
        ],
    ),
    pausing(
        "pause-soak",
        &["4", "stress=soak", "seconds=2", "pause=2:4"],
    ),
    // And one that gives it none any more: whatever it had of the others' is missed, a call that it has
    // begun after a minute.
    panics(
        "pause-for-good",
        &[
            "4",
            "stress=mappings",
            "seconds=1",
            "pause=2:1000",
            "timeout=180",
        ],
        &[
            "CPU 2 (did not take a call within 10000 ms|holds .* and does not go on|has taken a call and is not done)",
            "CPU 2 did not stop; last phase: online",
            BACKTRACE,
        ],
    ),
    passes(
        "nmi-storm",
        &["4", "nmis=yes", "seconds=2"],
        &[r"taken: .* \d{2,} nmi", "exhaustion", "audit: clean"],
    ),
    passes(
        "nmi-storm-soak",
        &["4", "nmis=yes", "stress=soak", "seconds=2"],
        &[r"taken: .* \d{2,} nmi", "audit: clean"],
    ),
    // Each request for frames refused in turn, from the first stack to the roll call and beyond.
    Case {
        sweep: Some(Sweep {
            before: "frames-fail=",
            first: 1,
            last: 48,
            step: 1,
            after: "",
        }),
        // Either there is too little memory to start, or what was refused is found elsewhere.
        ends: &[Verdict::Refused, Verdict::Passed],
        never: &["(?i)panicked"],
        ..passes(
            "frames-fail-bring-up",
            &["1", "stress=none", "timeout=30"],
            &[SAID],
        )
    },
    // And some of those under stress, in growth and in shootdowns.
    Case {
        sweep: Some(Sweep {
            before: "frames-fail=",
            first: 100,
            last: 1000,
            step: 97,
            after: "",
        }),
        ..passes(
            "frames-fail-stress",
            &[
                "2",
                "mem=64M",
                "stress=mixed,growth,mappings,shootdown",
                "seconds=0.4",
            ],
            &["request [0-9]+ for frames was refused", "audit: clean"],
        )
    },
];

/// What a run says in which there was no frame when it was needed, or which did without.
const SAID: &str = "give it more|add memory|too few frames|request [0-9]+ for frames was";

/// Makes a run in which one CPU stands still for four seconds.
const fn pausing(name: &'static str, arguments: &'static [&'static str]) -> Case {
    passes(
        name,
        arguments,
        &[r"CPU 2 was stopped for [4-9]\.\d s", "audit: clean"],
    )
}
