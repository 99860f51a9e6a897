//! Reading tables: translating addresses, and walking all pages.

use crate::virt_addr::VirtAddr;
use muster_sync::AtomicU64;

use crate::plan::{Levels, Plan};
use muster_frames::{Frame, PhysAddr};

use super::verify::Audit;
use super::{
    Census, ENTRIES, Entry, Features, Leaf, Mismatch, PhysicalMemory, Rights, TableError,
    TableView, Target, Translation, follow, leaf, shift, table,
};

/// A visitor of the entries of a walk.
pub(super) trait Visitor {
    /// Visits an entry that points to a table.
    fn table(&mut self, virt: VirtAddr, level: u8, entry: u64) -> Result<(), Mismatch>;
    /// Visits a page.
    fn leaf(&mut self, leaf: Leaf) -> Result<(), Mismatch>;
}

impl<M: PhysicalMemory> TableView<M> {
    /// Makes a view of the tables with this root, as a CPU with these features reads them.
    ///
    /// # Safety
    ///
    /// As long as the view is used:
    ///
    /// 1. `root` is the root of page tables, that is, of such memory as [`PhysicalMemory`] asks of a table.
    /// 2. `levels` is the number of levels that these tables have: with one more, the view would read
    ///    pages as tables.
    /// 3. Entries in them may be any garbage as long as they lead to no other frames that `memory`
    ///    reaches, as to tables.
    /// 4. If the tables change concurrently, no table is given back during a walk: the lock under which
    ///    they change is held, or something keeps a flush from being completed, such as disabled
    ///    interrupts on a CPU that every flush asks.
    pub const unsafe fn new(memory: M, levels: Levels, features: Features, root: Frame) -> Self {
        Self {
            memory,
            levels,
            features,
            root,
        }
    }

    /// Returns the root's frame: what CR3 points to.
    pub const fn root(&self) -> Frame {
        self.root
    }

    /// Returns how many levels the tables have.
    pub const fn levels(&self) -> Levels {
        self.levels
    }

    /// Returns the translation of the virtual address; `None` if it is not mapped, not canonical, or if
    /// the tables on the way are malformed.
    pub fn translate(&self, virt: VirtAddr) -> Option<Translation> {
        match self.path(virt).last()?.target {
            Target::Page(leaf) => Some(Translation {
                phys: leaf.phys + (virt - leaf.virt),
                leaf,
            }),
            _ => None,
        }
    }

    /// Calls `visit` with every page, lowest virtual address first, and returns the number of tables.
    /// It needs no memory and goes no deeper than the tables have levels, whatever they hold.
    ///
    /// # Errors
    ///
    /// [`Mismatch::Unreachable`] or [`Mismatch::Malformed`], and `visit` sees no more pages.
    pub fn walk(&self, visit: &mut impl FnMut(Leaf)) -> Result<usize, Mismatch> {
        struct Leaves<'a, F> {
            visit: &'a mut F,
            tables: usize,
        }

        impl<F: FnMut(Leaf)> Visitor for Leaves<'_, F> {
            fn table(&mut self, _: VirtAddr, _: u8, _: u64) -> Result<(), Mismatch> {
                self.tables += 1;
                Ok(())
            }

            fn leaf(&mut self, leaf: Leaf) -> Result<(), Mismatch> {
                (self.visit)(leaf);
                Ok(())
            }
        }

        let mut leaves = Leaves { visit, tables: 1 };
        self.descend(
            self.root,
            self.levels.count(),
            VirtAddr::new(0),
            Rights::ALL,
            &mut leaves,
        )?;
        Ok(leaves.tables)
    }

    /// Checks, by walking them, that the tables hold the plan and nothing else: every page lies in
    /// one region and is no larger than it allows, with exactly its rights, its cache type and its
    /// physical addresses; every region is mapped to the byte; entries that point to tables leave
    /// all rights to the leaves.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`], by virtual address.
    pub fn verify(&self, plan: &Plan) -> Result<Census, Mismatch> {
        self.audit(plan, None)
    }

    /// Checks the tables against a plan, and their number if it is known.
    pub(super) fn audit(&self, plan: &Plan, built: Option<usize>) -> Result<Census, Mismatch> {
        if plan.levels() != self.levels {
            return Err(Mismatch::Levels {
                expected: plan.levels(),
                found: self.levels,
            });
        }
        let mut audit = Audit {
            built,
            regions: plan.regions(),
            mapped: 0,
            census: Census {
                tables: 1,
                ..Census::default()
            },
        };
        self.descend(
            self.root,
            self.levels.count(),
            VirtAddr::new(0),
            Rights::ALL,
            &mut audit,
        )?;
        audit.finish()
    }

    pub(super) fn table(&self, frame: Frame) -> Result<&[AtomicU64; ENTRIES], TableError> {
        table(&self.memory, frame).ok_or(TableError::Unreachable {
            phys: frame.start(),
        })
    }

    /// Visits all that a table holds. `virt` is the first address that it is for.
    pub(super) fn descend(
        &self,
        frame: Frame,
        level: u8,
        virt: VirtAddr,
        rights: Rights,
        visitor: &mut impl Visitor,
    ) -> Result<(), Mismatch> {
        let table = table(&self.memory, frame).ok_or(Mismatch::Unreachable {
            virt,
            phys: frame.start(),
        })?;
        for (index, entry) in (0..).zip(table) {
            let virt = self
                .levels
                .canonical(VirtAddr::new(virt.get() | index << shift(level)));
            let entry = follow(entry);
            let rights = rights.below(entry);
            match Entry::decode(entry, level, self.features) {
                Entry::Absent => {}
                Entry::Malformed => return Err(Mismatch::Malformed { virt, level, entry }),
                Entry::Table(None) => {
                    return Err(Mismatch::Unreachable {
                        virt,
                        phys: PhysAddr::default(),
                    });
                }
                Entry::Table(Some(below)) => {
                    visitor.table(virt, level, entry)?;
                    self.descend(below, level - 1, virt, rights, visitor)?;
                }
                Entry::Leaf { phys, size } => {
                    visitor.leaf(leaf(virt, phys, size, rights, entry))?;
                }
            }
        }
        Ok(())
    }
}
