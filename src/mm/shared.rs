//! The shared memory state: one set of page tables, one frame allocator, one heap. The BSP builds
//! it, loads it, checks it and publishes it once; after that every CPU only reads it, and the parts
//! that still change lie behind locks.
//!
//! The heap's growth takes the lock of [`Growing`] ([`Level::Tables`]), and so do mappings, some
//! while they hold the lock on addresses ([`super::mapping`]): code that holds it may neither
//! allocate nor wait for another CPU. Frames need no lock.

use alloc::vec::Vec;

use conquer_once::spin::OnceCell;
use muster_events::{Mapped, Moment};
use muster_frames::{AdoptError, FRAME_SIZE, Frame, PhysAddr, PhysRange};
use muster_paging::{
    Census, Levels, Mismatch, PageSize, PartialRoot, PhysicalMemory, Plan, TableView, Tables,
    VirtAddr,
};

use super::build_error::BuildError;
use super::hhdm::Hhdm;
use super::table_frames::TableFrames;
use super::{blocks, layout, physical};
use crate::arch::apic;
use crate::arch::control::{self, Features};
use crate::boot::addresses;
use crate::boot::bytes::Bytes;
use crate::boot::limine::Boot;
use crate::boot::owner::{
    FrameAllocator, FrameCache, NotFreed, OwnedFrame, Owner, PhysicalMap, Share, Totals,
};
use crate::boot::window::{self, HEAP};
use crate::report::events;
use crate::smp::cpu::{Block, BlockLayout};
use crate::smp::lock::{Level, Lock};

/// Free memory that bring-up needs once the tables stand, in bytes, and for each CPU: for the heap
/// until the stress, for the measurement of calls and mappings, and for the CPUs' frame caches.
/// With half of it some machines fail in bring-up.
const MIN_FREE: u64 = 192 * 1024;
const MIN_FREE_PER_CPU: u64 = 32 * 1024;

/// The maximum number of table levels.
#[cfg(feature = "selftest")]
const MAX_LEVELS: usize = Levels::Five.count() as usize;

/// The page-table walk of an address: a step for each level.
#[cfg(feature = "selftest")]
pub type Path = heapless::Vec<muster_paging::Step, MAX_LEVELS>;

pub(super) static SHARED: OnceCell<SharedMemory> = OnceCell::uninit();

/// The memory state that all CPUs share.
pub struct SharedMemory {
    pub(super) hhdm: Hhdm,
    features: Features,
    pub(super) plan: Plan,
    root: Frame,
    /// The tables of an AP until it has joined, where there is one.
    bring_up: Option<PartialRoot>,
    pub(super) map: PhysicalMap,
    pub(super) frames: FrameAllocator,
    block_bytes: u64,
    pub(super) growing: Lock<Growing>,
}

/// The tables, and how much of the heap's window they map.
pub(super) struct Growing {
    pub(super) tables: Tables<Hhdm>,
    /// The heap window is mapped up to here,
    pub(super) heap_mapped: VirtAddr,
    /// and given to the heap up to here.
    pub(super) heap_given: VirtAddr,
}

/// Returns the published state.
///
/// # Panics
///
/// Before [`publish`]: no CPU that could come here runs before it.
#[track_caller]
pub fn get() -> &'static SharedMemory {
    match SHARED.try_get() {
        Ok(shared) => shared,
        Err(_) => panic!("the shared memory state is used before it is published"),
    }
}

/// Publishes the state, for good (Release; [`get`] is the Acquire).
pub fn publish(shared: SharedMemory) {
    SHARED.init_once(|| shared);
}

