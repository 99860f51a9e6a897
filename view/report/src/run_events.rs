//! The events of a run, by kind.

use muster_events::{
    Absent, Account, AccountCommon, AccountCpu, Audit, Cost, Cpu, Event, Fault, Figure, Interrupts,
    Latency, Mapped, Moment, Range, Reclaim, Roll, Run, Start, Verdict, Work, Workload, read,
};

/// All events of a run that the page shows.
#[derive(Debug, Default)]
pub struct RunEvents {
    /// Lines that are no events, counted from 1, each with why.
    pub(crate) unread: Vec<(usize, String)>,
    pub(crate) run: Option<Run<'static>>,
    pub(crate) start: Option<Start<'static>>,
    pub(crate) mapped: Option<Mapped>,
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) roll: Option<Roll>,
    pub(crate) absent: Vec<Absent>,
    pub(crate) reclaim: Option<Reclaim<'static>>,
    pub(crate) ranges: Vec<Range>,
    pub(crate) costs: Vec<Cost>,
    pub(crate) works: Vec<Work<'static>>,
    pub(crate) workloads: Vec<Workload<'static>>,
    pub(crate) figures: Vec<Figure<'static>>,
    pub(crate) latencies: Vec<Latency<'static>>,
    pub(crate) account_cpus: Vec<AccountCpu>,
    pub(crate) account_common: Option<AccountCommon>,
    pub(crate) account: Option<Account>,
    pub(crate) audit: Option<Audit>,
    pub(crate) interrupts: Vec<Interrupts>,
    pub(crate) fault: Option<Fault<'static>>,
    pub(crate) verdict: Option<Verdict<'static>>,
}

impl RunEvents {
    /// Reads a file of events, as far as it goes: one that was cut short ends in the middle of a line.
    pub fn read(text: &str) -> Self {
        let mut events = Self::default();
        for (line, number) in text.lines().zip(1..) {
            match read(line) {
                Ok(record) => events.take(record.event),
                Err(error) => events.unread.push((number, error.to_string())),
            }
        }
        events
    }

    fn take(&mut self, event: Event<'static>) {
        match event {
            Event::Run(run) => self.run = Some(run),
            Event::Start(start) => self.start = Some(start),
            Event::Mapped(mapped) => self.mapped = Some(mapped),
            Event::Cpu(cpu) => self.cpus.push(cpu),
            Event::Roll(roll) => self.roll = Some(roll),
            Event::Absent(absent) => self.absent.push(absent),
            Event::Reclaim(reclaim) => self.reclaim = Some(reclaim),
            Event::Range(range) => self.ranges.push(range),
            Event::Cost(cost) => self.costs.push(cost),
            Event::Work(work) => self.works.push(work),
            Event::Workload(workload) => self.workloads.push(workload),
            Event::Figure(figure) => self.figures.push(figure),
            Event::Latency(latency) => self.latencies.push(latency),
            Event::AccountCpu(cpu) => {
                // The monitor draws accounts up whenever it is asked to: the last one is shown.
                if self.account.take().is_some() {
                    self.account_common = None;
                    self.account_cpus.clear();
                    self.interrupts.clear();
                }
                self.account_cpus.push(cpu);
            }
            Event::AccountCommon(common) => self.account_common = Some(common),
            Event::Account(account) => self.account = Some(account),
            Event::Audit(audit) => self.audit = Some(audit),
            Event::Interrupts(interrupts) => self.interrupts.push(interrupts),
            Event::Fault(fault) => self.fault = Some(fault),
            Event::Verdict(verdict) => self.verdict = Some(verdict),
            // For who watches, or reads.
            _ => {}
        }
    }

    /// Returns the run's command, or that it is unknown.
    pub(crate) fn name(&self) -> &str {
        let run = self.run.as_ref();
        run.map_or("a run of an unknown command", |run| &run.command)
    }

    /// Returns the owners of memory at a moment, lowest range first.
    pub(crate) fn ranges_at(&self, moment: Moment) -> Vec<Range> {
        let ranges = self.ranges.iter().copied();
        ranges.filter(|range| range.moment == moment).collect()
    }

    /// Returns the benchmarks that were run, in their order.
    pub(crate) fn benches(&self) -> Vec<&str> {
        let mut benches = Vec::new();
        for figure in &self.figures {
            if !benches.contains(&&*figure.bench) {
                benches.push(&*figure.bench);
            }
        }
        benches
    }

    /// Returns the missing parts of this run, in sentences.
    pub(crate) fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        if let Some((line, why)) = self.unread.first() {
            let more = match self.unread.len() {
                1 => String::new(),
                lines => format!(", and {} more", lines - 1),
            };
            gaps.push(format!(
                "Line {line} of its events can’t be read ({why}){more}."
            ));
        }
        if self.run.is_none() {
            gaps.push("Its command, QEMU’s and the host are unknown: no event `run`.".into());
        }
        if self.start.is_none() {
            gaps.push("The kernel did not tell what it found: no event `start`.".into());
        }
        match self.roll {
            None => gaps.push("No CPUs are in it: it ended before the roll call.".into()),
            Some(roll) if roll.online < roll.expected => {
                let absent = self.absent.iter().map(|absent| {
                    let name = match absent.cpu {
                        Some(cpu) => format!("CPU {cpu}"),
                        None => format!("the CPU with LAPIC id {}", absent.lapic),
                    };
                    match absent.phase {
                        Some(phase) => format!("{name} (last seen {})", phase.name()),
                        None => format!("{name} (lost by the loader)"),
                    }
                });
                let absent: Vec<_> = absent.collect();
                gaps.push(format!("Not at work: {}.", absent.join(", ")));
            }
            Some(_) => {}
        }
        if let Some(fault) = &self.fault {
            gaps.push(format!("CPU {} ended it: {}.", fault.cpu, fault.text));
        }
        if self.account.is_none() {
            gaps.push("There is no account of the memory: it ended before.".into());
        }
        match &self.verdict {
            None => gaps
                .push("There is no verdict: the run, or its file of events, was cut short.".into()),
            Some(verdict) => {
                let why = verdict.reason.as_ref();
                gaps.extend(why.map(|why| format!("It did not pass: {why}.")));
            }
        }
        gaps
    }
}
