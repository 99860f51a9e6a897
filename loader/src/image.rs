//! The kernel's ELF file, checked and turned into a plan: what goes where,
//! with which permissions.

use core::fmt;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_W, PF_X, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::Class;
use heapless::Vec;

use crate::memory_map::PAGE;

/// The lowest address an executable may be linked at: the Limine protocol's
/// "higher half" begins 2 GiB below the end of the address space.
pub const LOWEST_ADDRESS: u64 = 0xffff_ffff_8000_0000;

/// The most `PT_LOAD` segments an image may have.
const MAX_SEGMENTS: usize = 16;

/// One `PT_LOAD` segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'file> {
    /// Address it is linked at.
    pub address: u64,
    /// Bytes in memory; what the file does not give is zero.
    pub size: u64,
    /// Bytes from the file.
    pub data: &'file [u8],
    /// May be written.
    pub writable: bool,
    /// May be executed.
    pub executable: bool,
}

impl Segment<'_> {
    /// Returns the first page.
    pub const fn start(&self) -> u64 {
        self.address & !(PAGE - 1)
    }

    /// Address after the last page.
    pub const fn end(&self) -> u64 {
        (self.address + self.size).next_multiple_of(PAGE)
    }
}

/// An executable that can be loaded: its segments lie at or above
/// [`LOWEST_ADDRESS`], in ascending order, and share no page.
#[derive(Clone, Debug)]
pub struct Image<'file> {
    /// Address of the first instruction.
    pub entry: u64,
    /// Alignment the segments ask for, in bytes.
    pub align: u64,
    segments: Vec<Segment<'file>, MAX_SEGMENTS>,
}

/// What is wrong with a kernel file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Not an ELF file, or cut off.
    NotElf,
    /// An ELF file, but not for a 64-bit x86.
    NotX86_64,
    /// Position-independent, or no executable at all.
    NotStatic,
    /// Nothing to load.
    NoSegments,
    /// More segments than the loader has room for.
    TooManySegments,
    /// Outside the top 2 GiB.
    NotHigherHalf(u64),
    /// A segment begins on a page of the one before it.
    SharedPage(u64),
    /// The entry point lies in no executable segment.
    BadEntry(u64),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel can't be loaded: ")?;
        match self {
            Self::NotElf => f.write_str("it is no ELF file, or cut off"),
            Self::NotX86_64 => f.write_str("it is not for a 64-bit x86"),
            Self::NotStatic => {
                f.write_str("it is not a static executable; link with relocation-model=static")
            }
            Self::NoSegments => f.write_str("it has no PT_LOAD segment"),
            Self::TooManySegments => write!(f, "it has more than {MAX_SEGMENTS} PT_LOAD segments"),
            Self::NotHigherHalf(address) => {
                write!(
                    f,
                    "a segment at {address:#x} lies below {LOWEST_ADDRESS:#x}, or wraps"
                )
            }
            Self::SharedPage(address) => write!(
                f,
                "the segment at {address:#x} shares a page with the one before it, or is out of order"
            ),
            Self::BadEntry(address) => {
                write!(
                    f,
                    "its entry point {address:#x} lies in no executable segment"
                )
            }
        }
    }
}

impl<'file> Image<'file> {
    /// Checks an ELF file.
    ///
    /// # Errors
    /// [`ImageError`] says what is wrong with it.
    pub fn parse(file: &'file [u8]) -> Result<Self, ImageError> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| ImageError::NotElf)?;
        if elf.ehdr.class != Class::ELF64 || elf.ehdr.e_machine != EM_X86_64 {
            return Err(ImageError::NotX86_64);
        }
        if elf.ehdr.e_type != ET_EXEC {
            return Err(ImageError::NotStatic);
        }
        let entry = elf.ehdr.e_entry;
        let mut image = Self {
            entry,
            align: PAGE,
            segments: Vec::new(),
        };
        for header in elf.segments().into_iter().flatten() {
            if header.p_type != PT_LOAD || header.p_memsz == 0 {
                continue;
            }
            let data = elf.segment_data(&header).map_err(|_| ImageError::NotElf)?;
            let last = header.p_vaddr.checked_add(header.p_memsz - 1);
            // The last page of the address space stays free, so that the end
            // of every segment is a number.
            if header.p_vaddr < LOWEST_ADDRESS || last.is_none_or(|last| last >= !(PAGE - 1)) {
                return Err(ImageError::NotHigherHalf(header.p_vaddr));
            }
            if header.p_filesz > header.p_memsz {
                return Err(ImageError::NotElf);
            }
            if header.p_align.is_power_of_two() {
                image.align = image.align.max(header.p_align);
            }
            let segment = Segment {
                address: header.p_vaddr,
                size: header.p_memsz,
                data,
                writable: header.p_flags & PF_W != 0,
                executable: header.p_flags & PF_X != 0,
            };
            if image
                .segments
                .last()
                .is_some_and(|last| segment.start() < last.end())
            {
                return Err(ImageError::SharedPage(segment.address));
            }
            image
                .segments
                .push(segment)
                .map_err(|_| ImageError::TooManySegments)?;
        }
        if image.segments.is_empty() {
            return Err(ImageError::NoSegments);
        }
        if !image.is_executable(entry) {
            return Err(ImageError::BadEntry(entry));
        }
        Ok(image)
    }

