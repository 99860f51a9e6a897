//! The boot tests of the stress on several CPUs at once: calls, mappings, shootdowns, and all of it, with
//! the account of memory. The stress is short: what is tested is that the kernel holds, not how long.

use super::case::{Case, passes};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    passes(
        "calls-1",
        &["1", "stress=calls", "seconds=0.3"],
        &["audit: clean"],
    ),
    // Where CPUs take turns, a wait without a pause keeps the others from what it waits for.
    passes(
        "calls-in-turns",
        &["2", "accel=icount", "stress=calls", "seconds=0.1"],
        &["stress  calls", "audit: clean"],
    ),
    passes(
        "calls-8",
        &["8", "stress=calls", "seconds=1"],
        &[
            "to one CPU and back: ",
            "to all 7 others and back: ",
            "audit: clean",
        ],
    ),
    passes(
        "calls-32",
        &["32", "stress=calls", "seconds=0.5"],
        &["to all 31 others and back: ", "audit: clean"],
    ),
    passes(
        "mappings-1",
        &["1", "stress=mappings", "seconds=0.3"],
        &["stress  mappings", "audit: clean"],
    ),
    passes(
        "mappings-8",
        &["8", "stress=mappings", "seconds=1"],
        &["stress  mappings", "audit: clean"],
    ),
    passes(
        "mappings-32",
        &["32", "stress=mappings", "seconds=0.5"],
        &["stress  mappings", "audit: clean"],
    ),
    passes(
        "shootdown-1",
        &["1", "stress=shootdown", "seconds=0.2"],
        &["stress  shootdown", "audit: clean"],
    ),
    passes(
        "shootdown-2",
        &["2", "stress=shootdown,mappings", "seconds=1"],
        &["stress  shootdown", "audit: clean"],
    ),
    passes(
        "shootdown-8",
        &["8", "stress=shootdown", "seconds=1.5"],
        &[
            "a shootdown, 7 idle: ",
            "a shootdown, 7 busy: ",
            "stress  shootdown",
            "account: adds up, to the byte",
            "audit: clean",
        ],
    ),
    passes(
        "shootdown-32",
        &["32", "stress=shootdown", "seconds=0.5"],
        &["stress  shootdown", "audit: clean"],
    ),
    // The account is added up again from the log and the events, as of every run that passes: here with
    // blocks that grow and shrink where they are, and are freed elsewhere, and with handlers that
    // allocate on top of the heap; and each CPU's interrupts by kind.
    Case {
        tells: &["account_cpu", "account_common", "account", "interrupts"],
        ..passes(
            "account-8",
            &[
                "8",
                "stress=handover,growth,interrupts,timer,mappings",
                "seconds=2",
                "log=debug",
                "output=json",
            ],
            &[
                r"account    all +\d+ +\d+\n",
                "interrupts taken by CPU 7: ",
                "account: adds up, to the byte",
                "audit: clean",
            ],
        )
    },
    passes(
        "soak-1",
        &["1", "stress=soak", "seconds=1"],
        &[
            "stress  soak",
            "account: adds up, to the byte",
            "audit: clean",
        ],
    ),
    passes(
        "soak-8",
        &["8", "stress=soak", "seconds=5"],
        &[
            "stress  soak",
            "account: adds up, to the byte",
            "audit: clean",
        ],
    ),
    passes(
        "soak-32",
        &["32", "stress=soak", "seconds=3"],
        &[
            "stress  soak",
            "account: adds up, to the byte",
            "audit: clean",
        ],
    ),
];
