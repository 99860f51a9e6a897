//! `run`: one boot of the kernel, shown live and summed up.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::arguments::{Boot, Drive, Events, Firmware, Run};
use crate::boot_log::{self, BootLog};
use crate::emulators::bochs::Bochs;
use crate::emulators::emulator::{Emulator, Kind};
use crate::emulators::machine::{self, Medium};
use crate::emulators::postmortem::Postmortem;
use crate::emulators::requirements;
use crate::events;
use crate::images::{self, Images};
use crate::limine::{self, BootableFrom, Limine, NotInstalled};
use crate::screen::Screen;
use crate::session::{self, Interrupt, Launch, Outcome, Rules, Typist, Verdict};
use crate::symbols::Symbols;
use crate::terminal::Terminal;
use crate::workspace::{self, shown};

/// The exit status after Ctrl-C, as shells have it (128 + SIGINT).
const INTERRUPTED: u8 = 130;

/// Builds, boots and watches. Succeeds only if the kernel passed.
///
/// # Errors
/// If there is nothing to boot, or the emulator does not start.
pub fn command(run: &Run, interrupt: &Interrupt) -> Result<ExitCode> {
    requirements::check(run)?;
    let images = images::build(run.build)?;
    watch(run, &images, &workspace::boot_log(), interrupt).map(code)
}

/// Boots a kernel that is built, and watches it. The log is left in a folder beside it.
///
/// # Errors
/// If no loader is installed, or the emulator does not start.
pub fn boot_kernel(kernel: &Path, run: &Run, interrupt: &Interrupt) -> Result<ExitCode> {
    requirements::check(run)?;
    let images = images::of(kernel)?;
    watch(run, &images, &kernel.with_file_name("boot-log"), interrupt).map(code)
}

/// Returns the exit status of a run that ended so.
pub fn code(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Passed => ExitCode::SUCCESS,
        Verdict::Interrupted => ExitCode::from(INTERRUPTED),
        _ => ExitCode::FAILURE,
    }
}

/// Boots and watches, with the log in `folder`, and prints how it ended.
///
/// # Errors
/// If there is nothing to boot, or the emulator does not start.
pub fn watch(run: &Run, images: &Images, folder: &Path, interrupt: &Interrupt) -> Result<Verdict> {
    let screen = Screen::for_run(run);
    let mut terminal = None;
    if run.is_monitored() {
        screen.note("muster: Ctrl-] ends the emulator, whatever the kernel does")?;
        terminal = Some(Terminal::new(interrupt, screen.beside_events())?);
    }
    let typist = terminal
        .as_mut()
        .map(|terminal| terminal as &mut dyn Typist);
    let show = &mut |text: &str| screen.line(text);
    let on_event: &mut OnEvent<'_> = &mut |event| screen.event(event);
    let (outcome, cpus) = boot(run, images, folder, interrupt, show, typist, Some(on_event))?;
    drop(terminal);

    let (verdict, reason) = outcome.verdict();
    if verdict == Verdict::Hung && outcome.last_lines().next().is_some() {
        screen.news(
            false,
            "muster: the emulator was killed; the last line of each CPU:",
        )?;
        for text in outcome.last_lines() {
            screen.line(text)?;
        }
    }
    screen.news(
        verdict == Verdict::Passed,
        &format!("muster: {verdict}{}", dashed(&reason)),
    )?;
    let emulator = Emulator::of(run)?;
    screen.note(&summary(&emulator, &outcome, folder, &cpus))?;
    if run.events != Events::Nowhere {
        let file = boot_log::events(folder);
        screen.note(&format!("        events: {}", shown(&file)))?;
    }
    Ok(verdict)
}

fn dashed(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" - {reason}")
    }
}

/// Names the emulator, times, status and logs, in a line or two.
fn summary(emulator: &Emulator, outcome: &Outcome, folder: &Path, cpus: &[u32]) -> String {
    let roll = match outcome.roll() {
        Some((_, time)) => format!("roll call {:.2} s after its start", time.as_secs_f64()),
        None => "no roll call".into(),
    };
    let status = outcome
        .status()
        .map_or("killed".into(), |status| format!("status {status}"));
    let cpus = match cpus {
        [] => String::new(),
        cpus => format!(", CPU {}", boot_log::ranges(cpus)),
    };
    let end = outcome.elapsed.as_secs_f64();
    format!(
        "        {emulator}: {roll}; end after {end:.2} s, {status}\n        logs: {}/all.log{cpus}",
        shown(folder)
    )
}

