//! The boot tests of what a run writes: its events, and its log by level.

use super::case::{Case, fails, panics, passes, refuses};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    Case {
        tells: &[
            "log",
            "mapped",
            "cpu",
            "roll",
            "reclaim",
            "range",
            "cost",
            "sample",
            "memory",
            "work",
            "workload",
            "account_cpu",
            "account_common",
            "account",
            "interrupts",
            "audit",
        ],
        ..passes("events-8", &["8", "seconds=2", "output=json"], &[])
    },
    // All CPUs write at once, on both ports.
    Case {
        tells: &["work", "audit"],
        ..passes(
            "events-32",
            &[
                "32",
                "stress=churn,mixed,handover",
                "seconds=0.5",
                "log=debug",
                "output=json",
            ],
            &["audit: clean"],
        )
    },
    Case {
        tells: &["audit"],
        ..passes(
            "events-microvm",
            &["4", "machine=microvm", "seconds=0.5", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["audit"],
        ..passes(
            "events-pc",
            &["4", "machine=pc", "seconds=0.5", "output=json"],
            &[],
        )
    },
    passes(
        "events-no-port",
        &["2", "qemu-args=-append 'seconds=0.5 output=json'"],
        &["WARN .*no second serial port"],
    ),
    Case {
        tells: &["absent", "roll"],
        ..fails(
            "events-absent",
            &["4", "loader.silent=3", "stress=none", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["fault", "return_address", "stopped"],
        ..panics(
            "events-panic",
            &["8", "fault=panic-all", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["fault", "return_address", "stopped"],
        ..panics(
            "events-fault",
            &["8", "fault=stack-overflow", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["fault", "stopped"],
        ..panics(
            "events-misuse",
            &["2", "heap=checked", "fault=heap-double-free", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["log"],
        ..refuses(
            "events-refused",
            &["64", "mem=9M", "output=json"],
            &["too little memory for the stacks"],
        )
    },
    Case {
        tells: &["figure", "latency"],
        ..passes(
            "events-bench",
            &[
                "2",
                "bench=mixed,frame-pair",
                "on=1,2",
                "rounds=2",
                "time=2",
                "output=json",
            ],
            &[],
        )
    },
    Case {
        tells: &["instructions"],
        ..passes(
            "events-instructions",
            &[
                "1",
                "accel=icount",
                "measure=instructions",
                "allocators=muster",
                "bench=churn",
                "output=json",
            ],
            &[],
        )
    },
    Case {
        never: &["INFO  stress"],
        ..passes(
            "log-error",
            &["2", "log=error", "seconds=0.5"],
            &["verdict: passed"],
        )
    },
    passes(
        "show-addresses",
        &["2", "show-addresses=yes", "stress=churn", "seconds=0.2"],
        &[
            r"HHDM at 0xffff[0-9a-f]{12}",
            r"  1 ffffff[0-9a-f]{10} ffff[0-9a-f]{12} [0-9a-f]+\n",
        ],
    ),
    passes(
        "log-debug",
        &["2", "log=debug", "stress=churn", "seconds=0.2"],
        &[
            r"HHDM at 0xffff[0-9a-f]{12}",
            r"DEBUG roll    stack: 0xffffff[0-9a-f]{10} to 0xffffff",
            r"DEBUG shared  .* 0xffffffff[0-9a-f]{8} -> 0x[0-9a-f]+, .* bytes, r-x",
        ],
    ),
];
