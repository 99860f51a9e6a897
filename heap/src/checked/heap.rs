//! The checked heap: what it does with a block from its allocation to the end of its quarantine.

use core::alloc::{GlobalAlloc, Layout};
use core::ops::ControlFlow;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;
use core::{fmt, hint};

use super::misuse::{Callers, Misuse, Origin, Violation};
use super::record::{Candidate, Checked, FRONT, Outer, State};
use super::releases::Releases;
use super::{CheckPlatform, Quarantine};

/// The number of times that a second free polls for the first one's record.
const LOOKS: usize = 1 << 16;

/// A heap that finds misuses of the blocks of another one, and names their origin.
///
/// It asks the wrapped heap for 144 to 159 bytes more than each block, or, where that is aligned to more than 128 bytes, for
/// 16 to 31 more than the alignment: in front lies a record of the
/// CPU and the callers that allocated and freed the block; and on either side lies a guard, of which
/// the one behind begins with the first byte after the requested size. A freed block is poisoned and
/// waits in its CPU's [`Quarantine`] for as long as that has room.
///
/// | what is found | when |
/// |---|---|
/// | a second free | at once, until the memory is somebody else's |
/// | a free with another layout | at once |
/// | a free of what is no block | at once, if the memory can be read and isn't just like a block |
/// | a write past the end or before the start | when the block is freed, and when it leaves the quarantine |
/// | a write after the free | when the block leaves the quarantine |
///
/// and [`flush`](Self::flush) has all blocks leave. Then [`CheckPlatform::report`] gets all that is
/// known.
///
/// No lock is taken: the record of a block belongs to the owner of the block, and a quarantine is
/// atomic exchanges. It may be used wherever the wrapped heap may be.
///
/// # Out of memory
///
/// Before it answers null, all quarantines are flushed; but not for more than the machine
/// [has](CheckPlatform::capacity). A `realloc` is an allocation and a free here, so that the old block is
/// watched: one that makes a block smaller needs memory, too.
pub struct CheckedHeap<H, P> {
    heap: H,
    platform: P,
    releases: Releases,
}

/// The blocks and bytes that a checked heap holds. Exact while no CPU uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckedTotals {
    /// Bytes allocated and not freed, as asked for; negative if more were freed.
    pub live_bytes: i64,
    /// Blocks allocated and not freed; negative as above.
    pub live_blocks: i64,
    /// Bytes in quarantine, with what the checks add to them. A block whose record was overwritten stays counted when that
    /// is reported: its size is not known any more.
    pub quarantined_bytes: usize,
    /// Blocks that were freed and came out of quarantine with nothing wrong.
    pub sound_blocks: u64,
}

impl<H: GlobalAlloc, P: CheckPlatform> CheckedHeap<H, P> {
    /// Wraps a heap whose blocks no other code frees.
    pub const fn new(heap: H, platform: P) -> Self {
        Self {
            heap,
            platform,
            releases: Releases::new(),
        }
    }

    /// Returns the heap whose blocks these are.
    pub const fn heap(&self) -> &H {
        &self.heap
    }

    /// Returns the platform this heap stands on.
    pub const fn platform(&self) -> &P {
        &self.platform
    }

    /// Returns what a block takes of the wrapped heap. `None`: more than there can be.
    pub const fn taken(layout: Layout) -> Option<Layout> {
        match Outer::of(layout) {
            Some(outer) => Some(outer.layout),
            None => None,
        }
    }

    /// Does what [`GlobalAlloc::alloc`] does, for a caller who knows who it is called by.
    pub fn allocate(&self, layout: Layout, callers: Callers) -> *mut u8 {
        let Some((outer, start)) =
            Outer::of(layout).and_then(|outer| Some(outer).zip(self.obtain(outer.layout)))
        else {
            return ptr::null_mut();
        };
        // SAFETY: new, and of `outer`.
        let checked = unsafe { Checked::create(start, layout, outer, self.here(callers)) };
        let tally = &self.platform.quarantine().tally;
        tally.live_blocks.fetch_add(1, Ordering::Relaxed);
        // Exact: a layout's size is at most `isize::MAX`.
        let size = layout.size() as i64;
        tally.live_bytes.fetch_add(size, Ordering::Relaxed);
        checked.block().as_ptr()
    }

