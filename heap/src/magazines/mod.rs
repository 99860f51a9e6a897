//! The heap that scales: magazines per CPU, over depots, over slabs, over frames.

mod cache;
mod class;
mod depot;
mod frames;
mod heap;
mod platform;
mod slab;
mod slab_map;
mod slabs;
mod statistics;

pub use cache::{CpuCache, MagazineStatistics, NO_CACHE};
pub use class::{CLASSES, Class, FRAME, LARGEST, MOST_CACHED};
pub use heap::MagazineHeap;
pub use platform::FramePlatform;
pub use slab_map::SPAN;
pub use statistics::{ClassStatistics, Totals};
