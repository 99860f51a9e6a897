//! The loader's side of the Limine protocol: responses as the kernel reads
//! them (Limine boot protocol, base revision 3), and the memory they lie in.
//! Pointers are addresses in the direct map.

use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::AtomicU64;

use super::physical;

/// Name and version of the loader, NUL-terminated strings.
#[repr(C)]
pub struct BootloaderInfo {
    pub revision: u64,
    pub name: u64,
    pub version: u64,
}
const _: () = assert!(size_of::<BootloaderInfo>() == 24);

/// A response that says only "done".
#[repr(C)]
pub struct Done {
    pub revision: u64,
}
const _: () = assert!(size_of::<Done>() == 8);

/// Base of the direct map.
#[repr(C)]
pub struct Hhdm {
    pub revision: u64,
    pub offset: u64,
}
const _: () = assert!(size_of::<Hhdm>() == 16);

/// The paging mode: 0 for four levels, 1 for five.
#[repr(C)]
pub struct PagingMode {
    pub revision: u64,
    pub mode: u64,
}
const _: () = assert!(size_of::<PagingMode>() == 16);

/// Array of pointers to [`MemoryMapEntry`].
#[repr(C)]
pub struct MemoryMapResponse {
    pub revision: u64,
    pub count: u64,
    pub entries: u64,
}
const _: () = assert!(size_of::<MemoryMapResponse>() == 24);

/// One entry of the memory map; `base` is physical.
#[repr(C)]
pub struct MemoryMapEntry {
    pub base: u64,
    pub length: u64,
    pub kind: u64,
}
const _: () = assert!(size_of::<MemoryMapEntry>() == 24);

/// Array of pointers to [`MpInfo`].
#[repr(C)]
pub struct Mp {
    pub revision: u64,
    pub flags: u32,
    pub bsp_apic_id: u32,
    pub count: u64,
    pub cpus: u64,
}
const _: () = assert!(size_of::<Mp>() == 32);

/// One CPU. The CPU waits for `goto_address` to become anything but 0.
#[repr(C)]
pub struct MpInfo {
    pub processor_id: u32,
    pub apic_id: u32,
    pub reserved: u64,
    pub goto_address: AtomicU64,
    pub extra_argument: u64,
}
const _: () = assert!(size_of::<MpInfo>() == 32);

impl MpInfo {
    /// Byte offset of `goto_address`.
    pub const GOTO_ADDRESS: u64 = offset_of!(Self, goto_address) as u64;

    /// Creates the entry of a CPU that waits.
    pub const fn new(processor_id: u32, apic_id: u32) -> Self {
        Self {
            processor_id,
            apic_id,
            reserved: 0,
            goto_address: AtomicU64::new(0),
            extra_argument: 0,
        }
    }
}

/// Physical address of the ACPI root pointer.
#[repr(C)]
pub struct Rsdp {
    pub revision: u64,
    pub address: u64,
}
const _: () = assert!(size_of::<Rsdp>() == 16);

/// Where the kernel lies.
#[repr(C)]
pub struct ExecutableAddress {
    pub revision: u64,
    pub physical_base: u64,
    pub virtual_base: u64,
}
const _: () = assert!(size_of::<ExecutableAddress>() == 24);

/// The kernel's command line, NUL-terminated.
#[repr(C)]
pub struct CommandLine {
    pub revision: u64,
    pub line: u64,
}
const _: () = assert!(size_of::<CommandLine>() == 16);

/// Pointer to a [`File`].
#[repr(C)]
pub struct ExecutableFile {
    pub revision: u64,
    pub file: u64,
}
const _: () = assert!(size_of::<ExecutableFile>() == 16);

/// A file as it was loaded. No disk, network or partition is behind ours: the
/// fields that would say so are all 0.
#[repr(C)]
pub struct File {
    pub revision: u64,
    pub address: u64,
    pub size: u64,
    pub path: u64,
    pub string: u64,
    pub media_type: u32,
    pub unused: u32,
    pub tftp_ip: u32,
    pub tftp_port: u32,
    pub partition_index: u32,
    pub mbr_disk_id: u32,
    pub gpt_disk_uuid: [u8; 16],
    pub gpt_part_uuid: [u8; 16],
    pub part_uuid: [u8; 16],
}
const _: () = assert!(size_of::<File>() == 112);

