//! Mappings that come and go: large memory out of scattered frames, and physical memory
//! such as device registers, each with a page on both sides that is never mapped.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use core::{fmt, mem};

use conquer_once::spin::OnceCell;
use muster_frames::{FRAME_SIZE, FrameAlign, FrameRun, PhysRange, RunRequest};
use muster_paging::{
    Access, AddressAllocator, AddressError, Cache, ChangeError, OwnedAddresses, PageSize,
    PartlyMapped, Region, TableError, VirtAddr, VirtRange,
};

use super::tlb::AllCpus;
use super::{frames, relief, shared};
use crate::boot::owner::{OwnedRun, Owner};
use crate::boot::window::MAPPINGS_RANGE;
use crate::smp::lock::{Level, Lock};
use crate::smp::online;

/// Bytes in a large page.
const LARGE: u64 = PageSize::Size2MiB.bytes();

/// The number of mappings that a CPU has at once, more or less: the records of that many are allocated
/// in advance.
const RANGES_PER_CPU: usize = 8;

static ADDRESSES: OnceCell<Lock<AddressAllocator>> = OnceCell::uninit();

/// Returns the allocator of the window's addresses. It has a lock of its own, taken before that of
/// the heap's growth and of the tables: its records are on the heap.
fn addresses() -> &'static Lock<AddressAllocator> {
    ADDRESSES.get_or_init(|| {
        let all =
            shared::get().with_tables(|tables, _| AddressAllocator::new(tables, MAPPINGS_RANGE));
        // Nothing is mapped there but with addresses from here.
        let all = all.unwrap_or_else(|error| panic!("no addresses for mappings: {error}"));
        Lock::new(Level::Addresses, all)
    })
}

/// Makes room for the records of the window's addresses, which stays on the heap for good: so the
/// heap's figures do not depend on how many mappings there have been at once.
///
/// # Errors
///
/// [`AddressError`]: there is no memory for them.
pub fn start() -> Result<(), AddressError> {
    addresses().lock().reserve(online::count() * RANGES_PER_CPU)
}

/// Makes more room for records before the last of it is needed. Without the lock, where memory that is in pieces could not be
/// mapped for it; a mapping for that takes some of what is left.
fn make_room() {
    static IS_MAKING: AtomicBool = AtomicBool::new(false);

    let ranges = {
        let addresses = addresses().lock();
        if addresses.room() > RANGES_PER_CPU / 2 + online::count() {
            return;
        }
        addresses.allocated_ranges() + RANGES_PER_CPU + online::count()
    };
    // Relaxed, here and below: the lock orders the rest.
    if IS_MAKING.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut records = Vec::new();
    if records.try_reserve_exact(2 * ranges).is_ok() {
        let unused = addresses().lock().move_records(records);
        drop(unused);
    }
    IS_MAKING.store(false, Ordering::Relaxed);
}

/// Gives back what has been added to that room. Returns whether anything was.
pub fn trim() -> bool {
    is_started() && (addresses().lock()).shrink_to(online::count() * RANGES_PER_CPU)
}

/// Returns whether [`start`] has made that room.
pub fn is_started() -> bool {
    ADDRESSES.is_initialized()
}

/// Why something can't be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingError {
    /// There are no such addresses.
    Addresses(AddressError),
    /// There are too few frames.
    OutOfMemory,
    /// There is no run of free frames as it was asked for.
    NoRun(RunRequest),
    /// The tables can't map it.
    Tables(TableError),
    /// The tables can't change so.
    Change(ChangeError),
}

impl fmt::Display for MappingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(error) => error.fmt(f),
            Self::OutOfMemory => write!(f, "too few frames are free for the mapping"),
            Self::NoRun(request) => write!(f, "there are no {request}: ask for less, or earlier"),
            Self::Tables(error) => error.fmt(f),
            Self::Change(error) => error.fmt(f),
        }
    }
}

/// Returns whether there may be frames for a mapping of this length: a request that can't be met must not take some that others
/// could use.
fn may_have(length: u64) -> bool {
    let are_free = || length <= shared::get().frames_free_bytes();
    // Free blocks that CPUs have cached are not among them.
    are_free() || relief::reclaim(are_free)
}

