//! The kernel's image. Everything is in the library.

#![no_std]
#![no_main]

use muster as _;
