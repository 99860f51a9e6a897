//! Unmapping pages, and changing their rights.
//!
//! # The life of an entry
//!
//! Frames of unmapped pages, and of tables that become empty by it, can't be used again before all CPUs
//! have flushed, nor put in a list: no code may allocate while the tables are locked, nor may a list
//! run through memory to which a CPU may still write. So they stay where they are known already, in
//! their entries. [`Tables::unmap`] makes an entry *withdrawn*: not present, with everything else kept.
//! A table with no present entry left becomes withdrawn itself. After the flush, [`Tables::complete`]
//! goes over the same range, releases the frames of its withdrawn pages, and those of the withdrawn
//! tables that are empty. A range has no holes, and nothing can be mapped over what is withdrawn, so
//! that all that is withdrawn in it is its own.
//!
//! Between the two, others may map and unmap pages beside these, in the same tables: to map a page in a
//! withdrawn table makes that present again. No table is released too early:
//!
//! - A table has a present entry whenever it is present. So it becomes withdrawn only by an
//!   [`Tables::unmap`] that has just withdrawn a page below it.
//! - That page's entry stays until the caller that withdrew it completes, after a flush that began
//!   after the table was withdrawn for the last time.
//! - A table is released when it is withdrawn and has no entry left: so all callers that withdrew pages
//!   in it have completed, the last one to withdraw the table among them.
//!
//! # Other CPUs
//!
//! Each entry changes by one store of an aligned word, so a CPU that walks the tables sees it as it was
//! or as it is. No CPU sees half of a page's change; of a range, CPUs may see any part changed until
//! they have flushed. Accessed and dirty are preset wherever they could be set, so no CPU ever writes
//! to an entry, and no store loses what a CPU wrote.
//!
//! Loads here are Relaxed: code that changes the tables has them to itself, and the lock that guards
//! them orders it after the last change. So are stores here: of a page, of which a view reads nothing but
//! the entry, and of what is withdrawn or empty, which leads it nowhere. Views of the tables, which may
//! have no lock, read entries with Acquire, and what leads them to a table is stored with Release: see
//! `entry::link` and `entry::follow`.

use crate::virt_addr::VirtAddr;
use core::fmt;
use core::sync::atomic::Ordering;

use muster_sync::AtomicU64;
use x86_64::structures::paging::PageTableFlags as Flags;

use super::aliases::{Alias, Aliases, Counted, Refusal, Use, joined};
use super::flush::{Flush, Unmapped, Unmapping};
use super::frame_source::FrameSource;
use super::{
    Entry, Features, Leaf, PhysicalMemory, Rights, TableView, Tables, WITHDRAWN, fmt_full, follow,
    index, leaf, rights_bits, shift, table,
};
use crate::plan::{Access, Cache, PageSize, pat_index};
use crate::virt_range::VirtRange;
use muster_frames::{Frame, PhysRange};
use muster_frames::{OwnedFrame, PhysAddr};

/// The reason why pages could not be unmapped, or given other rights. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// Some of the addresses do not exist.
    NotCanonical {
        /// The range.
        range: VirtRange,
    },
    /// A large page lies in the range only in part.
    ///
    /// It is not split: that would need a frame where one is to be given back, so that a page could not
    /// be unmapped for want of memory. To change parts of a region, map it with smaller pages
    /// ([`Region::largest`](crate::Region::largest)).
    Partly {
        /// The page.
        leaf: Leaf,
    },
    /// The CPUs have not yet flushed what was mapped there before.
    Unflushed {
        /// The first such address.
        virt: VirtAddr,
    },
    /// Some of it is mapped for good, by [`Tables::map_permanently`].
    Permanent {
        /// The addresses that are.
        range: VirtRange,
    },
    /// Some of it lies where a second root has the same tables ([`Tables::root_without`]): the CPU that goes
    /// by that is not asked to flush.
    Shared {
        /// The window that the second root lacks: for its sake, only addresses in it can change. With several
        /// second roots, it is the first window that does not have all of the range.
        window: VirtRange,
    },
    /// The rights exclude how the same physical memory is mapped, or was since it is: what could be
    /// written can be executed only after it was unmapped, and the other way round.
    Alias(Alias),
    /// There is no room to record how more of the physical memory is mapped: it takes more records than are
    /// left ([`Tables::reserve`]).
    RecordsFull {
        /// The number of records that there may be, those that are in use included.
        records: usize,
    },
    /// Nothing is mapped there.
    NotMapped {
        /// The first such address.
        virt: VirtAddr,
    },
    /// The tables on the way there cannot be reached or have bits that the CPU rejects.
    Malformed {
        /// The first such address.
        virt: VirtAddr,
    },
}

