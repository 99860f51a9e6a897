//! The reasons why a plan cannot take a region.

use crate::virt_addr::VirtAddr;
use core::fmt;

use muster_frames::{FRAME_SIZE, PhysAddr};

/// The reason why a plan cannot take a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// It has no bytes.
    Empty {
        /// The region.
        name: &'static str,
    },
    /// Its addresses or its length are not multiples of [`FRAME_SIZE`].
    Misaligned {
        /// The region.
        name: &'static str,
        /// Its first virtual address.
        virt: VirtAddr,
        /// Its first physical address.
        phys: PhysAddr,
        /// Its length in bytes.
        length: u64,
    },
    /// Some of its virtual addresses do not exist.
    NotCanonical {
        /// The region.
        name: &'static str,
        /// Its first virtual address.
        virt: VirtAddr,
        /// Its length in bytes.
        length: u64,
        /// Bits in a virtual address.
        bits: u32,
    },
    /// Some of its physical addresses do not exist.
    BeyondPhysical {
        /// The region.
        name: &'static str,
        /// Its first physical address.
        phys: PhysAddr,
        /// Its length in bytes.
        length: u64,
        /// Bits in a physical address.
        bits: u32,
    },
    /// It shares virtual addresses with a region of the plan.
    Overlap {
        /// The region.
        name: &'static str,
        /// The region that is already there.
        with: &'static str,
        /// The first virtual address in both.
        virt: VirtAddr,
    },
    /// One maps physical memory writable that the other maps executable.
    WritableAlias {
        /// The region.
        name: &'static str,
        /// The region that is already there.
        with: &'static str,
    },
    /// The two map the same physical memory with different cache types, which leads to undefined
    /// operations (Intel SDM vol. 3, 13.12.4 "Programming the PAT").
    CacheAlias {
        /// The region.
        name: &'static str,
        /// The region that is already there.
        with: &'static str,
    },
    /// The heap has no memory for the list of the regions.
    OutOfMemory {
        /// The region.
        name: &'static str,
        /// Bytes that the list takes.
        bytes: usize,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty { name } => write!(f, "region \"{name}\" is empty: leave it out"),
            Self::Misaligned {
                name,
                virt,
                phys,
                length,
            } => write!(
                f,
                "region \"{name}\" ({virt} -> {phys}, {length:#x} bytes) does not consist \
                 of whole {FRAME_SIZE}-byte pages"
            ),
            Self::NotCanonical {
                name,
                virt,
                length,
                bits,
            } => write!(
                f,
                "region \"{name}\" ({length:#x} bytes from {virt}) leaves the {bits}-bit \
                 virtual address space: move it"
            ),
            Self::BeyondPhysical {
                name,
                phys,
                length,
                bits,
            } => write!(
                f,
                "region \"{name}\" maps {length:#x} bytes from physical {phys}, but physical \
                 addresses here have {bits} bits: check the memory map"
            ),
            Self::Overlap { name, with, virt } => {
                write!(
                    f,
                    "regions \"{name}\" and \"{with}\" both claim {virt}: move one"
                )
            }
            Self::WritableAlias { name, with } => write!(
                f,
                "regions \"{name}\" and \"{with}\" map the same memory, one writable and one \
                 executable: make the writable one read-only"
            ),
            Self::CacheAlias { name, with } => write!(
                f,
                "regions \"{name}\" and \"{with}\" map the same memory with different cache types"
            ),
            Self::OutOfMemory { name, bytes } => write!(
                f,
                "the list of what to map takes {bytes} bytes with region \"{name}\", which the heap does \
                 not have: give it a larger boot arena"
            ),
        }
    }
}

impl core::error::Error for PlanError {}
