//! The account: what of the machine's memory each CPU has, what it has done, and that all of it adds up.
//!
//! It can be drawn up at any time, on any CPU. What is drawn up while CPUs use memory is a little of
//! each moment; between orders it is exact, and has to be.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use muster_events::AccountCpu;
use muster_memory::{FRAME_SIZE, Owner, Totals};

use crate::audit::Bytes;
use crate::stack::{self, Slot};
use crate::{cpu, crew, events, heap, shared};

/// Logs the account, and whether it adds up. Called on the BSP, between orders.
///
/// # Errors
///
/// What does not, in words.
pub fn settle() -> Result<(), String> {
    let account = Account::take().map_err(|error| error.to_string())?;
    account.tell();
    account.check().map_err(|error| error.to_string())?;
    log::info!("account: adds up, to the byte");
    Ok(())
}

/// What one CPU has, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holding {
    /// Free frames that it has at hand.
    pub frames: u64,
    /// Free blocks that it has at hand.
    pub cached: u64,
    /// Blocks that it was given, as asked for, less those that it gave back. Those larger than any
    /// size class are nobody's.
    pub live: i64,
    /// Frames that it mapped, less those that it unmapped.
    pub mapped: i64,
    /// The most that its stack has had.
    pub stack: u64,
}

impl Holding {
    fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.cached += other.cached;
        self.live += other.live;
        self.mapped += other.mapped;
        self.stack = self.stack.max(other.stack);
    }
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>9} {:>9} {:>10} {:>8} {:>8}",
            Bytes(self.frames),
            Bytes(self.cached),
            Signed(self.live),
            Signed(self.mapped),
            Bytes(self.stack)
        )
    }
}

/// What one CPU has done for itself and for others: numbers of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deeds {
    /// Interrupts taken.
    pub interrupts: u64,
    /// Calls to others, one for each of them.
    pub sent: u64,
    /// Calls from others that it carried out.
    pub served: u64,
    /// Shootdowns that it began.
    pub shootdowns: u64,
    /// CPUs that it let sleep on in those.
    pub spared: u64,
    /// Flushes of its TLB, for itself and for others.
    pub flushes: u64,
}

impl Deeds {
    fn of(shared: &cpu::Shared) -> Self {
        Self {
            interrupts: shared.interrupts.sum(),
            sent: shared.calls.sent(),
            served: shared.calls.served(),
            shootdowns: shared.tlb.shootdowns(),
            spared: shared.tlb.spared(),
            flushes: shared.tlb.flushes(),
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

impl fmt::Display for Deeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8} {:>7} {:>7} {:>7} {:>7} {:>7}",
            self.interrupts, self.sent, self.served, self.shootdowns, self.spared, self.flushes
        )
    }
}

/// All of the machine's memory, in parts.
#[derive(Debug)]
pub struct Account {
    /// Each CPU at work, by its index.
    pub cpus: Vec<(u32, Holding, Deeds)>,
    /// Who owns how much.
    pub owners: Totals,
    /// What was mapped past the CPUs' frame caches.
    mapped_past: i64,
    /// Free frames that no CPU has at hand, counted one by one.
    uncached: u64,
    /// Bytes of the heap's frames, by the heap's own books.
    heap: u64,
    /// Of those, what is live, and what CPUs and depots keep.
    live: i64,
    cached: u64,
    /// All that the machine has, without what is reserved.
    memory: u64,
}

/// What of the account does not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountError {
    /// Of something there are so many bytes by the parts, and so many by the whole.
    Sum {
        /// What it is.
        what: &'static str,
        /// The sum of its parts.
        parts: i128,
        /// What they should add up to.
        whole: i128,
    },
    /// There is no memory for the account itself.
    OutOfMemory,
    /// The heap gave out and keeps more bytes than it has.
    Heap {
        /// Live and cached.
        used: i128,
        /// In all its frames.
        memory: u64,
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
            Self::Heap { used, memory } => {
                write!(
                    f,
                    "the account does not add up: the heap uses {used} bytes and has {memory}"
                )
            }
        }
    }
}

