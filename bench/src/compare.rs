//! The comparison: every contender in every workload on every number of CPUs, in rounds.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use muster_events::{Event, EventLine, Instructions, Latency};
use serde::Serialize;

use crate::course::{Course, Room, Score};
use crate::figures::{Fixed, Spread, best, ratio};
use crate::histogram::Histogram;
use crate::machine::Machine;
use crate::meter::Limit;
use crate::options::{Format, Measure, Options};
use crate::report::{Console, HEADING, Row, Short};
use crate::workloads::{Contender, Empty, Kind, Workload};

/// What heaps are compared to.
pub const HEAP_BASELINE: &str = "linked_list";

/// What frame allocators are compared to.
pub const FRAME_BASELINE: &str = "buddy_system";

/// Pairs whose instructions are counted, after as many that fill the caches.
const COUNTED_PAIRS: u32 = 8192;

/// Why a comparison is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No workload, with the allocators and CPUs there are, is asked for.
    Nothing,
    /// An allocator did not a single pair.
    Idle {
        /// The allocator.
        allocator: &'static str,
        /// The workload.
        bench: &'static str,
    },
    /// The clock doesn't count instructions: it took another number of ticks.
    NoCount {
        /// Ticks.
        ticks: u64,
        /// Instructions.
        instructions: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing to compare: no such allocators, or too few CPUs"),
            Self::Idle { allocator, bench } => write!(f, "{allocator} did nothing in {bench}"),
            Self::NoCount {
                ticks,
                instructions,
            } => write!(
                f,
                "instructions can't be counted here: {ticks} ticks for {instructions}; \
                 QEMU counts them with accel=icount"
            ),
        }
    }
}

impl core::error::Error for Problem {}

/// Compares the contenders as asked for.
///
/// # Errors
///
/// [`Problem`].
pub fn compare(
    machine: &dyn Machine,
    contenders: &[&dyn Contender],
    options: &Options,
    console: &mut dyn Console,
) -> Result<(), Problem> {
    match options.measure {
        Measure::Time => compare_times(machine, contenders, options, console),
        Measure::Instructions => count_instructions(machine, contenders, options, console),
    }
}

/// Returns the contenders that take part and are asked for.
fn chosen<'a>(
    contenders: &[&'a dyn Contender],
    options: &Options,
    workload: Workload,
) -> Vec<&'a dyn Contender> {
    let chosen = contenders
        .iter()
        .copied()
        .filter(|contender| contender.takes_part(workload) && options.wants(contender.name()));
    chosen.collect()
}

fn compare_times(
    machine: &dyn Machine,
    contenders: &[&dyn Contender],
    options: &Options,
    console: &mut dyn Console,
) -> Result<(), Problem> {
    let most = machine.cpus();
    let numbers = || options.cpus.iter().copied().filter(|&cpus| cpus <= most);
    let heats: Vec<_> = (options.workloads.iter())
        .flat_map(|&workload| numbers().map(move |cpus| (workload, cpus)))
        .filter(|&(workload, cpus)| workload.runs_on(cpus))
        .map(|(workload, cpus)| (workload, cpus, chosen(contenders, options, workload)))
        .filter(|(.., chosen)| !chosen.is_empty())
        .collect();
    if heats.is_empty() {
        return Err(Problem::Nothing);
    }
    let room = Room::new(most);
    let ticks = machine.ticks_per_second() / 1000 * options.millis;
    for (number, (workload, cpus, chosen)) in heats.iter().enumerate() {
        let course = Course {
            machine,
            room: &room,
            cpus: *cpus,
            limit: Limit::Ticks(ticks),
        };
        console.progress(format_args!(
            "{} of {}: {}, CPUs: {cpus}",
            number + 1,
            heats.len(),
            workload.name()
        ));
        heat(*workload, &course, chosen, options, console)?;
    }
    Ok(())
}

/// One contender's rounds.
struct Rounds<'a> {
    contender: &'a dyn Contender,
    pairs_per_s: Vec<u64>,
    fairness: Vec<u64>,
    histogram: Histogram,
    failures: u64,
}

/// Returns a line of JSON.
fn json(value: &impl Serialize) -> String {
    let line = EventLine::of_value(value);
    line.as_ref().map_or("", EventLine::as_str).into()
}

