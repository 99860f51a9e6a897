//! The monitor's answers, by way of the log.

use alloc::vec::Vec;
use core::fmt::Write;

use muster::internals::arch::clock::{self, Deadline};
use muster::internals::boot::bytes::Bytes;
use muster::internals::boot::owner::Owner;
use muster::internals::boot::stack::StackLocation;
use muster::internals::bringup::account::{Account, AccountError, Signed};
use muster::internals::bringup::interrupts::INTERRUPTS;
use muster::internals::mm::{heap, peek, shared};
use muster::internals::report::journal::JOURNAL;
use muster::internals::report::serial;
use muster::internals::smp::activity::ACTIVITY;
use muster::internals::smp::call::{self, Targets};
use muster::internals::smp::counters::{CALL_COUNTERS, TLB_COUNTERS};
use muster::internals::smp::doing::Doing;
use muster::internals::smp::identity::{self, IDENTITY};
use muster::internals::smp::lazy_tlb::IDLE;
use muster::internals::smp::lock::{Level, Lock};
use muster::internals::smp::progress::PROGRESS;
use muster::internals::smp::{cpu, lines, online};
use muster_cross_cpu::Outcome;
use muster_frames::FRAME_SIZE;
use muster_machine::identity::RegisterName;
use muster_monitor::{Verb, Whom};
use muster_paging::{Target, VirtAddr};

use super::idle::idle_until;
use crate::selftest::measure;

/// Columns of a terminal.
const COLUMNS: usize = 80;

/// How long a CPU may take to answer, in milliseconds: a virtual one may be off its host core.
const TIMEOUT: u64 = 10_000;

/// Logs all commands, or one of them in full.
pub fn help(verb: Option<Verb>) {
    match verb {
        Some(verb) => {
            log::info!("{}: {}", verb.usage(), verb.about());
            if let [first, others @ ..] = verb.aliases() {
                let mut words = heapless::String::<COLUMNS>::new();
                // There is room.
                let _ = write!(words, "Also: {first}");
                for word in others {
                    let _ = write!(words, ", {word}");
                }
                log::info!("{words}");
            }
            for line in verb.details() {
                log::info!("{line}");
            }
            let choices = verb.choices().into_iter().flatten().copied();
            if choices.clone().nth(1).is_some() {
                list(choices);
            }
        }
        None => {
            for verb in Verb::ALL {
                log::info!("{:<26} {}", verb.usage(), verb.about());
            }
        }
    }
}

/// Logs words, in columns.
pub fn list(words: impl Iterator<Item = &'static str> + Clone) {
    let width = words.clone().map(str::len).max().unwrap_or(0) + 2;
    let mut line = heapless::String::<COLUMNS>::new();
    for word in words {
        if line.len() + width > COLUMNS {
            log::info!("{line}");
            line.clear();
        }
        // There is room.
        let _ = write!(line, "{word:<width$}");
    }
    log::info!("{line}");
}

/// Logs each CPU's counters and activity.
pub fn cpus() {
    log::info!("cpu lapic     irqs    calls   answers operations doing");
    for (index, block) in cpu::all() {
        let lapic_id = cpu::lapic_id(block);
        if block.get(&PROGRESS).admission() != Outcome::Joined {
            let phase = block.get(&PROGRESS).phase().name();
            log::info!("{index:>3} {lapic_id:>5} did not come in time; last phase: {phase}");
            continue;
        }
        log::info!(
            "{index:>3} {lapic_id:>5} {:>8} {:>8} {:>9} {:>10} {}",
            block.get(&INTERRUPTS).read().sum(),
            block.get(&CALL_COUNTERS).sent(),
            block.get(&CALL_COUNTERS).served(),
            block.get(&ACTIVITY).operations(),
            Doing(block)
        );
    }
}

/// Returns the CPU of an index, if there is one; if not, logs that.
fn find(index: u32) -> Option<&'static cpu::Block> {
    let found = cpu::get(index);
    if found.is_none() {
        log::error!(
            "there is no CPU {index}: there are 0 to {}",
            cpu::all().len() - 1
        );
    }
    found
}

