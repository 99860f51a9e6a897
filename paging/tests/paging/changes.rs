//! Pages that come and go, against a model of the address space by its pages, and before the eyes of
//! CPUs that cache all they can.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use muster_frames::{FRAME_SIZE, PhysAddr};
use muster_paging::{
    Access, Cache, ChangeError, FLUSH_LIMIT, Features, Flush, FlushSet, FrameSource, FreedPage,
    Levels, PageSize, PartlyMapped, PhysicalMemory, Plan, PlanError, Region, Shootdown, TableError,
    TableView, Tables, Target, Unmapped, Unmapping, VirtAddr, VirtRange,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::maps::{HALF_4, HALF_5};
use crate::oracle::oracle;
use crate::ram::Ram;
use crate::tables;
use crate::walker::{Seen, walk};

/// Far above the memory that is mapped.
const TABLES_FROM: u64 = 1 << 36;

const LARGE: u64 = 1 << 21;

/// Pages of the part of the address space that is played with: across a border of every level.
const PAGES: u64 = 4 * LARGE / FRAME_SIZE;
const BASE: u64 = base(Levels::Four);

const fn base(levels: Levels) -> u64 {
    match levels {
        Levels::Four => HALF_4 + (1 << 39) - 2 * LARGE,
        Levels::Five => HALF_5 + (1 << 48) - 2 * LARGE,
    }
}

const FEATURES: Features = Features {
    gigabyte_pages: true,
};

fn range(start: u64, length: u64) -> VirtRange {
    VirtRange::new(VirtAddr::new(start), length).unwrap()
}

/// A CPU that caches whatever it walks by, and forgets only what it is told to. While it sleeps it
/// still walks, ahead of what it will execute, but uses no page.
#[derive(Default)]
struct Cpu {
    is_idle: bool,
    /// Whether a flush was deferred, so that it may keep pages until it wakes, but no tables.
    owes: bool,
    /// First address, size, what the leaf entry says.
    pages: Vec<(u64, u64, u64)>,
    /// First address, level, frame.
    tables: Vec<(u64, u8, u64)>,
}

impl Cpu {
    /// Translates an address, from the lowest table it knows for it or from the root.
    fn touch(&mut self, ram: &Ram, root: u64, levels: Levels, virt: u64, use_caches: bool) {
        let (mut level, mut frame) = (levels.count(), root);
        if use_caches {
            let known = self.tables.iter().filter(|&&(start, level, _)| {
                start == virt >> (12 + 9 * level) << (12 + 9 * level)
            });
            if let Some(&(_, lowest, below)) = known.min_by_key(|&&(_, level, _)| level) {
                (level, frame) = (lowest, below);
            }
        }
        loop {
            let shift = 12 + 9 * (level - 1);
            // Fails if the table was given back.
            let entry = ram.entry(frame, (virt >> shift) as usize % 512);
            if entry & 1 == 0 {
                return;
            }
            if level == 1 || entry & 1 << 7 != 0 {
                self.pages.push((virt >> shift << shift, 1 << shift, entry));
                return;
            }
            frame = entry & 0x000f_ffff_ffff_f000;
            level -= 1;
            self.tables.push((virt >> shift << shift, level, frame));
        }
    }

    /// Returns the pages that it may use by what it has cached.
    fn pages_used(&self) -> &[(u64, u64, u64)] {
        if self.owes { &[] } else { &self.pages }
    }

    fn turn(&mut self) {
        self.is_idle = !self.is_idle;
        if std::mem::take(&mut self.owes) {
            self.tables.clear();
            self.pages.clear();
        }
    }

    fn flush(&mut self, set: &FlushSet) {
        if self.is_idle && !set.has_tables() {
            self.owes = true;
            return;
        }
        self.tables.clear();
        match set.pages() {
            Some(flushed) => self.pages.retain(|&(start, size, _)| {
                !flushed
                    .iter()
                    .any(|virt| (start..start + size).contains(&virt.get()))
            }),
            None => self.pages.clear(),
        }
    }
}

#[derive(Default)]
struct Cpus(RefCell<Vec<Cpu>>);

// SAFETY: all of them flush, and then there is none else.
unsafe impl Shootdown for Cpus {
    fn flush_on_all_cpus(&self, pages: &FlushSet) {
        assert!(!pages.is_empty());
        self.0
            .borrow_mut()
            .iter_mut()
            .for_each(|cpu| cpu.flush(pages));
    }
}

/// Returns the first address of each page of 4 KiB in a range.
fn pages_of(range: VirtRange) -> impl Iterator<Item = u64> {
    (range.start().get()..=range.last().get()).step_by(FRAME_SIZE as usize)
}

/// The state of a page of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Page {
    phys: u64,
    access: Access,
    cache: Cache,
    size: PageSize,
    /// The rights that were allowed since it was mapped.
    was: (bool, bool),
}

/// Returns whether pages with these rights can be written, and executed.
fn allowed(access: Access) -> (bool, bool) {
    (access == Access::ReadWrite, access == Access::ReadExecute)
}

enum Withdrawal {
    Pending(Box<Unmapping>),
    Flushed(Unmapped),
}

struct World<'a> {
    ram: &'a Ram,
    tables: Tables<&'a Ram>,
    base: u64,
    cpus: Cpus,
    model: BTreeMap<u64, Page>,
    /// Withdrawn, and not yet completed: what the model had there.
    withdrawn: Vec<(Withdrawal, BTreeMap<u64, Page>)>,
    /// Of changed rights, not yet run.
    flushes: Vec<(VirtRange, Flush)>,
    /// Pages whose rights have changed, and for which no flush has been run since.
    stale: BTreeSet<u64>,
    next_phys: u64,
}

