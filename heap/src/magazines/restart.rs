//! The fast paths as restartable sequences, for kernels on x86-64.
//!
//! Each is some instructions, of which the last one makes the only change that counts. Where they
//! are stands in a table, by which [`resume`] knows an interrupted one.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use super::cache::{Block, CpuCache, Magazine};
use super::class::Bin;
use super::{FastPath, FramePlatform};

/// Offsets within a [`CpuCache`].
const TOP: usize = offset_of!(CpuCache, magazines) + offset_of!(Magazine, top);
const END: usize = offset_of!(CpuCache, magazines) + offset_of!(Magazine, end);
const ALLOCATIONS: usize = offset_of!(CpuCache, magazines) + offset_of!(Magazine, allocations);
const SLOTS: usize = offset_of!(CpuCache, slots);
const ALLOCATED: usize = offset_of!(CpuCache, allocated);
const FREED: usize = offset_of!(CpuCache, freed);

/// A line of the table: the sequence from label 2 to label 3, as distances from the line itself.
///
/// The linker gathers the lines of all places where a sequence was inlined, and names their start
/// and end, as the section's name is an identifier. `R` keeps it from dropping the section, which
/// nothing refers to but by those names (System V gABI, `SHF_GNU_RETAIN`).
macro_rules! table_line {
    () => {
        ".pushsection muster_heap_restart, \"aR\", @progbits
        .long 2b - .
        .long 3b - .
        .popsection"
    };
}

// A line that stands for no instruction, so that there is a table in any case.
global_asm!(
    ".pushsection muster_heap_restart, \"aR\", @progbits",
    "2: 3:",
    ".long 2b - .",
    ".long 3b - .",
    ".popsection",
);

#[repr(C)]
struct Line {
    start: i32,
    end: i32,
}

unsafe extern "C" {
    #[link_name = "__start_muster_heap_restart"]
    static TABLE: Line;
    #[link_name = "__stop_muster_heap_restart"]
    static TABLE_END: Line;
}

/// Returns where code that was interrupted at `instruction` must resume: there, or at the start of the
/// heap's restartable sequence that it was in the middle of.
///
/// With [`FastPath::Restarted`], a handler passes the address that it is about to return to through this, if it may have used
/// the heap, or what interrupted it in turn may have; and so does a kernel that takes up a task which it had taken
/// off a CPU. It takes a few instructions for each place where the heap was
/// inlined: a kernel that has many had better put its `GlobalAlloc` behind `#[inline(never)]`.
#[inline]
pub fn resume(instruction: usize) -> usize {
    let mut line = &raw const TABLE;
    while line < &raw const TABLE_END {
        // SAFETY: the linker puts nothing but lines between the two.
        let Line { start, end } = unsafe { line.read() };
        let start_address = line.addr().wrapping_add_signed(start as isize);
        // The second distance counts from the second half of the line.
        let length = (end as isize + 4 - start as isize) as usize;
        if instruction.wrapping_sub(start_address) < length {
            return start_address;
        }
        // SAFETY: at most the table's end.
        line = unsafe { line.add(1) };
    }
    instruction
}

/// Returns where this CPU's cache lies from GS base.
const fn cache<P: FramePlatform>() -> usize {
    match P::FAST_PATH {
        FastPath::Restarted { cache_from_gs } => cache_from_gs,
        FastPath::Uninterrupted | FastPath::Flagged => 0,
    }
}

/// Runs the fast path of an allocation of `size` bytes. `None`: take the slow path.
///
/// # Safety
///
/// The platform's fast path is [`FastPath::Restarted`].
#[inline(always)]
pub(super) unsafe fn pop<P: FramePlatform>(bin: Bin, size: usize) -> Option<Block> {
    let block: *mut u8;
    // SAFETY: (1) a bin's offset leads to its magazine, whose `top` is the number of a slot: the
    // platform's promise and the cache's; (2) the first three instructions write registers only, the
    // last one changes `top` for this CPU if the block is not null, and so takes it out; (3) whatever
    // interrupts the sequence and uses the cache makes sure that it restarts, so `top` is still what
    // was read: the platform's promise (`FastPath::Restarted`).
    unsafe {
        asm!(
            "2:",
            "mov {top:e}, dword ptr gs:[{bin} + {TOP}]",
            "mov {block}, qword ptr gs:[{top} * 8 + {SLOTS}]",
            // Carry if it is null; so minus one, or minus one plus one.
            "cmp {block}, 1",
            "adc dword ptr gs:[{bin} + {TOP}], -1",
            "3:",
            table_line!(),
            bin = in(reg) bin.offset(),
            top = out(reg) _,
            block = out(reg) block,
            TOP = const cache::<P>() + TOP,
            SLOTS = const cache::<P>() + SLOTS,
            options(nostack),
        );
    }
    let block = Block::new(block)?;
    // SAFETY: one instruction each on counters of this CPU, so nothing can come in between.
    unsafe {
        asm!(
            "inc qword ptr gs:[{bin} + {ALLOCATIONS}]",
            "add qword ptr gs:[{ALLOCATED}], {size}",
            bin = in(reg) bin.offset(),
            size = in(reg) size,
            ALLOCATIONS = const cache::<P>() + ALLOCATIONS,
            ALLOCATED = const cache::<P>() + ALLOCATED,
            options(nostack),
        );
    }
    Some(block)
}

/// Runs the fast path of a free of `size` bytes. `false`: take the slow path.
///
/// # Safety
///
/// The platform's fast path is [`FastPath::Restarted`].
#[inline(always)]
pub(super) unsafe fn push<P: FramePlatform>(bin: Bin, block: Block, size: usize) -> bool {
    // SAFETY: as for `pop`; the only memory that is written before the last instruction is a slot
    // above `top` and at most `end`, which is free; and the counter as there.
    unsafe {
        asm!(
            "2:",
            "mov {top:e}, dword ptr gs:[{bin} + {TOP}]",
            "cmp {top:e}, dword ptr gs:[{bin} + {END}]",
            "jae {full}",
            "mov qword ptr gs:[{top} * 8 + {SLOTS} + 8], {block}",
            "inc dword ptr gs:[{bin} + {TOP}]",
            "3:",
            "add qword ptr gs:[{FREED}], {size}",
            table_line!(),
            bin = in(reg) bin.offset(),
            block = in(reg) block.as_ptr(),
            size = in(reg) size,
            top = out(reg) _,
            full = label { return false },
            TOP = const cache::<P>() + TOP,
            END = const cache::<P>() + END,
            SLOTS = const cache::<P>() + SLOTS,
            FREED = const cache::<P>() + FREED,
            options(nostack),
        );
    }
    true
}
