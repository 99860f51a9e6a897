//! The log of a run on disk: the whole of it, and one file for each CPU.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::line::{self, LogLine};
use crate::symbols::Symbols;
use crate::workspace::shown;

/// The serial line's log, in order.
const ALL: &str = "all.log";
/// What the kernel wrote on the emulator's debug console: each CPU's own buffer.
const DUMP: &str = "debug-console.log";
/// The kernel's events.
const EVENTS: &str = "events.jsonl";

/// A folder that takes the log of one run.
#[derive(Debug)]
pub struct BootLog {
    folder: PathBuf,
    all: File,
}

impl BootLog {
    /// Makes the folder, and removes the last run's log from it.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        let context = || format!("cannot write {}", shown(folder));
        fs::create_dir_all(folder).with_context(context)?;
        for entry in fs::read_dir(folder).with_context(context)? {
            let path = entry.with_context(context)?.path();
            let is_of_a_run = |extension| extension == "log" || extension == "jsonl";
            if path.extension().is_some_and(is_of_a_run) {
                fs::remove_file(path).with_context(context)?;
            }
        }
        let all = File::create(folder.join(ALL)).with_context(context)?;
        Ok(Self {
            folder: folder.into(),
            all,
        })
    }

    /// Returns the file for the emulator's debug console.
    pub fn debug_console(&self) -> PathBuf {
        self.folder.join(DUMP)
    }

    /// Returns the file with the whole log.
    pub fn all(&self) -> PathBuf {
        self.folder.join(ALL)
    }

    /// Returns the whole log, for a program that writes it by itself.
    ///
    /// # Errors
    /// If the system has no file descriptor left.
    pub fn file(&self) -> Result<File> {
        self.all.try_clone().context("cannot share the log")
    }

    /// Adds a line to the whole log. It is on disk at once, so that the log of
    /// a long run can be followed.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.all
            .write_all(format!("{text}\n").as_bytes())
            .with_context(|| format!("cannot write {}", shown(&self.all())))
    }

    /// Writes each CPU's file, and gives the CPUs. A CPU whose own buffer did
    /// not come (a hang, a reset) gets its lines from the whole log.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn split(&self, symbols: &Symbols) -> Result<Vec<u32>> {
        let dump = fs::read(self.debug_console()).unwrap_or_default();
        let mut cpus = by_section(&dump, symbols);
        let all = fs::read_to_string(self.all())
            .with_context(|| format!("cannot read {}", shown(&self.all())))?;
        for (cpu, text) in by_cpu(&all) {
            cpus.entry(cpu).or_insert(text);
        }
        for (cpu, text) in &cpus {
            let path = self.folder.join(file_of(*cpu));
            fs::write(&path, text).with_context(|| format!("cannot write {}", shown(&path)))?;
        }
        Ok(cpus.into_keys().collect())
    }
}

/// Returns the file for the kernel's events, in a folder with a run's log.
pub fn events(folder: &Path) -> PathBuf {
    folder.join(EVENTS)
}

fn file_of(cpu: u32) -> String {
    format!("cpu-{cpu}.log")
}

/// What the kernel writes behind the CPUs' buffers for an emulator whose exit status says nothing.
const STATUS: &str = "=== status ";

/// Returns the exit status that the kernel left at the end of the dump, if it did.
pub fn status(dump: &[u8]) -> Option<i32> {
    let mut lines = dump.split(|&byte| byte == b'\n').map(line::plain).rev();
    lines.find_map(|text| text.strip_prefix(STATUS)?.parse().ok())
}

/// Takes the dump of the CPUs' buffers apart at its headers,
/// `=== cpu 3 lapic 3`.
pub fn by_section(dump: &[u8], symbols: &Symbols) -> BTreeMap<u32, String> {
    let mut sections = BTreeMap::<u32, String>::new();
    let mut current = None;
    for raw in dump.split(|&byte| byte == b'\n') {
        let text = line::plain(raw);
        if let Some(cpu) = header(&text) {
            current = Some(cpu);
        }
        if text.starts_with(STATUS) {
            current = None;
        }
        if let (Some(cpu), false) = (current, text.is_empty()) {
            let section = sections.entry(cpu).or_default();
            *section += &symbols.annotate(&text);
            *section += "\n";
        }
    }
    sections
}

fn header(text: &str) -> Option<u32> {
    text.strip_prefix("=== cpu ")?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

/// Returns the lines of each CPU in a whole log, with those that follow them and are
/// not the kernel's (inlined functions).
pub fn by_cpu(all: &str) -> BTreeMap<u32, String> {
    let mut cpus = BTreeMap::<u32, String>::new();
    let mut current = None;
    for text in all.lines() {
        current = LogLine::parse(text).map(|line| line.cpu).or(current);
        if let Some(cpu) = current {
            *cpus.entry(cpu).or_default() += &format!("{text}\n");
        }
    }
    cpus
}

/// Whose log.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// That of one CPU.
    Cpu(u32),
    /// The whole of it.
    All,
}

