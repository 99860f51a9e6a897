//! Heaps for kernels: they grow, account for each byte, and return null where others hang.
//!
//! | | [`Heap`] | [`MagazineHeap`] |
//! |---|---|---|
//! | for | boot, and machines with one CPU | every machine, once CPUs have their own state |
//! | stands on | an arena, then memory that grows ([`Platform`]) | frames, which go back ([`FramePlatform`]) |
//! | with more CPUs | each waits for the others | each serves itself from its own cache |
//! | memory | least | a tenth more, and what CPUs cache: up to 2.3 MiB each |
//! | an operation takes | time in proportion to the free blocks | some 20 instructions, nearly always |
//!
//! Both have in common:
//!
//! - **Safe in interrupts**: a handler may allocate and free at any instruction. Code that can
//!   interrupt a critical section all the same (an NMI, a panic, growth that allocates) is detected,
//!   and served or refused rather than deadlocked on.
//! - **Running out is an answer**: null, never a hang or a panic, also for layouts so large that
//!   their arithmetic would overflow.
//! - **Exact accounts**: [`Statistics`] and [`Totals`] prove that work freed all it allocated.
//!
//! # The first heap of a kernel
//!
//! [`Heap`] works before everything else: on a boot arena first, on memory that grows once the kernel
//! can map some. Its free lists are [`linked_list_allocator`]'s, behind one lock. A kernel says in a
//! [`Platform`] which CPU it runs on, how to disable interrupts, and where more memory comes from. This
//! one has 4 KiB frames and maps them one after the other into a window of its own:
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
//!     fn disable_interrupts(&self) -> InterruptsOff {
//!         InterruptsOff::new()
//!     }
//!
//!     fn cpu(&self) -> Option<usize> {
//!         cpu::index()
//!     }
//!
//!     fn grow(&self, at_least: usize) -> Option<NonNull<[u8]>> {
//!         // Relaxed: one CPU grows at a time, so nobody else changes this.
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
//! # The heap of all CPUs
//!
//! [`MagazineHeap`] takes frames, through a mapping of all memory that the kernel has anyway, and a
//! [`CpuCache`] in what each CPU has for itself. This kernel isn't preempted and finds its CPU by GS
//! base; an interrupt tells the others to drain:
//!
#![cfg_attr(target_arch = "x86_64", doc = "```no_run,standalone_crate")]
#![cfg_attr(not(target_arch = "x86_64"), doc = "```ignore")]
//! use core::arch::asm;
//! use core::ptr::NonNull;
//! use core::sync::atomic::{AtomicUsize, Ordering};
//!
//! use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap};
//! # mod frames {
//! #     pub fn allocate(_count: usize, _align: usize) -> Option<u64> { None }
//! #     pub fn free(_frame: u64, _count: usize) {}
//! # }
//! # mod interrupts {
//! #     pub struct Off;
//! #     impl Off { pub fn new() -> Self { Self } }
//! #     pub fn send_drain_to_others() {}
//! #     pub fn answer_drain_if_asked() {}
//! #     pub const CPUS: usize = 64;
//! # }
//!
//! /// Where all physical memory is mapped.
//! const DIRECT_MAP: usize = 0xffff_8880_0000_0000;
//!
//! /// What each CPU has for itself, where its GS base points to.
//! #[repr(C)]
//! struct Cpu {
//!     /// [`muster_heap::NO_CACHE`] in the block that CPUs share until they have their own.
//!     cache: &'static CpuCache,
//!     number: Option<usize>,
//! }
//!
//! static CACHES: [CpuCache; 64] = [const { CpuCache::new() }; 64];
//! /// How often CPUs have been asked to drain.
//! static ASKED: AtomicUsize = AtomicUsize::new(0);
//! /// For each CPU, how often they had been when its last drain began.
//! static DRAINED: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
//!
//! struct Machine;
//!
//! fn this_cpu() -> &'static Cpu {
//!     let cpu;
//!     // SAFETY: GS base points to a `Cpu` since the first instructions of each CPU.
//!     unsafe {
//!         asm!("rdgsbase {}", out(reg) cpu, options(nomem, nostack, preserves_flags));
//!         &*core::ptr::with_exposed_provenance(cpu)
//!     }
//! }
//!
//! // SAFETY: (1) This kernel doesn't preempt itself. (2), (3) The first CPU gives each its place in
//! // `CACHES` by number before it starts it. (4) `Off` clears the interrupt flag. (5) The frame
//! // allocator gives each frame to one owner, and the direct map has all of them.
//! unsafe impl FramePlatform for Machine {
//!     type NoPreempt = ();
//!     type InterruptGuard = interrupts::Off;
//!
//!     fn disable_preemption(&self) {}
//!
//!     fn disable_interrupts(&self) -> interrupts::Off {
//!         interrupts::Off::new()
//!     }
//!
//!     fn cpu(&self) -> Option<usize> {
//!         this_cpu().number
//!     }
//!
//!     fn cache(&self) -> &CpuCache {
//!         this_cpu().cache
//!     }
//!
//!     fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
//!         CACHES.iter().for_each(visit);
//!     }
//!
//!     fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
//!         let frame = frames::allocate(count, align)?;
//!         let address = DIRECT_MAP + frame as usize * FRAME;
//!         NonNull::new(core::ptr::with_exposed_provenance_mut(address))
//!     }
//!
//!     unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
//!         let frame = (start.as_ptr().expose_provenance() - DIRECT_MAP) / FRAME;
//!         frames::free(frame as u64, count);
//!     }
//!
//!     fn drain_others(&self) -> bool {
//!         // Release, with the Acquire of `on_drain`.
//!         let asked = ASKED.fetch_add(1, Ordering::Release) + 1;
//!         interrupts::send_drain_to_others();
//!         // Acquire, with the Release of `on_drain`: what a CPU has drained is in the slabs.
//!         let has_drained = |cpu: usize| DRAINED[cpu].load(Ordering::Acquire) >= asked;
//!         let own = this_cpu().number;
//!         // With a bound: a CPU that doesn't answer is no reason to stop this one.
//!         for _ in 0..1_000_000 {
//!             if (0..interrupts::CPUS).all(|cpu| Some(cpu) == own || has_drained(cpu)) {
//!                 break;
//!             }
//!             // Another CPU may be waiting for this one, with interrupts off on both.
//!             interrupts::answer_drain_if_asked();
//!             core::hint::spin_loop();
//!         }
//!         true
//!     }
//! }
//!
//! #[global_allocator]
//! static HEAP: MagazineHeap<Machine> = MagazineHeap::new(Machine);
//!
//! /// The handler of the interrupt that asks this CPU to drain.
//! fn on_drain() {
//!     // Acquire, with the Release of `drain_others`: the drain comes after the request.
//!     let asked = ASKED.load(Ordering::Acquire);
//!     // If it interrupted a fast path, this only requests the drain.
//!     HEAP.drain();
//!     if let Some(cpu) = this_cpu().number {
//!         // Release, with the Acquire of `drain_others`. The largest, should another drain have come in between.
//!         DRAINED[cpu].fetch_max(asked, Ordering::Release);
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! # Without the flag
//!
//! So that an interrupt can come at any instruction, that kernel's fast paths raise a flag. On x86-64
//! they can do without, in 28 instructions for an allocation and its free: as [sequences that
//! restart](FastPath::Restarted) if something that used the heap came in between. The cache then lies
//! in what GS base points to, also before the CPU has one: a cache that nobody ever has, empty and full
//! at once, in which the fast paths find nothing to do. With `muster-percpu` it is the head of each
//! CPU's block and of what stands for one:
//!
#![cfg_attr(target_arch = "x86_64", doc = "```no_run")]
#![cfg_attr(not(target_arch = "x86_64"), doc = "```ignore")]
//! use core::arch::asm;
//! use muster_heap::{CpuCache, FastPath, NO_CACHE};
//! use muster_percpu::{Block, Directory, Header, Register, Storage, Unregistered, head_offset};
//! # fn write_gs_base(_address: usize) {}
//!
//! /// GS base points here first. Nobody ever has this cache.
//! static NOBODY: Unregistered<CpuCache> = Unregistered::new(CpuCache::new());
//!
//! struct Gs;
//!
//! // SAFETY: (1) every CPU calls `Storage::reset` before anything else, and from then on GS base
//! // points to `NOBODY` or to a registered block. (2) Nothing else writes GS base. (3) This
//! // kernel doesn't preempt.
//! unsafe impl Register for Gs {
//!     type Head = CpuCache;
//!     type NoPreempt = ();
//!
//!     fn disable_preemption() {}
//!
//!     fn unregistered() -> &'static Unregistered<CpuCache> {
//!         &NOBODY
//!     }
//!
//!     fn load() -> *const Header {
//!         let header;
//!         // SAFETY: reads the first word of what GS base points to, which is a header.
//!         unsafe {
//!             asm!("mov {}, gs:[0]", out(reg) header, options(nostack, readonly, preserves_flags));
//!         }
//!         header
//!     }
//!
//!     unsafe fn store(header: *const Header) {
//!         write_gs_base(header.expose_provenance());
//!     }
//! }
//!
//! static CPUS: Directory<CpuCache> = Directory::new();
//!
//! /// `FramePlatform::FAST_PATH`.
//! const FAST_PATH: FastPath = FastPath::Restarted { cache_from_gs: head_offset::<CpuCache>() };
//!
//! /// `FramePlatform::cache`.
//! fn cache() -> &'static CpuCache {
//!     Storage::<Gs>::try_with(|here| here.head()).unwrap_or(&NO_CACHE)
//! }
//!
//! /// `FramePlatform::each_cache`.
//! fn each_cache(visit: &mut dyn FnMut(&CpuCache)) {
//!     CPUS.blocks().iter().for_each(|block| visit(block.head()));
//! }
//!
//! /// Makes a block where it is to stay: the cache has some 31 KiB.
//! fn block(index: u32) -> &'static Block<CpuCache> {
//!     Block::init(Box::leak(Box::new_uninit()), index, CpuCache::new())
//! }
//! ```
//!
//! and every handler returns by way of [`resume`]:
//!
#![cfg_attr(target_arch = "x86_64", doc = "```")]
#![cfg_attr(not(target_arch = "x86_64"), doc = "```ignore")]
//! /// What the processor pushed, of which `iretq` takes the address to go on at.
//! struct Frame {
//!     rip: usize,
//! }
//!
//! /// Called by the entry stubs, with all registers saved.
//! extern "C" fn handler(frame: &mut Frame) {
//!     // May allocate and free.
//!     frame.rip = muster_heap::resume(frame.rip);
//! }
//! ```
//!
//! An address in no sequence is returned unchanged. The sequences are listed in a section that the
//! linker keeps by itself. In a linker script that names every section, the read-only ones must include
//! `muster_heap_restart : { KEEP(*(muster_heap_restart)) }`.
//!
//! # With a scheduler
//!
//! A slow path may be neither preempted nor migrated: it works on its CPU's cache, in several steps.
//! So may a fast path that is not [restarted](FastPath::Restarted). A kernel whose tasks are switched
//! by a timer and move between CPUs has this to do:
//!
//! 1. [`FramePlatform::disable_preemption`] returns a guard that counts in the CPU's own memory; the
//!    timer's handler switches only if the count is 0, and otherwise notes that a switch is due, which
//!    the last guard looks at when it is dropped. `()` will not do, nor will a guard that only keeps the
//!    task on its CPU: another task that ran there in between would find the cache half done.
//! 2. With restarted fast paths, a task that was switched away goes on where [`resume`] says, on
//!    whichever CPU. GS base belongs to the CPU and is not switched with the task.
//! 3. [`FramePlatform::cpu`] and [`FramePlatform::cache`] are asked only under a guard, so that the
//!    answer stays true. The assembly that reads them must not carry `options(pure)`: the compiler
//!    would use an answer again after the task has moved.
//!
//! The heap's own tests run on such a machine, `heap/tests/heap/tasks.rs`.
//!
//! # A heap that checks
//!
//! [`CheckedHeap`] wraps another one, and finds code that frees twice, writes past the end, before the
//! start or after the free: with the CPUs that allocated and freed the block, and from where. Its
//! memory and time are several times the wrapped heap's, but it takes no lock, so that it shows what
//! happens with all CPUs busy:
//!
#![cfg_attr(feature = "hosted", doc = "```should_panic,standalone_crate")]
#![cfg_attr(not(feature = "hosted"), doc = "```ignore")]
//! use core::alloc::{GlobalAlloc, Layout};
//! use muster_heap::hosted::HostedFrames;
//! use muster_heap::{CheckPlatform, CheckedHeap, MagazineHeap, Quarantine};
//!
//! struct Machine;
//!
//! static QUARANTINES: [Quarantine; 4] = [const { Quarantine::new() }; 4];
//!
//! fn cpu() -> usize { 0 }
//!
//! // SAFETY: (1) a kernel asks its page tables, or whether the heap owns the frame. (2) There is one
//! // heap.
//! unsafe impl CheckPlatform for Machine {
//!     fn cpu(&self) -> Option<usize> {
//!         Some(cpu())
//!     }
//!
//!     fn quarantine(&self) -> &Quarantine {
//!         &QUARANTINES[cpu()]
//!     }
//!
//!     fn each_quarantine(&self, visit: &mut dyn FnMut(&Quarantine)) {
//!         QUARANTINES.iter().for_each(visit);
//!     }
//!
//!     fn may_read(&self, start: usize, _length: usize) -> bool {
//!         start >= 4096
//!     }
//! }
//!
//! static HEAP: CheckedHeap<MagazineHeap<HostedFrames>, Machine> =
//!     CheckedHeap::new(MagazineHeap::new(HostedFrames::new(1000)), Machine);
//!
//! # fn main() {
//! let layout = Layout::new::<[u64; 8]>();
//! // SAFETY: the size is not zero; and the second free is what is shown.
//! unsafe {
//!     let block = HEAP.alloc(layout);
//!     HEAP.dealloc(block, layout);
//!     // panics: a block of 64 bytes at 0x7f… was freed twice; allocated on CPU 0; freed on CPU 0;
//!     // found on CPU 0
//!     HEAP.dealloc(block, layout);
//! }
//! # }
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
//!
//! [`MagazineHeap`] stands on `hosted::HostedFrames` there, which counts the frames that are left:
//!
#![cfg_attr(feature = "hosted", doc = "```")]
#![cfg_attr(not(feature = "hosted"), doc = "```ignore")]
//! use core::alloc::{GlobalAlloc, Layout};
//! use muster_heap::MagazineHeap;
//! use muster_heap::hosted::HostedFrames;
//!
//! let heap = MagazineHeap::new(HostedFrames::new(1000));
//! let frames = heap.platform().frames_left();
//! let layout = Layout::new::<[u64; 8]>();
//! // SAFETY: the size is not zero.
//! let block = unsafe { heap.alloc(layout) };
//! assert_eq!(heap.totals().live_bytes, 64);
//! // SAFETY: the block is live, with this layout.
//! unsafe { heap.dealloc(block, layout) };
//! assert!(heap.platform().frames_left() < frames);
//! heap.drain();
//! heap.trim();
//! assert_eq!(heap.platform().frames_left(), frames);
//! ```

