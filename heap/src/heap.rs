//! The heap: locks, growth, and the implementation of Rust's allocator interface.

use core::alloc::{GlobalAlloc, Layout};
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::lock::{Lock, Waiter};
use crate::regions::{Regions, room_for};
use crate::{Platform, Statistics};

/// A heap for a whole kernel: `#[global_allocator]` material.
///
/// | from | allocations come from |
/// |---|---|
/// | [`new`](Self::new) | nowhere: null |
/// | [`start_boot`](Self::start_boot) | the boot arena: null when it is full |
/// | [`open`](Self::open) | memory that [`Platform::grow`] gives: null when it gives no more |
///
/// A block may be freed at any time, by any CPU; its address tells where it belongs.
///
/// # Never a deadlock
///
/// Every operation disables interrupts on its CPU, so an interrupt handler may allocate and free at any
/// instruction. A non-maskable interrupt, a panic, or [`Platform::grow`] itself can still reach the
/// heap while its own CPU is inside. It gets null for an allocation, and its free leaves the block
/// live; both are counted as [refusals](Statistics::refusals). (`grow` holds no lock that freeing
/// needs, and may free.) This takes a CPU number: a CPU for which [`Platform::cpu`] is `None` waits for
/// the free lists like any other, so it must not use the heap from an NMI; and it does not wait for
/// growth, but gets null if one is under way.
pub struct Heap<P> {
    platform: P,
    /// Taken before the platform's locks, and these before `regions`.
    growth: Lock<()>,
    regions: Lock<Regions>,
    /// Outside the lock: an operation is refused when it can't get the lock.
    refusals: AtomicU64,
}

/// The CPU that this runs on, which stays the same while this lives: interrupts are disabled.
struct Here<'a, P> {
    platform: &'a P,
    cpu: Option<usize>,
}

impl<P: Platform> Waiter for Here<'_, P> {
    fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    fn wait(&self, holder: Option<usize>, state: &mut u64) {
        self.platform.wait_for_lock(holder, state);
    }
}

impl<P: Platform> Heap<P> {
    /// Creates a heap without memory.
    pub const fn new(platform: P) -> Self {
        Self {
            platform,
            growth: Lock::new(()),
            regions: Lock::new(Regions::new()),
            refusals: AtomicU64::new(0),
        }
    }

    /// Adds the boot arena: the memory that the heap lives on before it may grow.
    ///
    /// Needs nothing to be set up: neither per-CPU state nor page tables of the kernel's own.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the heap has an arena already or this one is too small. The arena is lost
    /// then.
    pub fn start_boot(&self, arena: &'static mut [MaybeUninit<u8>]) -> Result<(), StartError> {
        let _interrupts = self.platform.disable_interrupts();
        match self.regions.lock(&self.here()) {
            Some(mut regions) => regions.start_boot(arena),
            None => Err(StartError::AlreadyStarted),
        }
    }

    /// Allows the heap to grow by [`Platform::grow`] from now on.
    ///
    /// Called once the platform can grow. Blocks in the boot arena stay there until they are freed.
    pub fn open(&self) {
        let _interrupts = self.platform.disable_interrupts();
        if let Some(mut regions) = self.regions.lock(&self.here()) {
            regions.open();
        }
    }

    /// Returns what the heap holds at this instant, exactly.
    ///
    /// # Panics
    ///
    /// If this CPU is inside the heap, that is, in an NMI or panic handler. These use
    /// [`try_statistics`](Self::try_statistics).
    #[track_caller]
    pub fn statistics(&self) -> Statistics {
        let _interrupts = self.platform.disable_interrupts();
        match self.regions.lock(&self.here()) {
            Some(regions) => self.with_refusals(regions.accounts()),
            None => panic!("heap statistics asked for from inside the heap: use try_statistics"),
        }
    }

    /// Returns what the heap holds, or `None` if any CPU is inside it: never waits, so it is safe in an
    /// NMI and after a panic.
    pub fn try_statistics(&self) -> Option<Statistics> {
        let _interrupts = self.platform.disable_interrupts();
        let accounts = self.regions.try_lock(self.platform.cpu())?.accounts();
        Some(self.with_refusals(accounts))
    }

    /// Returns whether this CPU is inside the heap: in an NMI or panic handler, a sign that the heap
    /// was interrupted or is itself at fault.
    pub fn is_held_here(&self) -> bool {
        let _interrupts = self.platform.disable_interrupts();
        let cpu = self.platform.cpu();
        self.regions.is_held_by(cpu) || self.growth.is_held_by(cpu)
    }

    /// Returns the platform this heap stands on.
    pub const fn platform(&self) -> &P {
        &self.platform
    }

