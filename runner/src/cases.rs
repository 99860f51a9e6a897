//! The whole-kernel tests: what is booted, how it must end, and what it must
//! have said. The machines that it must come up on have a file of their own
//! (`matrix`), and so has what goes wrong on the way (`faults`).

use crate::script::Cue;
use crate::session::Verdict;

/// One boot of the kernel, or several with one argument that differs, and what is expected of each.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, for filters.
    pub name: &'static str,
    /// The arguments of `just run-smp` that repeat it.
    pub arguments: &'static [&'static str],
    /// What is typed at its prompt.
    pub types: &'static [Cue],
    /// One more argument, with each of its values in turn.
    pub sweep: Option<Sweep>,
    /// How it ends: in one of these ways, and in a sweep in each of them at least once.
    pub ends: &'static [Verdict],
    /// Regular expressions that the log matches, each somewhere.
    pub says: &'static [&'static str],
    /// Regular expressions that it matches nowhere.
    pub never: &'static [&'static str],
    /// Regular expressions that neither it nor any CPU's journal matches.
    pub hides: &'static [&'static str],
    /// Regular expressions that the text on the screen matches, each somewhere, before the last line
    /// is typed.
    pub shows: &'static [&'static str],
    /// The oldest QEMU that has such a machine, by its major version; 0 if all do.
    pub since_qemu: u32,
    /// What a debugger does to it.
    pub debugged: Option<Debugged>,
    /// What a pair of an allocation and a free may take.
    pub limits: &'static [Limit],
    /// Events that it tells, by their names, each at least once. Whatever it tells must be of the schema.
    pub tells: &'static [&'static str],
}

/// A debugger that is there from before the first instruction on.
#[derive(Clone, Copy, Debug)]
pub struct Debugged {
    /// Commands for GDB.
    pub asks: &'static [&'static str],
    /// Regular expressions that what it says matches, each somewhere.
    pub answers: &'static [&'static str],
    /// What the log says and these match, GDB says too: their group, each time.
    pub agrees: &'static [&'static str],
}

/// The values of an argument, from the first to no more than the last.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// What comes before the value: `mem=`.
    pub before: &'static str,
    /// The first value.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// From one to the next.
    pub step: usize,
    /// What comes after the value: `K`.
    pub after: &'static str,
}

impl Case {
    /// What GDB is asked, if it is there.
    pub fn asks(&self) -> &'static [&'static str] {
        self.debugged.map_or(&[], |debugged| debugged.asks)
    }

    /// What neither its log nor a journal may show: nothing is hidden from who asks.
    pub fn hidden(&self) -> &'static [&'static str] {
        const ASKS: [&str; 3] = ["show-addresses=yes", "log=debug", "log=trace"];

        match self.arguments.iter().any(|word| ASKS.contains(word)) {
            true => &[],
            false => self.hides,
        }
    }

    /// The arguments of each of its boots.
    pub fn boots(&self) -> impl Iterator<Item = Vec<String>> + '_ {
        let fixed = || self.arguments.iter().copied().map(str::to_owned).collect();
        let once = self.sweep.is_none().then(fixed);
        let swept = self.sweep.into_iter().flat_map(move |sweep| {
            let values = (sweep.first..=sweep.last).step_by(sweep.step);
            values.map(move |value| {
                let mut arguments: Vec<String> = fixed();
                arguments.push(format!("{}{value}{}", sweep.before, sweep.after));
                arguments
            })
        });
        once.into_iter().chain(swept)
    }
}

/// The most instructions that Muster's allocators may take for a pair in a workload, as
/// `measure=instructions` counts them.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The workload.
    pub bench: &'static str,
    /// Instructions for a pair.
    pub most: f64,
}

/// What no run that passes says.
const BAD: &[&str] = &[" ERROR ", "(?i)panicked"];

/// What no run says that passes and fits a terminal.
const NARROW: &[&str] = &[" ERROR ", "(?i)panicked", "(?m)^.{81}"];

/// An address in the half of the address space that is the kernel's.
const ADDRESS: &[&str] = &[r"(?i)\bffff[0-9a-f]{12}\b|0xffff[0-9a-f]{12}\b"];

/// One that passes, without a word of an error.
pub const fn passes(
    name: &'static str,
    arguments: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case {
        name,
        arguments,
        sweep: None,
        types: &[],
        ends: &[Verdict::Passed],
        says,
        never: BAD,
        hides: ADDRESS,
        shows: &[],
        since_qemu: 0,
        debugged: None,
        limits: &[],
        tells: &[],
    }
}

/// One that runs to its end, and finds something that is not as it should be.
pub const fn fails(
    name: &'static str,
    arguments: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case {
        ends: &[Verdict::Failed],
        never: &["(?i)panicked"],
        hides: &[],
        ..passes(name, arguments, says)
    }
}