#![no_std]
#![cfg_attr(
    loom,
    allow(dead_code, reason = "models leave out what CPUs don't share")
)]

#[cfg(any(feature = "hosted", loom))]
extern crate std;

mod checked;
#[cfg(not(loom))]
mod heap;
#[cfg(feature = "hosted")]
pub mod hosted;
mod lock;
mod magazines;
mod platform;
#[cfg(not(loom))]
mod regions;
mod seal;
mod statistics;

#[cfg(not(loom))]
pub use checked::{
    CALLERS, Callers, CheckPlatform, CheckedHeap, CheckedTotals, Misuse, Origin, Violation,
};
pub use checked::{MAX_QUARANTINED, Quarantine};
#[cfg(not(loom))]
pub use heap::{Heap, StartError};
#[cfg(target_arch = "x86_64")]
pub use magazines::resume;
pub use magazines::{
    CLASSES, Class, ClassStatistics, CpuCache, FRAME, FastPath, FramePlatform, FrameSearch,
    MAX_CACHED, MAX_CLASS_SIZE, MagazineStatistics, NO_CACHE, SearchFn, Totals, Traffic,
};
#[cfg(not(loom))]
pub use magazines::{MagazineHeap, Shortage};
pub use platform::Platform;
pub use statistics::Statistics;

/// The most regions a heap holds that don't continue one another.
///
/// A heap that has this many grows no more, not even contiguously. It never concerns a platform
/// whose growth is contiguous; any other should give pieces that are a fair part of its memory.
pub const MAX_REGIONS: usize = 64;
