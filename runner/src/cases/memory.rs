//! The boot tests of the memory that the loader hands over, and of what is reclaimed from it.

use super::case::{Case, fails, passes};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    // Neither a stack nor anything else of the kernel's lies where firmware and SMM write.
    Case {
        never: &[r"stack.* -> 0x[0-9a-f]{1,5},", " ERROR "],
        ..passes(
            "low-memory",
            &["4", "log=debug", "stress=churn", "seconds=0.2"],
            &[
                r"DEBUG shared  .*stack.* -> 0x[0-9a-f]+,",
                r"KiB +\d{6} bytes  first megabyte\n",
                "audit: clean",
            ],
        )
    },
    passes(
        "reclaim-cpus-1",
        &["1", "reclaim=poison", "seconds=0.5"],
        &["reclaimed .* from the loader, and poisoned", "audit: clean"],
    ),
    passes(
        "reclaim-cpus-8",
        &["8", "reclaim=poison", "seconds=1"],
        &["reclaimed .* from the loader, and poisoned", "audit: clean"],
    ),
    passes(
        "reclaim-limine-bios",
        &["4", "reclaim=poison", "boot=limine", "seconds=0.5"],
        &["reclaimed .* from the loader, and poisoned", "audit: clean"],
    ),
    passes(
        "reclaim-limine-uefi",
        &[
            "4",
            "reclaim=poison",
            "boot=limine",
            "firmware=uefi",
            "seconds=0.5",
        ],
        &["reclaimed .* from the loader, and poisoned", "audit: clean"],
    ),
    Case {
        never: &["reclaimed", "(?i)panicked"],
        ..fails(
            "reclaim-loader-silent",
            &["4", "loader.silent=3", "reclaim=poison", "seconds=0.5"],
            &[r"the loader keeps its .*: CPUs with LAPIC ids \[3\] are missing"],
        )
    },
    Case {
        never: &["reclaimed", " ERROR ", "(?i)panicked"],
        ..passes(
            "reclaim-left-out",
            &["4", "cpus=2", "reclaim=poison", "seconds=0.5"],
            &["the loader keeps its .*: 2 CPUs wait in it"],
        )
    },
    passes(
        "memory-map-awkward",
        &["4", "loader.memory-map=awkward", "seconds=1"],
        &["roll: 4 of 4 CPUs online"],
    ),
    passes(
        "hhdm-random",
        &["4", "loader.hhdm=random", "seconds=0.5"],
        &["roll: 4 of 4 CPUs online"],
    ),
];
