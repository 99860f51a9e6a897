//! The account: how much of the machine's memory each CPU has, what each has done, and that all of it
//! adds up.
//!
//! It can be taken at any time, on any CPU. While CPUs use memory its figures are of slightly
//! different moments; between jobs it is exact, and must add up.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use muster_cross_cpu::Outcome;
use muster_events::{AccountCommon, AccountCpu};
use muster_frames::FRAME_SIZE;
use muster_heap::Traffic;

use super::interrupts::INTERRUPTS;
use crate::arch::vectors::{Counts, Kind};
use crate::boot::bytes::Bytes;
use crate::boot::owner::{Owner, Totals};
use crate::boot::stack::{self, Slot};
use crate::mm::heap::HeapReading;
use crate::mm::shared;
use crate::report::events;
use crate::smp::counters::{CALL_COUNTERS, TLB_COUNTERS};
use crate::smp::cpu;
use crate::smp::progress::PROGRESS;

/// Logs the account, and whether it adds up. Called on the BSP, between jobs.
///
/// # Errors
///
/// The first figures that do not, in words.
pub fn settle() -> Result<(), String> {
    let account = Account::take().map_err(|error| error.to_string())?;
    account.log();
    account.check().map_err(|error| error.to_string())?;
    log::info!("account: adds up, to the byte");
    Ok(())
}

/// The memory that one CPU has, or no CPU, in bytes. [`HeapReading`] defines the words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holding {
    /// Free frames in its cache; of the common ones, those in no cache.
    pub frames: u64,
    /// Free blocks in its cache; of the common ones, those in depots.
    pub cached: u64,
    /// The bytes allocated and freed on it; the common traffic went past all caches.
    pub traffic: Traffic,
    /// Frames that it mapped, less those that it unmapped.
    pub mapped: i64,
    /// The peak use of its stack.
    pub stack: u64,
}

impl Holding {
    fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.cached += other.cached;
        self.traffic = self.traffic + other.traffic;
        self.mapped += other.mapped;
        self.stack = self.stack.max(other.stack);
    }

    /// Reads what went through a CPU's caches, and what they hold.
    fn of(index: u32, cpu: &cpu::Block) -> Self {
        let share = shared::get().share_of(index);
        let mapped = (share.as_ref()).map_or(0, |share| share.handed_out(Owner::Mappings));
        Self {
            frames: share.map_or(0, |share| share.cached() as u64) * FRAME_SIZE,
            cached: cpu.head().cached_bytes() as u64,
            traffic: cpu.head().traffic(),
            mapped: mapped * FRAME_SIZE as i64,
            stack: 0,
        }
    }

    /// Logs its row of the table of memory.
    fn log_memory(&self, row: impl fmt::Display, stack: fmt::Arguments<'_>) {
        log::info!(
            "{row:>6} {:>10} {:>10} {:>10} {stack}",
            Bytes(self.frames),
            Bytes(self.cached),
            Signed(self.mapped)
        );
    }

    /// Logs its row of the table of traffic.
    fn log_traffic(&self, row: impl fmt::Display) {
        let Traffic {
            allocated_bytes,
            freed_bytes,
        } = self.traffic;
        log::info!("{row:>6} {allocated_bytes:>20} {freed_bytes:>20}");
    }
}

/// The number of things that one CPU has done for itself and for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActivityCounts {
    /// Interrupts taken, of each kind.
    pub interrupts: Counts,
    /// Calls to others, one for each of them.
    pub sent: u64,
    /// Calls from others that it served.
    pub served: u64,
    /// Shootdowns that it began.
    pub shootdowns: u64,
    /// Idle CPUs that it did not wake for those.
    pub spared: u64,
    /// Flushes of its TLB, for itself and for others.
    pub flushes: u64,
}

impl ActivityCounts {
    fn of(block: &cpu::Block) -> Self {
        Self {
            interrupts: block.get(&INTERRUPTS).read(),
            sent: block.get(&CALL_COUNTERS).sent(),
            served: block.get(&CALL_COUNTERS).served(),
            shootdowns: block.get(&TLB_COUNTERS).shootdowns(),
            spared: block.get(&TLB_COUNTERS).spared(),
            flushes: block.get(&TLB_COUNTERS).flushes(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.interrupts += other.interrupts;
        self.sent += other.sent;
        self.served += other.served;
        self.shootdowns += other.shootdowns;
        self.spared += other.spared;
        self.flushes += other.flushes;
    }
}

impl fmt::Display for ActivityCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8} {:>7} {:>7} {:>7} {:>7} {:>7}",
            self.interrupts.sum(),
            self.sent,
            self.served,
            self.shootdowns,
            self.spared,
            self.flushes
        )
    }
}

