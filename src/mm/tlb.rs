//! The TLBs: how one CPU flushes its own, and how all are made to.
//!
//! A *shootdown* asks all online CPUs, by one call, however many pages there are. An idle CPU
//! ([`lazy_tlb`]) is spared: it flushes everything when it wakes, before it touches a page that may be
//! unmapped: all but its stack, its block and the code. Not where tables are freed with the pages: a
//! CPU may walk those ahead of what it executes.
//!
//! Neither global pages nor PCIDs are used. Both keep translations across a load of CR3, and a CPU loads
//! CR3 as it comes up; after that only to flush all, which would cost more with them. The self-test
//! compares the ways to flush.

use core::cell::Cell;

use muster_cross_cpu::Admission;
use muster_paging::{FlushSet, Shootdown};
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

use crate::smp::call::{self, Targets, Uses};
use crate::smp::counters::TLB_COUNTERS;
use crate::smp::lazy_tlb::IDLE;
use crate::smp::{cpu, lazy_tlb};

/// How long a CPU may take to flush, in milliseconds: a virtual one may be off its host core.
const TIMEOUT: u64 = 10_000;

/// Every CPU that uses the shared tables.
pub struct AllCpus;

// SAFETY: (1) every online CPU is called, and this one flushes itself, but for (3) the idle ones: they flush in
// `lazy_tlb::leave_idle`, which is the first thing that any of their interrupts does, and none is spared a
// table; (2) an AP that joins later loads these tables, which flushes, only after it has joined (`ap`), and one
// that comes too late never does; (4) the others are stopped or never came.
unsafe impl Shootdown for AllCpus {
    /// # Panics
    ///
    /// If a CPU does not answer: it may use its stale translations for an unbounded time, so the run
    /// can't continue.
    fn flush_on_all_cpus(&self, pages: &FlushSet) {
        let own = cpu::with(|here| here.index());
        let spared = Cell::new(0);
        Admission::fence();
        let is_asked = |index| {
            let is_idle = || {
                let target = cpu::get(index);
                target.is_some_and(|target| target.get(&IDLE).defer())
            };
            let is_spared = index != own && !pages.has_tables() && is_idle();
            spared.set(spared.get() + u64::from(is_spared));
            !is_spared
        };
        let targets = Targets::Where(&is_asked);
        if let Err(error) = call::insist(Uses::NoHeap, targets, TIMEOUT, &|_| flush(pages)) {
            panic!("a page can't be unmapped: {error}");
        }
        cpu::with(|here| {
            here.get(&TLB_COUNTERS).count_shootdown(spared.get());
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
                tlb::flush(VirtAddr::new_truncate(page.get()));
            }
        }
        None => tlb::flush_all(),
    }
    lazy_tlb::count_flush();
}
