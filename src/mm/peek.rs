//! What a fault report reads of memory.

use muster_memory::PhysicalMemory;

use super::shared::SHARED;
use crate::boot::stack;
use crate::boot::window::{HEAP, MAPPINGS};

/// Reads a word of the stack through the tables in use, for a fault report: `None`
/// if the address is not mapped or is no memory. Before the kernel has tables of its
/// own, only the boot stack can be read.
pub fn read_word(address: u64) -> Option<u64> {
    if !address.is_multiple_of(8) {
        return None;
    }
    let Ok(shared) = SHARED.try_get() else {
        return stack::peek_boot(address);
    };
    // SAFETY: the run is over: whoever unmaps is stopped, or about to be, and what it gives back nobody
    // gets any more.
    let phys = unsafe { shared.published_tables() }
        .translate(address)?
        .phys;
    let word = shared.hhdm.pointer(phys)?.cast::<u64>();
    // SAFETY: the HHDM maps the word, which is aligned and lies in one page. Whoever
    // may be writing it, a stale value does no harm in a report.
    Some(unsafe { word.read_volatile() })
}

/// What lies at an address, in a word, if the kernel knows.
pub fn name_of(address: u64) -> Option<&'static str> {
    let shared = SHARED.try_get().ok()?;
    if HEAP.contains(address) {
        return Some("the heap");
    }
    if MAPPINGS.contains(address) {
        return Some("a mapping, its guard, or one that is gone");
    }
    shared.plan.region_at(address).map(|region| region.name)
}
