//! The machine's free frames, and how to reach them.

use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};

use conquer_once::spin::OnceCell;
use muster_frames::{
    AssignError, FrameAllocator, FrameCache, FrameInfo, FramesError, MapError, PhysAddr, PhysRange,
    PhysicalMap, SoleOwner,
};
use muster_percpu::{LocalCell, cpu_local};

use crate::loader::Loader;

cpu_local! {
    /// Free frames that this CPU has cached.
    pub static FRAMES: LocalCell<Option<FrameCache<'static>>> = LocalCell::new(None);
}

/// The frames, and where the loader shows all of memory.
struct Memory {
    frames: FrameAllocator,
    hhdm: u64,
}

static MEMORY: OnceCell<Memory> = OnceCell::uninit();

/// Why there are no frames.
#[derive(Debug)]
pub enum MemoryError {
    /// The loader's memory map contradicts itself.
    Map(MapError),
    /// The records of the frames can't be placed.
    Records(AssignError),
    /// The allocator can't start.
    Frames(FramesError),
    /// No free memory is large enough for the records.
    TooSmall,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::Records(error) => error.fmt(f),
            Self::Frames(error) => error.fmt(f),
            Self::TooSmall => f.write_str("there is no room for the records of the frames"),
        }
    }
}

impl core::error::Error for MemoryError {}

/// Sets the frame allocator up over all that the loader calls usable, with its records in the first
/// range that holds them.
///
/// # Errors
///
/// [`MemoryError`].
pub fn start(loader: &Loader) -> Result<(), MemoryError> {
    let mut map = PhysicalMap::new(loader.ranges.iter().copied()).map_err(MemoryError::Map)?;
    let count = FrameInfo::needed(map.ranges(SoleOwner::Free));
    let place = map
        .ranges(SoleOwner::Free)
        .find_map(|range| {
            let place = PhysRange::new(range.start(), (count * size_of::<FrameInfo>()) as u64)?;
            Some(place.covering_frames()).filter(|place| range.encloses(*place))
        })
        .ok_or(MemoryError::TooSmall)?;
    map.assign(place, SoleOwner::Free, SoleOwner::Used)
        .map_err(MemoryError::Records)?;
    let records: *mut MaybeUninit<FrameInfo> =
        ptr::with_exposed_provenance_mut((loader.hhdm + place.start().get()) as usize);
    // SAFETY: this number of records fits there, in whole frames that the loader maps writable; the
    // map gives them to the frame table now, so they are not allocated; any bytes will do as
    // `MaybeUninit`.
    let records = unsafe { core::slice::from_raw_parts_mut(records, count) };
    // SAFETY: the loader calls the memory usable and has nothing in it, and the map has given that of
    // the records to the frame table.
    let frames =
        unsafe { FrameAllocator::new(map.ranges(SoleOwner::Free), [].into_iter(), records) }
            .and_then(|frames| frames.with_caches(loader.cpus))
            .map_err(MemoryError::Frames)?;
    MEMORY.init_once(|| Memory {
        frames,
        hhdm: loader.hhdm,
    });
    Ok(())
}

/// Returns the frame cache of a CPU, once.
pub fn cache(index: u32) -> Option<FrameCache<'static>> {
    MEMORY.get()?.frames.cache_of(index as usize)
}

/// Returns the number of free frames, those in caches included.
pub fn free_frames() -> usize {
    MEMORY.get().map_or(0, |memory| memory.frames.free_frames())
}

/// Returns the pointer to a physical address.
pub fn pointer(phys: PhysAddr) -> Option<NonNull<u8>> {
    let address = MEMORY.get()?.hhdm + phys.get();
    NonNull::new(ptr::with_exposed_provenance_mut(address as usize))
}

/// Returns the physical address that such a pointer leads to.
pub fn physical(pointer: NonNull<u8>) -> Option<PhysAddr> {
    let offset = (pointer.as_ptr().addr() as u64).checked_sub(MEMORY.get()?.hhdm)?;
    Some(PhysAddr::new(offset))
}