impl Drop for World<'_> {
    /// Returns a forgotten flush would hide why the test failed.
    fn drop(&mut self) {
        for (state, _) in self.withdrawn.drain(..) {
            if let Withdrawal::Pending(unmapping) = state {
                let _ = unmapping.flush(&Alone);
            }
        }
        for (_, flush) in self.flushes.drain(..) {
            flush.run(&Alone);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Map {
        first: u64,
        count: u64,
        access: Access,
        cache: Cache,
        largest: PageSize,
        /// How many frames there are for tables.
        frames: usize,
    },
    Unmap {
        first: u64,
        count: u64,
    },
    /// Of what is mapped.
    UnmapRun {
        which: Index,
        count: u64,
    },
    Flush(Index),
    Complete(Index),
    Protect {
        first: u64,
        count: u64,
        access: Access,
        /// Whether it is left to another step to flush.
        is_deferred: bool,
    },
    /// Of what is mapped.
    ProtectRun {
        which: Index,
        count: u64,
        access: Access,
        is_deferred: bool,
    },
    /// Of what is mapped and used by a CPU: twice to the same, and only the second flush is run.
    ProtectTwice {
        cpu: Index,
        which: Index,
        count: u64,
        access: Access,
    },
    /// Of changed rights.
    FlushRights(Index),
    Touch {
        cpu: Index,
        page: u64,
        use_caches: bool,
    },
    /// A mapped run.
    TouchRun {
        cpu: Index,
        which: Index,
        count: u64,
    },
    /// Becomes idle, or wakes.
    Turn(Index),
}

fn access() -> impl Strategy<Value = Access> {
    prop::sample::select(&[Access::ReadOnly, Access::ReadWrite, Access::ReadExecute][..])
}

/// Few places, so that the steps meet.
fn place() -> impl Strategy<Value = (u64, u64)> {
    let first = prop_oneof![
        (0..4u64).prop_map(|large| large * LARGE / FRAME_SIZE),
        (0..16u64).prop_map(|n| PAGES / 2 - 8 + n),
        0..PAGES,
    ];
    let count =
        prop_oneof![4 => 1..8u64, 1 => 1..80u64, 2 => Just(512), 1 => Just(1024), 1 => Just(PAGES)];
    (first, count).prop_map(|(first, count)| (first, count.min(PAGES - first)))
}

fn step() -> impl Strategy<Value = Step> {
    let largest = prop::sample::select(&PageSize::ALL[..2]);
    let cache = [Cache::WriteBack, Cache::WriteCombining, Cache::Uncached];
    let cache = prop::sample::select(cache.to_vec());
    let frames = prop_oneof![3 => Just(usize::MAX), 1 => 0..8usize];
    prop_oneof![
        4 => (place(), access(), cache, largest, frames).prop_map(
            |((first, count), access, cache, largest, frames)| Step::Map {
                first,
                count,
                access,
                cache,
                largest,
                frames,
            }
        ),
        2 => place().prop_map(|(first, count)| Step::Unmap { first, count }),
        4 => (any::<Index>(), place())
            .prop_map(|(which, (_, count))| Step::UnmapRun { which, count }),
        2 => any::<Index>().prop_map(Step::Flush),
        3 => any::<Index>().prop_map(Step::Complete),
        1 => (place(), access(), any::<bool>()).prop_map(
            |((first, count), access, is_deferred)| Step::Protect {
                first,
                count,
                access,
                is_deferred,
            }
        ),
        4 => (any::<Index>(), place(), access(), any::<bool>()).prop_map(
            |(which, (_, count), access, is_deferred)| Step::ProtectRun {
                which,
                count,
                access,
                is_deferred,
            }
        ),
        2 => (any::<Index>(), any::<Index>(), 1..40u64, access()).prop_map(
            |(cpu, which, count, access)| Step::ProtectTwice { cpu, which, count, access }
        ),
        1 => any::<Index>().prop_map(Step::FlushRights),
        2 => (any::<Index>(), any::<Index>(), 1..40u64)
            .prop_map(|(cpu, which, count)| Step::TouchRun { cpu, which, count }),
        1 => any::<Index>().prop_map(Step::Turn),
        6 => (any::<Index>(), place(), any::<bool>()).prop_map(|(cpu, (page, _), use_caches)| {
            Step::Touch { cpu, page, use_caches }
        }),
    ]
}

impl<'a> World<'a> {
    fn new(ram: &'a Ram) -> Self {
        Self::with_levels(ram, Levels::Four)
    }

    fn with_levels(ram: &'a Ram, levels: Levels) -> Self {
        let mut tables = Tables::new(ram, levels, FEATURES, ram).unwrap();
        tables.reserve(1000).unwrap();
        Self {
            ram,
            tables,
            base: base(levels),
            cpus: Cpus(RefCell::new(vec![Cpu::default(), Cpu::default()])),
            model: BTreeMap::new(),
            withdrawn: Vec::new(),
            flushes: Vec::new(),
            stale: BTreeSet::new(),
            next_phys: LARGE,
        }
    }

    fn is_withdrawn(&self, virt: u64) -> bool {
        self.withdrawn
            .iter()
            .any(|(_, pages)| pages.contains_key(&virt))
    }

    /// Returns whether a large page lies in the range only in part.
    fn cuts_a_page(&self, range: VirtRange) -> bool {
        [range.start(), range.last()].into_iter().any(|virt| {
            self.model.get(&(virt.get() & !0xfff)).is_some_and(|page| {
                let first = VirtAddr::new(virt.get() & !(page.size.bytes() - 1));
                !range.contains(first) || !range.contains(first + (page.size.bytes() - 1))
            })
        })
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Map {
                first,
                count,
                access,
                cache,
                largest,
                frames,
            } => {
                let region = Region {
                    name: "region",
                    virt: VirtAddr::new(self.base + first * FRAME_SIZE),
                    phys: PhysAddr::new(self.next_phys + first * FRAME_SIZE % LARGE),
                    length: count * FRAME_SIZE,
                    access,
                    cache,
                    largest,
                };
                self.ram.left.set(frames);
                self.map(region)?;
                self.ram.left.set(usize::MAX);
            }
            Step::Unmap { first, count } => {
                let range = range(self.base + first * FRAME_SIZE, count * FRAME_SIZE);
                self.unmap(range)?;
            }
            Step::UnmapRun { which, count } if !self.model.is_empty() => {
                self.unmap(self.run(which, count))?;
            }
            Step::Flush(which) if !self.withdrawn.is_empty() => {
                let place = which.index(self.withdrawn.len());
                let (state, pages) = self.withdrawn.swap_remove(place);
                let state = match state {
                    Withdrawal::Pending(unmapping) => Withdrawal::Flushed(self.flush(*unmapping)),
                    flushed => flushed,
                };
                self.withdrawn.push((state, pages));
            }
            Step::Complete(which) if !self.withdrawn.is_empty() => {
                let place = which.index(self.withdrawn.len());
                let (state, pages) = self.withdrawn.swap_remove(place);
                self.complete(state, pages)?;
            }
            Step::ProtectRun {
                which,
                count,
                access,
                is_deferred,
            } if !self.model.is_empty() => {
                self.protect(self.run(which, count), access, is_deferred)?;
            }
            Step::ProtectTwice {
                cpu,
                which,
                count,
                access,
            } if !self.model.is_empty() => {
                let run = self.run(which, count);
                for page in pages_of(run) {
                    self.touch(cpu, page, true);
                }
                self.protect(run, access, true)?;
                self.protect(run, access, false)?;
            }
            Step::FlushRights(which) if !self.flushes.is_empty() => {
                let place = which.index(self.flushes.len());
                let (range, flush) = self.flushes.swap_remove(place);
                self.run_flush(range, flush);
            }
            Step::TouchRun { cpu, which, count } if !self.model.is_empty() => {
                let run = self.run(which, count);
                for page in pages_of(run) {
                    self.touch(cpu, page, true);
                }
            }
            Step::UnmapRun { .. }
            | Step::Flush(_)
            | Step::Complete(_)
            | Step::ProtectRun { .. }
            | Step::ProtectTwice { .. }
            | Step::FlushRights(_)
            | Step::TouchRun { .. } => {}
            Step::Protect {
                first,
                count,
                access,
                is_deferred,
            } => {
                let range = range(self.base + first * FRAME_SIZE, count * FRAME_SIZE);
                self.protect(range, access, is_deferred)?;
            }
            Step::Touch {
                cpu,
                page,
                use_caches,
            } => self.touch(cpu, self.base + page * FRAME_SIZE, use_caches),
            Step::Turn(cpu) => {
                let mut cpus = self.cpus.0.borrow_mut();
                let place = cpu.index(cpus.len());
                cpus[place].turn();
            }
        }
        self.check()
    }

    /// Returns the mapped range from the beginning of a page on, up to this many pages of 4 KiB.
    fn run(&self, which: Index, count: u64) -> VirtRange {
        let place = which.index(self.model.len());
        let (&virt, page) = self.model.iter().nth(place).unwrap();
        let first = virt & !(page.size.bytes() - 1);
        let mut length = 0;
        while length < count * FRAME_SIZE
            && let Some(page) = self.model.get(&(first + length))
        {
            length += page.size.bytes();
        }
        range(first, length)
    }

    fn touch(&self, cpu: Index, virt: u64, use_caches: bool) {
        let mut cpus = self.cpus.0.borrow_mut();
        let place = cpu.index(cpus.len());
        let (root, levels) = (self.tables.root().start(), self.tables.levels());
        cpus[place].touch(self.ram, root.get(), levels, virt, use_caches);
    }

    /// Returns how many tables a page lacks: of each level, a table is there as long as any page of its
    /// part of the address space is, or was and is not yet completed.
    fn missing_tables(&self, virt: u64, size: PageSize) -> usize {
        let leaf_level = |size| match size {
            PageSize::Size4KiB => 1,
            PageSize::Size2MiB => 2,
            PageSize::Size1GiB => 3,
        };
        let withdrawn = self.withdrawn.iter().map(|(_, pages)| pages);
        (leaf_level(size)..self.tables.levels().count())
            .filter(|&level| {
                let part = (1 << (12 + 9 * level)) - 1;
                !withdrawn.clone().chain([&self.model]).any(|pages| {
                    let mut there = pages.range(virt & !part..=virt | part);
                    there.any(|(_, page)| leaf_level(page.size) <= level)
                })
            })
            .count()
    }

    fn map(&mut self, region: Region) -> Result<(), TestCaseError> {
        let Region {
            access,
            cache,
            largest,
            ..
        } = region;
        let mut frames = self.ram.left.get();
        self.next_phys += region.length.next_multiple_of(LARGE) + LARGE;
        let mapped = tables::map(&mut self.tables, &region, self.ram)
            .map_err(|failure| (failure.error, region.virt.get() + failure.bytes));
        // Pages are mapped up to the first that can't be.
        let (start, end) = (region.virt.get(), region.virt.get() + region.length);
        let mut virt = start;
        while virt < end {
            let phys = region.phys + (virt - start);
            let left = end - virt;
            let fits = |size: PageSize| {
                size <= largest
                    && left >= size.bytes()
                    && (virt | phys.get()).is_multiple_of(size.bytes())
            };
            let size = PageSize::ALL
                .into_iter()
                .rev()
                .find(|&size| fits(size))
                .unwrap();
            let pages = || (virt..virt + size.bytes()).step_by(FRAME_SIZE as usize);
            let in_use = pages().find(|page| self.model.contains_key(page));
            let unflushed = pages().find(|&page| self.is_withdrawn(page));
            let error = match (in_use.map(VirtAddr::new), unflushed.map(VirtAddr::new)) {
                (Some(virt), _) => Some(TableError::AlreadyMapped { virt }),
                (None, Some(virt)) => Some(TableError::Unflushed { virt }),
                (None, None) => None,
            };
            if let Some(error) = error {
                prop_assert_eq!(mapped, Err((error, virt)));
                return Ok(());
            }
            let missing = self.missing_tables(virt, size);
            if missing > frames {
                prop_assert_eq!(mapped, Err((TableError::OutOfFrames, virt)));
                prop_assert_eq!(self.ram.left.get(), frames);
                return Ok(());
            }
            frames -= missing;
            for page in pages() {
                let phys = region.phys + (page - start);
                self.model.insert(
                    page,
                    Page {
                        phys: phys.get(),
                        access,
                        cache,
                        size,
                        was: allowed(access),
                    },
                );
            }
            virt += size.bytes();
        }
        prop_assert_eq!(mapped, Ok(()));
        prop_assert_eq!(self.ram.left.get(), frames);
        Ok(())
    }

    fn unmap(&mut self, range: VirtRange) -> Result<(), TestCaseError> {
        // SAFETY: nobody uses what these tables map.
        let unmapping = unsafe { self.tables.unmap(range) };
        let all = || pages_of(range);
        let is_whole = all().all(|page| self.model.contains_key(&page));
        let unmapping = match unmapping {
            Err(error) => {
                let expected = match error {
                    ChangeError::Unflushed { virt } => {
                        range.contains(virt) && self.is_withdrawn(virt.get() & !0xfff)
                    }
                    ChangeError::NotMapped { virt } => {
                        range.contains(virt) && !self.model.contains_key(&virt.get())
                    }
                    ChangeError::Partly { leaf } => {
                        self.cuts_a_page(range) && self.model.contains_key(&leaf.virt.get())
                    }
                    _ => false,
                };
                prop_assert!(expected, "{}", error);
                return Ok(());
            }
            Ok(unmapping) => unmapping,
        };
        // Not an early return: it would forget the flush.
        let is_right = is_whole
            && !self.cuts_a_page(range)
            && (unmapping.range(), unmapping.pages().is_empty()) == (range, false);
        let pages = all()
            .filter_map(|page| Some((page, self.model.remove(&page)?)))
            .collect();
        self.withdrawn
            .push((Withdrawal::Pending(Box::new(unmapping)), pages));
        prop_assert!(is_right);
        Ok(())
    }

    fn complete(
        &mut self,
        state: Withdrawal,
        pages: BTreeMap<u64, Page>,
    ) -> Result<(), TestCaseError> {
        let unmapped = match state {
            Withdrawal::Pending(unmapping) => self.flush(*unmapping),
            Withdrawal::Flushed(unmapped) => unmapped,
        };
        let mut freed = BTreeMap::new();
        let mut count = 0;
        let (&first, _) = pages.first_key_value().unwrap();
        let whole = range(first, pages.len() as u64 * FRAME_SIZE);
        prop_assert!(!self.tables.is_vacant(whole));
        let before = self.ram.frames();
        self.tables
            .complete(unmapped, self.ram, &mut |page: FreedPage| {
                count += 1;
                for offset in (0..page.size.bytes()).step_by(FRAME_SIZE as usize) {
                    freed.insert(
                        (page.virt + offset).get(),
                        ((page.phys + offset).get(), page.size),
                    );
                }
            })
            .unwrap();
        let expected: BTreeMap<_, _> = pages
            .into_iter()
            .map(|(virt, page)| (virt, (page.phys, page.size)))
            .collect();
        let sizes = |page: &(u64, PageSize)| FRAME_SIZE as f64 / page.1.bytes() as f64;
        prop_assert_eq!(
            count,
            freed.values().map(sizes).sum::<f64>().round() as usize
        );
        prop_assert_eq!(&freed, &expected);
        prop_assert!(self.tables.is_vacant(whole));

        // No CPU can reach what is free now.
        let after = self.ram.frames();
        for cpu in self.cpus.0.borrow().iter() {
            for &(start, size, entry) in cpu.pages_used() {
                let phys = entry & 0x000f_ffff_ffff_f000 & !(size - 1);
                let stale = freed
                    .values()
                    .any(|&(freed, _)| (phys..phys + size).contains(&freed));
                prop_assert!(!stale, "a CPU still has {:#x} at {:#x}", phys, start);
            }
            for (_, level, frame) in &cpu.tables {
                let stale = before.contains(frame) && !after.contains(frame);
                prop_assert!(!stale, "a CPU still has a table of level {}", level);
            }
        }
        Ok(())
    }

    fn flush(&mut self, unmapping: Unmapping) -> Unmapped {
        let range = unmapping.range();
        self.stale
            .retain(|&page| !range.contains(VirtAddr::new(page)));
        unmapping.flush(&self.cpus)
    }

    fn run_flush(&mut self, range: VirtRange, flush: Flush) {
        self.stale
            .retain(|&page| !range.contains(VirtAddr::new(page)));
        flush.run(&self.cpus);
    }

    fn protect(
        &mut self,
        range: VirtRange,
        access: Access,
        is_deferred: bool,
    ) -> Result<(), TestCaseError> {
        // SAFETY: nobody uses what these tables map.
        let flush = unsafe { self.tables.protect(range, access) };
        let all = || pages_of(range);
        let is_whole = all().all(|page| self.model.contains_key(&page)) && !self.cuts_a_page(range);
        let (writable, executable) = allowed(access);
        let excluded = all().any(|page| {
            let was = self.model.get(&page).map(|page| page.was);
            was.is_some_and(|was| was.0 && executable || was.1 && writable)
        });
        let flush = match flush {
            Ok(flush) => flush,
            Err(error) => {
                let is_expected = match error {
                    ChangeError::Alias(_) => is_whole && excluded,
                    _ => !is_whole,
                };
                prop_assert!(is_expected, "{}", error);
                return Ok(());
            }
        };
        if is_deferred {
            self.stale.extend(all());
            self.flushes.push((range, flush));
        } else {
            self.run_flush(range, flush);
        }
        prop_assert!(is_whole && !excluded);
        for page in all() {
            let page = self.model.get_mut(&page).unwrap();
            page.access = access;
            page.was = (page.was.0 || writable, page.was.1 || executable);
        }
        Ok(())
    }

    /// Returns the plan of what is mapped.
    fn plan(&self) -> Plan {
        let mut plan = Plan::new(self.tables.levels(), 52);
        for (&virt, page) in &self.model {
            if virt.is_multiple_of(page.size.bytes()) {
                let region = Region {
                    name: "page",
                    virt: VirtAddr::new(virt),
                    phys: PhysAddr::new(page.phys),
                    length: page.size.bytes(),
                    access: page.access,
                    cache: page.cache,
                    largest: page.size,
                };
                plan.add(region).unwrap();
            }
        }
        plan
    }

    /// Holds the tables and the CPUs against the model.
    fn check(&self) -> Result<(), TestCaseError> {
        let mut expected = Vec::new();
        for (&virt, page) in &self.model {
            if virt.is_multiple_of(page.size.bytes()) {
                expected.push(Seen {
                    virt,
                    phys: page.phys,
                    bytes: page.size.bytes(),
                    access: page.access,
                    cache: page.cache,
                });
            }
        }
        let (root, levels) = (self.tables.root().start(), self.tables.levels());
        prop_assert_eq!(walk(self.ram, root.get(), levels.count()), expected);
        let tables = self.tables.walk(&mut |_| ()).unwrap();
        // A table that no walk reaches is withdrawn, or lost.
        prop_assert_eq!(self.tables.table_count(), self.ram.frames().len());
        prop_assert!(tables <= self.tables.table_count());
        if self.withdrawn.is_empty() {
            prop_assert_eq!(tables, self.tables.table_count());
        }

        for cpu in self.cpus.0.borrow().iter() {
            for &(start, size, entry) in cpu.pages_used() {
                let current = self.tables.translate(VirtAddr::new(start));
                let is_current = current.is_some_and(|current| {
                    let leaf = current.leaf;
                    let writable = entry & 2 != 0;
                    let executable = entry >> 63 == 0;
                    leaf.size.bytes() == size
                        && leaf.phys == PhysAddr::new(entry & 0x000f_ffff_ffff_f000 & !(size - 1))
                        && (leaf.rights.writable, leaf.rights.executable) == (writable, executable)
                });
                let is_pending = self.withdrawn.iter().any(|(state, pages)| {
                    matches!(state, Withdrawal::Pending(_)) && pages.contains_key(&start)
                });
                let is_pending = is_pending || self.stale.contains(&start);
                prop_assert!(is_current || is_pending, "a CPU has {:#x} as it was", start);
            }
        }
        Ok(())
    }
}

