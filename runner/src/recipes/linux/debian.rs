//! Linux 6.1 as Debian 12 packages it: found, built for, and booted.

use std::env;
use std::fmt;
use std::fs;
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cpio::NewcBuilder;

use super::options::Options;
use super::{LINUX, read};
use crate::boot_log::BootLog;
use crate::emulators::machine::{self, Medium};
use crate::figures::{self, Figure};
use crate::images;
use crate::session::{self, Interrupt, Launch, Rules};
use crate::symbols::Symbols;
use crate::workspace::{self, shown};

/// The module, its Kbuild file and its source.
const MODULE: &str = "muster_bench.ko";
const MODULE_SOURCES: [&str; 2] = ["Kbuild", "muster_bench.c"];

/// Something that is needed to build for, and boot, Linux 6.1 is missing.
#[derive(Debug, PartialEq, Eq)]
pub enum NoLinux {
    /// No image in this folder.
    Image(PathBuf),
    /// The newest image has this version, but none has headers.
    Headers(String),
    /// A program.
    Program(&'static str),
}

impl fmt::Display for NoLinux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(folder) => {
                write!(f, "no kernel of Debian 12 in {}", folder.display())?;
            }
            Self::Headers(version) => write!(f, "no headers of Linux {version}")?,
            Self::Program(name) => write!(f, "no {name}")?,
        }
        f.write_str(
            "\nTo measure Linux, get Debian 12's kernel and what builds a module for it:\n  \
             apt-get install linux-image-amd64 linux-headers-amd64 make gcc libc6-dev\n\
             A kernel that should not be in /boot can be unpacked elsewhere:\n  \
             apt-get download linux-image-VERSION-amd64 && dpkg -x linux-image-*.deb FOLDER\n  \
             LINUX_DIR=FOLDER before the command",
        )
    }
}

impl std::error::Error for NoLinux {}

/// Linux 6.1 as Debian 12 packages it.
#[derive(Debug)]
pub struct Linux {
    /// As in its files' names, such as `6.1.0-56-amd64`.
    pub version: String,
    image: PathBuf,
    /// What modules are built in.
    headers: PathBuf,
}

impl Linux {
    /// Finds the newest one that has headers, its image in `/boot` or that of
    /// the folder `LINUX_DIR`.
    ///
    /// # Errors
    /// [`NoLinux`] if an image, its headers or a program is missing.
    pub fn find() -> Result<Self, NoLinux> {
        let root = env::var_os("LINUX_DIR").filter(|folder| !folder.is_empty());
        let folder = root.map_or_else(|| "/".into(), PathBuf::from).join("boot");
        let mut versions: Vec<_> = fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| version(entry.ok()?.file_name().to_str()?))
            .collect();
        versions.sort();
        let Some((_, newest)) = versions.last().cloned() else {
            return Err(NoLinux::Image(folder));
        };
        let linux = versions.into_iter().rev().find_map(|(_, version)| {
            let headers = Path::new("/lib/modules").join(&version).join("build");
            headers.join("Makefile").exists().then(|| Self {
                image: folder.join(format!("vmlinuz-{version}")),
                headers,
                version,
            })
        });
        let linux = linux.ok_or(NoLinux::Headers(newest))?;
        match ["make", "cc"].iter().find(|name| !is_in_path(name)) {
            Some(program) => Err(NoLinux::Program(program)),
            None => Ok(linux),
        }
    }

    /// Builds module and init, and puts them into an initial file system.
    ///
    /// # Errors
    /// If something does not build.
    pub fn build(&self, options: &Options) -> Result<Medium> {
        let sources = workspace::root().join("bench").join("linux");
        // Kbuild writes beside its sources, and a module is for one version.
        let folder = workspace::target().join("linux").join(&self.version);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for name in MODULE_SOURCES {
            images::write_if_changed(&folder.join(name), &read(&sources.join(name))?)?;
        }
        let mut make = Command::new("make");
        // What a shell or an outer make has set is not for this kernel.
        for name in ["ARCH", "CROSS_COMPILE", "MAKEFLAGS", "MAKELEVEL"] {
            make.env_remove(name);
        }
        make.arg("-C").arg(&self.headers).arg("modules");
        make.arg(format!("M={}", folder.display()));
        finish(make)?;
        let init = folder.join("init");
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-Wall", "-Wextra", "-static", "-o"]);
        compiler.arg(&init).arg(sources.join("init.c"));
        finish(compiler)?;

        let initramfs = folder.join("initramfs");
        let files = [
            ("init", read(&init)?),
            (MODULE, read(&folder.join(MODULE))?),
        ];
        let archive = archive(&files).context("cannot make an initial file system")?;
        fs::write(&initramfs, archive)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        Ok(Medium::Linux {
            image: self.image.clone(),
            initramfs,
            words: options.words(),
        })
    }

    /// Boots once, and reads the figures.
    ///
    /// # Errors
    /// If QEMU does not start, or Linux does not come to its end.
    pub fn measure(
        &self,
        options: &Options,
        medium: &Medium,
        interrupt: &Interrupt,
    ) -> Result<Vec<Figure>> {
        let folder = workspace::target().join("linux").join("boot-log");
        let mut log = BootLog::create(&folder)?;
        let qemu = machine::command(&options.run, medium, &log.debug_console());
        let mut show = |line: &str| -> io::Result<()> {
            if line.starts_with("qemu: ") {
                writeln!(io::stderr(), "{line}")?;
            } else if let Some(news) = line.strip_prefix("muster_bench: round ") {
                writeln!(io::stderr(), "  round {news}")?;
            }
            Ok(())
        };
        let outcome = session::run(
            Launch::qemu(qemu),
            Rules {
                limit: options.run.time_limit,
                pause: None,
            },
            interrupt,
            &Symbols::of(&self.image),
            &mut log,
            &mut show,
            None,
        )?;
        let text = fs::read_to_string(log.all())
            .with_context(|| format!("cannot read {}", shown(&log.all())))?;
        if outcome.status() != Some(session::PASSED) {
            if interrupt.came() {
                bail!("interrupted");
            }
            let why = match outcome.status() {
                Some(0) => "it panicked, or has too little memory, mem=".into(),
                Some(status) => format!("QEMU's status is {status}"),
                None => format!(
                    "no end within {:?}, timeout= gives it more",
                    outcome.elapsed
                ),
            };
            let last: Vec<_> = outcome.tail().map(|line| format!("  {line}\n")).collect();
            bail!(
                "Linux did not measure to the end: {why}; its last lines:\n{}the whole log: {}",
                last.concat(),
                shown(&log.all())
            );
        }
        let figures = figures::read(&text, LINUX, options.measure)?;
        if figures.is_empty() {
            bail!("Linux gave no figures; its log: {}", shown(&log.all()));
        }
        Ok(figures)
    }
}

