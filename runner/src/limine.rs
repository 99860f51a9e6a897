//! A disc image that boots the kernel by the Limine bootloader, on BIOS and on
//! UEFI, from a disc and from a USB stick.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::arguments::{Firmware, Run};
use crate::emulators::machine::prefixed;
use crate::workspace::{self, shown};

/// Where distributions and `make install` put Limine's files.
const FOLDERS: &[&str] = &[
    "/usr/share/limine",
    "/usr/local/share/limine",
    "/usr/lib/limine",
    "/usr/local/lib/limine",
    "/run/current-system/sw/share/limine",
];

/// Each file of Limine's that the disc needs, and its place on it.
const FILES: &[(&str, &str)] = &[
    ("limine-bios.sys", "boot/limine"),
    ("limine-bios-cd.bin", "boot/limine"),
    ("limine-uefi-cd.bin", "boot/limine"),
    ("BOOTX64.EFI", "EFI/BOOT"),
];

/// The first Limine whose protocol has base revision 3, which the kernel asks for.
const MIN_VERSION: u32 = 9;

/// OVMF as distributions ship it: the code, and the variables that go with it.
const OVMF: &[(&str, &str)] = &[
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
        "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd",
    ),
    (
        "/usr/share/qemu/edk2-x86_64-code.fd",
        "/usr/share/qemu/edk2-i386-vars.fd",
    ),
];

/// OVMF in one file, code and variables.
const OVMF_WHOLE: &[&str] = &["/usr/share/ovmf/OVMF.fd", "/usr/share/qemu/OVMF.fd"];

/// Something that a boot from disc needs is not installed.
#[derive(Debug, PartialEq, Eq)]
pub enum NotInstalled {
    /// Limine's files; in the folder of `LIMINE_DIR`, if that is set.
    Limine(Option<PathBuf>),
    /// Limine, but one that does not boot the kernel.
    OldLimine {
        /// Its version.
        version: String,
        /// The folder of its files.
        folder: PathBuf,
    },
    /// Limine's host tool.
    LimineTool,
    /// UEFI firmware.
    Ovmf,
    /// Bochs, by this name.
    Bochs(PathBuf),
    /// The BIOS of Bochs.
    BochsFirmware,
    /// A display of Bochs' that needs no window.
    BochsDisplay,
}

impl fmt::Display for NotInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limine(folder) => {
                let files = FILES
                    .iter()
                    .map(|(file, _)| *file)
                    .collect::<Vec<_>>()
                    .join(", ");
                match folder {
                    Some(folder) => {
                        writeln!(f, "LIMINE_DIR={} lacks some of {files}", folder.display())?;
                    }
                    None => writeln!(
                        f,
                        "the Limine bootloader's files are not installed ({files})"
                    )?,
                }
                f.write_str(
                    "Get them, version 9 or newer, from\n  \
                     https://limine-bootloader.org (the binary releases), or\n  \
                     your distribution's package `limine` (Arch, Alpine, Nix),\n\
                     and name their folder: LIMINE_DIR=FOLDER before the command",
                )
            }
            Self::OldLimine { version, folder } => write!(
                f,
                "Limine {version} in {} is too old, and does not boot the kernel: get version \
                 {MIN_VERSION} or newer from https://limine-bootloader.org (the binary releases), and \
                 name its folder: LIMINE_DIR=FOLDER",
                folder.display()
            ),
            Self::LimineTool => f.write_str(
                "a USB stick that boots by BIOS needs the limine tool: `make` it in the folder of \
                 Limine's files, or install your distribution's package `limine`",
            ),
            Self::Ovmf => f.write_str(
                "no UEFI firmware for QEMU is installed: get the package ovmf (Debian, Ubuntu) or \
                 edk2-ovmf (Fedora, Arch)",
            ),
            Self::Bochs(program) => write!(
                f,
                "{} is not installed: get the packages bochs and bochs-term (Debian, Ubuntu), or name \
                 the program: bochs=PATH",
                program.display()
            ),
            Self::BochsFirmware => f.write_str(
                "the BIOS of Bochs is not installed: get the packages bochsbios and vgabios (Debian, \
                 Ubuntu), or name its folder: BXSHARE=FOLDER",
            ),
            Self::BochsDisplay => f.write_str(
                "Bochs has no display that needs no window: get the package bochs-term (Debian, Ubuntu)",
            ),
        }
    }
}

