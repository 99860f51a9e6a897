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

/// The logs of the last run.
pub fn boot_log() -> PathBuf {
    target().join("boot-log")
}

/// A path as a person in the workspace's top folder would type it.
pub fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}
