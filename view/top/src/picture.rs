//! The picture: a header, a row for each CPU, whose memory is, the last lines of the log, and the keys.

use muster_events::{Level, Outcome, Phase};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Sparkline, Wrap};

use crate::machine::{Cpu, Machine, Part, Rates, Stage};
use crate::numbers::{bar as filled, bytes, clock, count, percent};

/// The smallest terminal that there is a picture for, in columns and rows.
const MIN_SIZE: (u16, u16) = (74, 16);

/// Rows that the log has at least where it reports a bad end.
const LAST_WORDS: u16 = 9;

/// What the keys do.
const HELP: &[(&str, &str)] = &[
    ("q", "end the run; the exit status is its verdict"),
    ("Ctrl-C", "end QEMU at once, without a verdict"),
    (
        "p, space",
        "hold the picture, or go on; the kernel does not stop",
    ),
    (
        "s",
        "sort by operations, interrupts, calls, caches, stack, CPU",
    ),
    ("up, down", "scroll; also PgUp, PgDn, Home, End"),
    ("", ""),
    (
        "operations/s",
        "allocations, frees and others, checked to the byte",
    ),
    ("calls/s", "calls to other CPUs; serves/s: from others"),
    ("cached", "free blocks and free frames in its caches"),
    ("stack", "the most of it that was ever in use"),
];

/// By what the CPUs are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Their numbers.
    #[default]
    Cpu,
    /// Operations a second, the most first, as all that follow.
    Operations,
    /// Interrupts a second.
    Interrupts,
    /// Calls a second, sent and served.
    Calls,
    /// What they cache.
    Caches,
    /// The most that their stacks had.
    Stack,
}

impl Order {
    /// Returns the next one.
    pub fn next(self) -> Self {
        match self {
            Self::Cpu => Self::Operations,
            Self::Operations => Self::Interrupts,
            Self::Interrupts => Self::Calls,
            Self::Calls => Self::Caches,
            Self::Caches => Self::Stack,
            Self::Stack => Self::Cpu,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Operations => "operations",
            Self::Interrupts => "interrupts",
            Self::Calls => "calls",
            Self::Caches => "caches",
            Self::Stack => "stack",
        }
    }

    fn key(self, cpu: &Cpu) -> u64 {
        let rates = cpu.rates().unwrap_or_default();
        match self {
            Self::Cpu => 0,
            Self::Operations => rates.operations,
            Self::Interrupts => rates.interrupts,
            Self::Calls => rates.sent.saturating_add(rates.served),
            Self::Caches => cpu.blocks.saturating_add(cpu.frames),
            Self::Stack => cpu.stack.0,
        }
    }
}

/// How it is looked at.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By what the CPUs are sorted.
    pub order: Order,
    /// How many of them are above the first row.
    pub offset: usize,
    /// How many rows there were for them when the picture was last drawn.
    pub rows: usize,
    /// Whether the keys are explained.
    pub is_help: bool,
    /// Whether the picture is held.
    pub is_held: bool,
    /// What the person asked for and waits for, in words.
    pub waits_for: Option<String>,
    /// For how many seconds the kernel has said nothing, if those are many.
    pub silence: Option<u64>,
    /// The words in which the work was asked for.
    pub asked: String,
}

/// Colours, if they are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Whether they are.
    pub has_colour: bool,
}