impl std::error::Error for NotInstalled {}

/// Limine's files on this machine.
#[derive(Debug)]
pub struct Limine {
    folder: PathBuf,
}

impl Limine {
    /// Finds them in the folder of `LIMINE_DIR`, or where packages put them.
    ///
    /// # Errors
    /// [`NotInstalled::Limine`] if a file is missing, [`NotInstalled::OldLimine`] if one is of a version
    /// that does not boot the kernel.
    pub fn find() -> Result<Self, NotInstalled> {
        match env::var_os("LIMINE_DIR").filter(|folder| !folder.is_empty()) {
            Some(folder) => Self::of(folder.into()),
            None => {
                let mut folders = FOLDERS.iter().map(PathBuf::from);
                let folder = folders.find(|folder| is_complete(folder));
                Self::of(folder.ok_or(NotInstalled::Limine(None))?)
            }
        }
    }

    /// Takes those in a folder.
    fn of(folder: PathBuf) -> Result<Self, NotInstalled> {
        if !is_complete(&folder) {
            return Err(NotInstalled::Limine(Some(folder)));
        }
        let mut files = FILES.iter().map(|(file, _)| folder.join(file));
        // A file that can't be read is reported when it is copied.
        match files.find_map(|file| old_version(&fs::read(file).ok()?)) {
            Some(version) => Err(NotInstalled::OldLimine { version, folder }),
            None => Ok(Self { folder }),
        }
    }

    /// Writes a disc image with the kernel and Limine's configuration for the run, and
    /// says what the image is good for.
    ///
    /// # Errors
    /// If xorriso is missing or fails, or a file cannot be written.
    pub fn write_disc(&self, kernel: &Path, run: &Run, image: &Path) -> Result<BootableFrom> {
        self.write(kernel, &configuration(&template()?, run)?, image)
    }

    /// Writes a disc image as [`Self::write_disc`] does, for an emulator, whose serial line is watched:
    /// Limine reports there, too, why it can't start a kernel. But not on UEFI, where it leaves its last
    /// line without an end, and the kernel's first one would follow on it.
    ///
    /// # Errors
    /// As [`Self::write_disc`].
    pub fn write_watched_disc(
        &self,
        kernel: &Path,
        run: &Run,
        image: &Path,
    ) -> Result<BootableFrom> {
        let configuration = configuration(&template()?, run)?;
        let serial = match run.firmware {
            Firmware::Bios => "serial: yes\n",
            Firmware::Uefi => "",
        };
        self.write(kernel, &format!("{serial}{configuration}"), image)
    }

