//! Physical memory that exists only where it is used.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;

use crate::owner::{OwnedFrame, Owner};
use muster_frames::{Frame, PhysAddr};
use muster_paging::{FrameSource, PhysicalMemory};

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);

/// Frames that come into being, full of garbage, as they are handed out.
pub struct Ram {
    pages: RefCell<BTreeMap<u64, NonNull<Page>>>,
    next: Cell<u64>,
    /// How many more frames may be handed out.
    pub left: Cell<usize>,
}

// SAFETY: each page is a live allocation of 4096 bytes aligned to 4096, of its own (1, 2), that is
// freed only on drop, or when it is given back; it is otherwise accessed only through `Ram::entry` and `Ram::set_entry`,
// between the calls of the tables' methods, on one thread (3).
unsafe impl PhysicalMemory for Ram {
    fn pointer(&self, phys: PhysAddr) -> Option<NonNull<u8>> {
        self.pages.borrow().get(&phys.get()).map(|page| page.cast())
    }
}

impl Ram {
    /// Memory whose frames are numbered from `first` on.
    pub fn new(first: u64) -> Self {
        Self {
            pages: RefCell::default(),
            next: Cell::new(first),
            left: Cell::new(usize::MAX),
        }
    }

    /// Returns all frames that are handed out.
    pub fn frames(&self) -> Vec<u64> {
        self.pages.borrow().keys().copied().collect()
    }

    fn slot(&self, phys: u64, index: usize) -> *mut u64 {
        assert!(index < 512);
        // SAFETY: `index` is within the page.
        unsafe { self.pages.borrow()[&phys].cast::<u64>().as_ptr().add(index) }
    }

    pub fn entry(&self, phys: u64, index: usize) -> u64 {
        // SAFETY: in bounds, see `slot`; nobody writes at the same time on this one thread.
        unsafe { self.slot(phys, index).read() }
    }

    pub fn set_entry(&self, phys: u64, index: usize, entry: u64) {
        // SAFETY: in bounds, see `slot`; nobody accesses it at the same time on this one thread.
        unsafe { self.slot(phys, index).write(entry) }
    }
}

impl FrameSource for Ram {
    type Owner = Owner;

    fn owner(&self) -> Owner {
        Owner::PageTables
    }

    fn take(&self) -> Option<OwnedFrame> {
        self.left.set(self.left.get().checked_sub(1)?);
        let frame = Frame::from_number(self.next.replace(self.next.get() + 1))?;
        let page = Box::new(Page(UnsafeCell::new([0xaaaa_aaaa_aaaa_aaab; 512])));
        self.pages
            .borrow_mut()
            .insert(frame.start().get(), NonNull::from(Box::leak(page)));
        // SAFETY: this is the allocator: each frame is new, and never handed out again.
        Some(unsafe { OwnedFrame::from_raw(frame, Owner::PageTables) })
    }

    /// From now on the frame can't be reached: a table that is still pointed to would be noticed.
    fn give_back(&self, frame: OwnedFrame) {
        self.left.set(self.left.get().saturating_add(1));
        let page = self
            .pages
            .borrow_mut()
            .remove(&frame.into_raw().start().get())
            .unwrap();
        // SAFETY: leaked from a box when it was handed out; it is in the map no more.
        drop(unsafe { Box::from_raw(page.as_ptr()) });
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        for page in self.pages.get_mut().values() {
            // SAFETY: leaked from a box when it was handed out, and not given back.
            drop(unsafe { Box::from_raw(page.as_ptr()) });
        }
    }
}
