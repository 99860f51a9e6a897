//! What charts are drawn on: an SVG whose colours are the page's, and the look that all axes share.

use std::error::Error;
use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{
    Circle, Cross, EmptyElement, PathElement, Polygon, Rectangle, Text, TriangleMarker,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, TextStyle};

/// How wide charts are that take the page's whole width, those of which two stand side by side, and those
/// of which many do.
pub const WIDE: u32 = 880;
pub const HALF: u32 = 430;
pub const SMALL: u32 = 205;

/// The size of a chart's text, which `plotters` has 1.24 times too large.
const TEXT: f64 = 12.5 * 1.24;

/// Stands for the colour of the text.
pub const INK: RGBColor = RGBColor(1, 0, 0);

/// Stands for what should not draw attention: what is free, or waits.
pub const FAINT: RGBColor = RGBColor(1, 0, 1);

/// Stands for grey.
pub const GREY: RGBColor = RGBColor(1, 0, 2);

/// Stands for the page.
pub const PAPER: RGBColor = RGBColor(1, 0, 3);

/// Stands for grids, and for text that is not the first to be read.
const GRID: RGBColor = RGBColor(1, 0, 4);
pub const SOFT: RGBColor = RGBColor(1, 0, 5);

/// Stand for text on colours: on those that are light by day and by night, and on blue.
pub const BLACK: RGBColor = RGBColor(1, 0, 6);
pub const ON_BLUE: RGBColor = RGBColor(1, 0, 7);

/// Stand for the others: blue, vermilion, green, sky, orange, purple, yellow.
pub const COLOUR: [RGBColor; 7] = [
    RGBColor(2, 0, 0),
    RGBColor(2, 0, 1),
    RGBColor(2, 0, 2),
    RGBColor(2, 0, 3),
    RGBColor(2, 0, 4),
    RGBColor(2, 0, 5),
    RGBColor(2, 0, 6),
];

/// Returns each colour with the name of the page's variable that it stands for.
fn variables() -> impl Iterator<Item = (RGBColor, String)> {
    let named = [
        (INK, "ink"),
        (FAINT, "faint"),
        (GREY, "grey"),
        (PAPER, "paper"),
        (GRID, "grid"),
        (SOFT, "soft"),
        (BLACK, "black"),
        (ON_BLUE, "on-blue"),
    ];
    let named = named.map(|(colour, name)| (colour, name.to_owned()));
    let numbered = COLOUR.into_iter().enumerate();
    let numbered = numbered.map(|(number, colour)| (colour, format!("c{number}")));
    named.into_iter().chain(numbered)
}

/// Returns the CSS of a colour.
pub fn variable(colour: RGBColor) -> String {
    let of_it = variables().find(|(other, _)| *other == colour);
    of_it.map_or("currentColor".into(), |(_, name)| format!("var(--{name})"))
}

/// A chart as the page shows it.
#[derive(Debug)]
pub struct Chart {
    /// Its name in the page.
    pub id: String,
    /// What it is of, in a few words.
    pub title: String,
    /// How to read it.
    pub about: String,
    /// The drawing.
    pub svg: String,
}

/// What drawing ends in.
pub type Drawn<T = ()> = Result<T, Box<dyn Error>>;

/// What is drawn on.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a chart of this size.
///
/// # Errors
/// If something of it can't be drawn.
pub fn draw(
    id: &str,
    (title, about): (&str, &str),
    (width, height): (u32, u32),
    chart: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<Chart> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        let drawn = chart(&area).and_then(|()| Ok(area.present()?));
        drawn.map_err(|error| anyhow!("{title}: {error}"))?;
    }
    // It takes the width that there is, and has a description for screen readers.
    let own = format!("width=\"{width}\" height=\"{height}\"");
    let role = format!("role=\"img\" aria-labelledby=\"{id}-title {id}-about\"");
    let svg = svg.replacen(&own, &role, 1);
    let svg = match svg.split_once('>') {
        Some((tag, rest)) => format!(
            "{tag}>\n<title id=\"{id}-title\">{}</title>\n<desc id=\"{id}-about\">{}</desc>{rest}",
            escaped(title),
            escaped(about)
        ),
        None => svg,
    };
    Ok(Chart {
        id: id.into(),
        title: title.into(),
        about: about.into(),
        svg: with_variables(svg),
    })
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}

