//! What a Limine loader answers, checked: raw numbers in, sound values or an error in words out.
//!
//! Each function takes one answer as the protocol lays it down, without the pointers that lead to it,
//! which are the kernel's affair. A loader may answer anything at all: nothing here panics, and what
//! it lets through the rest of the kernel can rely on.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod cpus;
mod error;
mod framebuffer;
mod hhdm;
mod kind;
mod memory_map;
mod placement;

pub use cpus::Cpus;
pub use error::BootError;
pub use framebuffer::{Answer, Framebuffer, Unusable};
pub use hhdm::hhdm_regions;
pub use kind::{Kind, MemoryEntry, physical_map};
pub use memory_map::MemoryMap;
pub use placement::Placement;

use alloc::string::String;

use muster_paging::{PageSize, VirtAddr};

/// The base revision of the protocol that is asked for.
pub const REVISION: u64 = 3;

/// Returns the virtual address of physical address 0 in the loader's direct map.
///
/// # Errors
///
/// [`BootError::Hhdm`].
pub const fn hhdm(offset: u64) -> Result<VirtAddr, BootError> {
    if offset >> 63 == 0 || !offset.is_multiple_of(PageSize::Size2MiB.bytes()) {
        return Err(BootError::Hhdm(offset));
    }
    Ok(VirtAddr::new(offset))
}

/// Returns a copy of the command line, given without its final NUL.
///
/// # Errors
///
/// [`BootError::CommandLine`].
pub fn command_line(line: &[u8]) -> Result<String, BootError> {
    core::str::from_utf8(line)
        .map(String::from)
        .map_err(|_| BootError::CommandLine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direct_map_begins_in_the_higher_half_where_a_large_page_does() {
        for offset in [0xffff_8000_0000_0000, 0xff00_0000_0000_0000, 1 << 63] {
            assert_eq!(hhdm(offset), Ok(VirtAddr::new(offset)));
        }
        for offset in [0, 0x7fff_ffff_ffe0_0000, 0xffff_8000_0000_1000, u64::MAX] {
            assert_eq!(hhdm(offset), Err(BootError::Hhdm(offset)));
        }
    }

    #[test]
    fn a_command_line_is_text() {
        assert_eq!(command_line(b"seed=1").as_deref(), Ok("seed=1"));
        assert_eq!(command_line("é".as_bytes()).as_deref(), Ok("é"));
        assert_eq!(command_line(b"seed=\xff"), Err(BootError::CommandLine));
    }
}
