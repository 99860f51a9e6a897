//! CPU-local storage for kernels.
//!
//! Each CPU has a [`Block`] of its own with a [head](Block#the-head) and variables of two kinds: *local* ones,
//! of which each CPU reaches its own alone and which therefore need neither locks nor atomics, and *shared* ones,
//! which all CPUs may read. [`cpu_local!`] declares them where they are used, in any module of any crate.
//! The types rule out:
//!
//! - **Use before registration**: a CPU without a block gets a panic that says so
//!   ([`Storage::with`]) or `None` ([`Storage::try_with`]), not whatever lies at address 0.
//! - **Use on the wrong CPU**: the way to local variables is a guard, [`Here`], that can't leave the closure
//!   it is given to and can't go to another thread; while it exists, the code is neither preempted nor
//!   migrated.
//! - **Half changed values**: a handler that interrupts the use of a local variable may use it, too, so the
//!   variable's type is one that tolerates this ([`InterruptSafe`]).
//! - **Two CPUs with one block**: a block is claimed once.
//! - **False sharing**: blocks, and the two kinds of variables of a block, never share a cache line.
//!
//! What CPUs do to one another (calls, broadcasts, barriers) is the crate `muster-cross-cpu`.
//!
//! # Example
//!
//! Threads stand for CPUs here, as in any host test; a kernel writes its own [`Register`] (below)
//! and uses the rest unchanged.
//!
#![cfg_attr(feature = "std", doc = "```")]
#![cfg_attr(not(feature = "std"), doc = "```ignore")]
//! use core::sync::atomic::{AtomicU64, Ordering};
//! use muster_percpu::{Block, Directory, LocalWord, Storage, Template, cpu_local};
//!
//! cpu_local! {
//!     /// Only this CPU's.
//!     static DEPTH: LocalWord<u32> = LocalWord::new(0);
//!     /// For all to read.
//!     shared static INTERRUPTS: AtomicU64 = AtomicU64::new(10);
//! }
//!
//! muster_percpu::thread_register!(struct Threads);
//! type Cpu = Storage<Threads>;
//!
//! static CPUS: Directory = Directory::new();
//!
//! // The first CPU finds what the linker has gathered, makes all blocks, and publishes them.
//! let template = Template::find(|_| true)?;
//! let blocks: Result<Vec<_>, _> = (0..4)
//!     .map(|index| Block::allocate(&template, index, ()))
//!     .collect();
//! CPUS.publish(blocks?.leak())?;
//!
//! // Each CPU registers its own, and works.
//! assert!(Cpu::try_with(|here| here.index()).is_none());
//! std::thread::scope(|scope| {
//!     for block in CPUS.blocks() {
//!         scope.spawn(|| {
//!             Threads::register(block)?;
//!             Cpu::with_own(&DEPTH, |depth| depth.set(depth.get() + 1));
//!             Cpu::with(|here| {
//!                 here.get(&INTERRUPTS).fetch_add(u64::from(here.index()), Ordering::Relaxed);
//!             });
//!             Ok::<(), muster_percpu::RegisterError>(())
//!         });
//!     }
//! });
//!
//! // Any CPU reads what the others share.
//! let each = CPUS.each(&INTERRUPTS);
//! assert_eq!(each.map(|(_, count)| count.load(Ordering::Relaxed)).sum::<u64>(), 10 + 11 + 12 + 13);
//! assert!(CPUS.on(4, &INTERRUPTS).is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # On x86-64
//!
//! The register is GS base. A loader leaves it at 0, and reading `gs:[0]` then yields what lies at
//! address 0: a page fault at best. So the very first thing each CPU does is [`Storage::reset`],
//! which points GS base at a sentinel, an [`Unregistered`].
//!
//! Code may also go by GS base without the way through a pointer, and without asking whether the CPU
//! has a block: what it reaches is the block's *head*, [`head_offset`] bytes from GS base. The sentinel
//! has a head, too. Here it is a counter that each CPU counts up by one instruction, so that no
//! interrupt can come in between; a CPU that has no block counts in the sentinel. `muster-heap` keeps a
//! CPU's cache there: its documentation has the two composed.
//!
#![cfg_attr(target_arch = "x86_64", doc = "```no_run")]
#![cfg_attr(not(target_arch = "x86_64"), doc = "```ignore")]
//! use core::arch::asm;
//! use core::sync::atomic::AtomicU64;
//! use muster_percpu::{
//!     Block, Header, Key, LocalWord, Register, Storage, Unregistered, cpu_local, head_offset,
//! };
//!
//! /// IA32_GS_BASE (Intel SDM, volume 4, table 2-2).
//! const GS_BASE: u32 = 0xc000_0101;
//!
//! /// What GS base points to on CPUs that have no block.
//! static NOBODY: Unregistered<AtomicU64> = Unregistered::new(AtomicU64::new(0));
//!
//! cpu_local! { static DEPTH: LocalWord<u64> = LocalWord::new(0); }
//!
//! struct Gs;
//!
//! // SAFETY: (1) every CPU calls `Storage::reset` before anything else, and from then on GS base
//! // points to `NOBODY`, whose first word is null, or to a registered block, whose first word
//! // is its own address. (2) Nothing else in this kernel writes GS base, and it never runs SWAPGS.
//! // (3) (4) This kernel doesn't preempt.
//! unsafe impl Register for Gs {
//!     type Head = AtomicU64;
//!     type NoPreempt = ();
//!
//!     fn disable_preemption() {}
//!
//!     fn unregistered() -> &'static Unregistered<AtomicU64> {
//!         &NOBODY
//!     }
//!
//!     #[inline]
//!     fn load() -> *const Header {
//!         let header;
//!         // SAFETY: reads the first word of what GS base points to, which is a header: see (1).
//!         unsafe {
//!             asm!("mov {}, gs:[0]", out(reg) header, options(nostack, readonly, preserves_flags));
//!         }
//!         header
//!     }
//!
//!     // One load instead of two.
//!     #[inline]
//!     fn load_base<K: Key>() -> *const u8 {
//!         let base;
//!         // SAFETY: reads a word of what GS base points to, which is a header: see (1).
//!         unsafe {
//!             asm!(
//!                 "mov {}, gs:[{}]", out(reg) base, const K::BASE,
//!                 options(nostack, readonly, preserves_flags),
//!             );
//!         }
//!         base
//!     }
//!
//!     unsafe fn store(header: *const Header) {
//!         let address = header.expose_provenance() as u64;
//!         // SAFETY: the caller passes a header, which is all that GS base may point to.
//!         unsafe {
//!             asm!(
//!                 "wrmsr",
//!                 in("ecx") GS_BASE, in("eax") address as u32, in("edx") (address >> 32) as u32,
//!                 options(nostack, preserves_flags),
//!             );
//!         }
//!     }
//! }
//!
//! type Cpu = Storage<Gs>;
//!
//! /// The first code of this kernel's on a CPU, with interrupts disabled.
//! fn enter(block: &'static Block<AtomicU64>) -> Result<(), muster_percpu::RegisterError> {
//!     // SAFETY: this CPU has no block yet.
//!     unsafe { Cpu::reset() };
//!     // SAFETY: (1) interrupts are disabled, the handler of NMIs neither registers nor resets, and this code has
//!     // interrupted nothing. (2) A guard does nothing.
//!     unsafe { Cpu::register(block)? };
//!     Cpu::with_own(&DEPTH, |depth| depth.set(1));
//!     Ok(())
//! }
//!
//! /// From any code and any handler.
//! fn count() {
//!     // SAFETY: the head lies so far from GS base, an atomic that nobody borrows mutably.
//!     unsafe {
//!         asm!("inc qword ptr gs:[{}]", const head_offset::<AtomicU64>(), options(nostack));
//!     }
//! }
//! ```
//!
//! # With a scheduler
//!
//! A kernel that switches tasks, and moves them from CPU to CPU, must see to these:
//!
//! - **The register belongs to the CPU, not to the task.** A switch neither saves nor restores it. Where
//!   user space has a GS base of its own, every entry into the kernel gets the kernel's before any code
//!   here runs, an NMI's too, and every way out puts it back.
//! - **[`Register::NoPreempt`] is a count.** It lies where one instruction reaches it without asking
//!   which CPU this is, as otherwise the task could be moved between the question and the count: in the
//!   head, or in what belongs to the task.
//! - **Handlers count, too.** Each adds one when it begins, an NMI's included, and takes it away at its end: so no guard
//!   in a handler takes the count to 0, and none switches.
//! - **Whatever preempts looks at the count first.** A handler that would switch (the timer's, a wake-up's) records that a
//!   switch is due. It switches at its end, if the count is 0 then, as it is unless it interrupted a guard or another
//!   handler; an NMI's never does. Otherwise the guard that takes the count to 0 switches. So at every switch the count
//!   is 0: a count in the head needs no saving.
//! - **No guard switches where interrupts are disabled.** What holds a lock that way, or is in a closure that a handler must not
//!   see half done, is no more preempted by its own guards, or by an exception, than by interrupts. What is due happens after
//!   the next.
//! - **A CPU without a block runs no task**, and can't be preempted. Nothing counts there: all such CPUs share the
//!   sentinel's count.
//! - **Nothing in a closure of [`Storage::with`] waits for another task**, or yields: the count is not 0
//!   there, and a function that switches should assert that it is.
//! - **[`Register::load`] and [`Register::load_base`] read the register at each call**: their assembly is not
//!   `pure`. A task that is moved between two calls must get two answers.
//! - **A task that goes on after a preemption does so where the heap says**, if one of its restartable
//!   sequences may have been interrupted: see `muster_heap::resume`.
//! - **What may leave a closure**, a head's reference or what the directory gives, is a CPU's that the
//!   task may have left since: it is for all, and says nothing about where the task is.
//!
//! The count in the head, on x86-64:
//!
#![cfg_attr(target_arch = "x86_64", doc = "```no_run")]
#![cfg_attr(not(target_arch = "x86_64"), doc = "```ignore")]
//! use core::arch::asm;
//! use core::marker::PhantomData;
//! use core::mem::offset_of;
//! use core::sync::atomic::AtomicU32;
//! use muster_percpu::head_offset;
//! # fn switch_to_another_task() {}
//! # fn interrupts_are_enabled() -> bool { true }
//!
//! /// `Register::Head`.
//! #[repr(C)]
//! struct Head {
//!     /// How many `NoPreempt`s there are on this CPU.
//!     count: AtomicU32,
//!     /// Whether a handler would have switched in between.
//!     is_due: AtomicU32,
//! }
//!
//! const COUNT: usize = head_offset::<Head>() + offset_of!(Head, count);
//! const IS_DUE: usize = head_offset::<Head>() + offset_of!(Head, is_due);
//!
//! /// Adds one, if this CPU has a block, and returns whether it has.
//! fn count() -> bool {
//!     let block: u64;
//!     // SAFETY: GS base points to a header since `Storage::reset`, with which every CPU begins. The compiler takes
//!     // this for instructions that read and write memory, and moves nothing across. One instruction adds, so it
//!     // does on the CPU that it runs on; and a task that is moved in between is on a CPU with a block before
//!     // and after.
//!     unsafe {
//!         asm!(
//!             "mov {block}, gs:[0]", "test {block}, {block}", "jz 2f", "inc dword ptr gs:[{count}]", "2:",
//!             block = out(reg) block, count = const COUNT, options(nostack),
//!         );
//!     }
//!     block != 0
//! }
//!
//! /// Takes one away that `count` has added. Returns whether none is left, and a switch is due.
//! fn uncount() -> bool {
//!     let (count, is_due): (u8, u32);
//!     // SAFETY: as above. After the first instruction the task may be moved: then it reads of the
//!     // CPU that it is on now whether a switch is due there, and at worst switches once more.
//!     unsafe {
//!         asm!(
//!             "dec dword ptr gs:[{}]", "setnz {}", "mov {:e}, gs:[{}]",
//!             const COUNT, out(reg_byte) count, out(reg) is_due, const IS_DUE,
//!             options(nostack),
//!         );
//!     }
//!     count == 0 && is_due != 0
//! }
//!
//! /// `Register::NoPreempt`. It goes where its task goes, which is nowhere.
//! struct NoPreempt {
//!     /// Not on a CPU that had no block when it was made.
//!     counts: bool,
//!     _stays: PhantomData<*const ()>,
//! }
//!
//! /// `Register::disable_preemption`.
//! fn disable_preemption() -> NoPreempt {
//!     NoPreempt { counts: count(), _stays: PhantomData }
//! }
//!
//! impl Drop for NoPreempt {
//!     fn drop(&mut self) {
//!         if self.counts && uncount() && interrupts_are_enabled() {
//!             switch_to_another_task();
//!         }
//!     }
//! }
//!
//! /// Runs what a handler does, with interrupts disabled. Its entry code calls this, whatever it interrupted; no switch may
//! /// follow an NMI, nor an exception that came where interrupts were disabled.
//! fn handle(may_switch: bool, handler: impl FnOnce()) {
//!     let counts = count();
//!     handler();
//!     if counts && uncount() && may_switch {
//!         switch_to_another_task();
//!     }
//! }
//! ```

#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(any(feature = "std", loom))]
extern crate std;

mod block;
mod directory;
mod local_cell;
mod local_word;
#[cfg(all(test, loom))]
mod models;
mod storage;
// The other one is for object files that are not ELF, and for Miri, which has none.
#[cfg_attr(
    any(
        windows,
        target_vendor = "apple",
        target_os = "uefi",
        target_family = "wasm",
        miri
    ),
    path = "no_linker.rs"
)]
mod template;
#[cfg(feature = "std")]
#[doc(hidden)]
pub mod threads;
mod variable;
mod write_once;

pub use block::{Block, Header, UNREGISTERED, Unregistered, head_offset};
pub use directory::{Directory, PublishError};
pub use local_cell::LocalCell;
pub use local_word::{LocalWord, Word};
pub use storage::{Here, Register, RegisterError, Storage};
#[allow(
    unused_imports,
    reason = "where no linker gathers variables there are none"
)]
pub use template::*;
#[doc(hidden)]
pub use variable::Initial;
pub use variable::{InterruptSafe, Key, LocalKey, MAX_ALIGNMENT, SharedKey};
pub use write_once::WriteOnce;
