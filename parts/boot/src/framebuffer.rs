//! The framebuffer, if the loader found a screen.

use core::fmt;

use muster_frames::{PhysAddr, PhysRange};
use muster_paging::VirtAddr;
use muster_screen::{Channel, Format};

use crate::kind::Kind;
use crate::memory_map::MemoryMap;

/// The loader's description of it, as the protocol lays it down.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The virtual address of its first pixel.
    pub address: VirtAddr,
    /// Pixels in a row.
    pub width: u64,
    /// Rows.
    pub height: u64,
    /// Bytes from one row to the next.
    pub pitch: u64,
    /// Bits of a pixel.
    pub bits: u16,
    /// Whether a pixel has a red, a green and a blue part.
    pub is_rgb: bool,
    /// Where these lie, in this order.
    pub channels: [Channel; 3],
}

/// A screen that can be drawn on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framebuffer {
    /// The virtual address of its first pixel, in the HHDM; aligned as its pixels.
    pub address: VirtAddr,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes from one row to the next; aligned as its pixels.
    pub pitch: usize,
    /// How a pixel is made up.
    pub format: Format,
}

/// Why the kernel leaves a framebuffer alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its pixels are of another kind.
    Format {
        /// Their bits.
        bits: u16,
    },
    /// It has no pixels, or its rows overlap, or are not aligned.
    Shape {
        /// Pixels in a row.
        width: u64,
        /// Rows.
        height: u64,
        /// Bytes from one row to the next.
        pitch: u64,
    },
    /// It does not lie in the HHDM's view of what the memory map calls a framebuffer.
    Elsewhere {
        /// The virtual address of its first pixel.
        address: VirtAddr,
    },
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format { bits } => write!(
                f,
                "its pixels of {bits} bits are not red, green and blue in two to four bytes"
            ),
            Self::Shape {
                width,
                height,
                pitch,
            } => write!(
                f,
                "{height} rows of {width} pixels don't lie {pitch} bytes apart"
            ),
            Self::Elsewhere { address } => write!(
                f,
                "at {address} it is not what the memory map calls a framebuffer"
            ),
        }
    }
}

impl core::error::Error for Unusable {}

