//! The IDT and the entry stubs.
//!
//! All stubs lead to one [`TrapHandler`], which a higher room implements.

use core::arch::naked_asm;

use conquer_once::spin::OnceCell;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use super::descriptors::{CODE, InterruptStack};
use super::trap::{DOUBLE_FAULT, Frame, HAS_ERROR_CODE, MACHINE_CHECK, NMI};

/// All vectors.
const VECTORS: usize = 256;

/// The handler of every exception and every interrupt. The stubs call it directly: they are generic
/// over the type that implements it.
pub trait TrapHandler {
    /// Handles the exception or interrupt that the frame describes, and changes the frame where the
    /// CPU is to resume elsewhere. Runs with interrupts disabled.
    fn handle(frame: &mut Frame);
}

/// Saves every general register, calls [`dispatch`], restores them and returns: the part that all
/// stubs share.
///
/// The CPU aligns the stack to 16 bytes before it pushes 40 (Intel SDM vol. 3A,
/// 6.14.2); error code, vector and 15 registers make 176: the call is aligned.
#[unsafe(naked)]
extern "C" fn common<H: TrapHandler>() {
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
        dispatch = sym dispatch::<H>,
    )
}

/// Bytes from one vector's stub to the next.
const STUB: usize = 16;

/// Holds the stubs of all vectors, one after the other: each makes the frame the same for all of
/// them.
#[unsafe(naked)]
extern "C" fn stubs<H: TrapHandler>() {
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
        common = sym common::<H>,
    )
}

extern "C" fn dispatch<H: TrapHandler>(frame: &mut Frame) {
    H::handle(frame);
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

/// An IDT, in one of the two forms that a CPU needs during bring-up.
#[derive(Debug)]
struct Table([Gate; VECTORS]);

impl Table {
    fn new<H: TrapHandler>(stack_of: impl Fn(usize) -> Option<InterruptStack>) -> Self {
        let mut gates = [Gate::default(); VECTORS];
        for (vector, gate) in gates.iter_mut().enumerate() {
            let offset = (stubs::<H> as *const ()).addr() as u64 + (vector * STUB) as u64;
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

/// Loads an IDT whose handlers run on the stack in use, so that faults are reported from here on:
/// for a CPU that has no TSS yet.
pub fn load_early<H: TrapHandler>() {
    static EARLY: OnceCell<Table> = OnceCell::uninit();
    EARLY.get_or_init(|| Table::new::<H>(|_| None)).load();
}

/// Loads an IDT with interrupt stacks, for a CPU that has loaded its TSS.
pub fn load<H: TrapHandler>() {
    static FULL: OnceCell<Table> = OnceCell::uninit();
    FULL.get_or_init(|| {
        Table::new::<H>(|vector| match vector as u64 {
            DOUBLE_FAULT => Some(InterruptStack::DoubleFault),
            MACHINE_CHECK => Some(InterruptStack::MachineCheck),
            NMI => Some(InterruptStack::Nmi),
            _ => None,
        })
    })
    .load();
}