impl Palette {
    fn ink(self, colour: Color) -> Style {
        match self.has_colour {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    fn good(self) -> Style {
        self.ink(Color::Green).add_modifier(Modifier::BOLD)
    }

    fn bad(self) -> Style {
        self.ink(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn warning(self) -> Style {
        self.ink(Color::Yellow)
    }

    /// Returns the terminal's own style.
    fn plain(self) -> Style {
        Style::new().fg(Color::Reset)
    }

    fn faint(self) -> Style {
        match self.has_colour {
            true => Style::new().fg(Color::DarkGray),
            false => Style::new(),
        }
    }

    fn head(self) -> Style {
        self.plain().add_modifier(Modifier::BOLD)
    }
}

/// Draws what is known of the run.
pub fn draw(frame: &mut Frame<'_>, machine: &Machine, view: &mut View, palette: Palette) {
    let area = frame.area();
    if area.width < MIN_SIZE.0 || area.height < MIN_SIZE.1 {
        let words = format!(
            "just top needs a terminal of {} columns and {} rows; this one has {} and {}. q quits.",
            MIN_SIZE.0, MIN_SIZE.1, area.width, area.height
        );
        frame.render_widget(Paragraph::new(words).wrap(Wrap { trim: true }), area);
        return;
    }
    let is_bad = machine.ended_badly();
    let cpus = u16::try_from(machine.cpus.len()).unwrap_or(u16::MAX);
    // Its title, the columns' names, and the sum.
    let table = cpus.saturating_add(3);
    let memory = if is_bad { 0 } else { 5 };
    // What was said last matters most then, and else only if there is room.
    let log = if is_bad { LAST_WORDS + 1 } else { 0 };
    let rest = area.height.saturating_sub(3 + memory + log);
    let [header, table, memory, log, footer] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(table.min(rest)),
        Constraint::Length(memory),
        Constraint::Min(log),
        Constraint::Length(1),
    ])
    .areas(area);
    Painter { palette }.header(frame, header, machine, view);
    Painter { palette }.table(frame, table, machine, view);
    Painter { palette }.memory(frame, memory, machine);
    Painter { palette }.log(frame, log, machine);
    Painter { palette }.footer(frame, footer, view);
    if view.is_help {
        Painter { palette }.help(frame, area);
    }
}

/// The columns of the table, as wide as they are at these columns in all.
struct Columns {
    spark: u16,
    is_wide: bool,
}

impl Columns {
    /// All but the sparkline, with a column before each.
    const NARROW: u16 = 4 + 17 + 7 + 1 + 7 + 8 + 9 + 7 + 11;

    /// Where what is cached stands in two columns, of blocks and of frames.
    const WIDE: u16 = Self::NARROW + 7;

    fn of(width: u16) -> Self {
        let is_wide = width >= 100;
        let others = if is_wide { Self::WIDE } else { Self::NARROW };
        Self {
            spark: width.saturating_sub(others).min(48),
            is_wide,
        }
    }
}

#[derive(Clone, Copy)]
struct Painter {
    palette: Palette,
}

impl Painter {
    fn header(self, frame: &mut Frame<'_>, area: Rect, machine: &Machine, view: &View) {
        let palette = self.palette;
        let [first, second] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(1)]).areas(area);
        let up = format!("up {} ", clock(machine.us));
        let [left, right] = Layout::horizontal([
            Constraint::Fill(1),
            Constraint::Length(u16::try_from(up.len()).unwrap_or(u16::MAX)),
        ])
        .areas(first);
        let mut words = String::from("  ");
        if !machine.version.is_empty() {
            words = format!(
                "  Muster {}   {} CPUs   ",
                machine.version,
                machine.cpus.len()
            );
        }
        words += &match machine.workload.as_str() {
            "" => view.asked.clone(),
            workload if workload == view.asked => view.asked.clone(),
            workload => format!("{workload}, of {}", view.asked),
        };
        let name = " muster top ";
        let room = usize::from(left.width).saturating_sub(name.len() + 1);
        let line = Line::from(vec![
            Span::styled(name, palette.head().add_modifier(Modifier::REVERSED)),
            Span::raw(clip(&words, room)),
        ]);
        frame.render_widget(line, left);
        frame.render_widget(Line::from(up), right);
        let (style, words) = self.state(machine, view);
        let words = clip(&format!(" {words}"), usize::from(second.width));
        frame.render_widget(Line::styled(words, style), second);
    }

