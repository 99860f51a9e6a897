//! Fault injection, so that fault reports can be seen and tested.

use alloc::alloc::{GlobalAlloc, Layout};
use alloc::boxed::Box;
use core::hint::black_box;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use muster::internals::arch::clock::Deadline;
use muster::internals::arch::failpoint;
use muster::internals::arch::failpoint::overflow;
use muster::internals::boot::bytes::Bytes;
use muster::internals::boot::image;
use muster::internals::bringup::interrupts::{is_unused, unexpected_here};
use muster::internals::mm::heap_platform::LIST;
use muster::internals::mm::mapping::Mapping;
use muster::internals::mm::stack::Stack;
use muster::internals::smp::call::{self, Targets};
use muster::internals::smp::cpu::{self, Cpu};
use muster::internals::smp::jobs::{self, TimedBarrier};
use muster::internals::smp::lazy_tlb::IDLE;
use muster::internals::smp::lock::{Level, Lock};
use muster::internals::smp::stop::END;
use muster::internals::smp::{identity, lapic, online, stop};
use muster_arguments::Fault;
use muster_frames::FRAME_SIZE;
use muster_machine::mtrr;
use muster_paging::Access;
use x86_64::instructions::interrupts;
use x86_64::registers::control::{Cr0, Cr0Flags};
use x86_64::registers::model_specific::Msr;

use super::misuse::Misuse;

/// How long the other CPUs wait for the fault, in milliseconds.
const TIMEOUT: u64 = 10_000;

/// How long the BSP waits for an answer, in milliseconds.
const CALL_TIMEOUT: u64 = 1_000;

/// Bytes of a mapping to be misused: large pages and enough small ones that all of the TLB is
/// flushed.
const LARGE_MAPPING: u64 = 2 * 1024 * 1024 + 100 * FRAME_SIZE;

/// Bytes of one with so few pages that they are flushed one by one.
const SMALL_MAPPING: u64 = 3 * FRAME_SIZE;

/// Injects the fault. On a single CPU, that CPU is the last one too.
pub fn inject(fault: Fault) {
    let size = online::count();
    let culprits = match fault {
        Fault::PanicBsp | Fault::PanicInCall => 0..1,
        Fault::PanicTwo => size.saturating_sub(2)..size,
        Fault::PanicAll | Fault::StrayInterrupts => 0..size,
        _ => size - 1..size,
    };
    log::info!("injecting {fault:?}, as fault= asks");
    if let Some(misuse) = Misuse::of(fault) {
        misuse.inject();
        panic!("{fault:?} did not end the run");
    }
    if super::devices::check(fault) {
        return;
    }
    let victim = prepare(fault);
    let barrier = TimedBarrier::new(culprits.len(), TIMEOUT);
    jobs::all(TIMEOUT, &|slot| {
        if culprits.contains(&slot) {
            let is_second = fault == Fault::PanicTwo && slot + 1 < size;
            if is_second {
                // Or the first one's NMI would stop this CPU before it can panic.
                Cpu::with_own(&END, |end| end.begin());
            }
            barrier.wait();
            let deadline = Deadline::after_millis(TIMEOUT);
            while is_second && !stop::is_requested() && !deadline.passed() {
                core::hint::spin_loop();
            }
            commit(fault, victim);
        } else if fault == Fault::UnresponsiveAp && slot == 0 {
            call_the_unresponsive();
        } else if fault == Fault::PanicInShootdown {
            shoot_down();
        } else if fault == Fault::HaltInHeap && slot == 0 {
            wait_for_heap();
        } else if fault == Fault::HaltInLock && slot == 0 {
            wait_for_lock();
        }
    });
    // Wrong registers are found by the audit, and a stray interrupt changes nothing.
    assert!(!fault.ends_run(), "{fault:?} did not end the run");
}

