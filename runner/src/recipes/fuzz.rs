//! `fuzz`: what comes from outside, made up by libFuzzer. A short run of all targets, which does the
//! same each time, is a test; a long one of some goes on from where the last one was.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::arguments::{self, ArgumentError};
use crate::commands::WrongWord;
use crate::toolchain::{self, HostLibraries};
use crate::workspace::{self, shown};

/// A program in `fuzz/`, by its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    name: &'static str,
    /// How many inputs a short run tries: a few seconds' worth.
    runs: u64,
}

const TARGETS: [Target; 9] = [
    target("memory-map", 5_000),
    target("limine-answers", 20_000),
    target("firmware-tables", 20_000),
    target("kernel-image", 50_000),
    target("loader-line", 20_000),
    target("loader-memory-map", 20_000),
    target("kernel-line", 8_000),
    target("monitor-keys", 10_000),
    target("kernel-output", 10_000),
];

const fn target(name: &'static str, runs: u64) -> Target {
    Target { name, runs }
}

/// What the compiler adds for libFuzzer to see where an input leads: counters of edges, the table of
/// their places, and the operands of comparisons (LLVM's SanitizerCoverage).
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// An input that takes longer than this, in seconds, is a finding. Far more than any takes on a
/// busy machine.
const TIMEOUT: u32 = 300;

/// What is asked for: `[TARGET…] [seconds=N] [seed=N]`.
#[derive(Debug, PartialEq, Eq)]
struct Fuzz {
    targets: Vec<&'static Target>,
    /// How long each target goes on from its corpus; `None` for a short run from the seeds.
    seconds: Option<u32>,
    seed: Option<u32>,
}

impl Fuzz {
    fn parse(words: &[String]) -> Result<Self> {
        let mut fuzz = Self {
            targets: Vec::new(),
            seconds: None,
            seed: None,
        };
        for word in words {
            // libFuzzer takes 0 for "any seed", and for "without end".
            let set = |option: &mut Option<u32>, name: &str, value: &str| {
                let number = arguments::number(name, value, 1..=u32::MAX.into())?;
                match option.replace(number) {
                    Some(_) => Err(ArgumentError::Repeated(name.into())),
                    None => Ok(()),
                }
            };
            match word.split_once('=') {
                Some(("seconds", value)) => set(&mut fuzz.seconds, "seconds", value)?,
                Some(("seed", value)) => set(&mut fuzz.seed, "seed", value)?,
                _ => {
                    let named = TARGETS.iter().find(|target| target.name == word);
                    let named = named.ok_or_else(|| {
                        let names = TARGETS.map(|target| target.name);
                        let lists =
                            format!("must be seconds=, seed= or one of {}", names.join(", "));
                        WrongWord::unknown("fuzz target", word, names, &lists)
                    })?;
                    fuzz.targets.push(named);
                }
            }
        }
        if fuzz.targets.is_empty() {
            fuzz.targets.extend(&TARGETS);
        }
        Ok(fuzz)
    }

    /// Returns libFuzzer's arguments for it.
    fn arguments(&self, target: &Target) -> Vec<String> {
        let seed = self.seed.or(self.seconds.is_none().then_some(1));
        let seed = seed.map(|seed| format!("-seed={seed}"));
        let length = match self.seconds {
            Some(seconds) => vec![format!("-max_total_time={seconds}")],
            // Each second libFuzzer would read its corpus again, and give memory back: it would depend
            // on time what is tried, and where it lies.
            None => vec![
                format!("-runs={}", target.runs),
                "-reload=0".into(),
                "-purge_allocator_interval=-1".into(),
            ],
        };
        seed.into_iter().chain(length).collect()
    }
}

/// What libFuzzer said of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    /// Edges of the program that some input took, and all that there are.
    edges: u64,
    all_edges: u64,
    /// Inputs worth keeping.
    corpus: u64,
    /// What went wrong, in the words of the panic or of libFuzzer.
    finding: Option<String>,
    /// The input that it went wrong with.
    input: Option<PathBuf>,
}