    /// Returns the state of the run, in words.
    fn state(self, machine: &Machine, view: &View) -> (Style, String) {
        let palette = self.palette;
        let of = machine.cpus.len();
        if let Some(refusal) = &machine.refusal {
            let words = format!("no CPU was put to work: {refusal}");
            return (palette.bad(), words);
        }
        if machine.is_over() {
            return match &machine.stage {
                Stage::Over(Outcome::Passed, _) => (
                    palette.good(),
                    "passed: all was as it should be; q quits".into(),
                ),
                Stage::Over(Outcome::Failed, reason) => {
                    (palette.bad(), format!("FAILED: {reason}"))
                }
                Stage::Over(Outcome::Refused, reason) => {
                    (palette.bad(), format!("REFUSED to start: {reason}"))
                }
                Stage::Over(Outcome::Fault, reason) => (palette.bad(), format!("FAULT: {reason}")),
                _ => (
                    palette.bad(),
                    "the kernel is gone, without a verdict; its last words:".into(),
                ),
            };
        }
        if let Some(malformed) = &machine.malformed {
            return (palette.bad(), format!("not understood: {malformed}"));
        }
        if let Some(words) = &view.waits_for {
            return (palette.warning(), words.clone());
        }
        if let Some(seconds) = view.silence {
            let words = format!("the kernel has said nothing for {seconds} s; Ctrl-C ends QEMU");
            return (palette.warning(), words);
        }
        let absent: Vec<_> = machine
            .absent()
            .map(|(index, _)| index.to_string())
            .collect();
        if machine.corrupt > 0 {
            return (
                palette.bad(),
                format!("corrupt: {}", several(machine.corrupt, "block")),
            );
        }
        if !absent.is_empty() {
            let words = format!(
                "{} of {of} CPUs did not come: {}",
                absent.len(),
                absent.join(", ")
            );
            return (palette.bad(), words);
        }
        let (warnings, errors) = machine.warnings;
        let so_far = match (warnings, errors) {
            (0, 0) => "nothing wrong so far".into(),
            (warnings, 0) => format!("{} in the log", several(warnings, "warning")),
            (_, errors) => format!("{} in the log", several(errors, "error")),
        };
        match &machine.stage {
            Stage::Starting => (palette.plain(), "QEMU starts".into()),
            Stage::Rising => (palette.plain(), format!("{of} CPUs are coming up")),
            Stage::Up => (palette.plain(), format!("all {of} CPUs are up")),
            Stage::AtWork if warnings + errors > 0 => {
                (palette.warning(), format!("at work: {so_far}"))
            }
            Stage::AtWork => (palette.good(), format!("at work: {so_far}")),
            Stage::Done(None) => (
                palette.plain(),
                "done; the kernel settles the account".into(),
            ),
            Stage::Done(Some(error)) => (palette.warning(), error.clone()),
            // They are above.
            Stage::Over(..) | Stage::Gone => (palette.plain(), String::new()),
        }
    }

    /// Draws a line across, with words in it.
    fn title(self, frame: &mut Frame<'_>, area: Rect, left: String, right: String) -> Rect {
        let block = Block::new()
            .borders(Borders::TOP)
            .border_style(self.palette.faint())
            .title(Line::styled(left, self.palette.head()))
            .title(Line::styled(right, self.palette.plain()).right_aligned());
        let inner = block.inner(area);
        frame.render_widget(block, area);
        inner
    }

    fn table(self, frame: &mut Frame<'_>, area: Rect, machine: &Machine, view: &mut View) {
        if area.height < 4 {
            return;
        }
        let mut cpus: Vec<_> = machine.cpus.iter().collect();
        cpus.sort_by_key(|(_, cpu)| std::cmp::Reverse(view.order.key(cpu)));
        view.rows = usize::from(area.height - 3);
        view.offset = view.offset.min(cpus.len().saturating_sub(view.rows));
        let shown = cpus.iter().skip(view.offset).take(view.rows);
        let mut right = format!(" by {} ", view.order.name());
        if cpus.len() > view.rows {
            let last = view.offset + view.rows.min(cpus.len());
            right = format!(
                " {}-{last} of {}, by {} ",
                view.offset + 1,
                cpus.len(),
                view.order.name()
            );
        }
        let area = self.title(frame, area, " CPUs ".into(), right);
        let columns = Columns::of(area.width);
        let mut rows = area.rows();
        if let Some(row) = rows.next() {
            let spark = usize::from(columns.spark);
            let cached = match columns.is_wide {
                true => " blocks frames",
                false => " cached",
            };
            let text = format!(
                "{:>4} {:<16} {:>6} {:<spark$} {:>6} {:>7} {:>8}{cached} {:>10}",
                "cpu", "doing", "ops/s", "", "irqs/s", "calls/s", "serves/s", "stack"
            );
            frame.render_widget(Line::styled(text, self.palette.head()), row);
        }
        for (index, cpu) in shown {
            if let Some(row) = rows.next() {
                self.row(frame, row, &columns, **index, cpu);
            }
        }
        if let Some(row) = rows.next() {
            self.sum(frame, row, &columns, machine);
        }
    }

