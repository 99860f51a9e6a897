//! Options that exclude each other, or of which one takes away what the other is about: a table of rules.

use muster_arguments::{BENCH, Fault, Heap, KERNEL, SELFTEST};

use super::parse::is_in;
use super::run::{Boot, Build, Drive, Firmware, Run};
use crate::emulators::emulator::Kind;
use crate::emulators::machine::{Acceleration, Machine};
use crate::emulators::topology::Topology;

/// What a run is asked for.
pub struct Asked<'a> {
    /// The run as it would be.
    pub run: &'a Run,
    /// The options that are given, with their values, and the number of CPUs as `CPUS`.
    pub given: &'a [(&'static str, &'a str)],
}

impl Asked<'_> {
    /// Returns whether an option is given.
    fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Returns an option's value, if it is given.
    fn value(&self, name: &str) -> Option<&str> {
        let mut given = self.given.iter();
        given.find_map(|&(option, value)| (option == name).then_some(value))
    }

    /// Returns whether an option is given with a value that asks for something.
    fn asks_for(&self, name: &str) -> bool {
        let value = self.value(name);
        value.is_some_and(|value| {
            !matches!(
                (name, value),
                ("stress", "none") | ("monitor" | "nmis", "no")
            )
        })
    }

    /// Returns the machine's topology, unless further arguments of QEMU's may have another.
    fn topology(&self) -> Option<Topology> {
        // QEMU takes an option with one dash or two.
        let is_smp = |word: &String| word == "-smp" || word == "--smp";
        let is_known = !self.run.qemu_arguments.iter().any(is_smp);
        let topology = Topology::parse(&self.run.smp, self.run.emulator).ok();
        topology.filter(|_| is_known)
    }

    /// Returns how many CPUs come online, unless nobody knows.
    fn cpus(&self) -> Option<u128> {
        let most = self.value("cpus").and_then(|cpus| cpus.parse().ok());
        Some(self.topology()?.cpus.min(most.unwrap_or(u128::MAX)))
    }

    fn fault(&self) -> Option<Fault> {
        Fault::parse(self.value("fault")?)
    }

    fn is_on_bochs(&self) -> bool {
        self.run.emulator == Kind::Bochs
    }

    fn is_embedded(&self) -> bool {
        self.run.boot == Boot::Embedded
    }
}

