//! The comparison of tables with a plan.

use crate::virt_addr::VirtAddr;
use core::fmt;

use muster_frames::PhysAddr;

use crate::plan::{Levels, PageSize, Region};

use super::Leaf;
use super::entry::{TABLE, TABLE_CHECKED};
use super::view::Visitor;

/// The number of pages and tables, by a walk of finished tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Pages of 4 KiB.
    pub pages_4kib: usize,
    /// Pages of 2 MiB.
    pub pages_2mib: usize,
    /// Pages of 1 GiB.
    pub pages_1gib: usize,
    /// Tables of all levels, the root included.
    pub tables: usize,
    /// Bytes mapped.
    pub bytes: u64,
}

impl Census {
    fn count(&mut self, leaf: &Leaf) {
        match leaf.size {
            PageSize::Size4KiB => self.pages_4kib += 1,
            PageSize::Size2MiB => self.pages_2mib += 1,
            PageSize::Size1GiB => self.pages_1gib += 1,
        }
        self.bytes += leaf.size.bytes();
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pages_4kib,
            pages_2mib,
            pages_1gib,
            tables,
            bytes,
        } = self;
        write!(
            f,
            "{bytes:#x} bytes in {pages_1gib} pages of 1 GiB, {pages_2mib} of 2 MiB, {pages_4kib} \
             of 4 KiB, by {tables} tables"
        )
    }
}

/// A difference between the tables and the plan, or the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The plan is for another number of levels.
    Levels {
        /// The plan's.
        expected: Levels,
        /// The tables'.
        found: Levels,
    },
    /// The tables are not a tree of as many tables as were built, but for those that are withdrawn.
    Tables {
        /// Tables built and not withdrawn.
        expected: usize,
        /// Tables found, at least.
        found: usize,
    },
    /// An entry points to a table that cannot be reached.
    Unreachable {
        /// The first virtual address that the entry is for.
        virt: VirtAddr,
        /// The table's physical address.
        phys: PhysAddr,
    },
    /// An entry has bits that the CPU rejects (Intel SDM vol. 3, 5.5.4: reserved bits), as that for a page
    /// larger than it has.
    Malformed {
        /// The first virtual address that the entry is for.
        virt: VirtAddr,
        /// The level of its table: 1 for a table of 4 KiB pages.
        level: u8,
        /// The entry.
        entry: u64,
    },
    /// An entry that points to a table denies something, is the user's, or has the table cached
    /// otherwise than write-back.
    TableEntry {
        /// The first virtual address that the entry is for.
        virt: VirtAddr,
        /// The level of its table: 2 for a table of pointers to tables of 4 KiB pages.
        level: u8,
        /// The entry.
        entry: u64,
    },
    /// A page is mapped that is in no region.
    Stray {
        /// The page.
        leaf: Leaf,
    },
    /// A part of a region is not mapped.
    Missing {
        /// The region.
        region: Region,
        /// The first virtual address that is not mapped.
        virt: VirtAddr,
    },
    /// A page reaches beyond the region it begins in, or is larger than the region allows.
    TooLarge {
        /// The region.
        region: Region,
        /// The page.
        leaf: Leaf,
    },
    /// A page maps other memory than the region says.
    Address {
        /// The region.
        region: Region,
        /// The page.
        leaf: Leaf,
        /// The physical address it should map.
        expected: PhysAddr,
    },
    /// A page has other rights than the region says.
    Access {
        /// The region.
        region: Region,
        /// The page.
        leaf: Leaf,
    },
    /// A page is cached otherwise than the region says.
    Cache {
        /// The region.
        region: Region,
        /// The page.
        leaf: Leaf,
    },
    /// A page is writable, and its memory is executable: there or at another address.
    WritableCode {
        /// The page.
        leaf: Leaf,
    },
    /// The heap has no memory to record what can be executed.
    OutOfMemory {
        /// Bytes that it takes.
        bytes: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !matches!(self, Self::OutOfMemory { .. }) {
            f.write_str("the page tables are wrong: ")?;
        }
        match self {
            Self::OutOfMemory { bytes } => write!(
                f,
                "the heap has no {bytes} bytes to record what can be executed: free some memory"
            ),
            Self::Levels { expected, found } => {
                write!(
                    f,
                    "{} levels instead of {}",
                    found.count(),
                    expected.count()
                )
            }
            Self::Tables { expected, found } => {
                write!(f, "{expected} tables were built, but {found} are reached")
            }
            Self::Unreachable { virt, phys } => {
                write!(
                    f,
                    "the table for {virt} at physical {phys} cannot be reached"
                )
            }
            Self::Malformed { virt, level, entry } => write!(
                f,
                "the level {level} entry for {virt} is {entry:#x}, which the CPU rejects"
            ),
            Self::TableEntry { virt, level, entry } => write!(
                f,
                "the level {level} entry for {virt} is {entry:#x}, which does not leave all \
                 rights to the leaves"
            ),
            Self::Stray { leaf } => write!(f, "{leaf} is in no region"),
            Self::Missing { region, virt } => write!(f, "{virt} is not mapped ({region})"),
            Self::TooLarge { region, leaf } => write!(f, "{leaf} is too large for {region}"),
            Self::Address {
                region,
                leaf,
                expected,
            } => {
                write!(f, "{leaf} should map {expected} ({region})")
            }
            Self::Access { region, leaf } | Self::Cache { region, leaf } => {
                write!(f, "{leaf} is not as in {region}")
            }
            Self::WritableCode { leaf } => {
                write!(
                    f,
                    "{leaf} lets write what can be executed, there or elsewhere"
                )
            }
        }
    }
}

