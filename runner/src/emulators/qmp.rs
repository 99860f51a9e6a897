//! QEMU's machine protocol (QMP), by which a program asks QEMU itself.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Where one QEMU answers.
#[derive(Debug)]
pub struct Socket {
    /// A folder of its own: the name of a socket may not be long.
    folder: tempfile::TempDir,
}

impl Socket {
    /// Creates a socket that has no listener yet.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir().context("no place for a socket")?;
        Ok(Self { folder })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// Returns the arguments by which QEMU answers here.
    pub fn arguments(&self) -> [String; 2] {
        let socket = format!("unix:{},server=on,wait=off", self.path().display());
        ["-qmp".into(), socket]
    }

    /// Connects to QEMU, which may take so long for each answer.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub fn connect(&self, timeout: Duration) -> Result<Qmp> {
        let stream = UnixStream::connect(self.path()).context("QEMU has no QMP")?;
        stream.set_read_timeout(Some(timeout))?;
        let answers = BufReader::new(stream.try_clone()?).lines();
        let mut qmp = Qmp { stream, answers };
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }
}

/// A connection to QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    answers: Lines<BufReader<UnixStream>>,
}

impl Qmp {
    /// Has QEMU execute a command, and returns what it answers.
    ///
    /// # Errors
    /// If QEMU does not answer, or can't do it.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let question = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream, "{question}")?;
        loop {
            let line = self.answers.next().context("QEMU closed its QMP")??;
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU says {error}");
            }
            // What else comes is a greeting, or an event.
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }
}
