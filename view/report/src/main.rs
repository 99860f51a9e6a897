//! Writes the page of some runs: `muster-report PAGE.html EVENTS.jsonl…`.

use std::env;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use muster_report::{RunEvents, page};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match write(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster-report: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(arguments: &[String]) -> Result<()> {
    let [path, files @ ..] = arguments else {
        bail!("the first argument must be where the page goes, the others files of events");
    };
    let mut runs = Vec::new();
    let mut gaps = Vec::new();
    for file in files {
        match fs::read(file) {
            // A line that was cut may end in the middle of a letter.
            Ok(bytes) => runs.push(RunEvents::read(&String::from_utf8_lossy(&bytes))),
            Err(error) => {
                eprintln!("muster-report: {file}: {error}");
                gaps.push(format!(
                    "The events of a run are not there: {file}: {error}."
                ));
            }
        }
    }
    fs::write(path, page(&runs, &gaps)?).with_context(|| format!("cannot write {path}"))
}