impl core::error::Error for Mismatch {}

/// Compares the entries of a walk with the regions of a plan, both in the order of their addresses.
pub(super) struct Audit<'a> {
    /// The number of tables, if it is known.
    pub(super) built: Option<usize>,
    /// The regions not yet mapped to their ends.
    pub(super) regions: &'a [Region],
    /// Bytes of the first of them that are mapped.
    pub(super) mapped: u64,
    pub(super) census: Census,
}

impl Audit<'_> {
    pub(super) fn finish(self) -> Result<Census, Mismatch> {
        if let Some(&region) = self.regions.first() {
            return Err(Mismatch::Missing {
                region,
                virt: region.virt + self.mapped,
            });
        }
        match self.built {
            Some(expected) if expected != self.census.tables => Err(Mismatch::Tables {
                expected,
                found: self.census.tables,
            }),
            _ => Ok(self.census),
        }
    }
}

impl Visitor for Audit<'_> {
    fn table(&mut self, virt: VirtAddr, level: u8, entry: u64) -> Result<(), Mismatch> {
        self.census.tables += 1;
        // Tables that are reached twice could otherwise keep the walk busy without end.
        if let Some(expected) = self.built.filter(|&built| built < self.census.tables) {
            return Err(Mismatch::Tables {
                expected,
                found: self.census.tables,
            });
        }
        if entry & TABLE_CHECKED != TABLE & TABLE_CHECKED {
            return Err(Mismatch::TableEntry { virt, level, entry });
        }
        Ok(())
    }

    fn leaf(&mut self, leaf: Leaf) -> Result<(), Mismatch> {
        let Some((&region, later)) = self.regions.split_first() else {
            return Err(Mismatch::Stray { leaf });
        };
        let virt = region.virt + self.mapped;
        if leaf.virt < virt {
            return Err(Mismatch::Stray { leaf });
        }
        if leaf.virt > virt {
            return Err(Mismatch::Missing { region, virt });
        }
        let size = leaf.size;
        let left = region.length - self.mapped;
        if size.bytes() > left || size > region.largest {
            return Err(Mismatch::TooLarge { region, leaf });
        }
        let expected = region.phys + self.mapped;
        if leaf.phys != expected {
            return Err(Mismatch::Address {
                region,
                leaf,
                expected,
            });
        }
        if leaf.access() != Some(region.access) {
            return Err(Mismatch::Access { region, leaf });
        }
        if leaf.cache() != Some(region.cache) {
            return Err(Mismatch::Cache { region, leaf });
        }
        self.census.count(&leaf);
        self.mapped += size.bytes();
        if size.bytes() == left {
            self.regions = later;
            self.mapped = 0;
        }
        Ok(())
    }
}
