//! The audit: nothing that was taken may stay behind.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use crate::{crew, heap, shared};

/// What was held at one moment.
pub struct Reading {
    live_bytes: u64,
    live_blocks: u64,
}

impl Reading {
    /// Reads what is held now.
    pub fn take() -> Self {
        let statistics = heap::statistics();
        Self {
            live_bytes: statistics.live_bytes,
            live_blocks: statistics.live_blocks,
        }
    }

    /// Holds what is held now against this reading, and the books on the machine's
    /// memory against the memory itself.
    ///
    /// # Errors
    ///
    /// What does not add up, in words.
    pub fn compare(&self) -> Result<(), String> {
        let statistics = heap::statistics();
        let owned = shared::get().owned_heap_bytes();
        log::info!(
            "heap: {} B live before, {} B after",
            self.live_bytes,
            statistics.live_bytes
        );
        log::info!(
            "heap: {} at most, in {} of frames",
            Bytes(statistics.peak_live_bytes),
            Bytes(owned)
        );
        if (statistics.live_bytes, statistics.live_blocks) != (self.live_bytes, self.live_blocks) {
            return Err(format!(
                "{} bytes in {} blocks are live after the stress, {} in {} were before",
                statistics.live_bytes, statistics.live_blocks, self.live_bytes, self.live_blocks
            ));
        }
        let root = shared::get().root();
        if let Some((index, shared)) = crew::members().find(|(_, cpu)| cpu.home.cr3() != root) {
            return Err(format!(
                "CPU {index} runs on the tables at {:#x} instead of {root:#x}",
                shared.home.cr3()
            ));
        }
        let memory = shared::get()
            .recount()
            .map_err(|error| format!("{error}"))?;
        log::info!(
            "audit: clean, each frame of {} has one owner",
            Bytes(memory)
        );
        Ok(())
    }
}

/// A number of bytes, for people.
pub struct Bytes(pub u64);

impl core::fmt::Display for Bytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut unit = 0;
        let mut tenths = u128::from(self.0) * 10;
        while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
            tenths /= 1024;
            unit += 1;
        }
        // Not on the heap: it may be what has just run out.
        let mut text = heapless::String::<24>::new();
        if unit == 0 {
            write!(text, "{} {}", tenths / 10, UNITS[unit])?;
        } else {
            write!(text, "{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])?;
        }
        f.pad(&text)
    }
}
