//! The record of how physical memory is mapped: none both writable and executable, none with two cache
//! types.
//!
//! A page table says what each address maps, and not at which addresses some memory is mapped. So
//! the tables record that as they change, by ranges of physical memory ([`Aliases`]).
//!
//! What is mapped *permanently* (the direct map, the kernel's image) is recorded as ranges that never
//! go. A mapping that comes and goes adds nothing to them as long as it allows no more than they do,
//! as one of ordinary memory that the direct map has as well: such a one is looked up, by a binary
//! search, and not recorded. All others are counted, range by range, and their entries marked with
//! what they count as ([`Counted`]). The records of these have their memory reserved beforehand.
//!
//! A count is what a page was allowed since it was mapped, not what it is allowed now: a CPU may use
//! old rights until it has flushed, and the tables do not learn when it has, after a change of rights.
//! It goes down when the page's unmapping is completed, when all CPUs have flushed.
//!
//! To unmap a part of some memory may take one more record, and when there is none left, it can neither
//! be allocated nor the unmapping refused, which has happened by then. Its record becomes *coarse*: it
//! counts bytes for all of its memory together, and no longer which of them are mapped. So it excludes
//! more than it must, until the last of them is unmapped, and then nothing.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use x86_64::structures::paging::PageTableFlags as Flags;

use super::Rights;
use crate::plan::{Access, Cache};
use muster_frames::{PhysAddr, PhysRange};

/// Ranges of physical memory for whose records the tables have room, unless more are
/// [reserved](super::Tables::reserve), beside those that are mapped permanently.
pub(super) const RECORDS: usize = 256;

/// The way in which some physical memory is to be mapped.
#[derive(Clone, Copy)]
pub(super) struct Use {
    /// The region's name.
    pub(super) name: &'static str,
    pub(super) access: Access,
    pub(super) cache: Cache,
}

/// The way in which a page is counted that is mapped and may be unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// Not at all: the permanent mappings allow as much.
    Not,
    /// It can be read.
    Readable,
    /// It can be written, or could since it was mapped.
    Writable,
    /// It can be executed, or could since it was mapped.
    Executable,
}

impl Counted {
    /// The bits of an entry that say so, of those that the CPU ignores (Intel SDM vol. 3, 5.5.4).
    pub(super) const BITS: u64 = Flags::BIT_10.bits() | Flags::BIT_11.bits();

    /// Returns the bits that say this.
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Not => 0,
            Self::Readable => Flags::BIT_10.bits(),
            Self::Writable => Flags::BIT_11.bits(),
            Self::Executable => Self::BITS,
        }
    }

    /// Reads it from an entry.
    pub(super) const fn of(entry: u64) -> Self {
        match (
            entry & Flags::BIT_10.bits() != 0,
            entry & Flags::BIT_11.bits() != 0,
        ) {
            (false, false) => Self::Not,
            (true, false) => Self::Readable,
            (false, true) => Self::Writable,
            (true, true) => Self::Executable,
        }
    }

    /// Returns as what a page with these rights is counted.
    pub(super) const fn by(access: Access) -> Self {
        match access {
            Access::ReadOnly => Self::Readable,
            Access::ReadWrite => Self::Writable,
            Access::ReadExecute => Self::Executable,
        }
    }

    /// Returns whether such a page may have these rights without being counted otherwise.
    const fn covers(self, access: Access) -> bool {
        match access {
            Access::ReadOnly => !matches!(self, Self::Not),
            Access::ReadWrite => matches!(self, Self::Writable),
            Access::ReadExecute => matches!(self, Self::Executable),
        }
    }
}

