//! Memory: the shared page tables and frames, the heap, mappings that come and go, and the TLBs.
//!
//! Imports [`report`](crate::report) and what lies below it.

pub mod checked;
pub mod famine;
pub mod firmware;
pub mod frames;
pub mod heap;
pub mod mapping;
pub mod relief;
pub mod shared;
pub mod stack;
pub mod tlb;
