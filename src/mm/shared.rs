//! The shared memory state: one set of page tables, one frame allocator, one
//! heap. The BSP builds it, loads it, checks it and publishes it once; after that
//! every CPU only reads it, and what still changes lies behind locks.
//!
//! The heap's growth takes the lock of [`Growing`] ([`Level::Tables`]), and so does
//! whoever holds the one on a mapping's addresses ([`super::mapping`]): nobody who holds
//! it may allocate, nor wait for another CPU. Frames need no lock.

use alloc::vec::Vec;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};

use conquer_once::spin::OnceCell;
use muster_events::{Mapped, Moment};
use muster_machine::mtrr::{MemoryType, Mtrrs};
use muster_memory::{
    Access, AdoptError, AssignError, Cache, Census, FRAME_SIZE, Frame, FrameAllocator, FrameCache,
    FrameInfo, FrameRun, FramesError, Levels, MapError, Mismatch, NotFreed, OwnedFrame, OwnedRun,
    Owner, PageSize, PartialRoot, PhysRange, PhysicalMap, PhysicalMemory, Plan, PlanError, Region,
    Share, Step, TableError, TableView, Tables, Totals,
};
use nodit::interval::ie;
use nodit::{Interval, NoditSet};

use super::{famine, frames, heap, mapping};
use crate::arch::apic;
use crate::arch::control::{self, Features};
use crate::boot::bytes::Bytes;
use crate::boot::limine::Boot;
use crate::boot::stack::{self, Slot};
use crate::boot::window::{self, HEAP, MAPPINGS};
use crate::boot::{addresses, image};
use crate::report::events;
use crate::smp::cpu::{self, Block};
use crate::smp::identity;
use crate::smp::lock::{Level, Lock};

/// By how much the heap grows at least, in bytes: one large page.
const HEAP_STEP: u64 = 2 * 1024 * 1024;

/// The first megabyte, where BIOS leaves its tables, and firmware and SMM write whatever the memory
/// map says.
const LEGACY_END: u64 = 1024 * 1024;

/// Free memory that bring-up needs once the tables stand, in bytes, and for each CPU: what the heap
/// takes from there to the stress, what calls and mappings take to be measured, and what CPUs keep
/// at hand meanwhile. With half of it there are machines on which that fails.
const LEAST: u64 = 192 * 1024;
const LEAST_PER_CPU: u64 = 32 * 1024;

/// Frames in a large page.
const LARGE: usize = (HEAP_STEP / FRAME_SIZE) as usize;

/// Levels of tables, at most.
const MOST_LEVELS: usize = Levels::Five.count() as usize;

/// The way of an address through the tables.
pub type Path = heapless::Vec<Step, MOST_LEVELS>;

static SHARED: OnceCell<Shared> = OnceCell::uninit();

/// Everything the CPUs share of memory.
pub struct Shared {
    hhdm: Hhdm,
    features: Features,
    plan: Plan,
    root: Frame,
    /// What an AP runs on until it has joined, where there is one.
    bring_up: Option<PartialRoot>,
    map: PhysicalMap,
    frames: FrameAllocator,
    growing: Lock<Growing>,
}

/// The tables, and what of the heap's window is in them.
struct Growing {
    tables: Tables<Hhdm>,
    /// The heap window is mapped up to here,
    heap_mapped: u64,
    /// and given to the heap up to here.
    heap_given: u64,
}

/// The higher-half direct map: which physical memory it shows, and where.
#[derive(Debug, Clone, Copy)]
pub struct Hhdm {
    offset: u64,
    /// Sorted, apart from one another.
    ranges: &'static [PhysRange],
}

// SAFETY: the ranges are memory that the loader's tables and the kernel's map
// writable at this offset for good.
unsafe impl PhysicalMemory for Hhdm {
    fn pointer(&self, phys: u64) -> Option<NonNull<u8>> {
        let after = self.ranges.partition_point(|range| range.start() <= phys);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        if !range.contains(phys) {
            return None;
        }
        NonNull::new(ptr::with_exposed_provenance_mut(
            (self.offset + phys) as usize,
        ))
    }
}

/// Why the shared memory state can't be built.
#[derive(Debug)]
pub enum BuildError {
    /// The CPU can't mark pages as not executable.
    NoExecuteMissing,
    /// The loader's memory map contradicts itself.
    Map(MapError),
    /// The image lies in memory that the memory map calls something else.
    Image(AssignError),
    /// The MTRRs give a part of the image this type.
    ImageNotWriteBack(PhysRange, MemoryType),
    /// The loader's HHDM, at this address, does not lie below the kernel's windows.
    HhdmInTheWay(u64),
    /// The mapping plan contradicts itself.
    Plan(PlanError),
    /// The frame allocator can't be set up.
    Frames(FramesError),
    /// The tables can't be built.
    Tables(TableError),
    /// The finished tables are not as planned.
    Mismatch(Mismatch),
    /// There is not enough memory, and for what.
    OutOfMemory(&'static str),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoExecuteMissing => {
                write!(
                    f,
                    "this CPU has no NX bit, without which Muster does not map memory"
                )
            }
            Self::Map(error) => write!(f, "the loader's memory map is wrong: {error}"),
            Self::Image(error) => {
                write!(
                    f,
                    "the loader's memory map does not show the kernel image: {error}"
                )
            }
            Self::ImageNotWriteBack(range, kind) => {
                write!(
                    f,
                    "the kernel image lies in memory that the MTRRs make {kind} rather than WB, {range}: \
                     update the machine's firmware, or use another loader"
                )
            }
            Self::HhdmInTheWay(offset) => {
                write!(
                    f,
                    "the loader's HHDM at {offset:#x} does not lie below the kernel's own windows"
                )
            }
            Self::Plan(error) => write!(f, "memory can't be mapped as planned: {error}"),
            Self::Frames(error) => write!(f, "the frame allocator can't start: {error}"),
            Self::Tables(error) => write!(f, "the page tables can't be built: {error}"),
            Self::Mismatch(error) => error.fmt(f),
            Self::OutOfMemory(what) => {
                write!(
                    f,
                    "the machine has too little memory for {what}; give it more"
                )
            }
        }
    }
}

