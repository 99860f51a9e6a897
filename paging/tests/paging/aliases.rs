//! Physical memory that is mapped at several addresses, against a model of each of its pages: never
//! both writable and executable, never cached in two ways.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};

use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};
use muster_paging::{
    Access, Alias, Cache, ChangeError, Features, FrameSource, Levels, PageSize, PartlyMapped,
    PlanError, Region, TableError, Tables, Unmapping, VirtAddr, VirtRange,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::changes::Alone;
use crate::maps::HALF_4;
use crate::oracle::oracle;
use crate::owner::{OwnedFrame, Owner};
use crate::ram::Ram;
use crate::tables::{map, map_page, map_permanently};
use crate::{scarce, walker};

const PHYS: u64 = 0x4000_0000;

/// Pages of memory that are played with.
const PAGES: u64 = 24;

const ACCESSES: [Access; 3] = [Access::ReadOnly, Access::ReadWrite, Access::ReadExecute];
const CACHES: [Cache; 3] = [Cache::WriteBack, Cache::WriteCombining, Cache::Uncached];

fn new_tables(ram: &Ram) -> Tables<&Ram> {
    Tables::new(ram, Levels::Four, Features::default(), ram).unwrap()
}

/// Returns some pages of the memory, at addresses of their own.
fn region(number: u64, first: u64, count: u64, access: Access, cache: Cache) -> Region {
    Region {
        name: "region",
        virt: VirtAddr::new(HALF_4 + (number << 21) + first * FRAME_SIZE),
        phys: PhysAddr::new(PHYS + first * FRAME_SIZE),
        length: count * FRAME_SIZE,
        access,
        cache,
        largest: PageSize::Size4KiB,
    }
}

fn range(region: &Region) -> VirtRange {
    VirtRange::new(region.virt, region.length).unwrap()
}

fn unmap(tables: &mut Tables<&Ram>, range: VirtRange) -> Result<Unmapping, ChangeError> {
    // SAFETY: nobody uses what these tables map.
    unsafe { tables.unmap(range) }
}

fn protect(tables: &mut Tables<&Ram>, range: VirtRange, access: Access) -> Result<(), ChangeError> {
    // SAFETY: nobody uses what these tables map.
    let flush = unsafe { tables.protect(range, access) }?;
    flush.run(&Alone);
    Ok(())
}

fn vacate(tables: &mut Tables<&Ram>, ram: &Ram, range: VirtRange) {
    let unmapped = unmap(tables, range).unwrap().flush(&Alone);
    tables.complete(unmapped, ram, &mut |_| ()).unwrap();
}

/// A page that is mapped, or of which a CPU may still think so.
#[derive(Clone, Copy, Debug)]
struct Page {
    phys: u64,
    cache: Cache,
    /// The rights that were allowed since it was mapped.
    writable: bool,
    executable: bool,
    is_permanent: bool,
    is_withdrawn: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Map {
        first: u64,
        count: u64,
        access: Access,
        cache: Cache,
        is_permanent: bool,
    },
    Unmap(Index, u64),
    Complete(Index),
    Protect(Index, u64, Access),
}

fn step() -> impl Strategy<Value = Step> {
    let access = || prop::sample::select(&ACCESSES[..]);
    let cache = prop_oneof![5 => Just(Cache::WriteBack), 1 => prop::sample::select(&CACHES[..])];
    let pages = (0..PAGES, 1..9u64).prop_map(|(first, count)| (first, count.min(PAGES - first)));
    prop_oneof![
        6 => (pages, access(), cache, prop::bool::weighted(0.15)).prop_map(
            |((first, count), access, cache, is_permanent)| Step::Map {
                first,
                count,
                access,
                cache,
                is_permanent,
            }
        ),
        3 => (any::<Index>(), 1..9u64).prop_map(|(index, count)| Step::Unmap(index, count)),
        3 => any::<Index>().prop_map(Step::Complete),
        3 => (any::<Index>(), 1..9u64, access())
            .prop_map(|(index, count, access)| Step::Protect(index, count, access)),
    ]
}

struct World<'a> {
    ram: &'a Ram,
    tables: Tables<&'a Ram>,
    mapped: u64,
    pages: BTreeMap<u64, Page>,
    pending: Vec<Unmapping>,
    refused: usize,
    /// Refusals of what the model allows.
    for_records: usize,
    /// There may be too few records to know all that is mapped: then more may be refused.
    has_few_records: bool,
}

impl Drop for World<'_> {
    /// Returns a forgotten flush would hide why the test failed.
    fn drop(&mut self) {
        for unmapping in self.pending.drain(..) {
            let _ = unmapping.flush(&Alone);
        }
    }
}

