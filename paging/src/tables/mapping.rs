//! Mapping regions and pages. Loads are Relaxed, as the [changes](super::change) to tables say.

use crate::virt_addr::VirtAddr;
use core::sync::atomic::Ordering;

use x86_64::structures::paging::PageTableFlags as Flags;

use crate::plan::{Access, Cache, PageSize, PlanError, Region};
use crate::virt_range::VirtRange;
use muster_frames::{Frame, PhysRange};
use muster_frames::{OwnedFrame, PhysAddr};

use super::aliases::{Counted, Refusal, Use};
use super::{
    Entry, FrameSource, MAX_LEVELS_BELOW, PartlyMapped, PhysicalMemory, TABLE, TableError, Tables,
    WITHDRAWN, empty_table, index, leaf_bits, level_of, link, shift,
};

impl<M: PhysicalMemory> Tables<M> {
    /// Maps a region for good, with the largest pages that fit inside it: it can be neither unmapped nor
    /// given other rights. May allocate memory, to record it: for when the kernel starts.
    ///
    /// # Errors
    ///
    /// See [`TableError`]. The part of the region below the failure stays mapped.
    ///
    /// # Safety
    ///
    /// As for [`Self::map`].
    pub unsafe fn map_permanently(
        &mut self,
        region: &Region,
        frames: &impl FrameSource,
    ) -> Result<(), PartlyMapped> {
        let (memory, wanted) = self.describe(region)?;
        self.aliases.check_permanent(memory, wanted)?;
        let one = size_of::<VirtRange>();
        let reserved = self.permanent.try_reserve(1);
        reserved.map_err(|_| Refusal::OutOfMemory(one))?;
        Mapping {
            tables: self,
            region,
            wanted,
            counted: None,
            bytes: 0,
        }
        .set_leaves(frames)
    }

    /// Maps a region with the largest pages that fit inside it, until it is unmapped. Takes at most one
    /// frame per level and page for tables, and allocates nothing else.
    ///
    /// # Errors
    ///
    /// See [`TableError`]. The part of the region below the failure stays mapped.
    ///
    /// # Safety
    ///
    /// 1. The addresses are the caller's to map at: no code relies on nothing being mapped there, as a
    ///    stack on its guard.
    /// 2. CPUs may read the memory at any time in the way that its cache type lets them, whatever the
    ///    code does: it is there, and it is no device's if the type is write-back.
    /// 3. Other tables by which a CPU goes, and of which these know nothing ([`Tables`]), do not map the memory
    ///    with another cache type; and as long as it is mapped by both, it is not written by the one and executed
    ///    by the other.
    pub unsafe fn map(
        &mut self,
        region: &Region,
        frames: &impl FrameSource,
    ) -> Result<(), PartlyMapped> {
        let (memory, wanted) = self.describe(region)?;
        let counted = self.aliases.check(memory, wanted, Counted::Not)?;
        if counted != Counted::Not {
            let page_end = |at: PhysAddr| {
                let size = self.page_size(region, at).bytes();
                PhysAddr::new(at.get() - at.get() % size + size)
            };
            let needed = self.aliases.needed(memory, wanted, page_end);
            self.aliases.check_room(needed)?;
        }
        Mapping {
            tables: self,
            region,
            wanted,
            counted: Some(counted),
            bytes: 0,
        }
        .set_leaves(frames)
    }

    /// Maps one 4 KiB page, as when a window grows at run time. Takes at most one frame per level
    /// for tables, and allocates nothing else.
    ///
    /// # Errors
    ///
    /// See [`TableError`]. Nothing has been mapped then.
    ///
    /// # Safety
    ///
    /// As for [`Self::map`].
    pub unsafe fn map_page(
        &mut self,
        virt: VirtAddr,
        frame: Frame,
        access: Access,
        cache: Cache,
        frames: &impl FrameSource,
    ) -> Result<(), TableError> {
        let size = PageSize::Size4KiB;
        let page = Region {
            name: "page",
            virt,
            phys: frame.start(),
            length: size.bytes(),
            access,
            cache,
            largest: size,
        };
        // SAFETY: the caller's promise.
        unsafe { self.map(&page, frames) }.map_err(|failure| failure.error)
    }

