//! `coverage`: how many of the libraries' lines their own tests run.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow};
use muster_runner::workspace;

use crate::toolchain;

/// The libraries, by their folders, and the share of lines that their tests must
/// run, in percent.
const LIBRARIES: [(&str, f64); 9] = [
    ("percpu", 95.0),
    ("cross-cpu", 95.0),
    ("frames", 95.0),
    ("paging", 95.0),
    ("heap", 95.0),
    ("parts/arguments", 95.0),
    ("parts/machine", 95.0),
    ("parts/boot", 95.0),
    ("parts/monitor", 95.0),
];

/// Returns the name of the package in a folder.
fn package(folder: &str) -> String {
    format!("muster-{}", folder.trim_start_matches("parts/"))
}

/// The versions of LLVM whose tools read what rustc writes: the first that knows
/// its format, and some to come.
const VERSIONS: std::ops::RangeInclusive<u32> = 19..=29;

/// Prints a line for each library, and which lines no test runs.
///
/// # Errors
/// If the tools are missing, or what they say makes no sense.
pub fn command() -> Result<ExitCode> {
    let report = workspace::target().join("coverage.lcov");
    let mut tests = toolchain::host_cargo();
    use_llvm(&mut tests)?;
    tests.args(["llvm-cov", "test", "--no-cfg-coverage", "--lcov"]);
    tests.arg("--output-path").arg(&report);
    for (folder, _) in LIBRARIES {
        tests.args(["--package", &package(folder)]);
    }
    let status = tests
        .status()
        .context("cannot start cargo, which ./bootstrap installs")?;
    if !status.success() {
        return Err(anyhow!(
            "the libraries' tests failed, or do not build ({status})"
        ));
    }

    let report = fs::read_to_string(&report)
        .with_context(|| format!("cannot read {}", workspace::shown(&report)))?;
    let counts = counts(&report).ok_or_else(|| anyhow!("cargo-llvm-cov's report is broken"))?;
    writeln!(io::stdout(), "lines that a library's own tests run:")?;
    let mut is_enough = true;
    for (folder, least) in LIBRARIES {
        let library = package(folder);
        let found = in_library(&counts, &workspace::root().join(folder).join("src"))?;
        let share = 100.0 * found.run as f64 / found.lines.max(1) as f64;
        writeln!(
            io::stdout(),
            "  {library:<16} {share:5.1} % of {:4}",
            found.lines
        )?;
        for missed in found.missed {
            writeln!(io::stdout(), "      not {folder}/src/{missed}")?;
        }
        if share < least {
            writeln!(io::stdout(), "      at least {least} % must be")?;
            is_enough = false;
        }
    }
    Ok(if is_enough {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Points cargo-llvm-cov to a distribution's tools, if there are any. Without it looks for rustup's.
///
/// # Errors
/// If something is missing.
fn use_llvm(tests: &mut Command) -> Result<()> {
    if said(toolchain::host_cargo().args(["llvm-cov", "--version"])).is_none() {
        return Err(anyhow!(
            "coverage is measured with cargo-llvm-cov, which is missing: ./bootstrap installs it"
        ));
    }
    let names = VERSIONS.rev().map(|version| format!("-{version}"));
    let pair = names.chain([String::new()]).find_map(|suffix| {
        let pair = ["llvm-cov", "llvm-profdata"].map(|tool| format!("{tool}{suffix}"));
        let is_there = |tool: &String| said(Command::new(tool).arg("--version")).is_some_and(reads);
        pair.iter().all(is_there).then_some(pair)
    });
    if let Some([cov, profdata]) = pair {
        tests.envs([("LLVM_COV", cov), ("LLVM_PROFDATA", profdata)]);
    } else if !has_rustup_tools() {
        return Err(anyhow!(
            "coverage is measured with LLVM's llvm-cov and llvm-profdata, {} or newer, which are \
             missing: ./bootstrap installs them, and so does rustup component add llvm-tools",
            VERSIONS.start()
        ));
    }
    Ok(())
}

/// Returns a program's output, if it is there and succeeds.
fn said(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    let is_good = output.status.success();
    is_good.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns whether LLVM's tool of this version (`LLVM version 19.1.7`) reads what rustc writes.
fn reads(version: String) -> bool {
    let number = version.split("LLVM version ").nth(1);
    let major = number.and_then(|number| number.split('.').next()?.parse().ok());
    major.is_some_and(|major: u32| major >= *VERSIONS.start())
}

fn has_rustup_tools() -> bool {
    let mut rustc = Command::new("rustc");
    said(rustc.args(["--print", "target-libdir"])).is_some_and(|libraries| {
        let tools = Path::new(libraries.trim_end()).with_file_name("bin");
        tools.join("llvm-cov").is_file() && tools.join("llvm-profdata").is_file()
    })
}

/// Returns how often each line was run, by file, from a report in lcov's format.
fn counts(report: &str) -> Option<BTreeMap<PathBuf, BTreeMap<usize, u64>>> {
    let mut files: BTreeMap<PathBuf, BTreeMap<usize, u64>> = BTreeMap::new();
    let mut file = None;
    for record in report.lines() {
        if let Some(path) = record.strip_prefix("SF:") {
            file = Some(files.entry(path.into()).or_default());
        } else if let Some(line) = record.strip_prefix("DA:") {
            let mut numbers = line.split(',').map(str::parse::<u64>);
            let (Some(Ok(line)), Some(Ok(count))) = (numbers.next(), numbers.next()) else {
                return None;
            };
            *file.as_mut()?.entry(line as usize).or_default() += count;
        }
    }
    Some(files)
}

/// How much of a library was run.
#[derive(Debug, Default, PartialEq)]
struct Found {
    /// Lines that can be run.
    lines: usize,
    run: usize,
    /// Each file of which some were not, and which.
    missed: Vec<String>,
}

/// Adds up a library's files. What is compiled for tests alone does not count.
fn in_library(counts: &BTreeMap<PathBuf, BTreeMap<usize, u64>>, sources: &Path) -> Result<Found> {
    let mut found = Found::default();
    for (path, counts) in counts {
        let Ok(name) = path.strip_prefix(sources) else {
            continue;
        };
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", workspace::shown(path)))?;
        let counts: Vec<_> = counts.range(..first_test_line(&text)).collect();
        let ran = counts.iter().filter(|(_, count)| **count > 0).count();
        found.lines += counts.len();
        found.run += ran;
        if ran < counts.len() {
            let missed = missed(&counts);
            found.missed.push(format!("{}: {missed}", name.display()));
        }
    }
    Ok(found)
}

/// Returns the lines that were not run; those between which none was are told by the
/// first and the last.
fn missed(counts: &[(&usize, &u64)]) -> String {
    let pieces = counts
        .chunk_by(|(_, one), (_, next)| (**one == 0) == (**next == 0))
        .filter(|piece| *piece[0].1 == 0);
    let shown = pieces.map(|piece| match piece {
        [(line, _)] => line.to_string(),
        [(first, _), .., (last, _)] => format!("{first}-{last}"),
        [] => String::new(),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Returns the number of the line from which on a file has nothing but tests: they are its last module, or
/// all of it.
fn first_test_line(text: &str) -> usize {
    text.lines()
        .position(|line| matches!(line, "mod tests {" | "#![cfg(test)]"))
        .map_or(usize::MAX, |place| place + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_by_file() {
        let counts = counts("SF:a.rs\nDA:3,0\nDA:4,2\nSF:b.rs\nDA:1,1\nSF:a.rs\nDA:3,1\n").unwrap();
        assert_eq!(counts[Path::new("a.rs")], BTreeMap::from([(3, 1), (4, 2)]));
        assert_eq!(counts[Path::new("b.rs")], BTreeMap::from([(1, 1)]));
    }

    #[test]
    fn a_broken_report_is_noticed() {
        assert!(counts("DA:3,0\n").is_none());
        assert!(counts("SF:a.rs\nDA:3,many\n").is_none());
    }

    #[test]
    fn tests_and_other_libraries_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.rs");
        let text = "fn a() {}\n\nfn b() {\n}\nfn c() {}\n#[cfg(test)]\nmod tests {\nfn d() {} }\n";
        fs::write(&path, text).unwrap();
        let fixture = folder.path().join("fixture.rs");
        fs::write(&fixture, "//! For tests.\n\n#![cfg(test)]\n\nfn e() {}\n").unwrap();
        let lines = BTreeMap::from([(1, 1), (3, 0), (4, 0), (5, 0), (8, 0)]);
        let other = BTreeMap::from([(1, 0)]);
        let counts = BTreeMap::from([
            (path, lines),
            (fixture, BTreeMap::from([(5, 0)])),
            ("elsewhere/b.rs".into(), other),
        ]);
        let expected = Found {
            lines: 4,
            run: 1,
            missed: vec!["a.rs: 3-5".to_owned()],
        };
        assert_eq!(in_library(&counts, folder.path()).unwrap(), expected);
    }

    #[test]
    fn old_tools_are_told_from_new_ones() {
        for (version, expected) in [
            ("Debian LLVM version 19.1.7\n  Optimized build.", true),
            ("LLVM version 21.0.0git", true),
            ("Debian LLVM version 14.0.6", false),
            ("gcov 12.2.0", false),
        ] {
            assert_eq!(reads(version.into()), expected, "{version}");
        }
    }

    #[test]
    fn missed_lines_are_told_in_pieces() {
        let lines = [(1, 0), (2, 1), (5, 0), (9, 0), (12, 3), (13, 0)];
        let lines: Vec<_> = lines.iter().map(|(line, count)| (line, count)).collect();
        assert_eq!(missed(&lines), "1, 5-9, 13");
    }
}