impl Account {
    /// Draws the account up.
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
        let frames = |count: i64| count * FRAME_SIZE as i64;
        for (index, cpu) in crew::members() {
            let share = shared.share_of(index);
            let mapped = share.map_or(0, |share| share.handed_out(Owner::Mappings));
            let holding = Holding {
                frames: share.map_or(0, |share| share.cached() as u64) * FRAME_SIZE,
                cached: cpu.cache.cached_bytes() as u64,
                live: cpu.cache.traffic().live_bytes(),
                mapped: frames(mapped),
                // SAFETY: a CPU at work has its stack, in the shared tables.
                stack: unsafe { Slot::of(index).main().most_used() },
            };
            // There is room: no more CPUs are at work than there are.
            cpus.push((index, holding, Deeds::of(cpu)));
        }
        let reading = heap::Reading::take();
        Ok(Self {
            cpus,
            owners: shared.totals(),
            mapped_past: frames(shared.common_share().handed_out(Owner::Mappings)),
            uncached: shared.uncached_bytes(),
            heap: reading.magazine_frames * FRAME_SIZE + shared.heap_window_bytes(),
            live: reading.live_bytes - reading.boot_live_bytes,
            cached: reading.cached_bytes,
            memory: shared.memory_bytes(),
        })
    }

    /// What all CPUs have together.
    pub fn sum(&self) -> (Holding, Deeds) {
        let mut sum = (Holding::default(), Deeds::default());
        for (_, holding, deeds) in &self.cpus {
            sum.0.add(holding);
            sum.1.add(deeds);
        }
        sum
    }

    /// Holds the parts against the wholes, to the byte. Exact only if nobody used memory meanwhile.
    ///
    /// # Errors
    ///
    /// The first that does not add up.
    pub fn check(&self) -> Result<(), AccountError> {
        let cpus = cpu::all().len() as u64;
        let (holding, _) = self.sum();
        let owned = |owner| i128::from(self.owners[owner]);
        let sums = [
            (
                "free frames",
                i128::from(holding.frames) + i128::from(self.uncached),
                owned(Owner::Free),
            ),
            (
                "mapped memory",
                i128::from(holding.mapped) + i128::from(self.mapped_past),
                owned(Owner::Mappings),
            ),
            (
                "stacks",
                i128::from(cpus * stack::BYTES),
                owned(Owner::Stacks),
            ),
            (
                "per-CPU blocks",
                i128::from(cpus * cpu::BYTES),
                owned(Owner::PerCpu),
            ),
            ("the heap", i128::from(self.heap), owned(Owner::Heap)),
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
        let used = i128::from(self.live) + i128::from(self.cached);
        if used > i128::from(self.heap) || holding.cached > self.cached {
            return Err(AccountError::Heap {
                used,
                memory: self.heap,
            });
        }
        Ok(())
    }

    /// Logs what each CPU has, and has done, and who owns the memory.
    pub fn tell(&self) {
        self.tell_cpus();
        self.tell_memory();
        self.tell_programs();
    }

    fn tell_cpus(&self) {
        log::info!("cpu    frames    cached       live   mapped    stack");
        for (index, holding, _) in &self.cpus {
            log::info!("{index:>3} {holding}");
        }
        let (holding, deeds) = self.sum();
        log::info!("all {holding}");
        log::info!("cpu     irqs    sent  served  shoots  spared flushes");
        for (index, _, deeds) in &self.cpus {
            log::info!("{index:>3} {deeds}");
        }
        log::info!("all {deeds}");
    }

    /// Logs who owns the memory.
    pub fn tell_memory(&self) {
        let (holding, _) = self.sum();
        let part = |bytes: i128, what: fmt::Arguments<'_>| {
            let bytes = u64::try_from(bytes).unwrap_or(0);
            log::info!("{:>11} {bytes:>14} bytes  {what}", Bytes(bytes));
        };
        let at_hand = i128::from(holding.frames);
        part(i128::from(self.uncached), format_args!("free"));
        part(at_hand, format_args!("free, kept by CPUs"));
        for (owner, bytes) in self.owners.iter().filter(|(_, bytes)| *bytes > 0) {
            match owner {
                Owner::Free | Owner::Reserved => {}
                Owner::Heap => {
                    let (live, cached) = (i128::from(self.live), i128::from(self.cached));
                    part(live, format_args!("heap, live"));
                    part(cached, format_args!("heap, cached"));
                    let rest = i128::from(bytes) - live - cached;
                    part(rest, format_args!("heap, the rest"));
                }
                _ => part(i128::from(bytes), format_args!("{owner}")),
            }
        }
        part(i128::from(self.memory), format_args!("in all"));
    }
}

impl Account {
    fn tell_programs(&self) {
        for (index, holding, deeds) in &self.cpus {
            events::tell(AccountCpu {
                cpu: *index,
                at_hand_bytes: holding.frames,
                cached_bytes: holding.cached,
                live_bytes: holding.live,
                mapped_bytes: holding.mapped,
                stack_bytes: holding.stack,
                interrupts: deeds.interrupts,
                calls_sent: deeds.sent,
                calls_served: deeds.served,
                shootdowns: deeds.shootdowns,
                spared: deeds.spared,
                flushes: deeds.flushes,
            });
        }
        events::tell(muster_events::Account {
            memory_bytes: self.memory,
            free_bytes: self.uncached,
            at_hand_bytes: self.sum().0.frames,
            heap_live_bytes: self.live,
            heap_cached_bytes: self.cached,
            owners: events::owners(&self.owners),
        });
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