/// All of the machine's memory, in parts.
#[derive(Debug)]
pub struct Account {
    /// Each online CPU, by its index.
    pub cpus: Vec<(u32, Holding, ActivityCounts)>,
    /// The memory that no online CPU has: free frames in no cache, free blocks in depots, the bytes
    /// allocated, freed and mapped past the caches. It has no stack.
    pub common: Holding,
    /// The bytes of each owner.
    pub owners: Totals,
    /// The heap's bytes, by its own counters.
    heap: HeapReading,
    /// The machine's memory, without reserved memory.
    memory: u64,
}

/// Why the account does not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountError {
    /// The parts of something have another sum than the whole.
    Sum {
        /// The memory in question.
        what: &'static str,
        /// The sum of its parts.
        parts: i128,
        /// The sum that they should have.
        whole: i128,
    },
    /// There is no memory for the account itself.
    OutOfMemory,
    /// More bytes of the heap were freed than allocated, or more are live and cached than it has.
    Heap {
        /// Live in its frames.
        live: i64,
        /// In free blocks that CPUs and depots keep.
        cached: u64,
        /// In all its frames.
        frames: u64,
    },
}

impl fmt::Display for AccountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sum { what, parts, whole } => {
                write!(
                    f,
                    "the account does not add up: {what}: {parts} bytes in parts, {whole} as a whole"
                )
            }
            Self::OutOfMemory => {
                write!(f, "memory is out: there is none to draw the account up in")
            }
            Self::Heap {
                live,
                cached,
                frames,
            } => {
                write!(
                    f,
                    "the account does not add up: of the heap's frames, {frames} bytes, {live} are \
                     live and {cached} cached"
                )
            }
        }
    }
}

impl Account {
    /// Takes the account.
    ///
    /// # Errors
    ///
    /// [`AccountError::OutOfMemory`].
    pub fn take() -> Result<Self, AccountError> {
        // Before anything is read: it may take a frame.
        let mut cpus = Vec::new();
        cpus.try_reserve_exact(cpu::all().len())
            .map_err(|_| AccountError::OutOfMemory)?;
        let shared = shared::get();
        let heap = HeapReading::take();
        let past_caches = shared.common_share().handed_out(Owner::Mappings);
        let mut common = Holding {
            frames: shared.uncached_bytes(),
            cached: heap.depot_bytes,
            traffic: heap.common_traffic,
            mapped: past_caches * FRAME_SIZE as i64,
            stack: 0,
        };
        for (index, cpu) in cpu::all() {
            let mut holding = Holding::of(index, cpu);
            if cpu.get(&PROGRESS).admission() == Outcome::Joined {
                // SAFETY: an online CPU has its stack, in the shared tables.
                holding.stack = unsafe { Slot::of(index).main().peak_used() };
                // There is room: no more CPUs are online than there are.
                cpus.push((index, holding, ActivityCounts::of(cpu)));
            } else {
                // It did not come in time: its memory is no CPU's any more.
                common.add(&holding);
            }
        }
        Ok(Self {
            cpus,
            common,
            owners: shared.totals(),
            heap,
            memory: shared.memory_bytes(),
        })
    }

    /// Adds up all rows: the machine's memory, which is the CPUs' and the common part, and its
    /// CPUs' activity.
    pub fn sum(&self) -> (Holding, ActivityCounts) {
        let mut sum = (self.common, ActivityCounts::default());
        for (_, holding, activity) in &self.cpus {
            sum.0.add(holding);
            sum.1.add(activity);
        }
        sum
    }

    /// Checks the parts against the wholes, to the byte. Exact only if no CPU used memory in
    /// between.
    ///
    /// # Errors
    ///
    /// The first sum that is wrong.
    pub fn check(&self) -> Result<(), AccountError> {
        let cpus = cpu::all().len() as u64;
        let (all, _) = self.sum();
        let owned = |owner| i128::from(self.owners[owner]);
        let sums = [
            ("free frames", i128::from(all.frames), owned(Owner::Free)),
            (
                "mapped memory",
                i128::from(all.mapped),
                owned(Owner::Mappings),
            ),
            (
                "live bytes",
                i128::from(all.traffic.live_bytes()),
                i128::from(self.heap.live_bytes),
            ),
            (
                "cached blocks",
                i128::from(all.cached),
                i128::from(self.heap.cached_bytes),
            ),
            (
                "stacks",
                i128::from(cpus * stack::BYTES),
                owned(Owner::Stacks),
            ),
            (
                "per-CPU blocks",
                i128::from(cpus * shared::get().block_bytes()),
                owned(Owner::PerCpu),
            ),
            (
                "the heap",
                i128::from(self.heap.frame_bytes()),
                owned(Owner::Heap),
            ),
            (
                "all memory",
                i128::from(self.owners.sum()) - owned(Owner::Reserved),
                i128::from(self.memory),
            ),
        ];
        if let Some((what, parts, whole)) =
            sums.into_iter().find(|(_, parts, whole)| parts != whole)
        {
            return Err(AccountError::Sum { what, parts, whole });
        }
        let live = self.heap.live_in_frames();
        if live < 0 || self.heap.rest() < 0 {
            return Err(AccountError::Heap {
                live,
                cached: self.heap.cached_bytes,
                frames: self.heap.frame_bytes(),
            });
        }
        Ok(())
    }