fn check_history(levels: Levels, steps: Vec<Step>) -> Result<usize, TestCaseError> {
    let count = steps.len();
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::with_levels(&ram, levels);
    for step in steps {
        world.take(step)?;
    }
    // While unmappings are under way.
    let tables = world.tables.walk(&mut |_| ()).unwrap();
    let verified = world.tables.verify(&world.plan());
    prop_assert_eq!(verified.map(|census| census.tables), Ok(tables));
    while let Some((state, pages)) = world.withdrawn.pop() {
        world.complete(state, pages)?;
    }
    while let Some((range, flush)) = world.flushes.pop() {
        world.run_flush(range, flush);
    }
    world.check()?;

    while let Some((&virt, page)) = world.model.first_key_value() {
        world.unmap(range(virt, page.size.bytes()))?;
        let (state, pages) = world.withdrawn.pop().unwrap();
        world.complete(state, pages)?;
    }
    world.check()?;
    let all = range(world.base, PAGES * FRAME_SIZE);
    prop_assert!(world.tables.is_vacant(all));
    prop_assert_eq!(world.ram.frames(), [world.tables.root().start().get()]);
    Ok(count)
}

#[test]
fn pages_come_and_go_as_in_the_model() {
    let levels = prop::sample::select(&[Levels::Four, Levels::Five][..]);
    let steps = prop::collection::vec(step(), 1..60);
    oracle(
        "pages that come and go",
        96,
        (levels, steps),
        |(levels, steps)| check_history(levels, steps),
    );
}

