//! The pure part of the loader: everything that needs no machine, so that a
//! host can test it. The rest, and the story, is in `main.rs`.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod arguments;
pub mod image;
pub mod memory_map;