    /// Logs and emits each CPU's memory and activity, and the owners of all memory.
    pub fn log(&self) {
        self.log_cpus();
        self.log_memory();
        self.emit();
    }

    fn log_cpus(&self) {
        let (all, activity) = self.sum();
        log::info!("   cpu     frames     cached     mapped        stack");
        for (index, holding, _) in &self.cpus {
            holding.log_memory(index, format_args!("{:>12}", Bytes(holding.stack)));
        }
        (self.common).log_memory("common", format_args!("{:>12}", "-"));
        all.log_memory("all", format_args!("max {:>8}", Bytes(all.stack)));
        log::info!("   cpu            allocated                freed");
        for (index, holding, _) in &self.cpus {
            holding.log_traffic(index);
        }
        self.common.log_traffic("common");
        all.log_traffic("all");
        log::info!(
            "live: {} bytes, {} in the boot arena",
            all.traffic.live_bytes(),
            self.heap.boot_live_bytes
        );
        log::info!("cpu     irqs    sent  served  shoots  spared flushes");
        for (index, _, activity) in &self.cpus {
            log::info!("{index:>3} {activity}");
        }
        log::info!("all {activity}");
        for (index, _, activity) in &self.cpus {
            log::debug!(target: "irq", "interrupts taken by CPU {index}: {}", activity.interrupts);
        }
        log::info!(target: "irq", "taken: {}", activity.interrupts);
    }

    /// Logs the owners of the memory.
    pub fn log_memory(&self) {
        let (all, _) = self.sum();
        let part = |bytes: i128, what: fmt::Arguments<'_>| {
            let bytes = u64::try_from(bytes).unwrap_or(0);
            log::info!("{:>10} {bytes:>14} bytes  {what}", Bytes(bytes));
        };
        let uncached = i128::from(self.common.frames);
        part(uncached, format_args!("free"));
        part(
            i128::from(all.frames) - uncached,
            format_args!("free, kept by CPUs"),
        );
        for (owner, bytes) in self.owners.iter().filter(|(_, bytes)| *bytes > 0) {
            match owner {
                Owner::Free | Owner::Reserved => {}
                Owner::Heap => {
                    let live = i128::from(self.heap.live_in_frames());
                    let cached = i128::from(self.heap.cached_bytes);
                    part(live, format_args!("heap frames, live"));
                    part(cached, format_args!("heap frames, cached"));
                    let rest = i128::from(bytes) - live - cached;
                    part(rest, format_args!("heap frames, rest"));
                }
                _ => part(i128::from(bytes), format_args!("{owner}")),
            }
        }
        part(i128::from(self.memory), format_args!("in all"));
    }
}

impl Account {
    fn emit(&self) {
        for (index, holding, activity) in &self.cpus {
            events::emit(AccountCpu {
                cpu: *index,
                frame_cache_bytes: holding.frames,
                cached_bytes: holding.cached,
                allocated_bytes: holding.traffic.allocated_bytes,
                freed_bytes: holding.traffic.freed_bytes,
                mapped_bytes: holding.mapped,
                stack_bytes: holding.stack,
                interrupts: activity.interrupts.sum(),
                calls_sent: activity.sent,
                calls_served: activity.served,
                shootdowns: activity.shootdowns,
                spared: activity.spared,
                flushes: activity.flushes,
            });
        }
        let common = &self.common;
        events::emit(AccountCommon {
            free_bytes: common.frames,
            cached_bytes: common.cached,
            allocated_bytes: common.traffic.allocated_bytes,
            freed_bytes: common.traffic.freed_bytes,
            mapped_bytes: common.mapped,
        });
        events::emit(muster_events::Account {
            memory_bytes: self.memory,
            free_bytes: common.frames,
            frame_cache_bytes: self.sum().0.frames - common.frames,
            heap_live_bytes: self.heap.live_in_frames(),
            boot_live_bytes: self.heap.boot_live_bytes,
            heap_cached_bytes: self.heap.cached_bytes,
            owners: events::owners(&self.owners),
        });
        for (index, _, activity) in &self.cpus {
            let of = |kind| activity.interrupts.of(kind);
            events::emit(muster_events::Interrupts {
                cpu: *index,
                timer: of(Kind::Timer),
                wake_up: of(Kind::Wake),
                device: of(Kind::Device),
                error: of(Kind::Error),
                spurious: of(Kind::Spurious),
                nmi: of(Kind::Nmi),
                unexpected: of(Kind::Unexpected),
            });
        }
    }
}

/// A number of bytes that may be negative, for people.
pub struct Signed(pub i64);

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = heapless::String::<24>::new();
        let sign = if self.0 < 0 { "-" } else { "" };
        // There is room.
        let _ = fmt::write(
            &mut text,
            format_args!("{sign}{}", Bytes(self.0.unsigned_abs())),
        );
        f.pad(&text)
    }
}
