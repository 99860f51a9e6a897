//! The boot tests of the registers that the kernel sets or compares on each CPU: control registers, the
//! local APIC's, MTRRs and the PAT.

use super::case::{Case, fails, passes, refuses};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    passes(
        "registers",
        &["4", "stress=churn", "seconds=0.2"],
        &[
            r"  0 own   own   own all all set wp nx smep smap umip\n",
            r"  3 own   own   own all all set wp nx smep smap umip\n",
            "registers: on every CPU as set",
            "rights: .* of code, written nowhere",
        ],
    ),
    passes(
        "registers-qemu64",
        &["2", "cpu=qemu64", "stress=churn", "seconds=0.2"],
        &[
            r"  1 own   own   own all all set wp nx\n",
            "registers: on every CPU as set",
        ],
    ),
    fails(
        "write-protection-off",
        &[
            "4",
            "fault=write-protection-off",
            "stress=churn",
            "seconds=0.2",
        ],
        &["failed: CPU 3 has 0x80000033 in CR0 instead of 0x80010033"],
    ),
    fails(
        "mapping-leak",
        &["2", "fault=mapping-leak", "stress=churn", "seconds=0.2"],
        &["failed: 12288 bytes are mapped after the client, 0 were before: drop its mappings"],
    ),
    fails(
        "memory-types-changed",
        &[
            "4",
            "fault=memory-types-changed",
            "stress=churn",
            "seconds=0.2",
        ],
        &["failed: CPU 3 has 0x6 in IA32_MTRR_PHYSBASE7 instead of 0x0"],
    ),
    // Each has the other's block.
    Case {
        tells: &["absent"],
        ..fails(
            "identity-swapped",
            &[
                "4",
                "loader.swapped=1,2",
                "stress=churn",
                "seconds=0.2",
                "output=json",
            ],
            &[
                r"ERROR .*CPU 1 \(LAPIC 2\) has 0x1 in its local APIC's id register instead of 0x2: excluded",
                r"ERROR .*CPU 2 \(LAPIC 1\) has 0x2 in its local APIC's id register instead of 0x1: excluded",
                "2 of 4 CPUs online",
                // They have left the loader.
                "reclaimed .* from the loader",
                "audit: clean",
                r"failed: 2 CPUs are missing, with LAPIC ids \[2, 1\]",
            ],
        )
    },
    fails(
        "identity-apic-off",
        &[
            "4",
            "loader.msr=3:0x1b:0xfee00000",
            "stress=churn",
            "seconds=0.2",
        ],
        &[
            r"ERROR .*CPU 3 \(LAPIC 3\) has 0xfee00000 in IA32_APIC_BASE instead of 0xfee00[8c]00: excluded",
            "3 of 4 CPUs online",
            "audit: clean",
        ],
    ),
    fails(
        "identity-mtrrs-off",
        &[
            "4",
            "loader.msr=all:0x2ff:0xc06,2:0x2ff:0x6",
            "stress=churn",
            "seconds=0.2",
        ],
        &[
            r"ERROR .*CPU 2 \(LAPIC 2\) has 0x6 in IA32_MTRR_DEF_TYPE instead of 0xc06: excluded",
            "3 of 4 CPUs online",
            "audit: clean",
        ],
    ),
    // Each register is named, and shown to who asks.
    Case {
        types: &[
            ("`help` lists", "registers 3"),
            (
                "^error: CPU 3 has 0x1000 in IA32_MTRR_PHYSBASE1 instead of 0x0$",
                "registers 0",
            ),
            ("^0x0000000000000000 its local APIC's id register$", "off"),
        ],
        ..fails(
            "identity-two-registers",
            &[
                "4",
                "loader.msr=3:0x26f:0x606060606060606,3:0x202:0x1000",
                "monitor=yes",
                "timeout=120",
            ],
            &[
                r"ERROR roll +CPU 3 \(LAPIC 3\) has 0x606060606060606 in IA32_MTRR_FIX4K_F8000 instead of 0x0: excluded\n",
                r"ERROR roll +CPU 3 \(LAPIC 3\) has 0x1000 in IA32_MTRR_PHYSBASE1 instead of 0x0: excluded\n",
                r"\n0x0606060606060606 IA32_MTRR_FIX4K_F8000\n",
                r"\n0x0000000000001000 IA32_MTRR_PHYSBASE1\n",
                r"\n0x0000000000000003 its local APIC's id register\n",
                "3 of 4 CPUs online",
                "audit: clean",
            ],
        )
    },
    fails(
        "identity-mtrr-fixed",
        &["2", "loader.msr=1:0x26f:0x606060606060606", "stress=none"],
        &["CPU 1 .* has 0x606060606060606 in IA32_MTRR_FIX4K_F8000 instead of 0x0: excluded"],
    ),
    fails(
        "identity-mtrr-variable",
        &["2", "loader.msr=1:0x203:0xff00000800", "stress=none"],
        &["CPU 1 .* has 0xff00000800 in IA32_MTRR_PHYSMASK1 instead of 0x0: excluded"],
    ),
    passes(
        "mtrrs-off",
        &["2", "stress=churn", "seconds=0.2"],
        &["WARN .*no MTRRs in use: memory is taken as write-back"],
    ),
    // As a PC's firmware sets them, and on the APs as on the BSP, though INIT clears them in QEMU.
    Case {
        never: &["no MTRRs", " ERROR ", "not write-back"],
        ..passes(
            "mtrrs-of-firmware",
            &[
                "4",
                "mem=512M",
                "stress=churn",
                "seconds=0.2",
                "qemu-args=-bios bios-256k.bin",
            ],
            &["4 of 4 CPUs online", "audit: clean"],
        )
    },
    // One MiB, in the middle of what would be a large page, and 16 MiB write-combining; the masks are of
    // addresses of 40 bits.
    Case {
        never: &["no MTRRs", " ERROR "],
        ..passes(
            "mtrrs-uncached-memory",
            &[
                "4",
                "mem=512M",
                "loader.msr=all:0x200:0x10100000,all:0x201:0xfffff00800,all:0x202:0x8000001,all:0x203:0xffff000800,all:0x2ff:0x806",
                "log=debug",
                "stress=exhaustion",
                "seconds=0.5",
            ],
            &[
                "WARN .*17.0 MiB of memory is not write-back by the MTRRs, and not used: .*0x8000000.*0x10100000",
                r"DEBUG shared  HHDM: 0xffff800000100000 -> 0x100000, 0x7f00000 bytes, rw- WB",
                r"DEBUG shared  HHDM: 0xffff800008000000 -> 0x8000000, 0x1000000 bytes, rw- WB",
                r"DEBUG shared  HHDM: 0xffff800010100000 -> 0x10100000, 0x100000 bytes, rw- WB",
                r"17.0 MiB +17825792 bytes  not write-back\n",
                "4 of 4 CPUs online",
                "audit: clean",
            ],
        )
    },
    refuses(
        "mtrrs-uncached-image",
        &["2", "loader.msr=all:0x2ff:0x804"],
        &[
            "ERROR .*can't start: the kernel image lies in memory that the MTRRs make WT rather than WB",
        ],
    ),
    // What a CPU has after reset.
    refuses(
        "pat-bsp",
        &["2", "loader.msr=0:0x277:0x7040600070406"],
        &[
            "ERROR .*can't start: the loader left 0x7040600070406 in the PAT instead of 0x10500070406",
        ],
    ),
    passes(
        "pat-ap",
        &[
            "4",
            "loader.msr=3:0x277:0x7040600070406",
            "stress=churn",
            "seconds=0.2",
        ],
        &[
            "WARN .*the loader left 0x7040600070406 in the PAT of CPU 3: set",
            "4 of 4 CPUs online",
            "registers: on every CPU as set",
        ],
    ),
    // The protocol leaves the last two entries open.
    passes(
        "pat-open-entries",
        &[
            "2",
            "loader.msr=all:0x277:0x706010500070406",
            "stress=churn",
            "seconds=0.2",
        ],
        &["registers: on every CPU as set"],
    ),
];
