//! `debug`: the kernel under GDB, stopped before its first instruction, with commands that know it; and
//! GDB with a test's commands.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::arguments::Run;
use crate::boot_log::BootLog;
use crate::emulators::emulator::{Emulator, Kind};
use crate::emulators::machine;
use crate::emulators::requirements;
use crate::images::{self, Images};
use crate::recipes::run;
use crate::screen::Screen;
use crate::session::{self, Guest, Interrupt, Launch, Rules};
use crate::symbols::Symbols;
use crate::workspace::{self, shown};

/// Where QEMU waits for a debugger.
const ADDRESS: &str = "localhost:1234";

/// Where GDB stops first. Without the `*` it would look for the end of the function's prologue, and find it
/// in what is inlined there.
const STOP: &str = "hbreak *entry";

/// What is said once QEMU is about to be there; an editor waits for it.
const WAITS: &str = "muster: QEMU waits for a debugger";

/// What a test's GDB said, in the folder of its log.
pub const WORDS: &str = "gdb.log";

/// How long QEMU may take to be there.
const TIMEOUT: Duration = Duration::from_secs(30);

/// GDB is not installed.
#[derive(Debug)]
pub struct NoGdb;

impl fmt::Display for NoGdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GDB is not installed: ./bootstrap debug installs it")
    }
}

impl std::error::Error for NoGdb {}

/// Returns GDB's arguments for the kernel's symbols and the commands for it, in this order.
fn preparation(kernel: &Path) -> [String; 3] {
    let commands = workspace::root().join("runner/gdb/muster.py");
    [
        kernel.display().to_string(),
        "-ex".into(),
        format!("source {}", commands.display()),
    ]
}