impl World<'_> {
    /// Returns whether some memory may be mapped so, beside all that is mapped.
    fn allows(&self, phys: u64, access: Access, cache: Cache) -> bool {
        self.pages
            .values()
            .filter(|page| page.phys == phys)
            .all(|page| {
                page.cache == cache
                    && !(page.executable && access == Access::ReadWrite)
                    && !(page.writable && access == Access::ReadExecute)
            })
    }

    /// Returns some pages that follow each other, are mapped, and are all permanent or none.
    fn run(&self, index: Index, count: u64) -> Option<VirtRange> {
        let mapped: Vec<u64> = self
            .pages
            .iter()
            .filter(|(_, page)| !page.is_withdrawn)
            .map(|(&virt, _)| virt)
            .collect();
        let first = *mapped.get(index.index(mapped.len().max(1)))?;
        let is_permanent = self.pages[&first].is_permanent;
        let count = (1..count)
            .take_while(|page| {
                let page = self.pages.get(&(first + page * FRAME_SIZE));
                page.is_some_and(|page| !page.is_withdrawn && page.is_permanent == is_permanent)
            })
            .count() as u64;
        VirtRange::new(VirtAddr::new(first), (count + 1) * FRAME_SIZE)
    }

    fn in_range(&self, range: VirtRange) -> impl Iterator<Item = (u64, Page)> {
        let pages = self.pages.range(range.start().get()..=range.last().get());
        pages.map(|(&virt, &page)| (virt, page))
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Map {
                first,
                count,
                access,
                cache,
                is_permanent,
            } => {
                self.mapped += 1;
                let region = region(self.mapped, first, count, access, cache);
                // With it would come more room.
                let is_permanent = is_permanent && !self.has_few_records;
                let mapped = if is_permanent {
                    map_permanently(&mut self.tables, &region, self.ram)
                } else {
                    map(&mut self.tables, &region, self.ram)
                };
                let excluded = (first..first + count)
                    .map(|page| PHYS + page * FRAME_SIZE)
                    .find(|&phys| !self.allows(phys, access, cache));
                self.refused += usize::from(excluded.is_some());
                match (mapped, excluded) {
                    (Ok(()), None) => {}
                    (
                        Err(PartlyMapped {
                            error: TableError::Alias(alias),
                            bytes: 0,
                        }),
                        Some(phys),
                    ) => {
                        if !alias.is_partly {
                            prop_assert_eq!(alias.memory.start().get(), phys);
                        }
                        prop_assert!(self.has_few_records || !alias.is_partly);
                        prop_assert_eq!((alias.access, alias.cache), (access, cache));
                        return Ok(());
                    }
                    (Err(failure), _) if self.is_for_few_records(&failure) => {
                        self.for_records += 1;
                        return Ok(());
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
                for page in 0..count {
                    let offset = page * FRAME_SIZE;
                    let page = Page {
                        phys: (region.phys + offset).get(),
                        cache,
                        writable: access == Access::ReadWrite,
                        executable: access == Access::ReadExecute,
                        is_permanent,
                        is_withdrawn: false,
                    };
                    self.pages.insert((region.virt + offset).get(), page);
                }
            }
            Step::Unmap(index, count) => {
                let Some(range) = self.run(index, count) else {
                    return Ok(());
                };
                let is_permanent = self.in_range(range).any(|(_, page)| page.is_permanent);
                match unmap(&mut self.tables, range) {
                    Ok(unmapping) => self.pending.push(unmapping),
                    Err(ChangeError::Permanent { .. }) if is_permanent => return Ok(()),
                    Err(error) => prop_assert!(false, "{}", error),
                }
                prop_assert!(!is_permanent);
                for (_, page) in self
                    .pages
                    .range_mut(range.start().get()..=range.last().get())
                {
                    page.is_withdrawn = true;
                }
            }
            Step::Complete(index) => {
                if !self.pending.is_empty() {
                    let index = index.index(self.pending.len());
                    self.complete(index);
                }
            }
            Step::Protect(index, count, access) => {
                let Some(range) = self.run(index, count) else {
                    return Ok(());
                };
                let pages: Vec<_> = self.in_range(range).map(|(_, page)| page).collect();
                let is_permanent = pages.iter().any(|page| page.is_permanent);
                let is_allowed = pages
                    .iter()
                    .all(|page| self.allows(page.phys, access, page.cache));
                let protected = protect(&mut self.tables, range, access);
                match protected {
                    Err(ChangeError::Permanent { .. }) if is_permanent => return Ok(()),
                    // Counted memory is not looked up any more.
                    Err(ChangeError::RecordsFull { .. }) => prop_assert!(self.has_few_records),
                    Err(ChangeError::Alias(alias)) if alias.is_partly => {
                        prop_assert!(self.has_few_records);
                    }
                    Err(ChangeError::Alias(_)) => prop_assert!(!is_allowed),
                    Ok(()) => prop_assert!(is_allowed && !is_permanent),
                    Err(error) => prop_assert!(false, "{}", error),
                }
                if protected.is_ok() {
                    for (_, page) in self
                        .pages
                        .range_mut(range.start().get()..=range.last().get())
                    {
                        page.writable |= access == Access::ReadWrite;
                        page.executable |= access == Access::ReadExecute;
                    }
                }
            }
        }
        Ok(())
    }

    fn is_for_few_records(&self, failure: &PartlyMapped) -> bool {
        let is_partly = matches!(failure.error, TableError::Alias(alias) if alias.is_partly);
        let is_full = matches!(failure.error, TableError::RecordsFull { .. });
        self.has_few_records && failure.bytes == 0 && (is_partly || is_full)
    }

    fn complete(&mut self, index: usize) {
        let unmapped = self.pending.swap_remove(index).flush(&Alone);
        let pages = &mut self.pages;
        let freed = &mut |page: muster_paging::FreedPage| {
            pages.remove(&page.virt.get());
        };
        self.tables.complete(unmapped, self.ram, freed).unwrap();
    }

    /// Checks what the CPU sees, page by page: no memory in two ways.
    fn check(&self) -> Result<(), TestCaseError> {
        let root = self.tables.root().start();
        let mut seen = BTreeMap::new();
        for page in walker::walk(self.ram, root.get(), 4) {
            let (cache, rights) = seen.entry(page.phys).or_insert((page.cache, page.access));
            prop_assert_eq!(*cache, page.cache);
            let both = [*rights, page.access];
            prop_assert!(
                !(both.contains(&Access::ReadWrite) && both.contains(&Access::ReadExecute)),
                "{:?}",
                page
            );
            if page.access != Access::ReadOnly {
                *rights = page.access;
            }
        }
        prop_assert!(self.tables.verify_exclusion().is_ok());
        Ok(())
    }
}