    /// Does what [`GlobalAlloc::dealloc`] does, for a caller who knows who it is called by.
    ///
    /// # Safety
    ///
    /// As there, but for what this heap is there to find.
    pub unsafe fn free(&self, block: *mut u8, layout: Layout, callers: Callers) {
        let here = self.here(callers);
        let unknown = Misuse {
            violation: Violation::NoBlock(layout),
            block: block.addr(),
            layout: None,
            allocated: None,
            freed: None,
            found: here,
        };
        let Some(candidate) = self.candidate(block) else {
            self.platform.report(&unknown);
        };
        // Checked first: an address that is no block may be memory that can only be read.
        let is_first =
            candidate.state() == Some(State::Live) && candidate.advance(State::Live, State::Going);
        let noted = candidate.allocated();
        let known = Misuse {
            layout: noted.map(|(layout, _)| layout),
            allocated: noted.map(|(_, origin)| origin),
            ..unknown
        };
        if !is_first {
            self.platform.report(&Misuse {
                violation: match (candidate.state(), noted) {
                    (Some(_), _) => Violation::FreedTwice,
                    (None, Some(_)) => Violation::Record,
                    (None, None) => Violation::NoBlock(layout),
                },
                freed: first_free(candidate),
                ..known
            });
        }
        // SAFETY: there was such a block, which was live until now.
        let checked =
            noted.and_then(|(layout, _)| unsafe { Checked::at(candidate.block(), layout) });
        let Some(checked) = checked else {
            self.platform.report(&Misuse {
                violation: Violation::Record,
                ..unknown
            });
        };
        if let Err(violation) = checked.check_guards() {
            self.platform.report(&Misuse { violation, ..known });
        }
        if checked.layout != layout {
            self.platform.report(&Misuse {
                violation: Violation::FreedAs(layout),
                ..known
            });
        }
        // SAFETY: the caller frees the block, and is the first to do so.
        unsafe { checked.poison(here) };
        candidate.advance(State::Going, State::Waiting);
        self.quarantine(checked, here);
    }

    /// Checks all blocks in quarantines, gives them back to the wrapped heap, and returns how many
    /// there were.
    pub fn flush(&self) -> usize {
        let mut releasing = self.releases.begin();
        let here = self.here(Callers::NONE);
        self.platform.each_quarantine(&mut |quarantine| {
            for block in quarantine.take_all() {
                self.release(quarantine, block, here);
                releasing.blocks += 1;
            }
        });
        releasing.blocks
    }

    /// Returns the blocks and bytes that the heap holds.
    pub fn totals(&self) -> CheckedTotals {
        let mut totals = CheckedTotals::default();
        self.platform.each_quarantine(&mut |quarantine| {
            let tally = &quarantine.tally;
            totals.live_bytes += tally.live_bytes.load(Ordering::Relaxed);
            totals.live_blocks += tally.live_blocks.load(Ordering::Relaxed);
            totals.quarantined_bytes += quarantine.bytes();
            totals.sound_blocks += tally.released.load(Ordering::Relaxed);
        });
        totals
    }

    fn here(&self, callers: Callers) -> Origin {
        Origin {
            cpu: self.platform.cpu(),
            callers,
        }
    }

    /// Gets memory, if there is any, be it in quarantine or on its way from there.
    fn obtain(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mut waited = 0;
        self.releases.obtain(
            || {
                // SAFETY: a guard at least is more than nothing.
                let start = NonNull::new(unsafe { self.heap.alloc(layout) });
                // Asked for after all, as the wrapped heap counts what it refuses.
                if start.is_some() || layout.size() > self.platform.capacity() {
                    return ControlFlow::Break(start);
                }
                ControlFlow::Continue(())
            },
            || {
                self.flush();
            },
            || self.platform.wait_for_release(&mut waited),
        )
    }

