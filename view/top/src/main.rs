//! `top`: starts the kernel at work and draws its events, until somebody has seen enough. The runner
//! starts it, with arguments that it has checked.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use muster_top::{Kernel, Machine, Palette, Said, View, draw};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The exit status where nobody reads the output any more, as shells have it (128 + SIGPIPE).
const UNREAD: u8 = 141;

/// The exit status after Ctrl-C, as shells have it (128 + SIGINT).
const INTERRUPTED: u8 = 130;

/// How often keys and the kernel are looked after.
const TICK: Duration = Duration::from_millis(50);

/// How often a picture is drawn at most.
const REFRESH: Duration = Duration::from_millis(200);

/// How long a kernel at work may say nothing before that is said: it speaks four times a second, if its
/// host has time for it.
const SILENCE: Duration = Duration::from_secs(5);

/// What the runner's own lines begin with: its verdict is the last.
const RUNNER: &str = "muster: ";

/// How many lines of a bad end stay on the terminal.
const LAST_WORDS: usize = 20;

/// The columns of a picture that is printed.
const COLUMNS: u16 = 80;

/// What is asked for.
struct Asked {
    /// The workloads, and for how many seconds.
    workloads: String,
    seconds: Option<String>,
    is_once: bool,
    /// The runner's arguments.
    rest: Vec<String>,
}

impl Asked {
    fn parse(arguments: impl Iterator<Item = String>) -> Self {
        let mut asked = Self {
            workloads: "soak".into(),
            seconds: None,
            is_once: false,
            rest: Vec::new(),
        };
        for argument in arguments {
            if let Some(workloads) = argument.strip_prefix("stress=") {
                asked.workloads = workloads.into();
            } else if let Some(seconds) = argument.strip_prefix("seconds=") {
                asked.seconds = Some(seconds.into());
            } else if argument == "--once" {
                asked.is_once = true;
            } else {
                asked.rest.push(argument);
            }
        }
        asked
    }

    /// Returns the command for the kernel's prompt.
    fn order(&self) -> String {
        match &self.seconds {
            Some(seconds) => format!("stress {} {seconds}", self.workloads),
            None => format!("stress {}", self.workloads),
        }
    }

    /// Returns the same for people.
    fn words(&self) -> String {
        match &self.seconds {
            Some(seconds) => format!("{}, {seconds} s", self.workloads),
            None => self.workloads.clone(),
        }
    }
}

