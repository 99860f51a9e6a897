//! The allocators of other crates, each behind a spin lock, as kernels use them.

use core::alloc::{GlobalAlloc, Layout};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};

use spin::Mutex;

/// What an allocator lives on.
pub type Arena = &'static mut [MaybeUninit<u8>];

/// An allocator behind a spin lock.
pub struct Locked<T>(Mutex<T>);

/// An allocator for one CPU at a time.
pub trait Single: Send {
    /// Allocates a block, or returns `None`.
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>>;

    /// Takes a block back.
    ///
    /// # Safety
    ///
    /// The block is live, with this layout.
    unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout);

    /// Makes a block longer or shorter, or leaves it as it is and answers `None`.
    ///
    /// # Safety
    ///
    /// The block is live, with the old layout; both have the same alignment.
    unsafe fn resize(
        &mut self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Option<NonNull<u8>> {
        let moved = self.allocate(new)?;
        // SAFETY: the old block is live, by the caller's promise, and the new one is apart from it;
        // both are as long as what is copied.
        unsafe {
            ptr::copy_nonoverlapping(block.as_ptr(), moved.as_ptr(), old.size().min(new.size()))
        };
        // SAFETY: the caller's promise.
        unsafe { self.free(block, old) };
        Some(moved)
    }
}

// SAFETY: each `Single` is an allocator, and the lock makes it one for all CPUs.
unsafe impl<T: Single> GlobalAlloc for Locked<T> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = self.0.lock().allocate(layout);
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the contract of `GlobalAlloc::dealloc`.
            unsafe { self.0.lock().free(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let new = Layout::from_size_align(new_size, layout.align());
        let (Some(block), Ok(new)) = (NonNull::new(block), new) else {
            return ptr::null_mut();
        };
        // SAFETY: the contract of `GlobalAlloc::realloc`.
        let resized = unsafe { self.0.lock().resize(block, layout, new) };
        resized.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}

/// `linked_list_allocator`: first fit in a list sorted by address.
pub type LinkedList = Locked<linked_list_allocator::Heap>;

impl Single for linked_list_allocator::Heap {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.allocate_first_fit(layout).ok()
    }

    unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.deallocate(block, layout) };
    }
}

/// Makes a [`LinkedList`] on this arena.
pub fn linked_list(arena: Arena) -> LinkedList {
    let mut heap = linked_list_allocator::Heap::empty();
    heap.init_from_slice(arena);
    Locked(Mutex::new(heap))
}

/// `rlsf`: two-level segregated fit, with 28 × 32 lists.
pub type Rlsf = Locked<Tlsf>;

type Tlsf = rlsf::Tlsf<'static, u32, u32, 28, 32>;

impl Single for Tlsf {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        Tlsf::allocate(self, layout)
    }

    unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.deallocate(block, layout.align()) };
    }

    unsafe fn resize(&mut self, block: NonNull<u8>, _: Layout, new: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the caller's promise.
        unsafe { self.reallocate(block, new) }
    }
}

/// Makes an [`Rlsf`] on this arena.
pub fn rlsf(arena: Arena) -> Rlsf {
    let mut heap = Tlsf::new();
    heap.insert_free_block(arena);
    Locked(Mutex::new(heap))
}

/// `buddy_system_allocator`, with blocks of up to 4 GiB.
pub type BuddySystem = Locked<Buddy>;

type Buddy = buddy_system_allocator::Heap<33>;

impl Single for Buddy {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.alloc(layout).ok()
    }

    unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { self.dealloc(block, layout) };
    }
}

/// Makes a [`BuddySystem`] on this arena.
pub fn buddy_system(arena: Arena) -> BuddySystem {
    let mut heap = Buddy::empty();
    // SAFETY: the arena is this heap's alone.
    unsafe { heap.init(arena.as_mut_ptr().expose_provenance(), arena.len()) };
    Locked(Mutex::new(heap))
}

/// `talc`, behind its own lock type.
pub type Talc = talc::TalcLock<Mutex<()>, talc::source::Manual>;

/// Makes a [`Talc`] on this arena. One too small for it stays unused: the heap is empty then.
pub fn talc(arena: Arena) -> Talc {
    let heap = Talc::new(talc::source::Manual);
    // SAFETY: the arena is this heap's alone.
    unsafe { heap.lock().claim(arena.as_mut_ptr().cast(), arena.len()) };
    heap
}

/// `good_memory_allocator`, with as many bins as it has by default.
pub type GoodMemory = Locked<Galloc>;

type Galloc = good_memory_allocator::Allocator<
    { good_memory_allocator::DEFAULT_SMALLBINS_AMOUNT },
    { good_memory_allocator::DEFAULT_ALIGNMENT_SUB_BINS_AMOUNT },
>;

/// Pads the size: the allocator panics over some sizes that aren't multiples of 16.
fn padded(layout: Layout) -> Option<Layout> {
    Some(layout.align_to(16).ok()?.pad_to_align())
}

impl Single for Galloc {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the heap has its arena, and no size is zero.
        NonNull::new(unsafe { self.alloc(padded(layout)?) })
    }

    unsafe fn free(&mut self, block: NonNull<u8>, _: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.dealloc(block.as_ptr()) };
    }

    unsafe fn resize(
        &mut self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Option<NonNull<u8>> {
        let (old, new) = (padded(old)?, padded(new)?);
        // SAFETY: the caller's promise; the layouts are those that the block was allocated with.
        NonNull::new(unsafe { self.realloc(block.as_ptr(), old, new.size()) })
    }
}

/// Makes a [`GoodMemory`] on this arena.
pub fn good_memory(arena: Arena) -> GoodMemory {
    let mut heap = Galloc::empty();
    // SAFETY: the arena is this heap's alone.
    unsafe { heap.init(arena.as_mut_ptr().expose_provenance(), arena.len()) };
    Locked(Mutex::new(heap))
}
