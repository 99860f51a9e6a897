//! The copy of the sources that mistakes are made in.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::images::write_if_changed;
use crate::workspace;

/// How the names of files end by which Cargo compiles the libraries.
const EXTENSIONS: [&str; 3] = ["rs", "toml", "lock"];

/// Makes the copy what the workspace is. Files that are the same are left alone: Cargo compiles again
/// whatever was written.
///
/// # Errors
///
/// If a file can't be read or written.
pub fn bring_up_to_date(root: &Path, copy: &Path) -> Result<()> {
    let update = || -> Result<()> {
        let sources = sources(root)?;
        fs::create_dir_all(copy)?;
        for stale in self::sources(copy)?.difference(&sources) {
            fs::remove_file(copy.join(stale))?;
        }
        for path in &sources {
            let (text, place) = (fs::read(root.join(path))?, copy.join(path));
            if let Some(folder) = place.parent() {
                fs::create_dir_all(folder)?;
            }
            write_if_changed(&place, &text)?;
        }
        Ok(())
    };
    update().with_context(|| format!("cannot copy the sources to {}", workspace::shown(copy)))
}

/// Returns the files by which Cargo compiles, relative to the folder.
fn sources(folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let is_hidden = |part: &OsStr| part.as_encoded_bytes().starts_with(b".");
    let mut found = BTreeSet::new();
    for extension in EXTENSIONS {
        let files = workspace::files(folder, extension)?;
        let paths = files
            .iter()
            .filter_map(|path| path.strip_prefix(folder).ok());
        let paths = paths.filter(|path| !path.iter().any(is_hidden));
        found.extend(paths.map(Path::to_path_buf));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_what_the_workspace_has_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (root, copy) = (folder.path().join("root"), folder.path().join("copy"));
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("root/Cargo.toml", "a");
        write("root/heap/src/lib.rs", "b");
        write("root/heap/README.md", "c");
        write("root/.git/c.rs", "d");
        write("root/target/e.rs", "e");
        write("copy/heap/src/lib.rs", "with a mistake");
        write("copy/heap/src/gone.rs", "g");
        bring_up_to_date(&root, &copy).unwrap();

        let expected = ["Cargo.toml", "heap/src/lib.rs"].map(PathBuf::from);
        assert_eq!(sources(&copy).unwrap(), expected.into());
        let text = fs::read_to_string(copy.join("heap/src/lib.rs")).unwrap();
        assert_eq!(text, "b");
        assert!(!copy.join("heap/README.md").exists());

        let written = |path: &str| fs::metadata(copy.join(path)).unwrap().modified().unwrap();
        let before = written("Cargo.toml");
        bring_up_to_date(&root, &copy).unwrap();
        assert_eq!(written("Cargo.toml"), before, "an equal file was written");
    }
}
