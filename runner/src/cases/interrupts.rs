//! The boot tests of interrupts: those that come between two instructions, those that nobody expects, and
//! what each costs.

use super::case::{Case, passes};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    // A debug exception and an NMI in the window between `sti` and `hlt`, with a wake-up pending.
    passes(
        "idle-interrupted",
        &["2", "stress=interrupts", "seconds=0.3"],
        &["audit: clean"],
    ),
    passes(
        "stray-interrupts",
        &["4", "fault=stray-interrupts", "stress=calls", "seconds=0.2"],
        &[
            "WARN  irq     unexpected interrupt at vector 0x10: a device or another CPU sent it; it is ended",
            "WARN  irq     unexpected interrupt at vector 0x50: ",
            "WARN  irq     unexpected interrupt at vector 0xfd: ",
            // On each CPU 232 vectors, and two instructions.
            r"taken: .* wake-up, 936 unexpected\n",
            "registers: on every CPU as set",
            "audit: clean",
        ],
    ),
    // QEMU reports each time that a CPU reads IA32_APIC_BASE: some as they come up and are looked at,
    // none for each interrupt.
    Case {
        never: &[
            " ERROR ",
            "(?i)panicked",
            r"(?s)(?:cpu_get_apic_base.*?){200}",
        ],
        ..passes(
            "apic-base-read-once",
            &[
                "2",
                "stress=calls,timer",
                "seconds=0.3",
                "qemu-args=-D /dev/stdout -trace cpu_get_apic_base",
            ],
            &["cpu_get_apic_base", r"taken: \d{2,} timer, \d{3,} wake-up"],
        )
    },
];
