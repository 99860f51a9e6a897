//! What is known of a run so far: events go in, line by line, and what there is to draw comes out.

use std::collections::{BTreeMap, VecDeque};

use muster_events::{
    Command, Event, Level, Memory, Moment, Outcome, Owner, Phase, Range, Sample, read,
};

/// How many samples of each CPU are kept: as many as a wide terminal shows, and a second's more.
const HISTORY: usize = 64;

/// How many lines of the log are kept.
const LINES: usize = 200;

/// Over how long rates are taken, in microseconds.
const WINDOW: u64 = 1_000_000;

/// The first word of the command that puts CPUs to work.
const STRESS: &str = "stress ";

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// QEMU starts; the kernel has said nothing yet.
    #[default]
    Starting,
    /// The kernel brings its CPUs up.
    Rising,
    /// The roll call is over.
    Up,
    /// The CPUs are at work.
    AtWork,
    /// The work is done, or was refused, for a reason that the kernel gave.
    Done(Option<String>),
    /// The kernel has said how it ends, and why if it is not as it should be.
    Over(Outcome, String),
    /// It is gone, and has not.
    Gone,
}

/// Numbers a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Operations in the workload.
    pub operations: u64,
    /// Interrupts taken.
    pub interrupts: u64,
    /// Calls to others.
    pub sent: u64,
    /// Calls from others.
    pub served: u64,
}

/// What one CPU had done at one moment, since the first sample.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    us: u64,
    operations: u64,
    interrupts: u64,
    sent: u64,
    served: u64,
}

impl Point {
    fn rates_since(&self, before: &Self) -> Rates {
        let micros = u128::from(self.us.saturating_sub(before.us).max(1));
        let rate = |now: u64, before: u64| {
            let rate = u128::from(now.saturating_sub(before)) * 1_000_000 / micros;
            u64::try_from(rate).unwrap_or(u64::MAX)
        };
        Rates {
            operations: rate(self.operations, before.operations),
            interrupts: rate(self.interrupts, before.interrupts),
            sent: rate(self.sent, before.sent),
            served: rate(self.served, before.served),
        }
    }
}

/// One CPU.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// The last phase of its bring-up that is known.
    pub phase: Phase,
    /// Whether it should be at work and did not come.
    pub is_absent: bool,
    /// What it is doing, if it said so.
    pub doing: Option<String>,
    /// In cached free blocks, in bytes.
    pub blocks: u64,
    /// In cached free frames, in bytes.
    pub frames: u64,
    /// The most that its stack has had, and could have, in bytes.
    pub stack: (u64, u64),
    /// Its operations in the current workload, as it counts them.
    counted: u64,
    points: VecDeque<Point>,
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            phase: Phase::Parked,
            is_absent: false,
            doing: None,
            blocks: 0,
            frames: 0,
            stack: (0, 0),
            counted: 0,
            points: VecDeque::new(),
        }
    }
}

impl Cpu {
    /// Returns its rates per second, by the last one. `None` before its second sample.
    pub fn rates(&self) -> Option<Rates> {
        let last = self.points.back()?;
        let mut before = self.points.iter().rev().skip(1);
        let mut first = before.next()?;
        for point in before {
            if last.us.saturating_sub(first.us) >= WINDOW {
                break;
            }
            first = point;
        }
        Some(last.rates_since(first))
    }

    /// Returns its operations per second from sample to sample, the latest last: at most `most`.
    pub fn history(&self, most: usize) -> Vec<u64> {
        let steps = self.points.iter().zip(self.points.iter().skip(1));
        let rates: Vec<_> = steps
            .map(|(before, point)| point.rates_since(before).operations)
            .collect();
        let surplus = rates.len().saturating_sub(most);
        rates.get(surplus..).unwrap_or_default().to_vec()
    }

    fn take(&mut self, us: u64, sample: &Sample<'_>) {
        self.phase = sample.phase;
        // Which workload is on is said once for all.
        let workload = format!(", in {}", sample.workload);
        let doing = sample.doing.strip_suffix(&workload);
        self.doing = Some(doing.unwrap_or(&sample.doing).to_owned());
        self.blocks = sample.cached_bytes;
        self.frames = sample.frame_cache_bytes;
        self.stack = (sample.stack_bytes, sample.stack_limit_bytes);
        // A workload that began in between counts from 0.
        let before = std::mem::replace(&mut self.counted, sample.operations);
        let done = match self.points.is_empty() {
            true => 0,
            false => (sample.operations.checked_sub(before)).unwrap_or(sample.operations),
        };
        let sum = self.points.back().map_or(0, |point| point.operations);
        if self.points.len() == HISTORY {
            self.points.pop_front();
        }
        self.points.push_back(Point {
            us,
            operations: sum.saturating_add(done),
            interrupts: sample.interrupts,
            sent: sample.calls_sent,
            served: sample.calls_served,
        });
    }
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: Level,
    /// When, who, and what, as the kernel writes it.
    pub text: String,
}

