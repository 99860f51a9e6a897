//! The flag by which Ctrl-C, a closed terminal or a kill ends a run early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Whether the user, or the system, wants the run to end now.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes note of Ctrl-C, a closed terminal and a polite kill from here on,
    /// instead of dying and leaving the emulator behind.
    ///
    /// # Errors
    /// If the system refuses to deliver signals.
    pub fn watch() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, interrupt.0.clone())
                .context("cannot watch for Ctrl-C")?;
        }
        Ok(interrupt)
    }

    /// Raises it, for a person who asks for it in another way.
    pub fn raise(&self) {
        // Relaxed, as nothing else is read by it.
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns whether it has come.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
