//! Blocks where no two free frames are contiguous.

use alloc::alloc::{alloc, dealloc, realloc};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::slice;
use core::sync::atomic::{AtomicUsize, Ordering};

use muster::cpus;
use muster::internals::boot::bytes::Bytes;
use muster::internals::boot::owner::{OwnedRun, Owner};
use muster::internals::boot::window::MAPPINGS;
use muster::internals::mm::{frames, heap, shared};
use muster::internals::smp::{jobs, online};
use muster_arguments::HeapKind;
use muster_frames::{FRAME_SIZE, RunRequest};
use muster_paging::VirtAddr;
use x86_64::instructions::interrupts;

/// How long the CPUs may take, in milliseconds.
const TIMEOUT: u64 = 60_000;

/// The sizes of each CPU's blocks, in bytes: of classes that need more than a frame, and larger.
const SIZES: [usize; 6] = [5000, 8192, 8193, 40_000, 300_000, 1_000_000];

/// Blocks that one CPU has at once.
const MANY: usize = 600;

/// Free memory that each CPU needs for them, and for what it caches.
const PER_CPU: u64 = 8 << 20;

/// Fills memory up to this much, in bytes: of more the filling would take long.
const MAX_MEMORY: u64 = 1 << 30;

/// Takes every other frame of the machine, and has all CPUs allocate, resize and free blocks that need several. On a machine that
/// is too small or too large for it, does nothing.
///
/// # Errors
///
/// A block that is refused or not as it was written, in words.
pub fn check() -> Result<(), String> {
    heap::drain();
    let free = shared::get().free_bytes();
    // Half of it is taken.
    let need = PER_CPU * 2 * online::count() as u64;
    // No other heap has blocks in scattered frames.
    if heap::kind() != HeapKind::Magazines || !(need..MAX_MEMORY).contains(&free) {
        return Ok(());
    }
    let held = take_every_other().ok_or("there is no memory for a list of all frames")?;
    let (blocks, scattered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = AtomicUsize::new(0);
    // Relaxed, all of them: the job's end publishes them.
    jobs::all(TIMEOUT, &|_| {
        for size in SIZES {
            match block(size) {
                Some(is_scattered) => {
                    blocks.fetch_add(1, Ordering::Relaxed);
                    scattered.fetch_add(usize::from(is_scattered), Ordering::Relaxed);
                }
                None => failed.store(size, Ordering::Relaxed),
            }
        }
    });
    if let Err(size) = many() {
        failed.store(size, Ordering::Relaxed);
    }
    let left = shared::get().free_bytes();
    for run in held {
        let freed = frames::give_run_back(run);
        debug_assert!(freed.is_ok());
    }
    // What was freed is unmapped here, and not by the CPU that idles first.
    heap::drain();
    let (blocks, scattered, failed) = (
        blocks.into_inner(),
        scattered.into_inner(),
        failed.into_inner(),
    );
    if failed > 0 {
        return Err(format!(
            "on fragmented memory, of which {} were free, a block of {failed} B failed",
            Bytes(left)
        ));
    }
    if scattered == 0 {
        return Err(format!(
            "on fragmented memory none of {blocks} blocks is in scattered frames"
        ));
    }
    log::info!(target: "heap", "every other frame taken: {blocks} blocks allocated, {scattered} of them in scattered frames");
    Ok(())
}

/// Takes all frames, and frees every other of them.
fn take_every_other() -> Option<Vec<OwnedRun>> {
    let mut held = Vec::new();
    held.try_reserve_exact((shared::get().free_bytes() / FRAME_SIZE) as usize)
        .ok()?;
    while held.len() < held.capacity()
        && let Some(run) = frames::take_run(RunRequest::new(1), Owner::Mappings)
    {
        held.push(run);
    }
    let is_even = |run: &mut OwnedRun| run.run().first().number().is_multiple_of(2);
    for run in held.extract_if(.., is_even) {
        let freed = frames::give_run_back(run);
        debug_assert!(freed.is_ok());
    }
    Some(held)
}

/// Allocates many blocks at once: the records of their mappings need more than a frame, too.
///
/// # Errors
///
/// The size of a block that is refused.
fn many() -> Result<(), usize> {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let list = MANY * size_of::<Vec<u8>>();
    blocks.try_reserve_exact(MANY).map_err(|_| list)?;
    for _ in 0..MANY {
        let mut block = Vec::new();
        block.try_reserve_exact(SIZES[2]).map_err(|_| SIZES[2])?;
        blocks.push(block);
    }
    Ok(())
}

/// Allocates a block, makes it larger and smaller, and frees it, with interrupts disabled or enabled. Returns whether it was in
/// scattered frames at first; `None`: it was refused, or is not as it was written.
fn block(size: usize) -> Option<bool> {
    let layout = |size| Layout::from_size_align(size, 8).ok();
    // SAFETY: the size is not 0.
    let first = unsafe { alloc(layout(size)?) };
    if first.is_null() {
        return None;
    }
    let is_scattered = MAPPINGS.contains(VirtAddr::from_ptr(first));
    let (larger, smaller) = (size + size / 2, size / 3);
    // SAFETY: the block has that many bytes, and is this CPU's alone; it is resized by the layout that it has, and freed by the
    // last one.
    unsafe {
        first.write_bytes(0xa5, size);
        let grown = realloc(first, layout(size)?, larger);
        if grown.is_null() {
            return None;
        }
        grown.add(size).write_bytes(0x5a, larger - size);
        let shrunk = realloc(grown, layout(larger)?, smaller);
        if shrunk.is_null() {
            return None;
        }
        let is_intact = slice::from_raw_parts(shrunk, smaller)
            .iter()
            .all(|&byte| byte == 0xa5);
        let free = || dealloc(shrunk, Layout::from_size_align_unchecked(smaller, 8));
        if cpus::current().is_multiple_of(2) {
            interrupts::without_interrupts(free);
        } else {
            free();
        }
        is_intact.then_some(is_scattered)
    }
}
