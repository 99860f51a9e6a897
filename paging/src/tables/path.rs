//! The page-table walk for one address.

use crate::virt_addr::VirtAddr;
use core::fmt;
use core::iter;

use muster_frames::PhysAddr;
use x86_64::structures::paging::PageTableFlags as Flags;

use super::{Entry, Leaf, PhysicalMemory, Rights, TableView, follow, index, leaf, shift, table};

/// The target of an entry in a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing: the entry is not present.
    Nothing,
    /// Nothing any more; but a CPU may still have cached what was there. So it is in [`Tables`](super::Tables),
    /// which mark such an entry by bit 9; in tables that are another's, the bit may mean anything.
    Withdrawn,
    /// The table of the next level, at this physical address.
    Table(PhysAddr),
    /// A page.
    Page(Leaf),
    /// Bits that the CPU rejects.
    Malformed,
}

/// One entry of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The level of the entry's table: 1 for a table of 4 KiB pages.
    pub level: u8,
    /// The physical address of the entry's table.
    pub table: PhysAddr,
    /// The entry's index in its table.
    pub index: usize,
    /// The entry.
    pub entry: u64,
    /// Its target.
    pub target: Target,
}

/// Bits of an entry that say something by themselves, and their short names (Intel SDM vol. 3, 5.5.4).
const FLAGS: [(Flags, &str); 8] = [
    (Flags::PRESENT, "P"),
    (Flags::WRITABLE, "W"),
    (Flags::USER_ACCESSIBLE, "U"),
    (Flags::WRITE_THROUGH, "PWT"),
    (Flags::NO_CACHE, "PCD"),
    (Flags::ACCESSED, "A"),
    (Flags::DIRTY, "D"),
    (Flags::NO_EXECUTE, "NX"),
];

impl fmt::Display for Step {
    /// Writes the level, the entry's address and value, its flags by their names in the manual, and
    /// what it leads to: `4 0x12f000[256] 0x0000000000130023 P W A -> table 0x130000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            level,
            table,
            index,
            entry,
            target,
        } = self;
        write!(f, "{level} {table}[{index}] {entry:#018x}")?;
        for (flag, name) in FLAGS {
            if entry & flag.bits() != 0 {
                write!(f, " {name}")?;
            }
        }
        match target {
            Target::Nothing => f.write_str(" -> nothing"),
            Target::Withdrawn => f.write_str(" -> nothing, once all CPUs have flushed it"),
            Target::Table(phys) => write!(f, " -> table {phys}"),
            Target::Page(leaf) => {
                write!(f, " -> {} page, {} ", leaf.size, leaf.rights)?;
                leaf.fmt_cache(f)
            }
            Target::Malformed => f.write_str(" -> an error: the CPU rejects it"),
        }
    }
}

impl<M: PhysicalMemory> TableView<M> {
    /// Returns the entries that the CPU reads for a virtual address, the root's first. Returns none if
    /// the address is not canonical. If the last of them leads to a table, that table cannot be
    /// reached.
    pub fn path(&self, virt: VirtAddr) -> impl Iterator<Item = Step> {
        let begins = self.levels.is_canonical(virt);
        let mut next = begins.then_some((self.root, self.levels.count(), Rights::ALL));
        iter::from_fn(move || {
            let (frame, level, rights) = next.take()?;
            let index = index(virt, level);
            let entry = follow(&table(&self.memory, frame)?[index]);
            let rights = rights.below(entry);
            let target = match Entry::decode_any(entry, level, self.features) {
                (_, true) => Target::Withdrawn,
                (Entry::Absent, false) => Target::Nothing,
                (Entry::Malformed, false) => Target::Malformed,
                (Entry::Table(below), false) => {
                    next = below.map(|below| (below, level - 1, rights));
                    Target::Table(below.map_or(PhysAddr::default(), |below| below.start()))
                }
                (Entry::Leaf { phys, size }, false) => {
                    let start = virt.align_down(1 << shift(level));
                    Target::Page(leaf(start, phys, size, rights, entry))
                }
            };
            Some(Step {
                level,
                table: frame.start(),
                index,
                entry,
                target,
            })
        })
    }
}