    /// Writes a disc image with the kernel and Limine's configuration.
    fn write(&self, kernel: &Path, configuration: &str, image: &Path) -> Result<BootableFrom> {
        let folder = tempfile::tempdir().context("no place for the disc's files")?;
        let tree = folder.path();
        let context = || format!("cannot write {}", shown(tree));
        for (file, place) in FILES {
            copy(&self.folder.join(file), &tree.join(place))?;
        }
        fs::copy(kernel, tree.join("boot/muster")).with_context(context)?;
        fs::write(tree.join("boot/limine/limine.conf"), configuration).with_context(context)?;

        // As Limine's USAGE.md says for an image that boots from CD and USB on
        // BIOS and UEFI.
        let mut xorriso = Command::new("xorriso");
        xorriso.args(["-as", "mkisofs", "-quiet", "-R", "-r", "-J"]);
        xorriso.args(["-b", "boot/limine/limine-bios-cd.bin", "-no-emul-boot"]);
        xorriso.args(["-boot-load-size", "4", "-boot-info-table", "-hfsplus"]);
        xorriso.args([
            "-apm-block-size",
            "2048",
            "--efi-boot",
            "boot/limine/limine-uefi-cd.bin",
        ]);
        xorriso.args([
            "-efi-boot-part",
            "--efi-boot-image",
            "--protective-msdos-label",
        ]);
        xorriso.arg(tree).arg("-o").arg(image);
        let output = xorriso
            .output()
            .context("cannot start xorriso: ./bootstrap installs it")?;
        if !output.status.success() {
            bail!(
                "xorriso failed:\n{}",
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(self.install_for_bios(image))
    }

    /// Puts Limine's BIOS stages into the image's boot sector, which only a
    /// boot from USB by BIOS needs.
    fn install_for_bios(&self, image: &Path) -> BootableFrom {
        let tool = self.folder.join("limine");
        let tools = [tool.as_path(), Path::new("limine")];
        let installed = tools.iter().any(|tool| {
            let mut limine = Command::new(tool);
            limine
                .arg("bios-install")
                .arg(image)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            limine.status().is_ok_and(|status| status.success())
        });
        match installed {
            true => BootableFrom::Everything,
            false => BootableFrom::AllButUsbByBios,
        }
    }
}

/// What a disc image boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootableFrom {
    /// CD and USB, by BIOS and UEFI.
    Everything,
    /// Not from USB by BIOS: Limine's host tool is not installed.
    AllButUsbByBios,
}

impl fmt::Display for BootableFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everything => "boots from CD and USB, by BIOS and UEFI",
            Self::AllButUsbByBios => {
                "boots from CD by BIOS and UEFI and from USB by UEFI; for USB by BIOS run \
                 `limine bios-install` on it (the limine tool is not installed here)"
            }
        })
    }
}

/// Finds, in one of Limine's files, a version that does not boot the kernel.
fn old_version(file: &[u8]) -> Option<String> {
    let version = |text| {
        let version = str::from_utf8(text).ok()?.strip_prefix("Limine ")?;
        let version = version.split(' ').next()?;
        let (major, rest) = version.split_once('.')?;
        // A message may name `Limine 3.x`.
        rest.split('.').next()?.parse::<u32>().ok()?;
        Some((major.parse::<u32>().ok()?, version))
    };
    // A string of C's ends with a 0.
    let (major, version) = file.split(|&byte| byte == 0).find_map(version)?;
    (major < MIN_VERSION).then(|| version.into())
}

fn is_complete(folder: &Path) -> bool {
    FILES.iter().all(|(file, _)| folder.join(file).is_file())
}