    fn row(self, frame: &mut Frame<'_>, area: Rect, columns: &Columns, index: u32, cpu: &Cpu) {
        let palette = self.palette;
        let (style, doing) = self.doing(cpu);
        let mut words = vec![
            Span::raw(format!("{index:>4} ")),
            Span::styled(format!("{doing:<16}"), style),
        ];
        if cpu.doing.is_some() {
            words.extend(self.figures(columns, cpu.rates(), (cpu.blocks, cpu.frames)));
            let (used, limit) = cpu.stack;
            let (full, empty) = filled(used, limit, 5);
            let share = percent(used, limit);
            let style = match share {
                90.. => palette.bad(),
                75.. => palette.warning(),
                _ => palette.ink(Color::Blue),
            };
            words.push(Span::raw(" "));
            words.push(Span::styled(full, style));
            words.push(Span::styled(empty, palette.faint()));
            words.push(Span::raw(format!(" {share:>3}%")));
        }
        frame.render_widget(Line::from(words), area);
        let spark = Rect {
            x: area.x + 4 + 17 + 7 + 1,
            width: columns.spark,
            ..area
        };
        // The latest at the right, to the most of its own: how fast it is the number says.
        let history = cpu.history(usize::from(spark.width));
        let most = history.iter().copied().max().unwrap_or(0);
        let mut data = vec![None; usize::from(spark.width).saturating_sub(history.len())];
        data.extend(history.into_iter().map(Some));
        let sparkline = Sparkline::default()
            .data(data)
            .max(most.max(1))
            .absent_value_symbol(" ")
            .bar_set(bar::Set {
                empty: "▁",
                ..bar::NINE_LEVELS
            })
            .style(palette.ink(Color::Green));
        if cpu.doing.is_some() {
            frame.render_widget(sparkline, spark);
        }
    }

    /// Returns what it is doing; or its phase of bring-up, if it is not online yet.
    fn doing(self, cpu: &Cpu) -> (Style, String) {
        let palette = self.palette;
        if cpu.is_absent {
            return (palette.bad(), format!("absent: {}", cpu.phase.name()));
        }
        match cpu.doing.as_deref() {
            Some(doing) => {
                let style = match doing {
                    "idle" => palette.faint(),
                    "at its prompt" => palette.ink(Color::Blue),
                    "answering a call" => palette.ink(Color::Cyan),
                    _ => palette.plain(),
                };
                (style, doing.chars().take(16).collect())
            }
            None if cpu.phase == Phase::Parked => (palette.faint(), "-".into()),
            None => (palette.plain(), cpu.phase.name().into()),
        }
    }