impl From<Refusal> for ChangeError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Alias(alias) => Self::Alias(alias),
            // Nothing is allocated for a change.
            Refusal::Full(records) | Refusal::OutOfMemory(records) => Self::RecordsFull { records },
        }
    }
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCanonical { range } => {
                write!(
                    f,
                    "{range} reaches beyond the addresses that the CPU accepts"
                )
            }
            Self::Partly { leaf } => {
                write!(
                    f,
                    "{leaf} can only change as a whole: map it with smaller pages"
                )
            }
            Self::Unflushed { virt } => {
                write!(f, "{virt} was unmapped, and not yet flushed on all CPUs")
            }
            Self::Permanent { range } => write!(
                f,
                "{range} is mapped for good: map what is to change by Tables::map"
            ),
            Self::Shared { window } => write!(
                f,
                "only {window} can change, as a second root shares the tables for all else: map there what \
                 is to change"
            ),
            Self::Alias(alias) => alias.fmt(f),
            Self::RecordsFull { records } => fmt_full(f, *records),
            Self::NotMapped { virt } => write!(f, "{virt} is not mapped"),
            Self::Malformed { virt } => write!(f, "the page tables for {virt} are broken"),
        }
    }
}

impl core::error::Error for ChangeError {}

/// A page that was unmapped, and that no CPU can reach any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreedPage {
    /// The virtual address at which it was mapped.
    pub virt: VirtAddr,
    /// Its first physical address.
    pub phys: PhysAddr,
    /// Its size.
    pub size: PageSize,
}

impl<M: PhysicalMemory> Tables<M> {
    /// Unmaps all pages in the range.
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then.
    ///
    /// # Safety
    ///
    /// Nothing uses the addresses any more, from now on: no code that runs on any CPU, no reference,
    /// no stack pointer.
    pub unsafe fn unmap(&mut self, range: VirtRange) -> Result<Unmapping, ChangeError> {
        self.check_change(range)?;
        let mut flush = Flush::new();
        self.withdraw(
            self.root,
            self.levels.count(),
            range.start(),
            range.last(),
            &mut flush,
        );
        self.withdrawn += flush.pages().table_count();
        Ok(Unmapping {
            tables: self.id,
            range,
            flush,
        })
    }

    /// Releases pages that no CPU can reach any more: calls `freed` with each, lowest address first,
    /// and gives tables that have become empty back to `frames`.
    ///
    /// Where a range that was mapped at once is unmapped in parts, each part may take a record of its own
    /// of what is left. If there is none ([`Tables::reserve`]), the memory of this part counts as mapped
    /// until the rest of that record is unmapped: it can be mapped again as it was, and not with rights or
    /// a cache type that exclude that ([`Alias::is_partly`]).
    ///
    /// If `freed` or `frames` panics, the pages that have not been released yet stay withdrawn for
    /// good, and tables may stay until something is unmapped there again, or a large page is mapped there.
    ///
    /// # Errors
    ///
    /// If the pages were unmapped in other tables: what was given, for those. Nothing has changed then.
    pub fn complete(
        &mut self,
        unmapped: Unmapped,
        frames: &impl FrameSource,
        freed: &mut impl FnMut(FreedPage),
    ) -> Result<(), Unmapped> {
        if unmapped.tables != self.id {
            return Err(unmapped);
        }
        self.release(unmapped.range, frames, freed);
        Ok(())
    }