/// Takes the steps, if `full_at` says so with no record left from one of them on. Answers how many were
/// refused, and how many for want of records.
fn check_steps(steps: Vec<Step>, full_at: Option<Index>) -> Result<[usize; 2], TestCaseError> {
    let ram = Ram::new(1 << 36);
    let mut world = World {
        tables: new_tables(&ram),
        ram: &ram,
        mapped: 0,
        pages: BTreeMap::new(),
        pending: Vec::new(),
        refused: 0,
        for_records: 0,
        has_few_records: false,
    };
    let full_at = full_at.map(|index| index.index(steps.len()));
    let mut others = 0..0;
    // A record that is cut in the end.
    let long = region(0, 100, 60, Access::ReadWrite, Cache::WriteBack);
    if full_at.is_some() {
        map(&mut world.tables, &long, &ram).unwrap();
    }
    for (place, step) in steps.into_iter().enumerate() {
        if full_at == Some(place) {
            others = fill_records(&mut world.tables, &ram, 500);
            for page in [1, 3, 5, 7, 9].map(|page| long.virt + page * FRAME_SIZE) {
                let page = VirtRange::new(page, FRAME_SIZE).unwrap();
                vacate(&mut world.tables, &ram, page);
            }
            world.has_few_records = true;
        }
        world.take(step)?;
        world.check()?;
    }
    // Unmapped memory excludes nothing.
    while !world.pending.is_empty() {
        world.complete(0);
    }
    let mapped = world.pages.iter().filter(|(_, page)| !page.is_permanent);
    let mapped: Vec<u64> = mapped.map(|(&virt, _)| virt).collect();
    for virt in mapped {
        let page = VirtRange::new(VirtAddr::new(virt), FRAME_SIZE).unwrap();
        vacate(&mut world.tables, &ram, page);
        world.pages.remove(&virt);
    }
    for number in others {
        vacate(&mut world.tables, &ram, range(&apart(number)));
    }
    for page in 0..PAGES {
        for access in ACCESSES {
            for cache in CACHES {
                world.mapped += 1;
                let region = region(world.mapped, page, 1, access, cache);
                let is_mapped = map(&mut world.tables, &region, &ram).is_ok();
                prop_assert_eq!(is_mapped, world.allows(region.phys.get(), access, cache));
                if is_mapped {
                    vacate(&mut world.tables, &ram, range(&region));
                }
            }
        }
    }
    Ok([world.refused, world.for_records])
}

#[test]
fn memory_is_mapped_in_one_way_as_in_the_model() {
    let all = Cell::new(0);
    oracle(
        "memory at several addresses",
        256,
        prop::collection::vec(step(), 1..60),
        |steps| {
            let count = steps.len();
            let [refused, _] = check_steps(steps, None)?;
            all.set(all.get() + refused);
            Ok(count)
        },
    );
    assert!(all.get() > 100, "little was refused");
}

/// With too few records, more may be refused, but nothing that the model excludes is mapped; and what is
/// gone excludes nothing.
#[test]
fn memory_is_mapped_in_one_way_as_in_the_model_with_few_records() {
    let all = Cell::new(0);
    oracle(
        "memory at several addresses, with few records",
        128,
        (prop::collection::vec(step(), 1..90), any::<Index>()),
        |(steps, full_at)| {
            let count = steps.len();
            let [_, for_records] = check_steps(steps, Some(full_at))?;
            all.set(all.get() + for_records);
            Ok(count)
        },
    );
    assert!(all.get() > 20, "there were records enough: {}", all.get());
}

#[test]
fn a_device_is_not_mapped_as_memory_nor_memory_as_a_device() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let memory = Region {
        name: "HHDM",
        ..region(1, 0, 512, Access::ReadWrite, Cache::WriteBack)
    };
    let device = Region {
        name: "local APIC",
        ..region(2, 600, 1, Access::ReadWrite, Cache::Uncached)
    };
    for region in [&memory, &device] {
        map_permanently(&mut tables, region, &ram).unwrap();
    }
    let as_device = region(3, 7, 2, Access::ReadOnly, Cache::Uncached);
    let alias = Alias {
        name: "region",
        access: Access::ReadOnly,
        cache: Cache::Uncached,
        with: "HHDM",
        rights: tables.translate(memory.virt).unwrap().leaf.rights,
        cached: Cache::WriteBack,
        memory: PhysRange::new(PhysAddr::new(PHYS + 7 * FRAME_SIZE), 2 * FRAME_SIZE).unwrap(),
        is_partly: false,
    };
    let error = map(&mut tables, &as_device, &ram).unwrap_err();
    assert_eq!(error.error, TableError::Alias(alias));
    assert_eq!(
        error.to_string(),
        "\"region\" can't map 0x40007000..0x40009000 as r-- UC, for it is mapped as rw- WB (\"HHDM\"): map \
         both with one cache type"
    );
    let as_memory = region(4, 599, 3, Access::ReadOnly, Cache::WriteBack);
    let error = map(&mut tables, &as_memory, &ram).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("for it is mapped as rw- UC (\"local APIC\")")
    );
    // The registers once more, and for as long.
    let again = region(5, 600, 1, Access::ReadOnly, Cache::Uncached);
    map(&mut tables, &again, &ram).unwrap();
    protect(&mut tables, range(&again), Access::ReadWrite).unwrap();
    vacate(&mut tables, &ram, range(&again));
}

