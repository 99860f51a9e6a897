//! The entries of a table, and their bits.

use crate::virt_addr::VirtAddr;
use core::sync::atomic::Ordering;

use muster_sync::AtomicU64;
use x86_64::structures::paging::PageTableFlags as Flags;

use crate::plan::{Access, Cache, PageSize, pat_index};
#[cfg(not(loom))]
use muster_frames::FRAME_SIZE;
use muster_frames::{Frame, OwnedFrame, Owner as _, PhysAddr};

use super::{Features, FrameSource, Leaf, PhysicalMemory, Rights, TableError};

/// Entries in a table of any level. A model has fewer, lest it never ends.
pub(crate) const ENTRIES: usize = if cfg!(loom) { 2 } else { 512 };

/// Bits 12–51 of an entry: the physical address of a table or 4 KiB page (Intel SDM vol. 3, 5.5.4).
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry that points to a table allows everything: the leaf decides. Accessed is preset so that
/// the CPU need not write to the tables.
pub(super) const TABLE: u64 =
    Flags::PRESENT.bits() | Flags::WRITABLE.bits() | Flags::ACCESSED.bits();

/// The bits by which an entry that points to a table could deny something, or change how the table
/// itself is cached.
pub(super) const TABLE_CHECKED: u64 = Flags::PRESENT.bits()
    | Flags::WRITABLE.bits()
    | Flags::USER_ACCESSIBLE.bits()
    | Flags::WRITE_THROUGH.bits()
    | Flags::NO_CACHE.bits()
    | Flags::HUGE_PAGE.bits()
    | Flags::NO_EXECUTE.bits();

/// An entry that is not present, but keeps what it had until all CPUs have flushed it. Of an entry
/// that is not present, the CPU ignores all other bits (Intel SDM vol. 3, 5.5.4).
pub(super) const WITHDRAWN: u64 = Flags::BIT_9.bits();

/// An entry, as a CPU with the given features understands it at its level.
pub(super) enum Entry {
    Absent,
    Table(Option<Frame>),
    Leaf { phys: PhysAddr, size: PageSize },
    Malformed,
}

impl Entry {
    pub(super) fn decode(entry: u64, level: u8, features: Features) -> Self {
        if entry & Flags::PRESENT.bits() == 0 {
            return Self::Absent;
        }
        let large = entry & Flags::HUGE_PAGE.bits() != 0;
        let size = match level {
            1 => PageSize::Size4KiB,
            2 if large => PageSize::Size2MiB,
            3 if large && features.gigabyte_pages => PageSize::Size1GiB,
            // Bit 7 is reserved where there are no large pages.
            _ if large => return Self::Malformed,
            _ => return Self::Table(Frame::from_start(PhysAddr::new(entry & ADDRESS))),
        };
        let phys = entry & ADDRESS & !(size.bytes() - 1);
        // Between the PAT bit of a large page and its address, all bits are reserved.
        let reserved = entry & ADDRESS & !phys & !Cache::WriteCombining.bits(size);
        if reserved == 0 {
            Self::Leaf {
                phys: PhysAddr::new(phys),
                size,
            }
        } else {
            Self::Malformed
        }
    }

    /// Decodes the entry as it is, or as it was before it was withdrawn, and returns whether it was.
    pub(super) fn decode_any(entry: u64, level: u8, features: Features) -> (Self, bool) {
        let present = Flags::PRESENT.bits();
        if entry & (present | WITHDRAWN) == WITHDRAWN {
            (Self::decode(entry | present, level, features), true)
        } else {
            (Self::decode(entry, level, features), false)
        }
    }
}

/// Returns the lowest bit of a virtual address that tables of this level translate.
pub(super) const fn shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// Returns the index in its table of this level's entry for a virtual address; below [`ENTRIES`].
pub(super) const fn index(virt: VirtAddr, level: u8) -> usize {
    (virt.get() >> shift(level)) as usize % ENTRIES
}