/// Nobody else has cached anything.
pub struct Alone;

// SAFETY: no CPU uses the tables.
unsafe impl Shootdown for Alone {
    fn flush_on_all_cpus(&self, _: &FlushSet) {}
}

fn map(tables: &mut Tables<&Ram>, ram: &Ram, virt: u64, length: u64, largest: PageSize) {
    let region = Region {
        name: "region",
        virt: VirtAddr::new(virt),
        phys: PhysAddr::new(0x4000_0000),
        length,
        access: Access::ReadWrite,
        cache: Cache::WriteBack,
        largest,
    };
    tables::map(tables, &region, ram).unwrap();
}

#[test]
fn what_is_unmapped_stays_out_of_reach_until_it_is_flushed() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    map(tables, &ram, BASE, 0x3000, PageSize::Size4KiB);
    assert_eq!(ram.frames().len(), 4);
    let all = range(BASE, 0x3000);
    // SAFETY: nobody uses what these tables map.
    let unmapping = unsafe { tables.unmap(all) }.unwrap();
    assert_eq!(unmapping.range(), all);
    assert_eq!(
        unmapping.pages().pages().unwrap(),
        [BASE, BASE + 0x1000, BASE + 0x2000].map(VirtAddr::new)
    );
    assert_eq!(tables.translate(VirtAddr::new(BASE)), None);
    let last = tables.path(VirtAddr::new(BASE)).last().unwrap();
    assert_eq!(last.target, Target::Withdrawn);
    assert!(last.to_string().ends_with("once all CPUs have flushed it"));

    let again = tables::map_page(tables, BASE + 0x1000, 9, Access::ReadOnly, &ram);
    assert_eq!(
        again,
        Err(TableError::Unflushed {
            virt: VirtAddr::new(BASE + 0x1000)
        })
    );
    assert!(again.unwrap_err().to_string().contains("not yet flushed"));
    // SAFETY: as above.
    let twice = unsafe { tables.unmap(range(BASE + 0x2000, 0x1000)) }.unwrap_err();
    assert_eq!(
        twice,
        ChangeError::Unflushed {
            virt: VirtAddr::new(BASE + 0x2000)
        }
    );
    assert!(twice.to_string().contains("not yet flushed"));
    // Nobody else has taken the frames in between.
    assert_eq!((tables.table_count(), ram.frames().len()), (4, 4));

    assert!(unmapping.pages().has_tables());

    // A page beside them brings the tables back, for as long as it is there.
    map(tables, &ram, BASE + 0x7000, 0x1000, PageSize::Size4KiB);
    assert_eq!(ram.frames().len(), 4);
    assert_eq!(
        tables.translate(VirtAddr::new(BASE + 0x7000)).unwrap().phys,
        PhysAddr::new(0x4000_0000)
    );

    let mut freed = Vec::new();
    tables
        .complete(unmapping.flush(&Alone), &ram, &mut |page| freed.push(page))
        .unwrap();
    assert!(tables.is_vacant(all));
    assert_eq!(freed.len(), 3);
    let first = FreedPage {
        virt: VirtAddr::new(BASE),
        phys: PhysAddr::new(0x4000_0000),
        size: PageSize::Size4KiB,
    };
    assert_eq!(freed[0], first);
    assert_eq!(ram.frames().len(), 4);
    // SAFETY: as above.
    let unmapping = unsafe { tables.unmap(range(BASE + 0x7000, 0x1000)) }.unwrap();
    tables
        .complete(unmapping.flush(&Alone), &ram, &mut |_| ())
        .unwrap();
    assert_eq!(ram.frames(), [tables.root().start().get()]);
}