/// What a recount of the machine's memory found.
#[derive(Debug)]
pub enum RecountError {
    /// The tables can't be walked to their end.
    Tables(Mismatch),
    /// The memory at this physical address is in the heap's window twice.
    ShownTwice(u64),
    /// The allocator knows nothing of a frame that it was given.
    Unowned(Frame),
    /// A frame is mapped in the heap's window and is not the heap's.
    Heap(Frame),
    /// The magazines should hold as many frames as are the heap's outside its window.
    Magazines {
        /// Frames that are the heap's by their records, and not in its window.
        counted: u64,
        /// Frames that the magazines hold by their own books.
        books: u64,
    },
    /// The mappings' window should show as many bytes of frames as are the mappings'.
    Mappings {
        /// Bytes of frames that are the mappings' by their records.
        counted: u64,
        /// Bytes of such frames that the window shows.
        shown: u64,
    },
    /// An owner has so many bytes by the books, and so many by the count.
    Books(Owner, u64, u64),
}

impl fmt::Display for RecountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables(error) => error.fmt(f),
            Self::ShownTwice(phys) => {
                write!(f, "the heap's window shows the memory at {phys:#x} twice")
            }
            Self::Unowned(frame) => write!(f, "the frame at {:#x} has no owner", frame.start()),
            Self::Heap(frame) => {
                write!(
                    f,
                    "the heap's window shows {:#x}, which is not its own",
                    frame.start()
                )
            }
            Self::Magazines { counted, books } => {
                write!(
                    f,
                    "the heap's books have {books} frames, its frames are {counted}"
                )
            }
            Self::Mappings { counted, shown } => {
                write!(
                    f,
                    "the mappings show {shown} bytes of their frames, which are {counted}"
                )
            }
            Self::Books(owner, books, counted) => write!(
                f,
                "{owner} should have {books} bytes, but has {counted} by the count"
            ),
        }
    }
}

impl From<PlanError> for BuildError {
    fn from(error: PlanError) -> Self {
        Self::Plan(error)
    }
}

impl From<TableError> for BuildError {
    fn from(error: TableError) -> Self {
        Self::Tables(error)
    }
}

/// The published state.
///
/// # Panics
///
/// Before [`publish`]: no CPU that could come here runs before it.
#[track_caller]
pub fn get() -> &'static Shared {
    match SHARED.try_get() {
        Ok(shared) => shared,
        Err(_) => panic!("the shared memory state is used before it is published"),
    }
}

/// Publishes the state, for good (Release; [`get`] is the Acquire).
pub fn publish(shared: Shared) {
    SHARED.init_once(|| shared);
}