    /// Releases the pages in a range that are withdrawn, which all CPUs have flushed, and the withdrawn tables
    /// that have nothing in them.
    pub(super) fn release(
        &mut self,
        range: VirtRange,
        frames: &impl FrameSource,
        freed: &mut impl FnMut(FreedPage),
    ) {
        let Self {
            view,
            aliases,
            built,
            withdrawn,
            ..
        } = self;
        let mut give_back = |frame| {
            // First: a source may panic.
            *built -= 1;
            *withdrawn -= 1;
            // SAFETY: (1) and (2) a source answered the frame for the page tables, as its own owner's (`empty_table`), and
            // the right to it was given up for the entry that pointed to it (`new_tables`), the only one, which is
            // empty now. A source that names another owner here than it did there breaks its contract, in which
            // nothing is unsafe: but an allocator takes a frame back from the owner that it has recorded, and from
            // no other, and a right that names another frees nothing. (3) No CPU can reach it: they have all flushed since the last entry went that
            // was present below it (see above).
            frames.give_back(unsafe { OwnedFrame::from_raw(frame, frames.owner()) });
        };
        let mut free = |page: FreedPage, counted| {
            if let Some(memory) = PhysRange::new(page.phys, page.size.bytes()) {
                aliases.remove(memory, counted);
            }
            freed(page);
        };
        view.clear(
            view.root,
            view.levels.count(),
            range.start(),
            range.last(),
            &mut free,
            &mut give_back,
        );
    }

    /// Returns whether nothing is mapped in the range, and no CPU has anything cached that was mapped
    /// there by these tables. It is so until something is mapped there; so addresses that do not exist are
    /// vacant.
    pub fn is_vacant(&self, range: VirtRange) -> bool {
        self.view.has_nothing(range, |entry, level, features| {
            Entry::decode_any(entry, level, features).0
        })
    }

    /// Changes the rights of all pages in the range. CPUs that have cached the old rights may go by
    /// until they have flushed. That is so even where they gain rights: a CPU may then fault by what it
    /// has cached (Intel SDM vol. 3, 5.10.4.3 "Optional Invalidation"), which no handler here expects.
    ///
    /// All pages of the range are flushed, also those that have the rights already: the flush of an
    /// earlier change may not be over yet, and may never be. So all CPUs go by the new rights when this
    /// flush is over, and a change that changes nothing costs a shootdown as well.
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then.
    ///
    /// # Safety
    ///
    /// From now on nothing uses the addresses in a way that the new rights do not allow; memory that becomes
    /// writable has no references that rely on it not to change; and with the new rights it is as
    /// [`Self::map`] asks of other tables.
    pub unsafe fn protect(
        &mut self,
        range: VirtRange,
        access: Access,
    ) -> Result<Flush, ChangeError> {
        self.check_change(range)?;
        // All cuts first: runs may have borders in common, and how many there are shows only as they are made.
        let mut cut = Ok(());
        let checked = self.each_run(range, access, &mut |aliases, run| {
            if cut.is_ok() {
                cut = aliases.cut_out(run.memory);
            }
        });
        if let Err(error) = checked.and(cut.map_err(ChangeError::from)) {
            self.aliases.undo_cuts();
            return Err(error);
        }
        self.each_run(range, access, &mut |aliases, run| {
            aliases.add(run.memory, run.wanted(access), run.counted);
        })?;
        let mut flush = Flush::new();
        let Self { view, aliases, .. } = self;
        view.each_leaf(range, &mut |slot, virt, page| {
            let counted = page.after(aliases, access).unwrap_or(page.counted);
            let entry = slot.load(Ordering::Relaxed);
            let kept = entry & !(RIGHTS | Counted::BITS);
            let changed = kept | rights_bits(access) | counted.bits();
            if changed != entry {
                slot.store(changed, Ordering::Relaxed);
            }
            flush.add(virt);
        })?;
        Ok(flush)
    }

