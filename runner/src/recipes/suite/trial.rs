//! One boot of a case, and what came of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::account;
use super::emulators::emulators_of;
use super::expectation::{figures, mismatch, unanswered, unmatched, untold};
use crate::arguments::{self, Build, Events};
use crate::boot_log::{self, Which};
use crate::cases::Case;
use crate::cases::script::Script;
use crate::emulators::bochs;
use crate::emulators::camera::Camera;
use crate::emulators::emulator::Kind;
use crate::events;
use crate::images::{self, Images};
use crate::limine::NotInstalled;
use crate::recipes::debugger::{self, NoGdb};
use crate::recipes::outputs;
use crate::recipes::run;
use crate::session::{Interrupt, Typist, Verdict};
use crate::workspace;

/// What came of a case.
pub enum TrialResult {
    /// What it took, how many boots it was, and figures to print.
    Ok {
        time: Duration,
        boots: usize,
        figures: Vec<String>,
    },
    Skipped(String),
    Failed {
        why: String,
        /// What to type to have it again.
        arguments: Vec<String>,
        log: PathBuf,
        tail: Vec<String>,
    },
}

/// Boots a case, as often as it has arguments, and compares.
pub fn examine(
    case: &Case,
    emulators: &[String],
    builds: &Builds,
    interrupt: &Interrupt,
) -> TrialResult {
    let folder = workspace::target().join("test-log").join(case.name);
    let (mut time, mut boots, mut figures) = (Duration::ZERO, 0, Vec::new());
    let mut unseen = case.ends.to_vec();
    let emulators = emulators_of(case, emulators);
    for mut arguments in case.boots() {
        arguments.extend_from_slice(&emulators);
        let failed = |why, tail| TrialResult::Failed {
            why,
            arguments: arguments.clone(),
            log: folder.join("all.log"),
            tail,
        };
        let trial = match attempt(case, &arguments, builds, &folder, interrupt) {
            Ok(trial) => trial,
            Err(error) if error.is::<NoGdb>() => {
                return TrialResult::Skipped("no GDB (gdb)".into());
            }
            Err(error) => {
                return match error.downcast_ref::<NotInstalled>() {
                    Some(NotInstalled::Limine(_)) => {
                        TrialResult::Skipped("no Limine files (LIMINE_DIR)".into())
                    }
                    Some(old @ NotInstalled::OldLimine { .. }) => {
                        TrialResult::Skipped(old.to_string())
                    }
                    Some(NotInstalled::LimineTool) => TrialResult::Skipped("no limine tool".into()),
                    Some(NotInstalled::Ovmf) => {
                        TrialResult::Skipped("no UEFI firmware (ovmf)".into())
                    }
                    Some(NotInstalled::Bochs(_)) => TrialResult::Skipped("no Bochs (bochs)".into()),
                    Some(NotInstalled::BochsFirmware) => {
                        TrialResult::Skipped("no BIOS of Bochs (bochsbios, vgabios)".into())
                    }
                    Some(NotInstalled::BochsDisplay) => {
                        TrialResult::Skipped("no terminal display of Bochs (bochs-term)".into())
                    }
                    None => failed(format!("{error:#}"), Vec::new()),
                };
            }
        };
        if let Some(why) = trial.mismatch {
            return failed(why, trial.tail);
        }
        time += trial.time;
        boots += 1;
        figures = trial.figures;
        unseen.retain(|&verdict| verdict != trial.verdict);
    }
    if let Some(verdict) = unseen.first() {
        return TrialResult::Failed {
            why: format!("none of {boots} boots {verdict}"),
            arguments: (case.arguments.iter().copied().map(str::to_owned))
                .chain(emulators.iter().cloned())
                .collect(),
            log: folder.join("all.log"),
            tail: Vec::new(),
        };
    }
    TrialResult::Ok {
        time,
        boots,
        figures,
    }
}

/// What came of one boot.
struct Trial {
    verdict: Verdict,
    mismatch: Option<String>,
    time: Duration,
    figures: Vec<String>,
    /// The last lines, and if it hung the last line of each CPU.
    tail: Vec<String>,
}

