//! Interrupts: their kinds, their handlers, and their counts.
//!
//! Three rules settle which interrupt may interrupt what:
//!
//! 1. A handler runs with interrupts disabled from its first instruction to its last; no handler
//!    enables them. So handlers do not nest, and a CPU needs stack for one handler at a time.
//! 2. Only an NMI, a machine check and a debug exception interrupt a handler. The NMI means "stop
//!    now" or nothing ([`take_nmi`]), the machine check ends the run, and the debug exception
//!    belongs to a CPU that steps through its code, whose handler then runs in the handler's place.
//!    None of them takes a lock that code below it may hold.
//! 3. A handler may allocate and free. The interrupted code resumes where [`heap::resume_at`] says.
//!    Handlers that never do are declared ([`Kind::leaves_the_heap_alone`]).
//!
//! Every interrupt that is in service is ended before it is handled, not after: with interrupts
//! disabled nothing comes of it, and a handler that never returns leaves nothing behind. But a device's
//! is ended after its handler, in which the device ends its request: ended before, one that is
//! level-triggered would come again.
//!
//! Every vector has a handler. An unexpected interrupt is counted, named once, and ended: firmware
//! leaves devices enabled, and a stray interrupt does no harm here.

use core::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use muster_percpu::cpu_local;

use crate::arch::exceptions::{self, TrapHandler};
use crate::arch::trap::{DEBUG, Frame, Heap, NMI, has_error_code};
use crate::arch::vectors::{
    Counters, ERROR_VECTOR, FIRST, FIRST_DELIVERED, FIRST_DEVICE, Kind, LAST_DEVICE,
    SPURIOUS_VECTOR, TIMER_VECTOR, WAKE_VECTOR,
};
use crate::arch::{failpoint, idle, machine_check, pic};
use crate::mm::heap;
use crate::report::panic;
use crate::smp::cpu::{Cpu, Gs};
use crate::smp::stop::END;
use crate::smp::{call, device_vectors, lapic, lazy_tlb, stop, timer};

/// The handler of all exceptions and interrupts, which the stubs call.
struct Handlers;

impl TrapHandler for Handlers {
    fn handle(frame: &mut Frame) {
        if handle(frame) == Heap::MayBeUsed {
            frame.rip = heap::resume_at(frame.rip);
        }
        frame.rip = idle::resume_at(frame.rip);
    }
}

/// Loads an IDT whose handlers run on the stack in use, so that faults are reported from here on:
/// for a CPU that has no TSS yet.
pub fn load_early() {
    exceptions::load_early::<Handlers>();
}

/// Loads the IDT with interrupt stacks, for a CPU that has loaded its TSS.
pub fn load() {
    exceptions::load::<Handlers>();
}

cpu_local! {
    /// The interrupts that the CPU has taken, on a cache line that no other CPU writes.
    pub shared static INTERRUPTS: CachePadded<Counters> = CachePadded::new(Counters::new());
}

/// Handles an exception or an interrupt. Of the CPU's own exceptions none is expected but the NMI that
/// stops a CPU, the debug exception of a CPU that steps through its code, and the page fault of a probe;
/// every other one ends the run with a report.
fn handle(frame: &mut Frame) -> Heap {
    if frame.vector == DEBUG
        && let Some(heap) = failpoint::trapped::<Gs>(frame)
    {
        return heap;
    }
    if failpoint::caught(frame) {
        return Heap::Untouched;
    }
    if let Some(heap) = take(frame.vector) {
        return heap;
    }
    if frame.vector == NMI && stop::is_requested() {
        // A CPU with a fault of its own is about to record it, and then stops.
        if Cpu::try_with_own(&END, |end| end.has_begun()).unwrap_or(false) {
            return Heap::Untouched;
        }
        stop::stop_here(frame.rip);
    }
    if frame.vector == NMI && take_nmi() {
        return Heap::Untouched;
    }
    panic::exception(frame);
}

