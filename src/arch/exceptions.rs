//! The IDT and the entry stubs.
//!
//! Of the CPU's own exceptions none is expected but the NMI that stops a CPU and the
//! debug exception of a CPU that steps through its code; every
//! other one ends the run in words. What else interrupts a CPU, and what may come on
//! top of what, stands in [`interrupts`].

use core::arch::naked_asm;

use conquer_once::spin::OnceCell;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use super::descriptors::{CODE, InterruptStack};
use super::{idle, probe};
use crate::bringup::interrupts;
use crate::mm::heap;
use crate::report::panic;
use crate::selftest::step;
use crate::smp::{cpu, stop};

/// All vectors.
const VECTORS: usize = 256;
/// The vector of page faults.
pub const PAGE_FAULT: u64 = 14;
const DEBUG: u64 = 1;
const NMI: u64 = 2;
const DOUBLE_FAULT: usize = 8;
const MACHINE_CHECK: usize = 18;

/// The vectors that push an error code: 8, 10 to 14, 17, 21, 29 and 30
/// (Intel SDM vol. 3A, table 6-1; AMD APM vol. 2, 8.2).
const HAS_ERROR_CODE: u32 = 0x6022_7d00;

/// What was running when an exception came, as the stubs lay it on the stack.
#[derive(Debug)]
#[repr(C)]
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
    /// What the CPU itself pushed.
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const _: () = assert!(size_of::<Frame>() == 22 * 8);

/// The part all stubs share: saves every general register, calls [`dispatch`],
/// puts them back and returns.
///
/// The CPU aligns the stack to 16 bytes before it pushes 40 (Intel SDM vol. 3A,
/// 6.14.2); error code, vector and 15 registers make 176: the call is aligned.
#[unsafe(naked)]
extern "C" fn common() {
    naked_asm!(
        "push rax",
        "push rbx",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push rbp",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "cld",
        "mov rdi, rsp",
        "call {dispatch}",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rbp",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rbx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        dispatch = sym dispatch,
    )
}

/// Returns whether the CPU pushes an error code for an exception at this vector.
pub fn has_error_code(vector: u8) -> bool {
    HAS_ERROR_CODE
        .checked_shr(vector.into())
        .is_some_and(|codes| codes & 1 != 0)
}

/// Bytes from one vector's stub to the next.
const STUB: usize = 16;

/// The stubs of all vectors, one after the other: each makes the frame the same for all of them.
#[unsafe(naked)]
extern "C" fn stubs() {
    naked_asm!(
        ".set muster_vector, 0",
        ".rept {vectors}",
        ".balign {stub}",
        ".if muster_vector > 31 || ({with_error} >> muster_vector) & 1 == 0",
        "push 0",
        ".endif",
        "push muster_vector",
        "jmp {common}",
        ".set muster_vector, muster_vector + 1",
        ".endr",
        vectors = const VECTORS,
        stub = const STUB,
        with_error = const HAS_ERROR_CODE,
        common = sym common,
    )
}

extern "C" fn dispatch(frame: &mut Frame) {
    if handle(frame) == Heap::MayBeUsed {
        frame.rip = heap::resume_at(frame.rip);
    }
    frame.rip = idle::resume_at(frame.rip);
}

/// What a handler did with the heap, on top of what it interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heap {
    /// It may have allocated or freed: a restartable sequence has to begin again. Always right.
    MayBeUsed,
    /// Nothing, as was declared for it: what was interrupted goes on where it was.
    Untouched,
}

fn handle(frame: &mut Frame) -> Heap {
    if frame.vector == DEBUG
        && let Some(heap) = step::trapped(frame)
    {
        return heap;
    }
    if probe::caught(frame) {
        return Heap::Untouched;
    }
    if let Some(heap) = interrupts::take(frame.vector) {
        return heap;
    }
    if frame.vector == NMI && stop::is_requested() {
        // A CPU with a fault of its own is about to leave word of it, and then stops.
        if cpu::try_with(|here| here.shared().end.has_begun()).unwrap_or(false) {
            return Heap::Untouched;
        }
        stop::stop_here(frame.rip);
    }
    if frame.vector == NMI && interrupts::take_nmi() {
        return Heap::Untouched;
    }
    panic::exception(frame);
}

/// One gate (Intel SDM vol. 3A, figure 6-8).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Gate {
    offset_low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Gate>() == 16);

/// Present, ring 0, 64-bit interrupt gate: interrupts stay off in the handler.
const INTERRUPT_GATE: u8 = 0x8e;

/// The table, in the two forms a CPU needs on its way up.
#[derive(Debug)]
struct Table([Gate; VECTORS]);

impl Table {
    fn new(stack_of: impl Fn(usize) -> Option<InterruptStack>) -> Self {
        let mut gates = [Gate::default(); VECTORS];
        for (vector, gate) in gates.iter_mut().enumerate() {
            let offset = (stubs as *const ()).addr() as u64 + (vector * STUB) as u64;
            *gate = Gate {
                offset_low: offset as u16,
                selector: CODE.0,
                // The TSS counts its interrupt stacks from 1; 0 is "the one in use".
                stack: stack_of(vector).map_or(0, |stack| stack as u8 + 1),
                kind: INTERRUPT_GATE,
                offset_middle: (offset >> 16) as u16,
                offset_high: (offset >> 32) as u32,
                reserved: 0,
            };
        }
        Self(gates)
    }

    fn load(&'static self) {
        let pointer = DescriptorTablePointer {
            limit: size_of::<Self>() as u16 - 1,
            base: VirtAddr::new_truncate(self.0.as_ptr().addr() as u64),
        };
        // SAFETY: the table is `'static` and never changes; each gate leads to a
        // stub that saves and restores what it touches, by a selector that is
        // 64-bit ring-0 code in the loader's GDT and in the kernel's.
        unsafe { lidt(&pointer) };
    }
}

/// Makes faults end in words from here on, on the stack in use: for a CPU that
/// has no TSS yet.
pub fn load_early() {
    static EARLY: OnceCell<Table> = OnceCell::uninit();
    EARLY.get_or_init(|| Table::new(|_| None)).load();
}

/// The same with interrupt stacks, for a CPU that has loaded its TSS.
pub fn load() {
    static FULL: OnceCell<Table> = OnceCell::uninit();
    FULL.get_or_init(|| {
        Table::new(|vector| match vector {
            DOUBLE_FAULT => Some(InterruptStack::DoubleFault),
            MACHINE_CHECK => Some(InterruptStack::MachineCheck),
            _ if vector as u64 == NMI => Some(InterruptStack::Nmi),
            _ => None,
        })
    })
    .load();
}

/// The exception's name (Intel SDM vol. 3A, table 6-1).
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