/// Maps a region. If no frame is left for a table, this CPU and the others drain their caches, and the
/// mapping continues where it stopped: tables take frames past the caches.
///
/// # Errors
///
/// As for [`map`](muster_paging::Tables::map) of tables.
///
/// # Safety
///
/// As for [`map`](muster_paging::Tables::map) of tables.
unsafe fn map(region: Region) -> Result<(), PartlyMapped> {
    let map = |region: Region| {
        shared::get().with_tables(|tables, frames| {
            // SAFETY: the caller's promise, which holds for the rest of the region as for all of it.
            unsafe { tables.map(&region, frames) }
        })
    };
    map(region).or_else(|failure| {
        if failure.error != TableError::OutOfFrames {
            return Err(failure);
        }
        let rest = Region {
            virt: region.virt + failure.bytes,
            phys: region.phys + failure.bytes,
            length: region.length - failure.bytes,
            ..region
        };
        relief::reclaim(|| map(rest)).map_err(|rest| PartlyMapped {
            bytes: failure.bytes + rest.bytes,
            ..rest
        })
    })
}

/// The owner of a mapping's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FrameOwnership {
    /// The mapping's, and recorded as this owner's: they are free when it is gone.
    Own(Owner),
    /// Another owner's.
    Foreign,
}

/// Some memory at addresses of its own, mapped for as long as this lives.
///
/// It can be made, protected and dropped on any online CPU, also by several at once; but not by one
/// that holds a lock, nor in an interrupt handler: CPUs are called to flush.
#[derive(Debug)]
pub struct Mapping {
    range: VirtRange,
    /// The right to it, until it is dropped.
    addresses: Option<OwnedAddresses>,
    /// How much of it is mapped; all, once it is made.
    mapped: u64,
    frames: FrameOwnership,
    /// Where in the first page the memory begins.
    offset: u64,
    /// The physical memory that it maps, where that is contiguous.
    contiguous: Option<PhysRange>,
}

impl Mapping {
    /// Maps writable memory of at least `bytes` bytes, in frames that need not be contiguous, with
    /// the largest pages that are available. Its content is unspecified.
    ///
    /// # Errors
    ///
    /// [`MappingError`]; nothing is mapped then.
    pub fn memory(bytes: u64) -> Result<Self, MappingError> {
        let length = bytes
            .checked_next_multiple_of(FRAME_SIZE)
            .ok_or(MappingError::OutOfMemory)?;
        if !may_have(length) {
            return Err(MappingError::OutOfMemory);
        }
        let align = if length < LARGE { FRAME_SIZE } else { LARGE };
        let mut mapping = Self::reserve(length, align, FrameOwnership::Own(Owner::Mappings))?;
        while mapping.mapped < length {
            mapping.extend()?;
        }
        Ok(mapping)
    }

    /// Maps writable memory in contiguous frames, as a device needs that reads or writes it by physical addresses
    /// ([`Self::contiguous_frames`]): below an address that it can form, say. Its content is unspecified. More than 2 MiB are
    /// rarely contiguous.
    ///
    /// # Errors
    ///
    /// [`MappingError`], [`NoRun`](MappingError::NoRun) if there are no such free frames; nothing is
    /// mapped then.
    pub fn contiguous(request: RunRequest) -> Result<Self, MappingError> {
        let length = (request.frames() as u64)
            .checked_mul(FRAME_SIZE)
            .ok_or(MappingError::OutOfMemory)?;
        if !may_have(length) {
            return Err(MappingError::OutOfMemory);
        }
        let mut mapping = Self::reserve(length, FRAME_SIZE, FrameOwnership::Own(Owner::Mappings))?;
        let take = || frames::take_run(request, Owner::Mappings);
        let run = take()
            .or_else(|| relief::reclaim(take))
            .ok_or(MappingError::NoRun(request))?;
        let range = run.run().range();
        mapping.map_next(run, PageSize::Size4KiB)?;
        mapping.contiguous = Some(range);
        Ok(mapping)
    }

    /// Maps physical memory that has another owner: a device's registers, uncached, or the
    /// firmware's tables.
    ///
    /// # Errors
    ///
    /// [`MappingError`], as if other pages map the memory with another cache type; nothing is mapped
    /// then.
    ///
    /// # Safety
    ///
    /// CPUs may read the memory at any time in the way that its cache type lets them: it is there, and
    /// no device's if the type is write-back.
    pub unsafe fn physical(
        range: PhysRange,
        access: Access,
        cache: Cache,
    ) -> Result<Self, MappingError> {
        let pages = range.covering_frames();
        let mut mapping = Self::reserve(pages.len(), FRAME_SIZE, FrameOwnership::Foreign)?;
        mapping.offset = range.start() - pages.start();
        mapping.contiguous = Some(range);
        let region = Region {
            name: "mapping",
            virt: mapping.range.start(),
            phys: pages.start(),
            length: pages.len(),
            access,
            cache,
            largest: PageSize::Size4KiB,
        };
        // SAFETY: the addresses are this mapping's; of the memory, the caller's promise.
        match unsafe { map(region) } {
            Ok(()) => {
                mapping.mapped = region.length;
                Ok(mapping)
            }
            Err(failure) => {
                mapping.mapped = failure.bytes;
                Err(MappingError::Tables(failure.error))
            }
        }
    }

