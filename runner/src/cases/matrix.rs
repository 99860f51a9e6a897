//! The machines that the kernel must come up on: how many CPUs they have and which, how much
//! memory, and how both are wired.
//!
//! Up to QEMU 8 the translator has no x2APIC, and so takes up to 255 CPUs, whose APIC ids end at 254;
//! from 9 on it takes as many as the machine type.

use super::case::{Case, Sweep, passes, refuses};
use crate::session::Verdict;

/// What the stress does where the machine matters and not the load: all that goes from CPU to CPU.
const SHORT: &str = "stress=mixed,calls,mappings";

/// The machines of every test run.
pub const CASES: &[Case] = &[
    passes(
        "cpus-1",
        &["1", "seconds=0.5"],
        &["roll: 1 of 1 CPUs online"],
    ),
    passes(
        "cpus-2",
        &["2", "seconds=0.5"],
        &["roll: 2 of 2 CPUs online"],
    ),
    passes(
        "cpus-3",
        &["3", "seconds=0.5"],
        &["roll: 3 of 3 CPUs online"],
    ),
    passes(
        "cpus-8",
        &["8", "seconds=2"],
        &["roll: 8 of 8 CPUs online", "exhaustion"],
    ),
    passes(
        "cpus-32",
        &["32", "seconds=1", "timeout=180"],
        &["roll: 32 of 32 CPUs online"],
    ),
    // Where CPUs are this many, a host's thread for each would mostly wait for the others.
    passes(
        "cpus-64",
        &["64", "accel=turns", SHORT, "seconds=0.3"],
        &["roll: 64 of 64 CPUs online", "audit: clean"],
    ),
    passes(
        "cpus-255",
        &["255", "machine=microvm", "accel=turns", "stress=none"],
        &[
            "roll: 255 of 255 CPUs online",
            "to all 254 others and back: ",
            "audit: clean",
        ],
    ),
    // The last CPUs have ids that only the x2APIC reaches.
    Case {
        since_qemu: 9,
        ..passes(
            "cpus-288",
            &[
                "288",
                "machine=microvm",
                "accel=turns",
                "stress=none",
                "log=debug",
                "deadline=30000",
                "timeout=300",
            ],
            &[
                "roll: 288 of 288 CPUs online",
                r"287 DEBUG lapic +local APIC in x2APIC mode",
                "to all 287 others and back: ",
                "audit: clean",
            ],
        )
    },
    Case {
        since_qemu: 9,
        ..passes(
            "cpu-x2apic",
            &["8", "cpu=max,+x2apic", "log=debug", "seconds=1"],
            &[
                "roll: 8 of 8 CPUs online",
                r"(?m) 0 DEBUG lapic +local APIC in x2APIC mode",
                r"(?m) 7 DEBUG lapic +local APIC in x2APIC mode",
                "audit: clean",
            ],
        )
    },
    passes(
        "cpu-xapic",
        &["4", "cpu=max,-x2apic", "log=debug", SHORT, "seconds=0.3"],
        &[
            "roll: 4 of 4 CPUs online",
            r"(?m) 0 DEBUG lapic +local APIC in xAPIC mode",
            r"(?m) 3 DEBUG lapic +local APIC in xAPIC mode",
            "audit: clean",
        ],
    ),
    // APIC ids are made of numbers within socket and core, each in whole bits.
    passes(
        "apic-ids-with-gaps",
        &[
            "smp=6,sockets=2,cores=3,threads=1",
            "log=debug",
            SHORT,
            "seconds=0.3",
        ],
        &[
            "roll: 6 of 6 CPUs online",
            // The last CPU, the fourth in the table.
            r"(?m) roll +5 +6 ",
            "audit: clean",
        ],
    ),
    passes(
        "apic-ids-with-gaps-of-13",
        &[
            "smp=9,sockets=3,cores=1,threads=3,maxcpus=9",
            "cpu=max,topoext=on",
            SHORT,
            "seconds=0.3",
        ],
        &[
            "roll: 9 of 9 CPUs online",
            r"(?m) roll +8 +10 ",
            "audit: clean",
        ],
    ),
    // Sockets without a CPU are in the MADT, and nobody's loss.
    passes(
        "cpus-to-come",
        &["smp=3,maxcpus=8", SHORT, "seconds=0.3"],
        &["roll: 3 of 3 CPUs online", "reclaimed .* from the loader"],
    ),
    // A whole range of machines that are too small for something else each: every one of them says
    // so, and from some size on they pass.
    Case {
        sweep: Some(Sweep {
            before: "mem=",
            first: 3072,
            last: 6144,
            step: 96,
            after: "K",
        }),
        ends: &[Verdict::Refused, Verdict::Passed],
        never: &["(?i)panicked"],
        ..passes(
            "memory-smallest-1",
            &["1", "stress=none", "timeout=20"],
            &[TOO_LITTLE_OR_ENOUGH],
        )
    },
    Case {
        sweep: Some(Sweep {
            before: "mem=",
            first: 6016,
            last: 7808,
            step: 64,
            after: "K",
        }),
        ends: &[Verdict::Refused, Verdict::Passed],
        never: &["(?i)panicked"],
        ..passes(
            "memory-smallest-8",
            &["8", "stress=none", "timeout=20"],
            &[TOO_LITTLE_OR_ENOUGH],
        )
    },
    passes(
        "memory-6m",
        &["1", "mem=6M", "seconds=0.5"],
        &["roll: 1 of 1 CPUs online", "audit: clean"],
    ),
    refuses(
        "memory-4m-for-8",
        &["8", "mem=4M"],
        &["out of memory|too little memory"],
    ),
    passes(
        "memory-12m",
        &["8", "mem=12M", "seconds=1"],
        &["roll: 8 of 8 CPUs online", "audit: clean"],
    ),
    passes(
        "memory-64m",
        &["4", "mem=64M", "seconds=1"],
        &["roll: 4 of 4 CPUs online"],
    ),
    passes(
        "memory-6g",
        &[
            "4",
            "mem=6G",
            "stress=churn,mixed,handover,growth",
            "seconds=1",
        ],
        &["roll: 4 of 4 CPUs online"],
    ),
    passes(
        "memory-20g",
        &[
            "4",
            "mem=20G",
            "stress=churn,mixed,handover,growth,mappings",
            "seconds=0.5",
        ],
        &[
            "roll: 4 of 4 CPUs online",
            "each frame of 19.9 GiB has one owner",
        ],
    ),
    passes(
        "machine-pc",
        &["4", "machine=pc", "seconds=0.5"],
        &["roll: 4 of 4 CPUs online"],
    ),
    passes(
        "machine-q35",
        &["4", "machine=q35", "seconds=0.5"],
        &["roll: 4 of 4 CPUs online"],
    ),
    passes(
        "machine-microvm",
        &["4", "machine=microvm", "seconds=0.5"],
        &["roll: 4 of 4 CPUs online"],
    ),
    passes(
        "numa-2",
        &["4", "mem=1G", TWO_NODES, SHORT, "seconds=0.3"],
        &["roll: 4 of 4 CPUs online", "audit: clean"],
    ),
    // Three nodes, none like the other: without a CPU, and with less memory than a large page.
    passes(
        "numa-3-uneven",
        &[
            "5",
            "machine=pc",
            "mem=6G",
            THREE_NODES,
            SHORT,
            "seconds=0.3",
        ],
        &[
            "roll: 5 of 5 CPUs online",
            "each frame of 5.9 GiB has one owner",
        ],
    ),
    passes(
        "memory-to-come",
        &[
            "2",
            "qemu-args=-m 512M,slots=4,maxmem=64G",
            SHORT,
            "seconds=0.3",
        ],
        &["roll: 2 of 2 CPUs online", "audit: clean"],
    ),
    passes(
        "cpu-without-1g-pages",
        &[
            "4",
            "cpu=max,-pdpe1gb",
            "mem=4G",
            "stress=churn,mixed,handover,growth",
            "seconds=0.5",
        ],
        &["roll: 4 of 4 CPUs online", "pages: 0 of 1 GiB"],
    ),
    passes(
        "cpu-with-1g-pages",
        &["4", "cpu=max,+pdpe1gb", "mem=4G", SHORT, "seconds=0.3"],
        &["roll: 4 of 4 CPUs online", "pages: [1-9] of 1 GiB"],
    ),
    passes(
        "cpu-bare",
        &[
            "4",
            "cpu=max,-smep,-smap,-umip,-pge,-pcid,-invpcid,-fsgsbase,-x2apic,-rdtscp,-tsc-deadline,-pdpe1gb,-la57,-xsave,-arat,-mtrr,-mca",
            SHORT,
            "seconds=0.3",
        ],
        &["roll: 4 of 4 CPUs online", "audit: clean"],
    ),
    passes(
        "cpu-qemu64",
        &["4", "cpu=qemu64", "seconds=0.5"],
        &["roll: 4 of 4 CPUs online"],
    ),
    passes(
        "cpu-conroe",
        &["4", "cpu=Conroe", SHORT, "seconds=0.3"],
        &["roll: 4 of 4 CPUs online", "audit: clean"],
    ),
    passes(
        "cpu-nehalem",
        &["4", "cpu=Nehalem", SHORT, "seconds=0.3"],
        &["roll: 4 of 4 CPUs online", "audit: clean"],
    ),
    passes(
        "cpu-skylake-server",
        &["4", "cpu=Skylake-Server", SHORT, "seconds=0.3"],
        &["roll: 4 of 4 CPUs online", "audit: clean"],
    ),
    passes(
        "cpu-opteron",
        &["4", "cpu=Opteron_G1", SHORT, "seconds=0.3"],
        &["roll: 4 of 4 CPUs online", "audit: clean"],
    ),
    passes(
        "cpu-epyc",
        &["4", "cpu=EPYC", SHORT, "seconds=0.3"],
        &["roll: 4 of 4 CPUs online", "audit: clean"],
    ),
    refuses(
        "cpu-without-nx",
        &["2", "cpu=max,-nx"],
        &["no 64-bit mode or no NX"],
    ),
    refuses(
        "cpu-without-64-bit-mode",
        &["2", "cpu=qemu32"],
        &["no 64-bit mode or no NX"],
    ),
    passes(
        "paging-4-level",
        &["4", "cpu=max,-la57", "loader.levels=5", "seconds=0.5"],
        &["4-level"],
    ),
    passes(
        "paging-5-level",
        &["4", "cpu=max,+la57", "loader.levels=5", "seconds=0.5"],
        &["5-level"],
    ),
];

