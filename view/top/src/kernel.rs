//! The run: the runner's `monitor` as a child, controlled by the keys that are typed at its prompt.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// The key that ends QEMU, whatever the kernel does: Ctrl-], as the runner has it.
const KILL: &str = "\x1d";

/// What comes from the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A line of the kernel's events.
    Event(String),
    /// A line of the log or of the runner's own.
    Words(String),
    /// Nothing more.
    Over,
}

/// The run. Dropped, it is ended, at once.
pub struct Kernel {
    child: Child,
    keyboard: Option<ChildStdin>,
    said: Receiver<Said>,
    is_over: bool,
}

impl Kernel {
    /// Starts the runner, with these arguments of `just monitor`.
    ///
    /// # Errors
    /// If there is no Cargo to start it.
    pub fn start(arguments: &[String]) -> Result<Self> {
        let mut command = Command::new("cargo");
        command
            .args(["run", "--quiet", "--package", "muster-runner", "--"])
            .arg("monitor")
            .args(arguments)
            .args(["output=json", "events=-"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start cargo")?;
        let (sender, said) = mpsc::channel();
        if let Some(events) = child.stdout.take() {
            send_lines(events, sender.clone(), Said::Event);
        }
        if let Some(words) = child.stderr.take() {
            send_lines(words, sender, Said::Words);
        }
        Ok(Self {
            keyboard: child.stdin.take(),
            child,
            said,
            is_over: false,
        })
    }

    /// Waits for its next line, for a limited time.
    pub fn listen(&mut self, timeout: Duration) -> Option<Said> {
        if self.is_over {
            return None;
        }
        match self.said.recv_timeout(timeout) {
            Ok(said) => Some(said),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.is_over = true;
                Some(Said::Over)
            }
        }
    }

    /// Returns whether its output has ended.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Types a line at the kernel's prompt; early ones wait for it.
    pub fn enter(&mut self, line: &str) {
        self.press(&format!("{line}\r"));
    }

    /// Ends QEMU, whatever the kernel does.
    pub fn kill(&mut self) {
        self.press(KILL);
    }

    fn press(&mut self, keys: &str) {
        let press = |keyboard: &mut ChildStdin| -> io::Result<()> {
            keyboard.write_all(keys.as_bytes())?;
            keyboard.flush()
        };
        // It fails only if the run is over, and then that is reported.
        self.keyboard.as_mut().map_or(Ok(()), press).ok();
    }

    /// Waits for the runner's end, once its output has ended.
    ///
    /// # Errors
    /// If the system does not report it.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("cannot wait for the runner")
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.kill();
        self.keyboard = None;
        // Nobody is left to be told.
        let _ = self.child.wait();
    }
}

/// Sends each line until there are no more.
fn send_lines(pipe: impl Read + Send + 'static, to: Sender<Said>, said: fn(String) -> Said) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe
            .read_until(b'\n', &mut line)
            .is_ok_and(|length| length > 0)
        {
            let text = String::from_utf8_lossy(&line);
            if to.send(said(text.trim_end().into())).is_err() {
                return;
            }
            line.clear();
        }
    });
}
