//! What each CPU did under stress, beside the others.

use anyhow::Result;
use muster_events::{Work, Workload};
use plotters::element::PathElement;
use plotters::style::Color;
use plotters::style::text_anchor::{HPos, VPos};

use crate::canvas::{self, COLOUR, Chart, INK, Margins, SMALL, axes, fill, linear, text, write};
use crate::numbers;
use crate::run_events::RunEvents;

/// The maximum shown, as a multiple of the mean.
const MAX_SHARE: f64 = 2.0;

/// Returns each CPU's part of a workload, by the number of the CPU.
pub fn works<'a>(events: &'a RunEvents, workload: &Workload<'_>) -> Vec<&'a Work<'static>> {
    let works = events.works.iter();
    let works =
        works.filter(|work| work.workload == workload.workload && work.heap == workload.heap);
    let mut works: Vec<_> = works.collect();
    works.sort_by_key(|work| work.cpu);
    works
}

/// Returns a workload's name: with its heap, where there was another one, too.
pub fn name(events: &RunEvents, workload: &Workload<'_>) -> String {
    let is_other = |other: &Workload<'_>| other.heap != workload.heap;
    match events.workloads.iter().any(is_other) {
        true => format!("{}, {}", workload.workload, workload.heap),
        false => workload.workload.to_string(),
    }
}

/// Draws a chart for each workload that more than one CPU did: operations of each CPU to the mean
/// of all.
///
/// # Errors
/// If one can't be drawn.
pub fn charts(events: &RunEvents) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    for workload in &events.workloads {
        let works = works(events, workload);
        let sum: u64 = works.iter().map(|work| work.operations).sum();
        if works.len() < 2 || sum == 0 {
            continue;
        }
        let title = name(events, workload);
        let mean = sum as f64 / works.len() as f64;
        charts.push(chart(&title, &works, mean)?);
    }
    Ok(charts)
}

fn chart(title: &str, works: &[&Work<'_>], mean: f64) -> Result<Chart> {
    let id = format!("stress-{}", title.replace(", ", "-"));
    let about = "Operations of each CPU, to the mean of all, which is the line.";
    let count = works.len() as f64;
    canvas::draw(&id, (title, about), (SMALL, 150), |area| {
        let margins = Margins {
            top: 16,
            left: 40,
            right: 6,
        };
        // A mark for each CPU at its bar's middle, as far as there is room.
        let every = match works.len() {
            count @ 0..=10 => count.div_ceil(10).max(1),
            count => count.div_ceil(4),
        };
        let name = |place: &f64| match works.get(*place as usize) {
            Some(work) if (*place as usize).is_multiple_of(every) => work.cpu.to_string(),
            _ => String::new(),
        };
        let x = (canvas::columns(works.len()), ("CPU", &name as _));
        let times = |share: &f64| format!("{}×", numbers::plain(share));
        let y = (linear(MAX_SHARE), ("", &times as _));
        let plot = axes(area, &margins, x, y, (false, true))?;
        for (place, work) in works.iter().enumerate() {
            let share = work.operations as f64 / mean;
            let place = place as f64;
            let bar = ((place + 0.15, share.min(MAX_SHARE)), (place + 0.85, 0.0));
            fill(&plot, bar.0, bar.1, COLOUR[0])?;
            if share > MAX_SHARE {
                let words = format!("{}×", numbers::plain(&((share * 10.0).round() / 10.0)));
                let style = text(INK, HPos::Center, VPos::Bottom);
                write(&plot, (place + 0.5, MAX_SHARE), (0, -2), &words, &style)?;
            }
        }
        let line = PathElement::new(vec![(0.0, 1.0), (count, 1.0)], INK.stroke_width(1));
        Ok(plot.plotting_area().draw(&line)?)
    })
}