/// Boots with QEMU waiting for GDB, and starts GDB if there is one; the log goes to its file in the
/// meantime. Without GDB the log is shown, and how to attach one.
///
/// # Errors
/// If there is nothing to boot, or QEMU or GDB does not start.
pub fn command(run: &Run, interrupt: &Interrupt) -> Result<ExitCode> {
    if !is_installed("gdb") {
        writeln!(io::stdout(), "muster: {NoGdb}")?;
        return wait(run, interrupt);
    }
    requirements::check(run)?;
    let images = images::build(run.build)?;
    let folder = workspace::boot_log();
    let mut log = BootLog::create(&folder)?;
    let mut qemu = stopped(run, &images, &mut log, &folder)?;
    qemu.stdin(Stdio::null()).stdout(log.file()?);
    let _guest = Guest::start(&mut qemu)?;
    writeln!(
        io::stdout(),
        "muster: the log goes to {}",
        shown(&log.all())
    )?;
    writeln!(
        io::stdout(),
        "muster: `help roll`, `help percpu` and `help pagewalk` tell of the kernel's own commands"
    )?;
    let status = Command::new("gdb")
        .args(attachment(&images.kernel))
        .status()
        .context("cannot start gdb")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Boots with QEMU waiting for any debugger, and shows the log.
///
/// # Errors
/// If there is nothing to boot, or QEMU does not start.
pub fn wait(run: &Run, interrupt: &Interrupt) -> Result<ExitCode> {
    requirements::check(run)?;
    let images = images::build(run.build)?;
    let folder = workspace::boot_log();
    let mut log = BootLog::create(&folder)?;
    let qemu = stopped(run, &images, &mut log, &folder)?;
    let line = attachment(&images.kernel);
    let line = shlex::try_join(line.iter().map(String::as_str))?;
    writeln!(
        io::stdout(),
        "{WAITS}; in another terminal:\n\n  gdb {line}\n"
    )?;
    let screen = Screen::new();
    let symbols = Symbols::of(&images.kernel);
    let show = &mut |text: &str| screen.line(text);
    session::run(
        Launch::qemu(qemu),
        Rules::default(),
        interrupt,
        &symbols,
        &mut log,
        show,
        None,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Makes QEMU's command, stopped before its first instruction.
fn stopped(run: &Run, images: &Images, log: &mut BootLog, folder: &Path) -> Result<Command> {
    ensure!(
        run.emulator == Kind::Qemu,
        "GDB needs QEMU: machine=bochs has no place for it"
    );
    log.write(&format!("muster: {}", Emulator::qemu(&run.qemu)?.reported))?;
    let medium = run::medium(run, images, folder)?;
    let mut qemu = machine::command(run, &medium, &log.debug_console());
    qemu.args(["-S", "-gdb", &format!("tcp:{ADDRESS}")]);
    Ok(qemu)
}

/// Returns GDB's arguments to get to the kernel's entry.
fn attachment(kernel: &Path) -> Vec<String> {
    let mut arguments = vec!["-q".into()];
    arguments.extend(preparation(kernel));
    // A hardware breakpoint holds in memory that no loader has filled yet.
    for command in [&format!("target remote {ADDRESS}"), STOP, "continue"] {
        arguments.extend(["-ex".into(), command.into()]);
    }
    arguments
}

/// Boots as `boot` does, with GDB attached from before the first instruction on if there are commands
/// for it: what it says to them is in `folder` then.
///
/// # Errors
/// As `boot`; [`NoGdb`]; or if GDB can't do its part.
pub fn alongside<T>(
    commands: &[&str],
    run: &mut Run,
    kernel: &Path,
    folder: &Path,
    boot: impl FnOnce(&Run) -> Result<T>,
) -> Result<T> {
    if commands.is_empty() {
        return boot(run);
    }
    ensure!(is_installed("gdb"), NoGdb);
    // The name of a socket may not be long.
    let place = tempfile::tempdir().context("no place for a socket")?;
    let socket = place.path().join("gdb");
    let server = format!("unix:{},server=on,wait=off", socket.display());
    (run.qemu_arguments).extend(["-S".into(), "-gdb".into(), server]);
    thread::scope(|scope| {
        let gdb = scope.spawn(|| ask(commands, kernel, &socket, &folder.join(WORDS)));
        let booted = boot(run)?;
        match gdb.join() {
            Ok(asked) => asked.map(|()| booted),
            Err(_) => bail!("GDB was not waited for"),
        }
    })
}

/// Has GDB run the commands, each after its own text, whether or not the one before failed.
fn ask(commands: &[&str], kernel: &Path, socket: &Path, words: &Path) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "QEMU does not wait for GDB");
        thread::sleep(Duration::from_millis(10));
    }
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-quiet", "-batch"]);
    gdb.args(preparation(kernel)).arg("-ex");
    gdb.arg(format!("target remote {}", socket.display()));
    for command in commands {
        gdb.args(["-ex", &format!("echo (gdb) {command}\\n"), "-ex", command]);
    }
    let output = File::create(words).with_context(|| format!("cannot write {}", shown(words)))?;
    gdb.stdin(Stdio::null()).stderr(output.try_clone()?);
    gdb.stdout(output).status().context("cannot start gdb")?;
    Ok(())
}

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use regex_lite::Regex;
    use serde_json::Value;

    use super::*;

    fn of_editor(file: &str) -> Value {
        let path = workspace::root().join(".vscode").join(file);
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn an_editor_s_debugger_finds_qemu_and_the_kernel() {
        let launch = &of_editor("launch.json")["configurations"][0];
        let task = &of_editor("tasks.json")["tasks"][0];
        assert_eq!(launch["preLaunchTask"], task["label"]);
        assert_eq!(launch["miDebuggerServerAddress"], ADDRESS);

        assert_eq!(launch["postRemoteConnectCommands"][0]["text"], STOP);

        let folder = workspace::bare_metal();
        let folder = folder.strip_prefix(workspace::root()).unwrap();
        let kernel = folder.join(crate::toolchain::TARGET).join("release/muster");
        let program = format!("${{workspaceFolder}}/{}", kernel.display());
        assert_eq!(launch["program"], program);

        let source = launch["setupCommands"][0]["text"].as_str().unwrap();
        let script = source.strip_prefix("source ${workspaceFolder}/").unwrap();
        assert!(workspace::root().join(script).is_file());

        assert_eq!(task["command"], "just");
        let recipe = task["args"][0].as_str().unwrap();
        let recipes = std::fs::read_to_string(workspace::root().join("Justfile")).unwrap();
        assert!(recipes.contains(&format!("\n{recipe} *ARGS:\n")));
        let ready = task["problemMatcher"]["background"]["endsPattern"].as_str();
        assert!(Regex::new(ready.unwrap()).unwrap().is_match(WAITS));
    }
}