    fn here(&self) -> Here<'_, P> {
        Here {
            platform: &self.platform,
            cpu: self.platform.cpu(),
        }
    }

    fn with_refusals(&self, accounts: Statistics) -> Statistics {
        Statistics {
            // Relaxed: a counter for reports.
            refusals: self.refusals.load(Ordering::Relaxed),
            ..accounts
        }
    }

    fn refuse(&self) {
        // Relaxed: as in `with_refusals`.
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    /// Allocates a block. The caller has disabled interrupts.
    fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        let here = self.here();
        // Refused even where a free block would do: code that allocates while growing must fail
        // every time, not only when memory is short.
        if self.growth.is_held_by(here.cpu) {
            return None;
        }
        {
            let mut regions = self.regions.lock(&here)?;
            let block = regions.allocate(layout);
            if block.is_some() || !regions.is_open() {
                return block;
            }
        }

        let _growth = match here.cpu {
            Some(_) => self.growth.lock(&here)?,
            None => self.growth.try_lock(None)?,
        };
        {
            let mut regions = self.regions.lock(&here)?;
            // Another CPU may have grown the heap while this one waited.
            let block = regions.allocate(layout);
            if block.is_some() || regions.is_full() {
                return block;
            }
        }
        let piece = self.platform.grow(room_for(layout)?)?;
        let mut regions = self.regions.lock(&here)?;
        // SAFETY: the contract of `Platform::grow`.
        unsafe { regions.add(piece) };
        regions.allocate(layout)
    }
}

// SAFETY: (1) blocks come from free lists over memory that belongs to the heap alone (the contracts
// of `start_boot` and `Platform::grow`), with the size and alignment asked for, and stay until
// released. (2) Nothing unwinds except over a free that breaks this trait's contract, or to end a run
// (`lock_stuck`).
unsafe impl<P: Platform> GlobalAlloc for Heap<P> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _interrupts = self.platform.disable_interrupts();
        match self.allocate(layout) {
            Some(block) => block.as_ptr(),
            None => {
                self.refuse();
                ptr::null_mut()
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let released = {
            let _interrupts = self.platform.disable_interrupts();
            match (self.regions.lock(&self.here()), NonNull::new(block)) {
                // SAFETY: `block` came from `alloc` with this layout and is live: the contract of
                // `GlobalAlloc::dealloc`.
                (Some(mut regions), Some(block)) => unsafe { regions.release(block, layout) },
                (Some(_), None) => false,
                (None, _) => {
                    self.refuse();
                    true
                }
            }
        };
        assert!(released, "{block:p} freed, but it does not lie in the heap");
    }
}

impl<P: Platform> fmt::Debug for Heap<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap")
            .field("statistics", &self.try_statistics())
            .finish_non_exhaustive()
    }
}

/// The reason why a boot arena was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The heap has a boot arena already.
    AlreadyStarted,
    /// The arena has no room for even one free block.
    ArenaTooSmall {
        /// The arena's size in bytes.
        bytes: usize,
        /// The minimum size in bytes.
        min: usize,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyStarted => f.write_str("the heap already has a boot arena"),
            Self::ArenaTooSmall { bytes, min } => {
                write!(
                    f,
                    "a boot arena of {bytes} bytes is too small: give it at least {min}"
                )
            }
        }
    }
}

impl core::error::Error for StartError {}

#[cfg(all(test, feature = "hosted"))]
mod tests {
    use std::boxed::Box;
    use std::format;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::string::ToString;

    use super::*;
    use crate::hosted::{Growth, Hosted};

    const LAYOUT: Layout = Layout::new::<[u64; 8]>();

    #[test]
    fn nmi_on_top_of_the_heap_is_refused_and_never_waits() {
        let heap = Heap::new(Hosted::new(1 << 20, Growth::Contiguous));
        heap.open();
        // SAFETY: the size isn't zero.
        let block = unsafe { heap.alloc(LAYOUT) };
        assert!(!block.is_null() && !heap.is_held_here());
        {
            let guard = heap.regions.lock(&heap.here());
            assert!(guard.is_some() && heap.is_held_here());
            // SAFETY: as above.
            assert!(unsafe { heap.alloc(LAYOUT) }.is_null());
            // SAFETY: live, and of this layout; it stays so, as the free is refused.
            unsafe { heap.dealloc(block, LAYOUT) };
            assert_eq!(heap.try_statistics(), None);
            assert!(format!("{heap:?}").contains("statistics: None"));
            let arena = Box::leak(Box::new([MaybeUninit::uninit(); 64]));
            assert_eq!(heap.start_boot(arena), Err(StartError::AlreadyStarted));
            heap.open();
        }
        let statistics = heap.statistics();
        assert_eq!((statistics.live_blocks, statistics.refusals), (1, 2));
        assert_eq!(heap.try_statistics(), Some(statistics));
        assert!(format!("{heap:?}").contains("live_blocks: 1"));
        // SAFETY: live, and of this layout.
        unsafe { heap.dealloc(block, LAYOUT) };
        assert_eq!(heap.statistics().live_blocks, 0);
    }

    #[test]
    fn statistics_from_inside_the_heap_are_a_mistake_that_is_told() {
        let heap = Heap::new(Hosted::new(1 << 20, Growth::Contiguous));
        let words = catch_unwind(AssertUnwindSafe(|| {
            let _guard = heap.regions.lock(&heap.here());
            heap.statistics();
        }))
        .unwrap_err();
        let words = words.downcast::<&str>().unwrap();
        assert!(words.ends_with("use try_statistics"), "{words}");
        assert!(!heap.is_held_here());
    }

    #[test]
    fn errors_say_what_to_do() {
        let text = StartError::AlreadyStarted.to_string();
        assert!(text.contains("already has a boot arena"));
        let text = StartError::ArenaTooSmall { bytes: 8, min: 31 }.to_string();
        assert!(text.contains("8 bytes") && text.contains("at least 31"));
    }
}
