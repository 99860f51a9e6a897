//! Memory: the shared page tables and frames, the heap, mappings that come and go, and the TLBs.
//!
//! Imports [`report`](crate::report) and what lies below it.

pub mod blocks;
pub mod build_error;
pub mod checked;
pub mod famine;
pub mod firmware;
pub mod frames;
pub mod heap;
pub mod heap_memory;
pub mod hhdm;
pub mod layout;
pub mod mapping;
pub mod peek;
pub mod physical;
pub mod relief;
pub mod shared;
pub mod stack;
pub mod tlb;
