//! The heap that scales: magazines per CPU, over depots, over slabs, over frames.
//!
//! `heap` asks the layers, in this order, and moves blocks from one to the next:
//!
//! 1. `cache`: a CPU's magazines. They are that CPU's alone, so the fast path takes no lock; `restart`
//!    has it as restartable sequences.
//! 2. `depot`: blocks of one class that CPUs exchange, many at a time, under the depot's lock.
//! 3. `slabs`: frames cut into blocks of one class (`slab`), under the class's lock. `slab_map` finds
//!    the slab of a block by its address.
//! 4. `frames`: frames from the kernel, by the [`FramePlatform`].
//!
//! `context` has what depots and slabs use of the rest of the heap: the map, the frames, the record of
//! memory in `transit`, and the CPU. No layer calls `heap`.

mod cache;
mod class;
mod context;
mod deferred;
mod depot;
mod frames;
#[cfg(not(loom))]
mod heap;
#[cfg(all(test, loom))]
mod models;
mod platform;
#[cfg(target_arch = "x86_64")]
mod restart;
mod slab;
mod slab_map;
mod slabs;
mod statistics;
mod transit;

pub use cache::{CpuCache, MagazineStatistics, NO_CACHE};
pub use class::{CLASSES, Class, FRAME, MAX_CACHED, MAX_CLASS_SIZE};
#[cfg(not(loom))]
pub use heap::{MagazineHeap, Shortage};
pub use platform::{FastPath, FramePlatform, FrameSearch, SearchFn};
#[cfg(target_arch = "x86_64")]
pub use restart::resume;
pub use statistics::{ClassStatistics, Totals, Traffic};