/// Logs a CPU's registers that must be the BSP's, and those in which it differs.
pub fn registers(index: u32) {
    let Some(block) = find(index) else { return };
    let mut registers = block.get(&IDENTITY).registers().peekable();
    if registers.peek().is_none() {
        log::info!("CPU {index} has not come so far");
    }
    for (register, value) in registers {
        log::info!("{value:#018x} {}", RegisterName(register));
    }
    for difference in identity::differences_of(block) {
        log::error!("CPU {index} {difference}");
    }
}

/// Writes a CPU's journal, as the CPU itself copies it: so all lines are whole, and none is lost in
/// between.
pub fn log_of(index: u32) {
    let Some(target) = find(index) else { return };
    let mut lines = Vec::new();
    if lines.try_reserve_exact(lines::CAPACITY).is_err() {
        log::error!("memory is out: there is none to copy a journal to");
        return;
    }
    let lines = Lock::new(Level::Workload, lines);
    let copy = || {
        let mut lines = lines.lock();
        if let Some(journal) = target.get(&JOURNAL).try_lock() {
            // There is room.
            lines.extend(journal.bytes().take(lines::CAPACITY));
        }
    };
    if target.get(&PROGRESS).admission() == Outcome::Joined {
        if let Err(error) = call::run(Targets::One(index), TIMEOUT, &|_| copy()) {
            log::error!("{error}");
            return;
        }
    } else {
        copy();
    }
    for line in lines.lock().split_inclusive(|&byte| byte == b'\n') {
        serial::write(line);
    }
}

/// Takes the account, or logs why not.
fn draw_up() -> Option<Account> {
    let account = Account::take();
    if let Err(error) = &account {
        log::error!("{error}");
    }
    account.ok()
}

/// Logs the owners of the machine's memory.
pub fn memory() {
    if let Some(account) = draw_up() {
        account.log_memory();
    }
}

/// Logs the whole account, and whether it adds up, if it must.
pub fn account(is_busy: bool) {
    let Some(account) = draw_up() else { return };
    account.log();
    match account.check() {
        Ok(()) => log::info!("it adds up, to the byte"),
        Err(AccountError::Sum { .. } | AccountError::Heap { .. }) if is_busy => {
            log::info!("it is not exact: CPUs use memory at the same time");
        }
        Err(error) => log::error!("{error}"),
    }
}

/// Logs the page-table walk of an address.
pub fn map(address: VirtAddr) {
    let shared = shared::get();
    if let Some(place) = StackLocation::of(address) {
        log::info!("{address}: {place}");
    } else if let Some(name) = peek::name_of(address) {
        log::info!("{address}: {name}");
    }
    let path = shared.path(address);
    for step in &path {
        log::info!("{step}");
    }
    match path.last().map(|step| step.target) {
        Some(Target::Page(leaf)) => {
            log::info!("physical {}", leaf.phys + (address - leaf.virt));
        }
        Some(_) => log::info!("a CPU that goes there faults"),
        None => log::error!(
            "{address} is not canonical: with {}-level tables no CPU takes it",
            shared.levels().count()
        ),
    }
}

/// Logs the free frames, and the owners of those that went through each CPU's cache.
pub fn frames() {
    let shared = shared::get();
    log::info!(
        "free: {}, of which {} in CPUs' caches",
        Bytes(shared.frames_free_bytes()),
        Bytes(
            shared
                .frames_free_bytes()
                .saturating_sub(shared.uncached_bytes())
        )
    );
    log::info!(
        "in whole pages of 2 MiB: {}",
        Bytes(shared.whole_free_bytes())
    );
    log::info!("cpu    cached      heap    mapped    tables, as allocated less freed");
    for (index, _) in online::cpus() {
        let share = shared.share_of(index);
        let handed_out = |owner| {
            let count = share.as_ref().map_or(0, |share| share.handed_out(owner));
            Signed(count * FRAME_SIZE as i64)
        };
        let cached = share.as_ref().map_or(0, |share| share.cached() as u64);
        log::info!(
            "{index:>3} {:>9} {:>9} {:>9} {:>9}",
            Bytes(cached * FRAME_SIZE),
            handed_out(Owner::Heap),
            handed_out(Owner::Mappings),
            handed_out(Owner::PageTables)
        );
    }
}

