//! The screen: the same lines as on the serial port, on the framebuffer, if the loader found one.
//!
//! It is mapped write-combining, in the loader's tables and in the kernel's at the same addresses, so
//! that it can be drawn on from the first line on; and it is never read: [`Text`] remembers what is
//! there. Lines come one at a time, but for those of a fault's reporter, which waits for no other
//! CPU.

use core::iter;

use conquer_once::spin::OnceCell;
use muster_boot::Framebuffer;
use muster_screen::{Cell, Colour, Format, HEIGHT, Text, WIDTH, glyph, scale};

use super::serial;
use crate::smp::lock::{Level, Lock};

static SCREEN: OnceCell<Screen> = OnceCell::uninit();

/// Held by the CPU that draws.
static TURN: Lock<()> = Lock::new(Level::Screen, ());

struct Screen {
    /// The address of the first pixel.
    start: usize,
    /// Bytes from one row of pixels to the next.
    pitch: usize,
    format: Format,
    /// How many pixels wide and high each of a character's is.
    scale: usize,
    text: Text,
}

/// Clears the screen, and shows the log there from now on. Called once, on the BSP.
pub fn start(framebuffer: &Framebuffer) {
    let Framebuffer {
        address,
        width,
        height,
        pitch,
        format,
    } = *framebuffer;
    let scale = scale(width, height);
    let Some(text) = Text::new(width / WIDTH / scale, height / HEIGHT / scale) else {
        log::warn!(
            "the screen stays as it is: {width} by {height} pixels are too few, or too many"
        );
        return;
    };
    let screen = Screen {
        start: address.get() as usize,
        pitch,
        format,
        scale,
        text,
    };
    for y in 0..height {
        screen.put(0, y, iter::repeat_n(0, width));
    }
    SCREEN.init_once(|| screen);
}

/// Shows a line, if there is a screen.
pub fn write(line: &str, colour: Colour) {
    let Ok(screen) = SCREEN.try_get() else { return };
    let _turn = (!serial::is_seized_here()).then(|| TURN.lock());
    screen.text.write(line, colour, &mut |column, row, cell| {
        screen.draw(column, row, cell);
    });
}

impl Screen {
    fn draw(&self, column: usize, row: usize, cell: Cell) {
        let (left, top) = (column * WIDTH * self.scale, row * HEIGHT * self.scale);
        for (y, inks) in glyph(cell.character).chunks_exact(WIDTH).enumerate() {
            let mut pixels = [0; WIDTH];
            for (pixel, &ink) in pixels.iter_mut().zip(inks) {
                *pixel = self.format.pixel(cell.colour, ink);
            }
            let pixels = (pixels.iter()).flat_map(|&pixel| iter::repeat_n(pixel, self.scale));
            for y in (top + y * self.scale..).take(self.scale) {
                self.put(left, y, pixels.clone());
            }
        }
    }

    /// Writes pixels beside each other, in a row that has room for them.
    fn put(&self, x: usize, y: usize, pixels: impl Iterator<Item = u32>) {
        let bytes = self.format.bytes();
        let address = self.start + y * self.pitch + x * bytes;
        let start = core::ptr::with_exposed_provenance_mut::<u8>(address);
        for (place, pixel) in pixels.enumerate() {
            // SAFETY: `Framebuffer::check` found its memory, all rows of it, to be a framebuffer by
            // the memory map, which the HHDM of both tables maps writable; the address of a pixel of
            // two or four bytes is aligned, as its start and the pitch are. `Text` has as many rows
            // and columns as fit. It is no object of Rust's, and only ever written.
            unsafe {
                let place = start.add(place * bytes);
                match bytes {
                    4 => place.cast::<u32>().write_volatile(pixel),
                    2 => place.cast::<u16>().write_volatile(pixel as u16),
                    _ => {
                        let values = pixel.to_le_bytes().into_iter().take(bytes);
                        for (byte, value) in values.enumerate() {
                            place.add(byte).write_volatile(value);
                        }
                    }
                }
            }
        }
    }
}