#[test]
fn what_was_writable_is_executable_only_after_it_was_unmapped() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let code = region(1, 0, 2, Access::ReadWrite, Cache::WriteBack);
    map(&mut tables, &code, &ram).unwrap();
    protect(&mut tables, range(&code), Access::ReadOnly).unwrap();
    let error = protect(&mut tables, range(&code), Access::ReadExecute).unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"page\" can't map 0x40000000..0x40002000 as r-x WB, for it is mapped as rw- WB (\"region\"): unmap \
         that first, or map this read-only"
    );
    protect(&mut tables, range(&code), Access::ReadWrite).unwrap();

    // Nor is it before the CPUs have forgotten it.
    let executable = region(2, 0, 2, Access::ReadExecute, Cache::WriteBack);
    let unmapping = unmap(&mut tables, range(&code)).unwrap();
    assert!(map(&mut tables, &executable, &ram).is_err());
    let unmapped = unmapping.flush(&Alone);
    assert!(map(&mut tables, &executable, &ram).is_err());
    tables.complete(unmapped, &ram, &mut |_| ()).unwrap();
    map(&mut tables, &executable, &ram).unwrap();
    assert!(map_page(&mut tables, HALF_4, PHYS >> 12, Access::ReadWrite, &ram).is_err());

    // A large page is counted as a whole.
    let large = Region {
        largest: PageSize::Size2MiB,
        ..region(4, 512, 512, Access::ReadExecute, Cache::WriteBack)
    };
    map(&mut tables, &large, &ram).unwrap();
    let last = (PHYS >> 12) + 1023;
    assert!(map_page(&mut tables, HALF_4, last, Access::ReadWrite, &ram).is_err());
    vacate(&mut tables, &ram, range(&large));
    map_page(&mut tables, HALF_4, last, Access::ReadWrite, &ram).unwrap();
}

#[test]
fn what_is_mapped_for_good_stays() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let text = region(1, 4, 4, Access::ReadExecute, Cache::WriteBack);
    map_permanently(&mut tables, &text, &ram).unwrap();
    let beside = region(1, 8, 4, Access::ReadOnly, Cache::WriteBack);
    map(&mut tables, &beside, &ram).unwrap();
    let across = VirtRange::new(text.virt + 0x3000, 0x2000).unwrap();
    let permanent = ChangeError::Permanent {
        range: range(&text),
    };
    assert_eq!(unmap(&mut tables, across).unwrap_err(), permanent);
    let error = protect(&mut tables, range(&text), Access::ReadOnly).unwrap_err();
    assert_eq!(error, permanent);
    assert!(error.to_string().ends_with("by Tables::map"));
    vacate(&mut tables, &ram, range(&beside));
    // Of a region that is mapped in part, that part.
    ram.left.set(0);
    let partly = region(2, 0, 1, Access::ReadWrite, Cache::WriteBack);
    let partly = Region {
        virt: VirtAddr::new(partly.virt - VirtAddr::new(0x1000)),
        length: 0x2000,
        ..partly
    };
    let failure = map_permanently(&mut tables, &partly, &ram).unwrap_err();
    assert_eq!(
        (failure.error, failure.bytes),
        (TableError::OutOfFrames, 0x1000)
    );
    ram.left.set(9);
    let second = region(3, 1, 1, Access::ReadExecute, Cache::WriteBack);
    map(&mut tables, &second, &ram).unwrap();
    let first = region(4, 0, 1, Access::ReadExecute, Cache::WriteBack);
    assert!(map(&mut tables, &first, &ram).is_err());
    let error = map_permanently(&mut tables, &Region { length: 0, ..text }, &ram).unwrap_err();
    assert!(matches!(
        error.error,
        TableError::Region(PlanError::Empty { .. })
    ));
}

#[test]
fn there_are_so_many_records_and_more_if_reserved() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let page = |number| region(number, 2 * number, 1, Access::ReadWrite, Cache::WriteBack);
    let failed = (1..)
        .find_map(|number| Some((number, map(&mut tables, &page(number), &ram).err()?)))
        .unwrap();
    let (count, failure) = failed;
    // Each took one.
    assert_eq!(count, 257);
    assert_eq!(failure.error, TableError::RecordsFull { records: 256 });
    assert!(failure.to_string().contains("reserve more"));
    // Mappings that need no record go on, and released records are room again.
    let next = region(1, 3, 1, Access::ReadWrite, Cache::WriteBack);
    map(&mut tables, &next, &ram).unwrap();
    vacate(&mut tables, &ram, range(&next));
    let readable = range(&page(1));
    protect(&mut tables, readable, Access::ReadOnly).unwrap();
    vacate(&mut tables, &ram, range(&page(2)));
    map(&mut tables, &page(2), &ram).unwrap();
    let read = region(count + 1, 2 * count, 1, Access::ReadOnly, Cache::WriteBack);
    assert!(map(&mut tables, &read, &ram).is_err());
    tables.reserve(100).unwrap();
    map(&mut tables, &read, &ram).unwrap();
    // Memory in one piece needs one, however it is mapped, and unmapped.
    for number in 0..600 {
        let page = region(500, 1000 + number, 1, Access::ReadWrite, Cache::WriteBack);
        map(&mut tables, &page, &ram).unwrap();
    }
    for number in count + 2..count + 90 {
        map(&mut tables, &page(number), &ram).unwrap();
    }
}

