//! A boot test: what is booted, how it must end, and what it must have said.

use crate::cases::script::Cue;
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
    /// Events that it emits, by their names, each at least once. All of them must be of the schema.
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
    /// Returns the commands for GDB, if it is there.
    pub fn asks(&self) -> &'static [&'static str] {
        self.debugged.map_or(&[], |debugged| debugged.asks)
    }

    /// Returns what neither its log nor a journal may show: nothing if the case asks for addresses.
    pub fn hidden(&self) -> &'static [&'static str] {
        const ASKS: [&str; 3] = ["show-addresses=yes", "log=debug", "log=trace"];

        match self.arguments.iter().any(|word| ASKS.contains(word)) {
            true => &[],
            false => self.hides,
        }
    }

    /// Returns the arguments of each of its boots.
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

/// An address in the half of the address space that is the kernel's.
const ADDRESS: &[&str] = &[r"(?i)\bffff[0-9a-f]{12}\b|0xffff[0-9a-f]{12}\b"];

/// Makes a case that passes, without any error in its log.
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

/// Makes a case that runs to its end, and fails.
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

/// Makes a case that is refused at its start.
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

/// Makes a case that ends in a panic or an exception.
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

/// Makes a case that hangs, and is ended by its `timeout=`.
pub const fn hangs(
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

/// A return address that became a function and a line of the kernel's source.
pub const BACKTRACE: &str = r"#\d+ 0x[0-9a-f]{16} in .+ \(.+:\d+\)";

#[cfg(test)]
mod tests {
    use super::*;

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
