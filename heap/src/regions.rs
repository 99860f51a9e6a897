//! The free lists: one for the boot arena, one for each contiguous region after it.

use core::alloc::Layout;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use heapless::Vec;
use linked_list_allocator::Heap as FreeList;

use crate::{MAX_REGIONS, StartError, Statistics};

/// Blocks are placed in multiples of this. Sizes in single words would leave, before
/// every other block of the usual alignment, a hole too small for anyone, and each
/// allocation walks past all of them.
const GRAIN: usize = 16;
/// A free list describes each hole in the hole itself, by size and successor, aligned like them.
const HOLE: usize = 2 * size_of::<usize>();
/// The smallest memory that surely has room for a block of a grain, wherever it starts.
const MIN_REGION: usize = 3 * GRAIN - 1;

/// Everything under the heap's lock.
pub(crate) struct Regions {
    boot: FreeList,
    grown: Vec<FreeList, MAX_REGIONS>,
    is_open: bool,
    accounts: Statistics,
}

impl Regions {
    pub(crate) const fn new() -> Self {
        Self {
            boot: FreeList::empty(),
            grown: Vec::new(),
            is_open: false,
            accounts: Statistics::ZERO,
        }
    }

    pub(crate) fn start_boot(
        &mut self,
        arena: &'static mut [MaybeUninit<u8>],
    ) -> Result<(), StartError> {
        if self.has_boot() {
            return Err(StartError::AlreadyStarted);
        }
        if arena.len() < MIN_REGION {
            return Err(StartError::ArenaTooSmall {
                bytes: arena.len(),
                min: MIN_REGION,
            });
        }
        let skipped = arena.as_ptr().align_offset(GRAIN);
        let grains = (arena.len() - skipped) / GRAIN;
        let (_, rest) = arena.split_at_mut(skipped);
        let (arena, _) = rest.split_at_mut(grains * GRAIN);
        self.accounts.capacity_bytes += arena.len() as u64;
        self.boot.init_from_slice(arena);
        Ok(())
    }

    pub(crate) const fn open(&mut self) {
        self.is_open = true;
    }

    pub(crate) const fn is_open(&self) -> bool {
        self.is_open
    }

    pub(crate) fn is_full(&self) -> bool {
        self.grown.is_full()
    }

    pub(crate) const fn accounts(&self) -> Statistics {
        self.accounts
    }

    pub(crate) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let block = if self.is_open {
            self.grown
                .iter_mut()
                .find_map(|list| first_fit(list, layout))?
        } else {
            let block = first_fit(&mut self.boot, layout)?;
            self.accounts.boot_live_bytes += layout.size() as u64;
            block
        };
        self.accounts.live_blocks += 1;
        self.accounts.live_bytes += layout.size() as u64;
        self.accounts.allocated_bytes += layout.size() as u64;
        self.accounts.peak_live_bytes = self.accounts.peak_live_bytes.max(self.accounts.live_bytes);
        Some(block)
    }

    /// Takes a block back. `false`: it lies in no region, so it isn't this heap's.
    ///
    /// # Safety
    ///
    /// If `block` lies in a region, [`allocate`](Self::allocate) returned it for the same `layout`
    /// and it has not been released since.
    pub(crate) unsafe fn release(&mut self, block: NonNull<u8>, layout: Layout) -> bool {
        let list = if contains(&self.boot, block) {
            self.accounts.boot_live_bytes -= layout.size() as u64;
            &mut self.boot
        } else if let Some(list) = self.grown.iter_mut().find(|list| contains(list, block)) {
            list
        } else {
            return false;
        };
        let Some(placed) = placed(layout) else {
            return false;
        };
        // SAFETY: `block` lies in this list's memory, and is live with this layout (the caller),
        // which `first_fit` placed as it is released here.
        unsafe { list.deallocate(block, placed) };
        self.accounts.live_blocks -= 1;
        self.accounts.live_bytes -= layout.size() as u64;
        true
    }

    /// Adds memory, as part of the region it continues or as a new one. A piece that is neither
    /// (too small, or too many regions already) is left unused.
    ///
    /// # Safety
    ///
    /// The piece is readable and writable, used by nothing else, and stays so for good.
    pub(crate) unsafe fn add(&mut self, piece: NonNull<[u8]>) {
        let start = piece.cast::<u8>().as_ptr();
        let skipped = start.align_offset(GRAIN);
        if let Some(list) = self.grown.iter_mut().find(|list| list.top() == start) {
            // SAFETY: the piece begins where the list's memory ends and is ours for good (the
            // caller).
            unsafe { list.extend(piece.len()) };
        } else if piece.len() >= MIN_REGION {
            // SAFETY: the piece is ours for good (the caller), and has room for a hole after what is
            // skipped: less than a grain of at least `MIN_REGION` bytes.
            let list = unsafe { FreeList::new(start.add(skipped), piece.len() - skipped) };
            if self.grown.push(list).is_err() {
                return;
            }
        } else {
            return;
        }
        self.accounts.growths += 1;
        self.accounts.capacity_bytes += piece.len() as u64;
    }

    fn has_boot(&self) -> bool {
        !self.boot.bottom().is_null()
    }
}

/// Returns how much new memory a free list needs to be sure to have room for `layout`: the block, what
/// alignment may skip, and a hole before and after. `None`: more than there can be.
pub(crate) fn room_for(layout: Layout) -> Option<usize> {
    let placed = placed(layout)?;
    let room = placed
        .size()
        .checked_add(placed.align())?
        .checked_add(2 * HOLE + MIN_REGION)?;
    isize::try_from(room).is_ok().then_some(room)
}

/// Returns the layout in whole grains, with a byte to spare: what lies behind may be a hole, which the
/// list describes in itself and believes. `None`: more than there can be.
fn placed(layout: Layout) -> Option<Layout> {
    let size = (layout.size().checked_add(1)?).checked_next_multiple_of(GRAIN)?;
    Layout::from_size_align(size, layout.align().max(GRAIN)).ok()
}

fn first_fit(list: &mut FreeList, layout: Layout) -> Option<NonNull<u8>> {
    let layout = placed(layout)?;
    // The list rounds addresses up with wrapping arithmetic: an alignment so large that the next
    // multiple lies beyond the end of the address space would come out at 0, and seem to fit.
    list.top().addr().checked_add(room_for(layout)?)?;
    list.allocate_first_fit(layout).ok()
}

fn contains(list: &FreeList, block: NonNull<u8>) -> bool {
    (list.bottom()..list.top()).contains(&block.as_ptr())
}
