//! What CPUs keep of the page tables in their TLBs: how one forgets it, and how all are made to.
//!
//! A *shootdown* asks all CPUs at work, by one call, however many pages there are. A CPU that is asleep
//! ([`crate::smp::crew`]) is spared: it flushes everything when it wakes, before it touches anything but
//! what is never unmapped (its stack, its block, the code). Not where tables go with the pages: a CPU
//! may walk those ahead of what it executes.
//!
//! Neither global pages nor PCIDs are used. Both keep translations across a load of CR3, and a CPU
//! loads CR3 as it comes up; after that only to flush all, for which these make it do more. The self-test
//! measures the ways to flush beside each other.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use muster_memory::{FlushSet, Shootdown};
use muster_percpu::Admission;
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

use crate::smp::call::{self, Targets, Uses};
use crate::smp::cpu;

/// How long a CPU may take to flush, in milliseconds: a virtual one may be off its host core.
const PATIENCE: u64 = 10_000;

/// What one CPU has done about TLBs. It alone counts, all may read.
pub struct Counters {
    flushes: AtomicU64,
    shootdowns: AtomicU64,
    spared: AtomicU64,
}

impl Counters {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            flushes: AtomicU64::new(0),
            shootdowns: AtomicU64::new(0),
            spared: AtomicU64::new(0),
        }
    }

    /// Flushes of its own TLB, for itself and for others.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Shootdowns it began.
    pub fn shootdowns(&self) -> u64 {
        self.shootdowns.load(Ordering::Relaxed)
    }

    /// CPUs that it did not wake for one.
    pub fn spared(&self) -> u64 {
        self.spared.load(Ordering::Relaxed)
    }
}

/// Every CPU that uses the shared tables.
pub struct AllCpus;

// SAFETY: (1) every CPU at work is called, and this one flushes itself, but for (3) those that are
// asleep: they flush in `wake_up`, which is the first thing that any of their interrupts does, and
// none is spared a table; (2) an AP that joins later loads these tables, which flushes, only after it has
// joined (`ap`), and one that comes too late never does; (4) the others are stopped or never came.
unsafe impl Shootdown for AllCpus {
    /// # Panics
    ///
    /// If a CPU does not answer: it may go on by what it has cached for as long as it likes, so there
    /// is no way on.
    fn flush_on_all_cpus(&self, pages: &FlushSet) {
        let own = cpu::with(|here| here.index());
        let spared = Cell::new(0);
        Admission::before_looking();
        let is_asked = |index| {
            let is_asleep = || {
                let target = cpu::DIRECTORY.get(index);
                target.is_some_and(|target| target.sleep.spare())
            };
            let is_spared = index != own && !pages.has_tables() && is_asleep();
            spared.set(spared.get() + u64::from(is_spared));
            !is_spared
        };
        let targets = Targets::Where(&is_asked);
        if let Err(error) = call::insist(Uses::NoHeap, targets, PATIENCE, &|_| flush(pages)) {
            panic!("a page can't be unmapped: {error}");
        }
        cpu::with(|here| {
            let counters = &here.shared().tlb;
            counters.shootdowns.fetch_add(1, Ordering::Relaxed);
            counters.spared.fetch_add(spared.get(), Ordering::Relaxed);
        });
    }
}

/// Flushes on this CPU. Muster sets neither CR4.PGE nor CR4.PCIDE ([`crate::arch::control`]), so a load
/// of CR3 flushes everything.
fn flush(pages: &FlushSet) {
    match pages.pages() {
        Some(pages) => {
            for &page in pages {
                // The window lies where four and five levels have the same addresses.
                tlb::flush(VirtAddr::new_truncate(page));
            }
        }
        None => tlb::flush_all(),
    }
    count_flush();
}

fn count_flush() {
    cpu::with(|here| {
        here.shared().tlb.flushes.fetch_add(1, Ordering::Relaxed);
    });
}

/// Says that this CPU is about to halt, with interrupts off, and wants to be spared meanwhile.
pub fn fall_asleep() {
    cpu::with(|here| here.shared().sleep.begin());
}

/// Makes up for what this CPU was spared, if it was asleep. To be called before anything that was
/// mapped at run time is touched: first of all in every interrupt, and after the halt.
#[inline]
pub fn wake_up() {
    if cpu::try_with(|here| here.shared().sleep.end()) == Some(true) {
        tlb::flush_all();
        count_flush();
    }
}