/// A part of the machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is for.
    pub name: &'static str,
    /// How much it is.
    pub bytes: u64,
}

/// What is known of a run so far.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// How far it has come.
    pub stage: Stage,
    /// When the last event was written, in microseconds since the kernel's entry.
    pub us: u64,
    /// The kernel's version.
    pub version: String,
    /// The CPUs that are known, by their indices.
    pub cpus: BTreeMap<u32, Cpu>,
    /// The workload that is on, or was last.
    pub workload: String,
    /// All memory, without what is reserved, in bytes.
    pub memory_bytes: u64,
    /// The last lines of the log, oldest first.
    pub log: VecDeque<LogLine>,
    /// The last lines that the runner wrote, oldest first: the log once more, and what it has to say itself.
    pub words: VecDeque<String>,
    /// How many lines of the log are warnings, and errors.
    pub warnings: (u64, u64),
    /// Corrupt blocks in the workloads that are over.
    pub corrupt: u64,
    /// The first line of the events that was none, by its number, and why.
    pub malformed: Option<String>,
    /// Why no CPU was put to work, in the kernel's words.
    pub refusal: Option<String>,
    /// The last error in the log.
    error: Option<String>,
    /// Whose memory is, by its last event; before the first one, what was free and the heap's at the roll call.
    free: u64,
    heap: u64,
    live: u64,
    cached: u64,
    mapped: u64,
    tables: u64,
    /// What does not change once the kernel is up.
    stacks: u64,
    kernel: u64,
    lines: u64,
}

impl Machine {
    /// Takes a line of the events.
    pub fn take(&mut self, line: &str) {
        self.lines += 1;
        match read(line) {
            Ok(record) => {
                self.us = self.us.max(record.us);
                self.take_event(record.us, record.by, record.event);
            }
            Err(error) => {
                let number = self.lines;
                self.malformed
                    .get_or_insert_with(|| format!("line {number} of the events is none: {error}"));
            }
        }
    }

    /// Takes a line that the runner wrote beside them.
    pub fn hear(&mut self, line: String) {
        if self.words.len() == LINES {
            self.words.pop_front();
        }
        self.words.push_back(line);
    }

    /// Takes note that there will be no more.
    pub fn end(&mut self) {
        if !matches!(self.stage, Stage::Over(..)) {
            self.stage = Stage::Gone;
        }
    }

    fn take_event(&mut self, us: u64, by: Option<u32>, event: Event<'_>) {
        match event {
            Event::Start(start) => {
                self.stage = Stage::Rising;
                self.version = start.version.into_owned();
                self.cpus = (0..start.cpus)
                    .map(|index| (index, Cpu::default()))
                    .collect();
            }
            Event::Log(log) => self.take_log(us, by, &log),
            Event::Cpu(cpu) => self.cpu(cpu.cpu).phase = cpu.phase,
            Event::Absent(absent) => {
                if let Some(index) = absent.cpu {
                    self.cpu(index).is_absent = true;
                }
            }
            Event::Roll(_) => self.stage = Stage::Up,
            Event::Range(range) if range.moment == Moment::Boot => self.take_range(&range),
            Event::Sample(sample) => {
                if !(sample.workload.is_empty() || self.is_over()) {
                    self.stage = Stage::AtWork;
                    self.workload = sample.workload.clone().into_owned();
                }
                self.cpu(sample.cpu).take(us, &sample);
            }
            Event::Memory(memory) => self.take_memory(&memory),
            Event::Workload(workload) => self.corrupt += workload.corrupt,
            Event::Command(command) => self.take_command(&command),
            Event::Fault(fault) => {
                let reason = format!("CPU {}: {}", fault.cpu, fault.text);
                self.stage = Stage::Over(Outcome::Fault, reason);
            }
            Event::Verdict(verdict) => {
                let reason = verdict.reason.map(|reason| reason.into_owned());
                self.stage = match (&self.stage, reason) {
                    // What says more of a fault.
                    (Stage::Over(outcome, fault), Some(reason)) if fault.len() > reason.len() => {
                        Stage::Over(*outcome, fault.clone())
                    }
                    (_, reason) => Stage::Over(verdict.outcome, reason.unwrap_or_default()),
                };
            }
            _ => {}
        }
    }

