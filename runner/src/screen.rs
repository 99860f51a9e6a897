//! What a person sees: the log, coloured by level where that is wanted.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal, Write};

use crate::arguments::Run;
use crate::line::{Level, Line};

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[1;32m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// The standard output.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    colour: bool,
    /// Whether it is for programs: figures only, and all else goes to standard error.
    figures_only: bool,
}

impl Screen {
    /// With colour if it is a terminal that has some and `NO_COLOR`
    /// (<https://no-color.org>) does not say otherwise.
    pub fn new() -> Self {
        let unset = |name| env::var_os(name).is_none_or(|value| value.is_empty());
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            colour: io::stdout().is_terminal() && unset("NO_COLOR") && !dumb,
            figures_only: false,
        }
    }

    /// The same, or with figures only, if the run is asked for these.
    pub fn for_run(run: &Run) -> Self {
        if run.words.iter().any(|word| word == "format=json") {
            return Self {
                colour: false,
                figures_only: true,
            };
        }
        Self::new()
    }

    /// Writes one line at once.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn line(self, text: &str) -> io::Result<()> {
        if self.figures_only {
            return match figures(text) {
                Some(figures) => writeln!(io::stdout().lock(), "{figures}"),
                None => writeln!(io::stderr().lock(), "{text}"),
            };
        }
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", self.painted(text))?;
        stdout.flush()
    }

    /// A line of the log in its level's colour. Other lines are dim: they are
    /// firmware's.
    fn painted(self, text: &str) -> Cow<'_, str> {
        if !self.colour {
            return text.into();
        }
        let colour = match Line::parse(text) {
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
        if self.figures_only {
            return writeln!(io::stderr().lock(), "{text}");
        }
        writeln!(io::stdout().lock(), "{text}")
    }

    /// A line of the runner's own, green for good and red for bad news.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn news(self, good: bool, text: &str) -> io::Result<()> {
        if self.figures_only {
            return writeln!(io::stderr().lock(), "{text}");
        }
        let mut stdout = io::stdout().lock();
        match self.colour {
            true => writeln!(stdout, "{}{text}{RESET}", if good { GREEN } else { RED }),
            false => writeln!(stdout, "{text}"),
        }
    }
}

/// The figures in a line of the kernel's log, which are a JSON object, if it is one of those.
fn figures(text: &str) -> Option<&str> {
    let line = Line::parse(text)?;
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
            figures_only: false,
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
