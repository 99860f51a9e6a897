//! The allocators, each as people use it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use muster_bench::contenders::{self, Arena};
use muster_bench::{BuddyFrames, Contender, Kind, MusterFrames, OnFrames, OnHeap};
use muster_frames::{
    FRAME_SIZE, FrameAlign, FrameAllocator, FrameInfo, FrameRun, OwnedRun, PhysAddr, PhysRange,
    RunRequest, SoleOwner,
};
use muster_heap::{CpuCache, FRAME, FastPath, FramePlatform, MagazineHeap, NO_CACHE};

/// What each allocator that doesn't ask the system for memory has, in bytes.
const ARENA: usize = 512 << 20;

/// What arenas and frames are aligned to.
const HUGE: usize = 2 << 20;

/// The most CPUs of Muster's heap.
const CPUS: usize = 64;

/// The frames that frame allocators are measured with, which need not exist: 1 GiB.
const FRAMES: (u64, u64) = (0x1000_0000, 0x5000_0000);

/// Returns all of them, for the workloads.
pub fn all(frames: &MusterFrameArena) -> Vec<Box<dyn Contender + '_>> {
    fn kernel(name: &'static str, heap: impl GlobalAlloc + Sync + 'static) -> Box<dyn Contender> {
        Box::new(OnHeap::new(name, Kind::Kernel, heap))
    }
    fn hosted(name: &'static str, heap: impl GlobalAlloc + Sync + 'static) -> Box<dyn Contender> {
        Box::new(OnHeap::new(name, Kind::Hosted, heap))
    }
    let numbers = (FRAMES.0 / FRAME_SIZE) as usize..(FRAMES.1 / FRAME_SIZE) as usize;
    vec![
        kernel("linked_list", contenders::linked_list(arena(ARENA))),
        kernel("talc", contenders::talc(arena(ARENA))),
        kernel("buddy_system", contenders::buddy_system(arena(ARENA))),
        kernel("rlsf", contenders::rlsf(arena(ARENA))),
        kernel("good_memory", contenders::good_memory(arena(ARENA))),
        hosted("glibc", System),
        hosted("mimalloc", mimalloc::MiMalloc),
        hosted("jemalloc", tikv_jemallocator::Jemalloc),
        hosted("snmalloc", snmalloc_rs::SnMalloc),
        Box::new(OnHeap::new("muster", Kind::Muster, Muster)),
        Box::new(OnFrames::new(
            "buddy_system",
            Kind::Kernel,
            BuddyFrames::new(numbers),
        )),
        Box::new(OnFrames::new(
            "muster",
            Kind::Muster,
            MusterFrames(&frames.0),
        )),
    ]
}

/// Returns all heaps, those with an arena first.
pub fn heaps() -> Vec<(&'static str, Box<dyn GlobalAlloc + Sync>)> {
    let on_arenas = ["linked_list", "talc", "buddy_system", "rlsf", "good_memory"];
    let on_arenas = on_arenas
        .into_iter()
        .filter_map(|name| Some((name, on_arena(name, arena(ARENA))?)));
    let others: [(_, Box<dyn GlobalAlloc + Sync>); 5] = [
        ("muster", Box::new(Muster)),
        ("glibc", Box::new(System)),
        ("mimalloc", Box::new(mimalloc::MiMalloc)),
        ("jemalloc", Box::new(tikv_jemallocator::Jemalloc)),
        ("snmalloc", Box::new(snmalloc_rs::SnMalloc)),
    ];
    on_arenas.chain(others).collect()
}

/// Muster's frame allocator over frames that need not exist.
pub struct MusterFrameArena(FrameAllocator);

impl MusterFrameArena {
    pub fn new() -> Self {
        let range = PhysRange::from_bounds(PhysAddr::new(FRAMES.0), PhysAddr::new(FRAMES.1))
            .expect("a range");
        // SAFETY: the frames are numbers alone.
        Self(
            unsafe { frame_allocator(range) }
                .with_caches(CPUS)
                .expect("room for the caches"),
        )
    }
}

/// Makes a frame allocator over this range.
///
/// # Safety
///
/// Nothing else uses the memory of the range, or it is none.
unsafe fn frame_allocator(range: PhysRange) -> FrameAllocator {
    let records = FrameInfo::needed([range].into_iter());
    let records = Box::leak(Box::new_uninit_slice(records));
    // SAFETY: as the caller promises; the records are memory of their own.
    unsafe { FrameAllocator::new([range].into_iter(), [].into_iter(), records) }.expect("one range")
}

