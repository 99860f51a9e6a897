//! `models`: what CPUs share, under loom, in a copy of the sources. Then each mistake of `mistakes/` there: the
//! models that it names must find it.

mod copy;
mod mistake;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::commands::WrongWord;
use crate::images::write_if_changed;
use crate::toolchain;
use crate::workspace;

pub use mistake::problems;
use mistake::{LIBRARIES, Mistake};

/// The exit status of a test program of which a test has failed.
const TEST_FAILED: i32 = 101;

/// Runs all models and then makes all mistakes, or only makes those that have one of these words in
/// their names.
///
/// # Errors
///
/// If no mistake has such a name, a patch is of no use, or Cargo does not start.
pub fn command(words: &[String]) -> Result<ExitCode> {
    let mistakes = mistake::read_all(workspace::root())?;
    let mistakes = chosen(mistakes, words)?;
    let copy = workspace::target().join("mistakes");
    copy::bring_up_to_date(workspace::root(), &copy)?;
    if words.is_empty() {
        // In the copy, too: by the times of the workspace's files Cargo would take what it has built with the last mistake
        // for what is there.
        let mut models = cargo(&copy, &LIBRARIES);
        models.args(["--", "--nocapture", "--test-threads", "2"]);
        let status = models.status().context("cannot start Cargo")?;
        if !status.success() {
            return Ok(ExitCode::FAILURE);
        }
    }
    let mut problems = Vec::new();
    for mistake in &mistakes {
        let path = mistake.path();
        match built_with(mistake, &copy)? {
            Built::Program(program) => {
                for model in &mistake.models {
                    match finds(&program, model)? {
                        true => writeln!(io::stdout(), "{path}: {model} finds it")?,
                        false => problems.push(format!(
                            "{path}: {model} does not find it: mend the model, or name another one \
                             in the patch"
                        )),
                    }
                }
            }
            Built::Nothing(messages) => {
                write!(io::stderr(), "{messages}")?;
                problems.push(format!(
                    "{path}: the sources do not compile with it: see above, and mend the patch"
                ));
            }
        }
    }
    for problem in &problems {
        writeln!(io::stderr(), "{problem}")?;
    }
    if !problems.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    writeln!(io::stdout(), "mistakes made, and found: {}", mistakes.len())?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the mistakes that have one of these words in their names, or all if there are no words.
fn chosen(mut mistakes: Vec<Mistake>, words: &[String]) -> Result<Vec<Mistake>> {
    for word in words {
        if !mistakes.iter().any(|mistake| mistake.name.contains(word)) {
            let names = mistakes.iter().map(|mistake| mistake.name.as_str());
            let lists = "must be a part of the name of a file in mistakes/";
            bail!(WrongWord::unknown("mistake", word, names, lists));
        }
    }
    let is_named = |mistake: &Mistake| words.iter().any(|word| mistake.name.contains(word));
    mistakes.retain(|mistake| words.is_empty() || is_named(mistake));
    Ok(mistakes)
}

/// Returns the command that builds and runs the models of these libraries in a folder that has the
/// workspace's sources. What is compiled of other sources serves all such folders.
fn cargo(folder: &Path, libraries: &[&str]) -> Command {
    let mut cargo = toolchain::host_cargo();
    cargo.current_dir(folder);
    cargo.env("RUSTFLAGS", "--cfg loom");
    cargo.args(["test", "--profile", "models", "--lib", "--target-dir"]);
    cargo.arg(workspace::target().join("models"));
    for library in libraries {
        cargo.args(["--package", &format!("muster-{library}")]);
    }
    cargo
}

/// What came of building models.
enum Built {
    /// The program that runs them.
    Program(PathBuf),
    /// Nothing, because of what these messages say.
    Nothing(String),
}

/// Builds the models of a library with a mistake. The copy is without it afterwards.
fn built_with(mistake: &Mistake, copy: &Path) -> Result<Built> {
    let originals = (mistake.changes.keys())
        .map(|path| Ok((path, fs::read_to_string(copy.join(path))?)))
        .collect::<io::Result<Vec<_>>>()
        .with_context(|| format!("cannot read {}", workspace::shown(copy)))?;
    for (path, changed) in &mistake.changes {
        write_if_changed(&copy.join(path), changed.as_bytes())?;
    }
    let built = build(copy, mistake.folder());
    for (path, original) in originals {
        write_if_changed(&copy.join(path), original.as_bytes())?;
    }
    built
}

fn build(folder: &Path, library: &str) -> Result<Built> {
    let mut cargo = cargo(folder, &[library]);
    cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    let output = cargo.output().context("cannot start Cargo")?;
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr);
        return Ok(Built::Nothing(messages.into_owned()));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = messages.lines().find_map(program);
    let program = program.context("Cargo does not say which program it has built")?;
    Ok(Built::Program(program))
}

/// Returns the program that a message of Cargo's is about, if it is about one.
fn program(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    Some(message.get("executable")?.as_str()?.into())
}

/// Runs one model, and returns whether it fails.
fn finds(program: &Path, model: &str) -> Result<bool> {
    let mut command = Command::new(program);
    command.args(["--exact", model]).stderr(Stdio::null());
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", workspace::shown(program)))?;
    let report = String::from_utf8_lossy(&output.stdout);
    Ok(is_finding(output.status.code(), &report))
}

/// Returns whether the one test of a run has failed, by the run's exit status and what it reports. A
/// program without such a test succeeds, and one that could not run it ends otherwise.
fn is_finding(status: Option<i32>, report: &str) -> bool {
    status == Some(TEST_FAILED) && report.contains("running 1 test\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_finds_a_mistake_only_if_it_ran_and_failed() {
        assert!(is_finding(Some(101), "\nrunning 1 test\ntest a ... FAILED"));
        assert!(!is_finding(Some(0), "\nrunning 1 test\ntest a ... ok"));
        assert!(!is_finding(Some(0), "\nrunning 0 tests\n"));
        assert!(!is_finding(None, "\nrunning 1 test\n"));
        assert!(!is_finding(Some(101), "\nrunning 11 tests\n"));
    }

    #[test]
    fn programs_are_read_from_messages() {
        let message = r#"{"reason":"compiler-artifact","executable":"/a/b"}"#;
        assert_eq!(program(message), Some("/a/b".into()));
        assert_eq!(program(r#"{"executable":null}"#), None);
        assert_eq!(program("   Compiling"), None);
    }

    #[test]
    fn mistakes_are_chosen_by_parts_of_their_names() {
        let all = || {
            ["heap/lock", "memory/lock"].map(|name| Mistake {
                name: name.into(),
                models: Vec::new(),
                changes: Default::default(),
            })
        };
        let names = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            let chosen = chosen(all().into(), &words)?;
            anyhow::Ok(chosen.into_iter().map(|mistake| mistake.name).collect())
        };
        let found: Vec<String> = names(&[]).unwrap();
        assert_eq!(found, ["heap/lock", "memory/lock"]);
        assert_eq!(names(&["memory"]).unwrap(), ["memory/lock"]);
        assert_eq!(names(&["lock", "heap"]).unwrap(), found);
        let refused = names(&["heap/lok"]).unwrap_err().to_string();
        assert_eq!(
            refused,
            "unknown mistake `heap/lok`, did you mean `heap/lock`?"
        );
    }
}
