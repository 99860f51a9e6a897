//! The font: Noto Sans Mono (under the SIL Open Font License), as `noto-sans-mono-bitmap` has it.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// The height of a character, in pixels.
pub const HEIGHT: usize = SIZE.val();

/// The width of a character, in pixels.
pub const WIDTH: usize = get_raster_width(WEIGHT, SIZE);

const WEIGHT: FontWeight = FontWeight::Regular;
const SIZE: RasterHeight = RasterHeight::Size16;

/// The least that a screen has in larger characters, in as many times its size: a row of 1280 pixels
/// has room for lines of 182 characters, and there are 67 rows of them in 1080.
const ROOMY: (usize, usize) = (1280, 1080);

/// Returns the scale of characters on a screen of this number of pixels, so that they can be read
/// there.
pub fn scale(width: usize, height: usize) -> usize {
    (width / ROOMY.0).min(height / ROOMY.1).max(1)
}

/// In the place of a character that the font is not asked for.
const UNKNOWN: u8 = b'?';

/// Returns how much of each of the [`WIDTH`] by [`HEIGHT`] pixels of a character is ink, of 255; row
/// by row. What is not printable ASCII is shown as a question mark.
pub fn glyph(character: u8) -> &'static [u8] {
    let raster = |character: u8| get_raster(char::from(character), WEIGHT, SIZE);
    raster(character)
        .filter(|_| character.is_ascii())
        .or_else(|| raster(UNKNOWN))
        .map_or(&[], |raster| raster.pixels())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_characters_look_different() {
        let glyphs: Vec<_> = (b' '..=b'~').map(glyph).collect();
        for (place, one) in glyphs.iter().enumerate() {
            assert_eq!(one.len(), WIDTH * HEIGHT);
            assert!(!glyphs[..place].contains(one), "{place}");
        }
        assert!(glyph(b' ').iter().all(|&ink| ink == 0));
    }

    #[test]
    fn a_line_fits_and_can_be_read() {
        for (width, height, times) in [
            (1, 1, 1),
            (640, 480, 1),
            (1920, 1080, 1),
            (2560, 1440, 1),
            (3840, 2160, 2),
            (2160, 3840, 1),
            (7680, 4320, 4),
        ] {
            assert_eq!(scale(width, height), times, "{width} by {height}");
        }
    }

    #[test]
    fn others_are_question_marks() {
        for other in [0, b'\n', 0x7f, 0xe9, 0xff] {
            assert_eq!(glyph(other), glyph(b'?'), "{other}");
        }
    }
}