    /// Returns what was freed, if it can be read.
    fn candidate(&self, block: *mut u8) -> Option<Candidate> {
        let block = NonNull::new(block)?;
        let start = block.addr().get().checked_sub(FRONT)?;
        if !Candidate::may_be_at(block) || !self.platform.may_read(start, FRONT) {
            return None;
        }
        // SAFETY: the platform says so.
        Some(unsafe { Candidate::new(block) })
    }

    /// Puts a block in quarantine, and others out for it.
    fn quarantine(&self, checked: Checked, here: Origin) {
        let quarantine = self.platform.quarantine();
        quarantine.tally.live_blocks.fetch_sub(1, Ordering::Relaxed);
        let size = checked.layout.size() as i64;
        quarantine
            .tally
            .live_bytes
            .fetch_sub(size, Ordering::Relaxed);
        let bytes = checked.outer.layout.size();
        let mut releasing = self.releases.begin();
        let first = quarantine.push(checked.block(), bytes);
        let others = core::iter::from_fn(|| quarantine.pop_surplus());
        for block in first.into_iter().chain(others) {
            self.release(quarantine, block, here);
            releasing.blocks += 1;
        }
    }

    /// Checks a block that has left a quarantine, and gives it back.
    fn release(&self, quarantine: &Quarantine, block: NonNull<u8>, here: Origin) {
        // SAFETY: it was put in there with its record, and the memory has not been given back.
        let candidate = unsafe { Candidate::new(block) };
        let noted = candidate.allocated();
        let freed = candidate.freed();
        let misuse = |violation| Misuse {
            violation,
            block: block.addr().get(),
            layout: noted.map(|(layout, _)| layout),
            allocated: noted.map(|(_, origin)| origin),
            freed,
            found: here,
        };
        // SAFETY: as above.
        let checked = noted.and_then(|(layout, _)| unsafe { Checked::at(block, layout) });
        let Some(checked) = checked else {
            self.platform.report(&misuse(Violation::Record));
        };
        quarantine.forget(checked.outer.layout.size());
        let checks = [Checked::check_guards, Checked::check_poison];
        if let Some(violation) = checks.iter().find_map(|check| check(&checked).err()) {
            self.platform.report(&misuse(violation));
        }
        let is_whole = freed.is_some() && candidate.advance(State::Waiting, State::Gone);
        if !is_whole {
            self.platform.report(&misuse(Violation::Record));
        }
        quarantine.tally.released.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the wrapped heap gave it for that layout, and who had the block has freed it.
        unsafe { (self.heap).dealloc(checked.start().as_ptr(), checked.outer.layout) };
    }
}

/// Returns the origin of a block's first free. Waits for a while for the note, if that is being written
/// just now: unless the second free is on top of the first on the same CPU, it will come.
fn first_free(candidate: Candidate) -> Option<Origin> {
    for _ in 0..LOOKS {
        if candidate.state() != Some(State::Going) {
            break;
        }
        hint::spin_loop();
    }
    candidate.freed()
}

// SAFETY: (1) a block lies within one of the wrapped heap's, aligned as asked for, which is given
// back after the block is freed. (2) Nothing unwinds but what a misuse makes the platform's.
unsafe impl<H: GlobalAlloc, P: CheckPlatform> GlobalAlloc for CheckedHeap<H, P> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.allocate(layout, self.platform.callers())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.free(block, layout, self.platform.callers()) };
    }
}

impl<H: GlobalAlloc, P: CheckPlatform> fmt::Debug for CheckedHeap<H, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedHeap")
            .field("totals", &self.totals())
            .finish_non_exhaustive()
    }
}
