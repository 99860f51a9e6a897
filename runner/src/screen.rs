//! What a person sees: the log, coloured by level where that is wanted.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal, Write};

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
}

impl Screen {
    /// With colour if it is a terminal that has some and `NO_COLOR`
    /// (<https://no-color.org>) does not say otherwise.
    pub fn new() -> Self {
        let unset = |name| env::var_os(name).is_none_or(|value| value.is_empty());
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            colour: io::stdout().is_terminal() && unset("NO_COLOR") && !dumb,
        }
    }

    /// Writes one line at once.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn line(self, text: &str) -> io::Result<()> {
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

    /// A line of the runner's own, green for good and red for bad news.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn news(self, good: bool, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match self.colour {
            true => writeln!(stdout, "{}{text}{RESET}", if good { GREEN } else { RED }),
            false => writeln!(stdout, "{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_by_level_and_only_if_wanted() {
        let text = "  0.000001  0 ERROR panic   oh";
        assert_eq!(Screen { colour: false }.painted(text), text);
        let screen = Screen { colour: true };
        assert_eq!(screen.painted(text), format!("{RED}{text}{RESET}"));
        let info = "  0.000001  0 INFO  roll    hi";
        assert_eq!(screen.painted(info), info);
        let passed = "  0.000001  0 INFO  verdict verdict: passed";
        assert!(screen.painted(passed).starts_with(GREEN));
        assert!(screen.painted("SeaBIOS").starts_with(DIM));
    }
}
