//! The allocator of virtual addresses for mappings.

use crate::virt_addr::VirtAddr;
use alloc::vec::Vec;
use core::fmt;

use crate::tables::{PhysicalMemory, Tables};
use crate::unique::Unique;
use crate::virt_range::VirtRange;
use muster_frames::FRAME_SIZE;

/// Bytes of the guard before and after each allocation: a page that is never mapped.
const GUARD: u64 = FRAME_SIZE;

/// The reason why a window can't be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowError {
    /// The CPU does not accept some of its addresses, with as many levels as the tables have.
    NotCanonical {
        /// The window.
        window: VirtRange,
    },
    /// Something is mapped in the window, or was and may still be cached by a CPU.
    InUse {
        /// The window.
        window: VirtRange,
    },
    /// Another allocator for the same tables gives some of the window out.
    Overlap {
        /// The window.
        window: VirtRange,
        /// The other allocator's window.
        with: VirtRange,
    },
    /// The tables have as many windows as they can record.
    TooMany {
        /// The window.
        window: VirtRange,
        /// The number of windows they have.
        windows: usize,
    },
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCanonical { window } => write!(
                f,
                "the window {window} has addresses that the CPU does not accept: choose one inside a half of the \
                 address space"
            ),
            Self::InUse { window } => write!(
                f,
                "the window {window} is in use: unmap what is mapped there, and complete that, or \
                 choose another window"
            ),
            Self::Overlap { window, with } => write!(
                f,
                "the window {window} overlaps {with}, which another allocator gives out: choose \
                 another window"
            ),
            Self::TooMany { window, windows } => write!(
                f,
                "the window {window} is one more than the {windows} that these tables can have: make \
                 one of them larger instead"
            ),
        }
    }
}

impl core::error::Error for WindowError {}

/// The reason why there are no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// The length is not in whole pages or 0, or the alignment is no power of two.
    Malformed {
        /// Bytes asked for.
        length: u64,
        /// The alignment asked for, in bytes.
        align: u64,
    },
    /// No gap of the window is large enough.
    Exhausted {
        /// Bytes asked for, guards not included.
        length: u64,
        /// The alignment asked for, in bytes.
        align: u64,
    },
    /// The heap has no memory for the record of another range.
    OutOfMemory {
        /// Ranges that are allocated.
        ranges: usize,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { length, align } => write!(
                f,
                "{length:#x} bytes aligned to {align:#x} is no wish for whole pages"
            ),
            Self::Exhausted { length, align } => write!(
                f,
                "the window has no gap of {length:#x} bytes aligned to {align:#x}: unmap something \
                 or make the window larger"
            ),
            Self::OutOfMemory { ranges } => write!(
                f,
                "the heap has no memory to record another range beside {ranges}: free some memory"
            ),
        }
    }
}

impl core::error::Error for AddressError {}

/// The reason why addresses could not be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFreeError {
    /// They are of another allocator.
    OtherAllocator,
    /// The tables are not those that the allocator is for.
    OtherTables,
    /// Something is mapped there, or was and may still be cached by a CPU.
    InUse,
}

/// Addresses that could not be freed. Nothing has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct AddressesNotFreed {
    /// The addresses, which are still their holder's.
    pub addresses: OwnedAddresses,
    /// The reason.
    pub error: AddressFreeError,
}

impl fmt::Display for AddressesNotFreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = self.addresses.range();
        match self.error {
            AddressFreeError::OtherAllocator => write!(
                f,
                "{range} cannot be freed here: free it where it was allocated"
            ),
            AddressFreeError::OtherTables => write!(
                f,
                "{range} cannot be freed by these tables: give those that its allocator is for"
            ),
            AddressFreeError::InUse => write!(
                f,
                "{range} cannot be freed: unmap it, and complete that, first"
            ),
        }
    }
}

impl core::error::Error for AddressesNotFreed {}

/// A range of addresses that an [`AddressAllocator`] has given out: the right to map there, and to
/// free it.
///
/// There is one for each range, as it can be neither copied nor made from numbers:
///
/// ```compile_fail,E0599
/// # use muster_paging::OwnedAddresses;
/// fn twice(addresses: OwnedAddresses) -> [OwnedAddresses; 2] {
///     [addresses.clone(), addresses]
/// }
/// ```
///
/// If it is dropped, the addresses stay allocated, unless the right to them is [recovered](AddressAllocator::recover).
#[must_use = "addresses that are dropped stay allocated: free them"]
#[derive(Debug, PartialEq, Eq)]
pub struct OwnedAddresses {
    range: VirtRange,
    allocator: Unique,
}

impl OwnedAddresses {
    /// Returns the addresses, which are a name and not the right to them.
    pub const fn range(&self) -> VirtRange {
        self.range
    }
}

