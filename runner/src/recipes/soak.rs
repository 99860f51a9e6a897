//! `soak`: everything at once for as long as is asked for, from a seed that is told, so that what
//! is found can be looked for again.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::arguments::{self, ArgumentError};
use crate::recipes::run;
use crate::session::Interrupt;

/// Minutes of a soak that names none.
const DEFAULT_MINUTES: u64 = 10;

/// The most minutes: a year, as for `seconds=`.
const MAX_MINUTES: u64 = 365 * 24 * 60;

/// A soak as asked for: `[CPUS] [minutes=N] [key=value…]`.
#[derive(Debug, PartialEq, Eq)]
struct Soak {
    minutes: u64,
    seed: u64,
    /// What else is asked for.
    rest: Vec<String>,
}

impl Soak {
    fn parse(words: &[String], seed: u64) -> Result<Self, ArgumentError> {
        let mut soak = Self {
            minutes: DEFAULT_MINUTES,
            seed,
            rest: Vec::new(),
        };
        let mut given = Vec::new();
        for word in words {
            let option = word.split_once('=');
            if let Some((name @ ("minutes" | "seed"), _)) = option {
                if given.contains(&name) {
                    return Err(ArgumentError::Repeated(name.into()));
                }
                given.push(name);
            }
            match option {
                Some((name @ "minutes", value)) => {
                    soak.minutes = arguments::number(name, value, 1..=MAX_MINUTES)?;
                }
                Some(("stress" | "seconds", _)) => {
                    return Err(ArgumentError::Contradiction(
                        "a soak has its own stress= and seconds=: leave them out, and say minutes="
                            .into(),
                    ));
                }
                Some((name @ "seed", value)) => {
                    soak.seed = arguments::number(name, value, 0..=u64::MAX)?;
                }
                _ => soak.rest.push(word.clone()),
            }
        }
        Ok(soak)
    }

    /// Returns the arguments of the run.
    fn run(&self) -> Vec<String> {
        let words = [
            "stress=soak".to_owned(),
            format!("seconds={}", self.minutes * 60),
            format!("seed={}", self.seed),
        ];
        self.rest.iter().cloned().chain(words).collect()
    }

    /// Returns the command that repeats it.
    fn again(&self) -> String {
        let Self {
            minutes,
            seed,
            rest,
        } = self;
        let words = rest.iter().map(|word| format!("{word} "));
        format!(
            "just soak {}minutes={minutes} seed={seed}",
            words.collect::<String>()
        )
    }
}

/// Soaks. Succeeds only if the kernel passed.
///
/// # Errors
/// If the arguments make no sense, or as for a run.
pub fn command(arguments: &[String], interrupt: &Interrupt) -> Result<ExitCode> {
    // Any number will do, as long as it is another one each time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = now.map_or(1, |now| now.as_millis() as u64);
    let soak = Soak::parse(arguments, seed)?;
    let run = arguments::parse(&soak.run())?;
    writeln!(
        io::stdout(),
        "{} minutes from seed {}",
        soak.minutes,
        soak.seed
    )?;
    let code = run::command(&run, interrupt)?;
    writeln!(io::stdout(), "        once more: {}", soak.again())?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.into()).collect()
    }

    #[test]
    fn what_is_told_repeats_the_run() {
        let soak = Soak::parse(&words(&["32", "mem=1G", "minutes=3"]), 77).unwrap();
        assert_eq!(soak.again(), "just soak 32 mem=1G minutes=3 seed=77");
        let again: Vec<String> = soak.again().split(' ').skip(2).map(String::from).collect();
        assert_eq!(Soak::parse(&again, 1).unwrap(), soak);
        arguments::parse(&soak.run()).unwrap();
        assert!(soak.run().contains(&"seconds=180".into()));
        assert_eq!(
            Soak::parse(&[], 5).unwrap().again(),
            "just soak minutes=10 seed=5"
        );
        assert_eq!(Soak::parse(&words(&["seed=0"]), 5).unwrap().seed, 0);
        let longest = words(&[&format!("minutes={MAX_MINUTES}")]);
        arguments::parse(&Soak::parse(&longest, 5).unwrap().run()).unwrap();
    }

    #[test]
    fn nonsense_is_told() {
        for wrong in [
            "minutes=0",
            "minutes=",
            "seed=x",
            "minutes=1.5",
            "minutes=+1",
            "minutes=525601",
        ] {
            assert!(Soak::parse(&words(&[wrong]), 1).is_err(), "{wrong}");
        }
    }
}
