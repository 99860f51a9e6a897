//! Lines of text on a framebuffer that may not be read, as far as it is logic: the font, the pixels of
//! a character, and which characters have to be drawn again.
//!
//! Nothing here knows where the pixels go: the kernel stores them, a test puts them into a picture,
//! and the runner reads them back from a screenshot.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod font;
mod pixels;
mod text;

pub use font::{HEIGHT, WIDTH, glyph, scale};
pub use pixels::{Channel, Colour, Format};
pub use text::{Cell, Text};
