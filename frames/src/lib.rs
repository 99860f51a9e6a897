//! The physical memory of a machine: ranges of it and their owners, and the allocation of its frames.
//!
//! Nothing here touches a register or an address that it was not given, so all of it runs, and is
//! tested, on the host, and on any processor with frames of 4 KiB and 64-bit atomics. It needs `alloc`; what runs
//! after start-up allocates nothing (see [`FrameAllocator`]), so a heap may grow by it.
//!
//! Where the heap has no memory, an error is returned. Not so by [`PhysicalMap`], which is for a kernel that
//! starts: the map of ranges that it keeps ends in [`handle_alloc_error`](alloc::alloc::handle_alloc_error).
//!
//! # What is here
//!
//! In the order in which a kernel needs it:
//!
//! | type | what it is | what it proves |
//! |---|---|---|
//! | [`PhysRange`], [`Frame`] | a range of physical bytes; a frame | never empty or inverted, never beyond what can exist; never frame 0 |
//! | [`RangeMap`] | values of physical ranges | no byte has two |
//! | [`Owner`] | whose memory is, a type of the kernel's own by [`owners!`]; or [`SoleOwner`] | nothing: it is a name |
//! | [`PhysicalMap`] | who owns which byte | each byte of the loader's map has one owner; memory changes hands only from its owner |
//! | [`RunRequest`], [`FrameAlign`] | what is asked of frames that follow each other | an alignment is a power of two, and not bytes taken for frames |
//! | [`FrameAllocator`] | hands out frames, to any number of CPUs at once | no frame twice, none outside free memory, none lost |
//! | [`OwnedFrame`], [`OwnedRun`] | the right to frames that were handed out | one for each frame; a name alone, such as a [`Frame`], frees nothing |
//! | [`FrameCache`] | frames that one CPU has cached | the same, and all of them can be taken back |
//!
//! The frame allocator, which CPUs use at once without a lock, is model-checked under loom, on rows of
//! 4 frames.
//!
//! It does not prove that the loader's memory map is true, and that callers of `unsafe` functions keep to
//! the conditions.
//!
//! # In a kernel of your own
//!
//! ```
//! use muster_frames::*;
//!
//! // Who owns what.
//! let range = |start, end| {
//!     PhysRange::from_bounds(PhysAddr::new(start), PhysAddr::new(end)).unwrap()
//! };
//! let map = PhysicalMap::new([
//!     (range(0x0f_fc00, 0x10_0000), SoleOwner::Rest),
//!     (range(0x10_0000, 0x14_0000), SoleOwner::Free),
//! ])?;
//! let free: Vec<_> = map.ranges(SoleOwner::Free).collect();
//!
//! // The records of the frames; a kernel places them in free memory, by `PhysicalMap::assign`.
//! let records = FrameInfo::needed(free.iter().copied());
//! let records = Box::leak(Box::new_uninit_slice(records));
//! // SAFETY: the map calls the memory free, so nothing uses it, and the records lie elsewhere.
//! let frames = unsafe { FrameAllocator::new(free.into_iter(), [].into_iter(), records)? };
//!
//! let frame = frames.allocate(SoleOwner::Used).unwrap();
//! assert_eq!(frames.totals()[SoleOwner::Used], FRAME_SIZE);
//! assert_eq!(frames.free(frame), Ok(()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # On many CPUs
//!
//! A [`FrameAllocator`] is shared as it is, say in a `static`: nothing in it waits for another CPU.
//! Where frames come and go all the time, give each CPU a [`FrameCache`], kept where only that CPU
//! gets at it and no interrupt comes in between:
//!
//! 1. Make it for as many CPUs as there are: [`FrameAllocator::with_caches`].
//! 2. Each CPU calls [`FrameAllocator::cache`] once, and then the cache's methods.
//! 3. When memory runs out, let each CPU call [`FrameCache::drain`], then try again.
//!
//! `cargo run --release -p muster-frames --example frames` tells what it costs, beside another frame
//! allocator behind a lock.
//!
//! Page tables for such frames are the crate `muster-paging`'s.
#![no_std]

extern crate alloc;
#[cfg(loom)]
extern crate std;

mod addr;
mod chunk;
mod frame_cache;
mod frames;
mod hint;
mod map;
#[cfg(all(test, loom))]
mod models;
mod owned;
mod owner;
mod range;
mod range_map;
mod records;
mod request;
mod run_cache;
mod search;
mod shortage;
mod zone;

pub use addr::PhysAddr;
pub use chunk::FrameInfo;
pub use frame_cache::FrameCache;
pub use frames::{AdoptError, FrameAllocator, FrameRun, FramesError, FreeError, Share};
pub use map::{AssignError, MapError, PhysicalMap, Totals};
pub use owned::{NotFreed, OwnedFrame, OwnedRun};
pub use owner::{MAX_FRAME_OWNERS, MAX_OWNERS, Owner, SoleOwner};
pub use range::{Cut, FRAME_SIZE, Frame, PHYSICAL_LIMIT, PhysRange};
pub use range_map::RangeMap;
pub use request::{FrameAlign, RunRequest};
pub use search::{RunSearch, SearchStep};
pub use shortage::Shortage;