impl SharedMemory {
    /// Plans the machine's memory, builds the tables, and makes a block for each of
    /// the first `cpus` CPUs of the loader's list. Loads nothing.
    ///
    /// # Errors
    ///
    /// [`BuildError`], if the loader's answers or the size of the machine make it impossible.
    pub fn build(
        boot: &Boot,
        features: Features,
        cpus: usize,
    ) -> Result<(Self, Vec<&'static Block>), BuildError> {
        if !features.no_execute {
            return Err(BuildError::NoExecuteMissing);
        }
        let levels = control::levels();
        let (mut map, mtrrs) = physical::map(boot, &features)?;
        let (mut plan, hhdm) = layout::plan(boot, &features, levels, mtrrs.as_ref())?;
        let frames = blocks::frame_allocator(&mut map, hhdm)?;
        let block_layout = BlockLayout::find().map_err(BuildError::Template)?;
        let blocks = blocks::make(boot, cpus, &block_layout, &mut plan, &frames, hhdm)?;

        let source = TableFrames(&frames);
        let mut tables = Tables::new(hhdm, levels, features.of_tables(), &source)?;
        for region in plan.regions() {
            // SAFETY: no CPU has the tables yet, and the plan has each address once; it maps as
            // memory what the loader's map calls so, and the local APIC as a device. So do the loader's tables,
            // by which CPUs go until they have these; nobody writes code by either.
            unsafe { tables.map_permanently(region, &source) }.map_err(|failure| failure.error)?;
        }
        // After all that is mapped for good.
        let bring_up = (blocks.len() > 1)
            .then(|| tables.root_without(window::MAPPINGS_RANGE, &source))
            .transpose()?;
        // From here on the heap allocates where an error can't be reported.
        let min_free = MIN_FREE + MIN_FREE_PER_CPU * blocks.len() as u64;
        if (frames.free_frames() as u64) < min_free / FRAME_SIZE {
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
            block_bytes: block_layout.bytes(),
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

    /// Returns the memory of each CPU's per-CPU block, in bytes.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Returns whether this CPU runs on the tables of all.
    pub fn is_loaded(&self) -> bool {
        control::loaded_tables() == self.root()
    }

    /// Loads the tables on this CPU, which is asked to flush them from then on: the BSP, or an AP that
    /// has joined.
    pub fn load_tables(&self) {
        self.load(self.root);
    }

    /// Loads tables on this AP that lack the window of mappings. It is not asked to flush until it
    /// has joined, and a CPU may walk tables ahead of what it executes: so it must not reach a table
    /// that is freed.
    pub fn load_bring_up_tables(&self) {
        self.load(self.bring_up.map_or(self.root, |partial| partial.root));
    }

    fn load(&self, root: Frame) {
        // SAFETY: the tables are built from the plan, which maps the image, all memory of the
        // loader's HHDM (this stack, the loader's GDT) at the same addresses, and the kernel's
        // stacks, at as many levels as are in use. They are never freed: pages that are unmapped
        // later lie in a window of their own, which the second root lacks.
        unsafe { control::load_tables(root) };
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

    /// Walks the tables and checks every entry against the plan. To be called before the heap grows
    /// or firmware tables are read, which adds to them.
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
    pub fn log_census(&self, census: &Census) {
        let Census {
            pages_4kib,
            pages_2mib,
            pages_1gib,
            tables,
            bytes,
        } = census;
        log::info!("{}-level tables", self.levels().count());
        if addresses::are_shown() {
            log::info!("HHDM at {}", self.hhdm.base);
        }
        log::info!(
            "mapped as planned: {} regions, {}",
            self.plan.regions().len(),
            Bytes(*bytes)
        );
        log::info!("pages: {pages_1gib} of 1 GiB, {pages_2mib} of 2 MiB, {pages_4kib} of 4 KiB");
        log::info!("page tables: {tables}");
        events::emit(Mapped {
            hhdm: addresses::shown(self.hhdm.base.get()),
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

    /// Returns the free memory that lies in whole pages of 2 MiB, in bytes.
    pub fn whole_free_bytes(&self) -> u64 {
        self.frames.free_runs_2mib() as u64 * PageSize::Size2MiB.bytes()
    }

    /// Returns the bytes of the machine's memory, without reserved memory.
    pub fn memory_bytes(&self) -> u64 {
        self.map.totals().sum() - self.map.totals()[Owner::Reserved]
    }

    /// Runs `f` with the tables, which no other CPU and no handler of this one changes at the same
    /// time. `f` may neither allocate nor wait for another CPU.
    pub fn with_tables<T>(&self, f: impl FnOnce(&mut Tables<Hhdm>, &TableFrames<'_>) -> T) -> T {
        f(&mut self.growing.lock().tables, &TableFrames(&self.frames))
    }

    /// Returns the tables, to be read without their lock: in a fault report its holder may be the one
    /// that faulted.
    ///
    /// # Safety
    ///
    /// No table is freed while the result lives: nothing is unmapped, or the run is over.
    pub unsafe fn published_tables(&self) -> TableView<Hhdm> {
        let features = self.features.of_tables();
        // SAFETY: `hhdm` reaches every table, they were built with the plan's levels, and each entry
        // changes by one store of an aligned word, so a reader sees it as it was or as it is. No table
        // is freed, as the caller promises.
        unsafe { TableView::new(self.hhdm, self.levels(), features, self.root) }
    }

    /// Walks the tables for an address, under their lock.
    #[cfg(feature = "selftest")]
    pub fn path(&self, virt: VirtAddr) -> Path {
        self.with_tables(|tables, _| tables.path(virt).take(MAX_LEVELS).collect())
    }

    /// Returns whether the first and the last of `length` bytes at an address are in the HHDM, in
    /// memory that the heap owns.
    pub fn is_heap_memory(&self, address: VirtAddr, length: u64) -> bool {
        let is_owned = |address: VirtAddr| {
            let phys = address.checked_sub(self.hhdm.base)?;
            let frame = Frame::containing(PhysAddr::new(phys))?;
            Some(self.frames.owner_of(frame)? == Owner::Heap)
        };
        [Some(address), address.checked_add(length - 1)]
            .into_iter()
            .all(|end| end.and_then(is_owned) == Some(true))
    }

    /// Returns the bytes in frames that the heap owns.
    pub fn owned_heap_bytes(&self) -> u64 {
        self.frames.totals()[Owner::Heap]
    }

    /// Returns the physical address of the root table.
    pub fn root(&self) -> PhysAddr {
        self.root.start()
    }

    /// Verifies once more that no executable memory is mapped writable anywhere, now that pages have
    /// come and gone, and returns the number of executable bytes.
    ///
    /// # Errors
    ///
    /// The first memory that is both writable and executable.
    ///
    /// # Safety
    ///
    /// Nothing is unmapped at the same time.
    pub unsafe fn verify_exclusion(&self) -> Result<u64, Mismatch> {
        // SAFETY: the caller's promise.
        let exclusion = unsafe { self.published_tables() }.verify_exclusion()?;
        Ok(exclusion.executable)
    }

    /// Returns the physical map, as it was when the kernel started.
    pub fn map(&self) -> &PhysicalMap {
        &self.map
    }

    /// Returns the frame allocator.
    pub fn frames(&self) -> &FrameAllocator {
        &self.frames
    }

    /// Returns the number of tables for bring-up alone.
    pub fn bring_up_tables(&self) -> usize {
        self.bring_up.map_or(0, |partial| partial.tables)
    }

    /// Returns the features that all CPUs are expected to have: the BSP's.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Returns the number of table levels.
    pub fn levels(&self) -> Levels {
        self.plan.levels()
    }

    /// Emits the owner of each range of physical memory. Exact between jobs.
    pub fn emit_ranges(&self, moment: Moment) {
        if !events::are_wanted() {
            return;
        }
        let emit = |range: PhysRange, owner| {
            events::emit(muster_events::Range {
                moment,
                start: range.start().get(),
                bytes: range.len(),
                owner: events::owner(owner),
            });
        };
        for (range, owner) in self.map.iter() {
            // Only these are allocated frame by frame; the owner of the rest does not change.
            if !matches!(owner, Owner::Free | Owner::Loader) {
                emit(range, owner);
                continue;
            }
            let owner_of = |frame| self.frames.owner_of(frame).unwrap_or(owner);
            let mut frames = range.frames().peekable();
            while let Some(first) = frames.next() {
                let owner = owner_of(first);
                let mut end = first.start() + FRAME_SIZE;
                while frames.next_if(|&frame| owner_of(frame) == owner).is_some() {
                    end = end + FRAME_SIZE;
                }
                if let Some(alike) = PhysRange::from_bounds(first.start(), end) {
                    emit(alike, owner);
                }
            }
        }
    }

    /// Returns the bytes of each owner now, to the byte: by the physical map, and by the frame
    /// allocator for the part that it manages.
    pub fn totals(&self) -> Totals {
        let managed = self.frames.totals();
        let mut totals = self.map.totals();
        // The allocator accounts for these two: the frames that it allocates, and the loader's that
        // it may take over.
        totals[Owner::Free] = 0;
        totals[Owner::Loader] = 0;
        for (owner, bytes) in managed.iter() {
            totals[owner] += bytes;
        }
        totals
    }

    /// Returns the bytes that the heap can still get: frames without an owner, and the part of its
    /// window that is mapped and not yet given to it.
    pub fn free_bytes(&self) -> u64 {
        let growing = self.growing.lock();
        self.frames_free_bytes() + (growing.heap_mapped - growing.heap_given)
    }

    /// Returns the bytes in free frames, those in the CPUs' caches included.
    pub fn frames_free_bytes(&self) -> u64 {
        self.frames.free_frames() as u64 * FRAME_SIZE
    }

    /// Returns the frame cache of a CPU, which is made once.
    pub fn frame_cache(&self, cpu: u32) -> Option<FrameCache<'_>> {
        self.frames.cache_of(cpu as usize)
    }

    /// Returns the counters of a CPU's frame cache.
    pub fn share_of(&self, cpu: u32) -> Option<Share<'_>> {
        self.frames.share(cpu as usize)
    }

    /// Returns whether CPUs may have free frames in their caches.
    pub fn may_have_cached_frames(&self) -> bool {
        self.frames.may_have_cached_frames()
    }

    /// Returns the number of all frames, free or not.
    pub fn frame_count(&self) -> usize {
        self.frames.capacity()
    }

    /// Returns the counters of frames that went past the CPUs' caches.
    pub fn common_share(&self) -> Share<'_> {
        self.frames.common_share()
    }

    /// Returns the bytes in free frames that no CPU caches, counted one by one.
    pub fn uncached_bytes(&self) -> u64 {
        self.frames.uncached_frames() as u64 * FRAME_SIZE
    }

    /// Returns the bytes of the heap's window that are mapped.
    pub fn heap_window_bytes(&self) -> u64 {
        self.growing.lock().heap_mapped - HEAP.start
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
}

impl SharedMemory {
    /// Returns the bytes that the loader still has.
    pub fn loader_bytes(&self) -> u64 {
        self.frames.totals()[Owner::Loader]
    }

    /// Returns whether the memory at a virtual address was the loader's when the kernel started.
    pub fn is_loader_memory(&self, address: VirtAddr) -> bool {
        self.with_tables(|tables, _| tables.translate(address))
            .is_some_and(|found| self.map.owner_of(found.phys) == Some(Owner::Loader))
    }

    /// Overwrites the loader's memory with this byte and frees it. Returns the number of its bytes.
    ///
    /// Always overwritten: no data of the loader's must turn up in a new allocation; and an
    /// emulator that has run code there looks at every store to such a page until all of it is
    /// gone, which makes a heap on it thirty times as slow.
    ///
    /// # Errors
    ///
    /// If the frame allocator has not set aside all of it.
    ///
    /// # Safety
    ///
    /// It was not done before. Nothing uses the memory any more: no CPU runs or will run in the
    /// loader, and there is no reference to the loader's data.
    pub unsafe fn adopt_loader_memory(&self, byte: u8) -> Result<u64, AdoptError> {
        let mut frames = 0;
        for range in self.map.ranges(Owner::Loader) {
            if let Some(start) = self.hhdm.pointer(range.start()) {
                // SAFETY: nothing uses the memory, as the caller promises, and the HHDM maps all of
                // it writable: the loader's memory is in `hhdm` range by range.
                unsafe { start.write_bytes(byte, range.len() as usize) };
            }
            // SAFETY: nothing uses it, as the caller promises, nor did the allocator hand it out
            // before.
            frames += unsafe { self.frames.adopt(range) }?;
        }
        Ok(frames as u64 * FRAME_SIZE)
    }
}