    /// Returns the numbers of a row, from operations to what is cached; with room for the sparkline.
    fn figures(
        self,
        columns: &Columns,
        rates: Option<Rates>,
        (blocks, frames): (u64, u64),
    ) -> Vec<Span<'static>> {
        let spark = usize::from(columns.spark);
        let number = |number: fn(&Rates) -> u64| match &rates {
            Some(rates) => count(number(rates)),
            None => "-".into(),
        };
        let cached = match columns.is_wide {
            true => format!("{:>6} {:>6}", bytes(blocks), bytes(frames)),
            false => format!("{:>6}", bytes(blocks.saturating_add(frames))),
        };
        vec![
            Span::styled(
                format!(" {:>6}", number(|rates| rates.operations)),
                self.palette.head(),
            ),
            Span::raw(format!(
                " {:spark$} {:>6} {:>7} {:>8} {cached}",
                "",
                number(|rates| rates.interrupts),
                number(|rates| rates.sent),
                number(|rates| rates.served),
            )),
        ]
    }

    fn sum(self, frame: &mut Frame<'_>, area: Rect, columns: &Columns, machine: &Machine) {
        let mut at_work = machine.cpus.values().filter(|cpu| cpu.doing.is_some());
        let blocks = at_work.clone().map(|cpu| cpu.blocks).sum();
        let frames = at_work.clone().map(|cpu| cpu.frames).sum();
        let most = at_work
            .clone()
            .map(|cpu| percent(cpu.stack.0, cpu.stack.1))
            .max();
        let rates = at_work
            .any(|cpu| cpu.rates().is_some())
            .then(|| machine.rates());
        let mut words = vec![Span::raw(format!("{:>4} {:<16}", "all", ""))];
        words.extend(self.figures(columns, rates, (blocks, frames)));
        if let Some(most) = most {
            words.push(Span::raw(format!(" {:>5} {most:>3}%", "most")));
        }
        frame.render_widget(Line::from(words).style(self.palette.head()), area);
    }

    fn memory(self, frame: &mut Frame<'_>, area: Rect, machine: &Machine) {
        if area.height < 2 {
            return;
        }
        let right = match machine.memory_bytes {
            0 => String::new(),
            all => format!(" {} in all ", bytes(all)),
        };
        let area = self.title(frame, area, " memory ".into(), right);
        let [left, right] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
        let parts = machine.parts();
        let places = left.rows().chain(right.rows());
        for (part, place) in parts.iter().zip(places) {
            self.part(frame, place, part, machine.memory_bytes);
        }
    }

    fn part(self, frame: &mut Frame<'_>, area: Rect, part: &Part, whole: u64) {
        let columns = usize::from(area.width.saturating_sub(29));
        let (full, empty) = filled(part.bytes, whole, columns);
        let colour = match part.name {
            "free" => Color::Green,
            "heap, live" => Color::Blue,
            "heap, cached" => Color::Cyan,
            "heap, rest" => Color::LightBlue,
            "mappings" => Color::Magenta,
            "page tables" => Color::Yellow,
            "stacks" => Color::LightMagenta,
            _ => Color::Gray,
        };
        let line = Line::from(vec![
            Span::raw(format!(" {:<14} ", part.name)),
            Span::styled(full, self.palette.ink(colour)),
            Span::styled(empty, self.palette.faint()),
            Span::raw(format!(
                " {:>5} {:>3}%",
                bytes(part.bytes),
                percent(part.bytes, whole)
            )),
        ]);
        frame.render_widget(line, area);
    }

    fn log(self, frame: &mut Frame<'_>, area: Rect, machine: &Machine) {
        if area.height < 2 {
            return;
        }
        let area = self.title(frame, area, " log ".into(), String::new());
        let lines: Vec<(Style, &str)> = match machine.ended_badly() && !machine.words.is_empty() {
            // The runner's has the symbols behind addresses.
            true => machine
                .words
                .iter()
                .map(|line| (self.weight(line), line.as_str()))
                .collect(),
            false => (machine.log.iter())
                .map(|line| (self.level(line.level), line.text.as_str()))
                .collect(),
        };
        let surplus = lines.len().saturating_sub(usize::from(area.height));
        for ((style, text), place) in lines.iter().skip(surplus).zip(area.rows()) {
            let clipped = clip(text, usize::from(area.width));
            frame.render_widget(Line::styled(clipped, *style), place);
        }
    }

    fn level(self, level: Level) -> Style {
        match level {
            Level::Error => self.palette.bad(),
            Level::Warn => self.palette.warning(),
            _ => self.palette.plain(),
        }
    }

    /// Returns the style of a line that the kernel wrote for people.
    fn weight(self, line: &str) -> Style {
        match line.split_ascii_whitespace().nth(2) {
            Some("ERROR") => self.level(Level::Error),
            Some("WARN") => self.level(Level::Warn),
            _ => self.palette.plain(),
        }
    }

    fn footer(self, frame: &mut Frame<'_>, area: Rect, view: &View) {
        let keys = [
            ("q", "quit"),
            ("p", if view.is_held { "go on" } else { "hold" }),
            ("s", "sort"),
            ("\u{2191}\u{2193}", "scroll"),
            ("?", "help"),
        ];
        let mut words = Vec::new();
        for (key, what) in keys {
            words.push(Span::styled(
                format!(" {key} "),
                self.palette.head().add_modifier(Modifier::REVERSED),
            ));
            words.push(Span::raw(format!(" {what}  ")));
        }
        frame.render_widget(Line::from(words), area);
        if view.is_held {
            let held = Line::styled("held ", self.palette.warning().add_modifier(Modifier::BOLD));
            frame.render_widget(held.right_aligned(), area);
        }
    }

    fn help(self, frame: &mut Frame<'_>, area: Rect) {
        let rows = u16::try_from(HELP.len())
            .unwrap_or(u16::MAX)
            .saturating_add(2);
        let area = area.centered(Constraint::Length(74), Constraint::Length(rows));
        let lines: Vec<_> = HELP
            .iter()
            .map(|(key, what)| {
                Line::from(vec![
                    Span::styled(format!(" {key:<12} "), self.palette.head()),
                    Span::raw(*what),
                ])
            })
            .collect();
        let block = Block::bordered().title(Line::styled(" just top ", self.palette.head()));
        frame.render_widget(Clear, area);
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }
}

/// Formats a number of something.
fn several(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// Clips a line to the room that there is, with a mark where it is not all.
fn clip(text: &str, width: usize) -> String {
    match text.chars().count() {
        length if length > width => {
            let kept: String = text.chars().take(width.saturating_sub(1)).collect();
            kept + "…"
        }
        _ => text.into(),
    }
}