/// Logs the heap's figures.
pub fn heap() {
    let reading = heap::HeapReading::take();
    log::info!(
        "live: {} bytes in {} blocks, {} bytes in the boot arena",
        reading.live_bytes,
        reading.live_blocks,
        reading.boot_live_bytes
    );
    log::info!(
        "frames: {}; the most that they and the boot arena were: {}",
        Bytes(reading.frame_bytes()),
        Bytes(reading.peak_bytes)
    );
    heap::log_usage();
}

/// Measures a call and logs its cost.
pub fn call(whom: Whom) {
    let (targets, words) = match whom {
        Whom::One(index) => (Targets::One(index), "to it and back"),
        Whom::All => (Targets::Others, "to all others and back"),
    };
    match measure::time_call(targets) {
        Ok(time) => log::info!("{words}: {time}"),
        Err(error) => log::error!("{error}"),
    }
}

/// Measures a shootdown and logs its cost.
pub fn shootdown() {
    let idle = online::cpus().filter(|(_, block)| block.get(&IDLE).is_idle());
    let idle = idle.count();
    match measure::time_shootdown() {
        Ok(time) => log::info!("a shootdown, {idle} CPUs idle: {time}"),
        Err(error) => log::error!("{error}"),
    }
}

/// The maximum number of watched CPUs: the last counts of each lie on the stack.
const WATCHED: usize = 64;

/// How often the table is drawn, in milliseconds.
const REFRESH: u64 = 1_000;

/// The number of a CPU's counters that are watched.
const COUNTED: usize = 4;

fn counted(block: &cpu::Block) -> [u64; COUNTED] {
    [
        block.get(&ACTIVITY).operations(),
        block.get(&INTERRUPTS).read().sum(),
        block.get(&CALL_COUNTERS).served(),
        block.get(&TLB_COUNTERS).flushes(),
    ]
}

/// Logs each CPU's activity per second, again and again until something `is_over`.
pub fn watch(is_over: &dyn Fn() -> bool) {
    let mut last = [[0; COUNTED]; WATCHED];
    let watched = || online::cpus().take(WATCHED);
    let take = |last: &mut [[u64; COUNTED]; WATCHED]| {
        for ((_, block), last) in watched().zip(last) {
            *last = counted(block);
        }
        clock::ticks()
    };
    let mut before = take(&mut last);
    let mut is_drawn = false;
    loop {
        let next = Deadline::after_millis(REFRESH);
        let mut ends = false;
        idle_until(&mut || {
            ends = is_over();
            ends || next.passed()
        });
        let now = clock::ticks();
        let micros = clock::to_micros(now - before).max(1);
        if is_drawn {
            // Over the last table (ECMA-48: CUU), unless another line has come between.
            let mut up = heapless::String::<16>::new();
            let _ = write!(up, "\x1b[{}A", watched().count() + 1);
            serial::extend(up.as_bytes());
        }
        log::info!("cpu      ops/s     irqs/s  answers/s  flushes/s  doing");
        for ((index, block), last) in watched().zip(&last) {
            let mut row = heapless::String::<COLUMNS>::new();
            for (now, last) in counted(block).into_iter().zip(last) {
                // A workload that has begun since counts from 0. Four numbers fit.
                let did = now.checked_sub(*last).unwrap_or(now);
                let _ = write!(row, " {:>10}", did.saturating_mul(1_000_000) / micros);
            }
            log::info!("{index:>3}{row}  {:<31}", Doing(block));
        }
        serial::draw(b"");
        is_drawn = true;
        if ends {
            serial::end_typing(b"");
            return;
        }
        before = now;
        take(&mut last);
    }
}