    /// Returns the segments in ascending order.
    pub fn segments(&self) -> &[Segment<'file>] {
        &self.segments
    }

    /// Returns the first page of the image.
    pub fn start(&self) -> u64 {
        self.segments.first().map_or(LOWEST_ADDRESS, Segment::start)
    }

    /// Returns bytes from the first page to the end of the last, gaps included.
    pub fn size(&self) -> u64 {
        self.segments
            .last()
            .map_or(0, |last| last.end() - self.start())
    }

    /// Returns whether the kernel can be entered at `address`.
    pub fn is_executable(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| {
            segment.executable && (segment.start()..segment.end()).contains(&address)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Image, ImageError, LOWEST_ADDRESS};

    /// Type, flags, address, bytes in the file, bytes in memory.
    type Header = (u32, u32, u64, u64, u64);

    const TEXT: Header = (1, 5, LOWEST_ADDRESS, 0x20, 0x20);
    const DATA: Header = (1, 6, LOWEST_ADDRESS + 0x1ff0, 0x10, 0x4000);

    /// Makes a minimal ELF64 executable whose segments' data all begin at offset 0.
    fn file(kind: u16, machine: u16, entry: u64, headers: &[Header]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([kind, machine].map(u16::to_le_bytes).concat());
        file.extend(1_u32.to_le_bytes());
        file.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
        file.extend(0_u32.to_le_bytes());
        file.extend(
            [64, 56, headers.len() as u16, 64, 0, 0]
                .map(u16::to_le_bytes)
                .concat(),
        );
        for &(kind, flags, address, file_size, size) in headers {
            file.extend([kind, flags].map(u32::to_le_bytes).concat());
            let words = [0, address, address, file_size, size, 0x1000];
            file.extend(words.map(u64::to_le_bytes).concat());
        }
        file
    }

    fn error(headers: &[Header]) -> ImageError {
        Image::parse(&file(2, 62, LOWEST_ADDRESS, headers)).unwrap_err()
    }

    #[test]
    fn a_good_file_becomes_a_plan() {
        let note = (4, 4, 0, 0, 0);
        let bytes = file(2, 62, LOWEST_ADDRESS + 4, &[note, TEXT, DATA]);
        let image = Image::parse(&bytes).unwrap();
        let [text, data] = image.segments() else {
            panic!("{image:?}")
        };
        assert!(text.executable && !text.writable && data.writable && !data.executable);
        assert_eq!(
            (data.start(), data.end()),
            (LOWEST_ADDRESS + 0x1000, LOWEST_ADDRESS + 0x6000)
        );
        assert_eq!(data.data.len(), 0x10);
        assert_eq!((image.start(), image.size()), (LOWEST_ADDRESS, 0x6000));
        assert!(image.is_executable(image.entry) && !image.is_executable(data.address));
    }

    #[test]
    fn bad_files_are_told_apart() {
        assert_eq!(Image::parse(b"").unwrap_err(), ImageError::NotElf);
        assert_eq!(
            Image::parse(b"#!/bin/sh\n").unwrap_err(),
            ImageError::NotElf
        );
        let headers = [TEXT];
        let cut_off = file(2, 62, LOWEST_ADDRESS, &headers);
        assert_eq!(
            Image::parse(&cut_off[..100]).unwrap_err(),
            ImageError::NotElf
        );
        let arm = file(2, 183, LOWEST_ADDRESS, &headers);
        assert_eq!(Image::parse(&arm).unwrap_err(), ImageError::NotX86_64);
        let pie = file(3, 62, LOWEST_ADDRESS, &headers);
        assert_eq!(Image::parse(&pie).unwrap_err(), ImageError::NotStatic);
        let lost = file(2, 62, LOWEST_ADDRESS + 0x1000, &headers);
        assert_eq!(
            Image::parse(&lost).unwrap_err(),
            ImageError::BadEntry(LOWEST_ADDRESS + 0x1000)
        );
    }

    #[test]
    fn bad_segments_are_told_apart() {
        assert_eq!(error(&[]), ImageError::NoSegments);
        let low = 0x10_0000;
        assert_eq!(error(&[(1, 5, low, 0, 1)]), ImageError::NotHigherHalf(low));
        assert_eq!(
            error(&[(1, 5, !0xfff, 0, 1)]),
            ImageError::NotHigherHalf(!0xfff)
        );
        assert_eq!(
            error(&[(1, 5, LOWEST_ADDRESS, 0, !0)]),
            ImageError::NotHigherHalf(LOWEST_ADDRESS)
        );
        let shared = (1, 6, LOWEST_ADDRESS + 0x20, 0, 1);
        assert_eq!(
            error(&[TEXT, shared]),
            ImageError::SharedPage(LOWEST_ADDRESS + 0x20)
        );
        assert_eq!(error(&[DATA, TEXT]), ImageError::SharedPage(LOWEST_ADDRESS));
        assert_eq!(
            error(&[(1, 5, LOWEST_ADDRESS, 0x10, 0x8)]),
            ImageError::NotElf
        );
        let many: Vec<_> = (0..17)
            .map(|index| (1, 5, LOWEST_ADDRESS + index * 0x1000, 0, 1))
            .collect();
        assert_eq!(error(&many), ImageError::TooManySegments);
    }
}