    /// Maps frames of the heap's that need not be contiguous, for a block. In small pages only, so that the last of them can be
    /// unmapped before the others.
    ///
    /// # Errors
    ///
    /// [`MappingError`]; nothing is mapped then.
    pub fn scattered(frames: u64, align: u64) -> Result<Self, MappingError> {
        let length = (frames.checked_mul(FRAME_SIZE)).ok_or(MappingError::OutOfMemory)?;
        // The heap has just reclaimed what there is.
        if length > shared::get().frames_free_bytes() {
            return Err(MappingError::OutOfMemory);
        }
        let mut mapping = Self::reserve(length, align, FrameOwnership::Own(Owner::Heap))?;
        while mapping.mapped < length {
            let run = frames::take_run(RunRequest::new(1), Owner::Heap);
            mapping.map_next(run.ok_or(MappingError::OutOfMemory)?, PageSize::Size4KiB)?;
        }
        Ok(mapping)
    }

    /// Returns where the memory begins, which stays mapped, for [`unmap_scattered`].
    pub fn leak(self) -> *mut u8 {
        let start = self.start();
        mem::forget(self);
        start
    }

    /// Allocates addresses, at which nothing is mapped yet.
    fn reserve(length: u64, align: u64, frames: FrameOwnership) -> Result<Self, MappingError> {
        make_room();
        let allocate = || addresses().lock().allocate(length, align);
        let owned = allocate()
            .or_else(|error| match error {
                // Under the lock, the other CPUs could not be asked for what they cache.
                AddressError::OutOfMemory { .. } => relief::reclaim(allocate),
                _ => Err(error),
            })
            .map_err(MappingError::Addresses)?;
        Ok(Self {
            range: owned.range(),
            addresses: Some(owned),
            mapped: 0,
            frames,
            offset: 0,
            contiguous: None,
        })
    }

    /// Maps the next page, a large one if one is available.
    fn extend(&mut self) -> Result<(), MappingError> {
        let virt = self.range.start() + self.mapped;
        let left = self.range.len() - self.mapped;
        let take = |bytes: u64| {
            let request = RunRequest::new((bytes / FRAME_SIZE) as usize);
            frames::take_run(
                request.aligned(FrameAlign::from_bytes(bytes)?),
                Owner::Mappings,
            )
        };
        let large = if virt.is_multiple_of(LARGE) && left >= LARGE {
            take(LARGE)
        } else {
            None
        };
        let run = large
            .or_else(|| take(FRAME_SIZE))
            .or_else(|| relief::reclaim(|| take(FRAME_SIZE)))
            .ok_or(MappingError::OutOfMemory)?;
        self.map_next(run, PageSize::Size2MiB)
    }

    /// Maps these frames behind what is mapped already, and owns them from then on.
    fn map_next(&mut self, run: OwnedRun, largest: PageSize) -> Result<(), MappingError> {
        let region = Region {
            name: "mapping",
            virt: self.range.start() + self.mapped,
            phys: run.run().start(),
            length: run.run().range().len(),
            access: Access::ReadWrite,
            cache: Cache::WriteBack,
            largest,
        };
        let owner = run.owner();
        // SAFETY: the addresses are this mapping's, and the run is memory.
        let result = unsafe { map(region) };
        // The mapped pages own their part of it from here on.
        let _ = run.into_raw();
        let mapped = result.map_or_else(|failure| failure.bytes, |()| region.length);
        self.mapped += mapped;
        let rest = PhysRange::new(region.phys + mapped, region.length - mapped);
        if let Some(rest) = rest.and_then(FrameRun::from_range) {
            // SAFETY: this part of the run was given up just now, and is mapped nowhere.
            give_back(unsafe { OwnedRun::from_raw(rest, owner) });
        }
        result.map_err(|failure| MappingError::Tables(failure.error))
    }