/// What a machine says that is too small, and what one says that is not.
const TOO_LITTLE_OR_ENOUGH: &str =
    "give (it|the machine) more|add memory|too little memory|verdict: passed";

/// Half of the CPUs and of the memory in each node.
const TWO_NODES: &str = "qemu-args=-object memory-backend-ram,id=a,size=512M \
     -object memory-backend-ram,id=b,size=512M \
     -numa node,memdev=a,cpus=0-1 -numa node,memdev=b,cpus=2-3";

/// On both sides of the hole below 4 GiB.
const THREE_NODES: &str = "qemu-args=-object memory-backend-ram,id=a,size=1M \
     -object memory-backend-ram,id=b,size=4095M -object memory-backend-ram,id=c,size=2G \
     -numa node,memdev=a,cpus=0-3 -numa node,memdev=b,cpus=4 -numa node,memdev=c";

/// Returns every machine.
pub fn all() -> impl Iterator<Item = Case> {
    CASES.iter().copied().chain(long())
}

/// Returns the machines that take longer, and each machine type with each CPU of three decades.
pub fn long() -> impl Iterator<Item = Case> {
    LONG.iter().copied().chain(pairs())
}

const LONG: &[Case] = &[
    passes(
        "cpus-64-threads",
        &["64", "stress=mixed,calls", "seconds=1", "timeout=300"],
        &["roll: 64 of 64 CPUs online", "audit: clean"],
    ),
    passes(
        "cpus-255-pc",
        &["255", "machine=pc", "accel=turns", "stress=none"],
        &["roll: 255 of 255 CPUs online", "audit: clean"],
    ),
    passes(
        "cpus-255-q35",
        &["255", "accel=turns", SHORT, "seconds=0.3", "timeout=300"],
        &["roll: 255 of 255 CPUs online", "audit: clean"],
    ),
    Case {
        since_qemu: 9,
        ..passes(
            "cpus-288-q35",
            &[
                "288",
                "accel=turns",
                SHORT,
                "seconds=0.3",
                "deadline=30000",
                "timeout=300",
            ],
            &["roll: 288 of 288 CPUs online", "audit: clean"],
        )
    },
    // Ids up to 190, of which a third is nobody's.
    passes(
        "cpus-108-with-gaps",
        &[
            "smp=108,sockets=12,cores=3,threads=3",
            "cpu=max,topoext=on",
            "accel=turns",
            "stress=calls,mappings",
            "seconds=0.3",
            "timeout=300",
        ],
        &["roll: 108 of 108 CPUs online", "audit: clean"],
    ),
    Case {
        sweep: Some(Sweep {
            before: "mem=",
            first: 4096,
            last: 5632,
            step: 8,
            after: "K",
        }),
        ends: &[Verdict::Refused, Verdict::Passed],
        never: &["(?i)panicked"],
        ..passes(
            "memory-every-8k",
            &["1", "seconds=0.2", "timeout=20"],
            &[
                "(?i)give (it|the machine) more|add memory|out of memory|too little memory|verdict: passed",
            ],
        )
    },
    Case {
        sweep: Some(Sweep {
            before: "mem=",
            first: 5,
            last: 24,
            step: 1,
            after: "M",
        }),
        ends: &[Verdict::Refused, Verdict::Failed, Verdict::Passed],
        never: &["(?i)panicked"],
        ..passes(
            "memory-every-1m",
            &["8", "seconds=0.5", "timeout=30"],
            &[
                "(?i)give (it|the machine) more|add memory|out of memory|too little memory|verdict: passed",
            ],
        )
    },
    // Above and below the hole of each machine type, and where 1 GiB pages begin to fit.
    Case {
        sweep: Some(Sweep {
            before: "mem=",
            first: 1,
            last: 19,
            step: 2,
            after: "G",
        }),
        ..passes(
            "memory-every-2g",
            &["2", "stress=mixed,mappings", "seconds=0.2"],
            &["audit: clean"],
        )
    },
];

