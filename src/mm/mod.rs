//! Memory: the shared page tables and frames, the heap, mappings that come and go, and the TLBs.
//!
//! Imports [`report`](crate::report) and the rooms below it.
//!
//! # Circles
//!
//! - `checked`, `heap_platform`, `mapping`, `relief`, `scattered`: when memory runs out, the heaps ask all CPUs for what they
//!   cache and the checked heap for what waits in quarantine, both of which go back to these heaps; and map frames that are not
//!   contiguous, for which a mapping may need a table's frame, and asks for it as they do.

pub mod blocks;
pub mod build_error;
pub mod checked;
pub mod firmware;
mod frame_slot;
pub mod frames;
pub mod heap;
pub mod heap_memory;
pub mod heap_platform;
pub mod hhdm;
pub mod layout;
pub mod mapping;
pub mod peek;
pub mod physical;
pub mod relief;
pub mod scattered;
pub mod shared;
pub mod stack;
pub mod table_frames;
pub mod tlb;