    /// Calls `visit` with the pages of a range, all of which can change, that are counted otherwise when they
    /// have these rights: in one run those that follow each other in memory, as that is recorded in one piece.
    ///
    /// They are the same after some of them were added to the records: no page excludes another one with the
    /// same rights, and only permanent mappings allow as much.
    ///
    /// # Errors
    ///
    /// [`ChangeError::Alias`], if one of them may not have the rights.
    fn each_run(
        &mut self,
        range: VirtRange,
        access: Access,
        visit: &mut impl FnMut(&mut Aliases, Run),
    ) -> Result<(), ChangeError> {
        let Self { view, aliases, .. } = self;
        let mut checked = Ok(());
        let mut run: Option<Run> = None;
        view.each_leaf(range, &mut |_, _, page| match page.after(aliases, access) {
            Ok(counted) if counted == page.counted => {}
            Ok(_) => {
                let joined = run.and_then(|run| run.joined(page));
                if joined.is_none()
                    && let Some(run) = run
                {
                    visit(aliases, run);
                }
                run = joined.or(Some(page));
            }
            Err(refusal) => match &mut checked {
                Ok(()) => checked = Err(refusal),
                Err(first) => first.join(refusal),
            },
        })?;
        checked?;
        if let Some(run) = run {
            visit(aliases, run);
        }
        Ok(())
    }

    /// Checks that all of the range can change.
    fn check_change(&self, range: VirtRange) -> Result<(), ChangeError> {
        let permanent = self.permanent.get(self.permanent_index(range.start()));
        if let Some(&permanent) = permanent
            && permanent.start() <= range.last()
        {
            return Err(ChangeError::Permanent { range: permanent });
        }
        let is_changeable =
            |window: &VirtRange| window.contains(range.start()) && window.contains(range.last());
        if let Some(&window) = self.lacking.iter().find(|window| !is_changeable(window)) {
            return Err(ChangeError::Shared { window });
        }
        self.check(range)
    }
}

/// A page, as its entry has it, or some that follow each other in memory, and are alike in all else.
#[derive(Clone, Copy)]
struct Run {
    memory: PhysRange,
    cache: Cache,
    counted: Counted,
}

impl Run {
    /// Returns this and the next one as one, whichever is first in memory; `None` if they are apart or not alike.
    fn joined(self, next: Self) -> Option<Self> {
        let memory = joined(self.memory, next.memory)?;
        let is_alike = (self.cache, self.counted) == (next.cache, next.counted);
        is_alike.then_some(Self { memory, ..self })
    }

    /// Returns as what it would be counted if it got these rights.
    fn after(&self, aliases: &Aliases, access: Access) -> Result<Counted, Refusal> {
        aliases.check(self.memory, self.wanted(access), self.counted)
    }

    fn wanted(&self, access: Access) -> Use {
        Use {
            name: "page",
            access,
            cache: self.cache,
        }
    }
}

impl<M: PhysicalMemory> TableView<M> {
    /// Returns whether nothing is mapped in the range, by the entries that are present. A CPU may still
    /// have cached what was mapped there before: [`Tables::is_vacant`] excludes that as well. A view
    /// cannot: in tables that are another's, the bits of an entry that is not present mean nothing; in
    /// [`Tables`] that change concurrently, the table behind it may be given back during the walk.
    ///
    /// The range is not vacant if the tables on the way are malformed or cannot be reached. Addresses that
    /// do not exist are vacant.
    pub fn is_vacant(&self, range: VirtRange) -> bool {
        self.has_nothing(range, Entry::decode)
    }

    /// Checks that all of the range can change.
    fn check(&self, range: VirtRange) -> Result<(), ChangeError> {
        if !self.levels.have(range) {
            return Err(ChangeError::NotCanonical { range });
        }
        self.check_part(self.root, self.levels.count(), range.start(), range.last())
    }

