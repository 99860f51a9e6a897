//! The processor and what every PC has beside it: control registers, descriptors, exceptions, clocks,
//! MTRRs, machine checks, the legacy interrupt controller.
//!
//! The lowest room: it imports no other one.

pub mod apic;
pub mod clock;
pub mod control;
pub mod debug_console;
pub mod descriptors;
pub mod exceptions;
pub mod failpoint;
pub mod idle;
pub mod machine_check;
pub mod pic;
#[cfg(feature = "selftest")]
pub mod probe;
#[cfg(feature = "selftest")]
pub mod step;
pub mod timer;
pub mod trap;
pub mod vectors;