/// Maps memory, has every CPU use it, and unmaps or protects it. Returns the address of the fault,
/// for those faults that are at a mapping.
fn prepare(fault: Fault) -> Option<u64> {
    let (bytes, offset) = match fault {
        Fault::UnmappedRead => (LARGE_MAPPING, LARGE_MAPPING - 1),
        Fault::ProtectedWrite => (SMALL_MAPPING, FRAME_SIZE),
        Fault::MappingOverflow => (SMALL_MAPPING, SMALL_MAPPING),
        _ => return None,
    };
    let mut mapping = map(bytes);
    let start = mapping.start().expose_provenance();
    // Relaxed below: each word is one CPU's, and the end of the job publishes the result.
    let is_kept = AtomicBool::new(true);
    jobs::all(TIMEOUT, &|slot| {
        let pages = (0..bytes).step_by(FRAME_SIZE as usize);
        for page in pages.map(|offset| start as u64 + offset) {
            // A word of this CPU's own in each page.
            let word = ptr::with_exposed_provenance::<AtomicU64>(page as usize);
            // SAFETY: the mapping is writable memory of `bytes` bytes, which all CPUs use by
            // atomics, and lives until the job is done.
            let word = unsafe { &*word.add(slot % (FRAME_SIZE as usize / 8)) };
            word.store(page, Ordering::Relaxed);
            is_kept.fetch_and(word.load(Ordering::Relaxed) == page, Ordering::Relaxed);
        }
    });
    assert!(
        is_kept.into_inner(),
        "a mapping does not keep what is written to it"
    );
    log::info!("every CPU used {} of a mapping", Bytes(mapping.length()));
    match fault {
        Fault::UnmappedRead => {
            drop(mapping);
            // All of it is freed: a second such mapping works as the first did.
            drop(map(bytes));
        }
        Fault::ProtectedWrite => {
            // SAFETY: no reference to it is left; a write to it from now on faults.
            if let Err(error) = unsafe { mapping.protect(Access::ReadOnly) } {
                panic!("a mapping can't be made read-only: {error}");
            }
            core::mem::forget(mapping);
        }
        _ => core::mem::forget(mapping),
    }
    Some(start as u64 + offset)
}

