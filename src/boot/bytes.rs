//! Numbers of bytes, as people read them.

use core::fmt::{self, Write};

use heapless::String;

/// A number of bytes, for people.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut unit = 0;
        let mut tenths = u128::from(self.0) * 10;
        while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
            tenths /= 1024;
            unit += 1;
        }
        // Not on the heap: it may be what has just run out.
        let mut text = String::<24>::new();
        if unit == 0 {
            write!(text, "{} {}", tenths / 10, UNITS[unit])?;
        } else {
            write!(text, "{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])?;
        }
        f.pad(&text)
    }
}
