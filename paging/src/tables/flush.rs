//! The flush that CPUs have to run when tables change, and the proof that they did.
//!
//! A CPU keeps translations in its TLB, and pointers to tables in its paging-structure caches, for as
//! long as it likes, and no CPU looks into another's. Until every one of them has been told (Intel SDM
//! vol. 3, 5.10.5 "Propagation of Paging-Structure Changes to Multiple Processors"), a page taken away
//! can still be written to, and a table taken away can still be walked, which may even set accessed
//! bits in it. So what was unmapped must not be used again until then.

use crate::virt_addr::VirtAddr;
use core::fmt;
use core::mem::ManuallyDrop;

use crate::unique::Unique;
use crate::virt_range::VirtRange;

/// The most pages that are flushed one by one; beyond, all of the TLB is.
///
/// Each page costs an INVLPG of some hundred cycles, a full flush a reload of what was of use in the
/// TLB. Linux measured on many CPUs and settled on 33 (`tlb_single_page_flush_ceiling`, see its
/// `Documentation/arch/x86/tlb.rst`); it matters little, as long as it is about that.
pub const FLUSH_LIMIT: usize = 32;

/// The pages that a CPU has to flush.
///
/// It has a fixed size: it is made while the tables are locked, when no code may allocate, and is read
/// by other CPUs in interrupt handlers.
#[derive(Clone)]
pub struct FlushSet {
    pages: [VirtAddr; FLUSH_LIMIT],
    /// Pages added; only the first [`FLUSH_LIMIT`] are kept.
    count: usize,
    /// The number of tables that were removed with them.
    tables: usize,
}

impl FlushSet {
    pub(super) const fn new() -> Self {
        Self {
            pages: [VirtAddr::new(0); FLUSH_LIMIT],
            count: 0,
            tables: 0,
        }
    }

    pub(super) fn add(&mut self, virt: VirtAddr) {
        if let Some(page) = self.pages.get_mut(self.count) {
            *page = virt;
        }
        self.count = self.count.saturating_add(1);
    }

    pub(super) fn add_table(&mut self) {
        self.tables += 1;
    }

    pub(super) const fn table_count(&self) -> usize {
        self.tables
    }

    /// Returns whether tables may go with the pages. If so, a CPU that is halted has to flush as well:
    /// until it has, it may walk them, as CPUs do ahead of what they execute. Of a page that it does
    /// not use it may keep what it has cached until it wakes.
    pub const fn has_tables(&self) -> bool {
        self.tables > 0
    }

    /// Returns whether there is nothing to flush.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns an address in each page that has to be flushed, whatever its size, by INVLPG; `None` if
    /// it is everything, global pages included.
    ///
    /// One INVLPG is enough for a page of any size, and for the tables on the way to it: it drops all
    /// paging-structure caches of the current PCID (Intel SDM vol. 3, 5.10.4.1 "Operations that
    /// Invalidate TLBs and Paging-Structure Caches"). With more than one PCID in use, those of the
    /// others must go by INVPCID. Everything goes by a write to CR3 where there are neither global
    /// pages nor PCIDs, and else by changing CR4.PGE or by INVPCID.
    pub fn pages(&self) -> Option<&[VirtAddr]> {
        self.pages.get(..self.count)
    }
}

impl fmt::Debug for FlushSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pages() {
            Some(pages) => f.debug_tuple("FlushSet").field(&pages).finish(),
            None => f.write_str("FlushSet(everything)"),
        }
    }
}

/// Makes all CPUs flush.
///
/// # Safety
///
/// When [`Self::flush_on_all_cpus`] returns, this is true of every CPU that can use the tables:
///
/// 1. it has flushed the pages, or everything, after the call began; or
/// 2. it had nothing of the tables cached when the call began, and none of the pages since: as one
///    that loads the tables later, or runs on [a root that lacks the pages](super::Tables::root_without);
///    or
/// 3. it is halted and flushes before it touches any of the pages, and [no table goes with
///    them](FlushSet::has_tables); or
/// 4. it has stopped for good.
///
/// What was stored before the call is visible to each of them before it flushes.
///
/// The tables are those that the pages are of, whichever they are: nothing else keeps safe code from
/// giving one address space's [`Unmapping`] to the shootdown of another. A kernel that has several, used by
/// different CPUs, asks all of these.
pub unsafe trait Shootdown {
    /// Returns when all CPUs have flushed. Called without any lock: a CPU that waits for a lock with
    /// interrupts off does not answer.
    fn flush_on_all_cpus(&self, pages: &FlushSet);
}

/// The pages that have to be flushed on all CPUs, now: a promise to do it.
///
/// It can only be kept by [`Self::run`]. One that is dropped panics where debug assertions
/// are on; where not, CPUs may go on by what they have cached.
#[must_use = "until they have flushed, CPUs go by the old tables"]
#[derive(Debug)]
pub struct Flush {
    pages: FlushSet,
}

impl Flush {
    pub(super) const fn new() -> Self {
        Self {
            pages: FlushSet::new(),
        }
    }

    pub(super) fn add(&mut self, virt: VirtAddr) {
        self.pages.add(virt);
    }

    pub(super) fn add_table(&mut self) {
        self.pages.add_table();
    }

    /// Returns the pages that have to be flushed.
    pub const fn pages(&self) -> &FlushSet {
        &self.pages
    }

    /// Has all CPUs flush, if there is something.
    pub fn run(self, shootdown: &impl Shootdown) {
        // First: if the shootdown panics, a second panic by the drop would end the program.
        let this = ManuallyDrop::new(self);
        if !this.pages.is_empty() {
            shootdown.flush_on_all_cpus(&this.pages);
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        debug_assert!(
            self.pages.is_empty(),
            "a flush was forgotten: {:?}",
            self.pages
        );
    }
}

/// Pages that were taken out of the tables, and that CPUs may still have cached.
///
/// The tables keep the frames, of the pages and of tables that have become empty, and refuse to map
/// anything there, until they get this back as [`Unmapped`]. If it is dropped, that is forever: a
/// leak, and a panic where debug assertions are on, but no frame is ever in two hands.
#[must_use = "until the CPUs have flushed, neither the addresses nor the frames can be used again"]
#[derive(Debug)]
pub struct Unmapping {
    pub(super) tables: Unique,
    pub(super) range: VirtRange,
    pub(super) flush: Flush,
}

impl Unmapping {
    /// Returns the range that was unmapped.
    pub const fn range(&self) -> VirtRange {
        self.range
    }

    /// Returns the pages that have to be flushed.
    pub const fn pages(&self) -> &FlushSet {
        self.flush.pages()
    }

    /// Has all CPUs flush, if there is something.
    pub fn flush(self, shootdown: &impl Shootdown) -> Unmapped {
        self.flush.run(shootdown);
        Unmapped {
            tables: self.tables,
            range: self.range,
        }
    }
}

/// Pages that were taken out of the tables, and that no CPU has cached any more.
#[must_use = "the tables keep the frames until `Tables::complete` gets this"]
#[derive(Debug)]
pub struct Unmapped {
    pub(super) tables: Unique,
    pub(super) range: VirtRange,
}
