//! The boot, as a time line of each CPU.

use anyhow::Result;
use muster_events::{Cpu, Phase, Reached};
use plotters::style::RGBColor;
use plotters::style::text_anchor::{HPos, VPos};

use crate::canvas::{
    self, COLOUR, Chart, GREY, INK, Margins, WIDE, axes, fill, legend, linear, named, rows, text,
    write,
};
use crate::numbers;
use crate::run_events::RunEvents;

/// The maximum shown of a CPU's own steps, as a multiple of the median of all.
const MAX_RATIO: f64 = 4.0;

/// What a CPU does of its own between two phases, in order: what ends with the second.
const STEPS: [(RGBColor, &str); 6] = [
    (INK, "block"),
    (COLOUR[3], "control registers"),
    (COLOUR[0], "tables"),
    (COLOUR[6], "stack"),
    (COLOUR[1], "descriptors"),
    (COLOUR[5], "online"),
];

const SHARED: (RGBColor, &str) = (COLOUR[0], "builds what all share");
const PARKED: (RGBColor, &str) = (GREY, "parked by the loader");
const ON_ITS_WAY: (RGBColor, &str) = (COLOUR[4], "released, on its way");
const OWN: (RGBColor, &str) = (INK, "its own steps");
const AT_WORK: (RGBColor, &str) = (COLOUR[2], "online");

/// Returns when a CPU was through with which step, and when it entered.
fn own(reached: &Reached) -> [Option<u64>; 7] {
    [
        reached.entered,
        reached.block,
        reached.control,
        reached.tables,
        reached.stack,
        reached.descriptors,
        reached.online,
    ]
}

