//! The platform of the checked heap: what it asks of the kernel.

use core::hint;

use super::{Callers, Misuse, Quarantine};

/// The number of times that an allocation polls for memory that another CPU is about to give back: for
/// microseconds.
const MAX_RELEASE_POLLS: u64 = 1 << 8;

/// The kernel (or the operating system) around a [`CheckedHeap`](super::CheckedHeap).
///
/// All of it is called with interrupts as the caller of the heap has them, and in interrupt handlers
/// if these use the heap.
///
/// # Safety
///
/// 1. If [`may_read`](Self::may_read) says so, these bytes are mapped and may be read.
/// 2. The quarantines that [`quarantine`](Self::quarantine) returns, and those that
///    [`each_quarantine`](Self::each_quarantine) visits, serve one heap only.
/// 3. No method unwinds: code that calls an allocator is compiled as code that nothing unwinds through. [`report`](Self::report)
///    may: it is called for a breach of the allocator's own contract.
pub unsafe trait CheckPlatform: Sync {
    /// Returns the number of the CPU this runs on, or `None` before the CPU's own state exists. For
    /// reports.
    fn cpu(&self) -> Option<usize>;

    /// Returns the quarantine of the CPU this runs on. Any other will do too, only slower: for a CPU
    /// that has none yet, or if the code goes on on another CPU.
    fn quarantine(&self) -> &Quarantine;

    /// Calls the visitor with each quarantine that [`quarantine`](Self::quarantine) may have returned.
    fn each_quarantine(&self, visit: &mut dyn FnMut(&Quarantine));

    /// Returns whether `length` bytes from `start` on may be a part of the wrapped heap's memory, and
    /// can be read. The heap asks it of each address that is freed.
    fn may_read(&self, start: usize, length: usize) -> bool;

    /// Returns the return addresses on the way to here, for allocations and frees that come by way of
    /// [`GlobalAlloc`](core::alloc::GlobalAlloc).
    fn callers(&self) -> Callers {
        Callers::NONE
    }

    /// Returns how many bytes the wrapped heap can have at most, used or not: for a request that takes more
    /// no quarantine is flushed.
    fn capacity(&self) -> usize {
        usize::MAX
    }

    /// Waits a moment while another CPU has blocks between its quarantine and the wrapped heap. Called
    /// again and again by an allocation that finds no memory, with no lock held. It must not use the heap.
    ///
    /// `state` is 0 when the allocation waits for the first time, and then what the last call left
    /// there. `false`: the allocation has waited long enough, and is refused. Unless overridden, that
    /// is after 2⁸ polls. A longer wait is not for a machine where handlers that nothing masks use the
    /// heap: such a handler may stand on top of the very code that it waits for, or of code that holds
    /// a lock of the wrapped heap.
    fn wait_for_release(&self, state: &mut u64) -> bool {
        *state += 1;
        hint::spin_loop();
        *state < MAX_RELEASE_POLLS
    }

    /// Ends the program, or this thread of it, because of a misuse. No lock is held.
    #[track_caller]
    fn report(&self, misuse: &Misuse) -> ! {
        panic!("{misuse}")
    }
}