/// Physical memory is mapped in a way that excludes the one that was asked for: writable and
/// executable, at whatever addresses, or with two cache types, which leads to undefined operations
/// (Intel SDM vol. 3, 13.12.4 "Programming the PAT").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The region that was to be mapped. If pages were to get other rights, it is "page": the tables do not
    /// record of which region a page is.
    pub name: &'static str,
    /// The rights that were asked for.
    pub access: Access,
    /// The cache type that was asked for.
    pub cache: Cache,
    /// A region that is mapped so. Of those that are mapped permanently, it is the one that was first, or
    /// that added rights. For others it is a hint: all memory that is mapped alike and in one piece has one
    /// name, which stays until none of that is mapped any more. So the region may map only memory beside
    /// this, or be unmapped by now.
    pub with: &'static str,
    /// The rights that all addresses together allow of the memory, or have allowed since they were
    /// mapped.
    pub rights: Rights,
    /// The cache type of the memory.
    pub cached: Cache,
    /// The memory that is mapped so, as far as it was asked for, and in one piece. If only a part
    /// [is](Self::is_partly), all of which that is a part.
    pub memory: PhysRange,
    /// Only a part of the memory is mapped so, and it is not known which: when the rest was unmapped,
    /// there was no record left ([`Tables::reserve`](super::Tables::reserve)).
    pub is_partly: bool,
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            access,
            cache,
            with,
            rights,
            cached,
            memory,
            is_partly,
        } = self;
        let it = if *is_partly { "a part of it" } else { "it" };
        write!(
            f,
            "\"{name}\" can't map {memory} as {access} {cache}, for {it} is mapped as {rights} {cached} \
             (\"{with}\"): "
        )?;
        f.write_str(if *is_partly {
            "unmap all of that, or reserve more records when the tables are made"
        } else if cache == cached {
            "unmap that first, or map this read-only"
        } else {
            "map both with one cache type"
        })
    }
}

impl core::error::Error for Alias {}

/// The reason why some memory can't be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Alias(Alias),
    /// The number of records that there may be: those that are needed would be more.
    Full(usize),
    /// There is no memory for this many bytes of records.
    OutOfMemory(usize),
}

impl Refusal {
    /// Joins the next page's refusal to this, if it is the same one for memory that is in one piece with
    /// this one's.
    pub(super) fn join(&mut self, next: Self) {
        if let (Self::Alias(alias), Self::Alias(next)) = (self, next)
            && let Some(memory) = joined(alias.memory, next.memory)
            && *alias
                == (Alias {
                    memory: alias.memory,
                    ..next
                })
        {
            alias.memory = memory;
        }
    }
}

/// Returns two ranges as one, whichever is first; `None` if they are apart.
pub(super) fn joined(one: PhysRange, other: PhysRange) -> Option<PhysRange> {
    if one.end() == other.start() {
        PhysRange::from_bounds(one.start(), other.end())
    } else if other.end() == one.start() {
        PhysRange::from_bounds(other.start(), one.end())
    } else {
        None
    }
}

/// The rights that the permanent mappings of some memory allow together.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Permanent {
    /// The region that was first, or that got the rights.
    name: &'static str,
    writable: bool,
    executable: bool,
}

/// Some memory that is mapped in one way throughout, unless the record is coarse.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Record {
    start: PhysAddr,
    end: PhysAddr,
    cache: Cache,
    permanent: Option<Permanent>,
    /// The name of a counted region that is mapped so, or was, here or in memory that continues this; empty
    /// if there is none.
    name: &'static str,
    /// Counted mappings, how many of them can be written, and how many executed; if the record is coarse,
    /// how many bytes all of them together have in this memory.
    mapped: u64,
    writable: u64,
    executable: u64,
    /// Not all of the memory is mapped alike, and there was no room to cut the record. It stays as long
    /// as it is, until nothing of it is mapped that is counted.
    is_coarse: bool,
}

impl Record {
    const fn new(start: PhysAddr, end: PhysAddr, cache: Cache) -> Self {
        Self {
            start,
            end,
            cache,
            permanent: None,
            name: "",
            mapped: 0,
            writable: 0,
            executable: 0,
            is_coarse: false,
        }
    }