/// One that does not start.
pub const fn refuses(
    name: &'static str,
    arguments: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case {
        ends: &[Verdict::Refused],
        never: &["(?i)panicked", "roll: "],
        hides: &[],
        ..passes(name, arguments, says)
    }
}

/// One that ends in a panic or an exception.
pub const fn panics(
    name: &'static str,
    arguments: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case {
        ends: &[Verdict::Panicked],
        never: &["verdict: passed"],
        hides: &[],
        ..passes(name, arguments, says)
    }
}

/// One that gets nowhere, and is ended by its `timeout=`.
const fn hangs(
    name: &'static str,
    arguments: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case {
        ends: &[Verdict::Hung],
        never: &["INFO  muster"],
        hides: &[],
        ..passes(name, arguments, says)
    }
}

/// What a checked heap says in the end.
const CHECKED: &str = r"heap: \d{4,} blocks checked, none misused";

/// What a screen shows after the roll call of four CPUs, whole and in order, and nothing else.
const SCREEN: &[&str] = &[
    r"^ +\d+\.\d{6}  0 INFO  muster  Muster \d+\.\d+\.\d+ on Limine \d",
    r"INFO  roll    roll: 4 of 4 CPUs online, \d+ us after the release\n",
    r"INFO  roll    cpu lapic entry block  ctrl   cr3 stack   gdt    up\n",
    r"(?:INFO  roll      \d     \d(?: +\d+m?){7}\n *\d+\.\d+  0 ){4}INFO  roll    what each",
    r"reclaimed .* from the loader, and poisoned\n",
    r"`help` lists the commands, `off` ends the run\n+$",
];

/// A return address that became a function and a line of the kernel's source.
pub const BACKTRACE: &str = r"#\d+ 0x[0-9a-f]{16} in .+ \(.+:\d+\)";

/// Who allocated the block that a fault misuses, down to the line; and who freed it, or frees it.
const ALLOCATED: &str = r"allocated on CPU 1:\n[^#]+ #0 0x[0-9a-f]{16} in [^#]+ muster::selftest::misuse::allocate \(src/selftest/misuse.rs:\d+\)";
const FREED: &str = r" (freed|found) on CPU 2:\n[^#]+ #0 0x[0-9a-f]{16} in [^#]+ muster::selftest::misuse::free \(src/selftest/misuse.rs:\d+\)";
const FREED_AGAIN: &str = r" freed again on CPU 3:\n[^#]+ #0 0x[0-9a-f]{16} in [^#]+ muster::selftest::misuse::free_again \(src/selftest/misuse.rs:\d+\)";
const FREED_OTHERWISE: &str = r" freed on CPU 3:\n[^#]+ #0 0x[0-9a-f]{16} in [^#]+ muster::selftest::misuse::free_otherwise \(src/selftest/misuse.rs:\d+\)";

/// Above what is counted now, which stands beside each and repeats to the digit, by what another
/// choice of the compiler's in the loop around may cost: some eight instructions have been seen.
const INSTRUCTIONS: &[Limit] = &[
    // 25.00
    Limit {
        bench: "churn",
        most: 34.0,
    },
    // 31.86
    Limit {
        bench: "mixed",
        most: 42.0,
    },
    // 41.00
    Limit {
        bench: "frame-pair",
        most: 48.0,
    },
    // 99.39
    Limit {
        bench: "frame-bulk",
        most: 110.0,
    },
];

