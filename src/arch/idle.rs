//! The halt of an idle CPU, and why no wake-up is lost there.
//!
//! A CPU looks for work with interrupts disabled, and enables them by the instruction before the halt:
//! `sti` takes effect only after the next instruction, so a wake-up that was sent since the look ends
//! the halt. But an NMI, a machine check or a debug exception between the two ends that interrupt
//! shadow, and its `iretq` does not bring it back: the CPU would take the wake-up before the halt, and
//! then halt with work to do. So every handler that has interrupted a CPU just before the halt returns
//! behind it ([`resume_at`]), and the CPU looks again.

use core::arch::naked_asm;

unsafe extern "C" {
    /// The halt itself.
    static muster_idle_halt: u8;
    /// The instruction after it.
    static muster_idle_end: u8;
}

/// Enables interrupts and halts until one comes, or until one has come just before. May return
/// without any.
#[unsafe(naked)]
pub extern "C" fn enable_and_halt() {
    naked_asm!(
        ".global muster_idle_halt",
        ".global muster_idle_end",
        "sti",
        "muster_idle_halt:",
        "hlt",
        "muster_idle_end:",
        "ret",
    )
}

/// Returns the address of the halt.
pub fn halt() -> u64 {
    (&raw const muster_idle_halt) as u64
}

/// Returns the address at which code that was interrupted at `instruction` resumes: behind the halt
/// if it was about to halt, for it has to look for work again.
pub fn resume_at(instruction: u64) -> u64 {
    if instruction == halt() {
        (&raw const muster_idle_end) as u64
    } else {
        instruction
    }
}

/// Stops this CPU for good. An NMI wakes it, and it halts again.
pub fn halt_for_good() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
