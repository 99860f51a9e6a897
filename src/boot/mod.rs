//! Everything that is fixed before the kernel plans anything: the loader's responses, the kernel's
//! image, and the layout of its part of the address space.
//!
//! Imports [`arch`](crate::arch) alone.

pub mod addresses;
pub mod bytes;
pub mod image;
pub mod limine;
pub mod owner;
pub mod stack;
pub mod window;