impl Figures {
    fn read(log: &str) -> Self {
        let mut figures = Self::default();
        let mut is_after_panic = false;
        for line in log.lines() {
            let after = |marker: &str| line.split_once(marker).map(|(_, after)| after.trim_start());
            let number = |text: &str| {
                let end = text.find(|c: char| !c.is_ascii_digit());
                text[..end.unwrap_or(text.len())].parse().ok()
            };
            if is_after_panic {
                figures.finding.get_or_insert_with(|| line.into());
            }
            is_after_panic = line.contains(" panicked at ");
            if let Some(error) = after("ERROR: ") {
                figures.finding.get_or_insert_with(|| error.into());
            }
            if let Some(input) = after("Test unit written to ") {
                figures.input = Some(input.into());
            }
            if line.starts_with('#')
                && let Some(edges) = after(" cov: ").and_then(number)
            {
                figures.edges = edges;
                figures.corpus = after(" corp: ").and_then(number).unwrap_or(figures.corpus);
            }
            if line.contains("inline 8-bit counters") {
                figures.all_edges = after("modules   (").and_then(number).unwrap_or(0);
            }
            if let Some(executions) = after("stat::number_of_executed_units:").and_then(number) {
                figures.executions = executions;
            }
        }
        figures
    }
}

/// Builds the targets, and runs those that are asked for. Success only if nothing was found.
///
/// # Errors
/// If the arguments make no sense, or the targets do not build or start.
pub fn command(words: &[String]) -> Result<ExitCode> {
    let fuzz = Fuzz::parse(words)?;
    let libraries = HostLibraries::find()?;
    let programs = build(&libraries)?;
    writeln!(
        io::stdout(),
        "{:20}{:>11}{:>8}{:>8}{:>8}{:>8}  findings",
        "target",
        "executions",
        "edges",
        "of",
        "seeds",
        "corpus"
    )?;
    let mut is_clean = true;
    for target in &fuzz.targets {
        let seeds = workspace::root().join("fuzz/seeds").join(target.name);
        let log = folder().join(format!("{}.log", target.name));
        let program = programs.join(target.name);
        let status = run(&fuzz, target, &program, &seeds, &log)?;
        let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let figures = Figures::read(&String::from_utf8_lossy(&said));
        let Figures {
            executions,
            edges,
            all_edges,
            corpus,
            ..
        } = figures;
        writeln!(
            io::stdout(),
            "{:20}{executions:>11}{edges:>8}{all_edges:>8}{:>8}{corpus:>8}  {}",
            target.name,
            fs::read_dir(&seeds).map_or(0, Iterator::count),
            match (status.success(), &figures.finding) {
                (true, _) => "none",
                (false, Some(_)) => "one",
                (false, None) => "broken off",
            }
        )?;
        if !status.success() {
            is_clean = false;
            report(&figures, status, &program, &log)?;
        }
    }
    Ok(match is_clean {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn folder() -> PathBuf {
    workspace::target().join("fuzz")
}

/// Builds all targets, and gives the folder they are in.
fn build(libraries: &HostLibraries) -> Result<PathBuf> {
    let mut flags = COVERAGE.join(" ");
    let mut cargo = toolchain::host_cargo();
    if libraries.has_address_sanitizer() {
        // Choosing a sanitizer is not stable in rustc; the source that is built this way is.
        cargo.env("RUSTC_BOOTSTRAP", "1");
        flags += " -Zsanitizer=address";
    } else {
        writeln!(
            io::stdout(),
            "without AddressSanitizer: this Rust comes without its library"
        )?;
    }
    cargo.env("RUSTFLAGS", flags);
    cargo.args(["build", "--quiet", "--release", "--bins"]);
    cargo.args(["--manifest-path", "fuzz/Cargo.toml"]);
    // With a target the flags are not for what runs at build time.
    cargo.args(["--target", &libraries.target, "--target-dir"]);
    cargo.arg(folder());
    let status = cargo.status().context("cannot start Cargo")?;
    if !status.success() {
        bail!("the fuzz targets do not build ({status})");
    }
    Ok(folder().join(&libraries.target).join("release"))
}

/// Runs one target; what it says goes to `log`.
fn run(
    fuzz: &Fuzz,
    target: &Target,
    program: &Path,
    seeds: &Path,
    log: &Path,
) -> Result<ExitStatus> {
    let corpus = folder().join(match fuzz.seconds {
        Some(_) => "corpus",
        None => "short",
    });
    let corpus = corpus.join(target.name);
    if fuzz.seconds.is_none() && corpus.exists() {
        fs::remove_dir_all(&corpus).with_context(|| format!("cannot empty {}", shown(&corpus)))?;
    }
    let findings = folder().join("findings");
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", shown(folder)))?;
    }
    let log = File::create(log).with_context(|| format!("cannot write {}", shown(log)))?;
    let mut command = at_fixed_addresses(program.as_os_str());
    command.args(fuzz.arguments(target));
    command.args(["-print_final_stats=1", &format!("-timeout={TIMEOUT}")]);
    command.arg(format!(
        "-artifact_prefix={}/{}-",
        findings.display(),
        target.name
    ));
    command.args([corpus.as_path(), seeds]);
    // Finding leaks takes rights that a container may not have, and memory leaks are not looked for.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    command.stdout(log.try_clone().context("cannot share the log")?);
    command.stderr(log);
    let status = command.status();
    status.with_context(|| format!("cannot start {}", shown(program)))
}

/// Makes the command of a program that has the same addresses each time, where the system allows
/// that: they are among the numbers that libFuzzer sees compared and learns from.
fn at_fixed_addresses(program: &OsStr) -> Command {
    let setarch = |program: &OsStr| {
        let mut setarch = Command::new("setarch");
        setarch.arg("--addr-no-randomize").arg(program);
        setarch
    };
    let probe = setarch(OsStr::new("true")).stderr(Stdio::null()).status();
    match probe {
        Ok(status) if status.success() => setarch(program),
        _ => Command::new(program),
    }
}

/// Prints the finding, and how to reproduce it.
fn report(figures: &Figures, status: ExitStatus, program: &Path, log: &Path) -> io::Result<()> {
    if let Some(finding) = &figures.finding {
        writeln!(io::stdout(), "  {finding}")?;
    }
    writeln!(io::stdout(), "  {status}; what it said: {}", shown(log))?;
    if let Some(input) = &figures.input {
        writeln!(
            io::stdout(),
            "  once more: {} {}",
            shown(program),
            shown(input)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Fuzz> {
        let words: Vec<String> = words.iter().map(|&word| word.into()).collect();
        Fuzz::parse(&words)
    }

    #[test]
    fn a_short_run_is_of_all_targets_and_always_the_same() {
        let fuzz = parse(&[]).unwrap();
        assert_eq!(fuzz.targets.len(), TARGETS.len());
        let arguments = fuzz.arguments(&TARGETS[0]).join(" ");
        assert!(arguments.starts_with("-seed=1 -runs=5000 "), "{arguments}");
        let fuzz = parse(&["kernel-line", "seconds=60"]).unwrap();
        assert_eq!(fuzz.targets, [&TARGETS[6]]);
        assert_eq!(fuzz.arguments(&TARGETS[6]), ["-max_total_time=60"]);
        let fuzz = parse(&["seed=7", "seconds=60"]).unwrap();
        let arguments = fuzz.arguments(&TARGETS[0]);
        assert_eq!(arguments, ["-seed=7", "-max_total_time=60"]);
    }

    #[test]
    fn nonsense_is_told() {
        for (wrong, said) in [
            ("seconds=0", "`0` for `seconds`"),
            ("seed=", "`` for `seed`"),
            ("seconds=1.5", "`1.5` for `seconds`"),
            ("kernel", "`kernel`"),
            ("runs=5", "`runs=5`"),
        ] {
            let error = parse(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let error = parse(&["kernel"]).unwrap_err().to_string();
        assert!(error.contains("monitor-keys, kernel-output"));
    }

    #[test]
    fn every_target_is_a_program_with_seeds() {
        let fuzz = workspace::root().join("fuzz");
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
        for Target { name, .. } in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            assert!(fuzz.join("seeds").join(name).is_dir(), "{name}");
        }
    }

    #[test]
    fn figures_are_read_from_what_libfuzzer_says() {
        let log = "\
INFO: Loaded 1 modules   (11008 inline 8-bit counters): 11008 [0x5, 0x6),
INFO: Loaded 1 PC tables (11008 PCs): 11008 [0x7,0x8),
#2	INITED cov: 8 ft: 8 corp: 1/1b exec/s: 0 rss: 27Mb
#44111	DONE   cov: 1671 ft: 5542 corp: 501/12769b lim: 43 exec/s: 1422 rss: 462Mb
Done 44111 runs in 31 second(s)
stat::number_of_executed_units: 44111
";
        let mut expected = Figures {
            executions: 44111,
            edges: 1671,
            all_edges: 11008,
            corpus: 501,
            ..Figures::default()
        };
        assert_eq!(Figures::read(log), expected);
        let crash = "
thread '<unnamed>' (632) panicked at targets/memory_map.rs:100:9:
attempt to add with overflow
==632== ERROR: libFuzzer: deadly signal
artifact_prefix='f/'; Test unit written to f/memory-map-crash-d405
";
        expected.finding = Some("attempt to add with overflow".into());
        expected.input = Some("f/memory-map-crash-d405".into());
        assert_eq!(Figures::read(&format!("{log}{crash}")), expected);
        let timeout = "==7== ERROR: libFuzzer: timeout after 300 seconds";
        let finding = Figures::read(timeout).finding;
        assert_eq!(
            finding.as_deref(),
            Some("libFuzzer: timeout after 300 seconds")
        );
    }
}