    /// Counts for all of the memory together from now on.
    fn coarsen(&mut self) {
        if !self.is_coarse {
            let bytes = self.end - self.start;
            self.mapped *= bytes;
            self.writable *= bytes;
            self.executable *= bytes;
            self.is_coarse = true;
        }
    }

    /// Returns as how many a mapping of this memory counts that is in the record, or has some of it.
    fn weight(&self, memory: PhysRange) -> u64 {
        if self.is_coarse {
            self.end.min(memory.end()) - self.start.max(memory.start())
        } else {
            1
        }
    }

    fn rights(&self) -> Rights {
        Rights {
            writable: self.writable > 0 || self.permanent.is_some_and(|all| all.writable),
            executable: self.executable > 0 || self.permanent.is_some_and(|all| all.executable),
            user: false,
        }
    }

    /// Returns whether the permanent mappings allow as much.
    fn implies(&self, wanted: Use) -> bool {
        self.permanent.is_some_and(|all| match wanted.access {
            Access::ReadOnly => true,
            Access::ReadWrite => all.writable,
            Access::ReadExecute => all.executable,
        })
    }

    /// Returns the name of the region that excludes the one wanted, if any does.
    fn excludes(&self, wanted: Use) -> Option<&'static str> {
        let permanent = self.permanent.map(|all| all.name);
        let rights = self.rights();
        let (excluded, is_permanent) = match wanted.access {
            _ if self.cache != wanted.cache => (true, permanent.is_some()),
            Access::ReadOnly => (false, false),
            Access::ReadWrite => (rights.executable, self.executable == 0),
            Access::ReadExecute => (rights.writable, self.writable == 0),
        };
        let name = permanent.filter(|_| is_permanent).unwrap_or(self.name);
        excluded.then_some(name)
    }

    fn add(&mut self, wanted: Use, from: Counted, weight: u64) {
        let rights = self.rights();
        let is_new = match wanted.access {
            Access::ReadOnly => false,
            Access::ReadWrite => !rights.writable,
            Access::ReadExecute => !rights.executable,
        };
        // A page that only gets other rights is of the region that has the name, or of one that is mapped alike.
        if self.mapped == 0 || is_new && from == Counted::Not {
            self.name = wanted.name;
        }
        self.mapped += weight * u64::from(from == Counted::Not);
        self.writable += weight * u64::from(wanted.access == Access::ReadWrite);
        self.executable += weight * u64::from(wanted.access == Access::ReadExecute);
    }

    fn remove(&mut self, counted: Counted, weight: u64) {
        self.mapped -= weight;
        self.writable -= weight * u64::from(counted == Counted::Writable);
        self.executable -= weight * u64::from(counted == Counted::Executable);
        if self.mapped == 0 {
            self.name = "";
            self.is_coarse = false;
        }
    }

    fn add_permanent(&mut self, wanted: Use) {
        let rights = self.permanent.unwrap_or(Permanent {
            name: wanted.name,
            writable: false,
            executable: false,
        });
        let writable = rights.writable || wanted.access == Access::ReadWrite;
        let executable = rights.executable || wanted.access == Access::ReadExecute;
        let is_new = (writable, executable) != (rights.writable, rights.executable);
        self.permanent = Some(Permanent {
            name: if is_new { wanted.name } else { rights.name },
            writable,
            executable,
        });
    }

    /// Returns whether the two are alike in all but their bounds and names, and follow each other. Equal
    /// counts of bytes are no likeness.
    fn continues(&self, next: &Self) -> bool {
        let moved = Self {
            start: self.start,
            end: self.end,
            name: self.name,
            ..*next
        };
        self.end == next.start && *self == moved && !self.is_coarse
    }
}

/// The physical memory that some tables map, and how.
pub(super) struct Aliases {
    /// Sorted, apart from one another. Never longer than its capacity, but where memory for it may be
    /// allocated.
    records: Vec<Record>,
    /// Room that is kept for mappings that come and go.
    spare: usize,
}