fn commit(fault: Fault, victim: Option<u64>) {
    let victim = victim.unwrap_or_default();
    match fault {
        Fault::UnmappedRead => {
            let byte = ptr::with_exposed_provenance::<u8>(victim as usize);
            // SAFETY: the page is not mapped, so the read faults, and the fault ends the run.
            black_box(unsafe { byte.read_volatile() });
        }
        Fault::ProtectedWrite | Fault::MappingOverflow => {
            let byte = ptr::with_exposed_provenance_mut::<u8>(victim as usize);
            // SAFETY: as above: the page is read-only, or the guard, so the write faults.
            unsafe { byte.write_volatile(0) };
        }
        Fault::PanicBsp | Fault::PanicAp | Fault::PanicTwo | Fault::PanicAll => {
            panic!("asked for by fault=")
        }
        Fault::PanicInShootdown => {
            let deadline = Deadline::after_millis(TIMEOUT);
            while SHOOTDOWNS.load(Ordering::Relaxed) < BEFORE_PANIC && !deadline.passed() {
                core::hint::spin_loop();
            }
            panic!("asked for by fault=");
        }
        Fault::PanicInPanic => panic!("{}", Unspeakable),
        Fault::UnresponsiveAp => become_unresponsive(),
        Fault::HaltInHeap => {
            cpu::with(|here| failpoint::halt_in_growth(here.index()));
            outgrow();
        }
        Fault::HaltInLock => halt_in_lock(),
        Fault::LockOrder => {
            let (first, second) = (Lock::new(Level::Workload, ()), Lock::new(Level::Tables, ()));
            let _second = second.lock();
            let _first = first.lock();
        }
        Fault::CallLocked => {
            let lock = Lock::new(Level::Tables, ());
            let _held = lock.lock();
            call_others(&|_| {});
        }
        Fault::PanicInCall => {
            let own = cpu::with(|here| here.index());
            let last = cpu::all().len() as u32 - 1;
            let answers = AtomicUsize::new(0);
            call_others(&|index| {
                if index == last {
                    // So that the report shows them idle, however slow they were to answer.
                    await_idle(&answers, |index| index != own && index != last);
                    panic!("asked for by fault=");
                }
                // Release: a CPU that sees the answer sees that the other was not idle for it.
                answers.fetch_add(1, Ordering::Release);
            });
        }
        Fault::StackOverflow => overflow(0),
        Fault::MappedStackOverflow => match Stack::new(SMALL_MAPPING) {
            Ok(mut stack) => stack.run(|| overflow(0)),
            Err(error) => panic!("no stack to run off: {error}"),
        },
        Fault::NullRead => {
            // SAFETY: the page is not mapped, so the read faults, and the fault ends the
            // run. In assembly, because no Rust pointer may be null.
            unsafe { core::arch::asm!("mov {0}, [{0}]", inout(reg) 0u64 => _) };
        }
        Fault::WriteText => {
            let text = image::sections()[0].start.as_mut_ptr::<u8>();
            // SAFETY: as above: the page is read-only, so the write faults.
            unsafe { text.write_volatile(0) };
        }
        // SAFETY: the bit takes no right away, and nothing is written to what is read-only, as it should
        // not be.
        Fault::WriteProtectionOff => unsafe {
            Cr0::update(|cr0| cr0.remove(Cr0Flags::WRITE_PROTECT));
        },
        Fault::MemoryTypesChanged => disturb_mtrrs(),
        Fault::MappingLeak => match Mapping::memory(SMALL_MAPPING) {
            Ok(mapping) => core::mem::forget(mapping),
            Err(error) => panic!("there is no mapping to forget: {error}"),
        },
        Fault::StrayInterrupts => get_stray_interrupts(),
        // Injected before there are other CPUs.
        Fault::BootStackOverflow => {}
        // `devices`.
        Fault::TimerInterrupts | Fault::ClockInterrupts | Fault::LevelInterrupts => {}
        // Injected by several CPUs, one after the other: `Misuse`.
        Fault::HeapDoubleFree
        | Fault::HeapOverflow
        | Fault::HeapUnderflow
        | Fault::HeapUseAfterFree
        | Fault::HeapWrongLayout => {}
        Fault::ExecuteHeap => {
            const RETURN: u8 = 0xc3;
            let code = Box::new([RETURN; 16]);
            // SAFETY: as above: the page is not executable, so the call faults. Were
            // it executable, the code would return at once.
            unsafe {
                let code: extern "C" fn() = core::mem::transmute(code.as_ptr());
                code();
            }
        }
    }
}

/// Changes an MTRR of this CPU that is not in use, for the audit to find. Does nothing without one.
fn disturb_mtrrs() {
    let variable = |&(register, _): &(u32, u64)| mtrr::is_variable(register);
    let mut from_last = identity::bsp().iter().copied().filter(variable).rev();
    if let (Some((_, 0)), Some((base, value))) = (from_last.next(), from_last.next()) {
        // SAFETY: the register is there, as the BSP has it and this CPU was admitted, and the pair's mask
        // says that it is not in use. The lower three bits are a type either way.
        unsafe { Msr::new(base).write(value ^ 6) };
    }
}

/// Sends this CPU an interrupt at each unused vector, from its local APIC and by an instruction, as
/// one that is in service nowhere.
fn get_stray_interrupts() {
    let own = cpu::with(|here| cpu::lapic_id(here.block()));
    for vector in (16..=u8::MAX).filter(|&vector| is_unused(vector)) {
        let before = unexpected_here();
        assert!(
            lapic::send_stray(own, vector),
            "no interrupt can be sent to LAPIC id {own}: there is nothing to see here without a local APIC"
        );
        let deadline = Deadline::after_millis(TIMEOUT);
        while unexpected_here() == before && !deadline.passed() {
            core::hint::spin_loop();
        }
        assert!(
            !deadline.passed(),
            "the interrupt at vector {vector:#x} did not come"
        );
    }
    // SAFETY: the vector has a handler, which neither uses the heap nor changes a register. The
    // second is that of the legacy controller's spurious interrupt.
    unsafe { core::arch::asm!("int 0x50", "int 0x27") };
}

/// A message that panics when it is formatted.
struct Unspeakable;

impl core::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        panic!("{}", Self)
    }
}

