//! `debug`: the kernel under GDB, stopped before its first instruction.

use std::env;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::arguments::Run;
use crate::boot_log::BootLog;
use crate::images;
use crate::machine;
use crate::run;
use crate::screen::Screen;
use crate::session::{self, Guest, Interrupt, Rules};
use crate::symbols::Symbols;
use crate::workspace::{self, shown};

/// Where QEMU waits for a debugger.
const ADDRESS: &str = "localhost:1234";

/// Boots with QEMU waiting for GDB, and starts GDB if there is one; the log
/// goes to its file meanwhile. Without GDB the log is shown, and how to attach
/// one.
///
/// # Errors
/// If there is nothing to boot, or QEMU or GDB does not start.
pub fn command(run: &Run, interrupt: &Interrupt) -> Result<ExitCode> {
    let images = images::build(run.build)?;
    let folder = workspace::boot_log();
    let mut log = BootLog::create(&folder)?;
    let medium = run::medium(run, &images, &folder)?;
    let mut qemu = machine::command(run, &medium, &log.debug_console());
    qemu.args(["-S", "-gdb", &format!("tcp:{ADDRESS}")]);

    // A hardware breakpoint holds in memory that no loader has filled yet.
    let gdb_arguments = [
        images.kernel.display().to_string(),
        "-ex".into(),
        format!("target remote {ADDRESS}"),
        "-ex".into(),
        "hbreak entry".into(),
        "-ex".into(),
        "continue".into(),
    ];
    if !is_installed("gdb") {
        let line = shlex::try_join(gdb_arguments.iter().map(String::as_str))?;
        println!("muster: QEMU waits for a debugger; in another terminal:\n\n  gdb {line}\n");
        let screen = Screen::new();
        let symbols = Symbols::of(&images.kernel);
        let show = &mut |text: &str| screen.line(text);
        session::run(
            qemu,
            Rules::default(),
            interrupt,
            &symbols,
            &mut log,
            show,
            None,
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    qemu.stdin(Stdio::null()).stdout(log.file()?);
    let _guest = Guest::start(&mut qemu)?;
    println!("muster: the log goes to {}", shown(&log.all()));
    let status = Command::new("gdb")
        .args(&gdb_arguments)
        .status()
        .context("cannot start gdb")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