/// Puts the page's variables in the place of what stands for them.
fn with_variables(svg: String) -> String {
    variables().fold(svg, |svg, (colour, name)| {
        let RGBColor(red, green, blue) = colour;
        let stand_in = format!("\"#{red:02X}{green:02X}{blue:02X}\"");
        svg.replace(&stand_in, &format!("\"var(--{name})\""))
    })
}

/// Makes the style of text in this colour, with this anchor.
pub fn text(colour: RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    let style: TextStyle<'static> = ("sans-serif", TEXT).into_font().color(&colour);
    style.pos(Pos::new(horizontal, vertical))
}

/// An axis with marks where they are wanted.
#[derive(Clone, Debug)]
pub struct Axis {
    range: Range<f64>,
    marks: Vec<f64>,
    is_logarithmic: bool,
}

impl Axis {
    /// Returns where it ends.
    pub fn end(&self) -> f64 {
        self.range.end
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let place = |value: f64| match self.is_logarithmic {
            true => value.ln(),
            false => value,
        };
        let linear = RangedCoordf64::from(place(self.range.start)..place(self.range.end));
        linear.map(&place(*value), limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.marks.clone(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// Makes an axis from 0 to the maximum, with some four marks that are easily read.
pub fn linear(most: f64) -> Axis {
    let most = most.max(f64::MIN_POSITIVE);
    let power = 10f64.powf((most / 4.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    // What is rounded up may be a little more than the most.
    let count = |step: &f64| (most / step * 1.000_001).floor();
    let step = steps.into_iter().find(|step| count(step) <= 4.0);
    let step = step.unwrap_or(most);
    let marks = (0..=count(&step) as u32).map(|number| f64::from(number) * step);
    Axis {
        range: 0.0..most,
        marks: marks.collect(),
        is_logarithmic: false,
    }
}

/// Makes an axis from 0 to `count`, with a mark at each quarter.
pub fn cells(count: u32) -> Axis {
    Axis {
        range: 0.0..f64::from(count),
        marks: (0..=4)
            .map(|quarter| f64::from(count * quarter) / 4.0)
            .collect(),
        is_logarithmic: false,
    }
}

/// Makes a logarithmic axis with marks at some five powers of ten; it ends at half a power.
pub fn powers(least: f64, most: f64) -> Axis {
    let (least, most) = (least.max(1.0), most.max(2.0));
    let first = (2.0 * least.log10()).floor() / 2.0;
    let last = ((2.0 * most.log10()).ceil() / 2.0).max(first + 0.5);
    let powers = first.ceil() as i32..=last.floor() as i32;
    let every = powers.clone().count().div_ceil(6);
    let marks = powers.step_by(every).map(|power| 10f64.powi(power));
    Axis {
        range: 10f64.powf(first)..10f64.powf(last),
        marks: marks.collect(),
        is_logarithmic: true,
    }
}

/// Makes a logarithmic axis of numbers of CPUs, with a mark at each.
pub fn doublings(cpus: &[u32]) -> Axis {
    let marks: Vec<_> = cpus.iter().map(|&cpus| f64::from(cpus)).collect();
    let least = marks.iter().copied().fold(f64::MAX, f64::min);
    let most = marks.iter().copied().fold(0.0, f64::max);
    Axis {
        // Some room, so that no mark is on the edge.
        range: least / 1.15..most.max(least) * 1.15,
        marks,
        is_logarithmic: true,
    }
}

/// Returns the distance of the named rows, of `count` rows: no more are named than can be read.
pub fn named(count: usize) -> usize {
    count.div_ceil(40).max(1)
}

/// Makes an axis of rows, the first on top: a row's middle is half more than its number.
pub fn rows(count: usize) -> Axis {
    let middles = (0..count).step_by(named(count)).map(|row| row as f64 + 0.5);
    Axis {
        range: count.max(1) as f64..0.0,
        marks: middles.collect(),
        is_logarithmic: false,
    }
}

/// Makes an axis of columns, as wide as 1 each, with a mark in the middle of each.
pub fn columns(count: usize) -> Axis {
    let middles = (0..count).map(|column| column as f64 + 0.5);
    Axis {
        range: 0.0..count.max(1) as f64,
        marks: middles.collect(),
        is_logarithmic: false,
    }
}

/// An axis's name with its unit, and how its numbers are written.
pub type Words<'a> = (&'a str, &'a dyn Fn(&f64) -> String);

/// Room around a plot, in pixels. Below there is as much as the horizontal axis needs.
pub struct Margins {
    /// Above.
    pub top: u32,
    /// To the left, for the vertical axis's marks and, where it has one, its name.
    pub left: u32,
    /// To the right, for names at the ends of lines.
    pub right: u32,
}

/// A chart between two axes.
pub type Plot<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Axis, Axis>>;

/// Draws the axes, with a faint line for each mark of those that `grid` asks for.
///
/// # Errors
/// If they can't be drawn.
pub fn axes<'a>(
    area: &Area<'a>,
    margins: &Margins,
    (x, x_words): (Axis, Words<'_>),
    (y, y_words): (Axis, Words<'_>),
    grid: (bool, bool),
) -> Drawn<Plot<'a>> {
    let mut plot = ChartBuilder::on(area)
        .margin_top(margins.top)
        .margin_right(margins.right)
        .x_label_area_size(44)
        .y_label_area_size(margins.left)
        .build_cartesian_2d(x, y)?;
    let mut mesh = plot.configure_mesh();
    mesh.bold_line_style(GRID)
        .light_line_style(GRID)
        .axis_style(GREY)
        .set_all_tick_mark_size(4)
        .label_style(text(INK, HPos::Center, VPos::Center))
        .axis_desc_style(text(SOFT, HPos::Center, VPos::Center))
        .x_desc(x_words.0)
        .x_label_formatter(x_words.1)
        .y_label_formatter(y_words.1);
    if !y_words.0.is_empty() {
        mesh.y_desc(y_words.0);
    }
    if !grid.0 {
        mesh.disable_x_mesh();
    }
    if !grid.1 {
        mesh.disable_y_mesh();
    }
    mesh.draw()?;
    drop(mesh);
    Ok(plot)
}

/// Writes a text at a distance in pixels from a point.
///
/// # Errors
/// If it can't be drawn.
pub fn write(
    plot: &Plot<'_>,
    place: (f64, f64),
    off: (i32, i32),
    words: &str,
    style: &TextStyle<'static>,
) -> Drawn {
    let text = Text::new(words.to_owned(), off, style.clone());
    Ok(plot
        .plotting_area()
        .draw(&(EmptyElement::at(place) + text))?)
}

/// Fills a rectangle between two corners, which is at least a pixel wide and high.
///
/// # Errors
/// If it can't be drawn.
pub fn fill(plot: &Plot<'_>, from: (f64, f64), to: (f64, f64), colour: RGBColor) -> Drawn {
    let ((left, top), (right, bottom)) = (plot.backend_coord(&from), plot.backend_coord(&to));
    let corners = [(0, 0), ((right - left).max(1), (bottom - top).max(1))];
    let rectangle = EmptyElement::at(from) + Rectangle::new(corners, colour.filled());
    Ok(plot.plotting_area().draw(&rectangle)?)
}

/// What tells one line's points from another's, whatever their colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A disc.
    Disc,
    /// A ring.
    Ring,
    /// A square.
    Square,
    /// A triangle.
    Triangle,
    /// A diamond.
    Diamond,
    /// A cross that lies.
    Cross,
    /// A cross that stands.
    Plus,
}

/// Draws a mark at a place.
///
/// # Errors
/// If it can't be drawn.
pub fn mark(plot: &Plot<'_>, at: (f64, f64), mark: Mark, colour: RGBColor) -> Drawn {
    let area = plot.plotting_area();
    let (filled, line) = (colour.filled(), colour.stroke_width(2));
    match mark {
        Mark::Disc => area.draw(&Circle::new(at, 5, filled)),
        Mark::Ring => {
            area.draw(&Circle::new(at, 4, PAPER.filled()))?;
            area.draw(&Circle::new(at, 4, line))
        }
        Mark::Triangle => area.draw(&TriangleMarker::new(at, 6, filled)),
        Mark::Cross => area.draw(&Cross::new(at, 4, line)),
        Mark::Square => {
            let square = Rectangle::new([(-4, -4), (4, 4)], filled);
            area.draw(&(EmptyElement::at(at) + square))
        }
        Mark::Diamond => {
            let diamond = Polygon::new(vec![(0, -6), (6, 0), (0, 6), (-6, 0)], filled);
            area.draw(&(EmptyElement::at(at) + diamond))
        }
        Mark::Plus => {
            let lying = PathElement::new(vec![(-5, 0), (5, 0)], line);
            let standing = PathElement::new(vec![(0, -5), (0, 5)], line);
            area.draw(&(EmptyElement::at(at) + lying + standing))
        }
    }?;
    Ok(())
}

/// Boxes with what they stand for, in a line on top.
///
/// # Errors
/// If it can't be drawn.
pub fn legend(area: &Area<'_>, left: i32, entries: &[(RGBColor, &str)]) -> Drawn {
    let mut x = left;
    let style = text(INK, HPos::Left, VPos::Center);
    for (colour, words) in entries {
        area.draw(&Rectangle::new([(x, 3), (x + 12, 15)], colour.filled()))?;
        area.draw(&Text::new((*words).to_owned(), (x + 18, 9), style.clone()))?;
        // Letters are about half as wide as they are high.
        x += 40 + words.chars().count() as i32 * 7;
    }
    Ok(())
}

/// Places for names beside the ends of lines, so that none hides another and none is beyond the edges: as
/// near to where they belong as their height allows, in pixels from there. The names come by the places of
/// their ends, highest first.
pub fn spread(ends: &[i32], height: i32, (top, bottom): (i32, i32)) -> Vec<i32> {
    let mut places = ends.to_vec();
    // Each pass pushes neighbours apart by half of what they lack; this number is enough for a
    // handful.
    for _ in 0..200 {
        for upper in 0..places.len().saturating_sub(1) {
            let lack = height - (places[upper + 1] - places[upper]);
            if lack > 0 {
                places[upper] -= (lack + 1) / 2;
                places[upper + 1] += lack / 2;
            }
        }
    }
    // Down from the upper edge as far as must be, and then up from the lower one.
    let mut least = top;
    for place in &mut places {
        *place = (*place).max(least);
        least = *place + height;
    }
    let mut most = bottom;
    for place in places.iter_mut().rev() {
        *place = (*place).min(most);
        most = *place - height;
    }
    let shifts = places.iter().zip(ends).map(|(place, end)| place - end);
    shifts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_marks_that_are_easily_read() {
        assert_eq!(linear(93.0).marks, [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(linear(226.0).marks.last(), Some(&200.0));
        assert_eq!(linear(1.0).marks, [0.0, 0.5, 1.0]);
        assert_eq!(linear(3.0 * 0.1 + 0.1).marks.len(), 5);
        assert_eq!(linear(0.0).marks[0], 0.0);
        let axis = powers(33.0, 4500.0);
        assert_eq!(axis.marks, [100.0, 1000.0, 10_000.0]);
        assert!(axis.range.start <= 33.0 && axis.range.end >= 4500.0);
        assert_eq!(doublings(&[1, 2, 8]).marks, [1.0, 2.0, 8.0]);
        assert_eq!(rows(3).marks, [0.5, 1.5, 2.5]);
        assert!(rows(288).marks.len() <= 40);
    }

    #[test]
    fn names_keep_apart() {
        assert_eq!(spread(&[10, 50], 14, (0, 99)), [0, 0]);
        let moved = |places: &[i32], edges| {
            let shifts = spread(places, 14, edges);
            let moved: Vec<_> = places.iter().zip(shifts).map(|(a, b)| a + b).collect();
            let is_apart = moved.windows(2).all(|pair| pair[1] - pair[0] >= 14);
            assert!(is_apart, "{moved:?}");
            moved
        };
        assert!(moved(&[50, 52, 53, 90], (0, 99))[0] < 50);
        assert_eq!(moved(&[1, 2, 60], (0, 99)), [0, 14, 60]);
        assert_eq!(moved(&[10, 97, 99], (0, 99)), [10, 85, 99]);
    }

    #[test]
    fn colours_are_the_page_s() {
        let chart = draw("a", ("a < b", "1 & 2"), (WIDE, 100), |area| {
            for (colour, _) in variables() {
                area.draw(&Rectangle::new([(0, 0), (9, 9)], colour.filled()))?;
            }
            Ok(())
        })
        .unwrap();
        let svg = chart.svg;
        assert!(!svg.contains('#'), "{svg}");
        assert!(
            svg.contains("var(--c6)") && svg.contains("var(--ink)"),
            "{svg}"
        );
        assert!(
            svg.contains("<title id=\"a-title\">a &lt; b</title>"),
            "{svg}"
        );
        assert!(
            svg.contains("<desc id=\"a-about\">1 &amp; 2</desc>"),
            "{svg}"
        );
        assert!(svg.contains("viewBox=\"0 0 880 100\""), "{svg}");
        assert_eq!(variable(COLOUR[6]), "var(--c6)");
    }
}
