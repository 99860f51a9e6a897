//! Reads of memory for a fault report.

use muster_paging::{PhysicalMemory, VirtAddr};

use super::shared::SHARED;
use crate::boot::stack;
use crate::boot::window::{HEAP, MAPPINGS};

/// Reads a word of the stack through the tables in use, for a fault report: `None`
/// if the address is not mapped or is no memory. Before the kernel has tables of its
/// own, only the boot stack can be read.
pub fn read_word(address: VirtAddr) -> Option<u64> {
    if !address.is_multiple_of(8) {
        return None;
    }
    let Ok(shared) = SHARED.try_get() else {
        return stack::peek_boot(address);
    };
    // SAFETY: the run is over: a CPU that unmaps is stopped, or about to be, and a table that it frees
    // is not allocated again.
    let phys = unsafe { shared.published_tables() }
        .translate(address)?
        .phys;
    let word = shared.hhdm.pointer(phys)?.cast::<u64>();
    // SAFETY: the HHDM maps the word, which is aligned and lies in one page. Another CPU may be
    // writing it: a stale value does no harm in a report.
    Some(unsafe { word.read_volatile() })
}

/// Returns the name of the region at an address, if the kernel knows one.
pub fn name_of(address: VirtAddr) -> Option<&'static str> {
    let shared = SHARED.try_get().ok()?;
    if HEAP.contains(address) {
        return Some("the heap");
    }
    if MAPPINGS.contains(address) {
        return Some("a mapping, its guard, or one that is gone");
    }
    shared.plan.region_at(address).map(|region| region.name)
}
