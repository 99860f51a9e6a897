//! The sources that `just check` looks at: their text, and what Rust makes of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use proc_macro2::TokenStream;

use crate::workspace;

/// Reads a file.
///
/// # Errors
///
/// If it can't be read.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("can't read {}", workspace::shown(path)))
}

/// Returns the tokens of a source.
///
/// # Errors
///
/// If it is no Rust.
pub fn tokens(source: &str) -> Result<TokenStream> {
    let tokens = source.parse();
    tokens.map_err(|error| anyhow!("can't be read as Rust: {error}"))
}