/// Handles the interrupt of this vector. Returns `None` if it is an exception.
fn take(vector: u64) -> Option<Heap> {
    let vector = u8::try_from(vector).ok()?;
    let kind = kind_of(vector)?;
    lazy_tlb::leave_idle();
    Cpu::try_with_own(&INTERRUPTS, |counters| counters.count(kind));
    match kind {
        Kind::Timer => {
            lapic::end_of_interrupt();
            timer::fired();
        }
        Kind::Wake => {
            lapic::end_of_interrupt();
            call::answer();
        }
        Kind::Device => {
            device_vectors::run(vector);
            lapic::end_of_interrupt();
        }
        Kind::Error => {
            lapic::end_of_interrupt();
            log::error!("local APIC: {}", lapic::take_errors());
        }
        Kind::Unexpected => end_unexpected(vector),
        // The first is not in service, so there is nothing to end; the second does not come here.
        Kind::Spurious | Kind::Nmi => {}
    }
    Some(if kind.leaves_the_heap_alone() {
        Heap::Untouched
    } else {
        Heap::MayBeUsed
    })
}

/// Returns the kind of the interrupt at a vector; `None` for an exception of the CPU's.
fn kind_of(vector: u8) -> Option<Kind> {
    match vector {
        TIMER_VECTOR => Some(Kind::Timer),
        WAKE_VECTOR => Some(Kind::Wake),
        ERROR_VECTOR => Some(Kind::Error),
        SPURIOUS_VECTOR => Some(Kind::Spurious),
        FIRST_DEVICE..=LAST_DEVICE if device_vectors::is_here(vector) => Some(Kind::Device),
        FIRST.. => Some(Kind::Unexpected),
        // The stub of an exception with an error code has taken another word for the error code.
        FIRST_DELIVERED.. if !has_error_code(vector) => {
            lapic::is_in_service(vector).then_some(Kind::Unexpected)
        }
        _ => None,
    }
}

/// Returns whether this vector is unused: by interrupts, and by exceptions that have an error code.
#[cfg(feature = "selftest")]
pub fn is_unused(vector: u8) -> bool {
    match vector {
        FIRST.. => kind_of(vector) == Some(Kind::Unexpected),
        _ => vector >= FIRST_DELIVERED && !has_error_code(vector),
    }
}

/// Returns the number of unexpected interrupts that this CPU has taken.
#[cfg(feature = "selftest")]
pub fn unexpected_here() -> u64 {
    Cpu::with_own(&INTERRUPTS, |counters| counters.read().of(Kind::Unexpected))
}

/// The vectors at which an unexpected interrupt has come, a bit for each. Relaxed: each bit is set in one
/// step, and nothing else is read by it.
static NAMED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Ends an unexpected interrupt, where it is in service, and names it, the first time.
fn end_unexpected(vector: u8) {
    let line = vector
        .checked_sub(pic::FIRST_VECTOR)
        .filter(|&line| line < pic::LINES);
    let from = if lapic::is_in_service(vector) {
        lapic::end_of_interrupt();
        "a device or another CPU sent it"
    } else if let Some(line) = line {
        pic::end(line);
        "the legacy interrupt controller sent it"
    } else {
        "it is in service nowhere, as after an `int` instruction"
    };
    let bit = 1 << (vector % 64);
    let named = NAMED[usize::from(vector / 64)].fetch_or(bit, Ordering::Relaxed);
    if named & bit == 0 {
        log::warn!(
            target: "irq",
            "unexpected interrupt at vector {vector:#x}: {from}; it is ended, and counted from now on"
        );
    }
}

/// Counts an NMI by which no other CPU stops this one. Returns `false` if the machine reports an
/// error: then the run ends.
///
/// Any other is counted, as in other kernels: management controllers, watchdogs and buttons send NMIs,
/// whose meaning is unknown here, and which do no harm here. The handler uses neither the heap nor
/// locks, nor the local APIC, nor a page that is ever unmapped: so it needs no
/// [`lazy_tlb::leave_idle`], and the interrupted code resumes where it was.
fn take_nmi() -> bool {
    if machine_check::nmi_status().is_error() {
        return false;
    }
    Cpu::try_with_own(&INTERRUPTS, |counters| counters.count(Kind::Nmi));
    true
}