/// All of them but those that are about machines. The stress is short: what is tested is that the
/// kernel holds, not how long.
pub const CASES: &[Case] = &[
    passes(
        "timer-1",
        &["1", "stress=timer", "seconds=0.5"],
        // On a CPU of the host's own.
        &[r"\d{3,} interrupts a second on each CPU"],
    ),
    passes(
        "timer-8",
        &["8", "stress=timer", "seconds=1"],
        &[r"\d interrupts a second on each CPU", "audit: clean"],
    ),
    passes(
        "timer-32",
        &["32", "stress=timer", "seconds=0.5"],
        &[r"\d interrupts a second on each CPU", "audit: clean"],
    ),
    // In the guest's own time, which the host can't take from it.
    passes(
        "timer-every-cpu",
        &["8", "accel=icount", "stress=timer", "seconds=0.1"],
        &[
            r"\d{4,} interrupts a second on each CPU, \d{4,} to",
            "audit: clean",
        ],
    ),
    // A debug exception and an NMI in the window between `sti` and `hlt`, with a wake-up pending.
    passes(
        "idle-interrupted",
        &["2", "stress=interrupts", "seconds=0.3"],
        &["audit: clean"],
    ),
    passes(
        "tsc-by-the-pit",
        &["1", "accel=icount", "stress=none"],
        // One nanosecond for each instruction; as QEMU says, not invariant.
        &[r"INFO .*TSC at 1000 MHz, measured by the PIT; not invariant"],
    ),
    passes(
        "tsc-by-the-acpi-timer",
        &[
            "2",
            "accel=icount",
            "qemu-args=-M q35,pit=off",
            "stress=calls",
            "seconds=0.1",
        ],
        &[
            "INFO .*TSC at 8000 MHz, assumed",
            "INFO .*TSC at 1000 MHz, measured by the ACPI timer",
            "audit: clean",
        ],
    ),
    // One clock for all CPUs: none may be ahead, or behind, for sure.
    Case {
        never: &[" ERROR ", "(?i)panicked", "their times don't compare"],
        ..passes(
            "tsc-offsets",
            &["4", "accel=icount", "stress=none"],
            &[
                r"that each TSC is ahead .*\n.* {3}1 +[+-]\d+ \d+ +2 +[+-]\d+ \d+\n.* {3}3 +[+-]\d+ \d+\n",
            ],
        )
    },
    // It tells the rate of the CPU that it imitates, and runs at what its configuration says.
    passes(
        "tsc-told-wrongly",
        &[
            "2",
            "machine=bochs",
            "cpu=corei7_icelake_u",
            "mem=64M",
            "stress=calls",
            "seconds=0.1",
        ],
        &[
            "INFO .*TSC at 10 MHz, measured by the PIT; invariant",
            "WARN .*CPUID tells 1498 MHz of the TSC, which is wrong: the 10 MHz that were measured stand",
            "audit: clean",
        ],
    ),
    passes(
        "tsc-assumed",
        &[
            "2",
            "machine=microvm",
            "qemu-args=-M microvm,pit=off",
            "stress=calls",
            "seconds=0.1",
        ],
        &["WARN .*the TSC's rate is assumed", "audit: clean"],
    ),
    passes(
        "calls-1",
        &["1", "stress=calls", "seconds=0.3"],
        &["audit: clean"],
    ),
    // Where CPUs take turns, a wait without a pause keeps the others from what it waits for.
    passes(
        "calls-in-turns",
        &["2", "accel=icount", "stress=calls", "seconds=0.1"],
        &["stress  calls", "audit: clean"],
    ),
    passes(
        "calls-8",
        &["8", "stress=calls", "seconds=1"],
        &[
            "to one CPU and back: ",
            "to all 7 others and back: ",
            "audit: clean",
        ],
    ),
    passes(
        "calls-32",
        &["32", "stress=calls", "seconds=0.5"],
        &["to all 31 others and back: ", "audit: clean"],
    ),
    passes(
        "mappings-1",
        &["1", "stress=mappings", "seconds=0.3"],
        &["stress  mappings", "audit: clean"],
    ),
    passes(
        "mappings-8",
        &["8", "stress=mappings", "seconds=1"],
        &["stress  mappings", "audit: clean"],
    ),
    passes(
        "mappings-32",
        &["32", "stress=mappings", "seconds=0.5"],
        &["stress  mappings", "audit: clean"],
    ),
    passes(
        "shootdown-1",
        &["1", "stress=shootdown", "seconds=0.2"],
        &["stress  shootdown", "audit: clean"],
    ),
    passes(
        "shootdown-2",
        &["2", "stress=shootdown,mappings", "seconds=1"],
        &["stress  shootdown", "audit: clean"],
    ),
    passes(
        "shootdown-8",
        &["8", "stress=shootdown", "seconds=1.5"],
        &[
            "a shootdown, 7 asleep: ",
            "a shootdown, 7 at work: ",
            "stress  shootdown",
            "account: adds up, to the byte",
            "audit: clean",
        ],
    ),
    passes(
        "shootdown-32",
        &["32", "stress=shootdown", "seconds=0.5"],
        &["stress  shootdown", "audit: clean"],
    ),
    // The account is added up again from the log and the events, as of every run that passes: here with
    // blocks that grow and shrink where they are, and are freed elsewhere, and with handlers that
    // allocate on top of the heap; and each CPU's interrupts by kind.
    Case {
        tells: &["account_cpu", "account_common", "account", "interrupts"],
        ..passes(
            "account-8",
            &[
                "8",
                "stress=handover,growth,interrupts,timer,mappings",
                "seconds=2",
                "log=debug",
                "output=json",
            ],
            &[
                r"account    all +\d+ +\d+\n",
                "interrupts taken by CPU 7: ",
                "account: adds up, to the byte",
                "audit: clean",
            ],
        )
    },
    passes(
        "soak-1",
        &["1", "stress=soak", "seconds=1"],
        &[
            "stress  soak",
            "account: adds up, to the byte",
            "audit: clean",
        ],
    ),
    passes(
        "soak-8",
        &["8", "stress=soak", "seconds=5"],
        &[
            "stress  soak",
            "account: adds up, to the byte",
            "audit: clean",
        ],
    ),
    passes(
        "soak-32",
        &["32", "stress=soak", "seconds=3"],
        &[
            "stress  soak",
            "account: adds up, to the byte",
            "audit: clean",
        ],
    ),
    passes(
        "heap-linked-list",
        &["8", "heap=linked-list", "seconds=1"],
        &["exhaustion", "audit: clean"],
    ),
    passes(
        "heap-checked-1",
        &["1", "heap=checked", "seconds=1"],
        &[CHECKED, "exhaustion", "audit: clean"],
    ),
    passes(
        "heap-checked-8",
        &["8", "heap=checked", "seconds=4"],
        &[CHECKED, "exhaustion", "audit: clean"],
    ),
    passes(
        "heap-checked-32",
        &[
            "32",
            "heap=checked",
            "stress=churn,mixed,handover,growth,timer,calls",
            "seconds=2",
        ],
        &[CHECKED, "audit: clean"],
    ),
    passes(
        "heap-checked-64m",
        &["4", "heap=checked", "mem=64M", "seconds=1"],
        &[CHECKED, "exhaustion", "audit: clean"],
    ),
    passes(
        "heap-checked-soak",
        &["8", "heap=checked", "stress=soak", "seconds=5"],
        &[CHECKED, "account: adds up", "audit: clean"],
    ),
    panics(
        "heap-double-free",
        &["4", "heap=checked", "fault=heap-double-free"],
        &[
            "CPU 3 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was freed twice\n",
            ALLOCATED,
            FREED,
            FREED_AGAIN,
            BACKTRACE,
        ],
    ),
    panics(
        "heap-overflow",
        &["4", "heap=checked", "fault=heap-overflow"],
        &[
            "CPU 2 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was written past its end: byte 100 is 0x21\n",
            ALLOCATED,
            FREED,
            BACKTRACE,
        ],
    ),
    panics(
        "heap-underflow",
        &["4", "heap=checked", "fault=heap-underflow"],
        &[
            "CPU 2 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was written before its start: byte -1 is 0x21\n",
            ALLOCATED,
            FREED,
            BACKTRACE,
        ],
    ),
    panics(
        "heap-use-after-free",
        &["4", "heap=checked", "fault=heap-use-after-free"],
        &[
            "CPU 0 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was written after its free: byte 8 is 0x21, 1 in all\n",
            ALLOCATED,
            FREED,
            "found on CPU 0\n",
            BACKTRACE,
        ],
    ),
    panics(
        "heap-wrong-layout",
        &["4", "heap=checked", "fault=heap-wrong-layout"],
        &[
            "CPU 3 found a misuse of the heap",
            r"a block of 100 bytes at 0x[0-9a-f]{16}\n.* was freed as one of 1000 bytes, aligned to 4\n",
            ALLOCATED,
            FREED_OTHERWISE,
            BACKTRACE,
        ],
    ),
    // Without the checks it is found when the blocks go back to their slabs.
    panics(
        "heap-double-free-unchecked",
        &["4", "fault=heap-double-free"],
        &[
            r"0x[0-9a-f]+, a block of up to 112 bytes, was freed twice",
            BACKTRACE,
        ],
    ),
    panics(
        "heap-wrong-layout-unchecked",
        &["4", "fault=heap-wrong-layout"],
        &[
            r"0x[0-9a-f]+ was freed as a block of up to 1024 bytes, but no such block is there",
            BACKTRACE,
        ],
    ),
    passes(
        "heap-compare",
        &["4", "heap=compare", "seconds=2"],
        &["magazines  linked-list    ratio", "audit: clean"],
    ),
    passes(
        "bench",
        &["4", "bench=all", "on=1,2,4", "rounds=1", "time=2"],
        &["muster to the best other kernel allocator", "audit: clean"],
    ),
    passes(
        "bench-json",
        &[
            "2",
            "bench=xfree,frame-bulk",
            "rounds=1",
            "time=2",
            "format=json",
        ],
        &[r#"\{"bench":"xfree","allocator":"muster","cpus":2,"pairs_per_s":\d+,"#],
    ),
    Case {
        limits: INSTRUCTIONS,
        ..passes(
            "instructions",
            &[
                "1",
                "accel=icount",
                "measure=instructions",
                "allocators=muster",
                "bench=churn,mixed,frame-pair,frame-bulk",
            ],
            &[],
        )
    },
    Case {
        tells: &[
            "log",
            "mapped",
            "cpu",
            "roll",
            "reclaim",
            "range",
            "cost",
            "sample",
            "memory",
            "work",
            "workload",
            "account_cpu",
            "account_common",
            "account",
            "interrupts",
            "audit",
        ],
        ..passes("events-8", &["8", "seconds=2", "output=json"], &[])
    },
    // All CPUs write at once, on both ports.
    Case {
        tells: &["work", "audit"],
        ..passes(
            "events-32",
            &[
                "32",
                "stress=churn,mixed,handover",
                "seconds=0.5",
                "log=debug",
                "output=json",
            ],
            &["audit: clean"],
        )
    },
    Case {
        tells: &["audit"],
        ..passes(
            "events-microvm",
            &["4", "machine=microvm", "seconds=0.5", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["audit"],
        ..passes(
            "events-pc",
            &["4", "machine=pc", "seconds=0.5", "output=json"],
            &[],
        )
    },
    passes(
        "events-no-port",
        &["2", "qemu-args=-append 'seconds=0.5 output=json'"],
        &["WARN .*no second serial port"],
    ),
    Case {
        tells: &["absent", "roll"],
        ..fails(
            "events-absent",
            &["4", "loader.silent=3", "stress=none", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["fault", "return_address", "stopped"],
        ..panics(
            "events-panic",
            &["8", "fault=panic-all", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["fault", "return_address", "stopped"],
        ..panics(
            "events-fault",
            &["8", "fault=stack-overflow", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["fault", "stopped"],
        ..panics(
            "events-misuse",
            &["2", "heap=checked", "fault=heap-double-free", "output=json"],
            &[],
        )
    },
    Case {
        tells: &["log"],
        ..refuses(
            "events-refused",
            &["64", "mem=9M", "output=json"],
            &["too little memory for the stacks"],
        )
    },
    Case {
        tells: &["figure", "latency"],
        ..passes(
            "events-bench",
            &[
                "2",
                "bench=mixed,frame-pair",
                "on=1,2",
                "rounds=2",
                "time=2",
                "output=json",
            ],
            &[],
        )
    },
    Case {
        tells: &["instructions"],
        ..passes(
            "events-instructions",
            &[
                "1",
                "accel=icount",
                "measure=instructions",
                "allocators=muster",
                "bench=churn",
                "output=json",
            ],
            &[],
        )
    },
    Case {
        never: &["INFO  stress"],
        ..passes(
            "log-error",
            &["2", "log=error", "seconds=0.5"],
            &["verdict: passed"],
        )
    },
    passes(
        "show-addresses",
        &["2", "show-addresses=yes", "stress=churn", "seconds=0.2"],
        &[
            r"HHDM at 0xffff[0-9a-f]{12}",
            r"  1 ffffff[0-9a-f]{10} ffff[0-9a-f]{12} [0-9a-f]+\n",
        ],
    ),
    passes(
        "log-debug",
        &["2", "log=debug", "stress=churn", "seconds=0.2"],
        &[
            r"HHDM at 0xffff[0-9a-f]{12}",
            r"DEBUG roll    stack: 0xffffff[0-9a-f]{10} to 0xffffff",
            r"DEBUG shared  .* 0xffffffff[0-9a-f]{8} -> 0x[0-9a-f]+, .* bytes, r-x",
        ],
    ),
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
                r"ERROR .*CPU 1 \(LAPIC 2\) has 0x1 in its local APIC's id register instead of 0x2: kept out",
                r"ERROR .*CPU 2 \(LAPIC 1\) has 0x2 in its local APIC's id register instead of 0x1: kept out",
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
            r"ERROR .*CPU 3 \(LAPIC 3\) has 0xfee00000 in IA32_APIC_BASE instead of 0xfee00[8c]00: kept out",
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
            r"ERROR .*CPU 2 \(LAPIC 2\) has 0x6 in IA32_MTRR_DEF_TYPE instead of 0xc06: kept out",
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
                r"ERROR roll +CPU 3 \(LAPIC 3\) has 0x606060606060606 in IA32_MTRR_FIX4K_F8000 instead of 0x0: kept out\n",
                r"ERROR roll +CPU 3 \(LAPIC 3\) has 0x1000 in IA32_MTRR_PHYSBASE1 instead of 0x0: kept out\n",
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
        &["CPU 1 .* has 0x606060606060606 in IA32_MTRR_FIX4K_F8000 instead of 0x0: kept out"],
    ),
    fails(
        "identity-mtrr-variable",
        &["2", "loader.msr=1:0x203:0xff00000800", "stress=none"],
        &["CPU 1 .* has 0xff00000800 in IA32_MTRR_PHYSMASK1 instead of 0x0: kept out"],
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
    // QEMU tells of each time that a CPU reads IA32_APIC_BASE: some as they come up and are looked at,
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
        "memory-map-awkward",
        &["4", "loader.memory-map=awkward", "seconds=1"],
        &["roll: 4 of 4 CPUs online"],
    ),
    passes(
        "hhdm-random",
        &["4", "loader.hhdm=random", "seconds=0.5"],
        &["roll: 4 of 4 CPUs online"],
    ),
    panics(
        "panic-bsp",
        &["4", "fault=panic-bsp"],
        &["CPU 0 panicked", BACKTRACE],
    ),
    panics(
        "panic-ap",
        &["4", "fault=panic-ap"],
        &["CPU [1-3] panicked", BACKTRACE],
    ),
    panics(
        "panic-two",
        &["4", "fault=panic-two"],
        &[r"CPU 3 panicked", r"CPU 2 too: panic", BACKTRACE],
    ),
    panics(
        "panic-all",
        &["8", "fault=panic-all"],
        &[r"CPU \d panicked", BACKTRACE],
    ),
    panics(
        "stack-overflow",
        &["4", "fault=stack-overflow"],
        &[
            "double fault|page fault",
            "the guard page below the stack of CPU",
            BACKTRACE,
        ],
    ),
    panics(
        "boot-stack-overflow",
        &["4", "fault=boot-stack-overflow"],
        &[
            "CPU 0: double fault",
            "the guard page below the boot stack: stack overflow",
            r"in muster::selftest::fault::overflow",
            BACKTRACE,
        ],
    ),
    panics(
        "mapped-stack-overflow",
        &["4", "fault=mapped-stack-overflow"],
        &[
            "CPU 3: double fault",
            "the guard page of a stack that was mapped for some work",
            BACKTRACE,
        ],
    ),
    panics(
        "null-read",
        &["4", "fault=null-read"],
        &[
            "page fault",
            "tried to read 0x0:",
            "null pointer",
            BACKTRACE,
        ],
    ),
    panics(
        "write-text",
        &["4", "fault=write-text"],
        &["page fault", "tried to write", BACKTRACE],
    ),
    panics(
        "execute-heap",
        &["4", "fault=execute-heap"],
        &["page fault", "tried to execute", BACKTRACE],
    ),
    panics(
        "unmapped-read",
        &["4", "fault=unmapped-read"],
        &[
            "every CPU used 2.3 MiB of a mapping",
            "CPU 3: page fault",
            "tried to read 0xffffff10",
            "nothing is mapped there .*a mapping",
            BACKTRACE,
        ],
    ),
    panics(
        "protected-write",
        &["4", "fault=protected-write"],
        &[
            "every CPU used 12.0 KiB of a mapping",
            "CPU 3: page fault",
            "tried to write 0xffffff10",
            "its page does not allow that .*a mapping",
            BACKTRACE,
        ],
    ),
    panics(
        "mapping-overflow",
        &["1", "fault=mapping-overflow"],
        &[
            "page fault",
            "tried to write 0xffffff10",
            "nothing is mapped there .*a mapping",
            BACKTRACE,
        ],
    ),
    panics(
        "deaf-ap",
        &["4", "fault=deaf-ap"],
        &[
            "2 CPUs have answered",
            "CPU 3 did not take a call within 1000 ms",
            "CPU 3, at work, stopped at 0x[0-9a-f]+ in muster::",
            BACKTRACE,
        ],
    ),
    // For as long as a CPU may take to take a call.
    panics(
        "halt-in-heap",
        &["4", "heap=linked-list", "fault=halt-in-heap"],
        &[
            "CPU 0 panicked",
            "CPU 3 holds a lock of the heap and does not go on",
            // What it stands in is inlined there, or not, as the compiler likes.
            "CPU 3, at work, stopped at 0x[0-9a-f]+ in .*(hlt|grow|muster_heap::heap::Heap)",
            BACKTRACE,
        ],
    ),
    panics(
        "halt-in-lock",
        &["4", "fault=halt-in-lock"],
        &[
            "CPU 0 panicked",
            "CPU 3 holds the lock of the workload's books and does not go on",
            "CPU 3, at work, stopped at 0x[0-9a-f]+ in muster::selftest::fault::",
            BACKTRACE,
        ],
    ),
    panics(
        "lock-order",
        &["4", "fault=lock-order"],
        &[
            "CPU 3 panicked",
            "the lock of the workload's books may not be taken while that of the page tables is held",
            BACKTRACE,
        ],
    ),
    panics(
        "call-locked",
        &["4", "fault=call-locked"],
        &[
            "CPU 3 panicked",
            "CPUs may not be called while the lock of the page tables is held",
            BACKTRACE,
        ],
    ),
    panics(
        "panic-in-call",
        &["4", "fault=panic-in-call"],
        &[
            "CPU 3 panicked",
            r"CPU 0, at work, stopped at 0x[0-9a-f]+ in .*\(.*:\d+\)\n",
            // One line for each.
            r"CPU 1, asleep, stopped at .* in .*\n.* CPU 2, asleep, stopped at .* in .*\n",
            BACKTRACE,
        ],
    ),
    panics(
        "panic-in-shootdown",
        &["4", "fault=panic-in-shootdown"],
        &[
            "CPU 3 panicked",
            "CPU 0, .*, stopped at",
            "CPU 1, .*, stopped at",
            "CPU 2, .*, stopped at",
            BACKTRACE,
        ],
    ),
    // What a person at a machine without a serial port sees: after the loader's memory was poisoned.
    Case {
        types: &[("`help` lists", "off")],
        shows: SCREEN,
        ..passes(
            "screen-bios",
            &[
                "4",
                "boot=limine",
                "reclaim=poison",
                "monitor=yes",
                "timeout=120",
            ],
            &["screen of 1280 by 800 pixels", "audit: clean"],
        )
    },
    Case {
        types: &[("`help` lists", "off")],
        shows: SCREEN,
        ..passes(
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
        )
    },
    // Characters of twice the size.
    Case {
        types: &[("`help` lists", "off")],
        shows: SCREEN,
        ..passes(
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
        )
    },
    Case {
        types: &[("`help` lists", "off")],
        shows: SCREEN,
        ..passes(
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
        )
    },
    // What `just iso` writes, as a USB stick.
    Case {
        types: &[("`help` lists", "off")],
        shows: SCREEN,
        ..passes(
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
        )
    },
    Case {
        types: &[("`help` lists", "off")],
        shows: SCREEN,
        ..passes(
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
        )
    },
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
                r"\nThread 1 hit Breakpoint 1, muster::entry \(\) at src/main\.rs:",
                r"\(gdb\) roll\nno CPU has a block yet",
                r"\nroll: 1 of 4 CPUs online\n",
                r"\n  1     1 +(?:-|2) \w+ at \d+\.\d{6}\n",
                r"\nthere is no CPU 4: there are 0 to 3\n",
                r"\n0x800000000000 is not canonical: with 4-level tables no CPU takes it\n",
                r"\nroll: 4 of 4 CPUs online\n(?:.*\n){4}  3     3      4 online at \d+\.\d{6}, a",
                r"\nCPU 2, LAPIC 2: online at .*\n  block .*\n  doing     a.*\n  thread    3, at .* muster",
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
    // An error of the data cache, read by CPU 1, with an address; after the roll call.
    Case {
        debugged: Some(Debugged {
            asks: &[
                "hbreak muster::bringup::reclaim::reclaim",
                "continue",
                "delete",
                "monitor mce 1 3 0xbd80000000100134 0x5 0x1234000 0x8c",
            ],
            answers: &[],
            agrees: &[],
        }),
        ..panics(
            "machine-check",
            &[
                "2",
                "stress=churn",
                "seconds=2",
                "deadline=60000",
                "timeout=60",
            ],
            &[
                "CPU 1: machine check, error code 0x0",
                r"what was interrupted could go on; the error is of no instruction in particular \(status 0x5\)",
                "machine-check bank 3, now: a cache error, not corrected",
                "  status 0xbd80000000100134, address 0x1234000, misc 0x8c",
                BACKTRACE,
            ],
        )
    },
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
    Case {
        types: &[
            ("`help` lists", "help"),
            ("^off +end the run", "help map"),
            ("A line for each level", "cpus"),
            ("^  3 +3 +.* (asleep|at work)$", "log 2"),
            (
                "DEBUG roll    stack: 0xffffff0000090000",
                "map ffffff000005fff8",
            ),
            ("^physical 0x", "mem"),
            ("bytes  in all$", "frames"),
            ("^  3 ", "heap"),
            ("^allocations per refill", "account"),
            ("^it adds up, to the byte$", "call 3"),
            ("^to it and back: ", "call all"),
            ("^to all others and back: ", "shootdown"),
            ("^a shootdown, ", "roll"),
            ("^  3 ffffff", "off"),
        ],
        ..passes(
            "monitor",
            &["4", "monitor=yes", "show-addresses=yes", "timeout=120"],
            &[
                "muster> help map\n",
                r"\n1 0x[0-9a-f]+\[95\] 0x8[0-9a-f]+63 P W A D NX -> 4 KiB page, rw- WB\n",
                "the stack of CPU 1\n",
                "audit: clean",
            ],
        )
    },
    // The prompt answers while memory runs out, and while everything happens at once; and no answer is
    // wider than a terminal, a journal's lines left aside.
    Case {
        types: &[
            ("`help` lists", "stress exhaustion,soak"),
            ("workload   operations", "watch"),
            (r"^  7 .* in (exhaustion|soak)", ""),
            ("^  7 ", "cpus"),
            ("^  7 +7 ", "account"),
            ("bytes  in all$|^error: memory is out", "call 5"),
            ("^to it and back: |^error: CPU 5", "map ffffff000001fff8"),
            ("^physical 0x", "stress churn"),
            ("^error: the other CPUs are at work", "fault panic-ap"),
            ("^error: the other CPUs are at work", "stop"),
            ("^the other CPUs are done", "stress mixed,calls 0.5"),
            ("^the other CPUs are done", "stop"),
            ("^error: no CPU is at work", "help"),
            ("^off ", "help stress"),
            ("exhaustion +soak +all", "help fault"),
            ("heap-wrong-layout", "roll"),
            ("^ns that each TSC", "mem"),
            ("bytes  in all$", "frames"),
            ("^  7 +.*B$", "heap"),
            ("^allocations per refill", "shootdown"),
            ("^a shootdown, ", "off"),
        ],
        never: NARROW,
        hides: &[],
        ..passes(
            "monitor-stress",
            &["8", "monitor=yes", "timeout=300"],
            &["stress  exhaustion", "stress  calls", "audit: clean"],
        )
    },
    // What is typed and answered is told, and while the others work the prompt samples them.
    Case {
        types: &[
            ("`help` lists", "cpus"),
            ("^  1 +1 +.* (asleep|at work)$", "stress mixed 1"),
            ("^the other CPUs are done", "off"),
        ],
        tells: &["command", "log", "sample", "memory", "work", "workload"],
        ..passes(
            "events-monitor",
            &["2", "monitor=yes", "output=json", "timeout=120"],
            &[r"\n  0 +0 +.* at its prompt\n", "audit: clean"],
        )
    },
    // Without any work.
    Case {
        types: &[("`help` lists", "mem"), ("bytes  in all$", "off")],
        tells: &["command", "sample", "memory"],
        ..passes(
            "events-monitor-idle",
            &["1", "monitor=yes", "output=json", "timeout=120"],
            &["audit: clean"],
        )
    },
    // Ctrl-D asks, and the run goes on unless that is meant.
    Case {
        types: &[
            ("`help` lists", "\x04ncpus"),
            ("^  0 +0 +.* at its prompt$", "\x04y"),
        ],
        ..passes(
            "monitor-ctrl-d",
            &["1", "monitor=yes", "timeout=120"],
            &["audit: clean"],
        )
    },
    Case {
        types: &[
            ("`help` lists", "cpu"),
            (
                "^error: unknown command `cpu`, did you mean `cpus`",
                "stress mixd",
            ),
            (
                "^error: unknown workload `mixd`, did you mean `mixed`",
                "help quit",
            ),
            ("^Also: quit, exit, q, poweroff$", "LOG 9"),
            (
                "^error: there is no CPU 9: there are 0 to 1$",
                "map 800000000000",
            ),
            ("^error: 0x800000000000 is not canonical", "bench"),
            ("^error: this kernel is without the benchmarks", "stop"),
            ("^error: no CPU is at work", "watch"),
            ("^error: there is nothing to see", "call 7"),
            ("^error: CPU 7 can't be called", "fault"),
            ("^error: `fault` needs more: fault KIND$", "fault panic-bsp"),
        ],
        ..panics(
            "monitor-errors",
            &["2", "monitor=yes", "timeout=120"],
            &["CPU 0 panicked", "asked for by fault=", BACKTRACE],
        )
    },
    Case {
        types: &[
            ("`help` lists", "stress all"),
            (
                "error: there is no other CPU",
                "bench bench=frame-pair rounds=1 time=1",
            ),
            ("frame-pair", "bench bench=chrun"),
            ("^error: invalid value `chrun` for `bench`", "off"),
        ],
        ..passes(
            "monitor-bench",
            &["1", "monitor=yes", "rounds=3", "timeout=120"],
            &["muster to the best", "audit: clean"],
        )
    },
    passes(
        "limine-bios",
        &["8", "boot=limine", "seconds=1"],
        &["roll: 8 of 8 CPUs online"],
    ),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Script;
    use crate::{arguments, faults, matrix};
    use regex_lite::Regex;
    use std::collections::HashSet;

    fn all() -> impl Iterator<Item = Case> {
        CASES
            .iter()
            .chain(faults::FAULTS)
            .copied()
            .chain(matrix::all())
    }

    #[test]
    fn every_case_can_be_run() {
        for case in all() {
            assert!(case.boots().count() > 0 && !case.ends.is_empty());
            for arguments in case.boots() {
                arguments::parse(&arguments).unwrap();
            }
            for pattern in case.says.iter().chain(case.never).chain(case.hides) {
                Regex::new(pattern).unwrap();
            }
        }
    }

    #[test]
    fn every_case_ends() {
        for case in CASES {
            let run = arguments::parse(case.arguments).unwrap();
            assert!(run.time_limit.is_some(), "{}", case.name);
            assert_eq!(run.is_monitored(), !case.types.is_empty(), "{}", case.name);
            Script::new(case.types, None).unwrap();
        }
    }

    #[test]
    fn names_are_unique() {
        let names: HashSet<_> = all().map(|case| case.name).collect();
        assert_eq!(names.len(), all().count());
    }

    #[test]
    fn a_sweep_is_a_boot_for_each_value() {
        let case = Case {
            sweep: Some(Sweep {
                before: "mem=",
                first: 1,
                last: 6,
                step: 2,
                after: "K",
            }),
            ..passes("example", &["2"], &[])
        };
        let boots: Vec<_> = case.boots().map(|words| words.join(" ")).collect();
        assert_eq!(boots, ["2 mem=1K", "2 mem=3K", "2 mem=5K"]);
    }
}
