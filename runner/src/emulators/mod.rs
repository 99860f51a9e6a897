//! The emulators, QEMU and Bochs: which there are, the machines that they are asked for, and what they
//! are asked while they run.

pub mod bochs;
pub mod camera;
pub mod emulator;
pub mod machine;
pub mod postmortem;
pub mod qmp;
pub mod requirements;
pub mod topology;
