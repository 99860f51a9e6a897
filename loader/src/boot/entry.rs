//! The way in and the way out, in assembly (`entry.s`), and its faces in Rust.

use core::mem::offset_of;

use x86_64::VirtAddr;
use x86_64::instructions::tables::lgdt;
use x86_64::structures::DescriptorTablePointer;

use super::cpus::{DOOR, Door, Slot, arrive};
use super::exit;

core::arch::global_asm!(
    include_str!("entry.s"),
    COM1 = const exit::COM1,
    EXIT_PORT = const exit::PORT,
    EXIT_CODE = const exit::REFUSED,
    LOAD = sym super::load,
    ARRIVE = sym arrive,
    DOOR = sym DOOR,
    DOOR_ROOT = const offset_of!(Door, root),
    DOOR_CR4 = const offset_of!(Door, cr4),
    DOOR_SLOTS = const offset_of!(Door, slots),
    DOOR_COUNT = const offset_of!(Door, count),
    SLOT_SIZE = const size_of::<Slot>(),
    SLOT_APIC_ID = const offset_of!(Slot, apic_id),
    SLOT_STACK = const offset_of!(Slot, stack),
);

unsafe extern "C" {
    static loader_start: u8;
    static loader_end: u8;
    static trampoline_start: u8;
    static trampoline_end: u8;
    static gdt: u8;
    static gdt_end: u8;
    fn enter_kernel();
    fn wake();
    fn stop();
    /// Sends the bootstrap CPU through the door, after which it is one CPU
    /// among the others.
    ///
    /// # Safety
    /// The boot tables are loaded, and [`DOOR`] is filled in.
    pub fn enter_door() -> !;
}

/// Returns the loader's own memory, from its first byte to the end of its last page.
pub fn image() -> core::ops::Range<u64> {
    (&raw const loader_start).addr() as u64..(&raw const loader_end).addr() as u64
}

/// Returns the real-mode code that a CPU starts with.
pub fn trampoline() -> &'static [u8] {
    let start = &raw const trampoline_start;
    let length = (&raw const trampoline_end).addr() - start.addr();
    // SAFETY: the two symbols enclose bytes of the loader's read-only data,
    // which nothing writes to.
    unsafe { core::slice::from_raw_parts(start, length) }
}

/// Address of the handler that returns at once.
pub fn wake_handler() -> VirtAddr {
    VirtAddr::from_ptr(wake as *const ())
}

/// Address of the handler that never returns.
pub fn stop_handler() -> VirtAddr {
    VirtAddr::from_ptr(stop as *const ())
}

/// Enters the kernel on its own tables, with nothing left of the loader's
/// identity mapping: the GDT is used, and the last instructions run, at their
/// addresses in the direct map.
///
/// # Safety
/// 1. `root` is the physical address of tables whose direct map at `hhdm`
///    holds the loader's image (writable and executable) and the stack, and so
///    do the tables in use.
/// 2. `entry` is code in these tables that can be entered with nothing but
///    `info` and a stack.
/// 3. Interrupts are off.
pub unsafe fn leave(hhdm: u64, root: u64, stack: u64, entry: u64, info: u64) -> ! {
    let table = (&raw const gdt).addr() as u64;
    let limit = (&raw const gdt_end).addr() as u64 - table - 1;
    // SAFETY: the same table that is in use, at its second address, which
    // both the present and the kernel's tables map (1), and which is canonical
    // for them (`VirtAddr::new` knows 4 levels only).
    unsafe {
        let base = VirtAddr::new_unsafe(hhdm + table);
        lgdt(&DescriptorTablePointer {
            limit: limit as u16,
            base,
        });
    }
    let target = hhdm + (enter_kernel as *const ()).addr() as u64;
    // SAFETY: the target is `enter_kernel` at its address in the direct map,
    // executable in both tables (1); the registers hold what it asks for, and
    // the rest is the caller's promise (2, 3).
    unsafe {
        core::arch::asm!(
            "jmp {target}",
            target = in(reg) target,
            in("rdi") info,
            in("rsi") stack,
            in("rdx") entry,
            in("rcx") root,
            options(noreturn)
        )
    }
}
