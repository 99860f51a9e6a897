//! The heap of four CPUs over 16 MiB of frames: threads stand for CPUs, so it runs anywhere.
//!
//! `cargo run --package muster-heap --example threads`

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::error::Error;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::thread;

use muster_frames::{
    FrameAlign, FrameAllocator, FrameInfo, FrameRun, OwnedRun, PhysAddr, PhysRange, RunRequest,
    SoleOwner,
};
use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap, NO_CACHE};

// A kernel keeps these in its per-CPU blocks.
static CACHES: [CpuCache; 4] = [const { CpuCache::new() }; 4];
thread_local!(static CPU: Cell<Option<usize>> = const { Cell::new(None) });

static FRAMES: OnceLock<FrameAllocator> = OnceLock::new();

// A kernel says `#[global_allocator]` here.
static HEAP: MagazineHeap<Machine> = MagazineHeap::new(Machine);

struct Machine;

// SAFETY: (1), (4) nothing preempts or interrupts a thread's use of its cache; (2), (3) `main` gives each
// index to one thread; (5) the allocator gives each frame to one owner, and all of them are mapped.
unsafe impl FramePlatform for Machine {
    type NoPreempt = ();
    type InterruptGuard = ();

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) {}

    fn cpu(&self) -> Option<usize> {
        CPU.get()
    }

    fn cache(&self) -> &CpuCache {
        CPU.get().map_or(&NO_CACHE, |cpu| &CACHES[cpu])
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        CACHES.iter().for_each(visit);
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        let request = RunRequest::new(count).aligned(FrameAlign::from_frames(align as u64)?);
        let run = FRAMES.get()?.allocate_run(request, SoleOwner::Used)?;
        // A kernel adds the offset of its direct map.
        NonNull::new(ptr::with_exposed_provenance_mut(
            run.into_raw().start().get() as usize,
        ))
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        let phys = PhysAddr::new(start.addr().get() as u64);
        let range = PhysRange::new(phys, (count * FRAME) as u64);
        if let (Some(frames), Some(run)) = (FRAMES.get(), range.and_then(FrameRun::from_range)) {
            // SAFETY: `allocate_frames` gave these frames up, and the caller promises that they are unused.
            let freed = frames.free_run(unsafe { OwnedRun::from_raw(run, SoleOwner::Used) });
            assert!(freed.is_ok(), "frames that are not the heap's: {freed:?}");
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let memory = vec![0_u8; 16 << 20].leak().as_mut_ptr().expose_provenance();
    let memory =
        PhysRange::new(PhysAddr::new(memory as u64), 16 << 20).and_then(PhysRange::whole_frames);
    let free = [memory.ok_or("no whole frame")?].into_iter();
    let records = FrameInfo::needed(free.clone());
    let records = Box::leak(Box::new_uninit_slice(records));
    // SAFETY: nothing else uses this memory, nor the records.
    let frames = unsafe { FrameAllocator::new(free, [].into_iter(), records)? };
    let before = FRAMES.get_or_init(|| frames).free_frames();

    thread::scope(|scope| {
        for cpu in 0..CACHES.len() {
            scope.spawn(move || work(cpu));
        }
    });
    HEAP.trim();
    let after = FRAMES.get().map(FrameAllocator::free_frames);
    assert_eq!(after, Some(before), "frames that are free again");
    println!("{before} frames were free before, and are again");
    Ok(())
}

fn work(cpu: usize) {
    CPU.set(Some(cpu));
    let layout = Layout::new::<[u64; 8]>();
    for _ in 0..100_000 {
        // SAFETY: the layout is not empty.
        let block = unsafe { HEAP.alloc(layout) };
        assert!(!block.is_null(), "out of memory");
        // SAFETY: the block was allocated with this layout, and is freed once.
        unsafe { HEAP.dealloc(block, layout) };
    }
    HEAP.drain();
}
