//! Physical memory and page tables of an x86-64 kernel.
#![no_std]

extern crate alloc;

mod frames;
mod map;
mod plan;
mod range;
mod range_map;
mod tables;

pub use frames::{AdoptError, FrameAllocator, FrameInfo, FrameRun, FramesError, FreeError};
pub use map::{AssignError, Kind, MapError, MemoryEntry, Owner, PhysicalMap, Totals};
pub use plan::{Access, Cache, Levels, PAT, PageSize, Plan, PlanError, Region, hhdm};
pub use range::{Cut, FRAME_SIZE, Frame, PHYSICAL_LIMIT, PhysRange};
pub use tables::{
    Census, Features, Leaf, Mismatch, PhysicalMemory, Rights, TableError, Tables, Translation,
};