/// Returns the level of the tables whose entries map pages of this size.
pub(super) const fn level_of(size: PageSize) -> u8 {
    match size {
        PageSize::Size4KiB => 1,
        PageSize::Size2MiB => 2,
        PageSize::Size1GiB => 3,
    }
}

/// Returns the bits of a leaf entry that say what may be done. Dirty is preset so that the CPU need not
/// write to the tables, but only where writes are allowed, as a dirty read-only page is a shadow
/// stack (Intel SDM vol. 3, 5.6.1 "Determination of Access Rights").
pub(super) const fn rights_bits(access: Access) -> u64 {
    let dirty = match access {
        Access::ReadWrite => Flags::DIRTY.bits(),
        Access::ReadOnly | Access::ReadExecute => 0,
    };
    access.bits() | dirty
}

/// Returns all but the address of a leaf entry. Accessed is preset, as dirty is.
pub(super) const fn leaf_bits(size: PageSize, access: Access, cache: Cache) -> u64 {
    let mut bits =
        Flags::PRESENT.bits() | Flags::ACCESSED.bits() | rights_bits(access) | cache.bits(size);
    if !matches!(size, PageSize::Size4KiB) {
        bits |= Flags::HUGE_PAGE.bits();
    }
    bits
}

pub(super) const fn leaf(
    virt: VirtAddr,
    phys: PhysAddr,
    size: PageSize,
    rights: Rights,
    entry: u64,
) -> Leaf {
    Leaf {
        virt,
        phys,
        size,
        rights,
        pat_index: pat_index(entry, size),
    }
}

/// Makes a frame a table with nothing in it.
pub(super) fn empty_table<M: PhysicalMemory, S: FrameSource>(
    memory: &M,
    frames: &S,
) -> Result<OwnedFrame<S::Owner>, TableError> {
    let owned = frames.take().ok_or(TableError::OutOfFrames)?;
    let (frame, owner) = (owned.frame(), owned.owner());
    let error = match table(memory, frame) {
        // Else the right to it could not be made again from its name alone.
        _ if owner != frames.owner() => TableError::WrongOwner {
            owner: owner.number(),
        },
        None => TableError::Unreachable {
            phys: frame.start(),
        },
        Some(table) => {
            for entry in table {
                // Relaxed: nobody reads the table before `link`, or whoever hands its root on, publishes it.
                entry.store(0, Ordering::Relaxed);
            }
            return Ok(owned);
        }
    };
    frames.give_back(owned);
    Err(error)
}

/// Returns a table's entries. They are atomic because the CPUs read and write them, too; the `x86_64`
/// crate's entry type is not, and takes the PAT bit of a large page for a part of its address.
pub(super) fn table<M: PhysicalMemory>(memory: &M, frame: Frame) -> Option<&[AtomicU64; ENTRIES]> {
    let pointer = memory
        .pointer(frame.start())?
        .cast::<[AtomicU64; ENTRIES]>();
    // SAFETY: `PhysicalMemory` promises 4096 bytes, aligned and valid as long as `memory` lives
    // (1); the reference does not outlive the borrow of it. The frame is a page table or about to
    // be one. So nobody uses it as anything else and all accesses are atomic (3): `Tables` has had the
    // right to it, and `TableView::new`'s caller promised it. Any bytes are valid `AtomicU64`s. (A
    // model's are loom's, of which its memory is made.)
    Some(unsafe { pointer.as_ref() })
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<[AtomicU64; ENTRIES]>() == FRAME_SIZE as usize);

/// Stores an entry that is present, and may lead to a table.
///
/// Release, with the Acquire of [`follow`]: whoever sees the entry sees what the table holds. It is so
/// with each such entry and not only with a table's first one, as a store passes on nothing of the one
/// before it.
pub(super) fn link(slot: &AtomicU64, entry: u64) {
    slot.store(entry, Ordering::Release);
}

/// Reads an entry for a view, which may have no lock and go on to the table that it leads to.
///
/// Acquire, with the Release of [`link`]: a table that another CPU has just linked is read as it was then.
pub(super) fn follow(slot: &AtomicU64) -> u64 {
    slot.load(Ordering::Acquire)
}