impl Framebuffer {
    /// Checks the loader's description.
    ///
    /// # Errors
    ///
    /// [`Unusable`].
    pub fn check(answer: &Answer, hhdm: VirtAddr, memory: &MemoryMap) -> Result<Self, Unusable> {
        let Answer {
            address,
            width,
            height,
            pitch,
            bits,
            is_rgb,
            channels,
        } = *answer;
        let format = Format::new(bits, channels).filter(|_| is_rgb);
        let format = format.ok_or(Unusable::Format { bits })?;
        let bytes = format.bytes() as u64;
        // Of three bytes each is stored for itself.
        let alignment = if bytes == 3 { 1 } else { bytes };
        let shape = Unusable::Shape {
            width,
            height,
            pitch,
        };
        let row = (width.checked_mul(bytes)).filter(|&row| 0 < row && row <= pitch);
        let length = row
            .and_then(|_| pitch.checked_mul(height))
            .filter(|&length| length > 0);
        let length = length
            .filter(|_| pitch.is_multiple_of(alignment))
            .ok_or(shape)?;
        let elsewhere = Unusable::Elsewhere { address };
        let range = (address.checked_sub(hhdm))
            .filter(|phys| phys.is_multiple_of(alignment))
            .and_then(|phys| PhysRange::new(PhysAddr::new(phys), length))
            .ok_or(elsewhere)?;
        let mut entries = memory.entries.iter();
        let holds = |entry: PhysRange| entry.start() <= range.start() && range.end() <= entry.end();
        if !entries.any(|entry| entry.kind == Kind::Framebuffer && holds(entry.range)) {
            return Err(elsewhere);
        }
        // Each is at most the number of bytes, which is the length of a range of memory.
        Ok(Self {
            address,
            width: width as usize,
            height: height as usize,
            pitch: pitch as usize,
            format,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HHDM: u64 = 0xffff_8000_0000_0000;
    const START: u64 = 0xfd00_0000;

    const GOOD: Answer = Answer {
        address: VirtAddr::new(HHDM + START),
        width: 1280,
        height: 800,
        pitch: 5120,
        bits: 32,
        is_rgb: true,
        channels: [
            Channel { bits: 8, shift: 16 },
            Channel { bits: 8, shift: 8 },
            Channel { bits: 8, shift: 0 },
        ],
    };

    fn memory() -> MemoryMap {
        MemoryMap::check([
            (0x10_0000, 0x1000_0000, Kind::Usable),
            (START, 5120 * 800, Kind::Framebuffer),
        ])
        .unwrap()
    }

    fn check(answer: Answer) -> Result<Framebuffer, Unusable> {
        Framebuffer::check(&answer, VirtAddr::new(HHDM), &memory())
    }

    #[test]
    fn a_screen_that_can_be_drawn_on_is_taken() {
        let framebuffer = check(GOOD).unwrap();
        assert_eq!(framebuffer.address, VirtAddr::new(HHDM + START));
        assert_eq!((framebuffer.width, framebuffer.height), (1280, 800));
        assert_eq!(framebuffer.pitch, 5120);
        assert!(check(Answer { width: 1, ..GOOD }).is_ok());
    }

    #[test]
    fn pixels_may_be_of_two_or_three_bytes() {
        let three = Answer {
            address: GOOD.address + 1,
            height: 799,
            pitch: 3841,
            bits: 24,
            ..GOOD
        };
        assert_eq!(check(three).unwrap().format.bytes(), 3);
        let channel = |bits, shift| Channel { bits, shift };
        let two = Answer {
            address: GOOD.address + 2,
            height: 799,
            pitch: 2562,
            bits: 16,
            channels: [channel(5, 11), channel(6, 5), channel(5, 0)],
            ..GOOD
        };
        assert_eq!(check(two).unwrap().format.bytes(), 2);
        for pitch in [2558, 2563] {
            let error = check(Answer { pitch, ..two }).unwrap_err();
            assert!(matches!(error, Unusable::Shape { .. }), "{pitch}");
        }
    }

    #[test]
    fn pixels_of_another_kind_are_not() {
        let mut channels = GOOD.channels;
        channels[1].bits = 0;
        for answer in [
            Answer { bits: 23, ..GOOD },
            Answer { bits: 8, ..GOOD },
            Answer {
                is_rgb: false,
                ..GOOD
            },
            Answer { channels, ..GOOD },
        ] {
            let Err(error @ Unusable::Format { .. }) = check(answer) else {
                panic!("{answer:?} was taken");
            };
            assert!(error.to_string().contains("bits"));
        }
    }

    #[test]
    fn a_shape_that_can_not_be_is_not() {
        for answer in [
            Answer { width: 0, ..GOOD },
            Answer { height: 0, ..GOOD },
            Answer {
                width: 1281,
                ..GOOD
            },
            Answer {
                width: 1 << 63,
                ..GOOD
            },
            Answer {
                height: 1 << 60,
                ..GOOD
            },
            Answer {
                pitch: 5122,
                ..GOOD
            },
        ] {
            assert!(
                matches!(check(answer), Err(Unusable::Shape { .. })),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_numbers() {
        let told = |answer| check(answer).unwrap_err().to_string();
        let shape = told(Answer {
            width: 1281,
            ..GOOD
        });
        assert_eq!(shape, "800 rows of 1281 pixels don't lie 5120 bytes apart");
        let elsewhere = told(Answer {
            address: VirtAddr::new(START),
            ..GOOD
        });
        assert!(elsewhere.starts_with("at 0xfd000000 "), "{elsewhere}");
    }

    #[test]
    fn what_is_not_the_framebuffer_s_memory_is_not_drawn_on() {
        for answer in [
            Answer {
                address: VirtAddr::new(START),
                ..GOOD
            },
            Answer {
                address: VirtAddr::new(HHDM + 0x20_0000),
                ..GOOD
            },
            Answer {
                address: VirtAddr::new(GOOD.address - VirtAddr::new(4)),
                ..GOOD
            },
            Answer {
                address: GOOD.address + 4,
                ..GOOD
            },
            Answer {
                address: GOOD.address + 2,
                height: 1,
                ..GOOD
            },
            Answer {
                height: 801,
                ..GOOD
            },
            Answer {
                address: VirtAddr::new(u64::MAX - 3),
                ..GOOD
            },
        ] {
            let error = check(answer).unwrap_err();
            assert!(matches!(error, Unusable::Elsewhere { .. }), "{answer:?}");
        }
    }
}
