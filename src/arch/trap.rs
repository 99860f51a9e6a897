//! The frame that an exception or an interrupt leaves of the interrupted code, and the vectors of
//! the CPU's own exceptions.

use muster_paging::VirtAddr;

/// The vector of page faults.
pub const PAGE_FAULT: u64 = 14;
/// The vector of debug exceptions.
pub const DEBUG: u64 = 1;
/// The vector of NMIs.
pub const NMI: u64 = 2;
/// The vector of double faults.
pub const DOUBLE_FAULT: u64 = 8;
/// The vector of machine checks.
pub const MACHINE_CHECK: u64 = 18;

/// The vectors that push an error code: 8, 10 to 14, 17, 21, 29 and 30
/// (Intel SDM vol. 3A, table 6-1; AMD APM vol. 2, 8.2).
pub const HAS_ERROR_CODE: u32 = 0x6022_7d00;

/// The registers of the interrupted code, as the stubs lay them on the stack.
#[derive(Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "registers, by their names")]
pub struct Frame {
    /// General registers, in the order in which the stub pops them.
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// The exception's vector.
    pub vector: u64,
    /// Its error code; 0 for those that have none.
    pub error: u64,
    /// The words that the CPU itself pushed.
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const _: () = assert!(size_of::<Frame>() == 22 * 8);

/// Whether a handler used the heap, which the code that it interrupted may have been using.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heap {
    /// It may have allocated or freed: a restartable sequence has to begin again. Always right.
    MayBeUsed,
    /// It did nothing, as was declared for it: the interrupted code resumes where it was.
    Untouched,
}

/// Returns the frame pointer of the function this is inlined in.
#[inline(always)]
pub fn frame_pointer() -> VirtAddr {
    let frame_pointer;
    // SAFETY: reads one register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) frame_pointer, options(nomem, nostack, preserves_flags));
    }
    VirtAddr::new(frame_pointer)
}

/// Returns whether the CPU pushes an error code for an exception at this vector.
pub fn has_error_code(vector: u8) -> bool {
    HAS_ERROR_CODE
        .checked_shr(vector.into())
        .is_some_and(|codes| codes & 1 != 0)
}

/// Returns the exception's name (Intel SDM vol. 3A, table 6-1).
pub fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "unexpected NMI",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "no FPU",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack-segment fault",
        13 => "general protection fault",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD error",
        20 => "virtualisation exception",
        21 => "control protection exception",
        28 => "hypervisor injection exception",
        29 => "VMM communication exception",
        30 => "security exception",
        _ => "reserved exception",
    }
}
