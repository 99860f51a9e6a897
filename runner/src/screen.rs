//! What a person sees: the log, coloured by level where that is wanted.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal, Write};

use crate::arguments::{Events, Run};
use crate::line::{Level, LogLine};

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[1;32m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// The standard output.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    colour: bool,
    /// What it is for.
    shows: Shows,
}

/// What goes to the standard output; all else goes to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// The log, for people.
    Log,
    /// For programs: figures.
    Figures,
    /// For programs: events.
    Events,
}

impl Screen {
    /// Creates one with colour if it is a terminal that has some and `NO_COLOR`
    /// (<https://no-color.org>) does not say otherwise.
    pub fn new() -> Self {
        let unset = |name| env::var_os(name).is_none_or(|value| value.is_empty());
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            colour: io::stdout().is_terminal() && unset("NO_COLOR") && !dumb,
            shows: Shows::Log,
        }
    }

    /// Returns the same, or with figures or events only, if the run is asked for these.
    pub fn for_run(run: &Run) -> Self {
        let shows = if run.events == Events::Stdout {
            Shows::Events
        } else if run.words.iter().any(|word| word == "format=json") {
            Shows::Figures
        } else {
            return Self::new();
        };
        Self {
            colour: false,
            shows,
        }
    }

    /// Writes an event, if that is what is asked for.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn event(self, line: &str) -> io::Result<()> {
        match self.shows {
            Shows::Events => writeln!(io::stdout().lock(), "{line}"),
            Shows::Log | Shows::Figures => Ok(()),
        }
    }

    /// Returns where a person looks: the standard output, if events have not taken it.
    pub fn beside_events(self) -> Box<dyn Write> {
        match self.shows {
            Shows::Events => Box::new(io::stderr()),
            Shows::Log | Shows::Figures => Box::new(io::stdout()),
        }
    }

    /// Writes one line at once.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn line(self, text: &str) -> io::Result<()> {
        let figures = figures(text).filter(|_| self.shows == Shows::Figures);
        if let Some(figures) = figures {
            return writeln!(io::stdout().lock(), "{figures}");
        }
        if self.shows != Shows::Log {
            return writeln!(io::stderr().lock(), "{text}");
        }
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", self.painted(text))?;
        stdout.flush()
    }

    /// Returns a line of the log in its level's colour. Other lines are dim: they are firmware's.
    fn painted(self, text: &str) -> Cow<'_, str> {
        if !self.colour {
            return text.into();
        }
        let colour = match LogLine::parse(text) {
            Some(line) if line.message == "verdict: passed" => GREEN,
            Some(line) => match line.level {
                Level::Error => RED,
                Level::Warn => YELLOW,
                Level::Info => return text.into(),
                Level::Debug | Level::Trace => DIM,
            },
            None => DIM,
        };
        format!("{colour}{text}{RESET}").into()
    }

    /// Lines of the runner's own that are neither good nor bad.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn note(self, text: &str) -> io::Result<()> {
        if self.shows != Shows::Log {
            return writeln!(io::stderr().lock(), "{text}");
        }
        writeln!(io::stdout().lock(), "{text}")
    }

    /// Prints a line of the runner's own, green for good and red for bad news.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn news(self, good: bool, text: &str) -> io::Result<()> {
        if self.shows != Shows::Log {
            return writeln!(io::stderr().lock(), "{text}");
        }
        let mut stdout = io::stdout().lock();
        match self.colour {
            true => writeln!(stdout, "{}{text}{RESET}", if good { GREEN } else { RED }),
            false => writeln!(stdout, "{text}"),
        }
    }
}

/// Returns the figures in a line of the kernel's log, which are a JSON object, if it is one of those.
fn figures(text: &str) -> Option<&str> {
    let line = LogLine::parse(text)?;
    line.message.starts_with('{').then_some(line.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_by_level_and_only_if_wanted() {
        let text = "  0.000001  0 ERROR panic   oh";
        let screen = |colour| Screen {
            colour,
            shows: Shows::Log,
        };
        assert_eq!(screen(false).painted(text), text);
        let screen = screen(true);
        assert_eq!(screen.painted(text), format!("{RED}{text}{RESET}"));
        let info = "  0.000001  0 INFO  roll    hi";
        assert_eq!(screen.painted(info), info);
        let passed = "  0.000001  0 INFO  verdict verdict: passed";
        assert!(screen.painted(passed).starts_with(GREEN));
        assert!(screen.painted("SeaBIOS").starts_with(DIM));
    }

    #[test]
    fn figures_are_told_from_the_rest() {
        let text = r#"  1.000001  0 INFO  bench   {"bench":"mixed","failures":0}"#;
        assert_eq!(figures(text), Some(r#"{"bench":"mixed","failures":0}"#));
        assert_eq!(figures("  1.000001  0 INFO  bench   mixed, CPUs: 8"), None);
        assert_eq!(figures("{}"), None);
    }
}
