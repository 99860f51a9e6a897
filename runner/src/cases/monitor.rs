//! The boot tests of the prompt: what is typed at it, and what it answers.

use super::case::{BACKTRACE, Case, panics, passes};

/// What no run says that passes and fits a terminal.
const NARROW: &[&str] = &[" ERROR ", "(?i)panicked", "(?m)^.{81}"];

/// The cases of every test run.
pub const CASES: &[Case] = &[
    Case {
        types: &[
            ("`help` lists", "help"),
            ("^off +end the run", "help map"),
            ("A line for each level", "cpus"),
            ("^  3 +3 +.* (idle|at work)$", "log 2"),
            (
                "DEBUG roll    stack: 0xffffff0000090000",
                "map ffffff000005fff8",
            ),
            ("^physical 0x", "mem"),
            ("bytes  in all$", "frames"),
            ("^  3 ", "heap"),
            ("^allocations per refill", "account"),
            ("^it adds up, to the byte$", "call 3"),
            ("^to it and back: ", "call all"),
            ("^to all others and back: ", "shootdown"),
            ("^a shootdown, ", "roll"),
            ("^  3 ffffff", "off"),
        ],
        ..passes(
            "monitor",
            &["4", "monitor=yes", "show-addresses=yes", "timeout=120"],
            &[
                "muster> help map\n",
                r"\n1 0x[0-9a-f]+\[95\] 0x8[0-9a-f]+63 P W A D NX -> 4 KiB page, rw- WB\n",
                "the stack of CPU 1\n",
                "audit: clean",
            ],
        )
    },
    // The prompt answers while memory runs out, and while everything happens at once; and no answer is
    // wider than a terminal, a journal's lines left aside.
    Case {
        types: &[
            ("`help` lists", "stress exhaustion,soak"),
            ("workload   operations", "watch"),
            (r"^  7 .* in (exhaustion|soak)", ""),
            ("^  7 ", "cpus"),
            ("^  7 +7 ", "account"),
            ("bytes  in all$|^error: memory is out", "call 5"),
            ("^to it and back: |^error: CPU 5", "map ffffff000001fff8"),
            ("^physical 0x", "stress churn"),
            ("^error: the other CPUs are at work", "fault panic-ap"),
            ("^error: the other CPUs are at work", "stop"),
            ("^the other CPUs are done", "stress mixed,calls 0.5"),
            ("^the other CPUs are done", "stop"),
            ("^error: no CPU is at work", "help"),
            ("^off ", "help stress"),
            ("exhaustion +soak +all", "help fault"),
            ("heap-wrong-layout", "roll"),
            ("^ns that each TSC", "mem"),
            ("bytes  in all$", "frames"),
            ("^  7 +.*B$", "heap"),
            ("^allocations per refill", "shootdown"),
            ("^a shootdown, ", "off"),
        ],
        never: NARROW,
        hides: &[],
        ..passes(
            "monitor-stress",
            &["8", "monitor=yes", "timeout=300"],
            &["stress  exhaustion", "stress  calls", "audit: clean"],
        )
    },
    // Commands and their answers are events, and while the others work the prompt samples them.
    Case {
        types: &[
            ("`help` lists", "cpus"),
            ("^  1 +1 +.* (idle|at work)$", "stress mixed 1"),
            ("^the other CPUs are done", "off"),
        ],
        tells: &["command", "log", "sample", "memory", "work", "workload"],
        ..passes(
            "events-monitor",
            &["2", "monitor=yes", "output=json", "timeout=120"],
            &[r"\n  0 +0 +.* at its prompt\n", "audit: clean"],
        )
    },
    // Without any work.
    Case {
        types: &[("`help` lists", "mem"), ("bytes  in all$", "off")],
        tells: &["command", "sample", "memory"],
        ..passes(
            "events-monitor-idle",
            &["1", "monitor=yes", "output=json", "timeout=120"],
            &["audit: clean"],
        )
    },
    // Ctrl-D asks, and the run goes on unless that is meant.
    Case {
        types: &[
            ("`help` lists", "\x04ncpus"),
            ("^  0 +0 +.* at its prompt$", "\x04y"),
        ],
        ..passes(
            "monitor-ctrl-d",
            &["1", "monitor=yes", "timeout=120"],
            &["audit: clean"],
        )
    },
    Case {
        types: &[
            ("`help` lists", "cpu"),
            (
                "^error: unknown command `cpu`, did you mean `cpus`",
                "stress mixd",
            ),
            (
                "^error: unknown workload `mixd`, did you mean `mixed`",
                "help quit",
            ),
            ("^Also: quit, exit, q, poweroff$", "LOG 9"),
            (
                "^error: there is no CPU 9: there are 0 to 1$",
                "map 800000000000",
            ),
            ("^error: 0x800000000000 is not canonical", "bench"),
            ("^error: this kernel is without the benchmarks", "stop"),
            ("^error: no CPU is at work", "watch"),
            ("^error: there is nothing to see", "call 7"),
            ("^error: CPU 7 can't be called", "fault"),
            ("^error: `fault` needs more: fault KIND$", "fault panic-bsp"),
        ],
        ..panics(
            "monitor-errors",
            &["2", "monitor=yes", "timeout=120"],
            &["CPU 0 panicked", "asked for by fault=", BACKTRACE],
        )
    },
    Case {
        types: &[
            ("`help` lists", "stress all"),
            (
                "error: there is no other CPU",
                "bench bench=frame-pair rounds=1 time=1",
            ),
            ("frame-pair", "bench bench=chrun"),
            ("^error: invalid value `chrun` for `bench`", "off"),
        ],
        ..passes(
            "monitor-bench",
            &["1", "monitor=yes", "rounds=3", "timeout=120"],
            &["muster to the best", "audit: clean"],
        )
    },
];
