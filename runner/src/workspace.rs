//! Where the workspace's files lie.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Returns the workspace's top folder.
pub fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Returns the folder of everything built: images, logs, build artefacts.
pub fn target() -> PathBuf {
    root().join("target")
}

/// Returns Cargo's folder for the bare-metal images. It is not the host's: Cargo keeps what it
/// knows of a compiler there, and two compilers in turn would make it ask again at every start.
pub fn bare_metal() -> PathBuf {
    target().join("bare-metal")
}

/// Returns the logs of the last run.
pub fn boot_log() -> PathBuf {
    target().join("boot-log")
}

/// Returns a path as a person in the workspace's top folder would type it.
pub fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}

/// Returns all files below a folder that have this extension, in order, but for what Cargo has
/// built.
///
/// # Errors
/// If a folder can't be read.
pub fn files(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}