    /// Returns where the memory begins.
    pub fn start(&self) -> *mut u8 {
        (self.range.start() + self.offset).as_mut_ptr()
    }

    /// Returns the physical memory that it maps, for [`Self::contiguous`] and [`Self::physical`], whose
    /// frames are contiguous.
    pub fn contiguous_frames(&self) -> Option<PhysRange> {
        self.contiguous
    }

    /// Returns the bytes of addresses it takes, in whole pages.
    pub fn length(&self) -> u64 {
        self.range.len()
    }

    /// Changes the access rights of all of it.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; nothing has changed then.
    ///
    /// # Safety
    ///
    /// From now on nothing uses the addresses in a way that the new rights do not allow; and memory
    /// that becomes writable has no references that rely on it not to change.
    pub unsafe fn protect(&mut self, access: Access) -> Result<(), ChangeError> {
        let range = self.range;
        let flush = shared::get().with_tables(|tables, _| {
            // SAFETY: the caller's promise.
            unsafe { tables.protect(range, access) }
        })?;
        flush.run(&AllCpus);
        Ok(())
    }
}

/// Unmaps pages of a mapping.
fn unmap(pages: VirtRange, ownership: FrameOwnership) -> Result<(), ChangeError> {
    let shared = shared::get();
    let unmapping = shared.with_tables(|tables, _| {
        // SAFETY: the addresses are the mapping's alone, and it is being dropped, or these pages of it are: code that
        // still uses a pointer into them has broken the promise by which it made a reference of it.
        unsafe { tables.unmap(pages) }
    })?;
    // Without the tables' lock: a CPU may be waiting for it.
    let unmapped = unmapping.flush(&AllCpus);
    let completed = shared.with_tables(|tables, frames| {
        tables.complete(unmapped, frames, &mut |page| {
            let run = PhysRange::new(page.phys, page.size.bytes());
            if let (FrameOwnership::Own(owner), Some(run)) =
                (ownership, run.and_then(FrameRun::from_range))
            {
                // SAFETY: `map_next` gave the right up for the page, which no CPU can reach any more.
                give_back(unsafe { OwnedRun::from_raw(run, owner) });
            }
        })
    });
    assert!(
        completed.is_ok(),
        "a mapping was in other tables: {completed:?}"
    );
    Ok(())
}

/// Gives the addresses of a mapping back, of which nothing is mapped any more.
fn free_addresses(owned: OwnedAddresses, addresses: &mut AddressAllocator) {
    let freed = shared::get().with_tables(|tables, _| addresses.free(owned, tables));
    assert!(
        freed.is_ok(),
        "a mapping's addresses don't come back: {freed:?}"
    );
}

/// Pages that are unmapped at once, with interrupts disabled for each half of it.
const UNMAP_STEP: u64 = 128;

/// Unmaps the last `frames` pages that are mapped of a mapping for the heap, and frees their frames; with the addresses, if these
/// are all. As for dropping a [`Mapping`], not on a CPU that holds a lock, nor in an interrupt handler.
///
/// # Panics
///
/// If they are not mapped so.
///
/// # Safety
///
/// The mapping was [leaked](Mapping::leak), and nothing uses these pages of it, nor those behind, which this has unmapped.
pub unsafe fn unmap_scattered(start: VirtAddr, frames: u64) {
    let mut left = frames;
    while left > 0 {
        let step = left.min(UNMAP_STEP);
        left -= step;
        let pages = VirtRange::new(start + left * FRAME_SIZE, step * FRAME_SIZE);
        let unmapped = pages.map(|pages| unmap(pages, FrameOwnership::Own(Owner::Heap)));
        assert!(
            unmapped == Some(Ok(())),
            "the heap's memory at {start} is not mapped as it was: {unmapped:?}"
        );
    }
    let mut addresses = addresses().lock();
    // SAFETY: `leak` gave the right to them up, and the caller has it now, if they begin here.
    if let Some(owned) = unsafe { addresses.recover(start) } {
        free_addresses(owned, &mut addresses);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(mapped) = VirtRange::new(self.range.start(), self.mapped)
            && let Err(error) = unmap(mapped, self.frames)
        {
            panic!("a mapping is not as it was made: {error}");
        }
        if let Some(owned) = self.addresses.take() {
            free_addresses(owned, &mut addresses().lock());
        }
    }
}

fn give_back(run: OwnedRun) {
    let freed = frames::give_run_back(run);
    assert!(
        freed.is_ok(),
        "a mapping does not own its frames: {freed:?}"
    );
}
