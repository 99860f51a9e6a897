//! Allocators side by side: how much, how slow and how fair, by the number of CPUs.

use anyhow::Result;
use muster_events::Figure;
use plotters::element::{DashedPathElement, PathElement};
use plotters::style::text_anchor::{HPos, VPos};
use plotters::style::{Color, RGBColor};

use crate::canvas::{
    self, COLOUR, Chart, Drawn, GREY, HALF, INK, Margins, Mark, Plot, SOFT, axes, doublings, fill,
    linear, mark, powers, rows, spread, text, write,
};
use crate::numbers;

/// Our own.
pub const OWN: &str = "muster";

/// Returns how each allocator's line looks, whatever else is in the chart.
fn look(allocator: &str) -> (RGBColor, Mark) {
    match allocator {
        OWN => (COLOUR[0], Mark::Disc),
        "linked_list" => (GREY, Mark::Square),
        "talc" => (COLOUR[1], Mark::Triangle),
        "buddy_system" => (COLOUR[2], Mark::Diamond),
        "rlsf" => (COLOUR[5], Mark::Cross),
        "good_memory" => (COLOUR[4], Mark::Plus),
        _ => (INK, Mark::Ring),
    }
}

/// Describes a benchmark, in a sentence; returns `None` if it is unknown here.
pub fn about(bench: &str) -> Option<&'static str> {
    Some(match bench {
        "churn" => "One block of 64 bytes, in and out.",
        "mixed" => "16 bytes to 8 KiB, random lifetimes, 1000 blocks live on each CPU.",
        "larson" => "16 to 1024 bytes; now and then CPUs exchange what they have allocated.",
        "xfree" => "CPUs in pairs: one allocates 64 bytes, the other frees them.",
        "sh8bench" => "Many small blocks and few large ones, freed in order, in reverse, or later.",
        "mstress" => "16 bytes to 2 KiB, rarely more; one in four is left for any CPU to free.",
        "cache-scratch" => {
            "Small blocks written to after each CPU freed one that lay beside the others’."
        }
        "cache-thrash" => "Small blocks that are written to again and again.",
        "realloc" => "A block that grows from 16 bytes to 32 KiB.",
        "large" => "8 KiB to 2 MiB, random lifetimes, 8 blocks live on each CPU.",
        "frame-pair" => "One frame, out and in.",
        "frame-random" => "Single frames, random lifetimes, 1024 held by each CPU.",
        "frame-bulk" => "512 frames out, then in.",
        "frame-repeat" => "One frame in and out, while the CPU holds 1024.",
        "frame-fragmentation" => "Runs of 1 to 8 frames, random lifetimes, 512 held by each CPU.",
        _ => return None,
    })
}

/// The figures of one benchmark.
pub struct Bench<'a> {
    /// Its name.
    pub name: &'a str,
    /// All figures, in the order in which they were reported.
    pub figures: Vec<&'a Figure<'static>>,
    /// The numbers of CPUs, the least first.
    pub cpus: Vec<u32>,
    /// The allocators, the one with the most pairs on the most CPUs first.
    pub allocators: Vec<&'a str>,
}

impl<'a> Bench<'a> {
    /// Returns those of this name.
    pub fn of(all: &'a [Figure<'static>], name: &'a str) -> Self {
        let figures: Vec<_> = all.iter().filter(|figure| figure.bench == name).collect();
        let mut cpus: Vec<u32> = figures.iter().map(|figure| figure.cpus).collect();
        cpus.sort_unstable();
        cpus.dedup();
        let mut best: Vec<_> = figures.clone();
        best.sort_by_key(|figure| (figure.cpus, figure.pairs_per_s));
        let mut allocators = Vec::new();
        for figure in best.iter().rev() {
            if !allocators.contains(&&*figure.allocator) {
                allocators.push(&*figure.allocator);
            }
        }
        Self {
            name,
            figures,
            cpus,
            allocators,
        }
    }

    /// Returns the largest number of CPUs.
    pub fn most(&self) -> u32 {
        self.cpus.last().copied().unwrap_or(1)
    }

    /// Returns an allocator's figure on this number of CPUs.
    pub fn figure(&self, allocator: &str, cpus: u32) -> Option<&'a Figure<'static>> {
        let mut figures = self.figures.iter();
        let figure = figures.find(|figure| figure.allocator == allocator && figure.cpus == cpus);
        figure.copied()
    }

    /// Returns an allocator's points in a chart, by the number of CPUs: a missing figure has none.
    fn places(&self, allocator: &str, of: Of) -> Vec<(f64, f64)> {
        let places = self.cpus.iter().filter_map(|&cpus| {
            let value = of(self.figure(allocator, cpus)?)?;
            // A logarithm has no place for others.
            (value > 0.0).then_some((f64::from(cpus), value))
        });
        places.collect()
    }
}