#[test]
fn only_the_last_page_of_a_table_takes_it_along() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    map(tables, &ram, BASE, 0x2000, PageSize::Size4KiB);
    for (page, has_tables) in [(BASE + 0x1000, false), (BASE, true)] {
        // SAFETY: nobody uses what these tables map.
        let unmapping = unsafe { tables.unmap(range(page, 0x1000)) }.unwrap();
        assert_eq!(unmapping.pages().has_tables(), has_tables);
        tables
            .complete(unmapping.flush(&Alone), &ram, &mut |_| ())
            .unwrap();
    }
    map(tables, &ram, BASE, 0x1000, PageSize::Size4KiB);
    // SAFETY: as above.
    let flush = unsafe { tables.protect(range(BASE, 0x1000), Access::ReadOnly) }.unwrap();
    assert!(!flush.pages().has_tables());
    flush.run(&Alone);
}

/// Nobody else has to run an earlier flush first: its CPU may not have come to that yet, or never will.
#[test]
fn all_cpus_have_the_rights_when_a_change_to_the_same_is_flushed() {
    for (before, after) in [
        (Access::ReadOnly, Access::ReadWrite),
        (Access::ReadWrite, Access::ReadOnly),
    ] {
        for panics in [false, true] {
            let ram = Ram::new(TABLES_FROM);
            let mut world = World::new(&ram);
            let page = range(BASE, 0x1000);
            let region = Region {
                name: "page",
                virt: page.start(),
                phys: PhysAddr::new(LARGE),
                length: page.len(),
                access: before,
                cache: Cache::WriteBack,
                largest: PageSize::Size4KiB,
            };
            world.map(region).unwrap();
            let root = world.tables.root().start().get();
            world.cpus.0.borrow_mut()[0].touch(&ram, root, Levels::Four, BASE, true);
            world.protect(page, after, true).unwrap();
            if panics {
                let (_, flush) = world.flushes.pop().unwrap();
                catch_unwind(AssertUnwindSafe(|| flush.run(&Nobody))).unwrap_err();
            }
            world.protect(page, after, false).unwrap();
            world.check().unwrap();
        }
    }
}

