//! The boot tests of options that the kernel or the loader refuses.

use super::case::{Case, refuses};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    // The runner would not pass these on: QEMU's last -append counts.
    refuses(
        "word-kernel",
        &["2", "qemu-args=-append sterss=all"],
        &["can't start: in the command line: unknown option `sterss`, did you mean `stress`"],
    ),
    refuses(
        "word-kernel-value",
        &["2", "qemu-args=-append stress=al1"],
        &["can't start: .*invalid value `al1` for `stress`, did you mean `all`"],
    ),
    refuses(
        "word-bench",
        &["2", "qemu-args=-append bench=all"],
        &[
            "can't start: .*`bench` is an option of the benchmarks, which this kernel is built without",
        ],
    ),
    refuses(
        "word-bench-value",
        &["2", "rounds=1", "qemu-args=-append bench=chrun"],
        &["can't start: .*invalid value `chrun` for `bench`, did you mean `churn`"],
    ),
    refuses(
        "word-loader",
        &["2", "qemu-args=-append loader.dney=mp"],
        &["loader.dney", "loader.deny"],
    ),
];