    fn check_part(
        &self,
        frame: Frame,
        level: u8,
        first: VirtAddr,
        last: VirtAddr,
    ) -> Result<(), ChangeError> {
        let table = table(&self.memory, frame).ok_or(ChangeError::Malformed { virt: first })?;
        for piece in pieces(first, last, level) {
            let Piece { first, last, .. } = piece;
            let entry = table[piece.index].load(Ordering::Relaxed);
            let (decoded, is_withdrawn) = Entry::decode_any(entry, level, self.features);
            match decoded {
                Entry::Absent => return Err(ChangeError::NotMapped { virt: first }),
                Entry::Malformed | Entry::Table(None) => {
                    return Err(ChangeError::Malformed { virt: first });
                }
                Entry::Table(Some(below)) => {
                    self.check_part(below, level - 1, first, last)?;
                }
                Entry::Leaf { .. } if is_withdrawn => {
                    return Err(ChangeError::Unflushed { virt: first });
                }
                Entry::Leaf { phys, size } => {
                    if last - first != size.bytes() - 1 {
                        let virt = first.align_down(size.bytes());
                        let rights = Rights::ALL.below(entry);
                        let leaf = leaf(virt, phys, size, rights, entry);
                        return Err(ChangeError::Partly { leaf });
                    }
                }
            }
        }
        Ok(())
    }

    /// Withdraws all pages in a part of the addresses of a table, and returns whether the table has any
    /// present entry left.
    fn withdraw(
        &self,
        frame: Frame,
        level: u8,
        first: VirtAddr,
        last: VirtAddr,
        flush: &mut Flush,
    ) -> bool {
        let Some(table) = table(&self.memory, frame) else {
            return true;
        };
        for piece in pieces(first, last, level) {
            let slot = &table[piece.index];
            let entry = slot.load(Ordering::Relaxed);
            let withdraw = || slot.store(withdrawn(entry), Ordering::Relaxed);
            match Entry::decode(entry, level, self.features) {
                Entry::Leaf { .. } => {
                    withdraw();
                    flush.add(piece.first);
                }
                Entry::Table(Some(below)) => {
                    if !self.withdraw(below, level - 1, piece.first, piece.last, flush) {
                        withdraw();
                        flush.add_table();
                    }
                }
                Entry::Absent | Entry::Table(None) | Entry::Malformed => {}
            }
        }
        table
            .iter()
            .any(|entry| entry.load(Ordering::Relaxed) & Flags::PRESENT.bits() != 0)
    }

    /// Clears the withdrawn entries of a part of the addresses of a table.
    fn clear(
        &self,
        frame: Frame,
        level: u8,
        first: VirtAddr,
        last: VirtAddr,
        freed: &mut impl FnMut(FreedPage, Counted),
        give_back: &mut impl FnMut(Frame),
    ) {
        let Some(tables) = table(&self.memory, frame) else {
            return;
        };
        for piece in pieces(first, last, level) {
            let slot = &tables[piece.index];
            let entry = slot.load(Ordering::Relaxed);
            match Entry::decode_any(entry, level, self.features) {
                (Entry::Leaf { phys, size }, true) => {
                    slot.store(0, Ordering::Relaxed);
                    let virt = piece.first;
                    freed(FreedPage { virt, phys, size }, Counted::of(entry));
                }
                (Entry::Table(Some(below)), is_withdrawn) => {
                    self.clear(below, level - 1, piece.first, piece.last, freed, give_back);
                    if is_withdrawn && self.is_empty(below) {
                        slot.store(0, Ordering::Relaxed);
                        give_back(below);
                    }
                }
                _ => {}
            }
        }
    }

    /// Returns whether the range has nothing but absent entries, as `decode` reads them.
    fn has_nothing(&self, range: VirtRange, decode: fn(u64, u8, Features) -> Entry) -> bool {
        let level = self.levels.count();
        self.levels
            .accepted(range)
            .all(|range| self.has_nothing_in(self.root, level, range.start(), range.last(), decode))
    }

