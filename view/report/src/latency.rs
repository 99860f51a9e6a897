//! Latencies, as histograms.

use anyhow::Result;
use muster_events::Latency;
use plotters::element::PathElement;
use plotters::style::Color;

use crate::allocators::{Bench, OWN};
use crate::canvas::{
    self, COLOUR, Chart, Drawn, GREY, HALF, INK, Margins, Plot, axes, fill, powers, rows,
};
use crate::numbers::{self, of_cpus};

/// Draws the histograms of a benchmark on the most CPUs, one allocator below the other in the order of the
/// other charts; `None` if nothing was sampled.
///
/// # Errors
/// If they can't be drawn.
pub fn chart(all: &[Latency<'_>], bench: &Bench<'_>) -> Result<Option<Chart>> {
    let most = bench.most();
    let of_it = |allocator: &&str| {
        all.iter().find(|latency| {
            latency.bench == bench.name
                && latency.cpus == most
                && latency.allocator == *allocator
                && !latency.steps.is_empty()
        })
    };
    let latencies: Vec<_> = bench.allocators.iter().filter_map(of_it).collect();
    let times = || latencies.iter().flat_map(|latency| latency.steps.iter());
    let (Some(min_ns), Some(max_ns)) = (
        times().map(|step| step.0).min(),
        times().map(|step| step.0).max(),
    ) else {
        return Ok(None);
    };
    let id = format!("histogram-{}", bench.name);
    let title = format!("How long steps took, {}", of_cpus(most));
    let about = "How many of the sampled steps took how long, each allocator’s highest bar as high as its row. \
                 The lines are at the median and at 99.9 %.";
    let size = (HALF, 44 + 8 + 34 * latencies.len() as u32);
    let chart = canvas::draw(&id, (&title, about), size, |area| {
        let margins = Margins {
            top: 8,
            left: 106,
            right: 20,
        };
        let name = |row: &f64| {
            let latency = latencies.get(*row as usize);
            latency.map_or_else(String::new, |latency| latency.allocator.to_string())
        };
        let time = |ns: &f64| numbers::time(*ns);
        // A step's time is at most its bucket's, which begins lower.
        let axis = powers(below(min_ns), max_ns as f64);
        let x = (axis, ("time of a step", &time as _));
        let y = (rows(latencies.len()), ("", &name as _));
        let plot = axes(area, &margins, x, y, (true, false))?;
        for (row, latency) in latencies.iter().enumerate() {
            histogram(&plot, latency, row as f64 + 0.96)?;
        }
        Ok(())
    })?;
    Ok(Some(chart))
}

/// Bars as high as their share of the steps is, the highest as high as the row; and lines at what half of
/// them, and 99.9 %, do not exceed.
fn histogram(plot: &Plot<'_>, latency: &Latency<'_>, bottom: f64) -> Drawn {
    let colour = match &*latency.allocator {
        OWN => COLOUR[0],
        _ => GREY,
    };
    let most = latency.steps.iter().map(|step| step.1).max().unwrap_or(1);
    for &(ns, steps) in latency.steps.iter() {
        let height = 0.84 * steps as f64 / most.max(1) as f64;
        let (from, to) = (below(ns).max(1.0), (ns as f64).max(1.0));
        fill(plot, (from, bottom - height), (to, bottom), colour)?;
    }
    for share in [500, 999] {
        let ns = (at(latency, share) as f64).max(1.0);
        let line = PathElement::new(vec![(ns, bottom), (ns, bottom - 0.9)], INK.stroke_width(2));
        plot.plotting_area().draw(&line)?;
    }
    Ok(())
}

/// Returns where the bucket begins that ends with this time: buckets are 1, 2, 3, 4, 6, 8, 12 and so on.
fn below(ns: u64) -> f64 {
    match ns {
        0..=2 => ns as f64 / 2.0,
        _ if ns.is_power_of_two() => ns as f64 * 3.0 / 4.0,
        _ => ns as f64 * 2.0 / 3.0,
    }
}

/// Returns the time that `share` of 1000 steps do not exceed.
pub fn at(latency: &Latency<'_>, share: u64) -> u64 {
    let total: u64 = latency.steps.iter().map(|step| step.1).sum();
    let wanted = (total * share).div_ceil(1000).max(1);
    let mut seen = 0;
    let found = latency.steps.iter().find(|step| {
        seen += step.1;
        seen >= wanted
    });
    found.map_or(0, |step| step.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_found_and_buckets_follow_one_another() {
        let latency = Latency {
            bench: "mixed".into(),
            allocator: OWN.into(),
            cpus: 1,
            steps: vec![(32, 998), (48, 1), (1024, 1)].into(),
        };
        assert_eq!(
            [500, 998, 999, 1000].map(|share| at(&latency, share)),
            [32, 32, 48, 1024]
        );
        assert_eq!([4, 6, 8, 12, 16].map(below), [3.0, 4.0, 6.0, 8.0, 12.0]);
    }
}
