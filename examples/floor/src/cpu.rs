//! What each CPU has of its own, and what the others see of it.

use alloc::boxed::Box;
use core::arch::asm;
use core::cell::RefCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use muster_heap::CpuCache;
use muster_memory::FrameCache;
use muster_percpu::{Directory, Header, Register, RegisterError, Storage, Unregistered};
use spin::Mutex;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

use crate::memory;

/// Only this CPU's.
pub struct Local {
    /// Free frames that it has at hand.
    pub frames: RefCell<Option<FrameCache<'static>>>,
}

/// For all to see.
pub struct Shared {
    /// A box from another CPU.
    pub inbox: Mutex<Option<Box<[u64; 8]>>>,
    /// Whether this CPU has made all its boxes.
    pub is_done: AtomicBool,
}

/// All of it, with the free blocks of the heap that the CPU has cached at its head, where the heap finds
/// them by GS base.
pub type Block = muster_percpu::Block<Local, Shared, CpuCache>;

/// What GS base points to while a CPU has no block: nothing is cached there, and there is no room.
static UNREGISTERED: Unregistered<CpuCache> = Unregistered::new(CpuCache::new());

/// GS base.
pub struct Gs;

// SAFETY: (1) every CPU calls `Storage::reset` first, and from then on GS base points to
// `UNREGISTERED`, whose first word is null, or to a registered block, whose first word is its own
// address; (2) nothing else writes GS base, and there is no SWAPGS; (3) this kernel doesn't preempt;
// (4) nor does it let interrupts in.
unsafe impl Register for Gs {
    type Local = Local;
    type Shared = Shared;
    type Head = CpuCache;
    type NoPreempt = ();

    fn disable_preemption() {}

    fn unregistered() -> &'static Unregistered<CpuCache> {
        &UNREGISTERED
    }

    #[inline]
    fn load() -> *const Header {
        let header;
        // SAFETY: reads the first word of what GS base points to, which is a header: see (1).
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) header, options(nostack, readonly, preserves_flags));
        }
        header
    }

    unsafe fn store(header: *const Header) {
        // SAFETY: the address of an object is canonical for the number of levels in use, and
        // `VirtAddr::new` knows only four.
        GsBase::write(unsafe { VirtAddr::new_unsafe(header.expose_provenance() as u64) });
    }
}

/// This CPU.
pub type Cpu = Storage<Gs>;

/// All CPUs.
pub static CPUS: Directory<Local, Shared, CpuCache> = Directory::new();

/// Makes a CPU's block, where it is to stay: with the cache it is too large for a stack.
pub fn block(index: u32) -> &'static Block {
    let place = Box::leak(Box::new_uninit());
    Block::init(place, index, CpuCache::new(), |_| {
        let local = Local {
            frames: RefCell::new(None),
        };
        let shared = Shared {
            inbox: Mutex::new(None),
            is_done: AtomicBool::new(false),
        };
        (local, shared)
    })
}

/// Makes the block of this number this CPU's, and gives it frames.
///
/// # Errors
///
/// If it is another one's.
pub fn start(index: u32) -> Result<(), RegisterError> {
    if let Some(block) = CPUS.blocks().get(index as usize) {
        Cpu::register(block)?;
        Cpu::with(|here| *here.local().frames.borrow_mut() = memory::cache(index));
    }
    Ok(())
}

/// Waits until every CPU has made its boxes, for so many ticks of the TSC at most.
///
/// # Errors
///
/// If one of them has not.
pub fn wait_for_all(timeout: u64) -> Result<(), &'static str> {
    // SAFETY: every x86-64 CPU has the instruction.
    let ticks = || unsafe { core::arch::x86_64::_rdtsc() };
    let began = ticks();
    while !CPUS
        .iter()
        .all(|(_, shared)| shared.is_done.load(Ordering::Acquire))
    {
        if ticks() - began > timeout {
            return Err("a CPU did not come, or is not done");
        }
        spin_loop();
    }
    Ok(())
}
