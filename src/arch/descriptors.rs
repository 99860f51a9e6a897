//! GDT and TSS of one CPU.
//!
//! Segments have no say in long mode, but the selectors must exist, and the TSS
//! holds the stacks on which the faults that can't trust the current one run.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::tables::{lgdt, load_tss};
use x86_64::registers::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, VirtAddr};

/// GDT entries: null, four that only keep the numbering, code, data, and a TSS of
/// two.
const ENTRIES: usize = 9;

/// The selectors the protocol enters with. The kernel's own GDT keeps them, so
/// that one IDT is right before and after a CPU loads it.
pub const CODE: SegmentSelector = SegmentSelector::new(5, PrivilegeLevel::Ring0);
const DATA: SegmentSelector = SegmentSelector::new(6, PrivilegeLevel::Ring0);
const TSS: SegmentSelector = SegmentSelector::new(7, PrivilegeLevel::Ring0);

/// The interrupt stacks of the TSS, by what runs on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum InterruptStack {
    /// Double fault: the stack in use may be the fault.
    DoubleFault = 0,
    /// NMI: it comes at any instruction.
    Nmi = 1,
    /// Machine check: likewise.
    MachineCheck = 2,
}

impl InterruptStack {
    /// How many there are.
    pub const COUNT: usize = 3;
}

/// The cell for the BSP's tables until it has a block.
struct BootCell(UnsafeCell<MaybeUninit<Descriptors>>);

// SAFETY: the cell is reached only once, in `load_boot`.
unsafe impl Sync for BootCell {}

/// Loads tables on the BSP, whose interrupt stacks have these tops, for as long as it has no block: so
/// that an overflow of the boot stack is reported as well.
///
/// # Panics
///
/// If it is called again.
pub fn load_boot(tops: [muster_paging::VirtAddr; InterruptStack::COUNT]) {
    static BOOT: BootCell = BootCell(UnsafeCell::new(MaybeUninit::uninit()));
    static TAKEN: AtomicBool = AtomicBool::new(false);

    // Relaxed: only the BSP comes here, and the swap alone lets one caller through.
    assert!(
        !TAKEN.swap(true, Ordering::Relaxed),
        "the boot stack's descriptors are loaded twice"
    );
    // SAFETY: the place is aligned and stays for good, and the flag lets one caller through, once.
    unsafe { Descriptors::create(BOOT.0.get().cast(), tops) }.load();
}

/// One CPU's tables. They do not move while the CPU runs.
pub struct Descriptors {
    tss: TaskStateSegment,
    gdt: GlobalDescriptorTable<ENTRIES>,
}

impl Descriptors {
    /// Makes tables at `place` with the given tops of the interrupt stacks, in the
    /// order of [`InterruptStack`]. The GDT points to the TSS, so they can't move.
    ///
    /// # Safety
    ///
    /// `place` is aligned, writable, used by nothing else, and stays for good.
    pub unsafe fn create(
        place: *mut Self,
        tops: [muster_paging::VirtAddr; InterruptStack::COUNT],
    ) -> &'static Self {
        let mut tss = TaskStateSegment::new();
        let mut table = tss.interrupt_stack_table;
        for (slot, top) in table.iter_mut().zip(tops) {
            *slot = VirtAddr::new_truncate(top.get());
        }
        // The struct is packed: its fields are written whole.
        tss.interrupt_stack_table = table;

        let mut gdt = GlobalDescriptorTable::empty();
        for _ in 1..CODE.index() {
            gdt.append(Descriptor::UserSegment(0));
        }
        gdt.append(Descriptor::kernel_code_segment());
        gdt.append(Descriptor::kernel_data_segment());
        // SAFETY: (1) the address is only stored here; what reads the TSS is the CPU,
        // from `load` on, when it stands there; (2) the place is the caller's promise;
        // (3) the reference is made once both fields are written.
        unsafe {
            gdt.append(Descriptor::tss_segment_unchecked(&raw const (*place).tss));
            place.write(Self { tss, gdt });
            &*place
        }
    }

    /// Loads the tables on this CPU.
    ///
    /// FS and GS keep the selectors the protocol enters with, which the new GDT
    /// knows as well: to load GS would clear its base, by which an NMI finds the
    /// CPU's block.
    pub fn load(&'static self) {
        let pointer = DescriptorTablePointer {
            limit: self.gdt.limit(),
            // SAFETY: the address of a live object is canonical for the number of
            // levels in use; `VirtAddr::new` knows only four.
            base: unsafe { VirtAddr::new_unsafe(self.gdt.entries().as_ptr().addr() as u64) },
        };
        // SAFETY: (1) the GDT is `'static`, its code and data entries are ring 0's 64-bit
        // ones; (2) the TSS descriptor points to the TSS beside it, `'static` as well,
        // whose interrupt stacks are mapped; (3) interrupts are off, and an NMI in
        // between finds selectors that mean the same in both GDTs.
        unsafe {
            lgdt(&pointer);
            CS::set_reg(CODE);
            SS::set_reg(DATA);
            DS::set_reg(DATA);
            ES::set_reg(DATA);
            load_tss(TSS);
        }
    }
}
