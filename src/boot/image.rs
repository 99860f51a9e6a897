//! The kernel image as it lies in memory, from the symbols of `linker.ld`.

use core::ops::Range;

use muster_paging::{Access, VirtAddr};

/// One section group of the image: whole pages with one set of rights.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The content of the pages, as it is called in the plan and in reports.
    pub name: &'static str,
    /// First virtual address.
    pub start: VirtAddr,
    /// First virtual address after it.
    pub end: VirtAddr,
    /// The rights the image asks for.
    pub access: Access,
}

impl Section {
    /// Returns the length in bytes, a multiple of 4 KiB.
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// Returns whether `address` lies in this section.
    pub fn contains(&self, address: VirtAddr) -> bool {
        (self.start..self.end).contains(&address)
    }
}

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static rodata_start: u8;
    static rodata_end: u8;
    static data_start: u8;
    static data_end: u8;
    static boot_stack_start: u8;
    static boot_stack_end: u8;
}

/// Returns the sections in the order in which they lie.
pub fn sections() -> [Section; 4] {
    let section = |name, start: *const u8, end: *const u8, access| Section {
        name,
        start: VirtAddr::from_ptr(start),
        end: VirtAddr::from_ptr(end),
        access,
    };
    [
        section(
            "kernel text",
            &raw const text_start,
            &raw const text_end,
            Access::ReadExecute,
        ),
        section(
            "kernel rodata",
            &raw const rodata_start,
            &raw const rodata_end,
            Access::ReadOnly,
        ),
        section(
            "kernel data",
            &raw const data_start,
            &raw const data_end,
            Access::ReadWrite,
        ),
        // Below it lies a page that is not mapped.
        section(
            "boot stack",
            &raw const boot_stack_start,
            &raw const boot_stack_end,
            Access::ReadWrite,
        ),
    ]
}

/// Returns whether `address` lies in the image's code.
pub fn is_text(address: VirtAddr) -> bool {
    sections()[0].contains(VirtAddr::new(address.get()))
}

/// Returns whether the loader has loaded these addresses as part of the image.
pub fn has_loaded(addresses: Range<usize>) -> bool {
    let (start, end) = (addresses.start as u64, addresses.end as u64);
    sections()
        .iter()
        .any(|section| section.start <= VirtAddr::new(start) && end <= section.end.get())
}
