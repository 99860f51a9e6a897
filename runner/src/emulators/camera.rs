//! Pictures of the guest's screen, and the kernel's text on them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use muster_screen::{Channel, Colour, Format, HEIGHT, WIDTH, glyph, scale};
use serde_json::json;

use crate::emulators::qmp::Socket;

/// How long QEMU may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Takes a picture by way of QEMU's machine protocol (QMP).
#[derive(Debug)]
pub struct Camera {
    socket: Socket,
    picture: PathBuf,
}

impl Camera {
    /// Creates a camera that puts its picture into `folder`.
    ///
    /// # Errors
    /// If there is no place for its socket.
    pub fn new(folder: &Path) -> Result<Self> {
        let picture = folder.join("screen.ppm");
        // A picture of an earlier run must not pass for this one's.
        let _ = fs::remove_file(&picture);
        Ok(Self {
            socket: Socket::new()?,
            picture,
        })
    }

    /// Returns the arguments for QEMU.
    pub fn arguments(&self) -> [String; 2] {
        self.socket.arguments()
    }

    /// Takes the picture.
    ///
    /// # Errors
    /// If QEMU does not answer, or can't do it.
    pub fn take(&self) -> Result<()> {
        let mut qmp = self.socket.connect(TIMEOUT)?;
        qmp.ask("screendump", json!({ "filename": self.picture }))?;
        Ok(())
    }

    /// Returns the text on the picture that was taken.
    ///
    /// # Errors
    /// If there is none.
    pub fn text(&self) -> Result<String> {
        let picture = fs::read(&self.picture)
            .with_context(|| format!("no picture {}", self.picture.display()))?;
        text(&picture)
    }
}

/// Returns the text on a picture in PPM (Netpbm's, 24 bits a pixel): each place that looks exactly like a
/// character of the kernel's font in one of its colours. Others are U+FFFD.
fn text(picture: &[u8]) -> Result<String> {
    let header: Vec<&[u8]> = picture
        .splitn(5, |byte| byte.is_ascii_whitespace())
        .collect();
    let [b"P6", width, height, b"255", pixels] = header[..] else {
        bail!("not a picture in PPM");
    };
    let number = |field: &[u8]| -> Result<usize> { Ok(str::from_utf8(field)?.parse()?) };
    let (width, height) = (number(width)?, number(height)?);
    ensure!(
        pixels.len() == width * height * 3,
        "a picture that is cut off"
    );
    let glyphs = glyphs()?;
    let scale = scale(width, height);
    let mut text = String::new();
    for row in 0..height / HEIGHT / scale {
        for column in 0..width / WIDTH / scale {
            let places = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| (x, y)));
            let cell: Vec<u32> = places
                .map(|(x, y)| {
                    let (x, y) = (column * WIDTH + x, row * HEIGHT + y);
                    let at = (y * width + x) * scale * 3;
                    u32::from_be_bytes([0, pixels[at], pixels[at + 1], pixels[at + 2]])
                })
                .collect();
            text.push(glyphs.get(&cell).copied().unwrap_or('\u{fffd}'));
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    Ok(text)
}

/// Returns the glyphs.
fn glyphs() -> Result<HashMap<Vec<u32>, char>> {
    let format = format().context("no pixels of 24 bits")?;
    let mut glyphs = HashMap::new();
    for character in b' '..=b'~' {
        for colour in Colour::ALL {
            let inks = glyph(character).iter();
            let pixels = inks.map(|&ink| format.pixel(colour, ink)).collect();
            glyphs.insert(pixels, char::from(character));
        }
    }
    Ok(glyphs)
}

/// Returns how a picture has its pixels.
fn format() -> Option<Format> {
    Format::new(24, [16, 8, 0].map(|shift| Channel { bits: 8, shift }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws a picture with text on it, as the kernel draws it.
    fn picture(lines: &[&str], columns: usize, noise: bool) -> Vec<u8> {
        let format = format().unwrap();
        // Some pixels on the right are of no character.
        let (width, height) = (columns * WIDTH + 3, lines.len() * HEIGHT);
        let mut pixels = vec![0; width * height * 3];
        for (row, line) in lines.iter().enumerate() {
            for (column, character) in line.bytes().enumerate() {
                for (place, &ink) in glyph(character).iter().enumerate() {
                    let x = column * WIDTH + place % WIDTH;
                    let y = row * HEIGHT + place / WIDTH;
                    let pixel = format.pixel(Colour::Error, ink).to_be_bytes();
                    pixels[(y * width + x) * 3..][..3].copy_from_slice(&pixel[1..]);
                }
            }
        }
        if noise {
            pixels[0] ^= 1;
        }
        [format!("P6\n{width} {height}\n255\n").into_bytes(), pixels].concat()
    }

    #[test]
    fn text_is_read_from_a_picture() {
        let picture = picture(&["CPU 3: 100%", "", "~ {x}"], 12, false);
        assert_eq!(text(&picture).unwrap(), "CPU 3: 100%\n\n~ {x}\n");
    }

    #[test]
    fn what_is_not_quite_a_character_is_none() {
        let picture = picture(&["ab"], 2, true);
        assert_eq!(text(&picture).unwrap(), "\u{fffd}b\n");
    }

    #[test]
    fn what_is_no_picture_is_told() {
        let good = picture(&["a"], 1, false);
        for bad in [&b""[..], b"P5\n1 1\n255\n...", &good[..good.len() - 1]] {
            assert!(text(bad).is_err());
        }
    }
}