    fn has_nothing_in(
        &self,
        frame: Frame,
        level: u8,
        first: VirtAddr,
        last: VirtAddr,
        decode: fn(u64, u8, Features) -> Entry,
    ) -> bool {
        let Some(table) = table(&self.memory, frame) else {
            return false;
        };
        pieces(first, last, level).all(|piece| {
            let entry = follow(&table[piece.index]);
            match decode(entry, level, self.features) {
                Entry::Absent => true,
                Entry::Table(Some(below)) => {
                    self.has_nothing_in(below, level - 1, piece.first, piece.last, decode)
                }
                _ => false,
            }
        })
    }

    /// Returns whether a table has nothing in it, not even what is withdrawn.
    fn is_empty(&self, frame: Frame) -> bool {
        let used = Flags::PRESENT.bits() | WITHDRAWN;
        table(&self.memory, frame).is_some_and(|table| {
            table
                .iter()
                .all(|entry| entry.load(Ordering::Relaxed) & used == 0)
        })
    }

    /// Calls `visit` with each page in a range that is all mapped: its entry, its address, and the
    /// page alone.
    ///
    /// # Errors
    ///
    /// [`ChangeError::Malformed`], for an entry that these tables have not made.
    fn each_leaf(
        &self,
        range: VirtRange,
        visit: &mut impl FnMut(&AtomicU64, VirtAddr, Run),
    ) -> Result<(), ChangeError> {
        let (first, last) = (range.start(), range.last());
        self.each_leaf_in(self.root, self.levels.count(), first, last, visit)
    }

    fn each_leaf_in(
        &self,
        frame: Frame,
        level: u8,
        first: VirtAddr,
        last: VirtAddr,
        visit: &mut impl FnMut(&AtomicU64, VirtAddr, Run),
    ) -> Result<(), ChangeError> {
        let table = table(&self.memory, frame).ok_or(ChangeError::Malformed { virt: first })?;
        for piece in pieces(first, last, level) {
            let slot = &table[piece.index];
            let entry = slot.load(Ordering::Relaxed);
            let virt = piece.first;
            match Entry::decode(entry, level, self.features) {
                Entry::Leaf { phys, size } => {
                    let memory = PhysRange::new(phys, size.bytes());
                    let cache = Cache::from_pat_index(pat_index(entry, size));
                    let (Some(memory), Some(cache)) = (memory, cache) else {
                        return Err(ChangeError::Malformed { virt });
                    };
                    let counted = Counted::of(entry);
                    let page = Run {
                        memory,
                        cache,
                        counted,
                    };
                    visit(slot, virt, page);
                }
                Entry::Table(Some(below)) => {
                    self.each_leaf_in(below, level - 1, virt, piece.last, visit)?;
                }
                Entry::Absent | Entry::Table(None) | Entry::Malformed => {}
            }
        }
        Ok(())
    }
}

/// The bits of a leaf entry that [`rights_bits`] chooses.
const RIGHTS: u64 = Flags::WRITABLE.bits()
    | Flags::NO_EXECUTE.bits()
    | Flags::DIRTY.bits()
    | Flags::USER_ACCESSIBLE.bits();

/// The part of a range that one entry is for.
struct Piece {
    /// The entry's index in its table.
    index: usize,
    first: VirtAddr,
    last: VirtAddr,
}

/// Splits a range into parts, one for each entry of the table of this level that it lies in. All of it
/// exists, in one half of the address space: each entry is met once.
fn pieces(first: VirtAddr, last: VirtAddr, level: u8) -> impl Iterator<Item = Piece> {
    let mut next = Some(first);
    core::iter::from_fn(move || {
        let first = next?;
        let end = VirtAddr::new(first.get() | ((1 << shift(level)) - 1));
        let piece = Piece {
            index: index(first, level),
            first,
            last: end.min(last),
        };
        next = end.checked_add(1).filter(|&next| next <= last);
        Some(piece)
    })
}

const fn withdrawn(entry: u64) -> u64 {
    entry & !Flags::PRESENT.bits() | WITHDRAWN
}
