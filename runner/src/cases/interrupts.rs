//! The boot tests of interrupts: those that come between two instructions, those that nobody expects, and
//! what each costs.

use super::case::{Case, passes};

/// What a run without stray interrupts never says: one that comes after its route was removed is one.
const STRAY: &[&str] = &[" ERROR ", "(?i)panicked", "unexpected interrupt"];

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
    // The timer's interrupt has an override in the MADT.
    Case {
        never: STRAY,
        ..passes(
            "device-interrupt-pc",
            &[
                "8",
                "machine=pc",
                "fault=timer-interrupts",
                "stress=calls,churn",
                "seconds=0.4",
            ],
            &[
                "the timer's IRQ 0 arrives at GSI 2: 8 CPUs in turn took 16 interrupts or more each, and none after",
                r"taken: .* \d{3,} device",
                "registers: on every CPU as set",
                "audit: clean",
            ],
        )
    },
    Case {
        never: STRAY,
        ..passes(
            "device-interrupt-q35",
            &[
                "4",
                "machine=q35",
                "fault=clock-interrupts",
                "stress=churn",
                "seconds=0.2",
            ],
            &[
                "the clock's IRQ 8 arrives at GSI 8: 4 CPUs in turn took",
                r"taken: .* \d{2,} device",
                "audit: clean",
            ],
        )
    },
    Case {
        never: STRAY,
        ..passes(
            "device-interrupt-microvm",
            &[
                "4",
                "machine=microvm",
                "fault=clock-interrupts",
                "stress=churn",
                "seconds=0.2",
            ],
            &[
                "the clock's IRQ 8 arrives at GSI 8: 4 CPUs in turn took",
                r"taken: .* \d{2,} device",
                "audit: clean",
            ],
        )
    },
    // One request comes again and again until it is attended to.
    Case {
        never: STRAY,
        ..passes(
            "device-interrupt-level",
            &[
                "4",
                "machine=q35",
                "fault=level-interrupts",
                "stress=churn",
                "seconds=0.2",
            ],
            &[
                "the high-precision timer's level-triggered interrupt arrives at GSI 16: 4 CPUs in turn took",
                r"taken: .* 64 device",
                "audit: clean",
            ],
        )
    },
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