impl FromStr for Which {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            // A number's sign is no digit.
            Ok(cpu) if !text.starts_with('+') => Ok(Self::Cpu(cpu)),
            _ if text == "all" => Ok(Self::All),
            _ => Err("must be the number of a CPU, or all"),
        }
    }
}

/// Returns the last run's log.
///
/// # Errors
/// If there is no such log; says which there are.
pub fn read(folder: &Path, which: Which) -> Result<String> {
    let file = match which {
        Which::Cpu(cpu) => file_of(cpu),
        Which::All => ALL.into(),
    };
    if let Ok(text) = fs::read_to_string(folder.join(file)) {
        return Ok(text);
    }
    let mut cpus: Vec<u32> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?
                .strip_prefix("cpu-")?
                .strip_suffix(".log")?
                .parse()
                .ok()
        })
        .collect();
    cpus.sort_unstable();
    match which {
        Which::Cpu(cpu) if !cpus.is_empty() => bail!(
            "no log of CPU {cpu}: the last run's CPUs are {}",
            ranges(&cpus)
        ),
        _ => bail!(
            "no log in {}: run the kernel first (just run-smp)",
            shown(folder)
        ),
    }
}

/// Formats sorted numbers in short: `0-3, 5`.
pub fn ranges(numbers: &[u32]) -> String {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match spans.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => spans.push((number, number)),
        }
    }
    let text = spans.iter().map(|(start, end)| match start == end {
        true => start.to_string(),
        false => format!("{start}-{end}"),
    });
    text.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(cpu: u32, message: &str) -> String {
        format!(
            "{:>11.6} {cpu:>3} {:<5} {:<8} {message}",
            0.5, "INFO", "smp"
        )
    }

    fn written(serial: &[String], dump: &str) -> (tempfile::TempDir, Vec<u32>) {
        let folder = tempfile::tempdir().unwrap();
        let mut log = BootLog::create(folder.path()).unwrap();
        for text in serial {
            log.write(text).unwrap();
        }
        fs::write(log.debug_console(), dump).unwrap();
        let cpus = log.split(&Symbols::of(Path::new("/nonexistent"))).unwrap();
        (folder, cpus)
    }

    #[test]
    fn the_cpus_buffers_are_preferred() {
        let serial = [line(0, "serial"), line(1, "serial")];
        let dump = format!(
            "=== cpu 0 lapic 0\n{}\n=== cpu 1 lapic 2\n{}\n",
            serial[0],
            line(1, "own")
        );
        let (folder, cpus) = written(&serial, &dump);
        assert_eq!(cpus, [0, 1]);
        assert_eq!(
            read(folder.path(), Which::Cpu(1)).unwrap(),
            format!("=== cpu 1 lapic 2\n{}\n", line(1, "own"))
        );
    }

    #[test]
    fn a_status_is_found_and_is_no_cpu_s() {
        let dump = format!(
            "Bochs\n=== cpu 0 lapic 0\n{}\n=== status 33\nthe end\n",
            line(0, "own")
        );
        assert_eq!(status(dump.as_bytes()), Some(33));
        let (folder, _) = written(&[], &dump);
        let own = read(folder.path(), Which::Cpu(0)).unwrap();
        assert_eq!(own, format!("=== cpu 0 lapic 0\n{}\n", line(0, "own")));
        assert_eq!(status(b"=== cpu 0 lapic 0\n=== status \n"), None);
        assert_eq!(status(b""), None);
    }

    #[test]
    fn without_buffers_the_serial_log_is_filtered() {
        let serial = [
            "firmware".into(),
            line(0, "a"),
            line(2, "b"),
            "  more".into(),
            line(0, "c"),
        ];
        let (folder, cpus) = written(&serial, "");
        assert_eq!(cpus, [0, 2]);
        assert_eq!(
            read(folder.path(), Which::Cpu(0)).unwrap(),
            format!("{}\n{}\n", line(0, "a"), line(0, "c"))
        );
        assert_eq!(
            read(folder.path(), Which::Cpu(2)).unwrap(),
            format!("{}\n  more\n", line(2, "b"))
        );
        assert!(
            read(folder.path(), Which::All)
                .unwrap()
                .starts_with("firmware\n")
        );
    }

    #[test]
    fn a_missing_log_names_those_that_are_there() {
        let (folder, _) = written(&[line(0, "a"), line(1, "a"), line(5, "a")], "");
        let error = read(folder.path(), Which::Cpu(3)).unwrap_err().to_string();
        assert!(error.ends_with("are 0-1, 5"), "{error}");
        assert!("x".parse::<Which>().is_err() && "+1".parse::<Which>().is_err());
        let error = read(Path::new("/nonexistent"), Which::All)
            .unwrap_err()
            .to_string();
        assert!(error.contains("just run-smp"), "{error}");
    }

    #[test]
    fn a_new_log_replaces_the_old() {
        let (folder, _) = written(&[line(7, "a")], "");
        BootLog::create(folder.path()).unwrap();
        assert!(read(folder.path(), Which::Cpu(7)).is_err());
    }
}
