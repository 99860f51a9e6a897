//! The recount of the machine's memory: everything once more, against the counters.

use core::fmt;

use muster_frames::{FRAME_SIZE, Frame, PhysAddr, PhysRange};
use muster_paging::Mismatch;
use nodit::interval::ie;
use nodit::{Interval, NoditSet};

use crate::boot::owner::{Owner, Totals};
use crate::boot::window::{HEAP, MAPPINGS};
use crate::mm::heap::HeapReading;
use crate::mm::shared::SharedMemory;

/// Why a recount of the machine's memory differs from the counters.
#[derive(Debug)]
pub enum RecountError {
    /// The tables can't be walked to their end.
    Tables(Mismatch),
    /// The memory at this physical address is mapped twice in the heap's window.
    MappedTwice(PhysAddr),
    /// The allocator knows nothing of a frame that it was given.
    Unowned(Frame),
    /// A frame is mapped in the heap's window and is not the heap's.
    Heap(Frame),
    /// The magazines should hold as many frames as are the heap's outside its window.
    Magazines {
        /// Frames that are the heap's by their records, and not in its window.
        counted: u64,
        /// Frames that the magazines hold by their own counters.
        counters: u64,
    },
    /// The mappings' window should map as many bytes of frames as are the mappings'.
    Mappings {
        /// Bytes of frames that are the mappings' by their records.
        counted: u64,
        /// Bytes of such frames that the window maps.
        mapped: u64,
    },
    /// An owner has another number of bytes by the counters than by the count, in this order.
    Counters(Owner, u64, u64),
}

impl fmt::Display for RecountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables(error) => error.fmt(f),
            Self::MappedTwice(phys) => {
                write!(f, "the heap's window maps the memory at {phys} twice")
            }
            Self::Unowned(frame) => write!(f, "the frame at {} has no owner", frame.start()),
            Self::Heap(frame) => {
                write!(
                    f,
                    "the heap's window maps {}, which is not its own",
                    frame.start()
                )
            }
            Self::Magazines { counted, counters } => {
                write!(
                    f,
                    "the heap's counters have {counters} frames, its frames are {counted}"
                )
            }
            Self::Mappings { counted, mapped } => {
                write!(
                    f,
                    "the mappings map {mapped} bytes of their frames, which are {counted}"
                )
            }
            Self::Counters(owner, counters, counted) => write!(
                f,
                "{owner} should have {counters} bytes, but has {counted} by the count"
            ),
        }
    }
}

/// Counts everything again, from the records of each frame and by a walk of the tables, and checks
/// it against the counters. Returns the bytes of memory there are, without reserved memory.
///
/// # Errors
///
/// The first difference.
///
/// # Safety
///
/// Nothing is unmapped at the same time.
pub unsafe fn recount(shared: &SharedMemory) -> Result<u64, RecountError> {
    // No lock is held while the set takes memory, which the heap may have to grow for.
    let mut window = NoditSet::<u64, Interval<u64>>::new();
    let mut mapped_twice = None;
    let mut mapped = 0;
    // SAFETY: nothing is unmapped, as the caller promises.
    let tables = unsafe { shared.published_tables() }
        .walk(&mut |leaf| {
            let range = ie(leaf.phys.get(), leaf.phys.get() + leaf.size.bytes());
            let owner = || shared.frames().owner_of(Frame::from_start(leaf.phys)?);
            if MAPPINGS.contains(leaf.virt) && owner() == Some(Owner::Mappings) {
                mapped += leaf.size.bytes();
            }
            if HEAP.contains(leaf.virt) && window.insert_merge_touching(range).is_err() {
                mapped_twice.get_or_insert(leaf.phys);
            }
        })
        .map_err(RecountError::Tables)?;
    if let Some(phys) = mapped_twice {
        return Err(RecountError::MappedTwice(phys));
    }

    let mut counted = Totals::default();
    let mut outside_window = 0;
    let managed = shared
        .map()
        .ranges(Owner::Free)
        .chain(shared.map().ranges(Owner::Loader));
    for frame in managed.flat_map(PhysRange::frames) {
        let owner = shared
            .frames()
            .owner_of(frame)
            .ok_or(RecountError::Unowned(frame))?;
        counted[owner] += FRAME_SIZE;
        match (owner, window.contains_point(&frame.start().get())) {
            (Owner::Heap, false) => outside_window += 1,
            (Owner::Heap, true) | (_, false) => {}
            (_, true) => return Err(RecountError::Heap(frame)),
        }
    }
    let magazines = HeapReading::take().magazine_frames;
    if outside_window != magazines {
        return Err(RecountError::Magazines {
            counted: outside_window,
            counters: magazines,
        });
    }
    if counted[Owner::Mappings] != mapped {
        return Err(RecountError::Mappings {
            counted: counted[Owner::Mappings],
            mapped,
        });
    }
    let apart = shared.bring_up_tables();
    let table_bytes = (tables + apart) as u64 * FRAME_SIZE;
    if counted[Owner::PageTables] != table_bytes {
        let counted = counted[Owner::PageTables];
        return Err(RecountError::Counters(
            Owner::PageTables,
            table_bytes,
            counted,
        ));
    }
    let counters = shared.frames().totals();
    match Owner::ALL
        .iter()
        .copied()
        .find(|&owner| counters[owner] != counted[owner])
    {
        Some(owner) => Err(RecountError::Counters(
            owner,
            counters[owner],
            counted[owner],
        )),
        None => Ok(shared.memory_bytes()),
    }
}