/// An allocator of the addresses of a window of some tables' address space, each range with a page on
/// both sides that is never mapped: a CPU that runs off its end faults.
///
/// Neighbours share the page between them. Addresses come back only when the tables show that nothing
/// is mapped there, and that every CPU has flushed what was mapped.
///
/// It takes the lowest gap that is large enough, after a search through all ranges below: ranges live
/// long. Its records are 16 bytes for each range, sorted, on the heap: [`Self::allocate`] may allocate
/// memory for them, so no code that the heap needs in order to grow may use it.
/// [`Self::free`] never does.
///
/// It proves that no address is given out twice, by this allocator or by another one for the same
/// tables, and nothing was mapped in the window when the allocator was made. It does not prove that
/// nothing is mapped there later without the right to the addresses. [`Tables::map`] takes addresses as
/// numbers, so that is left to its safety condition; [`Self::allocate`] does not look at the tables. A
/// page that was mapped in breach of it is never mapped over ([`Tables::map`] refuses that), and keeps
/// the addresses from being [freed](Self::free).
///
/// ```
/// # use muster_frames::{FrameAllocator, PhysAddr, PhysRange};
/// # use muster_paging::{Features, Levels, PhysicalMemory, Tables};
/// use muster_paging::{AddressAllocator, AddressError, VirtAddr, VirtRange};
/// # struct Direct(u64);
/// # // SAFETY: the pages below are all that it is asked for.
/// # unsafe impl PhysicalMemory for Direct {
/// #     fn pointer(&self, phys: muster_frames::PhysAddr) -> Option<core::ptr::NonNull<u8>> {
/// #         core::ptr::NonNull::new((self.0 + phys.get()) as *mut u8)
/// #     }
/// # }
/// # #[repr(align(4096))]
/// # #[derive(Clone)]
/// # struct Page(#[expect(dead_code)] [u8; 4096]);
/// # let memory = vec![Page([0; 4096]); 16].leak();
/// # let direct = Direct(memory.as_ptr() as u64 - 0x10_0000);
/// # let free = [PhysRange::new(PhysAddr::new(0x10_0000), 0x1_0000).unwrap()];
/// # let storage = Box::leak(Box::new_uninit_slice(2));
/// # // SAFETY: nothing else uses the pages, which were just leaked.
/// # let frames = unsafe { FrameAllocator::new(free.into_iter(), [].into_iter(), storage)? };
/// # let mut tables = Tables::new(direct, Levels::Four, Features::default(), &frames)?;
///
/// let window = VirtRange::new(VirtAddr::new(0xffff_ff10_0000_0000), 0x6000).unwrap();
/// let mut addresses = AddressAllocator::new(&mut tables, window)?;
/// let one = addresses.allocate(0x1000, 0x1000)?;
/// let two = addresses.allocate(0x2000, 0x1000)?;
/// assert_eq!(one.range().start().get(), 0xffff_ff10_0000_1000);
/// assert_eq!(two.range().start().get(), 0xffff_ff10_0000_3000);
/// let exhausted = AddressError::Exhausted { length: 0x1000, align: 0x1000 };
/// assert_eq!(addresses.allocate(0x1000, 0x1000), Err(exhausted));
///
/// addresses.free(one, &tables)?;
/// assert_eq!(addresses.allocated_ranges(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AddressAllocator {
    id: Unique,
    tables: Unique,
    window: VirtRange,
    /// The allocated ranges, lowest first, no two with less than a guard between them.
    taken: Vec<VirtRange>,
    bytes: u64,
}

impl AddressAllocator {
    /// Makes an allocator of all of the window, in the address space of these tables. The window is
    /// this allocator's for good, also after it was dropped: addresses that it gave out may still have
    /// an owner. Allocates nothing.
    ///
    /// # Errors
    ///
    /// See [`WindowError`]. Nothing has changed then.
    pub fn new<M: PhysicalMemory>(
        tables: &mut Tables<M>,
        window: VirtRange,
    ) -> Result<Self, WindowError> {
        tables.claim_window(window)?;
        Ok(Self {
            id: Unique::new(),
            tables: tables.id(),
            window,
            taken: Vec::new(),
            bytes: 0,
        })
    }

    /// Makes room for the records of this many ranges at once, beside those there are.
    ///
    /// # Errors
    ///
    /// [`AddressError::OutOfMemory`].
    pub fn reserve(&mut self, ranges: usize) -> Result<(), AddressError> {
        let allocated = self.taken.len();
        self.taken
            .try_reserve(ranges)
            .map_err(|_| AddressError::OutOfMemory { ranges: allocated })
    }

    /// Returns for how many more ranges there is room.
    pub fn room(&self) -> usize {
        self.taken.capacity() - self.taken.len()
    }

