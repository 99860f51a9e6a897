//! Hooks: the functions that a room needs of a higher one. All of them stand in this one table, which the
//! BSP registers first of all.
//!
//! None is on a fast path: no allocation, no free, no call and no entry of an interrupt uses one.

use conquer_once::spin::OnceCell;

use muster_paging::VirtAddr;

use crate::boot::stack;

/// The functions of higher rooms that lower ones call.
pub struct Hooks {
    /// Reads a word of memory for a fault report; `None` if it can't be read.
    pub read_word: fn(address: VirtAddr) -> Option<u64>,
    /// Returns the name of the region at an address, for a fault report, if that is known.
    pub name_of: fn(address: VirtAddr) -> Option<&'static str>,
    /// Returns a number that changes when this CPU's caches of memory are used.
    pub cache_use: fn() -> u64,
    /// Drains them, in steps.
    pub drain_caches: fn(),
}

/// Before the table is registered: a fault report reads the boot stack.
static NONE: Hooks = Hooks {
    read_word: stack::peek_boot,
    name_of: |_| None,
    cache_use: || 0,
    drain_caches: || {},
};

static HOOKS: OnceCell<Hooks> = OnceCell::uninit();

/// Registers the table, for good. Called once, on the BSP, before any AP runs.
pub fn register(hooks: Hooks) {
    HOOKS.init_once(|| hooks);
}

/// Returns the table.
pub fn get() -> &'static Hooks {
    HOOKS.try_get().unwrap_or(&NONE)
}
