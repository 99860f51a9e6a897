//! The monitor: somebody at the serial port asks, and has things done.
//!
//! It is the BSP's work, and the prompt is there while the other CPUs do theirs: an order to them
//! ([`jobs::others`](crate::smp::jobs::others)) leaves the BSP where it takes lines, and with one more way
//! to go on: that the work is done. The BSP serves calls meanwhile, by their interrupts, and sleeps
//! between keystrokes. What a line means and how it is typed is `muster_monitor`'s.
//!
//! Nothing here counts on memory while others are at work: they may have taken it all.

mod answers;
mod idle;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use muster_arguments::{Arguments, Fault, Workloads};
#[cfg(feature = "bench")]
use muster_arguments::{BENCH, OptionInfo};
use muster_monitor::{Command, Editor, Event, Line};

use self::idle::idle_until;
use crate::bringup::roll::RollCall;
use crate::report::{events, journal, serial};
use crate::selftest::fault;
use crate::selftest::stress::{self, BackgroundWork};
use crate::smp::cpu;

/// Takes what is typed until that ends the run.
///
/// # Errors
///
/// What of the work that was asked for has failed, in words; or that there is nobody to ask.
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

/// What can only be done while no CPU is at work.
enum ExclusiveCommand {
    Stress(Workloads, Option<u64>),
    Fault(Fault),
    #[cfg(feature = "bench")]
    Bench(muster_bench::Options),
}

/// A conversation.
struct Monitor<'a> {
    arguments: &'a Arguments,
    roll: &'a RollCall,
    editor: Editor,
    /// What went wrong in the work that was asked for.
    failures: Vec<String>,
    is_over: bool,
}

impl Monitor<'_> {
    /// [`Self::converse`], and says so.
    fn attend(&mut self, work: Option<&BackgroundWork<'_>>) -> Option<(Line, ExclusiveCommand)> {
        cpu::with(|here| here.shared().activity.attend());
        let exclusive = self.converse(work);
        cpu::with(|here| here.shared().activity.end());
        exclusive
    }

    /// Takes lines, and answers, until one of them is an exclusive, or ends the run, or until the work that
    /// goes on beside is done.
    fn converse(&mut self, work: Option<&BackgroundWork<'_>>) -> Option<(Line, ExclusiveCommand)> {
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

    /// The next byte that is typed, or `None` if something `is_over` first. Sees to it that the line is
    /// on the terminal meanwhile.
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

    /// Does what a line asks for, but for orders.
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
            Command::Map(address) => answers::map(address),
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

    /// Carries an order out. The prompt is back when it is done, or stays while it is.
    fn run_exclusive(&mut self, exclusive: ExclusiveCommand) {
        let failures = match exclusive {
            ExclusiveCommand::Stress(workloads, millis) => {
                journal::answer(|| log::info!("`stop` ends the work, `watch` shows it"));
                let arguments = self.arguments;
                let ran = stress::run_beside(workloads, millis, arguments, &mut |work| {
                    while !work.is_done() {
                        // Nothing that is an order comes of it while there is work.
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
                fault::bring_about(fault);
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

/// Tells programs of a line that was typed.
fn emit(line: &Line, is_done: bool) {
    events::emit(muster_events::Command {
        line: line.as_str().into(),
        is_done,
    });
}

/// The exclusive, if no CPU is at work that it would have to wait for.
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
