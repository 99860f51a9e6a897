//! The heap that scales: magazines per CPU, over depots, over slabs, over frames.

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
pub use heap::MagazineHeap;
pub use platform::{FastPath, FramePlatform};
#[cfg(target_arch = "x86_64")]
pub use restart::resume;
pub use statistics::{ClassStatistics, Totals, Traffic};
