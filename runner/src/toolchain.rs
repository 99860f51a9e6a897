//! The choice of the Rust toolchain that builds the bare-metal images, and the
//! clean environment in which it is spawned.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fmt, fs};

use anyhow::{Context, Result};

use crate::workspace;

/// The target of the kernel and the loader.
pub const TARGET: &str = "x86_64-unknown-none";

/// The oldest minor version of Rust 1 that builds the workspace (its
/// `rust-version`).
const OLDEST_MINOR: u32 = 88;

/// Where the bare-metal `core` and `alloc` come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Core {
    /// Compiled libraries are installed (`rustup target add`).
    Installed,
    /// They are compiled from the installed sources of the standard library.
    FromSource,
}

/// A Rust toolchain that can build for [`TARGET`].
#[derive(Debug)]
pub struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    core: Core,
}

/// No Rust toolchain on this machine can build for [`TARGET`].
#[derive(Debug)]
pub struct NoToolchain;

impl fmt::Display for NoToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no Rust toolchain here builds for {TARGET}: run ./bootstrap, or one of\n  \
             rustup target add {TARGET}\n  \
             apt-get install rustc-web cargo-web rust-web-src rust-web-clippy lld   (Debian)"
        )
    }
}

impl std::error::Error for NoToolchain {}

impl Toolchain {
    /// Chooses the first toolchain that serves: one with the compiled target
    /// first, else one with the standard library's sources; in each case what
    /// `PATH` finds before the distribution's `/usr/bin`.
    ///
    /// # Errors
    /// [`NoToolchain`] if there is neither.
    pub fn choose() -> Result<Self, NoToolchain> {
        let candidates = [("cargo", "rustc"), ("/usr/bin/cargo", "/usr/bin/rustc")];
        let sysroots = candidates.map(|(_, rustc)| sysroot(Path::new(rustc)));
        let serving = |core: Core, inside_sysroot: &str| {
            candidates
                .iter()
                .zip(&sysroots)
                .find_map(|((cargo, rustc), sysroot)| {
                    let found = sysroot.as_ref()?.join(inside_sysroot).is_dir();
                    (found && is_recent(Path::new(rustc))).then(|| Self {
                        cargo: cargo.into(),
                        rustc: rustc.into(),
                        core,
                    })
                })
        };
        serving(Core::Installed, &format!("lib/rustlib/{TARGET}/lib"))
            .or_else(|| serving(Core::FromSource, "lib/rustlib/src/rust/library/core"))
            .ok_or(NoToolchain)
    }

    /// Makes `cargo SUBCOMMAND` for [`TARGET`], in release mode.
    pub fn bare_metal(&self, subcommand: &str) -> Command {
        let mut command = self.cargo(OsStr::new(subcommand), workspace::root());
        // What is installed is so of its own accord.
        command.args((subcommand != "install").then_some("--release"));
        command.args(["--target", TARGET, "--target-dir"]);
        command.arg(workspace::bare_metal());
        command
    }

    /// Makes `cargo SUBCOMMAND` in another workspace, whose configuration names the target.
    pub fn outside(&self, subcommand: &OsStr, folder: &Path) -> Command {
        self.cargo(subcommand, folder)
    }