impl Shared {
    /// Plans the machine's memory, builds the tables, and makes a block for each of
    /// the first `cpus` CPUs of the loader's list. Loads nothing.
    ///
    /// # Errors
    ///
    /// [`BuildError`], whatever the loader or the size of the machine makes impossible.
    pub fn build(
        boot: &Boot,
        features: Features,
        cpus: usize,
    ) -> Result<(Self, Vec<&'static Block>), BuildError> {
        if !features.no_execute {
            return Err(BuildError::NoExecuteMissing);
        }
        let levels = control::levels();
        let mut map = PhysicalMap::from_entries(&boot.memory.entries).map_err(BuildError::Map)?;
        // Changes nothing, and fails unless every byte of the image is the kernel's.
        map.assign(boot.image.range, Owner::Kernel, Owner::Kernel)
            .map_err(BuildError::Image)?;
        withhold_low_memory(&mut map).map_err(BuildError::Image)?;
        let mtrrs = identity::mtrrs(&features);
        match &mtrrs {
            Some(mtrrs) => withhold_uncached(&mut map, mtrrs, boot.image.range)?,
            None => log::warn!("no MTRRs in use: memory is taken as write-back"),
        }

        let mut plan = Plan::new(levels, u32::from(features.physical_bits));
        let largest = if features.gigabyte_pages {
            PageSize::Size1GiB
        } else {
            PageSize::Size2MiB
        };
        let read_only = image::sections()
            .into_iter()
            .filter(|section| section.access != Access::ReadWrite)
            .filter_map(|section| {
                PhysRange::new(boot.image.physical_of(section.start), section.length())
            })
            .collect::<Vec<_>>();
        let aliases = muster_memory::hhdm(&boot.memory.entries, boot.hhdm, largest, &read_only)?;
        let hhdm = Hhdm {
            offset: boot.hhdm,
            ranges: aliases
                .iter()
                .filter(|region| {
                    region.cache == Cache::WriteBack && region.access == Access::ReadWrite
                })
                .filter_map(Region::physical)
                .collect::<Vec<_>>()
                .leak(),
        };
        let pieces = aliases.into_iter().flat_map(|region| {
            let borders = mtrrs.iter().flat_map(move |mtrrs| {
                let ranges = mtrrs.ranges(region.phys..region.phys + region.length);
                ranges.map(|(range, _)| range.end)
            });
            region.cut_at(borders)
        });
        for region in pieces {
            if region.virt + (region.length - 1) >= window::ALL.start {
                return Err(BuildError::HhdmInTheWay(boot.hhdm));
            }
            plan.add(region)?;
        }
        for section in image::sections() {
            plan.add(Region {
                name: section.name,
                virt: section.start,
                phys: boot.image.physical_of(section.start),
                length: section.length(),
                access: section.access,
                cache: Cache::WriteBack,
                largest: PageSize::Size2MiB,
            })?;
        }
        if let Some(phys) = apic::physical_base() {
            plan.add(Region {
                name: "local APIC",
                virt: window::DEVICES.start,
                phys,
                length: FRAME_SIZE,
                access: Access::ReadWrite,
                cache: Cache::Uncached,
                largest: PageSize::Size4KiB,
            })?;
        }

        let frames = frame_allocator(&mut map, hhdm)?;
        let blocks = boot
            .cpus
            .iter()
            .take(cpus)
            .zip(0..)
            .map(|(cpu, index)| {
                add_stacks(&mut plan, &frames, hhdm, index)?;
                make_block(&frames, hhdm, index, cpu.lapic_id)
            })
            .collect::<Result<Vec<_>, _>>()?;

        let source = famine::Tables(&frames);
        let mut tables = Tables::new(hhdm, levels, features.of_tables(), &source)?;
        for region in plan.regions() {
            // SAFETY: no CPU has the tables yet, and the plan has each address once; it maps as
            // memory what the loader's map calls so, and the local APIC as a device.
            unsafe { tables.map_permanently(region, &source) }.map_err(|failure| failure.error)?;
        }
        // After all that is mapped for good.
        let bring_up = (blocks.len() > 1)
            .then(|| tables.root_without(mapping::WINDOW, &source))
            .transpose()?;
        // Past this point the heap takes what it needs, and has nobody to tell that there is none.
        let least = LEAST + LEAST_PER_CPU * blocks.len() as u64;
        if (frames.free_frames() as u64) < least / FRAME_SIZE {
            return Err(BuildError::OutOfMemory("the rest of bring-up"));
        }
        let frames = frames
            .with_caches(blocks.len())
            .map_err(BuildError::Frames)?;
        let shared = Self {
            hhdm,
            features,
            root: tables.root(),
            bring_up,
            plan,
            map,
            frames,
            growing: Lock::new(
                Level::Tables,
                Growing {
                    tables,
                    heap_mapped: HEAP.start,
                    heap_given: HEAP.start,
                },
            ),
        };
        Ok((shared, blocks))
    }

    /// Returns whether this CPU runs on the tables of all.
    pub fn is_loaded(&self) -> bool {
        control::loaded_tables() == self.root.start()
    }

    /// Loads the tables on this CPU, which is asked to flush them from then on: the BSP, or an AP that
    /// has joined.
    pub fn load_tables(&self) {
        self.load(self.root);
    }

    /// Loads tables on this AP that lack what is ever unmapped. It is not asked to flush until it has
    /// joined, and a CPU may walk tables ahead of what it executes: so it may not come by one that is
    /// given back.
    pub fn load_bring_up_tables(&self) {
        self.load(self.bring_up.map_or(self.root, |partial| partial.root));
    }

    fn load(&self, root: Frame) {
        // SAFETY: the tables are built from the plan, which maps the image, all memory
        // the loader's HHDM shows (this stack, the loader's GDT) at the same
        // addresses, and the kernel's stacks, at as many levels as are in use. They
        // are never freed: what is unmapped later lies in a window of its own, which the
        // second root lacks.
        unsafe { control::load_tables(root.start()) };
        if apic::physical_base().is_some() {
            let roots = [
                self.root,
                self.bring_up.map_or(self.root, |partial| partial.root),
            ];
            let roots = roots.map(Frame::start);
            // SAFETY: the plan maps the page there, uncached and for good, in the tables of all and in
            // those for bring-up, which have all that is mapped for good.
            unsafe { apic::mapped_at(window::DEVICES.start, roots) };
        }
    }

    /// Walks the tables and holds every entry against the plan. To be called before the
    /// heap grows or firmware tables are read, which adds to them.
    ///
    /// # Errors
    ///
    /// The first deviation.
    pub fn verify(&self) -> Result<Census, BuildError> {
        self.growing
            .lock()
            .tables
            .verify(&self.plan)
            .map_err(BuildError::Mismatch)
    }

