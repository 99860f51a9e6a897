//! The first frames that are allocated: for the records of all frames, and for each CPU's stacks and
//! per-CPU block.

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use muster_frames::{FRAME_SIZE, FrameInfo, PhysRange, RunRequest};
use muster_paging::{Access, Cache, PageSize, PhysicalMemory, Plan, Region};

use super::build_error::BuildError;
use super::hhdm::Hhdm;
use crate::arch::failpoint;
use crate::boot::limine::Boot;
use crate::boot::owner::{FrameAllocator, Owner, PhysicalMap};
use crate::boot::stack::{self, Slot};
use crate::smp::cpu::{Block, BlockLayout};

/// Sets the frame allocator up over everything free, with its records in the first
/// free range that holds them.
pub fn frame_allocator(map: &mut PhysicalMap, hhdm: Hhdm) -> Result<FrameAllocator, BuildError> {
    let out_of_memory = BuildError::OutOfMemory("the records of its frames");
    let count = FrameInfo::needed(map.ranges(Owner::Free).chain(map.ranges(Owner::Loader)));
    let bytes = (count * size_of::<FrameInfo>()) as u64;
    let place = map
        .ranges(Owner::Free)
        .find(|range| range.len() >= bytes)
        .and_then(|range| PhysRange::new(range.start(), bytes))
        .map(PhysRange::covering_frames)
        .ok_or(out_of_memory)?;
    map.assign(place, Owner::Free, Owner::FrameTable)
        .map_err(|_| BuildError::OutOfMemory("the records of its frames"))?;
    let storage = hhdm
        .pointer(place.start())
        .ok_or(BuildError::OutOfMemory("the records of its frames"))?
        .cast::<MaybeUninit<FrameInfo>>();
    // SAFETY: (1) the range is `count` records long, page-aligned, memory, and in the HHDM of both
    // tables for good; (2) the map now gives it to the frame table, so it is not allocated again;
    // (3) uninitialised is a valid state of the element type.
    let storage = unsafe { core::slice::from_raw_parts_mut(storage.as_ptr(), count) };
    // SAFETY: the loader has left unused what the map calls free, and none of it is taken but for the
    // records, which the map no longer calls free.
    unsafe { FrameAllocator::new(map.ranges(Owner::Free), map.ranges(Owner::Loader), storage) }
        .map_err(BuildError::Frames)
}

/// Makes the stacks and the per-CPU blocks of the first `cpus` CPUs.
pub fn make(
    boot: &Boot,
    cpus: usize,
    layout: &BlockLayout,
    plan: &mut Plan,
    frames: &FrameAllocator,
    hhdm: Hhdm,
) -> Result<Vec<&'static Block>, BuildError> {
    let cpus = boot.cpus.iter().take(cpus).zip(0..);
    let blocks = cpus.map(|(cpu, index)| {
        add_stacks(plan, frames, hhdm, index)?;
        make_block(frames, hhdm, index, cpu.lapic_id, layout)
    });
    blocks.collect()
}

/// Plans the stacks of CPU `index` and takes their frames.
fn add_stacks(
    plan: &mut Plan,
    frames: &FrameAllocator,
    hhdm: Hhdm,
    index: u32,
) -> Result<(), BuildError> {
    for stack in Slot::of(index).stacks() {
        let count = (stack.length() / FRAME_SIZE) as usize;
        // Theirs for good.
        let run = (!failpoint::refuses_frames())
            .then(|| frames.allocate_run(RunRequest::new(count), Owner::Stacks))
            .flatten()
            .ok_or(BuildError::OutOfMemory("the stacks of its CPUs"))?
            .into_raw();
        if let Some(memory) = hhdm.pointer(run.start()) {
            // SAFETY: the run was just taken, is in one piece in the HHDM, and in whole frames.
            unsafe { stack::paint(memory.cast(), stack.length()) };
        }
        plan.add(Region {
            name: stack.name,
            virt: stack.bottom,
            phys: run.start(),
            length: stack.length(),
            access: Access::ReadWrite,
            cache: Cache::WriteBack,
            largest: PageSize::Size4KiB,
        })?;
    }
    Ok(())
}

/// Makes the per-CPU block of CPU `index` in frames of its own.
fn make_block(
    frames: &FrameAllocator,
    hhdm: Hhdm,
    index: u32,
    lapic_id: u32,
    layout: &BlockLayout,
) -> Result<&'static Block, BuildError> {
    let count = (layout.bytes() / FRAME_SIZE) as usize;
    let memory = (!failpoint::refuses_frames())
        .then(|| frames.allocate_run(RunRequest::new(count), Owner::PerCpu))
        .flatten()
        .and_then(|run| hhdm.pointer(run.into_raw().start()))
        .ok_or(BuildError::OutOfMemory("the blocks of its CPUs"))?;
    // SAFETY: the run was just allocated and is never freed; the HHDM maps it, writable, in the
    // loader's tables and in the kernel's.
    unsafe { layout.create(index, lapic_id, memory) }.map_err(BuildError::Place)
}