#[test]
fn many_pages_are_flushed_as_one() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    for (count, is_everything) in [(FLUSH_LIMIT, false), (FLUSH_LIMIT + 1, true)] {
        let length = count as u64 * FRAME_SIZE;
        map(tables, &ram, BASE, length, PageSize::Size4KiB);
        // SAFETY: nobody uses what these tables map.
        let unmapping = unsafe { tables.unmap(range(BASE, length)) }.unwrap();
        assert_eq!(unmapping.pages().pages().is_none(), is_everything);
        assert!(format!("{:?}", unmapping.pages()).starts_with("FlushSet("));
        tables
            .complete(unmapping.flush(&Alone), &ram, &mut |_| ())
            .unwrap();
    }
    // However large it is, a page is one.
    let length = FLUSH_LIMIT as u64 * LARGE;
    let start = HALF_4 + (1 << 30);
    map(tables, &ram, start, length, PageSize::Size2MiB);
    // SAFETY: as above.
    let unmapping = unsafe { tables.unmap(range(start, length)) }.unwrap();
    assert_eq!(unmapping.pages().pages().unwrap().len(), FLUSH_LIMIT);
    tables
        .complete(unmapping.flush(&Alone), &ram, &mut |_| ())
        .unwrap();
}

#[test]
fn a_large_page_changes_as_a_whole() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    let gib = 1 << 30;
    let start = HALF_4 + gib;
    map(tables, &ram, start, gib, PageSize::Size1GiB);
    let leaf = tables.translate(VirtAddr::new(start)).unwrap().leaf;
    for (offset, length) in [(0, gib / 2), (gib / 2, gib), (0x5000, 0x1000)] {
        let part = range(start + offset, length);
        // SAFETY: nobody uses what these tables map.
        let error = unsafe { tables.unmap(part) }.unwrap_err();
        assert_eq!(error, ChangeError::Partly { leaf });
        assert!(error.to_string().contains("map it with smaller pages"));
        // SAFETY: as above.
        let error = unsafe { tables.protect(part, Access::ReadOnly) }.unwrap_err();
        assert_eq!(error, ChangeError::Partly { leaf });
    }
    // SAFETY: as above.
    let flush = unsafe { tables.protect(range(start, gib), Access::ReadOnly) }.unwrap();
    assert_eq!(flush.pages().pages().unwrap(), [VirtAddr::new(start)]);
    flush.run(&Alone);
    assert_eq!(
        tables
            .translate(VirtAddr::new(start))
            .unwrap()
            .leaf
            .access(),
        Some(Access::ReadOnly)
    );
    // No entry says "dirty, and not writable".
    let level_3 = *ram.frames().last().unwrap();
    assert_eq!(ram.entry(level_3, 1) & 0x42, 0);
    // SAFETY: as above.
    let again = unsafe { tables.protect(range(start, gib), Access::ReadOnly) }.unwrap();
    assert_eq!(again.pages().pages().unwrap(), [VirtAddr::new(start)]);
    again.run(&Alone);
    // SAFETY: as above.
    let hole = unsafe { tables.protect(range(start, gib + 0x1000), Access::ReadOnly) };
    let hole = hole.unwrap_err();
    assert_eq!(
        hole,
        ChangeError::NotMapped {
            virt: VirtAddr::new(start + gib)
        }
    );
    assert_eq!(hole.to_string(), "0xffff800080000000 is not mapped");
}

/// Not to be called.
struct Nobody;

// SAFETY: it never returns.
unsafe impl Shootdown for Nobody {
    fn flush_on_all_cpus(&self, pages: &FlushSet) {
        panic!("nobody is to flush {pages:?}");
    }
}

#[test]
#[should_panic(expected = "nobody is to flush")]
fn a_shootdown_that_panics_is_no_flush_that_was_forgotten() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    map(&mut world.tables, &ram, BASE, 0x1000, PageSize::Size4KiB);
    // SAFETY: nobody uses what these tables map.
    let unmapping = unsafe { world.tables.unmap(range(BASE, 0x1000)) }.unwrap();
    drop(unmapping.flush(&Nobody));
}

#[test]
fn what_cannot_change_is_told() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    for (start, length) in [
        (0x7fff_ffff_f000, 0x2000),
        (0x7fff_ffff_f000, HALF_4 - 0x7fff_ffff_e000),
    ] {
        let range = range(start, length);
        // SAFETY: nobody uses what these tables map.
        let error = unsafe { tables.unmap(range) }.unwrap_err();
        assert_eq!(error, ChangeError::NotCanonical { range });
        assert!(error.to_string().contains("beyond the addresses"));
    }
    // The last page there is.
    let last = range(!0xfff, 0x1000);
    map(tables, &ram, last.start().get(), 0x1000, PageSize::Size4KiB);
    // SAFETY: as above.
    let unmapping = unsafe { tables.unmap(last) }.unwrap();
    tables
        .complete(unmapping.flush(&Alone), &ram, &mut |_| ())
        .unwrap();
    assert_eq!(ram.frames().len(), 1);

    let root = tables.root().start();
    ram.set_entry(root.get(), 256, (77 * FRAME_SIZE) | 3);
    assert!(ram.pointer(PhysAddr::new(77 * FRAME_SIZE)).is_none());
    // SAFETY: as above.
    let error = unsafe { tables.unmap(range(HALF_4, 0x1000)) }.unwrap_err();
    assert_eq!(
        error,
        ChangeError::Malformed {
            virt: VirtAddr::new(HALF_4)
        }
    );
    assert!(error.to_string().ends_with("0xffff800000000000 are broken"));
    assert!(!tables.is_vacant(range(HALF_4, 0x1000)));
    ram.set_entry(root.get(), 256, 0);
}

#[test]
fn a_region_mapped_in_part_goes_without_a_trace() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    let region = Region {
        name: "region",
        virt: VirtAddr::new(BASE),
        phys: PhysAddr::new(0x4000_0000),
        length: 4 * LARGE,
        access: Access::ReadWrite,
        cache: Cache::WriteBack,
        largest: PageSize::Size4KiB,
    };
    // Three for the first page, one for the next 2 MiB, and three beyond the border.
    ram.left.set(6);
    let failure = PartlyMapped {
        error: TableError::OutOfFrames,
        bytes: 2 * LARGE,
    };
    assert_eq!(tables::map(tables, &region, &ram), Err(failure));
    assert!(failure.to_string().contains("no frame is left"));
    assert_eq!((ram.left.get(), ram.frames().len()), (2, 5));
    // SAFETY: nobody uses what these tables map.
    let unmapping = unsafe { tables.unmap(range(region.virt.get(), failure.bytes)) }.unwrap();
    tables
        .complete(unmapping.flush(&Alone), &ram, &mut |_| ())
        .unwrap();
    assert_eq!((ram.left.get(), ram.frames().len()), (6, 1));
}

