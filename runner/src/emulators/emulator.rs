//! Which emulator boots the kernel, and which version of it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};

use crate::arguments::Run;
use crate::emulators::bochs::Bochs;

/// The emulators that boot the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// QEMU.
    Qemu,
    /// Bochs.
    Bochs,
}

/// An emulator's version, as the emulator itself reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulator {
    /// `QEMU`, or `Bochs`.
    name: &'static str,
    /// `10.0.13`.
    version: String,
    /// The line that reports it, with what the distribution adds.
    pub reported: String,
}

impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

impl Emulator {
    /// Asks the emulator of a run for its version.
    ///
    /// # Errors
    /// If it is not installed, or another program.
    pub fn of(run: &Run) -> Result<Self> {
        match run.emulator {
            Kind::Qemu => Self::qemu(&run.qemu),
            Kind::Bochs => Ok(Self::bochs(&Bochs::find(&run.bochs)?)),
        }
    }

    /// Returns what a Bochs program has reported.
    pub fn bochs(bochs: &Bochs) -> Self {
        Self {
            name: "Bochs",
            version: bochs.version.clone(),
            reported: bochs.reported.clone(),
        }
    }

    /// Asks a QEMU program for its version. Each program is asked once.
    ///
    /// # Errors
    /// If there is no such program, or it does not say that it is QEMU.
    pub fn qemu(program: &Path) -> Result<Self> {
        static KNOWN: Known<Emulator> = Known::new();
        KNOWN.get(program, Self::ask)
    }

    fn ask(program: &Path) -> Result<Self> {
        let output = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                let program = program.display();
                match error.kind() {
                    ErrorKind::NotFound => anyhow!(
                        "{program} is not there: ./bootstrap installs QEMU, or name its program: \
                         qemu=PATH"
                    ),
                    _ => anyhow!(
                        "{program} does not start ({error}): name QEMU's program: qemu=PATH"
                    ),
                }
            })?;
        Self::read(&String::from_utf8_lossy(&output.stdout)).with_context(|| {
            format!(
                "{} is not QEMU, by what it says to `--version`: name QEMU's program: qemu=PATH",
                program.display()
            )
        })
    }

    /// Reads what `--version` prints.
    pub fn read(text: &str) -> Option<Self> {
        let reported = text.lines().next()?;
        let version = reported
            .strip_prefix("QEMU emulator version ")?
            .split_whitespace()
            .next()?;
        Some(Self {
            name: "QEMU",
            version: version.into(),
            reported: reported.into(),
        })
    }

    /// Returns the major version: 10 for QEMU 10.0.13; 0 if it is no number.
    pub fn major(&self) -> u32 {
        let major = self.version.split('.').next().unwrap_or_default();
        major.parse().unwrap_or(0)
    }
}

/// What programs have said of themselves.
pub struct Known<T>(Mutex<BTreeMap<PathBuf, T>>);

impl<T: Clone> Known<T> {
    /// Creates one without any knowledge.
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Returns what a program says, which `ask` asks it the first time.
    ///
    /// # Errors
    /// As `ask`.
    pub fn get(&self, program: &Path, ask: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = known.get(program) {
            return Ok(said.clone());
        }
        let said = ask(program)?;
        known.insert(program.into(), said.clone());
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let debian = "QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)\n\
                      Copyright (c) 2003-2025 Fabrice Bellard and the QEMU Project developers\n";
        let emulator = Emulator::read(debian).unwrap();
        assert_eq!(emulator.to_string(), "QEMU 10.0.13");
        assert!(
            emulator
                .reported
                .ends_with("(Debian 1:10.0.13+ds-0+deb13u1)")
        );
        assert_eq!(emulator.major(), 10);
        let older = Emulator::read("QEMU emulator version 7.2.0").map(|older| older.major());
        assert_eq!(older, Some(7));
        for other in [
            "",
            "GNU bash, version 5.2.15(1)-release",
            "QEMU emulator version ",
        ] {
            assert_eq!(Emulator::read(other), None, "{other}");
        }
    }

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let error = Emulator::qemu(Path::new("/nonexistent/qemu")).unwrap_err();
        assert!(error.to_string().contains("./bootstrap"), "{error}");
    }

    #[test]
    fn another_program_is_refused() {
        let error = Emulator::qemu(Path::new("/bin/true")).unwrap_err();
        assert!(error.to_string().contains("is not QEMU"), "{error}");
    }
}