/// A change of rights and a second mapping count in the records that are there.
#[test]
fn what_makes_no_record_needs_no_room_for_one() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let others = fill_records(&mut tables, &ram, 0);
    let pages = others.end - others.start;
    let first = apart(0).virt;
    let all = VirtRange::new(first, pages * FRAME_SIZE).unwrap();
    vacate(&mut tables, &ram, all);
    for number in others {
        let access = Access::ReadOnly;
        map(
            &mut tables,
            &Region {
                access,
                ..apart(number)
            },
            &ram,
        )
        .unwrap();
    }
    protect(&mut tables, all, Access::ReadWrite).unwrap();
    vacate(&mut tables, &ram, all);

    // Memory in one piece, lowest address last, whose every other page is mapped once more.
    let page = |number, page| region(number, page, 1, Access::ReadOnly, Cache::WriteBack);
    for number in 0..pages {
        let page = Region {
            phys: PhysAddr::new(PHYS + (pages - 1 - number) * FRAME_SIZE),
            ..page(0, number)
        };
        map(&mut tables, &page, &ram).unwrap();
    }
    for number in (0..pages).step_by(2) {
        map(&mut tables, &page(1, number), &ram).unwrap();
    }
    // One record for each page: so all of it can be mapped a third time, and protected.
    assert!(map(&mut tables, &page(2, pages + 1), &ram).is_err());
    let again = region(3, 0, pages, Access::ReadOnly, Cache::WriteBack);
    map(&mut tables, &again, &ram).unwrap();
    for number in [0, 3] {
        let region = region(number, 0, pages, Access::ReadOnly, Cache::WriteBack);
        protect(&mut tables, range(&region), Access::ReadWrite).unwrap();
    }
}

/// What is mapped then ends inside of a record.
#[test]
fn a_mapping_that_may_fail_halfway_needs_room_for_its_end() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let text = |number| region(number, 0, 4, Access::ReadExecute, Cache::WriteBack);
    map(&mut tables, &text(0), &ram).unwrap();
    let others = fill_records(&mut tables, &ram, 4);
    // Across the border between two tables, of which the second can't be made.
    let halfway = Region {
        virt: VirtAddr::new(HALF_4 + (1 << 21) - 2 * FRAME_SIZE),
        ..text(0)
    };
    ram.left.set(0);
    let failure = map(&mut tables, &halfway, &ram).unwrap_err();
    let error = TableError::RecordsFull { records: 256 };
    assert_eq!((failure.error, failure.bytes), (error, 0));
    vacate(&mut tables, &ram, range(&apart(others.start)));
    let failure = map(&mut tables, &halfway, &ram).unwrap_err();
    assert_eq!(
        (failure.error, failure.bytes),
        (TableError::OutOfFrames, 2 * FRAME_SIZE)
    );
    ram.left.set(9);
    // Its first half alone is still mapped.
    vacate(&mut tables, &ram, range(&text(0)));
    let data = |first| region(9, first, 2, Access::ReadWrite, Cache::WriteBack);
    assert!(map(&mut tables, &data(0), &ram).is_err());
    map(&mut tables, &data(2), &ram).unwrap();
}

/// A mapping ends only where a page does.
#[test]
fn a_large_page_that_is_a_whole_range_needs_no_room_for_its_end() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let large = |number| Region {
        largest: PageSize::Size2MiB,
        ..region(number, 0, 512, Access::ReadWrite, Cache::WriteBack)
    };
    map(&mut tables, &large(0), &ram).unwrap();
    fill_records(&mut tables, &ram, 512);
    map(&mut tables, &large(1), &ram).unwrap();
    // Small pages do, be it that they are asked for, or that the addresses do not allow a large one.
    let small = region(2, 0, 512, Access::ReadWrite, Cache::WriteBack);
    let aside = Region {
        virt: large(3).virt + FRAME_SIZE,
        ..large(3)
    };
    for region in [small, aside] {
        let error = map(&mut tables, &region, &ram).unwrap_err().error;
        assert_eq!(error, TableError::RecordsFull { records: 256 });
    }
}

/// Returns the pages of a region, unmapped one by one: every other one first, then all between.
fn by_turns(pages: u64) -> impl Iterator<Item = u64> {
    (0..pages).step_by(2).chain((1..pages).step_by(2))
}

/// Maps pages whose memory is apart until there is no record left, and returns their numbers.
fn fill_records(tables: &mut Tables<&Ram>, ram: &Ram, first: u64) -> std::ops::Range<u64> {
    let full = (first..).find_map(|number| Some((number, map(tables, &apart(number), ram).err()?)));
    let (full, failure) = full.unwrap();
    assert!(matches!(failure.error, TableError::RecordsFull { .. }));
    first..full
}

/// Pages of the region that [`with_full_records`] maps.
const CODE_PAGES: u64 = 60;

/// Makes tables that map a region of code, and other pages until there is no record left; returns those, too.
fn with_full_records(ram: &Ram) -> (Tables<&Ram>, Region, std::ops::Range<u64>) {
    let mut tables = new_tables(ram);
    let code = region(0, 0, CODE_PAGES, Access::ReadExecute, Cache::WriteBack);
    map(&mut tables, &code, ram).unwrap();
    let others = fill_records(&mut tables, ram, CODE_PAGES);
    (tables, code, others)
}

/// Returns a page beside the next one's, whose memory is apart from that one's.
fn apart(number: u64) -> Region {
    Region {
        virt: VirtAddr::new(HALF_4 + (2 << 30) + number * FRAME_SIZE),
        ..region(0, 2 * number, 1, Access::ReadWrite, Cache::WriteBack)
    }
}

