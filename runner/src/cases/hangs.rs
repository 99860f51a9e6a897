//! The boot tests of machines that get nowhere, and of what the runner says about them.

use super::case::{Case, hangs};

/// The cases of every test run.
pub const CASES: &[Case] = &[
    // Less than Limine takes for itself and the kernel.
    hangs(
        "limine-out-of-memory",
        &["1", "boot=limine", "mem=4M", "timeout=20"],
        &[
            "PANIC: .*Out of memory",
            "muster: no CPU has logged a line; where the machine is:",
            r"\n +CPU 0 (is|halted) at 0x[0-9a-f]+\n",
            r"\n +its screen: target/.*/screen\.ppm\n",
        ],
    ),
    // A machine that does not begin, and one whose firmware waits for a key, in VGA's text mode.
    hangs(
        "silent-cpus",
        &["2", "qemu-args=-S", "timeout=3"],
        &[
            "muster: no CPU has logged a line; where the machine is:",
            r"\n +QEMU does not let the machine run: prelaunch\n",
            r"\n +CPU 0 is at 0xfffffff0\n +CPU 1 halted at 0xfffffff0\n",
            r"\n +it has no screen\n",
        ],
    ),
    // A kernel that halts, on a machine without a serial port. The runner would not pass the word on.
    hangs(
        "silent-kernel",
        &[
            "1",
            "machine=microvm",
            "timeout=10",
            "qemu-args=-M microvm,isa-serial=off -append fault=halt-in-lock",
        ],
        &[
            r"\n +CPU 0 (is|halted) at 0x[0-9a-f]{16} in muster::selftest::fault::.* \(src/selftest/fault.rs:\d+\)\n",
        ],
    ),
    hangs(
        "silent-screen",
        &[
            "1",
            "timeout=10",
            "qemu-args=-bios bios-256k.bin -device VGA -boot menu=on,splash-time=60000",
        ],
        &[
            r"\n +its screen:\n +SeaBIOS",
            r"\n +Press ESC for boot menu",
        ],
    ),
];
