//! Page tables under [loom](https://docs.rs/loom): every interleaving of CPUs, up to a number of preemptions, and
//! every value that they may then read. `just models` runs them.
//!
//! Each proves something only as far as it finds mistakes: those in `mistakes/paging/`.

#![allow(
    clippy::unwrap_used,
    reason = "a model that finds nothing to unwrap must fail"
)]

use core::ptr::NonNull;
use std::boxed::Box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::vec::Vec;

use muster_frames::{FRAME_SIZE, Frame, OwnedFrame, PhysAddr, SoleOwner};
use muster_sync::loom::thread;
use muster_sync::{AtomicU64, model};

use crate::tables::entry::ENTRIES;
use crate::*;

/// Frames that become tables, by their numbers. At first they hold garbage, as memory does.
struct TableFrames {
    tables: Vec<[AtomicU64; ENTRIES]>,
    taken: AtomicUsize,
}

impl TableFrames {
    fn new(count: usize) -> &'static Self {
        let garbage = || core::array::from_fn(|_| AtomicU64::new(u64::MAX));
        Box::leak(Box::new(Self {
            tables: (0..count).map(|_| garbage()).collect(),
            taken: AtomicUsize::new(0),
        }))
    }
}

// SAFETY: (1) a table is an array of loom's atomics here, which is all that is reached by the pointer;
// (2), (4) it stays where it is; (3) by atomics.
unsafe impl PhysicalMemory for TableFrames {
    fn pointer(&self, phys: PhysAddr) -> Option<NonNull<u8>> {
        let table = self.tables.get((phys.get() / FRAME_SIZE) as usize - 1)?;
        Some(NonNull::from(table).cast())
    }
}

impl FrameSource for TableFrames {
    type Owner = SoleOwner;

    fn owner(&self) -> SoleOwner {
        SoleOwner::Used
    }

    fn take(&self) -> Option<OwnedFrame> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed) as u64 + 1;
        // SAFETY: each number once.
        Some(unsafe { OwnedFrame::from_raw(Frame::from_number(number)?, SoleOwner::Used) })
    }

    fn give_back(&self, _: OwnedFrame) {
        panic!("nothing fails, and nothing is flushed");
    }
}

/// A view of tables without a lock, while a page is mapped in new tables, unmapped, and another one is
/// mapped in the same: the view finds that page or nothing, but no garbage.
#[test]
fn view_against_mapping() {
    const FIRST: VirtAddr = VirtAddr::new(0);
    const PAGE: VirtAddr = VirtAddr::new(FRAME_SIZE);

    model("view against mapping", None, || {
        let memory = TableFrames::new(4);
        let (levels, features) = (Levels::Four, Features::default());
        let mut tables = Tables::new(memory, levels, features, memory).unwrap();
        let mapped = Frame::from_number(9).unwrap();
        // SAFETY: the root of these tables, as many levels as they were made with, and no table is given back.
        let view = unsafe { TableView::new(memory, levels, features, tables.root()) };
        // The reader is the CPU that loom runs last: it tries each value that a load may yield then, but no
        // order in which a load comes before a store whose CPU has loaded the entry in between.
        let reader = thread::spawn(move || match view.path(PAGE).last().unwrap().target {
            Target::Nothing | Target::Withdrawn => {}
            Target::Page(leaf) => assert_eq!(leaf.phys, mapped.start()),
            target => panic!("garbage: {target:?}"),
        });
        let map = |tables: &mut Tables<_>, virt, frame| {
            let (access, cache) = (Access::ReadWrite, Cache::WriteBack);
            // SAFETY: nobody uses the addresses, of which no CPU knows.
            unsafe { tables.map_page(virt, frame, access, cache, memory) }.unwrap();
        };
        map(&mut tables, FIRST, Frame::from_number(8).unwrap());
        // SAFETY: as above.
        let unmapping =
            unsafe { tables.unmap(VirtRange::new(FIRST, FRAME_SIZE).unwrap()) }.unwrap();
        map(&mut tables, PAGE, mapped);
        // Never flushed: no table is given back.
        core::mem::forget(unmapping);
        reader.join().unwrap();
        assert_eq!(tables.translate(PAGE).unwrap().phys, mapped.start());
    });
}
