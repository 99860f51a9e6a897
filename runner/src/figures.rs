//! What a benchmark measured: read from lines of JSON, put side by side with
//! another's, and shown as a table or as JSON again.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Value, json};

use crate::line::LogLine;

/// What a benchmark measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Pairs of allocation and free a second, of all CPUs together.
    Pairs,
    /// Instructions of one pair, on one CPU.
    Instructions,
}

impl Measure {
    /// Returns its name in JSON.
    fn key(self) -> &'static str {
        match self {
            Self::Pairs => "pairs_per_s",
            Self::Instructions => "instructions_per_pair",
        }
    }

    /// Returns how many times better `this` is than `other`.
    fn ratio(self, this: f64, other: f64) -> f64 {
        match self {
            Self::Pairs => this / other,
            Self::Instructions => other / this,
        }
    }

    /// Formats a figure for a column of a table.
    fn shown(self, figure: f64) -> String {
        match self {
            Self::Pairs => format!("{:.2}", figure / 1e6),
            Self::Instructions => format!("{figure:.1}"),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pairs => "million pairs of allocation and free a second",
            Self::Instructions => "instructions per pair of allocation and free",
        })
    }
}

/// One figure of one allocator.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The workload.
    pub bench: String,
    /// The CPUs that worked.
    pub cpus: u64,
    /// In the unit of its [`Measure`].
    pub value: f64,
    /// Allocations that were refused.
    pub failures: u64,
}

/// A line that begins like a figure and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoFigure(String);

impl fmt::Display for NoFigure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not a figure: {}\n  (expected {{\"bench\":…,\"allocator\":…,\"cpus\":…,…}})",
            self.0
        )
    }
}

impl std::error::Error for NoFigure {}

/// Takes an allocator's figures of a measure out of a text of which some lines
/// are JSON objects.
///
/// # Errors
/// [`NoFigure`] for an object that is cut off, or no figure at all.
pub fn read(text: &str, allocator: &str, measure: Measure) -> Result<Vec<Figure>, NoFigure> {
    let mut figures = Vec::new();
    let lines = text.lines().map(|line| match LogLine::parse(line) {
        // What a kernel of ours has logged.
        Some(logged) => logged.message,
        None => line,
    });
    for line in lines.filter(|line| line.starts_with('{')) {
        let none = || NoFigure(line.into());
        let object: Value = serde_json::from_str(line).map_err(|_| none())?;
        let word = |key: &str| object[key].as_str().ok_or_else(none);
        let number = |key: &str| object[key].as_u64().ok_or_else(none);
        let figure = Figure {
            bench: word("bench")?.into(),
            cpus: number("cpus")?,
            value: match &object[measure.key()] {
                Value::Null => continue,
                value => value.as_f64().ok_or_else(none)?,
            },
            failures: match &object["failures"] {
                Value::Null => 0,
                _ => number("failures")?,
            },
        };
        if word("allocator")? == allocator {
            figures.push(figure);
        }
    }
    Ok(figures)
}