/// Unmapped in pieces with no record left for each, the memory is free to be mapped otherwise when all
/// of it is unmapped.
#[test]
fn memory_whose_record_can_t_be_cut_counts_until_all_of_it_is_unmapped() {
    let ram = Ram::new(1 << 36);
    let (mut tables, code, others) = with_full_records(&ram);
    let data = region(401, 0, CODE_PAGES, Access::ReadWrite, Cache::WriteBack);
    for number in by_turns(CODE_PAGES) {
        let refused = map(&mut tables, &data, &ram).unwrap_err();
        assert!(matches!(refused.error, TableError::Alias(_)), "{refused}");
        let page = VirtRange::new(code.virt + number * FRAME_SIZE, FRAME_SIZE).unwrap();
        scarce::with_blocks_up_to(0, || vacate(&mut tables, &ram, page));
    }
    map(&mut tables, &data, &ram).unwrap();
    // Nothing else was forgotten by it.
    for number in others {
        let code = Region {
            virt: VirtAddr::new(HALF_4 + (3 << 30)),
            access: Access::ReadExecute,
            ..apart(number)
        };
        assert!(map(&mut tables, &code, &ram).is_err());
        vacate(&mut tables, &ram, range(&apart(number)));
        map(&mut tables, &code, &ram).unwrap();
        vacate(&mut tables, &ram, range(&code));
    }
    vacate(&mut tables, &ram, range(&data));
    map(&mut tables, &code, &ram).unwrap();
}

/// The refusal for memory that is not mapped names the memory that is, and what to do.
#[test]
fn a_refusal_for_a_record_that_can_t_be_cut_names_all_of_it() {
    let ram = Ram::new(1 << 36);
    let (mut tables, code, others) = with_full_records(&ram);
    for number in by_turns(CODE_PAGES).take(CODE_PAGES as usize - 1) {
        let page = VirtRange::new(code.virt + number * FRAME_SIZE, FRAME_SIZE).unwrap();
        vacate(&mut tables, &ram, page);
    }
    // The last page is mapped; there was no room to record that the one before is not.
    let before = region(401, CODE_PAGES - 2, 1, Access::ReadWrite, Cache::WriteBack);
    let error = map(&mut tables, &before, &ram).unwrap_err();
    let TableError::Alias(alias) = error.error else {
        panic!("{error}");
    };
    assert!(alias.is_partly);
    assert_eq!(alias.memory.end(), code.phys + code.length);
    assert!(alias.memory.len() > 2 * FRAME_SIZE, "{}", alias.memory);
    assert!(
        error.to_string().ends_with(
            "for a part of it is mapped as r-x WB (\"region\"): unmap all of that, or reserve more records \
             when the tables are made"
        ),
        "{error}"
    );
    // The others can be mapped as the last page is, and they count until they are unmapped.
    for number in others.take(4) {
        vacate(&mut tables, &ram, range(&apart(number)));
    }
    let read = Region {
        access: Access::ReadExecute,
        ..before
    };
    map(&mut tables, &read, &ram).unwrap();
    let last = VirtRange::new(code.virt + (CODE_PAGES - 1) * FRAME_SIZE, FRAME_SIZE).unwrap();
    vacate(&mut tables, &ram, last);
    let refused = map(
        &mut tables,
        &region(402, CODE_PAGES - 2, 1, Access::ReadWrite, Cache::WriteBack),
        &ram,
    );
    assert!(matches!(refused.unwrap_err().error, TableError::Alias(_)));
    protect(&mut tables, range(&read), Access::ReadOnly).unwrap();
    vacate(&mut tables, &ram, range(&read));
    map(&mut tables, &before, &ram).unwrap();
}

#[test]
fn no_memory_for_records_is_an_error() {
    let ram = Ram::new(1 << 36);
    let error = scarce::with_blocks_up_to(4096, || {
        Tables::new(&ram, Levels::Four, Features::default(), &ram).err()
    });
    assert!(matches!(error, Some(TableError::OutOfMemory { .. })));
    assert!(ram.frames().is_empty());
    let mut tables = new_tables(&ram);
    let error = scarce::with_blocks_up_to(0, || tables.reserve(1 << 20).unwrap_err());
    assert!(error.to_string().contains("to record what is mapped"));
    let text = region(1, 4, 4, Access::ReadExecute, Cache::WriteBack);
    let error =
        scarce::with_blocks_up_to(0, || map_permanently(&mut tables, &text, &ram).unwrap_err());
    assert!(matches!(error.error, TableError::OutOfMemory { .. }));
    assert_eq!(tables.table_count(), 1);
}

/// A source that returns this many frames, and panics instead of returning one more.
struct Failing<'a> {
    ram: &'a Ram,
    left: Cell<usize>,
}

impl FrameSource for Failing<'_> {
    type Owner = Owner;

    fn owner(&self) -> Owner {
        Owner::PageTables
    }

    fn take(&self) -> Option<OwnedFrame> {
        let left = self.left.get();
        assert!(left > 0, "a source may panic");
        self.left.set(left - 1);
        self.ram.take()
    }

    fn give_back(&self, frame: OwnedFrame) {
        self.ram.give_back(frame);
    }
}

/// Maps a page on each side of where the next table begins, with frames for the tables of the first
/// only.
fn map_half(tables: &mut Tables<&Ram>, ram: &Ram, is_permanent: bool) -> Region {
    let half = Region {
        virt: VirtAddr::new(HALF_4 + (2 << 21) - FRAME_SIZE),
        ..region(1, 0, 2, Access::ReadWrite, Cache::WriteBack)
    };
    let frames = Failing {
        ram,
        left: Cell::new(3),
    };
    let mapping = panic::catch_unwind(AssertUnwindSafe(|| {
        if is_permanent {
            map_permanently(tables, &half, &frames)
        } else {
            map(tables, &half, &frames)
        }
    }));
    assert!(mapping.is_err());
    assert!(tables.translate(half.virt).is_some());
    assert!(tables.translate(half.virt + FRAME_SIZE).is_none());
    half
}

