//! The monitor: a command line at the serial port.
//!
//! It runs on the BSP, and the prompt is there while the other CPUs work: during a job for the APs
//! ([`jobs::others`](muster::internals::smp::jobs::others)) the BSP still takes lines, and also waits for the end of
//! the job. The BSP serves calls in the meantime, by their interrupts, and idles between keystrokes. The
//! commands and the line editor are `muster_monitor`'s.
//!
//! Nothing here relies on memory while other CPUs work: they may have taken it all.

mod answers;
mod idle;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use muster::internals::bringup::roll::RollCall;
use muster::internals::report::{events, journal, serial};
use muster::internals::smp::activity::ACTIVITY;
use muster::internals::smp::cpu::Cpu;
use muster_arguments::{Arguments, Fault, Workloads};
#[cfg(feature = "bench")]
use muster_arguments::{BENCH, OptionInfo};
use muster_monitor::{Command, Editor, Event, InputLine};
use muster_paging::VirtAddr;

use self::idle::idle_until;
use crate::selftest::fault;
use crate::selftest::stress::{self, BackgroundWork};

/// Runs commands until one ends the run.
///
/// # Errors
///
/// The failures of the work that was asked for, in words; or that there is no serial port.
pub fn run(arguments: &Arguments, roll: &RollCall) -> Result<(), String> {
    if !serial::is_there() {
        return Err(String::from("monitor=yes needs a serial port, at COM1"));
    }
    log::info!("`help` lists the commands, `off` ends the run");
    let mut monitor = Monitor {
        arguments,
        roll,
        editor: Editor::new(),
        failures: Vec::new(),
        is_over: false,
    };
    while !monitor.is_over {
        if let Some((line, exclusive)) = monitor.attend(None) {
            monitor.run_exclusive(exclusive);
            emit(&line, true);
        }
    }
    match monitor.failures.as_slice() {
        [] => Ok(()),
        failures => Err(failures.join(", ")),
    }
}

/// A command that needs all CPUs, and so can only run while none works.
enum ExclusiveCommand {
    Stress(Workloads, Option<u64>),
    Fault(Fault),
    #[cfg(feature = "bench")]
    Bench(muster_bench::Options),
}

/// The monitor's state.
struct Monitor<'a> {
    arguments: &'a Arguments,
    roll: &'a RollCall,
    editor: Editor,
    /// The failures of the work that was asked for.
    failures: Vec<String>,
    is_over: bool,
}

