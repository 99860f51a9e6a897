//! The screen: what the serial port shows of the log, on the framebuffer, if the loader found one.
//!
//! It is mapped write-combining, in the loader's tables and in the kernel's at the same addresses, so
//! that it can be drawn on from the first line on; and it is never read: [`Text`] remembers what is
//! there. Lines come one at a time, but for those of a fault's reporter, who waits for nobody.

use conquer_once::spin::OnceCell;
use muster_boot::Framebuffer;
use muster_screen::{Cell, Colour, Format, HEIGHT, Text, WIDTH, glyph};

use crate::lock::{Level, Lock};
use crate::serial;

/// Bytes of a pixel.
const PIXEL: usize = size_of::<u32>();

static SCREEN: OnceCell<Screen> = OnceCell::uninit();

/// Held by whoever draws.
static TURN: Lock<()> = Lock::new(Level::Screen, ());

struct Screen {
    /// The address of the first pixel.
    start: usize,
    /// Bytes from one row of pixels to the next.
    pitch: usize,
    format: Format,
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
    let Some(text) = Text::new(width / WIDTH, height / HEIGHT) else {
        log::warn!(
            "the screen stays as it is: {width} by {height} pixels are too few, or too many"
        );
        return;
    };
    let screen = Screen {
        start: address as usize,
        pitch,
        format,
        text,
    };
    for y in 0..height {
        for x in 0..width {
            screen.set(x, y, 0);
        }
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
        let lines = glyph(cell.character).chunks_exact(WIDTH);
        for (y, inks) in (row * HEIGHT..).zip(lines) {
            for (x, &ink) in (column * WIDTH..).zip(inks) {
                self.set(x, y, self.format.pixel(cell.colour, ink));
            }
        }
    }

    /// Sets a pixel of the framebuffer, which has this many at least.
    fn set(&self, x: usize, y: usize, pixel: u32) {
        let address = self.start + y * self.pitch + x * PIXEL;
        let place = core::ptr::with_exposed_provenance_mut::<u32>(address);
        // SAFETY: `Framebuffer::check` found its memory, all rows of it, to be a framebuffer by the
        // memory map, which the HHDM of both tables shows writable; the address is aligned, as its
        // start and the pitch are. `Text` has as many rows and columns as fit. It is no object of
        // Rust's, and only ever written, by whole pixels.
        unsafe { place.write_volatile(pixel) };
    }
}
