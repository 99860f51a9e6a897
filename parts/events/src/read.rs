//! Reading, for programs on a host: a record from a line of JSON.

use crate::record::Record;

/// Reads a line.
///
/// # Errors
///
/// What of it is not of the schema, in serde's words.
pub fn read(line: &str) -> Result<Record<'static>, serde_json::Error> {
    serde_json::from_str(line)
}