    /// Logs how memory is mapped.
    pub fn tell(&self, census: &Census) {
        let Census {
            pages_4kib,
            pages_2mib,
            pages_1gib,
            tables,
            bytes,
        } = census;
        log::info!("{}-level tables", self.levels().count());
        if addresses::are_shown() {
            log::info!("HHDM at {:#x}", self.hhdm.offset);
        }
        log::info!(
            "mapped as planned: {} regions, {}",
            self.plan.regions().len(),
            Bytes(*bytes)
        );
        log::info!("pages: {pages_1gib} of 1 GiB, {pages_2mib} of 2 MiB, {pages_4kib} of 4 KiB");
        log::info!("page tables: {tables}");
        events::tell(Mapped {
            hhdm: addresses::shown(self.hhdm.offset),
            regions: self.plan.regions().len() as u32,
            bytes: *bytes,
            pages_4kib: *pages_4kib as u64,
            pages_2mib: *pages_2mib as u64,
            pages_1gib: *pages_1gib as u64,
            tables: *tables as u64,
        });
        if addresses::are_shown() {
            for region in self.plan.regions() {
                log::debug!("{region}");
            }
        }
    }

    /// How much of the free memory lies in whole pages of 2 MiB, in bytes.
    pub fn whole_free_bytes(&self) -> u64 {
        self.frames.free_runs_2mib() as u64 * PageSize::Size2MiB.bytes()
    }

    /// Bytes of memory that the machine has, without what is reserved.
    pub fn memory_bytes(&self) -> u64 {
        self.map.totals().sum() - self.map.totals()[Owner::Reserved]
    }

