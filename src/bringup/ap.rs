//! The bring-up of an application processor, from the loader's parking loop until it is online.

use core::sync::atomic::Ordering;

use limine::mp;
use muster_cross_cpu::Outcome;
use muster_events::Phase;

use super::{cpu_state, interrupts};
use crate::arch::{control, failpoint, idle, machine_check};
use crate::boot::stack::{self, Slot};
use crate::mm::shared;
use crate::smp::cpu::{Block, Cpu};
use crate::smp::identity::{self, IDENTITY};
use crate::smp::progress::PROGRESS;
use crate::smp::snapshot::SNAPSHOT;
use crate::smp::{cpu, jobs, lapic, stop};

/// Starts an AP. The loader sends it here: on the loader's stack, tables and GDT, with the address
/// of its block in `extra`.
///
/// The order counts. The IDT comes first, so that faults are reported: the loader leaves none. Then
/// the PAT, for until it is set this CPU may cache memory in another way than the others; and the
/// block, by which a report names the CPU. Then the control registers, because the kernel's tables
/// fault on a CPU that has no NX yet; then the tables, because only they map the stack; these lack
/// the window of mappings. The tables that have it are loaded when the CPU has joined, and is asked
/// to flush.
///
/// # Safety
///
/// Entered by an AP of the loader's, once, with the address of a block that
/// [`BlockLayout::create`](cpu::BlockLayout::create) made for it.
pub unsafe extern "C" fn entry(parked: &mp::Cpu) -> ! {
    // SAFETY: this CPU has no block yet.
    unsafe { Cpu::reset() };
    interrupts::load_early();
    let odd_pat = control::set_pat();
    let address = parked.extra.load(Ordering::Acquire);
    let block: *const Block = core::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the BSP stored the address of this CPU's block, made for good, before
    // it released the CPU (Release there, Acquire here); it lies in the HHDM, which
    // the loader's tables map like the kernel's.
    let block: &'static Block = unsafe { &*block };
    let reach = |phase| reach(block.index(), block, phase);
    reach(Phase::Entered);
    // SAFETY: (1) the first code of the kernel's on this CPU, which interrupts nothing of it; interrupts are disabled, and the
    // handlers of NMIs and faults register nothing. (2) A guard does nothing.
    if let Err(error) = unsafe { Cpu::register(block) } {
        panic!("an AP can't register its block: {error}");
    }
    reach(Phase::Block);
    if let Some(found) = odd_pat {
        log::warn!(
            "the loader left {found:#x} in the PAT of CPU {}: set",
            block.index()
        );
    }

    let shared = shared::get();
    control::set(&shared.features());
    reach(Phase::Control);

    shared.load_bring_up_tables();
    reach(Phase::Tables);

    // SAFETY: the slot is this CPU's own, mapped in the tables just loaded, and not yet in use;
    // nothing on the loader's stack is used again.
    unsafe { stack::run_on(Slot::of(block.index()).main().top, run) }
}

/// Reports that AP `index` has reached `phase`.
fn reach(index: u32, block: &cpu::Block, phase: Phase) {
    block.get(&PROGRESS).reach(phase);
    let is_last = index as usize + 1 == cpu::all().len();
    let is_pending = || block.get(&PROGRESS).admission() == Outcome::Pending;
    failpoint::ap_reached(phase, is_last, is_pending);
}

/// Brings an AP online: on its own stack.
extern "C" fn run() -> ! {
    let (index, joined) = cpu::with(|here| {
        let report = here.get(&PROGRESS);
        let reach = |phase| reach(here.index(), here.block(), phase);
        reach(Phase::Stack);
        cpu::load_descriptors();
        interrupts::load();
        here.get(&IDENTITY).record(lapic::registered_id);
        // It differs from the BSP: the BSP names it, and the others go on without it.
        if identity::differences_of(here.block()).next().is_some() && report.give_up() {
            idle::halt_for_good();
        }
        machine_check::start();
        lapic::enable(&[]);
        cpu_state::record(here.block());
        reach(Phase::Descriptors);
        let joined = report.join();
        if joined {
            // A shootdown goes only to CPUs that have joined, so no translation from before that
            // moment may stay in this TLB (`Admission`). If the tables were loaded first, a change
            // between the two steps would be missed.
            shared::get().load_tables();
            here.get(&SNAPSHOT).record_tables();
            reach(Phase::Online);
        }
        (here.index(), joined)
    });
    if stop::is_requested() {
        stop::stop_here(run as *const () as u64);
    }
    if !joined {
        assert!(
            !shared::get().is_loaded(),
            "CPU {index} stays out with the tables of all: it may walk those that are given back"
        );
        log::warn!("CPU {index} came after the roll call's deadline and stays out");
        idle::halt_for_good();
    }
    cpu::with(|here| cpu_state::log_own(index, here.block()));
    jobs::serve(index)
}