#[test]
#[should_panic(expected = "a flush was forgotten")]
#[cfg(debug_assertions)]
fn a_forgotten_flush_is_loud() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    map(&mut world.tables, &ram, BASE, 0x1000, PageSize::Size4KiB);
    // SAFETY: nobody uses what these tables map.
    let flush: Flush =
        unsafe { world.tables.protect(range(BASE, 0x1000), Access::ReadOnly) }.unwrap();
    drop(flush);
}

/// The tables look the same: their roots have one number, each in memory of its own.
#[test]
fn pages_come_back_to_the_tables_they_were_in() {
    let (ram, other_ram) = (Ram::new(TABLES_FROM), Ram::new(TABLES_FROM));
    let (mut one, mut other) = (World::new(&ram), World::new(&other_ram));
    let pages = range(BASE, 0x1000);
    map(&mut one.tables, &ram, BASE, 0x1000, PageSize::Size4KiB);
    map(
        &mut other.tables,
        &other_ram,
        BASE,
        0x1000,
        PageSize::Size4KiB,
    );
    // SAFETY: nobody uses what these tables map.
    let unmappings = unsafe { (one.tables.unmap(pages), other.tables.unmap(pages)) };
    let (unmapping, unflushed) = (unmappings.0.unwrap(), unmappings.1.unwrap());
    let unmapped = other
        .tables
        .complete(unmapping.flush(&Alone), &other_ram, &mut |_| ())
        .unwrap_err();
    assert!(!other.tables.is_vacant(pages) && !one.tables.is_vacant(pages));
    one.tables.complete(unmapped, &ram, &mut |_| ()).unwrap();
    assert!(!other.tables.is_vacant(pages) && one.tables.is_vacant(pages));
    let unmapped = unflushed.flush(&Alone);
    other
        .tables
        .complete(unmapped, &other_ram, &mut |_| ())
        .unwrap();
}

/// Memory that records which tables are read.
struct Recorder<'a> {
    ram: &'a Ram,
    reached: RefCell<Vec<u64>>,
}

// SAFETY: as `Ram`.
unsafe impl PhysicalMemory for &Recorder<'_> {
    fn pointer(&self, phys: PhysAddr) -> Option<NonNull<u8>> {
        self.reached.borrow_mut().push(phys.get());
        self.ram.pointer(phys)
    }
}

/// A withdrawn table may be given back during the walk: no CPU reaches it that would have to flush.
#[test]
fn a_view_follows_no_withdrawn_entry() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    let pages = [BASE, BASE + 0x1000].map(|page| range(page, 0x1000));
    let recorder = Recorder {
        ram: &ram,
        reached: RefCell::default(),
    };
    // SAFETY: tables of four levels, none of which is given back during a walk.
    let view =
        unsafe { TableView::new(&recorder, Levels::Four, Features::default(), tables.root()) };
    let is_vacant = |page| {
        let is_vacant = view.is_vacant(page);
        (is_vacant, recorder.reached.take().len())
    };
    map(tables, &ram, BASE, 0x2000, PageSize::Size4KiB);
    assert_eq!(pages.map(is_vacant), [(false, 4); 2]);

    let unmappings = pages.map(|page| {
        // SAFETY: nobody uses what these tables map.
        let unmapping = unsafe { tables.unmap(page) }.unwrap();
        let seen = (is_vacant(page), tables.is_vacant(page));
        (seen, unmapping.flush(&Alone))
    });
    let seen = unmappings.map(|(seen, unmapped)| {
        tables.complete(unmapped, &ram, &mut |_| ()).unwrap();
        seen
    });
    // The last page has taken the tables along, all but the root.
    assert_eq!(seen, [((true, 4), false), ((true, 1), false)]);
    assert!(pages.into_iter().all(|page| tables.is_vacant(page)));
}

#[test]
fn bits_of_an_absent_entry_say_nothing_in_tables_of_others() {
    let ram = Ram::new(TABLES_FROM);
    let world = World::new(&ram);
    let root = world.tables.root();
    // Memory that is no table.
    let data = ram.take().unwrap().into_raw();
    let entry = data.start().get() | 1 << 9;
    ram.set_entry(root.start().get(), 256, entry);
    let recorder = Recorder {
        ram: &ram,
        reached: RefCell::default(),
    };
    // SAFETY: tables of four levels, which nobody changes, and in which nothing is present.
    let view = unsafe { TableView::new(&recorder, Levels::Four, Features::default(), root) };
    let is_vacant = view.is_vacant(range(HALF_4, 0x1000));
    assert_eq!(recorder.reached.take(), [root.start().get()]);
    assert!(is_vacant);
}

/// Returns the first address that does not exist, and the first one behind those that do not.
fn hole(levels: Levels) -> (u64, u64) {
    let half = levels.bits() - 1;
    (1 << half, u64::MAX << half)
}

/// Their entries would be those of addresses that exist.
#[test]
fn addresses_that_do_not_exist_are_vacant() {
    for levels in [Levels::Four, Levels::Five] {
        let ram = Ram::new(TABLES_FROM);
        let mut world = World::with_levels(&ram, levels);
        let tables = &mut world.tables;
        let (lower, upper) = hole(levels);
        let is_vacant = |tables: &Tables<&Ram>, (start, last): (u64, u64)| {
            let range = range(start, last - start + 1);
            assert_eq!((**tables).is_vacant(range), tables.is_vacant(range));
            tables.is_vacant(range)
        };
        // The last page of the lower half, and the first of the upper one.
        map(tables, &ram, lower - 0x1000, 0x1000, PageSize::Size4KiB);
        map(tables, &ram, upper, 0x1000, PageSize::Size4KiB);
        for vacant in [
            (lower, lower + 0xfff),
            (lower, upper - 1),
            (upper - 0x1000, upper - 1),
            (lower << 2, (lower << 2) + 0xfff),
            (0, lower - 0x1001),
            (upper + 0x1000, u64::MAX),
        ] {
            assert!(is_vacant(tables, vacant), "{levels:?}: {vacant:#x?}");
        }
        for used in [
            (lower - 0x1000, lower + 0xfff),
            (lower - 0x1000, upper - 1),
            (upper - 0x1000, upper + 0xfff),
            (lower, upper + 0xfff),
            (lower - 0x1000, upper + 0xfff),
            (0, u64::MAX - 0x1000),
        ] {
            assert!(!is_vacant(tables, used), "{levels:?}: {used:#x?}");
        }
    }
}

