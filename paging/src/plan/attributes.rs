//! The rights, the cache type and the size of pages.

use core::fmt;

use x86_64::structures::paging::PageTableFlags as Flags;

use muster_frames::FRAME_SIZE;

/// The rights of the kernel to a mapping. Writable *and* executable cannot be expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
}

impl Access {
    /// Returns the bits that say so in a leaf entry.
    pub(crate) const fn bits(self) -> u64 {
        match self {
            Self::ReadOnly => Flags::NO_EXECUTE.bits(),
            Self::ReadWrite => Flags::NO_EXECUTE.bits() | Flags::WRITABLE.bits(),
            Self::ReadExecute => 0,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ReadOnly => "r--",
            Self::ReadWrite => "rw-",
            Self::ReadExecute => "r-x",
        })
    }
}

/// The value of the `IA32_PAT` register that [`Cache`] relies on, to be loaded on every CPU.
///
/// It is what the Limine boot protocol sets: entries 0 to 5 are WB, WT, UC-, UC, WP, WC, in the
/// encodings of Intel SDM vol. 3, 13.12.2 "IA32_PAT MSR". The protocol leaves 6 and 7 open; they
/// are UC here.
pub const PAT: u64 = 0x0000_0105_0007_0406;

/// The cache type of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cache {
    /// Ordinary memory.
    WriteBack,
    /// Writes are gathered, reads are not cached: framebuffers.
    WriteCombining,
    /// Device registers.
    Uncached,
}

impl Cache {
    const ALL: [Self; 3] = [Self::WriteBack, Self::WriteCombining, Self::Uncached];

    /// Returns the entry of the [`PAT`] that has this type.
    pub const fn pat_index(self) -> u8 {
        match self {
            Self::WriteBack => 0,
            Self::Uncached => 3,
            Self::WriteCombining => 5,
        }
    }

    /// Returns the type that an entry of the [`PAT`] has, or `None` if no value stands for it.
    pub const fn from_pat_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::WriteBack),
            3 => Some(Self::Uncached),
            5 => Some(Self::WriteCombining),
            _ => None,
        }
    }

    /// Returns the type's encoding in `IA32_PAT` (Intel SDM vol. 3, 13.12.2, table "Memory Types That
    /// Can Be Encoded With PAT").
    const fn encoding(self) -> u64 {
        match self {
            Self::Uncached => 0x00,
            Self::WriteCombining => 0x01,
            Self::WriteBack => 0x06,
        }
    }

    /// Returns the bits that choose this type in a leaf entry for a page of this size.
    pub const fn bits(self, size: PageSize) -> u64 {
        let index = self.pat_index();
        let mut bits = 0;
        if index & 1 != 0 {
            bits |= Flags::WRITE_THROUGH.bits();
        }
        if index & 2 != 0 {
            bits |= Flags::NO_CACHE.bits();
        }
        if index & 4 != 0 {
            bits |= size.pat_bit();
        }
        bits
    }
}

/// Returns the entry of the PAT that a leaf entry for a page of this size chooses (Intel SDM vol. 3,
/// 5.9.2 "Paging and Memory Typing When the PAT is Supported").
pub(crate) const fn pat_index(entry: u64, size: PageSize) -> u8 {
    let mut index = 0;
    if entry & Flags::WRITE_THROUGH.bits() != 0 {
        index |= 1;
    }
    if entry & Flags::NO_CACHE.bits() != 0 {
        index |= 2;
    }
    if entry & size.pat_bit() != 0 {
        index |= 4;
    }
    index
}

// Every type comes back from its bits in a leaf entry, and the PAT has it where they point.
const _: () = {
    let mut place = 0;
    while place < Cache::ALL.len() {
        let cache = Cache::ALL[place];
        let mut size = 0;
        while size < PageSize::ALL.len() {
            let index = pat_index(cache.bits(PageSize::ALL[size]), PageSize::ALL[size]);
            assert!(index == cache.pat_index());
            assert!(
                matches!(Cache::from_pat_index(index), Some(back) if back as u8 == cache as u8)
            );
            size += 1;
        }
        assert!(PAT >> (8 * cache.pat_index()) & 0xff == cache.encoding());
        place += 1;
    }
};

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WriteBack => "WB",
            Self::WriteCombining => "WC",
            Self::Uncached => "UC",
        })
    }
}

/// The sizes of pages that x86-64 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB, mapped by a level 1 entry.
    Size4KiB,
    /// 2 MiB, mapped by a level 2 entry.
    Size2MiB,
    /// 1 GiB, mapped by a level 3 entry, where the CPU has it (CPUID 8000_0001h, EDX bit 26).
    Size1GiB,
}

impl PageSize {
    /// All sizes, the smallest first.
    pub const ALL: [Self; 3] = [Self::Size4KiB, Self::Size2MiB, Self::Size1GiB];

    /// Returns the bytes in a page of this size.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4KiB => FRAME_SIZE,
            Self::Size2MiB => FRAME_SIZE << 9,
            Self::Size1GiB => FRAME_SIZE << 18,
        }
    }

    /// Returns the PAT bit of a leaf entry: bit 7, which in an entry for a large page says that it is
    /// one, so that there it is bit 12 (Intel SDM vol. 3, 5.5.4 "Linear-Address Translation with
    /// 4-Level Paging and 5-Level Paging", the tables of entry formats).
    const fn pat_bit(self) -> u64 {
        match self {
            Self::Size4KiB => 1 << 7,
            Self::Size2MiB | Self::Size1GiB => 1 << 12,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Size4KiB => "4 KiB",
            Self::Size2MiB => "2 MiB",
            Self::Size1GiB => "1 GiB",
        })
    }
}