/// Returns the version in the name of an image that Debian 12 builds for PCs, behind
/// the number that grows with it. Kernels for clouds and with real-time
/// preemption are others: `vmlinuz-6.1.0-56-rt-amd64`.
fn version(name: &str) -> Option<(u32, String)> {
    let version = name.strip_prefix("vmlinuz-")?;
    let number = version.strip_prefix("6.1.0-")?.strip_suffix("-amd64")?;
    Some((number.parse().ok()?, version.into()))
}

fn is_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs a compiler to its end. What it has to say is said only if it fails.
fn finish(mut command: Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            program.display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Returns an initial file system of programs, in the format of
/// Documentation/driver-api/early-userspace/buffer-format.rst.
fn archive(files: &[(&str, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let entries = files.iter().map(|(name, content)| {
        // A regular file that may be executed.
        (NewcBuilder::new(name).mode(0o100_755), Cursor::new(content))
    });
    cpio::write_cpio(entries, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernels_for_pcs_count() {
        let found = version("vmlinuz-6.1.0-56-amd64");
        assert_eq!(found, Some((56, "6.1.0-56-amd64".into())));
        for name in [
            "vmlinuz-6.1.0-56-rt-amd64",
            "vmlinuz-6.1.0-56-cloud-amd64",
            "vmlinuz-6.12.0-3-amd64",
            "vmlinuz-6.1.0-56-arm64",
            "config-6.1.0-56-amd64",
        ] {
            assert_eq!(version(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_install() {
        for missing in [
            NoLinux::Image("/boot".into()),
            NoLinux::Headers("6.1.0-56-amd64".into()),
            NoLinux::Program("make"),
        ] {
            let text = missing.to_string();
            assert!(text.contains("apt-get install linux-image-amd64 linux-headers-amd64"));
        }
    }

    #[test]
    fn the_archive_holds_the_files() {
        let files = [("init", b"\x7fELF".to_vec()), ("a.ko", vec![7; 5])];
        let mut rest = Cursor::new(archive(&files).unwrap());
        for (name, content) in &files {
            let mut reader = cpio::NewcReader::new(&mut rest).unwrap();
            assert_eq!(reader.entry().name(), *name);
            assert_eq!(reader.entry().mode(), 0o100_755);
            let mut found = Vec::new();
            io::Read::read_to_end(&mut reader, &mut found).unwrap();
            assert_eq!(found, *content);
            reader.finish().unwrap();
        }
        assert!(cpio::NewcReader::new(rest).unwrap().entry().is_trailer());
    }
}