    /// Changes the tables, which nobody else changes meanwhile, and no handler of this CPU.
    /// `f` may neither allocate nor wait for another CPU.
    pub fn with_tables<T>(&self, f: impl FnOnce(&mut Tables<Hhdm>, &famine::Tables<'_>) -> T) -> T {
        f(
            &mut self.growing.lock().tables,
            &famine::Tables(&self.frames),
        )
    }

    /// Returns the tables, to be read without their lock: in a fault report its holder may be the one
    /// that faulted.
    ///
    /// # Safety
    ///
    /// No table is given back while the result lives: nobody unmaps, or the run is over.
    unsafe fn published_tables(&self) -> TableView<Hhdm> {
        let features = self.features.of_tables();
        // SAFETY: `hhdm` reaches every table, and each entry changes by one store of an aligned word,
        // so a reader sees it as it was or as it is. No table is given back, as the caller promises.
        unsafe { TableView::new(self.hhdm, self.levels(), features, self.root) }
    }

    /// The way of an address through the tables, which does not change meanwhile.
    pub fn path(&self, virt: u64) -> Path {
        self.with_tables(|tables, _| tables.path(virt).take(MOST_LEVELS).collect())
    }

    /// Whether so many bytes at an address are the HHDM's view of memory that the heap owns, at their
    /// beginning and at their end.
    pub fn is_heap_memory(&self, address: u64, length: u64) -> bool {
        let is_owned = |address: u64| {
            let phys = address.checked_sub(self.hhdm.offset)?;
            let frame = Frame::from_start(phys - phys % FRAME_SIZE)?;
            Some(self.frames.owner_of(frame)? == Owner::Heap)
        };
        [Some(address), address.checked_add(length - 1)]
            .into_iter()
            .all(|end| end.and_then(is_owned) == Some(true))
    }

    /// Bytes in frames that the heap owns.
    pub fn owned_heap_bytes(&self) -> u64 {
        self.frames.totals()[Owner::Heap]
    }

    /// The physical address of the root table.
    pub fn root(&self) -> u64 {
        self.root.start()
    }

    /// Counts everything again, from the records of each frame and by a walk of the
    /// tables, and holds it against the books. Gives the bytes of memory there are,
    /// without what is reserved.
    ///
    /// # Errors
    ///
    /// The first thing that does not add up.
    ///
    /// # Safety
    ///
    /// Nobody unmaps at the same time.
    pub unsafe fn recount(&self) -> Result<u64, RecountError> {
        // No lock is held while the set takes memory, which the heap may have to grow for.
        let mut window = NoditSet::<u64, Interval<u64>>::new();
        let mut shown_twice = None;
        let mut mapped = 0;
        // SAFETY: nobody unmaps, as the caller promises.
        let tables = unsafe { self.published_tables() }
            .walk(&mut |leaf| {
                let range = ie(leaf.phys, leaf.phys + leaf.size.bytes());
                let owner = || self.frames.owner_of(Frame::from_start(leaf.phys)?);
                if MAPPINGS.contains(leaf.virt) && owner() == Some(Owner::Mappings) {
                    mapped += leaf.size.bytes();
                }
                if HEAP.contains(leaf.virt) && window.insert_merge_touching(range).is_err() {
                    shown_twice.get_or_insert(leaf.phys);
                }
            })
            .map_err(RecountError::Tables)?;
        if let Some(phys) = shown_twice {
            return Err(RecountError::ShownTwice(phys));
        }

        let mut counted = Totals::default();
        let mut outside_window = 0;
        let managed = self
            .map
            .ranges(Owner::Free)
            .chain(self.map.ranges(Owner::Loader));
        for frame in managed.flat_map(PhysRange::frames) {
            let owner = self
                .frames
                .owner_of(frame)
                .ok_or(RecountError::Unowned(frame))?;
            counted[owner] += FRAME_SIZE;
            match (owner, window.contains_point(&frame.start())) {
                (Owner::Heap, false) => outside_window += 1,
                (Owner::Heap, true) | (_, false) => {}
                (_, true) => return Err(RecountError::Heap(frame)),
            }
        }
        let magazines = heap::Reading::take().magazine_frames;
        if outside_window != magazines {
            return Err(RecountError::Magazines {
                counted: outside_window,
                books: magazines,
            });
        }
        if counted[Owner::Mappings] != mapped {
            return Err(RecountError::Mappings {
                counted: counted[Owner::Mappings],
                shown: mapped,
            });
        }
        let apart = self.bring_up.map_or(0, |partial| partial.tables);
        let table_bytes = (tables + apart) as u64 * FRAME_SIZE;
        if counted[Owner::PageTables] != table_bytes {
            let counted = counted[Owner::PageTables];
            return Err(RecountError::Books(Owner::PageTables, table_bytes, counted));
        }
        let books = self.frames.totals();
        match Owner::ALL
            .into_iter()
            .find(|&owner| books[owner] != counted[owner])
        {
            Some(owner) => Err(RecountError::Books(owner, books[owner], counted[owner])),
            None => Ok(self.memory_bytes()),
        }
    }

    /// Looks once more that what can be executed can be written nowhere, now that pages have come and
    /// gone, and gives the bytes that can be executed.
    ///
    /// # Errors
    ///
    /// What can be written and executed.
    ///
    /// # Safety
    ///
    /// Nobody unmaps at the same time.
    pub unsafe fn verify_exclusion(&self) -> Result<u64, Mismatch> {
        // SAFETY: the caller's promise.
        let exclusion = unsafe { self.published_tables() }.verify_exclusion()?;
        Ok(exclusion.executable)
    }

    /// What the CPUs are expected to be able to do: what the BSP can.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The number of table levels.
    pub fn levels(&self) -> Levels {
        self.plan.levels()
    }

    /// Tells programs whose each stretch of physical memory is. Exact between orders.
    pub fn tell_ranges(&self, moment: Moment) {
        if !events::are_wanted() {
            return;
        }
        let tell = |range: PhysRange, owner| {
            events::tell(muster_events::Range {
                moment,
                start: range.start(),
                bytes: range.len(),
                owner: events::owner(owner),
            });
        };
        for (range, owner) in self.map.iter() {
            // The rest stays whose it is; here frame by frame is another's.
            if !matches!(owner, Owner::Free | Owner::Loader) {
                tell(range, owner);
                continue;
            }
            let owner_of = |frame| self.frames.owner_of(frame).unwrap_or(owner);
            let mut frames = range.frames().peekable();
            while let Some(first) = frames.next() {
                let owner = owner_of(first);
                let mut end = first.start() + FRAME_SIZE;
                while frames.next_if(|&frame| owner_of(frame) == owner).is_some() {
                    end += FRAME_SIZE;
                }
                if let Some(alike) = PhysRange::from_bounds(first.start(), end) {
                    tell(alike, owner);
                }
            }
        }
    }

    /// How many bytes each owner holds now, to the byte: the physical map, with the
    /// part that the frame allocator manages as that accounts for it.
    pub fn totals(&self) -> Totals {
        let managed = self.frames.totals();
        let mut totals = self.map.totals();
        // These two the allocator accounts for: frames it gives out, and the loader's
        // that it may take over.
        totals[Owner::Free] = 0;
        totals[Owner::Loader] = 0;
        for (owner, bytes) in managed.iter() {
            totals[owner] += bytes;
        }
        totals
    }

    /// Bytes that the heap can still have: frames that nobody owns, and what of its
    /// window is mapped and not yet given to it.
    pub fn free_bytes(&self) -> u64 {
        let growing = self.growing.lock();
        self.frames_free_bytes() + growing.heap_mapped - growing.heap_given
    }

    /// Bytes in frames that nobody owns, those that CPUs have at hand included.
    pub fn frames_free_bytes(&self) -> u64 {
        self.frames.free_frames() as u64 * FRAME_SIZE
    }

    /// The frame cache of a CPU, which is made once.
    pub fn frame_cache(&self, cpu: u32) -> Option<FrameCache<'_>> {
        self.frames.cache_of(cpu as usize)
    }

