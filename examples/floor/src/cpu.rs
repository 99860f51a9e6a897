//! What each CPU has of its own, and what the others see of it.

use core::arch::asm;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use muster_heap::CpuCache;
use muster_percpu::{
    Directory, Header, Key, Register, RegisterError, Storage, Unregistered, cpu_local,
};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

use crate::memory::{self, FRAMES};

cpu_local! {
    /// Whether this CPU has made all its boxes. Release and Acquire: with it comes what the CPU wrote before.
    pub shared static IS_DONE: AtomicBool = AtomicBool::new(false);
}

/// A CPU's variables, with the free blocks of the heap that the CPU has cached at their head, where the heap
/// finds them by GS base.
pub type Block = muster_percpu::Block<CpuCache>;

/// What GS base points to while a CPU has no block: nothing is cached there, and there is no room.
static UNREGISTERED: Unregistered<CpuCache> = Unregistered::new(CpuCache::new());

/// GS base.
pub struct Gs;

// SAFETY: (1) every CPU calls `Storage::reset` first, and from then on GS base points to
// `UNREGISTERED`, whose first word is null, or to a registered block, whose first word is its own
// address; (2) nothing else writes GS base, and there is no SWAPGS; (3) this kernel doesn't preempt.
unsafe impl Register for Gs {
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

    #[inline]
    fn load_base<K: Key>() -> *const u8 {
        let base;
        // SAFETY: as above, but a word further on in the header.
        unsafe {
            asm!(
                "mov {}, gs:[{}]", out(reg) base, const K::BASE,
                options(nostack, readonly, preserves_flags),
            );
        }
        base
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
pub static CPUS: Directory<CpuCache> = Directory::new();

/// Makes the block of this number this CPU's, and gives it frames.
///
/// # Errors
///
/// If it is another one's.
pub fn start(index: u32) -> Result<(), RegisterError> {
    if let Some(block) = CPUS.blocks().get(index as usize) {
        // SAFETY: (1) the first code of this kernel's on the CPU, with interrupts disabled; its handlers register nothing.
        // (2) A guard does nothing.
        unsafe { Cpu::register(block)? };
        Cpu::with_own(&FRAMES, |frames| {
            frames.with(|frames| *frames = memory::cache(index))
        });
    }
    Ok(())
}

/// Waits until every CPU has made its boxes, for `timeout` ticks of the TSC at most.
///
/// # Errors
///
/// If one of them has not.
pub fn wait_for_all(timeout: u64) -> Result<(), &'static str> {
    // SAFETY: every x86-64 CPU has the instruction.
    let ticks = || unsafe { core::arch::x86_64::_rdtsc() };
    let began = ticks();
    while !CPUS
        .each(&IS_DONE)
        .all(|(_, is_done)| is_done.load(Ordering::Acquire))
    {
        if ticks() - began > timeout {
            return Err("a CPU did not come, or is not done");
        }
        spin_loop();
    }
    Ok(())
}
