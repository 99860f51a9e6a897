//! CPU-local storage for kernels.
//!
//! Each CPU has a [`Block`] of its own in two parts and a [head](Block#the-head): `local`, which only that CPU reaches and which
//! therefore needs neither locks nor atomics, and `shared`, which all CPUs may read. What the types
//! rule out:
//!
//! - **Use before registration**: a CPU without a block gets a panic that says so
//!   ([`Storage::with`]) or `None` ([`Storage::try_with`]), not whatever lies at address 0.
//! - **Use on the wrong CPU**: the way to `local` is a guard, [`Here`], that can't leave the closure
//!   it is given to, can't go to another thread, and pins the code to its CPU.
//! - **Two CPUs with one block**: a block is claimed once.
//! - **False sharing**: blocks, and the two parts of a block, never share a cache line.
//!
#![cfg_attr(
    feature = "alloc",
    doc = "With the feature `alloc` there is an [`Exchange`], in which CPUs call each other."
)]
//! A CPU that is halted can be [spared](Sleep) what it can do when it wakes.
//!
//! # Example
//!
//! Threads stand for CPUs here, as in any host test; a kernel writes its own [`Register`] (below)
//! and uses the rest unchanged.
//!
#![cfg_attr(feature = "std", doc = "```")]
#![cfg_attr(not(feature = "std"), doc = "```ignore")]
//! use core::cell::Cell;
//! use core::sync::atomic::{AtomicU64, Ordering};
//! use muster_percpu::{Block, Directory, Storage};
//!
//! /// Only this CPU's.
//! struct Local {
//!     depth: Cell<u32>,
//! }
//!
//! /// For all to read.
//! struct Shared {
//!     interrupts: AtomicU64,
//! }
//!
//! muster_percpu::thread_register!(struct Threads { local: Local, shared: Shared });
//! type Cpu = Storage<Threads>;
//!
//! static CPUS: Directory<Local, Shared> = Directory::new();
//!
//! // The first CPU makes all blocks and publishes them.
//! let blocks: Vec<&'static Block<Local, Shared>> = (0..4)
//!     .map(|index| {
//!         let local = Local { depth: Cell::new(0) };
//!         let shared = Shared { interrupts: AtomicU64::new(0) };
//!         &*Box::leak(Box::new(Block::new(index, local, shared)))
//!     })
//!     .collect();
//! CPUS.publish(blocks.leak())?;
//!
//! // Each CPU registers its own, and works.
//! assert!(Cpu::try_with(|here| here.index()).is_none());
//! std::thread::scope(|scope| {
//!     for block in CPUS.blocks() {
//!         scope.spawn(|| {
//!             Cpu::register(block)?;
//!             Cpu::with(|here| {
//!                 here.local().depth.set(here.local().depth.get() + 1);
//!                 here.shared().interrupts.store(10 + u64::from(here.index()), Ordering::Relaxed);
//!             });
//!             Ok::<(), muster_percpu::RegisterError>(())
//!         });
//!     }
//! });
//!
//! // Any CPU reads what the others share.
//! let total: u64 = CPUS.iter().map(|(_, shared)| shared.interrupts.load(Ordering::Relaxed)).sum();
//! assert_eq!(total, 10 + 11 + 12 + 13);
//! assert!(CPUS.get(4).is_none());
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
//! use core::cell::Cell;
//! use core::sync::atomic::AtomicU64;
//! use muster_percpu::{Block, Header, Register, Storage, Unregistered, head_offset};
//!
//! /// IA32_GS_BASE (Intel SDM, volume 4, table 2-2).
//! const GS_BASE: u32 = 0xc000_0101;
//!
//! /// What GS base points to on CPUs that have no block.
//! static NOBODY: Unregistered<AtomicU64> = Unregistered::new(AtomicU64::new(0));
//!
//! struct Gs;
//!
//! // SAFETY: (1) every CPU calls `Storage::reset` before anything else, and from then on GS base
//! // points to `NOBODY`, whose first word is null, or to a registered block, whose first word
//! // is its own address. (2) Nothing else in this kernel writes GS base, and it never runs SWAPGS.
//! // (3) This kernel doesn't preempt. (4) `Local` is a `Cell` of one word.
//! unsafe impl Register for Gs {
//!     type Local = Cell<u64>;
//!     type Shared = ();
//!     type Head = AtomicU64;
//!     type Pin = ();
//!
//!     fn pin() {}
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
//! fn enter(block: &'static Block<Cell<u64>, (), AtomicU64>) -> Result<(), muster_percpu::RegisterError> {
//!     // SAFETY: this CPU has no block yet.
//!     unsafe { Cpu::reset() };
//!     Cpu::register(block)?;
//!     Cpu::with(|here| here.local().set(1));
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

#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(loom)]
extern crate std;

mod admission;
mod block;
#[cfg(feature = "alloc")]
mod board;
mod directory;
#[cfg(feature = "alloc")]
mod exchange;
mod line;
#[cfg(all(test, loom))]
mod models;
mod note;
mod sleep;
mod storage;
mod sync;
#[cfg(feature = "std")]
mod threads;

pub use admission::{Admission, Outcome};
pub use block::{Block, Header, UNREGISTERED, Unregistered, head_offset};
#[cfg(feature = "alloc")]
pub use board::Board;
pub use directory::{Directory, PublishError};
#[cfg(feature = "alloc")]
pub use exchange::{Call, DEPTH, Exchange, SendError};
pub use line::{Arrival, Line};
pub use note::Note;
pub use sleep::Sleep;
pub use storage::{Here, Register, RegisterError, Storage};
