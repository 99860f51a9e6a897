//! The boot tests of options: those that the kernel or the loader refuses, and those of the client.

use super::case::{Case, passes, refuses};

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
    // The self-test takes none; the kernel and the loader leave them alone.
    passes(
        "word-client",
        &[
            "2",
            "stress=churn",
            "seconds=0.1",
            "client=cpus=1 loader.dney=mp",
        ],
        &[
            "command line: .* -- cpus=1 loader.dney=mp",
            "`cpus=1` does nothing: the self-test is a client without options",
            "2 of 2 CPUs online",
        ],
    ),
];
