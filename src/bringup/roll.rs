//! The roll call: which phase each CPU has reached, when, and which CPUs are missing.

use alloc::format;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ptr;

use heapless::String;
use muster_arguments::Arguments;
use muster_cross_cpu::Outcome;
use muster_events::{Absent, Phase, Roll};
use muster_machine::acpi::Cpu;

use super::{ap, cpu_state, skew};
use crate::arch::clock::{self, Deadline};
use crate::boot::addresses;
use crate::boot::limine::Boot;
use crate::boot::stack::Slot;
use crate::mm::firmware;
use crate::report::events;
use crate::smp::cpu::{self, Block};
use crate::smp::progress::{PROGRESS, Progress};
use crate::smp::snapshot::SNAPSHOT;
use crate::smp::{identity, online};

/// How long a CPU that has joined may take to be online, in milliseconds: a virtual one may be off its
/// host core. If it takes longer, the first call to it fails, and names it.
const ONLINE_TIMEOUT: u64 = 10_000;

/// The columns of the roll-call table.
const COLUMNS: [(Phase, &str); 7] = [
    (Phase::Entered, "entry"),
    (Phase::Block, "block"),
    (Phase::Control, "ctrl"),
    (Phase::Tables, "cr3"),
    (Phase::Stack, "stack"),
    (Phase::Descriptors, "gdt"),
    (Phase::Online, "up"),
];

/// The roll call and how it ended.
pub struct RollCall {
    /// LAPIC ids that the machine's MADT names and the loader does not list; `None` if there is no
    /// readable MADT.
    unlisted: Option<Vec<u32>>,
    /// CPUs that `cpus=` leaves with the loader.
    left_out: usize,
    /// LAPIC ids that the loader lists twice: a second CPU may be parked under one.
    repeated: Vec<u32>,
    released_at: u64,
    deadline_millis: u64,
}