impl File {
    /// Creates the entry of a file in memory; all but the sizes are addresses in the direct map.
    pub const fn new(address: u64, size: u64, path: u64, string: u64) -> Self {
        Self {
            revision: 0,
            address,
            size,
            path,
            string,
            media_type: 0,
            unused: 0,
            tftp_ip: 0,
            tftp_port: 0,
            partition_index: 0,
            mbr_disk_id: 0,
            gpt_disk_uuid: [0; 16],
            gpt_part_uuid: [0; 16],
            part_uuid: [0; 16],
        }
    }
}

/// The arena is too small.
#[derive(Clone, Copy, Debug)]
pub struct OutOfArena;

/// Memory that responses are placed in, one after the other, for good.
pub struct Arena {
    free: Range<u64>,
    hhdm: u64,
}

impl Arena {
    /// Creates an arena in a range of physical memory, which the kernel will see at `hhdm` plus its
    /// physical addresses.
    ///
    /// # Safety
    /// `memory` is memory below [`physical::LIMIT`], page-aligned, and the
    /// arena's alone for good.
    pub const unsafe fn new(memory: Range<u64>, hhdm: u64) -> Self {
        Self { free: memory, hhdm }
    }

    /// Places one value, and returns it with its address in the direct map.
    ///
    /// # Errors
    /// [`OutOfArena`].
    pub fn place<T: 'static>(&mut self, value: T) -> Result<Placed<T>, OutOfArena> {
        let address = self.take(size_of::<T>(), align_of::<T>())?;
        let pointer = core::ptr::with_exposed_provenance_mut::<T>(address as usize);
        // SAFETY: the bytes were just taken from the arena's own memory, so
        // nothing else refers to them; they are aligned for `T` and stay
        // mapped at their physical address as long as the loader runs.
        let value = unsafe {
            pointer.write(value);
            &*pointer
        };
        Ok(Placed {
            value,
            address: self.hhdm + address,
        })
    }

    /// Places values one after the other, and returns them with the first
    /// one's address in the direct map.
    ///
    /// # Errors
    /// [`OutOfArena`].
    pub fn place_all<T: 'static>(
        &mut self,
        values: impl IntoIterator<Item = T>,
    ) -> Result<Placed<[T]>, OutOfArena> {
        let first = self.take(0, align_of::<T>())?;
        let mut count = 0;
        for value in values {
            // No padding: a type's size is a multiple of its alignment.
            self.place(value)?;
            count += 1;
        }
        let pointer = core::ptr::with_exposed_provenance::<T>(first as usize);
        // SAFETY: `count` values were just placed there, one after the other.
        let value = unsafe { core::slice::from_raw_parts(pointer, count) };
        Ok(Placed {
            value,
            address: self.hhdm + first,
        })
    }

    /// Places a string, with a NUL after it, made of `words` and the spaces
    /// between them.
    ///
    /// # Errors
    /// [`OutOfArena`].
    pub fn place_words<'a>(
        &mut self,
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<u64, OutOfArena> {
        let spaced = words.into_iter().enumerate().flat_map(|(index, word)| {
            let space = if index == 0 { "" } else { " " };
            space.bytes().chain(word.bytes())
        });
        Ok(self.place_all(spaced.chain([0]))?.address)
    }

    fn take(&mut self, size: usize, align: usize) -> Result<u64, OutOfArena> {
        let start = self.free.start.next_multiple_of(align as u64);
        let end = start + size as u64;
        if end > self.free.end.min(physical::LIMIT) {
            return Err(OutOfArena);
        }
        self.free.start = end;
        Ok(start)
    }
}

/// A value in an [`Arena`].
pub struct Placed<T: ?Sized + 'static> {
    /// The value, at its physical address.
    pub value: &'static T,
    /// Its address in the direct map.
    pub address: u64,
}
