//! A heap for kernels: grows, knows to the byte what it holds, and answers with null where others
//! hang.
//!
//! - **Works before everything else**: on a boot arena first, on memory that grows once the kernel
//!   can map some.
//! - **Safe in interrupts**: each operation keeps interrupts out on its own CPU. What can't be kept
//!   out (an NMI, a panic inside the heap, growth that allocates) is detected and refused rather
//!   than deadlocked on.
//! - **Running out is an answer**: null, never a hang or a panic, also for layouts so large that
//!   their arithmetic would overflow.
//! - **Exact accounts**: [`Statistics`] prove that work freed all it allocated.
//!
//! The free lists are [`linked_list_allocator`]'s, behind one lock: little code, little memory, and
//! no scaling with the number of CPUs.
//!
//! # In a kernel
//!
//! A kernel says in a [`Platform`] which CPU it runs on, how to keep interrupts out, and where more
//! memory comes from. This one has 4 KiB frames and maps them one after the other into a window of
//! its own:
//!
//! ```no_run,standalone_crate
//! use core::arch::asm;
//! use core::mem::MaybeUninit;
//! use core::ptr::{self, NonNull};
//! use core::sync::atomic::{AtomicUsize, Ordering};
//!
//! use muster_heap::{Heap, Platform};
//! # mod frames { pub fn allocate(_count: usize) -> Option<std::ops::Range<u64>> { None } }
//! # mod tables { pub fn map(_page: usize, _frame: u64) {} }
//! # mod cpu { pub fn index() -> Option<usize> { None } }
//!
//! const WINDOW: usize = 0xffff_ff40_0000_0000;
//! const PAGE: usize = 4096;
//!
//! struct Machine {
//!     /// Bytes of the window that are mapped.
//!     mapped: AtomicUsize,
//! }
//!
//! /// Interrupts are off while this lives.
//! struct InterruptsOff {
//!     were_on: bool,
//! }
//!
//! impl InterruptsOff {
//!     fn new() -> Self {
//!         let flags: u64;
//!         // SAFETY: reads RFLAGS by way of the stack, and clears the interrupt flag.
//!         unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
//!         // Bit 9 is IF (Intel SDM, volume 1, section 3.4.3).
//!         Self { were_on: flags & (1 << 9) != 0 }
//!     }
//! }
//!
//! impl Drop for InterruptsOff {
//!     fn drop(&mut self) {
//!         if self.were_on {
//!             // SAFETY: interrupts were on before this guard, so they may be on after it.
//!             unsafe { asm!("sti") };
//!         }
//!     }
//! }
//!
//! // SAFETY: (1) `cpu::index` is unique per CPU. (2) With interrupts off, no handler runs and, as
//! // this kernel switches tasks only in the timer's, the code stays where it is. (3) A page of the
//! // window is mapped once, to a frame that the frame allocator has given away.
//! unsafe impl Platform for Machine {
//!     type InterruptGuard = InterruptsOff;
//!
//!     fn keep_interrupts_out(&self) -> InterruptsOff {
//!         InterruptsOff::new()
//!     }
//!
//!     fn cpu(&self) -> Option<usize> {
//!         cpu::index()
//!     }
//!
//!     fn grow(&self, at_least: usize) -> Option<NonNull<[u8]>> {
//!         // One CPU grows at a time, so nobody else changes this.
//!         let start = self.mapped.load(Ordering::Relaxed);
//!         let mut end = start;
//!         // All that it takes or nothing: half a piece would be of no use.
//!         for frame in frames::allocate(at_least.div_ceil(PAGE))? {
//!             tables::map(WINDOW + end, frame);
//!             end += PAGE;
//!         }
//!         self.mapped.store(end, Ordering::Relaxed);
//!         let piece = NonNull::new(ptr::with_exposed_provenance_mut(WINDOW + start))?;
//!         Some(NonNull::slice_from_raw_parts(piece, end - start))
//!     }
//! }
//!
//! #[global_allocator]
//! static HEAP: Heap<Machine> = Heap::new(Machine { mapped: AtomicUsize::new(0) });
//!
//! static mut ARENA: [MaybeUninit<u8>; 256 * 1024] = [MaybeUninit::uninit(); 256 * 1024];
//!
//! fn start() -> Result<(), muster_heap::StartError> {
//!     // SAFETY: runs once, on the first CPU, and nothing else names the arena.
//!     HEAP.start_boot(unsafe { &mut *(&raw mut ARENA) })?;
//!     // `Box`, `Vec` and `format!` work from here on; set up frames and page tables with them.
//!     HEAP.open();
//!     // From here on, the heap grows.
//!     Ok(())
//! }
//! # fn main() {}
//! ```
//!
//! # On a host
//!
//! With the feature `hosted` there is a platform on which threads stand for CPUs, with as much
//! memory as a test wants to run out of:
//!
#![cfg_attr(feature = "hosted", doc = "```")]
#![cfg_attr(not(feature = "hosted"), doc = "```ignore")]
//! use core::alloc::{GlobalAlloc, Layout};
//! use muster_heap::Heap;
//! use muster_heap::hosted::{Growth, Hosted};
//!
//! let heap = Heap::new(Hosted::new(1 << 20, Growth::Scattered));
//! heap.open();
//! let layout = Layout::new::<[u64; 1000]>();
//! // SAFETY: the size is not zero.
//! let block = unsafe { heap.alloc(layout) };
//! assert!(!block.is_null());
//! assert_eq!(heap.statistics().live_bytes, 8000);
//! // SAFETY: the block is live, with this layout.
//! unsafe { heap.dealloc(block, layout) };
//! assert_eq!(heap.statistics().live_bytes, 0);
//!
//! let layout = Layout::new::<[u64; 1 << 20]>();
//! // SAFETY: the size is not zero.
//! assert!(unsafe { heap.alloc(layout) }.is_null());
//! assert_eq!(heap.statistics().refusals, 1);
//! ```

#![no_std]

#[cfg(feature = "hosted")]
extern crate std;

mod heap;
#[cfg(feature = "hosted")]
pub mod hosted;
mod lock;
mod magazines;
mod platform;
mod regions;
mod statistics;

pub use heap::{Heap, StartError};
pub use magazines::{
    CLASSES, Class, ClassStatistics, CpuCache, FRAME, FramePlatform, LARGEST, MagazineHeap,
    MagazineStatistics, NO_CACHE, SPAN, Totals,
};
pub use platform::Platform;
pub use statistics::Statistics;

/// The most regions a heap holds that don't continue one another.
///
/// A heap that has this many grows no more, not even contiguously. It never concerns a platform
/// whose growth is contiguous; any other should give pieces that are a fair part of its memory.
pub const MAX_REGIONS: usize = 64;
