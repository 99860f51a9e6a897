//! The heap: an arena until there are frames, then magazines.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use muster_frames::{
    FrameAlign, FrameCache, FrameRun, OwnedRun, PhysAddr, PhysRange, RunRequest, SoleOwner,
};
use muster_heap::{
    CpuCache, FRAME, FastPath, FramePlatform, Heap, MagazineHeap, NO_CACHE, Platform,
};
use muster_percpu::head_offset;

use crate::cpu::{CPUS, Cpu};
use crate::memory::{self, FRAMES};

#[global_allocator]
static GLOBAL: Global = Global;

static ARENA: Arena = Arena(UnsafeCell::new([MaybeUninit::uninit(); ARENA_BYTES]));
/// Room for the blocks of 64 CPUs, 29 KiB each, and as much again.
const ARENA_BYTES: usize = 4 << 20;

static BOOT: Heap<Machine> = Heap::new(Machine);
static MAGAZINES: MagazineHeap<Machine> = MagazineHeap::new(Machine);
/// Release and Acquire: a CPU that sees it set sees the frames.
static USE_MAGAZINES: AtomicBool = AtomicBool::new(false);

struct Arena(UnsafeCell<[MaybeUninit<u8>; ARENA_BYTES]>);

// SAFETY: the cell is opened once, in `start`.
unsafe impl Sync for Arena {}

/// Gives the heap its arena. To be called once, first of all.
pub fn start() {
    // SAFETY: this is called once, by one CPU, so there is no other reference.
    let arena = unsafe { &mut *ARENA.0.get() };
    // A second arena, or a tiny one, would be refused: it is neither.
    let started = BOOT.start_boot(arena);
    debug_assert!(started.is_ok());
}

/// Lets new blocks come from frames.
pub fn open() {
    USE_MAGAZINES.store(true, Ordering::Release);
}

/// Drains this CPU's caches of blocks and of frames, and frees what the heap can do without.
pub fn drain() {
    MAGAZINES.drain();
    MAGAZINES.trim();
    Cpu::with_own(&FRAMES, |frames| {
        frames.with(|frames| frames.as_mut().map(FrameCache::drain))
    });
}

/// Both heaps as one.
struct Global;

// SAFETY: both are allocators, and a block goes back to the one it came from: those of the first lie
// in the arena.
unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match USE_MAGAZINES.load(Ordering::Acquire) {
                true => MAGAZINES.alloc(layout),
                false => BOOT.alloc(layout),
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let offset = block.addr().wrapping_sub(ARENA.0.get().addr());
        // SAFETY: as above, to the heap that the block is of.
        unsafe {
            match offset < ARENA_BYTES {
                true => BOOT.dealloc(block, layout),
                false => MAGAZINES.dealloc(block, layout),
            }
        }
    }
}

/// What the heaps need of this kernel.
pub struct Machine;

// SAFETY: (1) the number is that of the block, which is one CPU's; (2) interrupts are never let in;
// (3) the heap does not grow.
unsafe impl Platform for Machine {
    type InterruptGuard = ();

    fn disable_interrupts(&self) {}

    fn cpu(&self) -> Option<usize> {
        Cpu::try_with(|here| here.index() as usize)
    }

    fn grow(&self, _at_least: usize) -> Option<NonNull<[u8]>> {
        None
    }
}

// SAFETY: (1), (4) there are no tasks, and interrupts are never let in; (2) the cache is the head of the
// block, which is one CPU's for good; (3) as for `Platform`; (5) frames come from the frame allocator,
// as asked, and the loader maps them all; (7) the head lies so far from GS base, with a block and
// without, and nothing interrupts a CPU.
unsafe impl FramePlatform for Machine {
    const FAST_PATH: FastPath = FastPath::Restarted {
        cache_from_gs: head_offset::<CpuCache>(),
    };

    type NoPreempt = ();
    type InterruptGuard = ();

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) {}

    fn cpu(&self) -> Option<usize> {
        Platform::cpu(self)
    }

    fn cache(&self) -> &CpuCache {
        Cpu::try_with(|here| here.head()).unwrap_or(&NO_CACHE)
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        CPUS.blocks().iter().for_each(|block| visit(block.head()));
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        // An address is the direct map's plus the frame's: both must be aligned.
        let base = memory::pointer(PhysAddr::new(0))?.addr().get();
        if !base.is_multiple_of(align.checked_mul(FRAME)?) {
            return None;
        }
        let request = RunRequest::new(count).aligned(FrameAlign::from_frames(align as u64)?);
        let run = Cpu::with_own(&FRAMES, |frames| {
            frames.with(|frames| frames.as_mut()?.allocate_run(request, SoleOwner::Used))
        })?;
        memory::pointer(run.into_raw().start())
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        let range =
            memory::physical(start).and_then(|phys| PhysRange::new(phys, (count * FRAME) as u64));
        let freed = range.and_then(FrameRun::from_range).and_then(|run| {
            Cpu::with_own(&FRAMES, |frames| {
                // SAFETY: `allocate_frames` gave them up for their address, and nothing uses them any
                // more.
                let run = unsafe { OwnedRun::from_raw(run, SoleOwner::Used) };
                frames.with(|frames| Some(frames.as_mut()?.free_run(run)))
            })
        });
        assert!(
            freed == Some(Ok(())),
            "frames that are not the heap's: {freed:?}"
        );
    }
}
