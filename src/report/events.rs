//! Events, for programs: what `output=json` asks for, on the second serial port.
//!
//! They can be emitted anywhere, as a line can be logged: on any CPU, in handlers, where memory is out
//! and in a fault report. Nothing on the way allocates, and a line is made before the port's lock is
//! taken, and is written whole.

use core::sync::atomic::{AtomicBool, Ordering};

use muster_events::{Event, EventLine, Level, Log, Owners, Record, SCHEMA, Start};

use super::serial;
use crate::arch::clock;
use crate::arch::control::{self, Features};
use crate::boot::limine::Boot;
use crate::boot::owner::{Owner, Totals};
use crate::smp::cpu;

/// Whether they are wanted, and there is a port for them. Relaxed: the BSP sets it before any AP is
/// released, and nothing else is read by it.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Opens the port and emits the first event, about the loader and the machine. Called once, on the
/// BSP, before any AP runs.
pub fn start(boot: &Boot, features: &Features, hz: u64) {
    if !serial::start_second() {
        log::warn!(
            "this machine has no second serial port (COM2, 0x2f8): output=json writes no events"
        );
        return;
    }
    WANTED.store(true, Ordering::Relaxed);
    emit(Start {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        loader: boot.loader.as_str().into(),
        command_line: boot.command_line.as_str().into(),
        cpus: boot.cpus.len() as u32,
        usable_bytes: boot.memory.usable_bytes(),
        before_entry_us: clock::micros_before_entry(),
        tsc_hz: hz,
        tsc_invariant: Some(clock::has_invariant_tsc()),
        features: muster_events::Features {
            no_execute: features.no_execute,
            gigabyte_pages: features.gigabyte_pages,
            smep: features.smep,
            smap: features.smap,
            umip: features.umip,
            physical_bits: features.physical_bits,
            levels: control::levels().count(),
        },
    });
}

/// Returns whether emitted events are written.
pub fn are_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// Emits an event, if events are wanted.
pub fn emit<'a>(event: impl Into<Event<'a>>) {
    if are_wanted() {
        write(event.into());
    }
}

// A line is large: not on the caller's stack, where no events are wanted.
#[inline(never)]
fn write(event: Event<'_>) {
    let line = EventLine::of(&Record {
        us: clock::micros(),
        by: Some(cpu::try_with(|here| here.index()).unwrap_or(0)),
        event,
    });
    serial::write_second(line.as_bytes());
}

/// Emits a line of the log.
pub fn log(level: log::Level, target: &str, text: &str) {
    let level = match level {
        log::Level::Error => Level::Error,
        log::Level::Warn => Level::Warn,
        log::Level::Info => Level::Info,
        log::Level::Debug => Level::Debug,
        log::Level::Trace => Level::Trace,
    };
    emit(Log {
        level,
        target: target.into(),
        text: text.into(),
    });
}

/// Converts an owner to that of events.
pub fn owner(owner: Owner) -> muster_events::Owner {
    match owner {
        Owner::Free => muster_events::Owner::Free,
        Owner::Loader => muster_events::Owner::Loader,
        Owner::Kernel => muster_events::Owner::Kernel,
        Owner::FrameTable => muster_events::Owner::FrameTable,
        Owner::PageTables => muster_events::Owner::PageTables,
        Owner::Heap => muster_events::Owner::Heap,
        Owner::Stacks => muster_events::Owner::Stacks,
        Owner::PerCpu => muster_events::Owner::PerCpu,
        Owner::Mappings => muster_events::Owner::Mappings,
        Owner::AcpiReclaimable => muster_events::Owner::AcpiReclaimable,
        Owner::AcpiNvs => muster_events::Owner::AcpiNvs,
        Owner::Framebuffer => muster_events::Owner::Framebuffer,
        Owner::Reserved => muster_events::Owner::Reserved,
        Owner::Bad => muster_events::Owner::Bad,
        Owner::NullFrame => muster_events::Owner::NullFrame,
        Owner::LowMemory => muster_events::Owner::LowMemory,
        Owner::NotWriteBack => muster_events::Owner::NotWriteBack,
    }
}

/// Converts the bytes of all owners to those of events.
pub fn owners(totals: &Totals) -> Owners {
    Owners {
        free: totals[Owner::Free],
        loader: totals[Owner::Loader],
        kernel: totals[Owner::Kernel],
        frame_table: totals[Owner::FrameTable],
        page_tables: totals[Owner::PageTables],
        heap: totals[Owner::Heap],
        stacks: totals[Owner::Stacks],
        per_cpu: totals[Owner::PerCpu],
        mappings: totals[Owner::Mappings],
        acpi_reclaimable: totals[Owner::AcpiReclaimable],
        acpi_nvs: totals[Owner::AcpiNvs],
        framebuffer: totals[Owner::Framebuffer],
        reserved: totals[Owner::Reserved],
        bad: totals[Owner::Bad],
        null_frame: totals[Owner::NullFrame],
        low_memory: totals[Owner::LowMemory],
        not_write_back: totals[Owner::NotWriteBack],
    }
}
