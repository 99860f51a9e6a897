//! How figures are printed: rows of a table in 52 columns, which is what a kernel's log line has beside
//! its time and place, or lines of JSON, for which alone there is floating point.

use core::fmt;

use muster_events::{Event, Figure};

use crate::figures::Spread;

/// Whoever shows the report.
pub trait Console {
    /// Shows a line of the report.
    fn line(&mut self, text: fmt::Arguments<'_>);

    /// Shows how far the work is.
    fn progress(&mut self, text: fmt::Arguments<'_>);

    /// Tells programs, whatever is shown.
    fn emit(&mut self, _event: Event<'_>) {}
}

/// An allocator's figures in one workload on some CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The workload's name.
    pub bench: &'static str,
    /// The allocator's name.
    pub allocator: &'static str,
    /// On how many CPUs.
    pub cpus: usize,
    /// Pairs of an allocation and a free, of all CPUs together, a second: median and range of the
    /// rounds.
    pub pairs_per_s: Spread,
    /// What 99.9 % of sampled steps didn't exceed, in ns; `None` if none was sampled.
    pub p999_ns: Option<u64>,
    /// The median of the rounds' ratios to the baseline, in thousandths; `None` without one.
    pub ratio: Option<u64>,
    /// The pairs of the CPU that did the fewest, to those of the one that did the most, in thousandths:
    /// the median of the rounds; `None` if one did none.
    pub fairness: Option<u64>,
    /// Allocations answered with null, in all rounds.
    pub failures: u64,
}

impl Row {
    /// Returns the CPU time for a pair, in hundredths of ns: all CPUs' time by all CPUs' pairs.
    /// `None` if there are none.
    pub fn hundredth_ns_per_pair(&self) -> Option<u64> {
        let time = self.cpus as u64 * 100_000_000_000;
        time.checked_div(self.pairs_per_s.median)
    }

    /// Returns the row's figure, for programs.
    pub fn figure(&self) -> Figure<'static> {
        let is_heap = !self.bench.starts_with("frame-");
        let thousandths = |number| number as f64 / 1e3;
        Figure {
            bench: self.bench.into(),
            allocator: self.allocator.into(),
            cpus: self.cpus as u32,
            pairs_per_s: self.pairs_per_s.median,
            ns_per_pair: (self.hundredth_ns_per_pair()).map(|number| number as f64 / 1e2),
            p999_ns: self.p999_ns,
            ratio_to_linked_list: self.ratio.filter(|_| is_heap).map(thousandths),
            fairness: self.fairness.map(thousandths),
            failures: self.failures,
        }
    }
}

/// The heading of the rows.
pub const HEADING: &str = "              1000/s           range   ratio   p99.9";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, low, high } = self.pairs_per_s;
        write!(f, "{:<12}{:>8}", self.allocator, Short::thousands(median))?;
        write!(
            f,
            " {:>7}-{:<7}",
            Short::thousands(low),
            Short::thousands(high)
        )?;
        match self.ratio {
            Some(ratio) => write!(f, " {:>7}", Short::ratio(ratio))?,
            None => write!(f, " {:>7}", "-")?,
        }
        match self.p999_ns {
            Some(ns) => write!(f, " {:>7}", Short::time(ns)),
            None => write!(f, " {:>7}", "-"),
        }
    }
}

/// A number in few characters: as many decimals as it has room for, and a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    thousandths: u64,
    unit: &'static str,
}

impl Short {
    /// Writes a number in thousands.
    pub const fn thousands(number: u64) -> Self {
        Self {
            thousandths: number,
            unit: "",
        }
    }

    /// Writes a ratio that is in thousandths.
    pub const fn ratio(thousandths: u64) -> Self {
        Self {
            thousandths,
            unit: "",
        }
    }

    /// Writes a time in ns.
    pub const fn time(ns: u64) -> Self {
        let (thousandths, unit) = match ns {
            0..10_000 => (ns.saturating_mul(1000), "ns"),
            10_000..10_000_000 => (ns, "us"),
            _ => (ns / 1000, "ms"),
        };
        Self { thousandths, unit }
    }
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.thousandths / 1000, self.thousandths % 1000);
        let mut text = Text::default();
        let _ = match whole {
            _ if self.unit == "ns" => fmt::write(&mut text, format_args!("{whole}ns")),
            0..100 => fmt::write(
                &mut text,
                format_args!("{whole}.{:02}{}", rest / 10, self.unit),
            ),
            100..1000 => fmt::write(
                &mut text,
                format_args!("{whole}.{}{}", rest / 100, self.unit),
            ),
            _ => fmt::write(&mut text, format_args!("{whole}{}", self.unit)),
        };
        f.pad(text.as_str())
    }
}

/// A short text that needs no heap.
#[derive(Default)]
struct Text {
    bytes: [u8; 24],
    length: usize,
}

impl Text {
    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        let place = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;

    use muster_events::EventLine;

    const ROW: Row = Row {
        bench: "mixed",
        allocator: "linked_list",
        cpus: 8,
        pairs_per_s: Spread {
            median: 104_250,
            low: 98_001,
            high: 1_110_999,
        },
        p999_ns: Some(73_456),
        ratio: Some(1000),
        fairness: Some(875),
        failures: 3,
    };

    #[test]
    fn a_row_is_told_in_json() {
        let json = |row: &Row| EventLine::of_value(&row.figure()).unwrap();
        assert_eq!(
            json(&ROW).as_str(),
            r#"{"bench":"mixed","allocator":"linked_list","cpus":8,"pairs_per_s":104250,"ns_per_pair":76738.6,"p999_ns":73456,"ratio_to_linked_list":1.0,"fairness":0.875,"failures":3}"#
        );
        let row = Row {
            bench: "frame-pair",
            p999_ns: None,
            pairs_per_s: Spread::default(),
            fairness: None,
            ..ROW
        };
        let json = json(&row);
        let nulls =
            r#""ns_per_pair":null,"p999_ns":null,"ratio_to_linked_list":null,"fairness":null,"#;
        assert!(json.as_str().contains(nulls), "{}", json.as_str());
    }

    #[test]
    fn rows_and_heading_have_52_columns() {
        let longest = Row {
            allocator: "buddy_system",
            pairs_per_s: Spread {
                median: 1_234_567_000,
                low: 1_234_567_000,
                high: 1_234_567_000,
            },
            ratio: Some(1_234_567_000),
            ..ROW
        };
        let none = Row {
            p999_ns: None,
            ratio: None,
            ..ROW
        };
        assert_eq!(HEADING.len(), 52);
        for row in [ROW, longest, none] {
            assert_eq!(row.to_string().len(), 52, "{row}");
        }
        assert_eq!(
            ROW.to_string(),
            "linked_list    104.2   98.00-1110       1.00 73.45us"
        );
    }

    #[test]
    fn short_numbers_keep_what_matters() {
        let time = |ns| Short::time(ns).to_string();
        assert_eq!(time(0), "0ns");
        assert_eq!(time(9_999), "9999ns");
        assert_eq!(time(10_000), "10.00us");
        assert_eq!(time(9_999_999), "9999us");
        assert_eq!(time(73_456_789), "73.45ms");
        assert_eq!(Short::ratio(312_345).to_string(), "312.3");
        assert_eq!(format!("{:>7}", Short::ratio(1_005)), "   1.00");
    }
}