    fn take_log(&mut self, us: u64, by: Option<u32>, log: &muster_events::Log<'_>) {
        match log.level {
            Level::Error => {
                self.warnings.1 += 1;
                self.error = Some(log.text.clone().into_owned());
            }
            Level::Warn => self.warnings.0 += 1,
            _ => {}
        }
        if self.log.len() == LINES {
            self.log.pop_front();
        }
        let (seconds, micros) = (us / 1_000_000, us % 1_000_000);
        let by = by.unwrap_or(0);
        self.log.push_back(LogLine {
            level: log.level,
            text: format!(
                "{seconds:>4}.{:03} {by:>3} {:<7} {}",
                micros / 1000,
                log.target,
                log.text
            ),
        });
    }

    fn take_range(&mut self, range: &Range) {
        if range.owner == Owner::Reserved {
            return;
        }
        self.memory_bytes += range.bytes;
        match range.owner {
            Owner::Free => self.free += range.bytes,
            Owner::Heap => self.heap += range.bytes,
            Owner::PageTables => self.tables += range.bytes,
            Owner::Stacks => self.stacks += range.bytes,
            Owner::Kernel => self.kernel += range.bytes,
            _ => {}
        }
    }

    fn take_memory(&mut self, memory: &Memory<'_>) {
        self.memory_bytes = memory.memory_bytes;
        self.free = memory.free_bytes;
        self.heap = memory.heap_bytes;
        self.live = u64::try_from(memory.heap_live_bytes).unwrap_or(0);
        self.cached = memory.heap_cached_bytes;
        self.mapped = memory.mapped_bytes;
        self.tables = memory.page_table_bytes;
    }

    fn take_command(&mut self, command: &Command<'_>) {
        if !command.line.starts_with(STRESS) {
            return;
        }
        if !command.is_done {
            self.error = None;
        } else if !matches!(self.stage, Stage::Over(..)) {
            let error = self.error.take();
            if self.workload.is_empty() {
                self.refusal.clone_from(&error);
            }
            self.stage = Stage::Done(error);
        }
    }

    fn cpu(&mut self, index: u32) -> &mut Cpu {
        self.cpus.entry(index).or_default()
    }

    /// Returns whether there was any event: then QEMU has started.
    pub fn has_begun(&self) -> bool {
        self.lines > 0
    }

    /// Returns whether the work that was asked for is done, or there is none.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done(_))
    }

    /// Returns whether the kernel has ended, with a verdict or without one.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over(..) | Stage::Gone)
    }

    /// Returns whether it ended, and not as it should.
    pub fn ended_badly(&self) -> bool {
        self.is_over() && !matches!(self.stage, Stage::Over(Outcome::Passed, _))
    }

    /// Returns whether every online CPU has had enough samples for rates, and memory was sampled.
    pub fn is_worth_a_picture(&self) -> bool {
        let mut at_work = self.cpus.values().filter(|cpu| cpu.doing.is_some());
        at_work.clone().next().is_some() && at_work.all(|cpu| cpu.points.len() > 4)
    }

    /// Returns the CPUs that should be online and are missing.
    pub fn absent(&self) -> impl Iterator<Item = (u32, &Cpu)> {
        let cpus = self.cpus.iter().filter(|(_, cpu)| cpu.is_absent);
        cpus.map(|(index, cpu)| (*index, cpu))
    }

    /// Returns the rates of all CPUs together.
    pub fn rates(&self) -> Rates {
        let rates = self.cpus.values().filter_map(Cpu::rates);
        rates.fold(Rates::default(), |sum, rates| Rates {
            operations: sum.operations.saturating_add(rates.operations),
            interrupts: sum.interrupts.saturating_add(rates.interrupts),
            sent: sum.sent.saturating_add(rates.sent),
            served: sum.served.saturating_add(rates.served),
        })
    }

    /// Returns the parts of memory by owner, which make up all of it, but for a little while CPUs
    /// change it.
    pub fn parts(&self) -> [Part; 8] {
        let part = |name, bytes| Part { name, bytes };
        let rest = self.heap.saturating_sub(self.live + self.cached);
        let known = self.free + self.heap + self.mapped + self.tables + self.stacks + self.kernel;
        [
            part("free", self.free),
            part("heap, live", self.live),
            part("heap, cached", self.cached),
            part("heap, rest", rest),
            part("mappings", self.mapped),
            part("page tables", self.tables),
            part("stacks", self.stacks),
            part(
                "kernel, others",
                self.kernel + self.memory_bytes.saturating_sub(known),
            ),
        ]
    }
}
