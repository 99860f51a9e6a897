//! The boot tests of the benchmarks, and the limits of what allocators may take.

use super::case::{Case, Limit, passes};

/// Above what is counted now, which stands beside each and repeats to the digit, by what another
/// choice of the compiler's in the loop around may cost: some eight instructions have been seen.
const INSTRUCTIONS: &[Limit] = &[
    // 25.00
    Limit {
        bench: "churn",
        most: 34.0,
    },
    // 32.08
    Limit {
        bench: "mixed",
        most: 42.0,
    },
    // 43.00
    Limit {
        bench: "frame-pair",
        most: 48.0,
    },
    // 98.14
    Limit {
        bench: "frame-bulk",
        most: 110.0,
    },
];

/// The cases of every test run.
pub const CASES: &[Case] = &[
    passes(
        "bench",
        &["4", "bench=all", "on=1,2,4", "rounds=1", "time=2"],
        &["muster to the best other kernel allocator", "audit: clean"],
    ),
    passes(
        "bench-json",
        &[
            "2",
            "bench=xfree,frame-bulk",
            "rounds=1",
            "time=2",
            "format=json",
        ],
        &[r#"\{"bench":"xfree","allocator":"muster","cpus":2,"pairs_per_s":\d+,"#],
    ),
    Case {
        limits: INSTRUCTIONS,
        ..passes(
            "instructions",
            &[
                "1",
                "accel=icount",
                "measure=instructions",
                "allocators=muster",
                "bench=churn,mixed,frame-pair,frame-bulk",
            ],
            &[],
        )
    },
];
