//! An emulator that is about to start, and one that runs.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context, Result};

use crate::symbols::Symbols;

/// The emulator, killed when the runner lets go of it for whatever reason.
pub struct Guest(pub(super) Child);

impl Guest {
    /// Starts the emulator in a process group of its own: Ctrl-C is for the runner
    /// (or for a debugger), which ends the emulator when it is done with it.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn start(command: &mut Command) -> Result<Self> {
        command.process_group(0);
        let child = command.spawn().with_context(|| {
            format!(
                "cannot start {}: ./bootstrap installs what is missing",
                command.get_program().display()
            )
        })?;
        Ok(Self(child))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if it has ended already, and then all is well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An emulator that is about to start, and how its machine reaches the runner.
pub struct Launch {
    /// What it is called before each line of its complaints.
    pub(super) name: &'static str,
    pub(super) command: Command,
    pub(super) serial: Serial,
    /// Whether a line of its standard error is a complaint.
    pub(super) is_complaint: fn(&str) -> bool,
    pub(super) status: FindStatus,
    /// Looks at the machine if it is ended before the kernel has said anything, and says what it sees.
    pub(super) postmortem: Option<OnEnd>,
}

/// Says in some lines where a machine stands.
pub(super) type OnEnd = Box<dyn FnOnce(&Symbols) -> Vec<String>>;

/// Finds the kernel's exit status by the emulator's own and its complaints.
pub(super) type FindStatus = Box<dyn Fn(ExitStatus, &[String]) -> ExitStatus>;

/// Where the machine's serial line is.
pub(super) enum Serial {
    /// The emulator's standard input and output.
    Standard,
    /// The emulator connects to this.
    Socket(TcpListener),
}

impl Launch {
    /// Launches QEMU, with the serial line at its standard input and output, and ended by the kernel
    /// with the kernel's own status.
    pub fn qemu(command: Command) -> Self {
        Self {
            name: "qemu",
            command,
            serial: Serial::Standard,
            is_complaint: |_| true,
            status: Box::new(|own, _| own),
            postmortem: None,
        }
    }

    /// Has `look` report the machine's state, if it is ended before the kernel has written
    /// anything.
    pub fn with_postmortem(self, look: impl FnOnce(&Symbols) -> Vec<String> + 'static) -> Self {
        Self {
            postmortem: Some(Box::new(look)),
            ..self
        }
    }

    /// Returns an emulator whose serial line is the first connection to a socket, which complains among other
    /// lines, and which leaves it to `status` to find the kernel's.
    pub fn apart(
        name: &'static str,
        command: Command,
        serial: TcpListener,
        is_complaint: fn(&str) -> bool,
        status: impl Fn(ExitStatus, &[String]) -> ExitStatus + 'static,
    ) -> Self {
        Self {
            name,
            command,
            serial: Serial::Socket(serial),
            is_complaint,
            status: Box::new(status),
            postmortem: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let error = Guest::start(&mut Command::new("/nonexistent/qemu"))
            .err()
            .unwrap();
        assert!(error.to_string().contains("./bootstrap"));
    }
}