impl Aliases {
    /// Creates a record that nothing is mapped, with room for [`RECORDS`] records.
    pub(super) fn new() -> Result<Self, Refusal> {
        let mut aliases = Self {
            records: Vec::new(),
            spare: 0,
        };
        aliases.reserve(RECORDS)?;
        Ok(aliases)
    }

    /// Makes room for this many more records.
    pub(super) fn reserve(&mut self, records: usize) -> Result<(), Refusal> {
        self.grow(records)?;
        self.spare = self.spare.saturating_add(records);
        Ok(())
    }

    /// Makes room for this many records beside those that are kept for what comes and goes.
    fn grow(&mut self, records: usize) -> Result<(), Refusal> {
        let room = self.spare.saturating_add(records);
        let bytes = room.saturating_mul(size_of::<Record>());
        let reserved = self.records.try_reserve(room);
        reserved.map_err(|_| Refusal::OutOfMemory(bytes))
    }

    /// Returns how many records are made where this memory is mapped so, or its first pages alone: one for
    /// each gap between the records that have some of it, and for each of those that is cut. `page_end`
    /// returns the end of the page that has an address.
    pub(super) fn needed(
        &self,
        memory: PhysRange,
        wanted: Use,
        page_end: impl Fn(PhysAddr) -> PhysAddr,
    ) -> usize {
        let overlapping = self.overlapping(memory);
        let before = self.records[..overlapping.start].last();
        let records = &self.records[overlapping];
        let mut needed = usize::from(self.cut_at(memory.start()).is_some());
        let mut at = memory.start();
        for record in records {
            needed += usize::from(at < record.start);
            at = record.end;
        }
        needed += usize::from(at < memory.end());
        // At the start, the record before is continued instead if it is alike.
        let mut first = Record::new(memory.start(), memory.end(), wanted.cache);
        first.add(wanted, Counted::Not, 1);
        let begins_with_gap = records
            .first()
            .is_none_or(|record| memory.start() < record.start);
        let is_continued = begins_with_gap && before.is_some_and(|before| before.continues(&first));
        needed -= usize::from(is_continued);
        // The end is cut, or that of the first pages, in whichever record that may lie.
        let can_be_cut = |record: &Record| {
            !record.is_coarse && page_end(record.start.max(memory.start())) < record.end
        };
        needed + usize::from(records.iter().any(can_be_cut))
    }

    /// Checks that there is room for this many more records.
    pub(super) fn check_room(&self, needed: usize) -> Result<(), Refusal> {
        let capacity = self.records.capacity();
        if needed <= capacity - self.records.len() {
            Ok(())
        } else {
            Err(Refusal::Full(capacity))
        }
    }

    /// Returns as what a page of this memory would be counted after its rights have changed.
    ///
    /// # Errors
    ///
    /// [`Refusal::Alias`].
    pub(super) fn check(
        &self,
        memory: PhysRange,
        wanted: Use,
        from: Counted,
    ) -> Result<Counted, Refusal> {
        if from.covers(wanted.access) {
            return Ok(from);
        }
        let mut implied_to = memory.start();
        for record in &self.records[self.overlapping(memory)] {
            if let Some(with) = record.excludes(wanted) {
                let all = PhysRange::from_bounds(record.start, record.end);
                let asked_for = all.and_then(|all| all.intersection(memory));
                let is_partly = record.is_coarse;
                return Err(Refusal::Alias(Alias {
                    name: wanted.name,
                    access: wanted.access,
                    cache: wanted.cache,
                    with,
                    rights: record.rights(),
                    cached: record.cache,
                    // A record is not empty, and they overlap.
                    memory: if is_partly { all } else { asked_for }.unwrap_or(memory),
                    is_partly,
                }));
            }
            if record.start <= implied_to && record.implies(wanted) {
                implied_to = record.end;
            }
        }
        Ok(if implied_to >= memory.end() {
            from
        } else {
            Counted::by(wanted.access)
        })
    }