#[test]
fn what_is_mapped_is_recorded_even_if_the_source_of_tables_panics() {
    let ram = Ram::new(1 << 36);
    let code = region(3, 0, 1, Access::ReadExecute, Cache::WriteBack);
    for is_permanent in [false, true] {
        let mut tables = new_tables(&ram);
        let half = map_half(&mut tables, &ram, is_permanent);
        let refused = map(&mut tables, &code, &ram).map_err(|failure| failure.error);
        assert!(matches!(refused, Err(TableError::Alias(_))), "{refused:?}");

        let mapped = VirtRange::new(half.virt, FRAME_SIZE).unwrap();
        if is_permanent {
            let error = unmap(&mut tables, mapped).unwrap_err();
            assert_eq!(error, ChangeError::Permanent { range: mapped });
        } else {
            vacate(&mut tables, &ram, mapped);
            map(&mut tables, &code, &ram).unwrap();
        }
    }
}

#[test]
fn tables_are_counted_even_if_who_gets_one_back_panics() {
    struct Refusing<'a>(&'a Ram);

    impl FrameSource for Refusing<'_> {
        type Owner = Owner;

        fn owner(&self) -> Owner {
            Owner::PageTables
        }

        fn take(&self) -> Option<OwnedFrame> {
            self.0.take()
        }

        fn give_back(&self, _: OwnedFrame) {
            panic!("a source may panic");
        }
    }

    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let page = region(1, 0, 1, Access::ReadWrite, Cache::WriteBack);
    map(&mut tables, &page, &ram).unwrap();
    let unmapped = unmap(&mut tables, range(&page)).unwrap().flush(&Alone);
    let completing = panic::catch_unwind(AssertUnwindSafe(|| {
        let _ = tables.complete(unmapped, &Refusing(&ram), &mut |_| ());
    }));
    assert!(completing.is_err());
    // The lowest one is gone from the tables; those above it are withdrawn.
    assert_eq!(tables.table_count(), 3);
}

#[test]
fn pages_that_a_panic_left_behind_stay_withdrawn_and_recorded() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let pages = region(1, 0, 3, Access::ReadWrite, Cache::WriteBack);
    map(&mut tables, &pages, &ram).unwrap();
    let all = range(&pages);
    let unmapped = unmap(&mut tables, all).unwrap().flush(&Alone);
    let second = pages.virt + FRAME_SIZE;
    let completing = panic::catch_unwind(AssertUnwindSafe(|| {
        let _ = tables.complete(unmapped, &ram, &mut |page| assert_ne!(page.virt, second));
    }));
    assert!(completing.is_err());

    // Both that were told are gone, and the third is neither mapped nor available.
    let third = second + FRAME_SIZE;
    let page = |virt| VirtRange::new(virt, FRAME_SIZE).unwrap();
    assert!(tables.is_vacant(page(pages.virt)) && tables.is_vacant(page(second)));
    assert!(!tables.is_vacant(page(third)) && tables.translate(third).is_none());
    let error = unmap(&mut tables, page(third)).unwrap_err();
    assert_eq!(error, ChangeError::Unflushed { virt: third });
    let text = |count| region(5, 0, count, Access::ReadExecute, Cache::WriteBack);
    let refused = map(&mut tables, &text(3), &ram).unwrap_err();
    assert!(matches!(refused.error, TableError::Alias(_)));
    map(&mut tables, &text(2), &ram).unwrap();
}

/// They are released with a delay then, but do not keep large pages out.
#[test]
fn a_large_page_takes_the_place_of_tables_that_a_panic_left_behind() {
    let ram = Ram::new(1 << 36);
    let features = Features {
        gigabyte_pages: true,
    };
    let mut tables = Tables::new(&ram, Levels::Four, features, &ram).unwrap();
    let page = region(0, 0, 1, Access::ReadWrite, Cache::WriteBack);
    let beside = region(0, 1, 1, Access::ReadWrite, Cache::WriteBack);
    for largest in [PageSize::Size2MiB, PageSize::Size1GiB] {
        map(&mut tables, &page, &ram).unwrap();
        let unmapped = unmap(&mut tables, range(&page)).unwrap().flush(&Alone);
        // Not while others are not flushed yet.
        map(&mut tables, &beside, &ram).unwrap();
        let unmapping = unmap(&mut tables, range(&beside)).unwrap();
        let large = Region {
            length: largest.bytes(),
            largest,
            ..page
        };
        let error = map(&mut tables, &large, &ram).unwrap_err().error;
        assert!(matches!(error, TableError::Unflushed { .. }), "{error}");
        tables.complete(unmapped, &ram, &mut |_| ()).unwrap();
        let error = map(&mut tables, &large, &ram).unwrap_err().error;
        let virt = beside.virt;
        assert_eq!(error, TableError::Unflushed { virt });
        let unmapped = unmapping.flush(&Alone);
        let completing = panic::catch_unwind(AssertUnwindSafe(|| {
            let _ = tables.complete(unmapped, &ram, &mut |_| panic!("a callback may panic"));
        }));
        assert!(completing.is_err() && tables.table_count() == 4);

        assert!(tables.is_vacant(range(&large)));
        map(&mut tables, &large, &ram).unwrap();
        let leaf = tables.translate(large.virt).unwrap().leaf;
        assert_eq!(leaf.size, largest);
        assert_eq!(ram.frames().len(), tables.table_count());
        vacate(&mut tables, &ram, range(&large));
        assert_eq!((ram.frames().len(), tables.table_count()), (1, 1));
    }
}

