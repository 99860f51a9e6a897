//! The errors of mapping.

use crate::virt_addr::VirtAddr;
use core::fmt;

use muster_frames::PhysAddr;

use crate::plan::PlanError;

use super::Alias;
use super::aliases::Refusal;

/// The reason why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// There was no frame for another table.
    OutOfFrames,
    /// The frame that the source returned for another table is not of the owner that it says.
    WrongOwner {
        /// Its owner.
        owner: u8,
    },
    /// The region cannot be mapped, whatever the tables hold.
    Region(PlanError),
    /// Something is mapped there already.
    AlreadyMapped {
        /// The first such address.
        virt: VirtAddr,
    },
    /// The CPUs have not yet flushed what was mapped there before.
    Unflushed {
        /// The first such address.
        virt: VirtAddr,
    },
    /// A table lies where the given memory cannot be reached.
    Unreachable {
        /// The table's physical address.
        phys: PhysAddr,
    },
    /// The physical memory is mapped already, in a way that excludes this one.
    Alias(Alias),
    /// There is no room to record how more of the physical memory is mapped: it takes more records than are
    /// left ([`Tables::reserve`](super::Tables::reserve)).
    RecordsFull {
        /// The number of records that there may be, those that are in use included.
        records: usize,
    },
    /// The heap has no memory for the record of what is mapped.
    OutOfMemory {
        /// Bytes that it takes.
        bytes: usize,
    },
}

impl From<Refusal> for TableError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Alias(alias) => Self::Alias(alias),
            Refusal::Full(records) => Self::RecordsFull { records },
            Refusal::OutOfMemory(bytes) => Self::OutOfMemory { bytes },
        }
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames => f.write_str("no frame is left for a page table: add memory"),
            Self::WrongOwner { owner } => write!(
                f,
                "the source of page tables returned a frame of owner {owner}, and not of its own: let it take page tables'"
            ),
            Self::Region(error) => error.fmt(f),
            Self::AlreadyMapped { virt } => write!(f, "{virt} is mapped already"),
            Self::Unflushed { virt } => {
                write!(f, "{virt} was unmapped, and not yet flushed on all CPUs")
            }
            Self::Unreachable { phys } => {
                write!(f, "the page table at physical {phys} cannot be reached")
            }
            Self::Alias(alias) => alias.fmt(f),
            Self::RecordsFull { records } => fmt_full(f, *records),
            Self::OutOfMemory { bytes } => write!(
                f,
                "the heap has no {bytes} bytes to record what is mapped: free some memory"
            ),
        }
    }
}

pub(super) fn fmt_full(f: &mut fmt::Formatter<'_>, records: usize) -> fmt::Result {
    write!(
        f,
        "the {records} records of what is mapped are too few: unmap something, or reserve more when \
         the tables are made"
    )
}

impl core::error::Error for TableError {}

impl From<PlanError> for TableError {
    fn from(error: PlanError) -> Self {
        Self::Region(error)
    }
}

/// A region could be mapped only in part, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartlyMapped {
    /// The reason why it went no further.
    pub error: TableError,
    /// The number of its bytes that are mapped now, from its start on.
    pub bytes: u64,
}

impl fmt::Display for PartlyMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl core::error::Error for PartlyMapped {}

/// Nothing is mapped.
impl<E: Into<TableError>> From<E> for PartlyMapped {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            bytes: 0,
        }
    }
}
