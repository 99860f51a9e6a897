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
    /// First page.
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

    /// The segments in ascending order.
    pub fn segments(&self) -> &[Segment<'file>] {
        &self.segments
    }

    /// First page of the image.
    pub fn start(&self) -> u64 {
        self.segments.first().map_or(LOWEST_ADDRESS, Segment::start)
    }

    /// Bytes from the first page to the end of the last, gaps included.
    pub fn size(&self) -> u64 {
        self.segments
            .last()
            .map_or(0, |last| last.end() - self.start())
    }

    /// Whether the kernel can be entered at `address`.
    pub fn is_executable(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| {
            segment.executable && (segment.start()..segment.end()).contains(&address)
        })
    }
}
