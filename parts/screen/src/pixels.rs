//! Colours, and how a framebuffer has them.

/// What a line is shown in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Colour {
    /// As any other.
    Plain,
    /// Less than others.
    Dim,
    /// A warning.
    Warning,
    /// An error.
    Error,
    /// Good news.
    Good,
}

impl Colour {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] = [
        Self::Plain,
        Self::Dim,
        Self::Warning,
        Self::Error,
        Self::Good,
    ];

    /// Returns the amounts of red, green and blue in it, of 255: enough for at least 7 to 1 of
    /// contrast to black (WCAG 2.2, 1.4.6).
    pub const fn parts(self) -> [u8; 3] {
        match self {
            Self::Plain => [0xd8, 0xd8, 0xd8],
            Self::Dim => [0xa0, 0xa0, 0xa0],
            Self::Warning => [0xff, 0xc8, 0x40],
            Self::Error => [0xff, 0x80, 0x78],
            Self::Good => [0x60, 0xe0, 0x80],
        }
    }
}

/// Where in a pixel a part of its colour lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// How many bits it has.
    pub bits: u8,
    /// How many bits lie below it.
    pub shift: u8,
}

/// How a pixel is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    bytes: usize,
    red: Channel,
    green: Channel,
    blue: Channel,
}

impl Format {
    /// Makes the format of pixels of this number of bits and these parts. Returns `None` if a pixel
    /// does not take two to four bytes, or a part has no bits, or more than eight, or lies beyond the
    /// pixel.
    pub fn new(bits: u16, [red, green, blue]: [Channel; 3]) -> Option<Self> {
        let bytes = usize::from(bits.div_ceil(8));
        let fits = |channel: Channel| {
            (1..=8).contains(&channel.bits)
                && u16::from(channel.shift) + u16::from(channel.bits) <= bits
        };
        let fit = (2..=4).contains(&bytes) && fits(red) && fits(green) && fits(blue);
        fit.then_some(Self {
            bytes,
            red,
            green,
            blue,
        })
    }

    /// Returns bytes of a pixel: two, three or four.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns a pixel of which `ink`, of 255, is this colour, and the rest black.
    pub fn pixel(&self, colour: Colour, ink: u8) -> u32 {
        // Most of a character is paper.
        if ink == 0 {
            return 0;
        }
        let channels = [self.red, self.green, self.blue];
        let parts = colour.parts().into_iter().zip(channels);
        parts.fold(0, |pixel, (part, channel)| {
            let value = u32::from(part) * u32::from(ink) / 255;
            pixel | value >> (8 - channel.bits) << channel.shift
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn channel(bits: u8, shift: u8) -> Channel {
        Channel { bits, shift }
    }

    #[test]
    fn parts_lie_where_the_format_has_them() {
        let usual = Format::new(32, [channel(8, 16), channel(8, 8), channel(8, 0)]).unwrap();
        assert_eq!(usual.bytes(), 4);
        assert_eq!(usual.pixel(Colour::Warning, 255), 0x00ff_c840);
        assert_eq!(usual.pixel(Colour::Warning, 0), 0);
        assert_eq!(usual.pixel(Colour::Plain, 0x80), 0x006c_6c6c);
        let odd = Format::new(32, [channel(5, 0), channel(6, 5), channel(8, 24)]).unwrap();
        assert_eq!(
            odd.pixel(Colour::Warning, 255),
            0x4000_0000 | 0x32 << 5 | 0x1f
        );
        let short = Format::new(15, [channel(5, 10), channel(5, 5), channel(5, 0)]).unwrap();
        assert_eq!(short.bytes(), 2);
        assert_eq!(
            short.pixel(Colour::Warning, 255),
            0x1f << 10 | 0x19 << 5 | 0x08
        );
    }

    #[test]
    fn a_format_that_can_not_be_is_none() {
        let good = channel(8, 8);
        for bad in [
            channel(0, 0),
            channel(9, 0),
            channel(8, 25),
            channel(1, 255),
        ] {
            assert_eq!(Format::new(32, [bad, good, good]), None);
            assert_eq!(Format::new(32, [good, bad, good]), None);
            assert_eq!(Format::new(32, [good, good, bad]), None);
        }
        let low = channel(1, 0);
        for bits in [0, 8, 33, u16::MAX] {
            assert_eq!(Format::new(bits, [low; 3]), None);
        }
        assert!(Format::new(16, [good; 3]).is_some());
        assert_eq!(Format::new(15, [good; 3]), None);
    }

    #[test]
    fn every_colour_can_be_read() {
        for (place, colour) in Colour::ALL.into_iter().enumerate() {
            assert_eq!(colour as usize, place);
            // Relative luminance (WCAG 2.2), against black's 0.
            let linear = |part: u8| {
                let part = f64::from(part) / 255.0;
                if part <= 0.04045 {
                    part / 12.92
                } else {
                    ((part + 0.055) / 1.055).powf(2.4)
                }
            };
            let [red, green, blue] = colour.parts().map(linear);
            let luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
            assert!((luminance + 0.05) / 0.05 >= 7.0, "{colour:?}");
        }
    }
}
