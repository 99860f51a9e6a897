//! The audit: no memory may leak.

use alloc::format;
use alloc::string::String;

use muster_events::Audit;

use super::{cpu_state, recount};
use crate::boot::bytes::Bytes;
use crate::boot::owner::Owner;
use crate::mm::heap::{self, HeapReading};
use crate::mm::{checked, shared};
use crate::report::events;

/// The figures of the heap and of mappings before the client's work.
pub struct Baseline {
    heap: HeapReading,
    /// Bytes of memory that is mapped at run time.
    mapped: u64,
}

impl Baseline {
    /// Reads the figures now, with every CPU's cache drained.
    pub fn take() -> Self {
        heap::drain();
        Self {
            heap: HeapReading::take(),
            mapped: shared::get().totals()[Owner::Mappings],
        }
    }

    /// Checks the figures of now against the baseline, and all counters of the machine's memory
    /// against the memory itself.
    ///
    /// # Errors
    ///
    /// The first figure that is wrong, in words.
    pub fn compare(&self) -> Result<(), String> {
        heap::drain();
        if let Some(totals) = checked::totals() {
            log::info!("heap: {} blocks checked, none misused", totals.sound_blocks);
        }
        let (before, after) = (self.heap, HeapReading::take());
        log::info!(
            "live, arena included: {} B before, {} B after",
            before.live_bytes,
            after.live_bytes
        );
        log::info!(
            "heap: {} of frames drained, {} at most",
            Bytes(shared::get().owned_heap_bytes()),
            Bytes(after.peak_bytes)
        );
        if (after.live_bytes, after.live_blocks) != (before.live_bytes, before.live_blocks) {
            return Err(format!(
                "{} bytes in {} blocks are live after the client, {} in {} were before",
                after.live_bytes, after.live_blocks, before.live_bytes, before.live_blocks
            ));
        }
        let mapped = shared::get().totals()[Owner::Mappings];
        if mapped != self.mapped {
            return Err(format!(
                "{mapped} bytes are mapped after the client, {} were before: drop its mappings and stacks",
                self.mapped
            ));
        }
        if after.cached_bytes != 0 {
            return Err(format!(
                "{} bytes are cached after the drain",
                after.cached_bytes
            ));
        }
        cpu_state::check()?;
        log::info!("registers: on every CPU as set");
        // SAFETY: between jobs the other CPUs are idle, and this one unmaps nothing.
        let code =
            unsafe { shared::get().verify_exclusion() }.map_err(|error| format!("{error}"))?;
        log::info!("rights: {} of code, written nowhere", Bytes(code));
        // SAFETY: as above.
        let memory =
            unsafe { recount::recount(shared::get()) }.map_err(|error| format!("{error}"))?;
        log::info!(
            "audit: clean, each frame of {} has one owner",
            Bytes(memory)
        );
        let whole = shared::get().whole_free_bytes();
        log::info!("free in whole pages of 2 MiB: {}", Bytes(whole));
        events::emit(Audit {
            memory_bytes: memory,
            live_before_bytes: before.live_bytes,
            live_after_bytes: after.live_bytes,
            heap_bytes: shared::get().owned_heap_bytes(),
            heap_peak_bytes: after.peak_bytes,
            whole_free_bytes: whole,
        });
        Ok(())
    }
}
