//! The heap that finds what programs do wrong with blocks, and says who did it.

#[cfg(not(loom))]
mod heap;
#[cfg(not(loom))]
mod misuse;
#[cfg(all(test, loom))]
mod models;
#[cfg(not(loom))]
mod platform;
mod quarantine;
#[cfg(not(loom))]
mod record;
#[cfg(any(test, not(loom)))]
mod releases;

#[cfg(not(loom))]
pub use heap::{CheckedHeap, CheckedTotals};
#[cfg(not(loom))]
pub use misuse::{CALLERS, Callers, Misuse, Origin, Violation};
#[cfg(not(loom))]
pub use platform::CheckPlatform;
pub use quarantine::{MAX_QUARANTINED, Quarantine};