    /// Returns the memory that a region maps, if it can be mapped at all, and how.
    fn describe(&self, region: &Region) -> Result<(PhysRange, Use), PlanError> {
        region.check(self.levels)?;
        let Region {
            name,
            phys,
            length,
            access,
            cache,
            ..
        } = *region;
        let memory = region.physical().ok_or(PlanError::BeyondPhysical {
            name,
            phys,
            length,
            bits: 52,
        })?;
        let wanted = Use {
            name,
            access,
            cache,
        };
        Ok((memory, wanted))
    }

    /// Returns the size of the page by which a region maps a physical address of its memory: the largest one
    /// around that, aligned in both address spaces, that fits inside the region.
    fn page_size(&self, region: &Region, at: PhysAddr) -> PageSize {
        let offset = at - region.phys;
        let is_alike = |size: u64| (region.virt.get() ^ region.phys.get()).is_multiple_of(size);
        let is_inside = |size: u64| {
            let before = at.get() % size;
            before <= offset && size - before <= region.length - offset
        };
        PageSize::ALL
            .into_iter()
            .rev()
            .filter(|&size| size <= region.largest && self.features.has(size))
            .find(|size| is_alike(size.bytes()) && is_inside(size.bytes()))
            .unwrap_or(PageSize::Size4KiB)
    }

    fn set_leaf(
        &mut self,
        virt: VirtAddr,
        size: PageSize,
        entry: u64,
        frames: &impl FrameSource,
    ) -> Result<(), TableError> {
        let leaf_level = level_of(size);
        // Tables on the way in which pages were withdrawn, none of them this one.
        let mut withdrawn = [None; MAX_LEVELS_BELOW];
        let mut frame = self.root;
        let mut level = self.levels.count();
        let slot = loop {
            let slot = &self.table(frame)?[index(virt, level)];
            let (decoded, is_withdrawn) =
                Entry::decode_any(slot.load(Ordering::Relaxed), level, self.features);
            match decoded {
                Entry::Absent => break slot,
                Entry::Table(Some(below)) if level > leaf_level => {
                    if is_withdrawn {
                        withdrawn[usize::from(level) - 2] = Some(slot);
                    }
                    frame = below;
                    level -= 1;
                }
                Entry::Table(None) => {
                    return Err(TableError::Unreachable {
                        phys: PhysAddr::default(),
                    });
                }
                decoded => {
                    // A large page may meet a table, whose pages may lie anywhere in it.
                    let virt = match decoded {
                        Entry::Table(Some(below)) => self
                            .first_page(below, level - 1, virt, is_withdrawn)
                            .unwrap_or(virt),
                        _ => virt,
                    };
                    return Err(match is_withdrawn {
                        true => TableError::Unflushed { virt },
                        false => TableError::AlreadyMapped { virt },
                    });
                }
            }
        };
        let top = self.new_tables(virt, level, leaf_level, entry, frames)?;
        link(slot, top);
        let linked = withdrawn.iter().flatten().count();
        for slot in withdrawn.into_iter().flatten() {
            let entry = slot.load(Ordering::Relaxed);
            link(slot, entry & !WITHDRAWN | Flags::PRESENT.bits());
        }
        self.withdrawn -= linked;
        self.built += usize::from(level - leaf_level);
        Ok(())
    }

    /// Returns the first address at which a table has a page that is mapped, or one that is withdrawn.
    /// `virt` is the first address that the table is for.
    fn first_page(
        &self,
        frame: Frame,
        level: u8,
        virt: VirtAddr,
        is_withdrawn: bool,
    ) -> Option<VirtAddr> {
        let mut slots = (0..).zip(self.table(frame).ok()?);
        slots.find_map(|(index, slot)| {
            let virt = virt + (index << shift(level));
            match Entry::decode_any(slot.load(Ordering::Relaxed), level, self.features) {
                (Entry::Leaf { .. }, is) if is == is_withdrawn => Some(virt),
                // A table has a page that is mapped if it is present, and only then.
                (Entry::Table(Some(below)), is) if is == is_withdrawn => {
                    self.first_page(below, level - 1, virt, is_withdrawn)
                }
                _ => None,
            }
        })
    }

