//! What is expected of a run, and the first way in which it was not so.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use muster_events::Record;
use regex_lite::Regex;

use crate::cases::{Case, Debugged, Limit};
use crate::line::LogLine;
use crate::recipes::debugger;
use crate::session::Verdict;

/// Returns how many instructions the log says that Muster takes for a pair.
fn instructions(bench: &str, log: &str) -> Option<f64> {
    log.lines().find_map(|text| {
        let mut words = LogLine::parse(text)?.message.split_whitespace();
        (words.next()? == bench && words.next()? == "muster").then_some(())?;
        words.next()?.parse().ok()
    })
}

/// Returns the figures that the case has limits for, in words.
pub fn figures<'a>(case: &'a Case, log: &'a str) -> impl Iterator<Item = String> + 'a {
    case.limits.iter().filter_map(|Limit { bench, most }| {
        let taken = instructions(bench, log)?;
        Some(format!(
            "{bench:<12} {taken:>8.2} instructions a pair, at most {most}"
        ))
    })
}

/// Returns an event that the run should have written and did not.
pub fn untold(case: &Case, records: &[Record<'_>]) -> Option<String> {
    let is_told = |name: &str| records.iter().any(|record| record.event.name() == name);
    let untold = case.tells.iter().find(|name| !is_told(name))?;
    Some(format!("no event of the run is a {untold}"))
}

/// Returns the first answer that GDB did not give.
pub fn unanswered(debugged: &Debugged, folder: &Path, log: &str) -> Result<Option<String>> {
    let words =
        fs::read_to_string(folder.join(debugger::WORDS)).context("cannot read GDB's words")?;
    if let Some(pattern) = unmatched(debugged.answers, &words)? {
        return Ok(Some(format!("GDB does not say {pattern}")));
    }
    for pattern in debugged.agrees {
        let pattern = Regex::new(pattern)?;
        let said: Vec<_> = (log.lines())
            .filter_map(|line| Some(pattern.captures(line)?.get(1)?.as_str()))
            .collect();
        if said.is_empty() {
            return Ok(Some(format!("the log does not say {pattern}")));
        }
        if let Some(other) = said.into_iter().find(|said| !words.contains(said)) {
            return Ok(Some(format!("the log says {other}, and GDB does not")));
        }
    }
    Ok(None)
}

/// Returns the first of the regular expressions that the text does not match.
pub fn unmatched<'a>(patterns: &[&'a str], text: &str) -> Result<Option<&'a str>> {
    for pattern in patterns {
        if !Regex::new(pattern)?.is_match(text) {
            return Ok(Some(pattern));
        }
    }
    Ok(None)
}

/// Returns the first way in which a run was not as expected.
pub fn mismatch(
    case: &Case,
    verdict: Verdict,
    reason: &str,
    log: &str,
    journals: &str,
) -> Result<Option<String>> {
    if !case.ends.contains(&verdict) {
        let ends: Vec<_> = case.ends.iter().map(Verdict::to_string).collect();
        let ends = ends.join(" or ");
        return Ok(Some(format!("{verdict} instead of {ends}: {reason}")));
    }
    if let Some(pattern) = unmatched(case.says, log)? {
        return Ok(Some(format!("the log does not say {pattern}")));
    }
    for pattern in case.never {
        if let Some(found) = Regex::new(pattern)?.find(log) {
            let line = log
                .get(..found.start())
                .map_or(0, |before| before.lines().count());
            return Ok(Some(format!(
                "the log says {pattern} (line {})",
                line.max(1)
            )));
        }
    }
    for pattern in case.hidden() {
        let pattern = Regex::new(pattern)?;
        for (what, text) in [("the log", log), ("a journal", journals)] {
            if let Some(line) = text.lines().find(|line| pattern.is_match(line)) {
                return Ok(Some(format!("{what} shows what it should hide: {line}")));
            }
        }
    }
    for Limit { bench, most } in case.limits {
        match instructions(bench, log) {
            Some(taken) if taken <= *most => {}
            Some(taken) => {
                return Ok(Some(format!(
                    "{bench} takes {taken:.2} instructions a pair, more than {most}"
                )));
            }
            None => {
                return Ok(Some(format!("the log has no instructions for {bench}")));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::suite::example::CASE;

    fn compared(verdict: Verdict, log: &str) -> Option<String> {
        mismatch(&CASE, verdict, "why", log, "").unwrap()
    }

    #[test]
    fn end_and_words_must_both_be_right() {
        assert_eq!(compared(Verdict::Passed, "2 of 2\nverdict: passed"), None);
        assert!(
            compared(Verdict::Hung, "2 of 2\nverdict: passed")
                .unwrap()
                .contains("HUNG")
        );
        assert!(
            compared(Verdict::Passed, "verdict: passed")
                .unwrap()
                .contains("2 of 2")
        );
        let said = compared(Verdict::Passed, "2 of 2\n ERROR\nverdict: passed").unwrap();
        assert!(said.contains("ERROR (line 2)"), "{said}");
    }

    #[test]
    fn what_is_hidden_is_in_no_journal_either() {
        let log = "2 of 2\nverdict: passed";
        let compared = |log, journals| mismatch(&CASE, Verdict::Passed, "", log, journals).unwrap();
        assert_eq!(compared(log, "nothing\nis here"), None);
        let said = compared(log, "nothing\na secret is").unwrap();
        assert!(
            said.contains("a journal") && said.contains("a secret is"),
            "{said}"
        );
        let said = compared("a secret\n2 of 2\nverdict: passed", "").unwrap();
        assert!(said.contains("the log"), "{said}");
    }

    #[test]
    fn instructions_have_a_limit() {
        let case = Case {
            says: &[],
            limits: &[Limit {
                bench: "mixed",
                most: 60.0,
            }],
            ..CASE
        };
        let log = |number| {
            format!(
                "  1.0 0 INFO  bench   mixed   talc   12.00\n\
                 \x20 1.1 0 INFO  bench   mixed   muster   {number}\n"
            )
        };
        let compared = |log: &str| mismatch(&case, Verdict::Passed, "", log, "").unwrap();
        assert_eq!(compared(&log("60.00")), None);
        assert!(compared(&log("60.01")).unwrap().contains("60.01"));
        assert!(compared(&log("")).unwrap().contains("no instructions"));
        assert_eq!(figures(&case, &log("59.25")).count(), 1);
    }

    #[test]
    fn events_are_missed() {
        let line = r#"{"us":0,"by":0,"event":"log","level":"info","target":"a","text":"b"}"#;
        let told = [muster_events::read(line).unwrap()];
        assert_eq!(untold(&CASE, &told), None);
        assert!(untold(&CASE, &[]).unwrap().contains("log"));
    }
}