/// Makes the calling thread a CPU of the magazine heap's.
pub fn enter_cpu(number: usize) {
    CACHE.set(&MAGAZINES.platform().caches[number]);
    NUMBER.set(number);
}

/// Lets the calling thread leave, with its cache empty.
pub fn leave_cpu() {
    MAGAZINES.drain();
}

static MAGAZINES: MagazineHeap<Threads> = MagazineHeap::new(Threads::new(ARENA));

/// Muster's heap, in a static, as a global allocator is.
struct Muster;

// SAFETY: all of it is the heap's own.
unsafe impl GlobalAlloc for Muster {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { MAGAZINES.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { MAGAZINES.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { MAGAZINES.realloc(block, layout, new_size) }
    }
}

/// Makes a magazine heap with `bytes` bytes, of which the calling thread is the only CPU.
pub fn muster_for_this_thread(bytes: usize) -> &'static MagazineHeap<Threads> {
    let heap = Box::leak(Box::new(MagazineHeap::new(Threads::new(bytes))));
    CACHE.set(&heap.platform().caches[0]);
    NUMBER.set(0);
    heap
}

/// Numbered threads, whose cache is one load away, as it is in a kernel, and memory in frames. A
/// frame's number is that of its address.
pub struct Threads {
    bytes: usize,
    frames: OnceLock<FrameAllocator>,
    caches: [CpuCache; CPUS],
}

impl Threads {
    const fn new(bytes: usize) -> Self {
        Self {
            bytes,
            frames: OnceLock::new(),
            caches: [const { CpuCache::new() }; CPUS],
        }
    }

    fn frames(&self) -> &FrameAllocator {
        self.frames.get_or_init(|| {
            let start = arena(self.bytes).as_mut_ptr().expose_provenance() as u64;
            let range = PhysRange::new(PhysAddr::new(start), self.bytes as u64).expect("a range");
            // SAFETY: the arena was just made, for these frames alone.
            unsafe { frame_allocator(range) }
        })
    }
}

thread_local! {
    static CACHE: Cell<&'static CpuCache> = const { Cell::new(&NO_CACHE) };
    static NUMBER: Cell<usize> = const { Cell::new(usize::MAX - 1) };
}

// SAFETY: (1), (6) nothing interrupts a thread but a signal handler, and there is none here. (2), (3)
// `enter_cpu` gets each number from one thread at a time. (4) There are no interrupts. (5) The frame
// allocator gives each frame of the arena, which is never freed, to one owner.
unsafe impl FramePlatform for Threads {
    const FAST_PATH: FastPath = FastPath::Uninterrupted;

    type NoPreempt = ();
    type InterruptGuard = ();

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) {}

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
        let request = RunRequest::new(count).aligned(FrameAlign::from_frames(align as u64)?);
        let run = self.frames().allocate_run(request, SoleOwner::Used)?;
        let start = run.into_raw().start();
        NonNull::new(ptr::with_exposed_provenance_mut(start.get() as usize))
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        let range = PhysRange::new(
            PhysAddr::new(start.addr().get() as u64),
            (count * FRAME) as u64,
        );
        let run = range.and_then(FrameRun::from_range).expect("frames");
        // SAFETY: `allocate_frames` gave them up for their address, and nothing uses them any more.
        let run = unsafe { OwnedRun::from_raw(run, SoleOwner::Used) };
        self.frames().free_run(run).expect("the heap's frames");
    }
}

/// Allocates this number of bytes, for good.
pub fn arena(bytes: usize) -> Arena {
    let layout = Layout::from_size_align(bytes, HUGE).expect("a valid layout");
    // SAFETY: the size isn't zero, and the memory is never freed.
    unsafe {
        let start = System.alloc(layout);
        assert!(!start.is_null(), "no memory for an arena");
        std::slice::from_raw_parts_mut(start.cast::<MaybeUninit<u8>>(), bytes)
    }
}

/// Makes the allocators that live on an arena, each on one.
pub fn on_arena(name: &str, arena: Arena) -> Option<Box<dyn GlobalAlloc + Sync>> {
    Some(match name {
        "linked_list" => Box::new(contenders::linked_list(arena)),
        "talc" => Box::new(contenders::talc(arena)),
        "buddy_system" => Box::new(contenders::buddy_system(arena)),
        "rlsf" => Box::new(contenders::rlsf(arena)),
        "good_memory" => Box::new(contenders::good_memory(arena)),
        _ => return None,
    })
}
