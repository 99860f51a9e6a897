//! The boot tests of the log on the screen.

use super::case::{Case, passes};

/// What a screen shows after the roll call of four CPUs, whole and in order, and nothing else.
const SCREEN: &[&str] = &[
    r"^ +\d+\.\d{6}  0 INFO  muster  Muster \d+\.\d+\.\d+ on Limine \d",
    r"INFO  roll    roll: 4 of 4 CPUs online, \d+ us after the release\n",
    r"INFO  roll    cpu lapic entry block  ctrl   cr3 stack   gdt    up\n",
    r"(?:INFO  roll      \d     \d(?: +\d+m?){7}\n *\d+\.\d+  0 ){4}INFO  roll    what each",
    r"reclaimed .* from the loader, and poisoned\n",
    r"`help` lists the commands, `off` ends the run\n+$",
];

/// Boots four CPUs, whose roll call the screen must show.
const fn shows_roll(
    name: &'static str,
    arguments: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case {
        types: &[("`help` lists", "off")],
        shows: SCREEN,
        ..passes(name, arguments, says)
    }
}

/// The cases of every test run.
pub const CASES: &[Case] = &[
    // What a person at a machine without a serial port sees: after the loader's memory was poisoned.
    shows_roll(
        "screen-bios",
        &[
            "4",
            "boot=limine",
            "reclaim=poison",
            "monitor=yes",
            "timeout=120",
        ],
        &["screen of 1280 by 800 pixels", "audit: clean"],
    ),
    shows_roll(
        "screen-uefi",
        &[
            "4",
            "boot=limine",
            "firmware=uefi",
            "reclaim=poison",
            "monitor=yes",
            "timeout=120",
        ],
        &["screen of ", "audit: clean"],
    ),
    // Characters of twice the size.
    shows_roll(
        "screen-large",
        &[
            "4",
            "boot=limine",
            "firmware=uefi",
            "resolution=3840x2160",
            "reclaim=poison",
            "monitor=yes",
            "timeout=120",
            "qemu-args=-global VGA.xres=3840 -global VGA.yres=2160 -global VGA.vgamem_mb=64",
        ],
        &["screen of 3840 by 2160 pixels of 32 bits", "audit: clean"],
    ),
    shows_roll(
        "screen-24-bits",
        &[
            "4",
            "boot=limine",
            "resolution=1024x768x24",
            "reclaim=poison",
            "monitor=yes",
            "timeout=120",
        ],
        &["screen of 1024 by 768 pixels of 24 bits", "audit: clean"],
    ),
    // What `just iso` writes, as a USB stick.
    shows_roll(
        "screen-usb-bios",
        &[
            "4",
            "boot=limine",
            "drive=usb",
            "reclaim=poison",
            "monitor=yes",
            "timeout=120",
        ],
        &["screen of ", "audit: clean"],
    ),
    shows_roll(
        "screen-usb-uefi",
        &[
            "4",
            "boot=limine",
            "drive=usb",
            "firmware=uefi",
            "reclaim=poison",
            "monitor=yes",
            "timeout=120",
        ],
        &["screen of ", "audit: clean"],
    ),
    // More than it has room for, in every colour but an error's.
    Case {
        types: &[("`help` lists", "off")],
        shows: &[
            r"INFO  roll      3 ffffff",
            "DEBUG tlb     a flush by CR3",
            r"INFO  monitor `help` lists the commands, `off` ends the run\n+$",
        ],
        ..passes(
            "screen-scrolls",
            &[
                "14",
                "boot=limine",
                "log=debug",
                "monitor=yes",
                "timeout=120",
            ],
            &["audit: clean"],
        )
    },
];