/// Returns whether a run asks for what is not available.
type Condition = fn(&Asked<'_>) -> bool;

/// What is not available, and why.
const EXCLUDED: &[(Condition, &str)] = &[
    (
        |asked| asked.has("CPUS") && asked.has("smp"),
        "CPUS and smp= exclude each other",
    ),
    (
        |asked| asked.has("events") && asked.value("output") != Some("json"),
        "events= needs output=json",
    ),
    (
        |asked| asked.has("bochs") && !asked.is_on_bochs(),
        "bochs= needs machine=bochs",
    ),
    (
        |asked| asked.is_on_bochs() && asked.is_embedded(),
        "machine=bochs needs boot=limine",
    ),
    (
        |asked| {
            let is_whole = |bytes: u64| bytes.is_multiple_of(1 << 20);
            asked.is_on_bochs() && !asked.run.memory_bytes().is_some_and(is_whole)
        },
        "machine=bochs needs mem= in whole MiB",
    ),
    (
        |asked| asked.is_embedded() && asked.run.firmware == Firmware::Uefi,
        "firmware=uefi needs boot=limine",
    ),
    (
        |asked| asked.is_embedded() && asked.run.drive == Drive::Usb,
        "drive=usb needs boot=limine",
    ),
    (
        |asked| asked.is_embedded() && asked.has("resolution"),
        "resolution= needs boot=limine",
    ),
    (
        |asked| !asked.is_embedded() && asked.run.machine == Machine::Microvm,
        "boot=limine needs a disc, which machine=microvm does not have",
    ),
    (
        |asked| {
            !asked.is_embedded()
                && asked
                    .given
                    .iter()
                    .any(|(name, _)| name.starts_with("loader."))
        },
        "loader.* words need boot=embedded",
    ),
    (
        |asked| {
            let faults = ["ap-halt", "ap-fault", "ap-delay"];
            faults.iter().filter(|name| asked.has(name)).count() > 1
        },
        "ap-halt=, ap-fault= and ap-delay= exclude each other: all are about the last AP",
    ),
    (
        |asked| asked.value("ap-delay") == Some("online"),
        "ap-delay=online is too late: the AP has been taken in by then; name an earlier step",
    ),
    (
        |asked| {
            let turns = [Acceleration::Turns, Acceleration::Icount];
            asked.has("pause") && turns.contains(&asked.run.acceleration)
        },
        "pause= needs a thread for each CPU, which accel=turns and accel=icount do not have",
    ),
];

/// Returns whether an option is one of some.
type Names = fn(&str) -> bool;

/// When some options do nothing, which ones, and what to do.
const IDLE: &[(Condition, Names, &str)] = &[
    (
        |asked| {
            let denied = asked.value("loader.deny").unwrap_or_default();
            denied.split(',').any(|feature| feature == "cmdline")
        },
        |name| {
            [KERNEL, SELFTEST, BENCH]
                .iter()
                .any(|table| is_in(table, name))
        },
        "with loader.deny=cmdline, by which the kernel gets no option: leave one out",
    ),
    (
        |asked| asked.fault().is_some_and(Fault::ends_run),
        |name| is_of_stress(name) || name == "monitor" || is_in(BENCH, name),
        "with a fault= that ends the run before: leave one out",
    ),
    (
        |asked| asked.run.is_monitored(),
        |name| matches!(name, "stress" | "seconds"),
        "at the prompt of monitor=yes: type `stress WORKLOADS SECONDS` there",
    ),
    (
        |asked| asked.run.build == Build::Bench && !asked.run.is_monitored(),
        is_of_stress,
        "with the benchmarks, which take the place of the stress: leave it out",
    ),
    (
        |asked| asked.value("stress") == Some("none") && !asked.run.is_monitored(),
        is_of_stress,
        "with stress=none: leave one out",
    ),
    (
        |asked| asked.cpus() == Some(1),
        |name| matches!(name, "ap-halt" | "ap-fault" | "ap-delay" | "deadline"),
        "on a machine of one CPU, as it is about APs: ask for 2 CPUs or more",
    ),
    (
        |asked| asked.value("measure") == Some("instructions") && !asked.run.is_monitored(),
        |name| matches!(name, "on" | "rounds" | "time"),
        "with measure=instructions, which counts once, on one CPU: leave it out",
    ),
];

/// Returns whether an option is about nothing but the stress.
fn is_of_stress(name: &str) -> bool {
    matches!(name, "stress" | "seconds" | "seed" | "nmis" | "pause")
}

/// Finds the first contradiction in what is asked for, and says what it is.
pub fn find(asked: &Asked<'_>) -> Option<String> {
    let mut rules = EXCLUDED.iter();
    let excluded = rules.find(|(is_excluded, _)| is_excluded(asked));
    let excluded = excluded.map(|(_, why)| (*why).into());
    (excluded.or_else(|| idle(asked)))
        .or_else(|| unsuited_fault(asked))
        .or_else(|| missing_cpu(asked))
}

/// Finds an option that does nothing.
fn idle(asked: &Asked<'_>) -> Option<String> {
    let rules = IDLE.iter().filter(|(is_so, ..)| is_so(asked));
    rules.into_iter().find_map(|(_, is_idle, why)| {
        let mut given = asked.given.iter();
        let (name, value) = given.find(|(name, _)| is_idle(name) && asked.asks_for(name))?;
        Some(format!("{name}={value} does nothing {why}"))
    })
}

/// Finds a fault that can't happen with so few CPUs, or on such a heap.
fn unsuited_fault(asked: &Asked<'_>) -> Option<String> {
    let fault = asked.fault()?;
    let (name, min_cpus) = (fault.name(), fault.min_cpus());
    if asked.cpus().is_some_and(|cpus| cpus < min_cpus.into()) {
        return Some(format!("fault={name} needs {min_cpus} CPUs or more"));
    }
    let heap = fault.heap().map(Heap::name)?;
    (asked.value("heap") != Some(heap)).then(|| format!("fault={name} needs heap={heap}"))
}

/// Finds a CPU that is named, and is not there.
fn missing_cpu(asked: &Asked<'_>) -> Option<String> {
    let Topology { cpus, last_id, .. } = asked.topology()?;
    if let Some(pause) = asked.run.pause.filter(|pause| cpus <= pause.cpu.into()) {
        let (cpu, last) = (pause.cpu, cpus - 1);
        return Some(format!("pause= names CPU {cpu}: there are 0 to {last}"));
    }
    ["unstarted", "silent", "swapped", "msr"]
        .iter()
        .find_map(|name| {
            let name = format!("loader.{name}");
            // Of a register the id comes first.
            let mut ids = asked
                .value(&name)?
                .split(',')
                .filter_map(|id| id.split(':').next()?.parse().ok());
            let is_of_ap = ["loader.unstarted", "loader.silent"].contains(&&*name);
            ids.find_map(|id: u128| match id {
                0 if is_of_ap => Some(format!(
                    "{name}=0: APIC id 0 is the BSP's, which is there in any case"
                )),
                id if id > last_id => Some(format!(
                    "{name}= names APIC id {id}: the last CPU has {last_id}"
                )),
                _ => None,
            })
        })
}

#[cfg(test)]
mod tests {
    use crate::arguments::parse;

    #[test]
    fn what_would_do_nothing_is_refused() {
        for (arguments, expected) in [
            (
                &["monitor=yes", "stress=mixed"][..],
                "stress=mixed does nothing at the prompt",
            ),
            (
                &["monitor=yes", "seconds=3"],
                "seconds=3 does nothing at the prompt",
            ),
            (
                &["bench=churn", "seconds=3"],
                "seconds=3 does nothing with the benchmarks",
            ),
            (
                &["stress=none", "nmis=yes"],
                "nmis=yes does nothing with stress=none",
            ),
            (
                &["stress=none", "pause=1:1"],
                "pause=1:1 does nothing with stress=none",
            ),
            (
                &["fault=panic-ap", "stress=churn"],
                "stress=churn does nothing with a fault=",
            ),
            (
                &["fault=panic-ap", "monitor=yes"],
                "monitor=yes does nothing with a fault=",
            ),
            (
                &["fault=panic-ap", "rounds=3"],
                "rounds=3 does nothing with a fault=",
            ),
            (
                &["1", "ap-halt=stack"],
                "ap-halt=stack does nothing on a machine of one CPU",
            ),
            (
                &["smp=1,maxcpus=4", "ap-fault=stack"],
                "ap-fault=stack does nothing on a machine",
            ),
            (
                &["8", "cpus=1", "ap-delay=stack"],
                "ap-delay=stack does nothing on a machine",
            ),
            (
                &["1", "deadline=3"],
                "deadline=3 does nothing on a machine of one CPU",
            ),
            (
                &["measure=instructions", "on=1"],
                "on=1 does nothing with measure=instructions",
            ),
            (
                &["loader.deny=mp,cmdline", "log=debug"],
                "log=debug does nothing with loader.deny=cmdline",
            ),
            (
                &["ap-halt=stack", "ap-fault=stack"],
                "ap-halt=, ap-fault= and ap-delay= exclude each other",
            ),
            (&["ap-delay=online"], "ap-delay=online is too late"),
            (
                &["1", "fault=unresponsive-ap"],
                "fault=unresponsive-ap needs 2 CPUs or more",
            ),
            (
                &["fault=halt-in-heap"],
                "fault=halt-in-heap needs heap=linked-list",
            ),
            (
                &["fault=heap-overflow", "heap=compare"],
                "fault=heap-overflow needs heap=checked",
            ),
            (&["4", "pause=4:1"], "pause= names CPU 4: there are 0 to 3"),
            (
                &["pause=1:1", "accel=turns"],
                "pause= needs a thread for each CPU",
            ),
            (
                &["4", "loader.silent=1,4"],
                "loader.silent= names APIC id 4: the last CPU has 3",
            ),
            (
                &["4", "loader.swapped=1,4"],
                "loader.swapped= names APIC id 4",
            ),
            (
                &["4", "loader.msr=all:0x10:0x1,4:0x10:0x1"],
                "loader.msr= names APIC id 4",
            ),
            (
                &["loader.unstarted=0"],
                "loader.unstarted=0: APIC id 0 is the BSP's",
            ),
        ] {
            let said = parse(arguments).unwrap_err().to_string();
            assert!(said.starts_with(expected), "{arguments:?}: {said}");
            assert_eq!(said.lines().count(), 1);
        }
    }

    #[test]
    fn what_does_something_is_not_refused() {
        for arguments in [
            &[
                "monitor=yes",
                "stress=none",
                "seed=3",
                "nmis=yes",
                "rounds=3",
                "pause=1:1",
            ][..],
            &["monitor=no", "stress=mixed"],
            &["fault=stray-interrupts", "stress=calls", "seconds=1"],
            &[
                "fault=panic-ap",
                "stress=none",
                "heap=checked",
                "ap-halt=stack",
            ],
            &["stress=none", "nmis=no"],
            &["1", "nmis=yes", "stress=calls"],
            &["1", "fault=call-locked"],
            &["2", "fault=halt-in-lock"],
            &["3", "fault=heap-double-free"],
            &["smp=6,sockets=2,cores=3,threads=1", "loader.silent=6"],
            &["4", "loader.swapped=0,3", "loader.msr=0:0x10:0x1"],
            &["1", "ap-halt=stack", "qemu-args=-smp 4"],
            &["1", "ap-halt=stack", "qemu-args=--smp 4"],
            // What `bench measure=time` at the prompt goes by.
            &["monitor=yes", "measure=instructions", "rounds=2"],
            &["smp=nonsense", "ap-halt=stack"],
        ] {
            parse(arguments).unwrap();
        }
    }
}