/// The callback for the kernel's events, line by line.
pub type OnEvent<'a> = dyn FnMut(&str) -> io::Result<()> + Send + 'a;

/// Boots the images as the run asks, with the log in `folder`, and the `typist`, if there is one,
/// at its serial line. The events, if the run asks for them, go to their file, and to `on_event`.
/// Returns the outcome, and the CPUs that left a log.
///
/// # Errors
/// If Limine or UEFI firmware is asked for and missing, or the emulator does not start.
pub fn boot(
    run: &Run,
    images: &Images,
    folder: &Path,
    interrupt: &Interrupt,
    show: &mut dyn FnMut(&str) -> io::Result<()>,
    typist: Option<&mut dyn Typist>,
    on_event: Option<&mut OnEvent<'_>>,
) -> Result<(Outcome, Vec<u32>)> {
    let emulator = Emulator::of(run)?;
    let mut log = BootLog::create(folder)?;
    log.write(&format!("muster: {}", emulator.reported))?;
    let medium = medium(run, images, folder)?;
    let symbols = Symbols::of(&images.kernel);
    let launch = match (run.emulator, &medium) {
        (Kind::Bochs, Medium::Disc { image, .. }) => {
            Bochs::find(&run.bochs)?.launch(run, image, &log.debug_console(), folder)?
        }
        (Kind::Bochs, _) => bail!("Bochs boots from a disc image alone"),
        (Kind::Qemu, _) => {
            let mut qemu = machine::command(run, &medium, &log.debug_console());
            if run.events != Events::Nowhere {
                let file = boot_log::events(folder);
                machine::add_second_port(&mut qemu, &file);
                let words = run.arguments.iter().map(String::as_str);
                let command = events::typed(["just", "run-smp"].into_iter().chain(words));
                events::begin(&file, &command, &qemu)?;
            }
            let postmortem = Postmortem::new(folder)?;
            qemu.args(postmortem.arguments());
            Launch::qemu(qemu).with_postmortem(move |symbols| postmortem.look(symbols))
        }
    };
    let watch = |show: &mut dyn FnMut(&str) -> io::Result<()>| {
        session::run(
            launch,
            Rules {
                limit: run.time_limit,
                pause: run.pause,
            },
            interrupt,
            &symbols,
            &mut log,
            show,
            typist,
        )
    };
    let outcome = match on_event {
        Some(on_event) if run.events != Events::Nowhere => {
            let file = boot_log::events(folder);
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                let follower = scope.spawn(|| events::follow(&file, &is_over, on_event));
                // Without a reader of the events the run need not go on.
                let outcome = watch(&mut |text| match follower.is_finished() {
                    true => Err(io::ErrorKind::BrokenPipe.into()),
                    false => show(text),
                });
                is_over.store(true, Ordering::Release);
                match follower.join() {
                    Ok(followed) => followed.context("cannot show the events")?,
                    Err(_) => bail!("the events could not be followed"),
                }
                outcome
            })?
        }
        _ => watch(show)?,
    };
    let cpus = log.split(&symbols)?;
    Ok((outcome, cpus))
}

/// Returns the medium that the machine boots from; a disc is written into `folder`.
///
/// # Errors
/// If Limine or UEFI firmware is asked for and missing.
pub fn medium(run: &Run, images: &Images, folder: &Path) -> Result<Medium> {
    if run.boot == Boot::Embedded {
        return Ok(Medium::Embedded {
            loader: images.loader.clone(),
            kernel: images.bootable.clone(),
        });
    }
    let image = folder.join("disc.iso");
    let good_for = Limine::find()?.write_watched_disc(&images.bootable, run, &image)?;
    if (run.drive, run.firmware, good_for)
        == (Drive::Usb, Firmware::Bios, BootableFrom::AllButUsbByBios)
    {
        return Err(NotInstalled::LimineTool.into());
    }
    let firmware = match run.firmware {
        Firmware::Bios => Vec::new(),
        Firmware::Uefi => limine::uefi(folder)?,
    };
    Ok(Medium::Disc { image, firmware })
}