fn copy(file: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot write {}", shown(folder)))?;
    let name = file.file_name().unwrap_or_default();
    fs::copy(file, folder.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}

/// Reads the configuration that the disc of every run has.
fn template() -> Result<String> {
    fs::read_to_string(workspace::root().join("limine.conf")).context("cannot read limine.conf")
}

/// Returns the configuration with the kernel's command line put in; as it is if there
/// are no words.
fn configuration(template: &str, run: &Run) -> Result<String> {
    let words = run.command_line();
    if words.is_empty() && run.resolution.is_none() {
        return Ok(template.into());
    }
    let mut found = false;
    let mut text = String::new();
    for line in template.lines() {
        let unindented = line.trim_start();
        if unindented.starts_with("cmdline:") {
            found = true;
            let indentation = &line[..line.len() - unindented.len()];
            if let Some(resolution) = &run.resolution {
                text += &format!("{indentation}resolution: {resolution}\n");
            }
            text += &format!("{indentation}cmdline: {words}\n");
        } else {
            text += &format!("{line}\n");
        }
    }
    if !found {
        bail!("limine.conf has no `cmdline:` line to put the kernel's words into");
    }
    Ok(text)
}

/// Returns QEMU's arguments for UEFI firmware. Its variables are a fresh copy in `folder`, so that
/// no run depends on the one before.
///
/// # Errors
/// [`NotInstalled::Ovmf`], or if the copy cannot be written.
pub fn uefi(folder: &Path) -> Result<Vec<OsString>> {
    let exists = |path: &str| Path::new(path).is_file();
    if let Some((code, variables)) = OVMF
        .iter()
        .find(|(code, vars)| exists(code) && exists(vars))
    {
        let copy = folder.join("uefi-variables.fd");
        fs::copy(variables, &copy).with_context(|| format!("cannot write {}", shown(&copy)))?;
        let code = prefixed(
            "if=pflash,unit=0,format=raw,readonly=on,file=",
            Path::new(code),
        );
        let variables = prefixed("if=pflash,unit=1,format=raw,file=", &copy);
        return Ok(vec!["-drive".into(), code, "-drive".into(), variables]);
    }
    let whole = OVMF_WHOLE
        .iter()
        .find(|path| exists(path))
        .ok_or(NotInstalled::Ovmf)?;
    Ok(vec!["-bios".into(), whole.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Run {
        crate::arguments::parse(&[words, &["boot=limine"]].concat()).unwrap()
    }

    #[test]
    fn the_words_become_the_command_line() {
        let text = configuration(&template().unwrap(), &run(&["stress=churn", "seed=1"])).unwrap();
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.contains("cmdline:"))
            .collect();
        assert_eq!(lines, ["    cmdline: stress=churn seed=1"]);
        assert_eq!(text.lines().count(), template().unwrap().lines().count());
        let text = configuration(&template().unwrap(), &run(&["seed=1", "client=a b=c"])).unwrap();
        assert!(text.contains("    cmdline: seed=1 -- a b=c\n"), "{text}");
    }

    #[test]
    fn the_resolution_stands_in_the_kernel_s_entry() {
        let text = configuration(&template().unwrap(), &run(&["resolution=640x480x16"])).unwrap();
        assert!(text.ends_with("\n    resolution: 640x480x16\n    cmdline: \n"));
    }

    #[test]
    fn without_words_the_configuration_stays() {
        assert_eq!(
            configuration(&template().unwrap(), &run(&[])).unwrap(),
            template().unwrap()
        );
    }

    #[test]
    fn a_configuration_without_command_line_is_refused() {
        assert!(configuration("timeout: 0\n", &run(&["seed=1"])).is_err());
    }

    #[test]
    fn the_configuration_names_the_kernel_on_the_disc() {
        assert!(
            template()
                .unwrap()
                .contains("    path: boot():/boot/muster\n")
        );
    }

    #[test]
    fn an_old_limine_is_refused_with_its_version() {
        let folder = tempfile::tempdir().unwrap();
        for (file, _) in FILES {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let find = |file: &str, strings: &str| {
            fs::write(folder.path().join(file), strings).unwrap();
            Limine::of(folder.path().into()).map(|_| ())
        };
        // In the middle of code that is no text.
        let file = "limine-bios.sys";
        let in_code = |version| format!("\u{1}\0{version}\0\u{ff}");
        for (strings, old) in [
            ("Limine 8.2.0 (ia-32, BIOS)", Some("8.2.0")),
            ("Limine 8.2.0", Some("8.2.0")),
            ("Limine 5.20231207.1", Some("5.20231207.1")),
            ("Limine 9.6.7", None),
            ("Limine 10.8.0 (x86-64, UEFI)", None),
            ("Limine 3.x\0Limine 9.0.0-beta", None),
            ("Limine does not", None),
            ("", None),
        ] {
            let error = find(file, &in_code(strings)).err();
            let expected = old.map(|version| NotInstalled::OldLimine {
                version: version.into(),
                folder: folder.path().into(),
            });
            assert_eq!(error, expected, "{strings}");
        }
        // For UEFI alone.
        let error = find("BOOTX64.EFI", &in_code("Limine 7.13.3")).unwrap_err();
        let told = error.to_string();
        assert!(told.starts_with("Limine 7.13.3 in /"), "{told}");
        assert_eq!(told.lines().count(), 1);
    }

    #[test]
    fn an_incomplete_folder_is_not_limine() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_complete(folder.path()));
        for (file, _) in FILES {
            fs::write(folder.path().join(file), "").unwrap();
        }
        assert!(is_complete(folder.path()));
    }
}
