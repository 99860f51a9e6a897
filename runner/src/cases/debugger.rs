//! The boot test of the commands for GDB.

use super::case::{Case, Debugged, passes};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    // The commands of runner/gdb/muster.py, from the first instruction to the last.
    Case {
        types: &[
            ("`help` lists", "map ffffff000001fff8"),
            ("^physical 0x", "off"),
        ],
        debugged: Some(Debugged {
            asks: &[
                "pagewalk $rip",
                "hbreak *entry",
                "continue",
                "roll",
                "delete",
                "hbreak muster::bringup::ap::run",
                "continue",
                "roll",
                "percpu 1",
                "percpu 4",
                "pagewalk 0x800000000000",
                "delete",
                "hbreak muster::report::exit::conclude",
                "continue",
                "roll",
                "percpu 0",
                "pagewalk 0xffffff000001fff8",
                "percpu 1",
                "percpu 2",
                "percpu 3",
            ],
            answers: &[
                r"\(gdb\) pagewalk \$rip\nthis CPU is not in 64-bit mode yet",
                r"\nThread 1 hit Breakpoint 1, muster::entry \(\) at src/lib\.rs:",
                r"\(gdb\) roll\nno CPU has a block yet",
                r"\nroll: 1 of 4 CPUs online\n",
                r"\n  1     1 +(?:-|2) \w+ at \d+\.\d{6}\n",
                r"\nthere is no CPU 4: there are 0 to 3\n",
                r"\n0x800000000000 is not canonical: with 4-level tables no CPU takes it\n",
                r"\nroll: 4 of 4 CPUs online\n(?:.*\n){4}  3     3      4 online at \d+\.\d{6}, idle",
                r"\nCPU 2, LAPIC 2: online at .*\n  block .*\n  doing     idle\n  thread    3, at .* muster",
                r"\n  stack     0xffffff0000090000 to 0xffffff00000a0000, \d+ bytes in use\n  holds     no lock\n",
                r"\n  heap      \d+ free blocks cached, \d+ bytes allocated, \d+ freed\n",
                r"\n  counted   \d+ interrupts, 0 calls, [1-9]\d* answers\n",
            ],
            agrees: &[
                r"^(\d 0x[0-9a-f]+\[\d+\] 0x.*)",
                "^(physical 0x.*)",
                r"(online at \d+\.\d+)",
                "block at (0x[0-9a-f]+),",
            ],
        }),
        ..passes(
            "debugger",
            &[
                "4",
                "monitor=yes",
                "log=debug",
                "deadline=60000",
                "timeout=120",
            ],
            &["audit: clean"],
        )
    },
];