fn main() -> ExitCode {
    match run(&Asked::parse(env::args().skip(1))) {
        Ok(status) => ExitCode::from(status),
        Err(error) if error.downcast_ref().is_some_and(is_unread) => ExitCode::from(UNREAD),
        Err(error) => {
            eprintln!("muster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_unread(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Starts the kernel, shows it, and gives the runner's exit status.
fn run(asked: &Asked) -> Result<u8> {
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, interrupt.clone())
            .context("cannot watch for Ctrl-C")?;
    }
    let mut top = Top {
        kernel: Kernel::start(&asked.rest)?,
        machine: Machine::default(),
        view: View {
            asked: asked.words(),
            ..View::default()
        },
        held: None,
        interrupt,
        is_ending: false,
        heard: Instant::now(),
    };
    top.kernel.enter(&asked.order());
    // A runner that has nothing to start says why, on the terminal as it is.
    while !top.has_begun() {
        top.listen(TICK);
        if top.is_over() {
            for line in &top.machine.words {
                eprintln!("{line}");
            }
            return top.status();
        }
    }
    if asked.is_once {
        top.print_once()?;
    } else {
        let mut terminal = ratatui::try_init().context("cannot draw on the terminal")?;
        let shown = top.show(&mut terminal);
        ratatui::try_restore().context("cannot put the terminal back")?;
        shown?;
    }
    top.report_end();
    top.status()
}

/// The program.
struct Top {
    kernel: Kernel,
    machine: Machine,
    view: View,
    /// What is shown while the picture is held.
    held: Option<Machine>,
    /// Whether a signal came.
    interrupt: Arc<AtomicBool>,
    /// Whether the kernel has been asked to end.
    is_ending: bool,
    /// When the kernel last said something.
    heard: Instant,
}

impl Top {
    /// Returns whether the kernel's machine has started.
    fn has_begun(&self) -> bool {
        self.machine.has_begun()
    }

    fn is_over(&self) -> bool {
        self.kernel.is_over()
    }

    /// Takes all that is said, and waits for it so long if nothing is.
    fn listen(&mut self, timeout: Duration) {
        let mut timeout = timeout;
        while let Some(said) = self.kernel.listen(timeout) {
            match said {
                Said::Event(line) => self.machine.take(&line),
                Said::Words(line) => self.machine.hear(line),
                Said::Over => {
                    self.machine.end();
                    // There is nothing to hold any more.
                    self.held = None;
                    return;
                }
            }
            self.heard = Instant::now();
            timeout = Duration::ZERO;
        }
        if self.machine.is_done() {
            self.end();
        }
        if self.interrupt.load(Ordering::Relaxed) {
            self.kernel.kill();
        }
    }

    /// Has the kernel end by itself.
    fn end(&mut self) {
        if !self.is_ending {
            self.is_ending = true;
            self.kernel.enter("off");
        }
    }

    /// Prints one picture, once there is one, and has the kernel end.
    fn print_once(&mut self) -> Result<()> {
        while !(self.is_ending || self.is_over() || self.machine.is_worth_a_picture()) {
            self.listen(TICK);
        }
        if self.machine.refusal.is_some() {
            self.finish();
            return Ok(());
        }
        let rows = u16::try_from(self.machine.cpus.len()).context("too many CPUs")?;
        // With five lines of the log.
        let backend = TestBackend::new(COLUMNS, rows.saturating_add(17));
        let mut terminal = Terminal::new(backend)?;
        let palette = Palette { has_colour: false };
        terminal.draw(|frame| draw(frame, &self.machine, &mut self.view, palette))?;
        let text = terminal.backend().to_string();
        let mut stdout = io::stdout().lock();
        // Without the keys, which are the last line.
        for line in text.lines().take(usize::from(rows) + 16) {
            // The backend shows each line in quotation marks.
            let line = line.strip_prefix('"').unwrap_or(line);
            let line = line.strip_suffix('"').unwrap_or(line);
            writeln!(stdout, "{}", line.trim_end())?;
        }
        self.finish();
        Ok(())
    }

    /// Has the kernel end, and waits for that.
    fn finish(&mut self) {
        self.end();
        while !self.is_over() {
            self.listen(TICK);
        }
    }

    /// Shows what happens until somebody has seen enough.
    fn show(&mut self, terminal: &mut DefaultTerminal) -> Result<()> {
        let palette = Palette {
            has_colour: has_colour(),
        };
        let mut drawn: Option<Instant> = None;
        let mut wants_to_go = false;
        loop {
            self.listen(Duration::ZERO);
            if self.is_over() && (wants_to_go || self.interrupt.load(Ordering::Relaxed)) {
                return Ok(());
            }
            let silence = self.heard.elapsed();
            let is_long = silence > SILENCE && !self.is_over();
            self.view.silence = is_long.then_some(silence.as_secs());
            if drawn.is_none_or(|drawn| drawn.elapsed() >= REFRESH) {
                let (machine, view) = (self.held.as_ref().unwrap_or(&self.machine), &mut self.view);
                view.is_held = self.held.is_some();
                terminal.draw(|frame| draw(frame, machine, view, palette))?;
                drawn = Some(Instant::now());
            }
            if !event::poll(TICK)? {
                continue;
            }
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    if self.press(key) {
                        wants_to_go = true;
                    }
                }
                Event::Resize(..) => {}
                _ => continue,
            }
            drawn = None;
        }
    }

    /// Does what a key asks for. Gives whether that is the end.
    fn press(&mut self, key: KeyEvent) -> bool {
        let page = self.view.rows.max(1);
        let view = &mut self.view;
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                self.interrupt.store(true, Ordering::Relaxed);
            }
            KeyCode::Char('?' | 'h') => view.is_help = !view.is_help,
            KeyCode::Esc if view.is_help => view.is_help = false,
            KeyCode::Char('q') | KeyCode::Esc => {
                view.waits_for = Some("the kernel finishes, and settles the account".into());
                self.held = None;
                self.end();
                return true;
            }
            KeyCode::Char('p' | ' ') => {
                self.held = match self.held {
                    None if !self.machine.is_over() => Some(self.machine.clone()),
                    _ => None,
                }
            }
            KeyCode::Char('s') => view.order = view.order.next(),
            KeyCode::Up | KeyCode::Char('k') => view.offset = view.offset.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => view.offset += 1,
            KeyCode::PageUp => view.offset = view.offset.saturating_sub(page),
            KeyCode::PageDown => view.offset += page,
            KeyCode::Home => view.offset = 0,
            KeyCode::End => view.offset = self.machine.cpus.len(),
            _ => {}
        }
        false
    }

    /// Says on the terminal, as it was before, how it ended.
    fn report_end(&self) {
        let words = &self.machine.words;
        let is_expected = !self.machine.ended_badly() || self.interrupt.load(Ordering::Relaxed);
        let verdict = words.iter().rposition(|line| line.starts_with(RUNNER));
        let from = match verdict {
            Some(verdict) if is_expected => verdict,
            _ => words.len().saturating_sub(LAST_WORDS),
        };
        for line in words.iter().skip(from) {
            eprintln!("{line}");
        }
        if let Some(refusal) = &self.machine.refusal {
            eprintln!("muster: no CPU was put to work: {refusal}");
        }
        if let Some(malformed) = &self.machine.malformed {
            eprintln!("muster: {malformed}");
        }
    }

    /// Returns the exit status: the runner's, which is the verdict's.
    fn status(&mut self) -> Result<u8> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Ok(INTERRUPTED);
        }
        let Some(code) = self.kernel.wait()?.code() else {
            bail!("the runner was ended by a signal");
        };
        let code = u8::try_from(code).unwrap_or(1);
        Ok(match code {
            // A line that was not understood may have been anything.
            0 if self.machine.malformed.is_some() || self.machine.refusal.is_some() => 1,
            code => code,
        })
    }
}

/// Returns whether the terminal has colours and they are wanted (<https://no-color.org>).
fn has_colour() -> bool {
    let unset = |name| env::var_os(name).is_none_or(|value| value.is_empty());
    let term = env::var("TERM").unwrap_or_default();
    unset("NO_COLOR") && !["", "dumb"].contains(&term.as_str()) && !term.starts_with("vt")
}
