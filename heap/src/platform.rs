//! The platform of the heap: what it asks of the kernel.

use core::ptr::NonNull;

use crate::lock;

/// The kernel (or the operating system) below a heap.
///
/// # Lock order
///
/// The heap calls [`grow`](Self::grow) while it holds its growth lock, but not the lock of its
/// free lists: *growth → whatever the platform locks → free lists*. So the platform's locks lie
/// below the heap's growth lock, and code that holds one of them must not allocate: growth would
/// need that lock. Freeing is always allowed.
///
/// # Safety
///
/// 1. [`cpu`](Self::cpu) returns different numbers, less than `usize::MAX - 1`, to two CPUs that run at the same time, and to
///    each CPU always the same one since it first had one, in an NMI as well. A CPU gets its number while it is outside the
///    heap: neither in a method of this trait, nor in what interrupts the heap's code there.
/// 2. While an [`InterruptGuard`](Self::InterruptGuard) is alive, no interrupt handler that may
///    allocate or free runs on this CPU, and the code stays on this CPU. (A non-maskable interrupt
///    cannot be disabled; the heap answers it with null, see [`Heap`](crate::Heap).)
/// 3. The memory [`grow`](Self::grow) returns is mapped, readable and writable on all CPUs, used by
///    nothing else, and stays so for good. Where it starts at the end of another piece, it is reached by the pointer to
///    that: both belong to one allocation, in the language's sense.
/// 4. No method unwinds, nor does the drop of an [`InterruptGuard`](Self::InterruptGuard), as for
///    [`FramePlatform`](crate::FramePlatform).
pub unsafe trait Platform: Sync {
    /// While alive, interrupts are disabled; afterwards they are as before. Guards nest.
    type InterruptGuard;

    /// Disables interrupts on this CPU until the result is dropped, and with them preemption.
    fn disable_interrupts(&self) -> Self::InterruptGuard;

    /// Returns the number of the CPU this runs on, less than `usize::MAX - 1`, or `None` before the
    /// CPU's own state exists.
    ///
    /// Called with interrupts disabled, and also from an NMI. By the number the heap distinguishes a
    /// CPU that waits for itself from one that waits for another.
    fn cpu(&self) -> Option<usize>;

    /// Returns more memory: at least `at_least` bytes in one piece, or `None` if the machine has no
    /// more.
    ///
    /// The memory need not be zeroed. A piece that starts where the previous one ended extends it;
    /// any other becomes a region of its own, of which the heap keeps at most
    /// [`MAX_REGIONS`](crate::MAX_REGIONS): a platform that can't grow contiguously should give
    /// large pieces. `at_least` is rarely a multiple of the page size; round up, and add what makes
    /// growth rare.
    ///
    /// Called with interrupts disabled and by one CPU at a time. Other CPUs may be waiting for it
    /// with interrupts disabled, so it must not wait for an answer from them (a TLB shootdown; a
    /// fresh mapping needs none). It must not allocate from the heap either: an allocation inside
    /// `grow` gets null.
    fn grow(&self, at_least: usize) -> Option<NonNull<[u8]>>;

    /// Waits a moment for a lock of the heap's that the CPU `holder` holds; `None`: a CPU that has no
    /// number. As [`FramePlatform::wait_for_lock`](crate::FramePlatform::wait_for_lock); but the
    /// growth lock is held as long as [`grow`](Self::grow) takes.
    fn wait_for_lock(&self, holder: Option<usize>, state: &mut u64) {
        if lock::is_overdue(state) {
            self.lock_stuck(holder);
        }
    }

    /// Ends the run: the CPU `holder` has stopped with a lock of the heap's, so that nobody else can
    /// go on. Called with interrupts disabled; it must not use the heap.
    ///
    /// # Panics
    ///
    /// Unless overridden.
    fn lock_stuck(&self, holder: Option<usize>) -> ! {
        lock::report_stuck(holder)
    }
}
