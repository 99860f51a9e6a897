//! The bootable files: the kernel and the loader.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs};

use anyhow::{Context, Result, bail};
use object::elf::{FileHeader64, SymbolSection};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, pod};

use crate::arguments::Build;
use crate::toolchain::{TARGET, Toolchain};
use crate::workspace;

/// The built images.
#[derive(Clone, Debug)]
pub struct Images {
    /// The kernel with its debug information, for symbols and debuggers.
    pub kernel: PathBuf,
    /// The same kernel without it, for booting.
    pub bootable: PathBuf,
    /// The loader for QEMU's `-kernel`.
    pub loader: PathBuf,
}

/// Builds what has changed.
///
/// # Errors
/// If no toolchain serves, or the build fails.
pub fn build(build: Build) -> Result<Images> {
    let folder = workspace::bare_metal().join(TARGET).join("release");
    // Where Cargo leaves the kernel, whatever is in it.
    let built = folder.join("muster");
    let name = match build {
        Build::Plain => "muster",
        Build::Bench => "muster-with-bench",
    };
    let images = Images {
        kernel: folder.join(name),
        bootable: folder.join(format!("{name}-bootable")),
        loader: folder.join("muster-loader"),
    };
    let mut cargo = Toolchain::choose()?.bare_metal("build");
    cargo.args([
        "--package",
        "muster",
        "--package",
        "muster-loader",
        "--bins",
    ]);
    cargo.args(match build {
        Build::Plain => ["--features", "muster/selftest"],
        Build::Bench => ["--features", "muster/bench"],
    });
    complete(cargo, images, &built)
}

/// Builds the book's example of another kernel, on the libraries alone.
///
/// # Errors
/// As for [`build`].
pub fn build_floor() -> Result<Images> {
    let images = named("muster-floor");
    let mut cargo = Toolchain::choose()?.bare_metal("build");
    cargo.args([
        "--package",
        "muster-floor",
        "--package",
        "muster-loader",
        "--bins",
    ]);
    complete(cargo, images.clone(), &images.kernel)
}

/// Builds the least client of the kernel, a kernel without the self-test, where it lies in the tree.
///
/// # Errors
/// As for [`build`].
pub fn build_client() -> Result<Images> {
    let images = named("muster-client");
    let mut cargo = Toolchain::choose()?.bare_metal("build");
    // There is the configuration that it needs.
    cargo.current_dir(workspace::root().join("examples/client"));
    complete(cargo, images.clone(), &images.kernel)
}

/// Returns where Cargo leaves the images of an example.
fn named(package: &str) -> Images {
    let folder = workspace::bare_metal().join(TARGET).join("release");
    Images {
        kernel: folder.join(package),
        bootable: folder.join(format!("{package}-bootable")),
        loader: folder.join("muster-loader"),
    }
}

/// There is no loader where one is looked for.
#[derive(Debug)]
pub struct NoLoader(PathBuf);

impl fmt::Display for NoLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no loader `{}`: in Muster's folder, cargo install --path loader --target {TARGET}",
            self.0.display()
        )
    }
}

impl std::error::Error for NoLoader {}

/// Returns the images of a kernel that somebody else has built, with the loader that is installed beside
/// this program.
///
/// # Errors
/// [`NoLoader`]; or if the kernel is no ELF file.
pub fn of(kernel: &Path) -> Result<Images> {
    let loader = env::current_exe()?.with_file_name("muster-loader");
    if !loader.is_file() {
        return Err(NoLoader(loader).into());
    }
    let mut name = kernel.file_name().unwrap_or_default().to_owned();
    name.push("-bootable");
    let images = Images {
        kernel: kernel.into(),
        bootable: kernel.with_file_name(name),
        loader,
    };
    strip(&images, kernel)?;
    Ok(images)
}

/// Runs Cargo, which leaves a kernel at `built`, and returns the images.
fn complete(mut cargo: Command, images: Images, built: &Path) -> Result<Images> {
    // The first build takes a minute, and Cargo shows how far it is.
    if images.kernel.exists() && images.loader.exists() {
        cargo.arg("--quiet");
    }
    let status = cargo
        .status()
        .with_context(|| format!("cannot start {:?}", cargo.get_program()))?;
    if !status.success() {
        bail!("the kernel does not build ({status})");
    }
    strip(&images, built)?;
    Ok(images)
}

/// Makes of a built kernel what the images need.
fn strip(images: &Images, built: &Path) -> Result<()> {
    let elf = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if images.kernel != built {
        // Cargo keeps both apart, and puts the other one back when it is asked for.
        write_if_changed(&images.kernel, &elf)?;
    }
    let bootable = without_debug_information(&elf)
        .with_context(|| format!("{} is no ELF file", images.kernel.display()))?;
    write_if_changed(&images.bootable, &bootable)
}

/// Returns the part of an ELF file that is loaded: headers and segments, which linkers
/// put before the debug information. QEMU copies the file into the guest at
/// each boot, so it pays to leave 90 % of it behind.
fn without_debug_information(elf: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<Endianness>::parse(elf)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, elf)?;
    let headers_end =
        header.e_phoff(endian) + u64::from(header.e_phentsize(endian)) * segments.len() as u64;
    let end = segments
        .iter()
        .map(|segment| {
            segment
                .p_offset(endian)
                .saturating_add(segment.p_filesz(endian))
        })
        .fold(headers_end, u64::max);
    let Some(loaded) = usize::try_from(end)
        .ok()
        .and_then(|end| elf.get(size_of_val(header)..end))
    else {
        bail!("its segments end beyond the file");
    };
    let mut header = *header;
    header.e_shoff.set(endian, 0);
    header.e_shnum.set(endian, 0);
    header.e_shstrndx.set(endian, SymbolSection(0));
    Ok([pod::bytes_of(&header), loaded].concat())
}

/// Writes a file, unless it has this content already: a running QEMU may have
/// it open, and make goes by the time of a source.
///
/// # Errors
/// If the file cannot be written.
pub fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSegment};

    #[test]
    fn the_loaded_part_is_kept_byte_for_byte() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let stripped = without_debug_information(&own).unwrap();
        assert!(stripped.len() < own.len() / 2);
        let before = object::File::parse(&*own).unwrap();
        let after = object::File::parse(&*stripped).unwrap();
        assert_eq!(after.sections().count(), 0);
        assert_eq!(after.entry(), before.entry());
        assert!(own[64..stripped.len()] == stripped[64..]);
        let ends = before.segments().map(|segment| segment.file_range());
        assert!(
            ends.map(|(start, size)| start + size)
                .all(|end| end <= stripped.len() as u64)
        );
    }

    #[test]
    fn other_files_are_refused() {
        assert!(without_debug_information(b"").is_err());
        assert!(without_debug_information(b"#!/bin/sh\nexit 0\n").is_err());
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(without_debug_information(&own[..4096]).is_err());
    }
}