impl Monitor<'_> {
    /// Calls [`Self::converse`], and records that this CPU is at the prompt.
    fn attend(
        &mut self,
        work: Option<&BackgroundWork<'_>>,
    ) -> Option<(InputLine, ExclusiveCommand)> {
        Cpu::with_own(&ACTIVITY, |activity| activity.attend());
        let exclusive = self.converse(work);
        Cpu::with_own(&ACTIVITY, |activity| activity.end());
        exclusive
    }

    /// Takes lines, and answers, until one of them is an exclusive command, or ends the run, or until the
    /// work on the other CPUs is done.
    fn converse(
        &mut self,
        work: Option<&BackgroundWork<'_>>,
    ) -> Option<(InputLine, ExclusiveCommand)> {
        let is_done = |work: &BackgroundWork<'_>| {
            work.sample();
            work.is_done()
        };
        while let Some(byte) = self.next_byte(&|| work.is_some_and(is_done)) {
            match self.editor.take(byte) {
                Event::None => {}
                Event::Grown(character) => {
                    let mut bytes = [0; 4];
                    if !serial::extend(character.encode_utf8(&mut bytes).as_bytes()) {
                        self.draw();
                    }
                }
                Event::Changed => self.draw(),
                Event::Refused => {
                    serial::extend(b"\x07");
                }
                Event::Undecided => {
                    serial::end_typing(b"\r\n");
                    journal::answer(|| answers::list(self.editor.choices()));
                }
                Event::Abandoned => serial::end_typing(b"^C\r\n"),
                Event::Over => {
                    serial::end_typing(b"\r\n");
                    self.end(work);
                }
                Event::Done(line) => {
                    serial::end_typing(b"\r\n");
                    emit(&line, false);
                    if let Some(exclusive) = journal::answer(|| self.obey(&line, work)) {
                        return Some((line, exclusive));
                    }
                    emit(&line, true);
                }
            }
            if self.is_over && work.is_none() {
                return None;
            }
        }
        None
    }

    /// Waits for the next byte that is typed; returns `None` if something `is_over` first. Redraws the
    /// line in the meantime, if another one has erased it.
    fn next_byte(&self, is_over: &dyn Fn() -> bool) -> Option<u8> {
        let mut byte = None;
        idle_until(&mut || {
            byte = serial::read();
            if byte.is_some() || is_over() {
                return true;
            }
            if !serial::is_typed() {
                self.draw();
            }
            false
        });
        byte
    }

    fn draw(&self) {
        // No more than a terminal's line, and what moves the cursor.
        let mut drawing = heapless::String::<128>::new();
        let _ = write!(drawing, "{}", self.editor);
        serial::draw(drawing.as_bytes());
    }

    /// Runs a line's command, but for exclusive ones, which it returns.
    fn obey(&mut self, line: &str, work: Option<&BackgroundWork<'_>>) -> Option<ExclusiveCommand> {
        let command = match Command::parse(line) {
            Ok(command) => command?,
            Err(error) => {
                log::error!("{error}");
                return None;
            }
        };
        if let Command::Cpus | Command::Mem | Command::Frames | Command::Heap = command {
            stress::sample::emit(work.map(BackgroundWork::workload));
        }
        match command {
            Command::Help(verb) => answers::help(verb),
            Command::Cpus => answers::cpus(),
            Command::Roll => self.roll.print(),
            Command::Registers(cpu) => answers::registers(cpu),
            Command::Log(cpu) => answers::log_of(cpu),
            Command::Mem => answers::memory(),
            Command::Map(address) => answers::map(VirtAddr::new(address)),
            Command::Frames => answers::frames(),
            Command::Heap => answers::heap(),
            Command::Account => answers::account(work.is_some()),
            Command::Watch => match work {
                Some(work) => answers::watch(&|| {
                    work.sample();
                    work.is_done() || serial::read().is_some()
                }),
                None => {
                    log::error!("there is nothing to see: `stress` puts the other CPUs to work")
                }
            },
            Command::Stop => match work {
                Some(work) => work.stop(),
                None => log::error!("no CPU is at work: `stress` puts them to it"),
            },
            Command::Call(whom) => answers::call(whom),
            Command::Shootdown => answers::shootdown(),
            Command::Off => self.end(work),
            Command::Stress { workloads, millis } => {
                return unless_busy(ExclusiveCommand::Stress(workloads, millis), work);
            }
            Command::Fault(fault) => return unless_busy(ExclusiveCommand::Fault(fault), work),
            Command::Bench(words) => {
                return self
                    .bench(words)
                    .and_then(|exclusive| unless_busy(exclusive, work));
            }
        }
        None
    }

    #[cfg(feature = "bench")]
    fn bench(&self, words: &str) -> Option<ExclusiveCommand> {
        let mut options = self.arguments.bench.clone().unwrap_or_default();
        for word in words.split_ascii_whitespace() {
            match OptionInfo::find(word, &[BENCH]) {
                Ok((option, value)) => options.take(option.name, value)?,
                Err(error) => {
                    log::error!("{error}");
                    return None;
                }
            }
        }
        Some(ExclusiveCommand::Bench(options))
    }

    #[cfg(not(feature = "bench"))]
    fn bench(&self, _words: &str) -> Option<ExclusiveCommand> {
        log::error!("this kernel is without the benchmarks; with: `just monitor rounds=5`");
        None
    }

    fn end(&mut self, work: Option<&BackgroundWork<'_>>) {
        self.is_over = true;
        if let Some(work) = work {
            work.stop();
        }
    }

    /// Runs an exclusive command. The prompt is back when it is done, or stays during a stress.
    fn run_exclusive(&mut self, exclusive: ExclusiveCommand) {
        let failures = match exclusive {
            ExclusiveCommand::Stress(workloads, millis) => {
                journal::answer(|| log::info!("`stop` ends the work, `watch` shows it"));
                let arguments = self.arguments;
                let ran = stress::run_beside(workloads, millis, arguments, &mut |work| {
                    while !work.is_done() {
                        // It returns no exclusive command while there is work.
                        self.attend(Some(work));
                    }
                });
                journal::answer(|| match &ran {
                    Ok(_) => log::info!("the other CPUs are done"),
                    Err(refusal) => log::error!("{refusal}"),
                });
                ran.unwrap_or_default()
            }
            ExclusiveCommand::Fault(fault) => {
                fault::inject(fault);
                Vec::new()
            }
            #[cfg(feature = "bench")]
            ExclusiveCommand::Bench(options) => crate::selftest::bench::run(&options)
                .err()
                .into_iter()
                .collect(),
        };
        for failure in &failures {
            log::error!("{failure}");
        }
        self.failures.extend(failures);
    }
}

/// Emits a typed line, as it begins or ends.
fn emit(line: &InputLine, is_done: bool) {
    events::emit(muster_events::Command {
        line: line.as_str().into(),
        is_done,
    });
}

/// Returns the command, if no CPU works that it would have to wait for.
fn unless_busy(
    exclusive: ExclusiveCommand,
    work: Option<&BackgroundWork<'_>>,
) -> Option<ExclusiveCommand> {
    if work.is_some() {
        log::error!("the other CPUs are at work: `stop` first");
        return None;
    }
    Some(exclusive)
}
