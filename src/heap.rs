//! The global heap: `muster_heap` on the kernel's frames.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use muster_heap::{Heap, Platform};
use x86_64::instructions::interrupts;

use crate::{cpu, shared};

/// What the heap lives on until the kernel's tables are loaded: enough for the
/// physical map and the mapping plan of a machine with hundreds of memory-map
/// entries and hundreds of CPUs.
const BOOT_BYTES: usize = 1024 * 1024;

#[global_allocator]
static HEAP: Heap<Kernel> = Heap::new(Kernel);

/// What the heap needs of this kernel.
pub struct Kernel;

/// Puts the interrupt flag back to what it was.
pub struct InterruptGuard {
    were_enabled: bool,
}

impl Drop for InterruptGuard {
    fn drop(&mut self) {
        if self.were_enabled {
            interrupts::enable();
        }
    }
}

// SAFETY: (1) the CPU number is the index of the block that runs here, and no two
// CPUs claim one block; (2) the guard keeps IF clear, and nothing moves code from
// one CPU to another; (3) `grow` gives heap-window addresses, each only once,
// mapped to frames taken for the heap, in the tables that every CPU loads before
// it allocates, and never unmapped.
unsafe impl Platform for Kernel {
    type InterruptGuard = InterruptGuard;

    fn keep_interrupts_out(&self) -> InterruptGuard {
        let were_enabled = interrupts::are_enabled();
        interrupts::disable();
        InterruptGuard { were_enabled }
    }

    fn cpu(&self) -> Option<usize> {
        cpu::try_with(|here| here.index() as usize)
    }

    fn grow(&self, at_least: usize) -> Option<NonNull<[u8]>> {
        shared::get().grow_heap(at_least)
    }
}

/// Gives the heap its boot arena. Later calls do nothing.
pub fn start() {
    struct Arena(UnsafeCell<[MaybeUninit<u8>; BOOT_BYTES]>);
    // SAFETY: the cell is reached only once, below.
    unsafe impl Sync for Arena {}
    static ARENA: Arena = Arena(UnsafeCell::new([MaybeUninit::uninit(); BOOT_BYTES]));
    static TAKEN: AtomicBool = AtomicBool::new(false);

    if !TAKEN.swap(true, Ordering::AcqRel) {
        // SAFETY: the flag lets one caller through, once, so this is the only
        // reference to the arena there ever is.
        let arena = unsafe { &mut *ARENA.0.get() };
        // Fails only for a second arena or one that is too small; this is neither.
        let started = HEAP.start_boot(arena);
        debug_assert!(started.is_ok());
    }
}

/// Lets the heap grow from the machine's free frames. Called once the shared
/// memory state is published.
pub fn open() {
    HEAP.open();
}

/// What the heap holds at this instant.
pub fn statistics() -> muster_heap::Statistics {
    HEAP.statistics()
}

/// Bytes that the heap has and nobody uses.
pub fn unused_bytes() -> u64 {
    let statistics = HEAP.statistics();
    statistics
        .capacity_bytes
        .saturating_sub(statistics.live_bytes)
}