/// Runs all contenders' rounds in one workload on one number of CPUs, and reports the figures.
fn heat(
    workload: Workload,
    course: &Course<'_>,
    contenders: &[&dyn Contender],
    options: &Options,
    console: &mut dyn Console,
) -> Result<(), Problem> {
    let mut all: Vec<_> = (contenders.iter())
        .map(|&contender| Rounds {
            contender,
            pairs_per_s: Vec::with_capacity(options.rounds),
            fairness: Vec::with_capacity(options.rounds),
            histogram: Histogram::default(),
            failures: 0,
        })
        .collect();
    // Memory that nobody has touched yet is slow, on machines that are guests above all.
    let warming = Course {
        limit: match course.limit {
            Limit::Ticks(ticks) => Limit::Ticks(ticks / 4),
            steps @ Limit::Steps(_) => steps,
        },
        ..*course
    };
    for contender in contenders {
        contender.run(workload, &warming);
    }
    for _ in 0..options.rounds {
        for rounds in &mut all {
            let score = rounds.contender.run(workload, course);
            let per_pair = 1000 * workload.steps_per_pair();
            rounds
                .pairs_per_s
                .push(score.millisteps_per_second / per_pair);
            rounds.fairness.push(score.fairness.unwrap_or(0));
            rounds.histogram.add(&score.histogram);
            rounds.failures += score.failures;
        }
    }

    let baseline = if workload.is_of_frames() {
        FRAME_BASELINE
    } else {
        HEAP_BASELINE
    };
    let baseline = all
        .iter()
        .find(|rounds| rounds.contender.name() == baseline);
    let is_table = options.format == Format::Table;
    if is_table {
        console.line(format_args!("{}, CPUs: {}", workload.name(), course.cpus));
        console.line(format_args!("{HEADING}"));
    }
    for rounds in &all {
        let per_second = course.machine.ticks_per_second();
        let in_ns = |ticks| {
            let ns = u128::from(ticks) * 1_000_000_000 / u128::from(per_second);
            u64::try_from(ns).unwrap_or(u64::MAX)
        };
        let row = Row {
            bench: workload.name(),
            allocator: rounds.contender.name(),
            cpus: course.cpus,
            pairs_per_s: Spread::of(&rounds.pairs_per_s),
            p999_ns: rounds.histogram.per_mille(999).map(in_ns),
            ratio: baseline.and_then(|other| ratio(&rounds.pairs_per_s, &other.pairs_per_s)),
            fairness: Some(Spread::of(&rounds.fairness).median).filter(|&fairness| fairness > 0),
            failures: rounds.failures,
        };
        console.emit(row.figure().into());
        console.emit(Event::Latency(Latency {
            bench: row.bench.into(),
            allocator: row.allocator.into(),
            cpus: row.cpus as u32,
            steps: rounds.histogram.steps(in_ns).into(),
        }));
        if is_table {
            console.line(format_args!("{row}"));
            if row.failures > 0 {
                console.line(format_args!("  {} allocations failed", row.failures));
            }
        } else {
            console.line(format_args!("{}", json(&row.figure())));
        }
    }
    if is_table {
        report_muster(&all, console);
    }
    let is_idle = |rounds: &&Rounds<'_>| Spread::of(&rounds.pairs_per_s).high == 0;
    match all.iter().find(is_idle) {
        Some(rounds) => Err(Problem::Idle {
            allocator: rounds.contender.name(),
            bench: workload.name(),
        }),
        None => Ok(()),
    }
}

/// Holds Muster against the best of the others, round by round.
fn report_muster(all: &[Rounds<'_>], console: &mut dyn Console) {
    let of = |kind| {
        all.iter()
            .filter(move |rounds| rounds.contender.kind() == kind)
            .map(|rounds| &rounds.pairs_per_s[..])
    };
    let Some(muster) = of(Kind::Muster).next() else {
        return;
    };
    for (kind, name) in [(Kind::Kernel, "kernel"), (Kind::Hosted, "hosted")] {
        if let Some(ratio) = ratio(muster, &best(of(kind))) {
            console.line(format_args!(
                "muster to the best other {name} allocator: {}",
                Short::ratio(ratio)
            ));
        }
    }
}

fn count_instructions(
    machine: &dyn Machine,
    contenders: &[&dyn Contender],
    options: &Options,
    console: &mut dyn Console,
) -> Result<(), Problem> {
    check_counting(machine)?;
    let room = Room::new(1);
    let mut is_first = true;
    for &workload in &options.workloads {
        if !workload.runs_on(1) {
            continue;
        }
        let steps = workload.steps_per_pair() as u32;
        let course = Course {
            machine,
            room: &room,
            cpus: 1,
            limit: Limit::Steps(COUNTED_PAIRS * steps),
        };
        let loop_itself = warm(&Empty, workload, &course);
        for contender in chosen(contenders, options, workload) {
            let score = warm(contender, workload, &course);
            let pairs = score.steps / u64::from(steps);
            let own = score.ticks.saturating_sub(loop_itself.ticks);
            let Some(hundredths) = (own * 100).checked_div(pairs) else {
                return Err(Problem::Idle {
                    allocator: contender.name(),
                    bench: workload.name(),
                });
            };
            report_instructions(
                workload,
                contender.name(),
                hundredths,
                score.failures,
                options,
                is_first,
                console,
            );
            is_first = false;
        }
    }
    if is_first {
        return Err(Problem::Nothing);
    }
    Ok(())
}

fn report_instructions(
    workload: Workload,
    allocator: &str,
    hundredths: u64,
    failures: u64,
    options: &Options,
    is_first: bool,
    console: &mut dyn Console,
) {
    let bench = workload.name();
    let number = Fixed::<2>(hundredths);
    let instructions = Instructions {
        bench: bench.into(),
        allocator: allocator.into(),
        cpus: 1,
        instructions_per_pair: hundredths as f64 / 1e2,
        failures,
    };
    console.emit(instructions.clone().into());
    if options.format == Format::Json {
        console.line(format_args!("{}", json(&instructions)));
        return;
    }
    if is_first {
        console.line(format_args!("instructions for a pair, net of the loop:"));
    }
    console.line(format_args!("{bench:<20}{allocator:<13}{number:>12}"));
}

/// Runs a workload until the contender's caches are as full as they get.
fn warm(contender: &dyn Contender, workload: Workload, course: &Course<'_>) -> Score {
    contender.run(workload, course);
    contender.run(workload, course)
}

/// Checks that the clock counts instructions, exactly.
fn check_counting(machine: &dyn Machine) -> Result<(), Problem> {
    let ticks = |times: u64| {
        let before = machine.ticks();
        // SAFETY: counts a register down, two instructions each time.
        unsafe {
            core::arch::asm!(
                "2:",
                "dec {0}",
                "jnz 2b",
                inout(reg) times => _,
                options(nomem, nostack)
            );
        }
        machine.ticks() - before
    };
    // What the clock itself costs is in both.
    let (few, many) = (ticks(1000), ticks(101_000));
    let (ticks, instructions) = (many.saturating_sub(few), 200_000);
    if ticks == instructions {
        Ok(())
    } else {
        Err(Problem::NoCount {
            ticks,
            instructions,
        })
    }
}