    /// Makes the tables for one page below a slot of this level, and returns the entry for the slot:
    /// the page itself, if none are needed.
    fn new_tables<S: FrameSource>(
        &self,
        virt: VirtAddr,
        level: u8,
        leaf_level: u8,
        leaf: u64,
        frames: &S,
    ) -> Result<u64, TableError> {
        let mut made = [const { None::<OwnedFrame<S::Owner>> }; MAX_LEVELS_BELOW];
        let mut entry = leaf;
        for (below, place) in (leaf_level..level).zip(&mut made) {
            let table = empty_table(&self.memory, frames).and_then(|owned| {
                let frame = owned.frame();
                *place = Some(owned);
                // Relaxed: nobody reads the table before `link` publishes it.
                self.table(frame)?[index(virt, below)].store(entry, Ordering::Relaxed);
                Ok(frame)
            });
            match table {
                Ok(frame) => entry = frame.start().get() | TABLE,
                Err(error) => {
                    // No CPU has seen them.
                    made.into_iter()
                        .flatten()
                        .for_each(|owned| frames.give_back(owned));
                    return Err(error);
                }
            }
        }
        // The entries name them from here on, by which `complete` makes the rights again.
        made.into_iter().flatten().for_each(|owned| {
            let _ = owned.into_raw();
        });
        Ok(entry)
    }
}

/// A region that is being mapped. The mapped part is recorded when this is dropped, also if the source
/// of frames, which is foreign code, panics.
struct Mapping<'a, M: PhysicalMemory> {
    tables: &'a mut Tables<M>,
    region: &'a Region,
    wanted: Use,
    /// The way in which its pages are counted; `None` if they are mapped for good. There is room to
    /// record it.
    counted: Option<Counted>,
    /// The number of its bytes that are mapped, from its start on.
    bytes: u64,
}

impl<M: PhysicalMemory> Mapping<'_, M> {
    /// Sets the entries of the region's pages, and marks them with what they are counted as.
    fn set_leaves(mut self, frames: &impl FrameSource) -> Result<(), PartlyMapped> {
        let region = self.region;
        let counted = self.counted.unwrap_or(Counted::Not);
        while self.bytes < region.length {
            let bytes = self.bytes;
            let virt = region.virt + bytes;
            let phys = region.phys + bytes;
            let size = self.tables.page_size(region, phys);
            let bits = leaf_bits(size, region.access, region.cache) | counted.bits();
            let entry = phys.get() | bits;
            let mut set = self.tables.set_leaf(virt, size, entry, frames);
            if matches!(set, Err(TableError::Unflushed { .. }))
                && let Some(place) = VirtRange::new(virt, size.bytes())
                && self.tables.is_vacant(place)
            {
                // A panic in `complete` left tables there, which have nothing in them, but keep a large page out.
                self.tables.release(place, frames, &mut |_| ());
                set = self.tables.set_leaf(virt, size, entry, frames);
            }
            set.map_err(|error| PartlyMapped { error, bytes })?;
            self.bytes += size.bytes();
        }
        Ok(())
    }
}

impl<M: PhysicalMemory> Drop for Mapping<'_, M> {
    fn drop(&mut self) {
        let Self { region, wanted, .. } = *self;
        let tables = &mut *self.tables;
        let Some(memory) = PhysRange::new(region.phys, self.bytes) else {
            return;
        };
        match self.counted {
            Some(Counted::Not) => {}
            Some(_) => tables.aliases.add(memory, wanted, Counted::Not),
            None => {
                tables.aliases.add_permanent(memory, wanted);
                if let Some(range) = VirtRange::new(region.virt, self.bytes) {
                    let index = tables.permanent_index(range.start());
                    tables.permanent.insert(index, range);
                }
            }
        }
    }
}