/// Pages that follow each other in memory, and in one record, may be counted otherwise from one to the
/// next: then a change of their rights cuts that into one record for each.
#[test]
fn a_change_of_rights_is_refused_unless_all_that_it_cuts_can_be_recorded() {
    const PAGES: u64 = 24;

    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let read =
        |number, first, count| region(number, first, count, Access::ReadOnly, Cache::WriteBack);
    for page in 0..PAGES {
        map(&mut tables, &read(page % 2, page, 1), &ram).unwrap();
    }
    map_permanently(&mut tables, &read(2, 0, PAGES), &ram).unwrap();
    // These are not counted, as the permanent mapping allows as much; their neighbours are.
    for page in (1..PAGES).step_by(2) {
        map(&mut tables, &read(0, page, 1), &ram).unwrap();
    }
    // Room for all cuts but one.
    let other = |number: u64| read(8, 100 + 2 * number, 1);
    let full = (0..).find(|&number| map(&mut tables, &other(number), &ram).is_err());
    let mut others = 0..full.unwrap();
    for number in others.by_ref().take(PAGES as usize - 2) {
        vacate(&mut tables, &ram, range(&other(number)));
    }
    let all = range(&read(0, 0, PAGES));
    let protected = protect(&mut tables, all, Access::ReadWrite);
    assert!(
        matches!(protected, Err(ChangeError::RecordsFull { .. })),
        "{protected:?}"
    );

    let number = others.next().unwrap();
    vacate(&mut tables, &ram, range(&other(number)));
    protect(&mut tables, all, Access::ReadWrite).unwrap();
    for page in 0..PAGES {
        let code = region(3, page, 1, Access::ReadExecute, Cache::WriteBack);
        assert!(map(&mut tables, &code, &ram).is_err(), "page {page}");
    }
    vacate(&mut tables, &ram, all);
    let code = region(3, 0, PAGES, Access::ReadExecute, Cache::WriteBack);
    map(&mut tables, &code, &ram).unwrap();
}

#[test]
fn memory_mapped_alike_is_one_range_whatever_the_names_of_its_regions() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let page = |first, name| Region {
        name,
        ..region(0, first, 1, Access::ReadWrite, Cache::WriteBack)
    };
    let (stack, buffer) = (page(0, "stack"), page(1, "buffer"));
    map(&mut tables, &stack, &ram).unwrap();
    let others = fill_records(&mut tables, &ram, 50);
    map(&mut tables, &buffer, &ram).unwrap();

    // The range keeps its name.
    vacate(&mut tables, &ram, range(&apart(others.start)));
    vacate(&mut tables, &ram, range(&stack));
    let code = region(1, 1, 1, Access::ReadExecute, Cache::WriteBack);
    let error = map(&mut tables, &code, &ram).unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"region\" can't map 0x40001000..0x40002000 as r-x WB, for it is mapped as rw- WB (\"stack\"): \
         unmap that first, or map this read-only"
    );
}

#[test]
fn a_change_of_rights_leaves_memory_its_name() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    let data = region(1, 0, 4, Access::ReadOnly, Cache::WriteBack);
    map(&mut tables, &data, &ram).unwrap();
    protect(&mut tables, range(&data), Access::ReadWrite).unwrap();
    let code = region(2, 0, 4, Access::ReadExecute, Cache::WriteBack);
    let error = map(&mut tables, &code, &ram).unwrap_err();
    assert!(matches!(error.error, TableError::Alias(alias) if alias.with == data.name));
}

/// Mapped at addresses that go up or down: those below excluded memory and above it are not refused.
#[test]
fn the_refusal_of_a_change_of_rights_names_all_memory_in_one_piece() {
    let ram = Ram::new(1 << 36);
    for memory in [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]] {
        let mut tables = new_tables(&ram);
        let code = region(1, 2, 3, Access::ReadExecute, Cache::WriteBack);
        map(&mut tables, &code, &ram).unwrap();
        for (number, first) in (0..).zip(memory) {
            let page = Region {
                virt: VirtAddr::new(HALF_4 + number * FRAME_SIZE),
                ..region(0, first, 1, Access::ReadOnly, Cache::WriteBack)
            };
            map(&mut tables, &page, &ram).unwrap();
        }
        let pages = VirtRange::new(VirtAddr::new(HALF_4), 5 * FRAME_SIZE).unwrap();
        let error = protect(&mut tables, pages, Access::ReadWrite).unwrap_err();
        let code = PhysRange::new(code.phys, code.length).unwrap();
        assert!(matches!(error, ChangeError::Alias(alias) if alias.memory == code));
    }
}

#[test]
fn a_border_of_several_runs_is_cut_once() {
    let ram = Ram::new(1 << 36);
    let mut tables = new_tables(&ram);
    // Three pages, of which the first and the last map the same; and all memory three times: one range.
    let pages = [2, 6, 2];
    let others = (0..9).flat_map(|page| {
        let times = pages.iter().filter(|&&mapped| mapped == page).count();
        std::iter::repeat_n(page, 3 - times)
    });
    for (number, page) in (0..).zip(pages.into_iter().chain(others)) {
        let page = Region {
            virt: VirtAddr::new(HALF_4 + number * FRAME_SIZE),
            ..region(0, page, 1, Access::ReadOnly, Cache::WriteBack)
        };
        map(&mut tables, &page, &ram).unwrap();
    }
    let filling = fill_records(&mut tables, &ram, 50);
    assert_eq!(filling.end - filling.start, 255);

    // With too little room, nothing is cut.
    let pages = VirtRange::new(VirtAddr::new(HALF_4), 3 * FRAME_SIZE).unwrap();
    for number in filling.clone().take(3) {
        vacate(&mut tables, &ram, range(&apart(number)));
    }
    let error = protect(&mut tables, pages, Access::ReadWrite).unwrap_err();
    assert_eq!(error, ChangeError::RecordsFull { records: 256 });
    for number in filling.clone().take(3) {
        map(&mut tables, &apart(number), &ram).unwrap();
    }
    for number in filling.take(4) {
        vacate(&mut tables, &ram, range(&apart(number)));
    }
    protect(&mut tables, pages, Access::ReadWrite).unwrap();
}
