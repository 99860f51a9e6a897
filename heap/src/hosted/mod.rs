//! Threads standing for CPUs and the host's memory for the machine's: for tests and benchmarks.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::alloc::System;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread_local;

use crate::Platform;

mod frames;

pub use frames::HostedFrames;

/// A page of the machine that [`Hosted`] stands for, in bytes.
pub const PAGE: usize = 4096;

/// The layout of the pieces that [`Hosted`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Each starts where the one before ended.
    Contiguous,
    /// There is a page between them.
    Scattered,
}

/// A machine with a fixed amount of memory, on which each thread is a CPU.
///
/// The memory comes from the host's own allocator in one piece, at the first growth, and goes back
/// when this is dropped; no block of the heap may be used after that.
#[derive(Debug)]
pub struct Hosted {
    bytes: usize,
    growth: Growth,
    memory: OnceLock<Option<Memory>>,
    given: Mutex<usize>,
}

#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Memory` only owns its bytes; who may touch which is settled by `Hosted::given` and then
// by the heap.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`: a shared `Memory` gives its address, nothing more.
unsafe impl Sync for Memory {}

impl Hosted {
    /// Creates a machine with this many bytes of memory, rounded down to whole pages.
    pub const fn new(bytes: usize, growth: Growth) -> Self {
        Self {
            bytes,
            growth,
            memory: OnceLock::new(),
            given: Mutex::new(0),
        }
    }

    fn memory(&self) -> Option<&Memory> {
        self.memory
            .get_or_init(|| Memory::new(self.bytes / PAGE * PAGE, PAGE))
            .as_ref()
    }
}

// SAFETY: (1) `cpu` numbers threads from a counter. (2) Nothing interrupts a thread but a signal
// handler, which must not allocate in any Rust program. (3) `grow` gives each byte of a live
// allocation once, which lives as long as this does.
unsafe impl Platform for Hosted {
    type InterruptGuard = ();

    fn disable_interrupts(&self) {}

    fn cpu(&self) -> Option<usize> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static CPU: Cell<Option<usize>> = const { Cell::new(None) };
        }
        if CPU.get().is_none() {
            // Relaxed: nothing but the number goes from one thread to another.
            CPU.set(Some(NEXT.fetch_add(1, Ordering::Relaxed)));
        }
        CPU.get()
    }

    fn grow(&self, at_least: usize) -> Option<NonNull<[u8]>> {
        let memory = self.memory()?;
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let gap = match self.growth {
            Growth::Scattered if *given > 0 => PAGE,
            _ => 0,
        };
        let start = given.checked_add(gap)?;
        let length = at_least.checked_next_multiple_of(PAGE)?;
        let end = start.checked_add(length)?;
        if end > memory.layout.size() {
            return None;
        }
        *given = end;
        // SAFETY: `start` is at most `end`, which lies within the allocation.
        let piece = unsafe { memory.start.add(start) };
        Some(NonNull::slice_from_raw_parts(piece, length))
    }
}

impl Memory {
    fn new(bytes: usize, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes, align)
            .ok()
            .filter(|layout| layout.size() > 0)?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { System.alloc(layout) })?;
        Some(Self { start, layout })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout, and freed only here.
        unsafe { System.dealloc(self.start.as_ptr(), self.layout) };
    }
}