    /// What went through the frame cache of a CPU, and is in it.
    pub fn share_of(&self, cpu: u32) -> Option<Share<'_>> {
        self.frames.share(cpu as usize)
    }

    /// How many free frames are in the CPUs' caches.
    pub fn cached_frames(&self) -> usize {
        self.frames.cached_frames()
    }

    /// How many frames there are, free or not.
    pub fn frame_count(&self) -> usize {
        self.frames.capacity()
    }

    /// What went past the CPUs' frame caches.
    pub fn common_share(&self) -> Share<'_> {
        self.frames.common_share()
    }

    /// Bytes in free frames that no CPU has at hand, counted one by one.
    pub fn uncached_bytes(&self) -> u64 {
        self.frames.uncached_frames() as u64 * FRAME_SIZE
    }

    /// Bytes of the heap's window that are mapped.
    pub fn heap_window_bytes(&self) -> u64 {
        self.growing.lock().heap_mapped - HEAP.start
    }

    /// Takes a frame past the CPUs' caches.
    #[cold]
    pub fn take_frame(&self, owner: Owner) -> Option<OwnedFrame> {
        self.frames.allocate(owner)
    }

    /// Gives a frame back past the CPUs' caches.
    ///
    /// # Errors
    ///
    /// If the frame was not handed out to its owner.
    #[cold]
    pub fn give_frame_back(&self, frame: OwnedFrame) -> Result<(), NotFreed<OwnedFrame>> {
        self.frames.free(frame)
    }

    /// Takes frames from this CPU's own, if it has any.
    /// `None` if there is no such run.
    pub fn take_run(&self, count: usize, align: usize, owner: Owner) -> Option<OwnedRun> {
        if famine::strikes() {
            return None;
        }
        frames::with_cache(|cache| cache.allocate_run(count, align, owner))
            .unwrap_or_else(|| self.frames.allocate_run(count, align, owner))
    }

    /// Gives frames back to this CPU's own, if it has any.
    ///
    /// # Errors
    ///
    /// If the frames were not handed out to their owner.
    pub fn give_run_back(&self, run: OwnedRun) -> Result<(), NotFreed<OwnedRun>> {
        frames::give(run, FrameCache::free_run, |run| self.frames.free_run(run))
    }

    /// Gives the heap `count` contiguous frames, the first a multiple of `align`, as the
    /// HHDM shows them, or `None` if there are none.
    pub fn allocate_heap_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        // A block's address is the HHDM's plus the frame's: both must be aligned.
        let bytes = (align as u64).checked_mul(FRAME_SIZE)?;
        if !self.hhdm.offset.is_multiple_of(bytes) {
            return None;
        }
        let start = match (count, align) {
            (1, 1) if famine::strikes() => return None,
            (1, 1) => frames::allocate(Owner::Heap)?.into_raw().start(),
            _ => self.take_run(count, align, Owner::Heap)?.into_raw().start(),
        };
        // The allocator has only what the HHDM shows.
        self.hhdm.pointer(start)
    }

    /// Takes heap frames back.
    ///
    /// # Safety
    ///
    /// [`Self::allocate_heap_frames`] gave `start` for `count` frames, and nothing uses
    /// them any more.
    ///
    /// # Panics
    ///
    /// If they are not the heap's to give back.
    pub unsafe fn free_heap_frames(&self, start: NonNull<u8>, count: usize) {
        let phys = start.as_ptr().addr() as u64 - self.hhdm.offset;
        let run = PhysRange::new(phys, count as u64 * FRAME_SIZE).and_then(FrameRun::from_range);
        // SAFETY: `allocate_heap_frames` gave the right to them up for `start`; the caller promises that
        // nothing uses them, and so gives them once.
        let freed = run.map(|run| unsafe {
            match count {
                1 => frames::free(OwnedFrame::from_raw(run.first(), Owner::Heap)).is_ok(),
                _ => self
                    .give_run_back(OwnedRun::from_raw(run, Owner::Heap))
                    .is_ok(),
            }
        });
        assert!(
            freed == Some(true),
            "the heap gives back {count} frames at {phys:#x} that are not its own"
        );
    }

    /// Gives the heap the next piece of its window, at least `at_least` bytes, or
    /// `None` if the machine has no more frames. What was mapped in vain then waits
    /// for a more modest wish.
    pub fn grow_heap(&self, at_least: usize) -> Option<NonNull<[u8]>> {
        let at_least = (at_least as u64).checked_next_multiple_of(FRAME_SIZE)?;
        let mut growing = self.growing.lock();
        let wanted = growing
            .heap_given
            .checked_add(at_least.max(HEAP_STEP))?
            .min(HEAP.end);
        // A wish that can't come true must not take what others could use.
        let reserve = growing.heap_mapped - growing.heap_given;
        if at_least > reserve + self.frames_free_bytes() || at_least > HEAP.end - growing.heap_given
        {
            return None;
        }
        while growing.heap_mapped < wanted && self.map_heap_page(&mut growing).is_some() {}
        let start = growing.heap_given;
        let length = growing.heap_mapped.min(wanted) - start;
        if length < at_least {
            return None;
        }
        growing.heap_given += length;
        let pointer = NonNull::new(ptr::with_exposed_provenance_mut(start as usize))?;
        Some(NonNull::slice_from_raw_parts(pointer, length as usize))
    }

    /// Maps the next page of the heap window, a large one if it can be had.
    fn map_heap_page(&self, growing: &mut Growing) -> Option<()> {
        let virt = growing.heap_mapped;
        let frames = &self.frames;
        let run = if virt.is_multiple_of(HEAP_STEP) {
            frames.allocate_run(LARGE, LARGE, Owner::Heap)
        } else {
            None
        };
        let run = match run {
            Some(run) => run,
            None if famine::strikes() => return None,
            None => frames.allocate_run(1, 1, Owner::Heap)?,
        };
        let region = Region {
            name: "heap",
            virt,
            phys: run.run().start(),
            length: run.run().range().len(),
            access: Access::ReadWrite,
            cache: Cache::WriteBack,
            largest: PageSize::Size2MiB,
        };
        // SAFETY: the window is the heap's, and nothing is there yet; the run is memory.
        let mapped = unsafe { growing.tables.map(&region, &famine::Tables(frames)) };
        if mapped.is_err() {
            // Only for want of a frame for a table: the HHDM maps the run so, too. The run was just taken, so it can
            // be given back; the tables hold no leaf of it, for tables come first.
            let freed = frames.free_run(run);
            debug_assert!(freed.is_ok());
            return None;
        }
        // It is never unmapped.
        let _ = run.into_raw();
        growing.heap_mapped += region.length;
        Some(())
    }
}

