//! What a PC's firmware says, and what its interrupt controllers understand: the way from the ACPI root
//! pointer to the list of CPUs ([`acpi`]), the registers and commands of the local APIC ([`lapic`]) and of
//! the I/O APIC ([`io_apic`]), where a device's interrupt arrives ([`routing`]), and what the machine reports
//! of its own errors ([`mca`]); how its CPUs cache memory ([`mtrr`]), how fast they count ([`time`]), and
//! what must be the same on all of them ([`identity`]).
//!
//! Nothing here touches a register or an address. Whoever uses it brings the bytes
//! ([`Firmware`](acpi::Firmware)) or carries the numbers to the hardware, so all of it runs, and is
//! tested and fuzzed, on the host. It needs no heap: the loader uses it as well as the kernel.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod acpi;
pub mod identity;
pub mod io_apic;
pub mod lapic;
pub mod mca;
pub mod mtrr;
pub mod routing;
pub mod time;