const MACHINES: [&str; 3] = ["pc", "q35", "microvm"];

/// CPUs of Intel's, AMD's and QEMU's own, old to new.
const MODELS: [&str; 20] = [
    "qemu64",
    "kvm64",
    "core2duo",
    "Penryn",
    "Nehalem",
    "Westmere",
    "SandyBridge",
    "IvyBridge",
    "Haswell",
    "Broadwell",
    "Skylake-Client",
    "Skylake-Server",
    "Cascadelake-Server",
    "Icelake-Server",
    "Denverton",
    "phenom",
    "Opteron_G3",
    "Opteron_G5",
    "EPYC-Milan",
    "base,+hypervisor,+lm,+nx,+pae,+msr,+apic,+fxsr,+sse,+sse2,+cx8,+cmov,+pse,+pge,+pat,+syscall,+fpu,+tsc",
];

/// Returns each machine type with each CPU.
fn pairs() -> impl Iterator<Item = Case> {
    MACHINES.into_iter().flat_map(|machine| {
        MODELS.into_iter().map(move |model| {
            // For as long as the runner runs, as the others.
            let name = model.split(',').next().unwrap_or(model).to_lowercase();
            let name: &str = format!("{machine}-{name}").leak();
            let words = [
                "3".to_owned(),
                format!("machine={machine}"),
                format!("cpu={model}"),
                SHORT.to_owned(),
                "seconds=0.3".to_owned(),
            ];
            let arguments = words.map(|word| &*word.leak());
            let says = &["roll: 3 of 3 CPUs online", "audit: clean"];
            passes(name, Vec::from(arguments).leak(), says)
        })
    })
}
