//! Writing: a record as a line of JSON, in memory of its own, so that nothing is allocated.

use serde::Serialize;

use crate::record::{Omitted, Record};

/// The longest line, in bytes, without its line feed.
pub const MAX_LENGTH: usize = 2048;

/// A line of JSON. It lies where it is made, and so can be made where memory is out.
#[derive(Clone, Debug)]
pub struct EventLine {
    bytes: [u8; MAX_LENGTH + 1],
    length: usize,
}

impl EventLine {
    /// Makes the line of a record; where it is too long, one that says so.
    pub fn of(record: &Record<'_>) -> Self {
        Self::of_value(record)
            .or_else(|| {
                let event = Omitted {
                    name: record.event.name().into(),
                };
                Self::of_value(&Record {
                    us: record.us,
                    by: record.by,
                    event: event.into(),
                })
            })
            // A name is short.
            .unwrap_or(Self {
                bytes: [b'\n'; MAX_LENGTH + 1],
                length: 0,
            })
    }

    /// Makes the line of any value; `None` if it is too long.
    pub fn of_value(value: &impl Serialize) -> Option<Self> {
        let mut bytes = [b'\n'; MAX_LENGTH + 1];
        let place = bytes.get_mut(..MAX_LENGTH)?;
        let length = serde_json_core::to_slice(value, place).ok()?;
        *bytes.get_mut(length)? = b'\n';
        Some(Self { bytes, length })
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        let text = self.bytes.get(..self.length).unwrap_or_default();
        core::str::from_utf8(text).unwrap_or_default()
    }

    /// Returns the bytes, with the line feed.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..=self.length).unwrap_or_default()
    }
}