impl Shared {
    /// Whether a frame may hold a firmware table: memory that the map leaves to the
    /// firmware, or the first megabyte, of which maps often say nothing.
    pub fn may_be_firmware(&self, frame: Frame) -> bool {
        match self.map.owner_of(frame.start()) {
            Some(owner) => {
                matches!(
                    owner,
                    Owner::Reserved | Owner::AcpiReclaimable | Owner::AcpiNvs
                )
            }
            None => frame.start() < LEGACY_END,
        }
    }

    /// Bytes that the loader still has.
    pub fn loader_bytes(&self) -> u64 {
        self.frames.totals()[Owner::Loader]
    }

    /// Whether what lies at a virtual address was the loader's when the kernel started.
    pub fn is_loader_memory(&self, address: u64) -> bool {
        self.with_tables(|tables, _| tables.translate(address))
            .is_some_and(|found| self.map.owner_of(found.phys) == Some(Owner::Loader))
    }

    /// Makes the loader's memory free, overwritten by this byte before, and gives how many bytes
    /// it is.
    ///
    /// Always overwritten: nothing of what the loader left there shall turn up in somebody's
    /// hands; and an emulator that has run code there looks at every store to such a page until
    /// all of it is gone, which makes a heap on it thirty times as slow.
    ///
    /// # Errors
    ///
    /// If a part of it is none that the frame allocator has set aside.
    ///
    /// # Safety
    ///
    /// It was not done before. Nobody uses the memory any more: no CPU that runs or may come to run in
    /// the loader, and no one who has a reference to what the loader left there.
    pub unsafe fn adopt_loader_memory(&self, byte: u8) -> Result<u64, AdoptError> {
        let mut frames = 0;
        for range in self.map.ranges(Owner::Loader) {
            if let Some(start) = self.hhdm.pointer(range.start()) {
                // SAFETY: nobody uses the memory, as the caller promises, all of which the HHDM
                // shows, writable: the loader's memory is in `hhdm` range by range.
                unsafe { start.write_bytes(byte, range.len() as usize) };
            }
            // SAFETY: nobody uses it, as the caller promises, nor did the allocator hand it out before.
            frames += unsafe { self.frames.adopt(range) }?;
        }
        Ok(frames as u64 * FRAME_SIZE)
    }
}

/// Reads a word of the stack through the tables in use, for a fault report: `None`
/// if the address is not mapped or is no memory. Before the kernel has tables of its
/// own, only the boot stack can be read.
pub fn peek(address: u64) -> Option<u64> {
    if !address.is_multiple_of(8) {
        return None;
    }
    let Ok(shared) = SHARED.try_get() else {
        return stack::peek_boot(address);
    };
    // SAFETY: the run is over: whoever unmaps is stopped, or about to be, and what it gives back nobody
    // gets any more.
    let phys = unsafe { shared.published_tables() }
        .translate(address)?
        .phys;
    let word = shared.hhdm.pointer(phys)?.cast::<u64>();
    // SAFETY: the HHDM maps the word, which is aligned and lies in one page. Whoever
    // may be writing it, a stale value does no harm in a report.
    Some(unsafe { word.read_volatile() })
}

/// What lies at an address, in a word, if the kernel knows.
pub fn name_of(address: u64) -> Option<&'static str> {
    let shared = SHARED.try_get().ok()?;
    if HEAP.contains(address) {
        return Some("the heap");
    }
    if MAPPINGS.contains(address) {
        return Some("a mapping, its guard, or one that is gone");
    }
    shared.plan.region_at(address).map(|region| region.name)
}

/// Keeps all of the first megabyte from being handed out, now or with the loader's memory: firmware
/// writes there, and a CPU can start nowhere else.
fn withhold_low_memory(map: &mut PhysicalMap) -> Result<(), AssignError> {
    for owner in [Owner::Free, Owner::Loader] {
        let low: Vec<_> = map
            .ranges(owner)
            .take_while(|range| range.start() < LEGACY_END)
            .filter_map(|range| PhysRange::from_bounds(range.start(), range.end().min(LEGACY_END)))
            .collect();
        for range in low {
            map.assign(range, owner, Owner::LowMemory)?;
        }
    }
    Ok(())
}