    /// Moves the records to another vector, of which the contents are lost, if that has more room. Returns the vector that is not
    /// in use. So room can be made without what guards the allocator, such as a lock under which nothing can be allocated.
    pub fn move_records(&mut self, mut to: Vec<VirtRange>) -> Vec<VirtRange> {
        if to.capacity() <= self.taken.capacity() {
            return to;
        }
        to.clear();
        to.extend_from_slice(&self.taken);
        core::mem::replace(&mut self.taken, to)
    }

    /// Gives back the room for the records of more ranges than `ranges`, if it is free and there is memory to move them to. Returns
    /// whether there was any.
    pub fn shrink_to(&mut self, ranges: usize) -> bool {
        let room = ranges.max(self.taken.len());
        let mut taken = Vec::new();
        let is_less = self.taken.capacity() > room && taken.try_reserve_exact(room).is_ok();
        if is_less {
            taken.extend_from_slice(&self.taken);
            self.taken = taken;
        }
        is_less
    }

    /// Returns the window.
    pub const fn window(&self) -> VirtRange {
        self.window
    }

    /// Returns how many bytes are allocated, guards not included.
    pub const fn allocated_bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how many ranges are allocated.
    pub const fn allocated_ranges(&self) -> usize {
        self.taken.len()
    }

    /// Takes `length` bytes of addresses that begin at a multiple of `align`, or of a page if that is
    /// more.
    ///
    /// # Errors
    ///
    /// See [`AddressError`]. Nothing has changed then.
    pub fn allocate(&mut self, length: u64, align: u64) -> Result<OwnedAddresses, AddressError> {
        if length == 0 || !length.is_multiple_of(FRAME_SIZE) || !align.is_power_of_two() {
            return Err(AddressError::Malformed { length, align });
        }
        let (index, range) = self
            .find(length, align.max(FRAME_SIZE))
            .ok_or(AddressError::Exhausted { length, align })?;
        self.reserve(1)?;
        self.taken.insert(index, range);
        self.bytes += length;
        Ok(OwnedAddresses {
            range,
            allocator: self.id,
        })
    }

    /// Returns the lowest range that fits, and the index of its record.
    fn find(&self, length: u64, align: u64) -> Option<(usize, VirtRange)> {
        // Each gap begins after the guard that follows the range below, and ends with the guard
        // before the range above: the last of the window's pages, above all ranges.
        let mut from = self.window.start().get().checked_add(GUARD)?;
        let ends = self.taken.iter().map(|range| range.start().get() - 1);
        for (index, last) in ends.chain([self.window.last().get()]).enumerate() {
            let fits = from.checked_next_multiple_of(align).and_then(|start| {
                let guarded = start.checked_add(length.checked_add(GUARD - 1)?)?;
                VirtRange::new(VirtAddr::new(start), length).filter(|_| guarded <= last)
            });
            if let Some(range) = fits {
                return Some((index, range));
            }
            from = self.taken.get(index)?.last().get().checked_add(1 + GUARD)?;
        }
        None
    }

    /// Returns the right to allocated addresses that begin at `start`, for one whose right was dropped: where only the address
    /// is kept, as of a block of memory. `None`: none that begin there are allocated.
    ///
    /// # Safety
    ///
    /// Nobody has the right to these addresses, and nobody else who knows that it was dropped takes it again.
    pub unsafe fn recover(&self, start: VirtAddr) -> Option<OwnedAddresses> {
        let index = self.index_of(start)?;
        Some(OwnedAddresses {
            range: *self.taken.get(index)?,
            allocator: self.id,
        })
    }

    /// Returns the index of the record of the range that begins here.
    fn index_of(&self, start: VirtAddr) -> Option<usize> {
        (self.taken)
            .binary_search_by_key(&start, |taken| taken.start())
            .ok()
    }

    /// Takes addresses back, as these tables, which the allocator is for, show that nothing is mapped
    /// there nor cached. Allocates nothing.
    ///
    /// # Errors
    ///
    /// See [`AddressFreeError`]. Nothing has changed then.
    pub fn free<M: PhysicalMemory>(
        &mut self,
        addresses: OwnedAddresses,
        tables: &Tables<M>,
    ) -> Result<(), AddressesNotFreed> {
        let range = addresses.range;
        let error = if addresses.allocator != self.id {
            AddressFreeError::OtherAllocator
        } else if tables.id() != self.tables {
            AddressFreeError::OtherTables
        } else if !tables.is_vacant(range) {
            AddressFreeError::InUse
        } else {
            // Always found: the holder of the addresses got them from here, and has not freed them.
            if let Some(index) = self.index_of(range.start()) {
                self.taken.remove(index);
                self.bytes -= range.len();
            }
            return Ok(());
        };
        Err(AddressesNotFreed { addresses, error })
    }
}