    fn cargo(&self, subcommand: &OsStr, folder: &Path) -> Command {
        let mut command = clean(&self.cargo);
        command.current_dir(folder).arg(subcommand);
        if self.cargo.is_absolute() {
            command.env("RUSTC", &self.rustc);
            // Cargo looks for `cargo-clippy` in PATH, and rustup's would check
            // with another compiler than the one that built `core`.
            if let Some(folder) = self.cargo.parent() {
                command.env("PATH", with_first(folder));
            }
        }
        if self.core == Core::FromSource {
            // Building `core` is not stable in Cargo; the source that is built
            // this way is, and needs no other unstable feature.
            command.env("RUSTC_BOOTSTRAP", "1");
            // Distributions do not ship the rust-lld that the target asks for.
            command.env("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER", "ld.lld");
            command.args([
                "-Zbuild-std=core,alloc",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
        }
        command
    }
}

/// Makes `cargo` as `PATH` finds it, for the host's own crates.
pub fn host_cargo() -> Command {
    let mut command = clean(Path::new("cargo"));
    command.current_dir(workspace::root());
    command
}

/// Returns the same for a subcommand in the workspace of what draws.
pub fn view_cargo(subcommand: &str) -> Command {
    let mut command = host_cargo();
    command.args([
        subcommand,
        "--manifest-path",
        "view/Cargo.toml",
        "--target-dir",
    ]);
    command.arg(workspace::target().join("view"));
    command
}

/// Makes the command of a program in `view/`, to which arguments are added. Prints that it has to be
/// built first, if it has to.
///
/// # Errors
/// If nobody reads that.
pub fn viewer(package: &str) -> io::Result<Command> {
    let mut command = view_cargo("run");
    command.args(["--package", package]);
    if workspace::target()
        .join("view/debug")
        .join(package)
        .exists()
    {
        command.arg("--quiet");
    } else {
        writeln!(io::stderr(), "muster: builds the viewer, view/, this once")?;
    }
    command.arg("--");
    Ok(command)
}

/// Runs Cargo to its end. Its exit status is the runner's.
///
/// # Errors
/// If it does not start.
pub fn finish(mut cargo: Command) -> Result<ExitCode> {
    let status = cargo.status().context("cannot start Cargo")?;
    // As shells have it where a signal ended it.
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Where the host's Rust keeps its libraries.
#[derive(Debug)]
pub struct HostLibraries {
    /// The host, as Cargo calls it.
    pub target: String,
    folder: PathBuf,
}

impl HostLibraries {
    /// Finds those of the compiler that [`host_cargo`] uses.
    ///
    /// # Errors
    /// If there is none.
    pub fn find() -> Result<Self> {
        let rustc = Path::new("rustc");
        let target = answer(rustc, &["--print", "host-tuple"]);
        let folder = answer(rustc, &["--print", "target-libdir"]);
        let (target, folder) = target.zip(folder).context("rustc does not run")?;
        Ok(Self {
            target: target.trim_end().into(),
            folder: folder.trim_end().into(),
        })
    }

    /// Returns whether AddressSanitizer's library is among them: rustup's Rust has it, a distribution's may
    /// not.
    pub fn has_address_sanitizer(&self) -> bool {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut names = files.map(|file| file.file_name());
        names.any(|name| name.to_string_lossy().ends_with("_rt.asan.a"))
    }
}

/// Returns the folder of a compiler's libraries, if the compiler runs. A
/// distribution's lie beside it, and it need not be asked.
fn sysroot(rustc: &Path) -> Option<PathBuf> {
    if rustc.is_absolute() {
        return rustc.parent()?.parent().map(Path::to_path_buf);
    }
    Some(answer(rustc, &["--print", "sysroot"])?.trim_end().into())
}

/// Returns whether a compiler builds the workspace.
fn is_recent(rustc: &Path) -> bool {
    let version = answer(rustc, &["--version"]).unwrap_or_default();
    version.strip_prefix("rustc ").is_some_and(is_new_enough)
}

/// Returns a compiler's answer, if it runs.
fn answer(rustc: &Path, question: &[&str]) -> Option<String> {
    let output = clean(rustc)
        .args(question)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).ok())?
}

/// Returns whether a version such as `1.96.0 (ac68faa20 2026-05-25)` builds the workspace.
fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split(['.', ' ']).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(1)), Some(Ok(minor))) => minor >= OLDEST_MINOR,
        (Some(Ok(major)), _) => major > 1,
        _ => false,
    }
}

/// Makes a command without the variables that `cargo run` set for the runner itself: it would tie
/// another toolchain's Cargo to this one's compiler and libraries. A user's RUSTFLAGS go too, since
/// they would replace those in `.cargo/config.toml`, without which the images do not link.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let kept = [
            "CARGO_HOME",
            "CARGO_HTTP_",
            "CARGO_NET_",
            "CARGO_REGISTR",
            "CARGO_TERM_",
        ];
        let tied = text == "CARGO"
            || text.starts_with("CARGO_")
            || [
                "RUSTUP_TOOLCHAIN",
                "RUSTUP_TOOLCHAIN_SOURCE",
                "RUST_RECURSION_COUNT",
            ]
            .contains(&text)
            || [
                "RUSTC",
                "RUSTC_WRAPPER",
                "RUSTC_WORKSPACE_WRAPPER",
                "RUSTFLAGS",
                "RUSTDOC",
            ]
            .contains(&text);
        if tied && !kept.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    if let Some(libraries) = env::var_os("LD_LIBRARY_PATH") {
        let own = env::var_os("CARGO").map(PathBuf::from);
        let own = own.as_deref().and_then(Path::parent).and_then(Path::parent);
        let foreign = |folder: &PathBuf| {
            !folder.starts_with(workspace::target())
                && !own.is_some_and(|own| folder.starts_with(own))
        };
        match env::join_paths(env::split_paths(&libraries).filter(foreign)) {
            Ok(left) if !left.is_empty() => command.env("LD_LIBRARY_PATH", left),
            _ => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
    command
}

/// Returns `PATH` with `folder` before everything else.
pub fn with_first(folder: &Path) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_path_buf()).chain(env::split_paths(&path));
    env::join_paths(folders).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(is_new_enough("1.88.0 (6b00bc388 2025-06-23)"));
        assert!(is_new_enough("1.100.0-nightly"));
        assert!(is_new_enough("2.0.0"));
        assert!(!is_new_enough("1.87.0"));
        assert!(!is_new_enough("1.9.0"));
        assert!(!is_new_enough("unknown"));
    }

    #[test]
    fn the_oldest_version_is_the_workspace_manifest_s() {
        let manifest = std::fs::read_to_string(workspace::root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("rust-version = \"1.{OLDEST_MINOR}\"")));
    }

    #[test]
    fn what_ties_to_another_toolchain_is_removed() {
        // Cargo sets CARGO for its tests, so the command must take it away.
        let command = clean(Path::new("true"));
        assert!(
            command
                .get_envs()
                .any(|(name, value)| name == "CARGO" && value.is_none())
        );
    }
}
