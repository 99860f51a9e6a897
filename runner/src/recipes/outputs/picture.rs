//! The README's picture: a run in a terminal, shortened to what tells the story.

use std::fmt::Write;

use anyhow::{Result, ensure};
use regex_lite::Regex;

/// The case that is pictured, and what a person types for the same.
pub const CASE: &str = "cpus-8";
const TYPED: &str = "$ just run-smp 8 seconds=2";

/// Stands for lines that are left out.
const GAP: &str = "…";

/// The lines that the picture shows, in the log's order, as regular expressions.
const SHOWN: &[&str] = &[
    "muster  Muster ",
    "CPUs, .* usable of",
    "mapped as planned",
    "roll    roll: ",
    "roll    microseconds",
    r"roll    (cpu lapic|( +\d+){2}( +\d+m?){7}$)",
    "reclaim reclaimed",
    "call    to ",
    "mapping a shootdown",
    "stress  workload",
    r"stress  [a-z]+ +\d+ +\d+ .*\d$",
    "account: adds up",
    "registers: on every CPU",
    "rights: ",
    "audit: clean",
    "verdict: ",
];

/// Width of a column and height of a line at [`FONT_SIZE`], in pixels, of the fonts that are asked for.
const COLUMN: f64 = 8.43;
const LINE: usize = 18;
const GAP_LINE: usize = 10;
const FONT_SIZE: usize = 14;
const COLUMNS: f64 = 80.0;
const MARGIN: usize = 14;

/// Returns the part of a log that stands in the picture.
///
/// # Errors
/// If a line that tells something is not in the log.
pub fn lines(log: &str) -> Result<Vec<&str>> {
    let shown: Vec<_> = SHOWN
        .iter()
        .map(|pattern| Regex::new(pattern))
        .collect::<Result<_, _>>()?;
    for (pattern, regex) in SHOWN.iter().zip(&shown) {
        ensure!(
            log.lines().any(|line| regex.is_match(line)),
            "no line `{pattern}` for the picture"
        );
    }
    let mut lines = vec![TYPED];
    for line in log.lines() {
        if shown.iter().any(|regex| regex.is_match(line)) {
            lines.push(line);
        } else if lines.last() != Some(&GAP) {
            lines.push(GAP);
        }
    }
    Ok(lines)
}

/// Returns the picture of these lines, as an SVG file.
pub fn draw(lines: &[&str]) -> String {
    let width = (COLUMNS * COLUMN) as usize + 2 * MARGIN;
    let height_of = |line: &&str| if *line == GAP { GAP_LINE } else { LINE };
    let height = lines.iter().map(height_of).sum::<usize>() + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"A run in a terminal\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#16181d\"/>\n\
         <g font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', \
         monospace\" font-size=\"{FONT_SIZE}\">\n"
    );
    let mut y = MARGIN;
    for line in lines {
        y += height_of(line);
        let spans = spans(line);
        // To write to a String cannot fail.
        let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{y}\">{spans}</text>");
    }
    svg + "</g>\n</svg>\n"
}

/// Returns the lines that a picture shows, without its colours.
pub fn text(svg: &str) -> String {
    let lines = svg.lines().filter(|line| line.starts_with("<text "));
    let text = lines.map(|line| {
        let parts = line.split('<').filter_map(|part| part.split_once('>'));
        parts.map(|(_, words)| words).collect::<String>() + "\n"
    });
    text.collect::<String>()
        .replace('\u{a0}', " ")
        .replace("&lt;", "<")
        .replace("&amp;", "&")
}

fn spans(line: &str) -> String {
    let span = |colour: &str, words: &str| {
        // No-break spaces: others are joined into one, unless a viewer heeds what forbids it.
        let words = words
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace(' ', "\u{a0}");
        format!("<tspan fill=\"#{colour}\">{words}</tspan>")
    };
    // Of a line of the log: the time and the CPU, the level, who says it, and what.
    let ends = [14, 20, 28];
    let is_cut = |end: &usize| line.is_char_boundary(*end);
    if line == TYPED || line == GAP || !ends.iter().all(is_cut) {
        return span(if line == GAP { "7d8294" } else { "ffffff" }, line);
    }
    let message = match &line[ends[2]..] {
        words if words.ends_with("passed") || words.contains("clean") => span("9ece6a", words),
        words => span("d6d9e0", words),
    };
    span("7d8294", &line[..ends[0]])
        + &span("7aa2f7", &line[ends[0]..ends[1]])
        + &span("9aa0b3", &line[ends[1]..ends[2]])
        + &message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_says_what_the_log_says() {
        let line = "  1.198767  0 INFO  verdict verdict: passed";
        let shown = [TYPED, GAP, "  0.004271  0 INFO  boot    a < b & c", line];
        assert_eq!(text(&draw(&shown)), shown.join("\n") + "\n");
    }

    #[test]
    fn a_picture_of_half_a_story_is_refused() {
        let error = lines("  0.013932  0 INFO  muster  Muster 0.1.0 on x").unwrap_err();
        assert!(error.to_string().contains("usable of"));
    }
}
