//! The cost of calls and shootdowns, measured at each boot.

use alloc::string::{String, ToString};
use core::convert::Infallible;

use conquer_once::spin::OnceCell;
use muster::internals::mm::mapping::{Mapping, MappingError};
use muster::internals::smp::call::{self, CallError, Targets};
use muster::internals::smp::jobs::{self, TimedBarrier};
use muster::internals::smp::online;
use muster_events::Measured;
use muster_frames::FRAME_SIZE;
use muster_paging::Access;
use raw_cpuid::CpuId;
use x86_64::instructions::interrupts;
use x86_64::instructions::tlb::{self, InvPcidCommand};
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::median::Median;

/// How long a CPU may take to answer while calls are measured, in milliseconds: a virtual one may be
/// off its host core.
const CALL_TIMEOUT: u64 = 10_000;

/// Logs the cost of calls to idle CPUs.
///
/// # Errors
///
/// The CPU that did not answer, in words.
pub fn calls() -> Result<(), String> {
    let others = online::count() - 1;
    let Some((first, _)) = online::cpus().nth(1) else {
        return Ok(());
    };
    let one = time_call(Targets::One(first)).map_err(|error| error.to_string())?;
    log::info!(target: "call", "to one CPU and back: {one}");
    one.emit(Measured::CallOne, 1);
    let all = time_call(Targets::Others).map_err(|error| error.to_string())?;
    log::info!(target: "call", "to all {others} others and back: {all}");
    all.emit(Measured::CallAll, others);
    Ok(())
}

/// Measures an empty call to these CPUs, from its beginning to the last answer.
///
/// # Errors
///
/// If a CPU did not answer, or can't be called.
pub fn time_call(targets: Targets<'_>) -> Result<Median, CallError> {
    Median::of(|| call::run(targets, CALL_TIMEOUT, &|_| {}))
}

/// How long a CPU may take to arrive at a measurement, or to finish it, in milliseconds.
const SHOOTDOWN_TIMEOUT: u64 = 60_000;

/// Logs the cost of a shootdown: of a change of a page's rights, on all CPUs, while the others are
/// idle, and while they work.
///
/// # Errors
///
/// Why it can't be measured, in words.
pub fn shootdowns() -> Result<(), String> {
    let others = online::count() - 1;
    let idle = time_shootdown().map_err(|error| error.to_string())?;
    log::info!(target: "mapping", "a shootdown, {others} idle: {idle}");
    idle.emit(Measured::ShootdownIdle, others);
    let busy = OnceCell::uninit();
    let barrier = TimedBarrier::new(others + 1, SHOOTDOWN_TIMEOUT);
    jobs::all(SHOOTDOWN_TIMEOUT, &|slot| {
        barrier.wait();
        if slot == 0 {
            busy.init_once(time_shootdown);
        }
        barrier.wait();
    });
    if let Ok(busy) = busy.try_get() {
        let busy = busy.map_err(|error| error.to_string())?;
        log::info!(target: "mapping", "a shootdown, {others} busy: {busy}");
        busy.emit(Measured::ShootdownBusy, others);
    }
    compare_ways().map_err(|error| error.to_string())
}

/// Measures a change of a page's rights, on all CPUs.
///
/// # Errors
///
/// [`MappingError`]: there is no page for it.
pub fn time_shootdown() -> Result<Median, MappingError> {
    let mut page = Mapping::memory(FRAME_SIZE)?;
    let mut access = Access::ReadWrite;
    Median::of(|| {
        access = match access {
            Access::ReadWrite => Access::ReadOnly,
            _ => Access::ReadWrite,
        };
        // SAFETY: nothing uses the memory.
        unsafe { page.protect(access) }.map_err(MappingError::Change)
    })
}

/// Pages that are read after a flush, so that its cost includes the page-table walks.
const TOUCHED: u64 = 64;

/// Writes to the journal the cost of flushing everything on this CPU alone, in each of the possible
/// ways.
///
/// # Errors
///
/// [`MappingError`]: there is no memory for the pages that are to be read.
fn compare_ways() -> Result<(), MappingError> {
    let pages = Mapping::memory(TOUCHED * FRAME_SIZE)?;
    let read = || {
        for offset in (0..pages.length()).step_by(FRAME_SIZE as usize) {
            // SAFETY: the mapping is readable memory of this length, of which any byte will do.
            unsafe { pages.start().add(offset as usize).read_volatile() };
        }
    };
    let has_invpcid = CpuId::new()
        .get_extended_feature_info()
        .is_some_and(|features| features.has_invpcid());
    let ways: [(&str, bool, &dyn Fn()); 3] = [
        ("CR3", true, &tlb::flush_all),
        ("CR4.PGE", true, &toggle_global_pages),
        ("INVPCID", has_invpcid, &invalidate_all),
    ];
    for (name, _, flush) in ways.into_iter().filter(|&(_, is_there, _)| is_there) {
        let Ok(time) = interrupts::without_interrupts(|| {
            Median::of(|| {
                flush();
                read();
                Ok::<(), Infallible>(())
            })
        });
        log::debug!(target: "tlb", "a flush by {name}, and {TOUCHED} pages read again: {time}");
    }
    Ok(())
}

/// Flushes all, as a kernel with global pages has to.
fn toggle_global_pages() {
    let cr4 = Cr4::read_raw();
    // SAFETY: global pages are enabled for a moment, in which no entry has the bit (`control`);
    // disabling them flushes everything (Intel SDM vol. 3A, 4.10.4.1).
    unsafe {
        Cr4::write_raw(cr4 | Cr4Flags::PAGE_GLOBAL.bits());
        Cr4::write_raw(cr4);
    }
}

/// Flushes all, as a kernel with PCIDs has to.
fn invalidate_all() {
    // SAFETY: the CPU has the instruction (`compare_ways` checks), and it only flushes.
    unsafe { tlb::flush_pcid(InvPcidCommand::All) };
}
