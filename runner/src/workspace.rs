//! Where the workspace's files lie.

use std::path::{Path, PathBuf};

/// The workspace's top folder.
pub fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// The folder of everything built: images, logs, build artefacts.
pub fn target() -> PathBuf {
    root().join("target")
}

/// Cargo's folder for the bare-metal images. It is not the host's: Cargo keeps
/// what it knows of a compiler there, and two compilers in turn would make it
/// ask again at every start.
pub fn bare_metal() -> PathBuf {
    target().join("bare-metal")
}

/// The logs of the last run.
pub fn boot_log() -> PathBuf {
    target().join("boot-log")
}

/// A path as a person in the workspace's top folder would type it.
pub fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}
