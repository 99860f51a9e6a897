//! How many cases passed, failed and were skipped, and what is said of each.

use std::io::{self, Write};

use anyhow::Result;

use super::trial::TrialResult;
use crate::cases::Case;
use crate::events;
use crate::screen::Screen;
use crate::workspace::shown;

#[derive(Debug, Default)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    skipped: usize,
    /// Boots of the cases that passed.
    pub boots: usize,
}

impl Counts {
    pub fn add(&mut self, case: &Case, report: &TrialResult, screen: Screen) -> Result<()> {
        match report {
            TrialResult::Ok {
                time,
                boots,
                figures,
            } => {
                self.passed += 1;
                self.boots += boots;
                writeln!(
                    io::stdout(),
                    "ok      {:<28} {:>6.2} s",
                    case.name,
                    time.as_secs_f64()
                )?;
                for figure in figures {
                    writeln!(io::stdout(), "        {figure}")?;
                }
            }
            TrialResult::Skipped(why) => {
                self.skipped += 1;
                writeln!(io::stdout(), "skipped {:<28} {why}", case.name)?;
            }
            TrialResult::Failed {
                why,
                arguments,
                log,
                tail,
            } => {
                self.failed += 1;
                screen.news(false, &format!("FAILED  {:<28} {why}", case.name))?;
                for text in tail {
                    screen.line(text)?;
                }
                let arguments = events::typed(arguments.iter().map(String::as_str));
                writeln!(io::stdout(), "        the whole log: {}", shown(log))?;
                writeln!(io::stdout(), "        once more: just run-smp {arguments}")?;
            }
        }
        Ok(())
    }

    /// Returns the closing line.
    pub fn line(&self) -> String {
        let line = format!("{} passed, {} failed", self.passed, self.failed);
        match self.skipped {
            0 => line,
            skipped => format!("{line}, {skipped} skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_counts() {
        let counts = Counts {
            passed: 3,
            failed: 1,
            skipped: 0,
            boots: 5,
        };
        assert_eq!(counts.line(), "3 passed, 1 failed");
        assert_eq!(
            Counts {
                skipped: 2,
                ..counts
            }
            .line(),
            "3 passed, 1 failed, 2 skipped"
        );
    }
}
