//! The boot tests of the loader: one that leaves CPUs or answers out, and Limine itself.

use super::case::{Case, fails, passes, refuses};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    fails(
        "loader-unstarted",
        &["4", "loader.unstarted=2", "seconds=0.5"],
        &["roll: 3 of 4 CPUs online", r"(?i)LAPIC (id )?2\b"],
    ),
    fails(
        "loader-silent",
        &["4", "loader.silent=3", "seconds=0.5"],
        &["roll: 3 of 4 CPUs online", r"(?i)LAPIC (id )?3\b"],
    ),
    fails(
        "loader-unstarted-and-silent",
        &[
            "8",
            "loader.unstarted=1,5",
            "loader.silent=7",
            "seconds=0.5",
        ],
        &[
            "roll: 5 of 8 CPUs online",
            r"(?i)LAPIC (id )?1\b",
            r"(?i)LAPIC (id )?5\b",
            r"(?i)LAPIC (id )?7\b",
        ],
    ),
    refuses(
        "deny-hhdm",
        &["2", "loader.deny=hhdm"],
        &["(?i)ERROR .*hhdm"],
    ),
    refuses(
        "deny-memory-map",
        &["2", "loader.deny=memory-map"],
        &["(?i)ERROR .*memory map"],
    ),
    refuses("deny-mp", &["2", "loader.deny=mp"], &["(?i)ERROR .*mp"]),
    refuses(
        "deny-executable-address",
        &["2", "loader.deny=executable-address"],
        &["(?i)ERROR .*executable address"],
    ),
    refuses(
        "deny-base-revision",
        &["2", "loader.deny=base-revision"],
        &["(?i)ERROR .*base revision"],
    ),
    passes(
        "deny-rsdp",
        &["2", "loader.deny=rsdp", "seconds=0.5"],
        &[
            "2 of 2 CPUs online",
            "the loader keeps its .*: without a MADT",
        ],
    ),
    passes(
        "deny-cmdline",
        &["2", "loader.deny=cmdline"],
        &["2 of 2 CPUs online"],
    ),
    passes(
        "deny-stack-size",
        &["2", "loader.deny=stack-size", "seconds=0.5"],
        &["2 of 2 CPUs online"],
    ),
    passes(
        "deny-bootloader-info",
        &["2", "loader.deny=bootloader-info", "seconds=0.5"],
        &["2 of 2 CPUs online"],
    ),
    passes(
        "deny-paging-mode",
        &["2", "loader.deny=paging-mode", "seconds=0.5"],
        &["2 of 2 CPUs online"],
    ),
    refuses(
        "revision-2",
        &["2", "loader.revision=2"],
        &["(?i)ERROR .*revision"],
    ),
    refuses(
        "revision-0",
        &["2", "loader.revision=0"],
        &["(?i)ERROR .*revision"],
    ),
    passes(
        "limine-bios",
        &["8", "boot=limine", "seconds=1"],
        &["roll: 8 of 8 CPUs online"],
    ),
    passes(
        "limine-bios-pc",
        &["2", "boot=limine", "machine=pc", "seconds=0.5"],
        &["roll: 2 of 2 CPUs online"],
    ),
    passes(
        "limine-uefi",
        &["8", "boot=limine", "firmware=uefi", "seconds=1"],
        &["roll: 8 of 8 CPUs online"],
    ),
];