    /// Counts this memory, for which there is room ([`Self::check_room`]), and which nothing excludes
    /// ([`Self::check`]), after it was counted otherwise or not at all.
    pub(super) fn add(&mut self, memory: PhysRange, wanted: Use, from: Counted) {
        let is_added = self.change(memory, Some(wanted.cache), |record, weight| {
            record.add(wanted, from, weight);
        });
        debug_assert!(is_added, "there is no room for the record of {memory}");
    }

    /// Counts this memory no more. If there is no room to cut a record, it becomes coarse.
    pub(super) fn remove(&mut self, memory: PhysRange, counted: Counted) {
        if counted != Counted::Not {
            let _is_exact = self.change(memory, None, |record, weight| {
                record.remove(counted, weight);
            });
        }
    }

    /// Makes room for a range of memory to be recorded as permanent.
    pub(super) fn check_permanent(
        &mut self,
        memory: PhysRange,
        wanted: Use,
    ) -> Result<(), Refusal> {
        self.check(memory, wanted, Counted::Not)?;
        // Permanent mappings are recorded to the byte, and a coarse record can't be cut.
        let mut records = self.records[self.overlapping(memory)].iter();
        if records.any(|record| record.is_coarse) {
            return Err(Refusal::Full(self.records.capacity()));
        }
        // At most: two are cut, and there is one more gap than records.
        self.grow(self.overlapping(memory).len() + 3)
    }

    /// Records this memory as mapped permanently, which [`Self::check_permanent`] found possible.
    pub(super) fn add_permanent(&mut self, memory: PhysRange, wanted: Use) {
        let is_added = self.change(memory, Some(wanted.cache), |record, _| {
            record.add_permanent(wanted);
        });
        debug_assert!(is_added, "there is no room for the record of {memory}");
    }

    /// Returns the indices of the records that have some of the memory.
    fn overlapping(&self, memory: PhysRange) -> Range<usize> {
        let first = self
            .records
            .partition_point(|record| record.end <= memory.start());
        let last = self
            .records
            .partition_point(|record| record.start < memory.end());
        first..last
    }

    /// Changes all records of some memory, and makes records of what has none if there is a cache type
    /// for it. `change` is called with each, and with how many this memory counts as. `false`: there
    /// was no room to cut a record, and it is coarse now.
    fn change(
        &mut self,
        memory: PhysRange,
        missing: Option<Cache>,
        change: impl Fn(&mut Record, u64),
    ) -> bool {
        let is_exact = [memory.start(), memory.end()].map(|border| self.cut(border)) == [true; 2];
        let mut index = self.overlapping(memory).start;
        let first = index;
        let mut at = memory.start();
        while at < memory.end() {
            let next = self
                .records
                .get(index)
                .map_or(PhysAddr::new(u64::MAX), |next| next.start);
            if at < next {
                let end = next.min(memory.end());
                if let Some(cache) = missing {
                    let mut gap = Record::new(at, end, cache);
                    change(&mut gap, 1);
                    match self.records[..index].last_mut() {
                        // `needed` counts on it: there may be no room for one that becomes one with it later.
                        Some(before) if before.continues(&gap) => before.end = end,
                        _ => {
                            debug_assert!(
                                self.records.len() < self.records.capacity(),
                                "there is no room for the record of {memory}"
                            );
                            self.records.insert(index, gap);
                            index += 1;
                        }
                    }
                }
                at = end;
                continue;
            }
            let record = &mut self.records[index];
            at = record.end;
            let weight = record.weight(memory);
            change(record, weight);
            if record.mapped == 0 && record.permanent.is_none() {
                self.records.remove(index);
            } else {
                index += 1;
            }
        }
        self.merge(first.saturating_sub(1), index);
        is_exact
    }

    /// Makes one of those records that are alike and follow each other, of all from the first index to the
    /// last.
    fn merge(&mut self, first: usize, mut last: usize) {
        let mut before = first;
        while before < last && before + 1 < self.records.len() {
            let next = self.records[before + 1];
            if self.records[before].continues(&next) {
                self.records[before].end = next.end;
                self.records.remove(before + 1);
                last -= 1;
            } else {
                before += 1;
            }
        }
    }