fn attempt(
    case: &Case,
    arguments: &[String],
    builds: &Builds,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<Trial> {
    let mut run = arguments::parse(arguments)?;
    let camera = (!case.shows.is_empty()).then(|| Camera::new(folder));
    let camera = camera.transpose()?;
    (run.qemu_arguments).extend(camera.iter().flat_map(Camera::arguments));
    let images = builds
        .images(run.build)
        .context("its kernel is not built")?;
    let mut script = Script::new(case.types, camera.as_ref())?;
    let typist = (!case.types.is_empty()).then_some(&mut script as &mut dyn Typist);
    let show = &mut |_: &str| Ok(());
    let kernel = &images.kernel;
    let boot = |run: &_| run::boot(run, images, folder, interrupt, show, typist, None);
    let booted = debugger::alongside(case.asks(), &mut run, kernel, folder, boot);
    let (outcome, cpus) = booted?;
    let mut journals = cpus
        .into_iter()
        .map(|cpu| boot_log::read(folder, Which::Cpu(cpu)))
        .collect::<Result<String>>()?;
    let text = fs::read_to_string(folder.join("all.log")).context("cannot read the log")?;
    let (verdict, reason) = outcome.verdict();
    let hung = verdict == Verdict::Hung;
    let last = outcome.last_lines().filter(|_| hung);
    let unsaid = script
        .missing()
        .map(|says| format!("the next line waits for {says}"));
    let wrong_events = match run.events {
        Events::Nowhere => None,
        _ => {
            let text = fs::read_to_string(boot_log::events(folder));
            let text = text.context("cannot read the events")?;
            journals += &text;
            match events::check(&text, outcome.status()) {
                Ok(records) => {
                    let account = account::check_events(&records).err();
                    untold(case, &records).or(account.map(|wrong| format!("{wrong:#}")))
                }
                Err(wrong) => Some(wrong.to_string()),
            }
        }
    };
    let unshown = match &camera {
        Some(camera) => unmatched(case.shows, &camera.text()?)?,
        None => None,
    };
    let unshown = unshown.map(|pattern| format!("the screen does not show {pattern}"));
    let unanswered = match &case.debugged {
        Some(debugged) => unanswered(debugged, folder, &text)?,
        None => None,
    };
    let mismatch = mismatch(case, verdict, &reason, &text, &journals)?;
    let account = match verdict {
        Verdict::Passed => account::check_log(&text).err(),
        _ => None,
    };
    let account = account.map(|wrong| format!("the account: {wrong:#}"));
    let complaint = match run.emulator {
        Kind::Bochs => bochs::complaint(folder)?,
        Kind::Qemu => None,
    };
    let complaint = complaint.map(|line| format!("Bochs says {line}"));
    let all = [
        mismatch,
        unsaid,
        unshown,
        unanswered,
        wrong_events,
        account,
        complaint,
    ];
    let all = all.into_iter().flatten();
    let why = all.collect::<Vec<_>>().join("; ");
    let mismatch = match why.is_empty() {
        true => outputs::stale(case.name, folder)?,
        false => Some(why),
    };
    Ok(Trial {
        verdict,
        mismatch,
        time: outcome.elapsed,
        figures: figures(case, &text).collect(),
        tail: outcome.tail().chain(last).map(str::to_owned).collect(),
    })
}

/// The kernels that the chosen cases boot.
pub struct Builds {
    plain: Option<Images>,
    bench: Option<Images>,
}

impl Builds {
    pub fn of(cases: &[&Case]) -> Result<Self> {
        let mut runs = Vec::new();
        for arguments in cases.iter().flat_map(|case| case.boots()) {
            runs.push(arguments::parse(&arguments)?.build);
        }
        let made = |build| match runs.contains(&build) {
            true => images::build(build).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            bench: made(Build::Bench)?,
            plain: made(Build::Plain)?,
        })
    }

    fn images(&self, build: Build) -> Option<&Images> {
        match build {
            Build::Plain => self.plain.as_ref(),
            Build::Bench => self.bench.as_ref(),
        }
    }
}