/// Returns the middle one of some figures; of an even number of them, the greater one
/// of the two in the middle.
pub fn median(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<_> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

/// Figures that were taken one right after the other.
#[derive(Clone, Debug, Default)]
pub struct Sitting {
    /// Of the allocator to compare with.
    pub reference: Vec<Figure>,
    /// Of our own; none if it was not measured.
    pub own: Vec<Figure>,
}

/// Several sittings of the same two allocators.
#[derive(Debug)]
pub struct Comparison {
    /// What was measured.
    pub measure: Measure,
    /// The name of the allocator to compare with.
    pub reference: &'static str,
    /// The name of our own.
    pub own: &'static str,
    /// All sittings.
    pub sittings: Vec<Sitting>,
}

impl Comparison {
    /// Allocations that were refused, of both.
    pub fn failures(&self) -> u64 {
        let sittings = self.sittings.iter();
        sittings
            .flat_map(|sitting| sitting.reference.iter().chain(&sitting.own))
            .map(|figure| figure.failures)
            .sum()
    }

    /// Makes a table of medians: for each workload the reference, and our own and the ratio if that
    /// was measured, by numbers of CPUs.
    pub fn table(&self) -> String {
        let cpus: BTreeSet<_> = self.reference_figures().map(|figure| figure.cpus).collect();
        let has_own = self.sittings.iter().any(|sitting| !sitting.own.is_empty());
        let mut table = format!("{:24}", "");
        for count in &cpus {
            let unit = if *count == 1 { "CPU " } else { "CPUs" };
            table += &format!("{count:>5} {unit}");
        }
        for bench in self.benches() {
            let mut line = |name: &str, of: &str, cell: &dyn Fn(u64) -> Option<String>| {
                table += &format!("\n{name:<12}{of:<12}");
                for &count in &cpus {
                    let cell = cell(count).unwrap_or_else(|| "–".into());
                    table += &format!("{cell:>10}");
                }
            };
            let shown = |figure: f64| self.measure.shown(figure);
            line(bench, self.reference, &|cpus| {
                self.median_of(|sitting| &sitting.reference, bench, cpus)
                    .map(shown)
            });
            if has_own {
                line("", self.own, &|cpus| {
                    self.median_of(|sitting| &sitting.own, bench, cpus)
                        .map(shown)
                });
                line("", "ratio", &|cpus| {
                    let ratio = self.ratio(bench, cpus)?;
                    Some(format!("{ratio:.2}"))
                });
            }
        }
        table
            .lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect()
    }

    /// Returns the medians as JSON, one object a line.
    pub fn json(&self) -> String {
        let mut text = String::new();
        for (allocator, side) in [
            (self.reference, (|sitting| &sitting.reference) as Side),
            (self.own, |sitting| &sitting.own),
        ] {
            for bench in self.benches() {
                let cpus: BTreeSet<_> =
                    self.reference_figures().map(|figure| figure.cpus).collect();
                for cpus in cpus {
                    let Some(median) = self.median_of(side, bench, cpus) else {
                        continue;
                    };
                    let mut object = json!({
                        "bench": bench,
                        "allocator": allocator,
                        "cpus": cpus,
                        "failures": self.failures_of(side, bench, cpus),
                    });
                    object[self.measure.key()] = match self.measure {
                        Measure::Pairs => json!(median.round() as u64),
                        Measure::Instructions => json!(rounded(median)),
                    };
                    if self.measure == Measure::Pairs {
                        object["ns_per_pair"] = json!(rounded(cpus as f64 * 1e9 / median));
                    }
                    if allocator == self.own {
                        let key = format!("ratio_to_{}", self.reference);
                        object[key] = json!(self.ratio(bench, cpus).map(rounded));
                    }
                    text += &format!("{object}\n");
                }
            }
        }
        text
    }

    fn reference_figures(&self) -> impl Iterator<Item = &Figure> {
        self.sittings.iter().flat_map(|sitting| &sitting.reference)
    }

    /// Returns the workloads in the order in which they were measured.
    fn benches(&self) -> Vec<&str> {
        let mut benches = Vec::new();
        for figure in self.reference_figures() {
            if !benches.contains(&figure.bench.as_str()) {
                benches.push(figure.bench.as_str());
            }
        }
        benches
    }

    fn median_of(&self, side: Side, bench: &str, cpus: u64) -> Option<f64> {
        median(self.sittings.iter().filter_map(|sitting| {
            let figure = find(side(sitting), bench, cpus)?;
            Some(figure.value)
        }))
    }

    fn failures_of(&self, side: Side, bench: &str, cpus: u64) -> u64 {
        let sittings = self.sittings.iter();
        sittings
            .filter_map(|sitting| find(side(sitting), bench, cpus))
            .map(|figure| figure.failures)
            .sum()
    }

    /// Returns how many times better our own is: the median of the sittings' ratios, as
    /// what else the host does meets both sides of a sitting.
    fn ratio(&self, bench: &str, cpus: u64) -> Option<f64> {
        median(self.sittings.iter().filter_map(|sitting| {
            let own = find(&sitting.own, bench, cpus)?;
            let reference = find(&sitting.reference, bench, cpus)?;
            Some(self.measure.ratio(own.value, reference.value))
        }))
    }
}

/// Formats a number with two decimals.
fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// One side of a sitting.
type Side = fn(&Sitting) -> &Vec<Figure>;

fn find<'a>(figures: &'a [Figure], bench: &str, cpus: u64) -> Option<&'a Figure> {
    figures
        .iter()
        .find(|figure| figure.bench == bench && figure.cpus == cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(bench: &str, cpus: u64, value: f64) -> Figure {
        Figure {
            bench: bench.into(),
            cpus,
            value,
            failures: 1,
        }
    }

    fn comparison(sittings: Vec<Sitting>) -> Comparison {
        Comparison {
            measure: Measure::Pairs,
            reference: "linux-6.1",
            own: "muster",
            sittings,
        }
    }

    fn two_sides() -> Comparison {
        let sitting = |reference, own| Sitting {
            reference: vec![
                figure("churn", 1, reference),
                figure("churn", 8, 2.0 * reference),
                figure("xfree", 8, 3.0 * reference),
            ],
            own: vec![figure("churn", 1, own)],
        };
        comparison(vec![
            sitting(1e6, 20e6),
            sitting(2e6, 30e6),
            sitting(4e6, 40e6),
        ])
    }

    #[test]
    fn figures_are_told_from_other_lines() {
        let text = "muster_bench: round 1 of 7\n\
            {\"bench\":\"churn\",\"allocator\":\"a\",\"cpus\":2,\"pairs_per_s\":7,\"failures\":1}\n\
            {\"bench\":\"churn\",\"allocator\":\"b\",\"cpus\":2,\"pairs_per_s\":8.5,\"failures\":0}\n\
            \x20  1.250000   0 INFO  bench    \
            {\"bench\":\"mixed\",\"allocator\":\"a\",\"cpus\":1,\"instructions_per_pair\":40.25}\n\
            {\"bench\":\"sizes\",\"allocator\":\"a\",\"cpus\":1,\"bytes\":9,\"failures\":0}\n";
        let figures = read(text, "a", Measure::Pairs).unwrap();
        assert_eq!(figures, [figure("churn", 2, 7.0)]);
        let counted = Figure {
            failures: 0,
            ..figure("mixed", 1, 40.25)
        };
        assert_eq!(read(text, "a", Measure::Instructions), Ok(vec![counted]));
        assert_eq!(read(text, "c", Measure::Pairs), Ok(vec![]));
    }

    #[test]
    fn what_only_begins_like_a_figure_is_an_error() {
        for text in [
            "{\"bench\":\"churn\",\"allo",
            "{\"bench\":7,\"allocator\":\"a\",\"cpus\":2,\"pairs_per_s\":7,\"failures\":0}",
            "{\"bench\":\"churn\",\"allocator\":\"a\",\"pairs_per_s\":7,\"failures\":0}",
            "{\"bench\":\"churn\",\"allocator\":\"a\",\"cpus\":2,\"pairs_per_s\":\"7\",\"failures\":0}",
        ] {
            assert_eq!(read(text, "a", Measure::Pairs), Err(NoFigure(text.into())));
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([2.0, 1.0]), Some(2.0));
        assert_eq!(median([]), None);
    }

    #[test]
    fn ratios_are_those_of_the_sittings() {
        let comparison = two_sides();
        // 20, 15 and 10: not the ratio of the medians of other sittings.
        assert_eq!(comparison.ratio("churn", 1), Some(15.0));
        assert_eq!(comparison.ratio("churn", 8), None);
        assert_eq!(comparison.failures(), 12);
        assert_eq!(Measure::Instructions.ratio(30.0, 240.0), 8.0);
    }

    #[test]
    fn the_table_has_three_lines_for_two_sides() {
        let table = "                            1 CPU     8 CPUs\n\
            churn       linux-6.1         2.00      4.00\n\
            \u{20}           muster           30.00         –\n\
            \u{20}           ratio            15.00         –\n\
            xfree       linux-6.1            –      6.00\n\
            \u{20}           muster               –         –\n\
            \u{20}           ratio                –         –\n";
        assert_eq!(two_sides().table(), table);
        let mut alone = two_sides();
        for sitting in &mut alone.sittings {
            sitting.own.clear();
        }
        assert_eq!(alone.table().lines().count(), 3);
    }

    #[test]
    fn json_can_be_read_again() {
        let comparison = two_sides();
        let text = comparison.json();
        let own = read(&text, "muster", Measure::Pairs).unwrap();
        assert_eq!((own[0].value, own[0].failures), (30e6, 3));
        let reference = read(&text, "linux-6.1", Measure::Pairs).unwrap();
        assert_eq!(reference.len(), 3);
        let line = text.lines().last().unwrap();
        assert!(line.contains("\"ratio_to_linux-6.1\":15.0"), "{line}");
        assert!(line.contains("\"ns_per_pair\":33.33,"), "{line}");
    }
}