    /// Cuts the records at both ends of this memory, so that it can be changed without room for more.
    ///
    /// # Errors
    ///
    /// [`Refusal::Full`], and the records may be cut at one end.
    pub(super) fn cut_out(&mut self, memory: PhysRange) -> Result<(), Refusal> {
        for border in [memory.start(), memory.end()] {
            if self.cut_at(border).is_some() {
                self.check_room(1)?;
                self.cut(border);
            }
        }
        Ok(())
    }

    /// Takes back all cuts between memory that is mapped alike.
    pub(super) fn undo_cuts(&mut self) {
        self.merge(0, self.records.len());
    }

    /// Returns the index of the record that has the bytes before and after this address, unless it is
    /// coarse.
    fn cut_at(&self, at: PhysAddr) -> Option<usize> {
        let index = self.records.partition_point(|record| record.end <= at);
        let record = self.records.get(index)?;
        (record.start < at && !record.is_coarse).then_some(index)
    }

    /// Makes two of the record that has the bytes before and after this address, unless it is coarse. If
    /// there is no room for one more, it becomes so: `false`.
    fn cut(&mut self, at: PhysAddr) -> bool {
        let Some(index) = self.cut_at(at) else {
            return true;
        };
        let is_full = self.records.len() == self.records.capacity();
        let record = &mut self.records[index];
        if is_full {
            record.coarsen();
            return false;
        }
        let whole = *record;
        record.end = at;
        self.records
            .insert(index + 1, Record { start: at, ..whole });
        true
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]
mod tests {
    use super::*;
    use muster_frames::FRAME_SIZE;

    const WRITABLE: Use = Use {
        name: "test",
        access: Access::ReadWrite,
        cache: Cache::WriteBack,
    };

    fn pages(first: u64, count: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(first * FRAME_SIZE), count * FRAME_SIZE).unwrap()
    }

    /// Returns as many records as there is room for, of every other three pages.
    fn full() -> Aliases {
        let mut aliases = Aliases::new().unwrap();
        let mut first = 1;
        while aliases.check_room(1).is_ok() {
            aliases.add(pages(first, 3), WRITABLE, Counted::Not);
            first += 6;
        }
        aliases
    }

    #[test]
    #[should_panic(expected = "there is no room for the record of")]
    fn a_record_that_must_be_cut_without_room_is_a_mistake() {
        full().add(pages(2, 1), WRITABLE, Counted::Not);
    }

    #[test]
    #[should_panic(expected = "there is no room for the record of")]
    fn a_new_record_without_room_is_a_mistake() {
        full().add(pages(5, 1), WRITABLE, Counted::Not);
    }

    #[test]
    fn memory_is_counted_with_the_rest_of_its_record_if_that_cannot_be_cut() {
        let mut aliases = full();
        let executable = Use {
            access: Access::ReadExecute,
            ..WRITABLE
        };
        let check = |aliases: &Aliases| aliases.check(pages(1, 3), executable, Counted::Not);
        for page in [2, 1, 3] {
            assert!(matches!(check(&aliases), Err(Refusal::Alias(_))));
            aliases.remove(pages(page, 1), Counted::Writable);
        }
        assert_eq!(check(&aliases), Ok(Counted::Executable));
    }

    #[test]
    fn what_is_permanent_is_not_recorded_where_it_is_not_known_what_is_mapped() {
        let mut aliases = full();
        aliases.remove(pages(2, 1), Counted::Writable);
        for memory in [pages(1, 1), pages(0, 9)] {
            let checked = aliases.check_permanent(memory, WRITABLE);
            assert!(matches!(checked, Err(Refusal::Full(_))));
        }
        aliases.remove(pages(1, 1), Counted::Writable);
        aliases.remove(pages(3, 1), Counted::Writable);
        assert_eq!(aliases.check_permanent(pages(1, 3), WRITABLE), Ok(()));
    }
}