/// Their tables may go back, and nobody would tell the second root.
#[test]
fn a_second_root_has_nothing_of_pages_that_are_being_unmapped() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    let page = range(BASE, 0x1000);
    map(tables, &ram, BASE, 0x1000, PageSize::Size4KiB);
    // SAFETY: nobody uses what these tables map.
    let unmapping = unsafe { tables.unmap(page) }.unwrap();
    let window = range(HALF_4 + (1 << 40), 1 << 39);
    let second = tables.root_without(window, &ram).unwrap();
    let completed = tables.complete(unmapping.flush(&Alone), &ram, &mut |_| ());
    completed.unwrap();
    // SAFETY: tables of four levels, which nobody changes.
    let view = unsafe { TableView::new(&ram, Levels::Four, Features::default(), second.root) };
    assert!(view.is_vacant(page));
}

#[test]
fn what_a_second_root_shares_stays() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    let window = range(HALF_4 + (1 << 40), 1 << 39);
    let outside = [
        range(BASE, 0x1000),
        range((window.last() + 1).get(), 0x1000),
    ];
    let inside = range(window.last() - VirtAddr::new(0xfff), 0x1000);
    for page in outside.into_iter().chain([inside]) {
        map(tables, &ram, page.start().get(), 0x1000, PageSize::Size4KiB);
    }
    let second = tables.root_without(window, &ram).unwrap();
    let shared = walk(&ram, second.root.start().get(), Levels::Four.count());
    assert_eq!(shared.len(), 2);
    let border = range(inside.start().get(), 0x2000);
    for page in outside.into_iter().chain([border]) {
        // SAFETY: nobody uses what these tables map.
        let unmapped = unsafe { tables.unmap(page) }.map(|unmapping| unmapping.range());
        assert_eq!(unmapped, Err(ChangeError::Shared { window }));
        // SAFETY: as above.
        let changed = unsafe { tables.protect(page, Access::ReadOnly) }.map(|_| ());
        assert_eq!(changed, Err(ChangeError::Shared { window }));
    }
    let refused = ChangeError::Shared { window }.to_string();
    assert!(refused.contains("0xffff810000000000..=0xffff817fffffffff"));
    // SAFETY: as above.
    let unmapping = unsafe { tables.unmap(inside) }.unwrap();
    let completed = tables.complete(unmapping.flush(&Alone), &ram, &mut |_| ());
    completed.unwrap();
    // No table that it has was given back.
    assert_eq!(
        walk(&ram, second.root.start().get(), Levels::Four.count()),
        shared
    );
}

#[test]
fn only_the_windows_of_all_second_roots_can_change() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let tables = &mut world.tables;
    let windows = [(1_u64 << 40, 3_u64), (2 << 40, 2), (1 << 40, 1)];
    let windows = windows.map(|(at, length)| range(HALF_4 + at, length << 40));
    let page = range(HALF_4 + (2 << 40), 0x1000);
    map(tables, &ram, page.start().get(), 0x1000, PageSize::Size4KiB);
    let changed = windows.map(|window| {
        let before = ram.frames().len();
        let second = tables.root_without(window, &ram).unwrap();
        assert_eq!(ram.frames().len() - before, second.tables);
        // SAFETY: nobody uses what these tables map.
        unsafe { tables.protect(page, Access::ReadOnly) }.map(|flush| flush.run(&Alone))
    });
    // The last two are disjoint.
    let window = windows[2];
    assert_eq!(
        changed,
        [Ok(()), Ok(()), Err(ChangeError::Shared { window })]
    );
}

/// Nothing in them can ever change, and so nothing at all could.
#[test]
fn a_second_root_lacks_no_window_of_addresses_that_do_not_exist() {
    for levels in [Levels::Four, Levels::Five] {
        let ram = Ram::new(TABLES_FROM);
        let mut world = World::with_levels(&ram, levels);
        let tables = &mut world.tables;
        let (lower, upper) = hole(levels);
        map(tables, &ram, upper, 0x1000, PageSize::Size4KiB);
        let before = ram.frames();
        for (start, end) in [
            (lower, lower + LARGE),
            (lower - LARGE, lower + 0x1000),
            (upper - 0x1000, upper + LARGE),
            (lower - 0x1000, upper + 0x1000),
        ] {
            let window = range(start, end - start);
            let refused = TableError::Region(PlanError::NotCanonical {
                name: "window",
                virt: window.start(),
                length: window.len(),
                bits: levels.bits(),
            });
            assert_eq!(tables.root_without(window, &ram), Err(refused));
        }
        assert_eq!(ram.frames(), before);
        // SAFETY: nobody uses what these tables map.
        let unmapping = unsafe { tables.unmap(range(upper, 0x1000)) }.unwrap();
        let unmapped = unmapping.flush(&Alone);
        tables.complete(unmapped, &ram, &mut |_| ()).unwrap();
    }
}

/// Tables that are withdrawn are of no page that is mapped: only those that are not have to be there.
#[test]
fn tables_are_right_while_an_unmapping_is_under_way() {
    let ram = Ram::new(TABLES_FROM);
    let mut world = World::new(&ram);
    let counts = |world: &World| {
        let verified = world.tables.verify(&world.plan());
        (verified.map(|all| all.tables), world.tables.table_count())
    };
    assert_eq!(counts(&world), (Ok(1), 1));
    map(&mut world.tables, &ram, BASE, 0x2000, PageSize::Size4KiB);
    // SAFETY: nobody uses what these tables map.
    let first = unsafe { world.tables.unmap(range(BASE, 0x2000)) }.unwrap();
    let after_first = counts(&world);
    // A page beside it brings the tables back.
    let page = BASE + 0x2000;
    tables::map_page(&mut world.tables, page, 9, Access::ReadOnly, &ram).unwrap();
    // SAFETY: as above.
    let second = unsafe { world.tables.unmap(range(page, 0x1000)) }.unwrap();
    let after_second = counts(&world);
    for unmapping in [first, second] {
        let unmapped = unmapping.flush(&Alone);
        let completed = world.tables.complete(unmapped, &ram, &mut |_| ());
        assert!(completed.is_ok());
    }
    // Only now, as a forgotten flush would hide why it failed.
    assert_eq!([after_first, after_second], [(Ok(1), 4); 2]);
    assert_eq!(counts(&world), (Ok(1), 1));
}
