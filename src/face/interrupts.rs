//! Devices' interrupts: routes from an input of an I/O APIC to a handler on one CPU.
//!
//! The kernel finds the vector. A client says which interrupt it means, by ISA's number of it ([`route_isa`]) or
//! by the global system interrupt (GSI) that ACPI has for it ([`route_gsi`]), and which CPU is to take it.
//!
//! A handler runs as an interrupt does: with interrupts disabled, on top of whatever its CPU does, and never on
//! top of itself. It may allocate, free and log, and write to its device. It must not wait for what the
//! interrupted code holds, nor for another CPU, nor remove its own route. It has the device end its request if
//! that is level-triggered, or the interrupt comes again at once: the kernel ends the interrupt after the handler.
//!
//! An edge that comes while there is no route is lost. A device that holds its line until it is attended to, as
//! the real-time clock does, must be attended to once more when its route stands.

use crate::bringup::routes;

pub use muster_machine::io_apic::{IoApicError, Polarity, Signal, Trigger};
pub use muster_machine::routing::RoutingError;

pub use crate::bringup::routes::{Interrupt, RouteError};
pub use crate::smp::device_vectors::{Handler, VectorError};

/// Routes ISA's interrupt `irq` (0 to 15) to the CPU with this index, where `handler` runs each time that it
/// comes, until the result is dropped. It arrives, and is signalled, as the firmware says.
///
/// # Errors
///
/// [`RouteError`], if no I/O APIC has the interrupt, it has a route already, no vector is free, or the CPU is
/// not online, does not take calls, or has a LAPIC id above 254; nothing is routed then.
///
/// # Panics
///
/// If this CPU holds a lock of the kernel's.
pub fn route_isa(irq: u8, cpu: u32, handler: Handler) -> Result<Interrupt, RouteError> {
    routes::isa(irq, cpu, handler)
}

/// Routes the interrupt that arrives at a GSI, as [`route_isa`] does. It is signalled as `signal` says
/// ([`Signal::PCI`] for a line of PCI's), unless the firmware has one of ISA's arrive there.
///
/// # Errors
///
/// As [`route_isa`].
///
/// # Panics
///
/// As [`route_isa`].
pub fn route_gsi(
    gsi: u32,
    signal: Signal,
    cpu: u32,
    handler: Handler,
) -> Result<Interrupt, RouteError> {
    routes::gsi(gsi, signal, cpu, handler)
}