/// Returns the phases' names with the time at which a CPU reached them, for a table.
pub fn times(reached: &Reached) -> [(&'static str, Option<u64>); 8] {
    let [entered, block, control, tables, stack, descriptors, online] = own(reached);
    [
        (Phase::Released.name(), reached.released),
        (Phase::Entered.name(), entered),
        (Phase::Block.name(), block),
        (Phase::Control.name(), control),
        (Phase::Tables.name(), tables),
        (Phase::Stack.name(), stack),
        (Phase::Descriptors.name(), descriptors),
        (Phase::Online.name(), online),
    ]
}

/// Returns the height of a chart of this number of rows.
fn height(rows: usize) -> u32 {
    let rows = rows as u32;
    24 + 46 + (20 * rows).clamp(40, 640.max(3 * rows))
}

/// Draws all CPUs from the kernel's entry until the last is online; `None` if there are none.
///
/// # Errors
/// If it can't be drawn.
pub fn all(events: &RunEvents) -> Result<Option<Chart>> {
    let cpus = &events.cpus;
    let last = cpus.iter().flat_map(|cpu| {
        let reached = [cpu.reached_us.released];
        reached.into_iter().chain(own(&cpu.reached_us)).flatten()
    });
    let Some(last) = last.max() else {
        return Ok(None);
    };
    let words = (
        "From the kernel’s entry until all are online",
        "A row for each CPU, from left to right in time; thin where it waits. CPU 0 builds what all share and \
         releases the others, all at once.",
    );
    let ms = |us: u64| us as f64 / 1000.0;
    let chart = canvas::draw("boot-all", words, (WIDE, height(cpus.len())), |area| {
        legend(area, 62, &[SHARED, PARKED, ON_ITS_WAY, OWN, AT_WORK])?;
        // Somewhat longer, so that all are seen to be online.
        let x = linear(1.06 * ms(last));
        let end = x.end();
        let name = |row: &f64| name_of(cpus.iter(), *row);
        let words = (
            "milliseconds since the kernel’s entry",
            &numbers::plain as _,
        );
        let y = (rows(cpus.len()), ("", &name as _));
        let plot = axes(area, &MARGINS, (x, words), y, (true, false))?;
        for (row, cpu) in cpus.iter().enumerate() {
            let reached = &cpu.reached_us;
            // Each part begins with the end of the one before; a CPU that did not come further stays
            // in its last one.
            let starts = [
                (if cpu.cpu == 0 { SHARED } else { PARKED }, Some(0)),
                (ON_ITS_WAY, reached.released),
                (OWN, reached.entered),
                (AT_WORK, reached.online),
            ];
            let starts = starts.into_iter();
            let starts: Vec<_> = starts
                .filter_map(|(part, at)| Some((part, ms(at?))))
                .collect();
            for (place, &(part, from)) in starts.iter().enumerate() {
                let to = starts.get(place + 1).map_or(end, |&(_, next)| next);
                // Who waits is a thin line, which does not take colours to see.
                let half = match part {
                    PARKED => 0.06,
                    ON_ITS_WAY => 0.18,
                    _ => 0.36,
                };
                let middle = row as f64 + 0.5;
                fill(&plot, (from, middle - half), (to, middle + half), part.0)?;
            }
        }
        Ok(())
    })?;
    Ok(Some(chart))
}

/// Draws the own steps of each CPU, from its entry until it is online; `None` if no CPU has two.
///
/// # Errors
/// If it can't be drawn.
pub fn steps(events: &RunEvents) -> Result<Option<Chart>> {
    let took = |cpu: &Cpu| {
        let times = own(&cpu.reached_us);
        let last = times.iter().rev().find_map(|&time| time)?;
        Some(last.saturating_sub(times[0]?) as f64)
    };
    let cpus: Vec<_> = events
        .cpus
        .iter()
        .filter_map(|cpu| Some((cpu, took(cpu)?)))
        .collect();
    let mut all: Vec<_> = cpus.iter().map(|(_, took)| *took).collect();
    all.sort_by(f64::total_cmp);
    let (Some(median), Some(longest)) = (all.get(all.len() / 2), all.last()) else {
        return Ok(None);
    };
    let most = longest.min(median * MAX_RATIO).max(1.0);
    let words = (
        "Each CPU’s own steps",
        "From a CPU’s entry into the kernel until it is online; each bar is what it did until it had what the \
         colour says. An arrow means that it took longer than there is room: a virtual CPU that the host let \
         wait, or CPU 0, which makes the heap on its way.",
    );
    let size = (WIDE, height(cpus.len()));
    let chart = canvas::draw("boot-steps", words, size, |area| {
        legend(area, 62, &STEPS)?;
        let name = |row: &f64| name_of(cpus.iter().map(|(cpu, _)| *cpu), *row);
        let x = linear(most);
        let end = x.end();
        let words = ("microseconds since its entry", &numbers::plain as _);
        let y = (rows(cpus.len()), ("", &name as _));
        let plot = axes(area, &MARGINS, (x, words), y, (true, false))?;
        for (row, (cpu, took)) in cpus.iter().enumerate() {
            let times = own(&cpu.reached_us);
            let start = times[0].unwrap_or(0);
            let since = |time: u64| (time.saturating_sub(start) as f64).min(end);
            let (top, bottom) = (row as f64 + 0.14, row as f64 + 0.86);
            for (pair, (colour, _)) in times.windows(2).zip(STEPS) {
                if let &[Some(from), Some(to)] = pair
                    && since(from) < since(to)
                {
                    fill(&plot, (since(from), top), (since(to), bottom), colour)?;
                }
            }
            if !row.is_multiple_of(named(cpus.len())) {
                continue;
            }
            let words = match *took > end {
                true => format!("→ {}", numbers::time(took * 1000.0)),
                false => numbers::time(took * 1000.0),
            };
            let place = (took.min(end), row as f64 + 0.5);
            let style = text(INK, HPos::Left, VPos::Center);
            write(&plot, place, (6, 0), &words, &style)?;
        }
        Ok(())
    })?;
    Ok(Some(chart))
}

const MARGINS: Margins = Margins {
    top: 24,
    left: 62,
    right: 76,
};

/// Returns a row's name.
fn name_of<'a>(mut cpus: impl Iterator<Item = &'a Cpu>, row: f64) -> String {
    let cpu = cpus.nth(row as usize);
    cpu.map_or_else(String::new, |cpu| format!("CPU {}", cpu.cpu))
}