/// Keeps memory that the MTRRs do not make write-back from being handed out, now or with the loader's: whoever
/// got it would find it many times as slow, and what a CPU stores there combined or not cached at all.
///
/// # Errors
///
/// [`BuildError::ImageNotWriteBack`]: the kernel itself can't go elsewhere.
fn withhold_uncached(
    map: &mut PhysicalMap,
    mtrrs: &Mtrrs<'_>,
    image: PhysRange,
) -> Result<(), BuildError> {
    let uncached = |range: PhysRange| {
        let parts = mtrrs.ranges(range.start()..range.end());
        parts.filter_map(|(part, kind)| {
            Some((PhysRange::from_bounds(part.start, part.end)?, kind))
                .filter(|_| kind != MemoryType::WriteBack)
        })
    };
    if let Some((range, kind)) = uncached(image).next() {
        return Err(BuildError::ImageNotWriteBack(range, kind));
    }
    for owner in [Owner::Free, Owner::Loader] {
        let parts: Vec<_> = map.ranges(owner).flat_map(uncached).collect();
        for (range, _) in parts {
            map.assign(range, owner, Owner::NotWriteBack)
                .map_err(BuildError::Image)?;
        }
    }
    let bytes = map.totals()[Owner::NotWriteBack];
    if bytes > 0 {
        log::warn!(
            "{} of memory is not write-back by the MTRRs, and not used:{}",
            Bytes(bytes),
            Ranges(map)
        );
    }
    Ok(())
}

/// Where the memory lies that is not write-back; of many parts the first ones.
struct Ranges<'a>(&'a PhysicalMap);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let mut ranges = self.0.ranges(Owner::NotWriteBack);
        for range in ranges.by_ref().take(SHOWN) {
            write!(f, " {range}")?;
        }
        match ranges.count() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Sets the frame allocator up over everything free, with its records in the first
/// free range that holds them.
fn frame_allocator(map: &mut PhysicalMap, hhdm: Hhdm) -> Result<FrameAllocator, BuildError> {
    let out_of_memory = BuildError::OutOfMemory("the records of its frames");
    let count =
        FrameAllocator::storage_needed(map.ranges(Owner::Free).chain(map.ranges(Owner::Loader)));
    let bytes = (count * size_of::<FrameInfo>()) as u64;
    let place = map
        .ranges(Owner::Free)
        .find(|range| range.len() >= bytes)
        .and_then(|range| PhysRange::new(range.start(), bytes))
        .map(PhysRange::covering_frames)
        .ok_or(out_of_memory)?;
    map.assign(place, Owner::Free, Owner::FrameTable)
        .map_err(|_| BuildError::OutOfMemory("the records of its frames"))?;
    let storage = hhdm
        .pointer(place.start())
        .ok_or(BuildError::OutOfMemory("the records of its frames"))?
        .cast::<MaybeUninit<FrameInfo>>();
    // SAFETY: (1) the range is `count` records long, page-aligned, memory, and in the
    // HHDM of both tables for good; (2) the map now gives it to the frame table, so
    // nobody else gets it; (3) uninitialised is a valid state of the element type.
    let storage = unsafe { core::slice::from_raw_parts_mut(storage.as_ptr(), count) };
    // SAFETY: what the map calls free, the loader has left unused, and nobody has taken any of it but the
    // records, which the map no longer calls free.
    unsafe { FrameAllocator::new(map.ranges(Owner::Free), map.ranges(Owner::Loader), storage) }
        .map_err(BuildError::Frames)
}

/// Plans the stacks of CPU `index` and takes their frames.
fn add_stacks(
    plan: &mut Plan,
    frames: &FrameAllocator,
    hhdm: Hhdm,
    index: u32,
) -> Result<(), BuildError> {
    for stack in Slot::of(index).stacks() {
        let count = (stack.length() / FRAME_SIZE) as usize;
        // Theirs for good.
        let run = (!famine::strikes())
            .then(|| frames.allocate_run(count, 1, Owner::Stacks))
            .flatten()
            .ok_or(BuildError::OutOfMemory("the stacks of its CPUs"))?
            .into_raw();
        if let Some(memory) = hhdm.pointer(run.start()) {
            // SAFETY: the run was just taken, is in one piece in the HHDM, and in whole frames.
            unsafe { stack::paint(memory.cast(), stack.length()) };
        }
        plan.add(Region {
            name: stack.name,
            virt: stack.bottom,
            phys: run.start(),
            length: stack.length(),
            access: Access::ReadWrite,
            cache: Cache::WriteBack,
            largest: PageSize::Size4KiB,
        })?;
    }
    Ok(())
}

/// Makes the block of CPU `index` in frames of its own.
fn make_block(
    frames: &FrameAllocator,
    hhdm: Hhdm,
    index: u32,
    lapic_id: u32,
) -> Result<&'static Block, BuildError> {
    let memory = (!famine::strikes())
        .then(|| frames.allocate_run((cpu::BYTES / FRAME_SIZE) as usize, 1, Owner::PerCpu))
        .flatten()
        .and_then(|run| hhdm.pointer(run.into_raw().start()))
        .ok_or(BuildError::OutOfMemory("the blocks of its CPUs"))?;
    // SAFETY: the run was just allocated and is never freed; the HHDM shows it,
    // writable, in the loader's tables and in the kernel's.
    Ok(unsafe { cpu::create(index, lapic_id, memory) })
}
