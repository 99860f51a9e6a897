//! Probes: stores that may fault, and return the fault instead of ending the run.

use core::arch::naked_asm;

use x86_64::registers::control::Cr2;

use super::trap::{Frame, PAGE_FAULT};

/// A page fault that a probe ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The faulting address, from CR2.
    pub address: u64,
    /// The error code (Intel SDM vol. 3A, 4.7).
    pub error: u64,
}

/// The values of RAX and RDX when the probe returns.
#[repr(C)]
struct Outcome {
    /// Zero, or one more than the error code.
    error: u64,
    address: u64,
}

unsafe extern "C" {
    /// The instruction of a probe that may fault.
    static muster_probe_store: u8;
    /// Where the probe resumes if it did.
    static muster_probe_landing: u8;
}

/// # Safety
///
/// As for [`store`].
#[unsafe(naked)]
unsafe extern "C" fn attempt(address: *mut u64, value: u64) -> Outcome {
    naked_asm!(
        ".global muster_probe_store",
        ".global muster_probe_landing",
        "muster_probe_store:",
        "mov [rdi], rsi",
        "xor eax, eax",
        "muster_probe_landing:",
        "ret",
    )
}

/// Stores a word, if the tables allow it on this CPU.
///
/// # Errors
///
/// The [`Fault`]; nothing is stored then.
///
/// # Safety
///
/// If something is mapped at `address`, a word may be stored there.
pub unsafe fn store(address: *mut u64, value: u64) -> Result<(), Fault> {
    // SAFETY: one store, as the caller allows; if it faults, `caught` has it go on past the store.
    let outcome = unsafe { attempt(address, value) };
    match outcome.error.checked_sub(1) {
        None => Ok(()),
        Some(error) => Err(Fault {
            address: outcome.address,
            error,
        }),
    }
}

/// Takes a page fault, if a probe ran into it.
pub fn caught(frame: &mut Frame) -> bool {
    let is_probe =
        frame.vector == PAGE_FAULT && frame.rip == (&raw const muster_probe_store) as u64;
    if is_probe {
        frame.rax = frame.error + 1;
        frame.rdx = Cr2::read_raw();
        frame.rip = (&raw const muster_probe_landing) as u64;
    }
    is_probe
}
