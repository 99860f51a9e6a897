//! The allocators, each as people use it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

use muster_heap::hosted::HostedFrames;
use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap, NO_CACHE};
use rlsf::Tlsf;
use spin::Mutex;

/// What each allocator that doesn't ask the system for memory has, in bytes.
const ARENA: usize = 512 << 20;
const CPUS: usize = 16;

pub type Allocator = &'static (dyn GlobalAlloc + Sync);

pub struct Contender {
    pub name: &'static str,
    /// Whether a kernel could use it.
    pub is_no_std: bool,
    pub allocator: Allocator,
}

pub fn all() -> Vec<Contender> {
    let no_std = |(name, allocator)| Contender {
        name,
        is_no_std: true,
        allocator,
    };
    let hosted = |name, allocator| Contender {
        name,
        is_no_std: false,
        allocator,
    };
    let on_arenas = ON_ARENAS.map(|(name, new)| no_std((name, new(arena()))));
    let others = [
        hosted("glibc", &System),
        hosted("mimalloc", &mimalloc::MiMalloc),
        hosted("jemalloc", &tikv_jemallocator::Jemalloc),
        #[cfg(feature = "snmalloc-rs")]
        hosted("snmalloc", &snmalloc_rs::SnMalloc),
        no_std(("muster", &MUSTER)),
    ];
    on_arenas.into_iter().chain(others).collect()
}

/// Makes the calling thread a CPU of the magazine heap's.
pub fn enter_cpu(number: usize) {
    CACHE.set(&MUSTER.platform().caches[number]);
    NUMBER.set(number);
}

/// Lets the calling thread leave, with its cache empty.
pub fn leave_cpu() {
    MUSTER.drain();
}

pub static MUSTER: MagazineHeap<Threads> = MagazineHeap::new(Threads::new(ARENA / FRAME));

/// A magazine heap with so many frames, of which the calling thread is the only CPU.
pub fn muster_for_this_thread(frames: usize) -> &'static MagazineHeap<Threads> {
    let heap = Box::leak(Box::new(MagazineHeap::new(Threads::new(frames))));
    CACHE.set(&heap.platform().caches[0]);
    NUMBER.set(0);
    heap
}

/// Numbered threads, whose cache is one load away, as it is in a kernel.
pub struct Threads {
    frames: HostedFrames,
    caches: [CpuCache; CPUS],
}

impl Threads {
    const fn new(frames: usize) -> Self {
        Self {
            frames: HostedFrames::new(frames),
            caches: [const { CpuCache::new() }; CPUS],
        }
    }
}

thread_local! {
    static CACHE: Cell<&'static CpuCache> = const { Cell::new(&NO_CACHE) };
    static NUMBER: Cell<usize> = const { Cell::new(usize::MAX - 1) };
}

// SAFETY: `enter_cpu` gets each number from one thread at a time; the rest is `HostedFrames`'.
unsafe impl FramePlatform for Threads {
    type Pin = ();
    type InterruptGuard = ();

    fn pin(&self) {}

    fn keep_interrupts_out(&self) {}

    fn cpu(&self) -> Option<usize> {
        Some(NUMBER.get())
    }

    fn cache(&self) -> &CpuCache {
        CACHE.get()
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        self.caches.iter().for_each(visit);
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        self.frames.allocate_frames(count, align)
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.frames.free_frames(start, count) };
    }
}

/// What an allocator lives on, for good.
pub type Arena = &'static mut [MaybeUninit<u8>];

fn arena() -> Arena {
    let layout = Layout::from_size_align(ARENA, 2 << 20).expect("a valid layout");
    // SAFETY: the size isn't zero, and the memory is never freed.
    unsafe {
        let start = System.alloc(layout);
        assert!(!start.is_null(), "no memory for an arena");
        std::slice::from_raw_parts_mut(start.cast(), ARENA)
    }
}

/// Makes an allocator that lives on an arena.
pub type OnArena = fn(Arena) -> Allocator;

/// The allocators that live on an arena.
pub const ON_ARENAS: [(&str, OnArena); 5] = [
    ("linked_list", linked_list),
    ("talc", talc),
    ("rlsf", rlsf),
    ("buddy_system", buddy_system),
    ("good_memory", good_memory),
];

/// An allocator behind a spin lock.
struct Locked<T>(Mutex<T>);

trait Single: Send {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>>;
    /// # Safety
    ///
    /// The block is live, with this layout.
    unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout);
}

// SAFETY: each of these is an allocator, and the lock makes it one for many threads.
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
}

fn locked<T: Single + 'static>(allocator: T) -> Allocator {
    Box::leak(Box::new(Locked(Mutex::new(allocator))))
}

impl Single for linked_list_allocator::Heap {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.allocate_first_fit(layout).ok()
    }

    unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.deallocate(block, layout) };
    }
}

fn linked_list(arena: Arena) -> Allocator {
    let mut heap = linked_list_allocator::Heap::empty();
    heap.init_from_slice(arena);
    locked(heap)
}

type Rlsf = Tlsf<'static, u32, u32, 28, 32>;

impl Single for Rlsf {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        Tlsf::allocate(self, layout)
    }

    unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.deallocate(block, layout.align()) };
    }
}

fn rlsf(arena: Arena) -> Allocator {
    let mut heap = Rlsf::new();
    heap.insert_free_block(arena);
    locked(heap)
}

type Buddy = buddy_system_allocator::Heap<33>;

impl Single for Buddy {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.alloc(layout).ok()
    }

    unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        self.dealloc(block, layout);
    }
}

fn buddy_system(arena: Arena) -> Allocator {
    let mut heap = Buddy::empty();
    // SAFETY: the arena is used for nothing else.
    unsafe { heap.init(arena.as_mut_ptr().expose_provenance(), arena.len()) };
    locked(heap)
}

fn talc(arena: Arena) -> Allocator {
    let heap = talc::TalcLock::<Mutex<()>, _>::new(talc::source::Manual);
    // SAFETY: the arena is used for nothing else.
    let claimed = unsafe { heap.lock().claim(arena.as_mut_ptr().cast(), arena.len()) };
    assert!(claimed.is_some(), "talc refused its arena");
    Box::leak(Box::new(heap))
}

type GoodMemory = good_memory_allocator::Allocator<
    { good_memory_allocator::DEFAULT_SMALLBINS_AMOUNT },
    { good_memory_allocator::DEFAULT_ALIGNMENT_SUB_BINS_AMOUNT },
>;

/// It panics over some sizes that aren't multiples of 16.
impl Single for GoodMemory {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let padded = layout.align_to(16).ok()?.pad_to_align();
        // SAFETY: the heap has its arena.
        NonNull::new(unsafe { self.alloc(padded) })
    }

    unsafe fn free(&mut self, block: NonNull<u8>, _: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.dealloc(block.as_ptr()) };
    }
}

fn good_memory(arena: Arena) -> Allocator {
    let mut heap = GoodMemory::empty();
    // SAFETY: the arena is used for nothing else.
    unsafe { heap.init(arena.as_mut_ptr().expose_provenance(), arena.len()) };
    locked(heap)
}