impl RollCall {
    /// Releases every AP that has a block, all at once, and waits until each has
    /// answered or the deadline is over.
    pub fn hold(boot: &Boot, arguments: &Arguments, blocks: &[&'static Block]) -> Self {
        let released_at = clock::ticks();
        for (cpu, block) in boot.cpus.iter().zip(blocks).skip(1) {
            block.get(&PROGRESS).reach(Phase::Released);
            let argument = ptr::from_ref(*block).expose_provenance() as u64;
            // SAFETY: the entry is the AP's, and the block is the one made for it.
            unsafe { cpu.release(ap::entry, argument) };
        }
        let deadline = Deadline::after_millis(arguments.deadline_millis);
        // One that has excluded itself has answered, too.
        let answered = |block: &Block| {
            block.get(&PROGRESS).phase() == Phase::Online
                || block.get(&PROGRESS).admission() == Outcome::GivenUp
        };
        while !cpu::all().all(|(_, block)| answered(block)) && !deadline.passed() {
            core::hint::spin_loop();
        }
        for (_, block) in cpu::all() {
            block.get(&PROGRESS).give_up();
        }
        // A CPU that joined in that very moment loads the tables of all, and then reports that it
        // is online.
        let deadline = Deadline::after_millis(ONLINE_TIMEOUT);
        while online::cpus().any(|(_, block)| !answered(block)) && !deadline.passed() {
            core::hint::spin_loop();
        }
        skew::measure();
        Self {
            unlisted: unlisted(boot),
            left_out: boot.cpus.len() - blocks.len(),
            repeated: boot.repeated_lapic_ids.clone(),
            released_at,
            deadline_millis: arguments.deadline_millis,
        }
    }

    /// Logs each CPU's bring-up and state; and the missing ones.
    pub fn print(&self) {
        let online = online::count();
        log::info!(
            "roll: {online} of {} CPUs online, {} us after the release",
            cpu::all().len() + self.unlisted().len(),
            clock::to_micros(self.last_online().saturating_sub(self.released_at)),
        );
        log::info!("microseconds (m: milliseconds) from the release to");
        let mut headings = String::<64>::new();
        for (_, heading) in COLUMNS {
            // Seven columns of six characters fit.
            let _ = write!(headings, "{heading:>6}");
        }
        log::info!("cpu lapic{headings}");
        for (index, block) in cpu::all() {
            let mut row = String::<64>::new();
            for (phase, _) in COLUMNS {
                let _ = match self.micros_to(block.get(&PROGRESS), phase) {
                    Some(micros @ 0..100_000) => write!(row, "{micros:>6}"),
                    Some(micros) => write!(row, "{:>5}m", (micros / 1000).min(99_999)),
                    None => write!(row, "{:>6}", "-"),
                };
            }
            log::info!("{index:>3} {:>5}{row}", cpu::lapic_id(block));
        }
        cpu_state::log_all();
        skew::log();
        if self.left_out > 0 {
            log::info!("{} CPUs stay with the loader, as cpus= asks", self.left_out);
        }
        for (index, block) in self.absent() {
            let mut is_named = false;
            for difference in identity::differences_of(block) {
                is_named = true;
                log::error!(
                    "CPU {index} (LAPIC {}) {difference}: excluded",
                    cpu::lapic_id(block)
                );
            }
            if is_named {
                continue;
            }
            log::error!(
                "CPU {index} (LAPIC {}) did not answer within {} ms; last phase: {}",
                cpu::lapic_id(block),
                self.deadline_millis,
                block.get(&PROGRESS).phase().name()
            );
        }
        for lapic_id in self.unlisted() {
            log::error!("the machine has a CPU with LAPIC id {lapic_id}; the loader lost it");
        }
    }

    /// Emits the same as events.
    pub fn emit(&self) {
        for (index, block) in cpu::all() {
            let (tsc_ahead_ns, tsc_error_ns) = block.get(&PROGRESS).skew().nanos().unzip();
            events::emit(muster_events::Cpu {
                cpu: index,
                lapic: cpu::lapic_id(block),
                online: block.get(&PROGRESS).admission() == Outcome::Joined,
                phase: block.get(&PROGRESS).phase(),
                reached_us: block.get(&PROGRESS).reached(),
                tsc_ahead_ns,
                tsc_error_ns,
                stack_top: addresses::shown(Slot::of(index).main().top.get()),
                block: addresses::shown(block.get(&SNAPSHOT).block().get()),
                tables: addresses::shown(block.get(&SNAPSHOT).cr3().get()),
            });
        }
        for (index, block) in self.absent() {
            events::emit(Absent {
                cpu: Some(index),
                lapic: cpu::lapic_id(block),
                phase: Some(block.get(&PROGRESS).phase()),
            });
        }
        for &lapic in self.unlisted() {
            events::emit(Absent {
                cpu: None,
                lapic,
                phase: None,
            });
        }
        events::emit(Roll {
            online: online::count() as u32,
            expected: (cpu::all().len() + self.unlisted().len()) as u32,
            left_out: self.left_out as u32,
            released_us: clock::micros_since_entry(self.released_at),
            took_us: clock::to_micros(self.last_online().saturating_sub(self.released_at)),
            deadline_ms: self.deadline_millis,
        });
    }

    /// Checks that no CPU is missing.
    ///
    /// # Errors
    ///
    /// The missing CPUs, in words.
    pub fn verdict(&self) -> Result<(), alloc::string::String> {
        let missing = self.missing();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{} CPUs are missing, with LAPIC ids {missing:?}",
            missing.len()
        ))
    }

    /// Returns why a CPU may still be in the loader's memory, in words; `None` if none can be.
    pub fn who_may_be_in_the_loader(&self) -> Option<alloc::string::String> {
        // One that is excluded halts in the kernel.
        let is_lost = |block: &Block| identity::differences_of(block).next().is_none();
        let absent = self.absent().filter(|(_, block)| is_lost(block));
        let missing: Vec<_> = (absent.map(|(_, block)| cpu::lapic_id(block)))
            .chain(self.unlisted().iter().copied())
            .collect();
        if !missing.is_empty() {
            Some(format!(
                "CPUs with LAPIC ids {missing:?} are missing, and may be in it"
            ))
        } else if self.left_out > 0 {
            Some(format!("{} CPUs wait in it, as cpus= asks", self.left_out))
        } else if !self.repeated.is_empty() {
            Some(format!(
                "CPUs may wait in it that it lists under the same LAPIC ids as others: {:?}",
                self.repeated
            ))
        } else if self.unlisted.is_none() {
            Some("without a MADT, it is unknown whether a CPU was lost in it".into())
        } else {
            None
        }
    }

    /// Returns the LAPIC ids of the missing CPUs.
    fn missing(&self) -> Vec<u32> {
        let absent = self.absent().map(|(_, block)| cpu::lapic_id(block));
        absent.chain(self.unlisted().iter().copied()).collect()
    }

    fn unlisted(&self) -> &[u32] {
        self.unlisted.as_deref().unwrap_or_default()
    }

    fn absent(&self) -> impl Iterator<Item = (u32, &'static Block)> {
        cpu::all().filter(|(_, block)| block.get(&PROGRESS).admission() != Outcome::Joined)
    }

    /// Returns the microseconds from the release to `phase`; the BSP went through most of its own
    /// before it released anyone, and counts as there at 0.
    fn micros_to(&self, report: &Progress, phase: Phase) -> Option<u64> {
        let stamp = report.stamp(phase)?;
        Some(clock::to_micros(stamp.saturating_sub(self.released_at)))
    }

    fn last_online(&self) -> u64 {
        online::cpus()
            .filter_map(|(_, block)| block.get(&PROGRESS).stamp(Phase::Online))
            .max()
            .unwrap_or(self.released_at)
    }
}

/// Returns the LAPIC ids that the MADT calls ready for use and the loader did not list; `None` if
/// it can't be read.
fn unlisted(boot: &Boot) -> Option<Vec<u32>> {
    if boot.rsdp.is_none() {
        log::warn!("the loader gave no RSDP: it is unknown whether it lost CPUs");
        return None;
    }
    match firmware::madt(boot) {
        Ok(madt) => {
            let mut unlisted = Vec::new();
            for Cpu { lapic_id, .. } in madt.cpus().filter(Cpu::is_enabled) {
                let is_listed = boot.cpus.iter().any(|cpu| cpu.lapic_id == lapic_id);
                if !is_listed && !unlisted.contains(&lapic_id) {
                    unlisted.push(lapic_id);
                }
            }
            Some(unlisted)
        }
        Err(error) => {
            log::warn!("{error}: it is unknown whether the loader lost CPUs");
            None
        }
    }
}