/// What of a figure a chart shows.
type Of = fn(&Figure<'_>) -> Option<f64>;

/// Pairs a second by the number of CPUs, with the line of each allocator that would scale linearly.
///
/// # Errors
/// If it can't be drawn.
pub fn throughput(bench: &Bench<'_>) -> Result<Chart> {
    lines(
        bench,
        "throughput",
        "Throughput",
        "Pairs of an allocation and a free, of all CPUs together; more is better. Dashed: that number of times what \
         the same allocator does on one CPU.",
        ("pairs a second", &|pairs| numbers::short(*pairs)),
        |figure| Some(figure.pairs_per_s as f64),
        true,
    )
}

/// Draws the time that 99.9 % of steps do not exceed, by the number of CPUs.
///
/// # Errors
/// If it can't be drawn.
pub fn latency(bench: &Bench<'_>) -> Result<Chart> {
    lines(
        bench,
        "latency",
        "Latency, 99.9 %",
        "What 99.9 % of the sampled steps did not exceed; less is better.",
        ("time of a step", &|ns| numbers::time(*ns)),
        |figure| figure.p999_ns.map(|ns| ns as f64),
        false,
    )
}

fn lines(
    bench: &Bench<'_>,
    kind: &str,
    title: &str,
    about: &str,
    words: canvas::Words<'_>,
    of: Of,
    has_ideal: bool,
) -> Result<Chart> {
    let id = format!("{kind}-{}", bench.name);
    let all: Vec<_> = (bench.allocators.iter())
        .map(|&allocator| (allocator, bench.places(allocator, of)))
        .filter(|(_, places)| !places.is_empty())
        .collect();
    let ideal = |places: &[(f64, f64)]| {
        let &(cpus, value) = places.first().filter(|_| has_ideal)?;
        let most = f64::from(bench.most());
        (most > cpus).then_some([(cpus, value), (most, value * most / cpus)])
    };
    let values = || {
        all.iter()
            .flat_map(|(_, places)| places.iter().map(|place| place.1))
    };
    let ideals = all
        .iter()
        .filter_map(|(_, places)| Some(ideal(places)?[1].1));
    let least = values().fold(f64::MAX, f64::min);
    let most = values().chain(ideals).fold(0.0, f64::max);

    canvas::draw(&id, (title, about), (HALF, 290), |area| {
        let margins = Margins {
            top: 8,
            left: 78,
            right: 88,
        };
        let x = (doublings(&bench.cpus), ("CPUs", &numbers::plain as _));
        let y = (powers(least.min(most), most), words);
        let plot = axes(area, &margins, x, y, (false, true))?;
        for (allocator, places) in &all {
            if let Some(ends) = ideal(places) {
                let style = look(allocator).0.stroke_width(1);
                let line = DashedPathElement::new(ends, 3, 4, style);
                plot.plotting_area().draw(&line)?;
            }
        }
        // Our own last, on top.
        let (own, others): (Vec<_>, Vec<_>) = all.iter().partition(|(name, _)| *name == OWN);
        for (allocator, places) in others.into_iter().chain(own) {
            let (colour, shape) = look(allocator);
            let width = if *allocator == OWN { 3 } else { 2 };
            let line = PathElement::new(places.clone(), colour.stroke_width(width));
            plot.plotting_area().draw(&line)?;
            for &place in places {
                mark(&plot, place, shape, colour)?;
            }
        }
        let mut ends: Vec<_> = (all.iter())
            .filter_map(|(name, places)| Some((*name, places.last()?.1)))
            .collect();
        let own = all.iter().find(|(name, _)| *name == OWN);
        if let Some([_, (_, end)]) = own.and_then(|(_, places)| ideal(places)) {
            ends.push(("ideal", end));
        }
        name_ends(&plot, f64::from(bench.most()), ends)
    })
}

/// Names the lines at their ends, to the right.
fn name_ends(plot: &Plot<'_>, right: f64, mut ends: Vec<(&str, f64)>) -> Drawn {
    ends.sort_by(|a, b| b.1.total_cmp(&a.1));
    let heights = ends
        .iter()
        .map(|(_, value)| plot.backend_coord(&(right, *value)).1);
    let heights: Vec<_> = heights.collect();
    let (_, edges) = plot.plotting_area().get_pixel_range();
    for ((name, value), shift) in ends
        .iter()
        .zip(spread(&heights, 15, (edges.start, edges.end)))
    {
        let colour = if *name == "ideal" { SOFT } else { INK };
        let style = text(colour, HPos::Left, VPos::Center);
        write(plot, (right, *value), (14, shift), name, &style)?;
    }
    Ok(())
}

/// Draws the fairness of each allocator on the most CPUs; `None` on one CPU, where it has no meaning.
///
/// # Errors
/// If it can't be drawn.
pub fn fairness(bench: &Bench<'_>) -> Result<Option<Chart>> {
    let most = bench.most();
    let shares = bench.allocators.iter().filter_map(|&allocator| {
        // Null is where a CPU did not a single pair.
        Some((
            allocator,
            bench.figure(allocator, most)?.fairness.unwrap_or(0.0),
        ))
    });
    let shares: Vec<_> = shares.collect();
    if most < 2 || shares.is_empty() {
        return Ok(None);
    }
    let id = format!("fairness-{}", bench.name);
    let title = format!("Fairness, {most} CPUs");
    let about = "Pairs of the CPU that did the fewest, to those of the one that did the most: 1 is fair, and 0 is that one had not a single turn.";
    let size = (HALF, 44 + 8 + 34 * shares.len() as u32);
    let chart = canvas::draw(&id, (&title, about), size, |area| {
        let margins = Margins {
            top: 8,
            left: 106,
            right: 44,
        };
        let name = |row: &f64| {
            let name = shares.get(*row as usize);
            name.map_or_else(String::new, |(name, _)| (*name).to_owned())
        };
        let x = (
            linear(1.0),
            ("fewest to most pairs of a CPU", &numbers::plain as _),
        );
        let y = (rows(shares.len()), ("", &name as _));
        let plot = axes(area, &margins, x, y, (true, false))?;
        let style = text(SOFT, HPos::Left, VPos::Center);
        for (row, (allocator, share)) in shares.iter().enumerate() {
            let middle = row as f64 + 0.5;
            let colour = if *allocator == OWN { COLOUR[0] } else { GREY };
            fill(&plot, (0.0, middle - 0.2), (*share, middle + 0.2), colour)?;
            write(
                &plot,
                (*share, middle),
                (8, 0),
                &format!("{share:.2}"),
                &style,
            )?;
        }
        Ok(())
    })?;
    Ok(Some(chart))
}