fn map(bytes: u64) -> Mapping {
    Mapping::memory(bytes).unwrap_or_else(|error| panic!("no mapping to misuse: {error}"))
}

/// The number of pages that were mapped and unmapped while the last AP waits to panic, and the number
/// that it waits for. Relaxed: a count, by which nothing else is read.
static SHOOTDOWNS: AtomicUsize = AtomicUsize::new(0);
const BEFORE_PANIC: usize = 8;

/// Maps and unmaps until the run ends.
fn shoot_down() {
    let deadline = Deadline::after_millis(TIMEOUT);
    while !deadline.passed() {
        drop(map(SMALL_MAPPING));
        SHOOTDOWNS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a CPU has disabled interrupts and serves no calls. Release and Acquire: a CPU that sees it set
/// calls after the interrupts were disabled.
static IS_UNRESPONSIVE: AtomicBool = AtomicBool::new(false);

fn become_unresponsive() {
    interrupts::disable();
    IS_UNRESPONSIVE.store(true, Ordering::Release);
    let deadline = Deadline::after_millis(TIMEOUT);
    while !deadline.passed() {
        core::hint::spin_loop();
    }
}

/// Allocates until the heap has to grow, while another CPU has halted there.
fn wait_for_heap() {
    let deadline = Deadline::after_millis(TIMEOUT);
    while !failpoint::has_halted_in_growth() && !deadline.passed() {
        core::hint::spin_loop();
    }
    outgrow();
}

/// Allocates from the list until it has to grow.
fn outgrow() {
    let layout = Layout::new::<[u8; 64 * 1024]>();
    let growths = LIST.statistics().growths;
    // SAFETY: the size is not zero. Nothing is freed: the run ends by it.
    while LIST.statistics().growths == growths && !unsafe { LIST.alloc(layout) }.is_null() {}
}

/// A lock whose holder halts, and whether it has. Release and Acquire: a CPU that sees it sees the lock
/// taken.
static HALTS_HOLDER: Lock<()> = Lock::new(Level::Workload, ());
static HOLDER_HAS_HALTED: AtomicBool = AtomicBool::new(false);

/// Halts this CPU for good while it holds a lock.
fn halt_in_lock() {
    let _held = HALTS_HOLDER.lock();
    HOLDER_HAS_HALTED.store(true, Ordering::Release);
    loop {
        // Interrupts are disabled: an NMI alone ends it, which does not return.
        x86_64::instructions::hlt();
    }
}

/// Waits for a lock whose holder has halted.
fn wait_for_lock() {
    let deadline = Deadline::after_millis(TIMEOUT);
    while !HOLDER_HAS_HALTED.load(Ordering::Acquire) && !deadline.passed() {
        core::hint::spin_loop();
    }
    drop(HALTS_HOLDER.lock());
}

/// Calls all others, of which one is unresponsive.
fn call_the_unresponsive() {
    let deadline = Deadline::after_millis(TIMEOUT);
    while !IS_UNRESPONSIVE.load(Ordering::Acquire) && !deadline.passed() {
        core::hint::spin_loop();
    }
    call_others(&|_| {});
}

fn call_others(work: &call::Work<'_>) {
    // Relaxed below: the end of the call publishes the count.
    let answers = AtomicUsize::new(0);
    let result = call::run(Targets::Others, CALL_TIMEOUT, &|index| {
        work(index);
        answers.fetch_add(1, Ordering::Relaxed);
    });
    log::info!("{} CPUs have answered", answers.into_inner());
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// Waits until as many CPUs have answered as are among `idle`, and all of those are idle again.
fn await_idle(answers: &AtomicUsize, idle: impl Fn(u32) -> bool) {
    let idle = || online::cpus().filter(|&(index, _)| idle(index));
    let deadline = Deadline::after_millis(TIMEOUT);
    let is_over = || {
        // Acquire, the answers first: before its answer a CPU may still be idle from before the call.
        answers.load(Ordering::Acquire) == idle().count()
            && idle().all(|(_, block)| block.get(&IDLE).is_idle())
    };
    while !is_over() && !deadline.passed() {
        core::hint::spin_loop();
    }
}
