//! The per-CPU block: each CPU's own state, and the part of it that the others may read.

use core::fmt::{self, Write};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use muster_cross_cpu::Idle;
use muster_heap::CpuCache;
use muster_machine::identity::Difference;
use muster_memory::FRAME_SIZE;
use muster_percpu::{Directory, Header, Here, Register, Storage, Unregistered, WriteOnce};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

use super::activity::Activity;
use super::counters::{CallCounters, TlbCounters};
use super::frame_slot::FrameSlot;
use super::identity::Identity;
use super::level::{Held, Level, Lock};
use super::lines::{Journal, LogLine};
use super::progress::Progress;
use super::snapshot::Snapshot;
use crate::arch::apic;
use crate::arch::descriptors::Descriptors;
use crate::arch::failpoint::Traps;
use crate::arch::timer::Timer;
use crate::arch::vectors::Counters;
use crate::boot::stack::Slot;

/// The part of a block that only its own CPU touches.
pub struct Local {
    descriptors: &'static Descriptors,
    frames: FrameSlot,
    traps: Traps,
    timer: Timer,
    held: Held,
    lapic: apic::Mode,
}

impl Local {
    /// Returns the cell of this CPU's frame cache.
    #[inline]
    pub fn frames(&self) -> &FrameSlot {
        &self.frames
    }

    /// Returns the state of this CPU's failpoints.
    #[inline]
    pub fn traps(&self) -> &Traps {
        &self.traps
    }

    /// Returns the handler and the period of this CPU's timer.
    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    /// Returns the locks that this CPU holds.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Returns how this CPU reaches the registers of its local APIC.
    #[inline]
    pub fn lapic(&self) -> &apic::Mode {
        &self.lapic
    }

    /// Loads this CPU's GDT and TSS.
    pub fn load_descriptors(&self) {
        self.descriptors.load();
    }
}

/// The memory of one CPU's state: whole frames of its own. GS base is its address.
#[repr(C)]
struct Memory {
    block: Block,
    descriptors: Descriptors,
}

/// How far from GS base the CPU's part of the heap lies, in bytes, with a block and without.
pub const CACHE_FROM_GS: usize = muster_percpu::head_offset::<CpuCache>();

/// The target of GS base while the CPU has no block: a cache that is empty, full and never used.
static UNREGISTERED: Unregistered<CpuCache> = Unregistered::new(CpuCache::new());

/// Bytes of memory per CPU, a multiple of a frame.
pub const BYTES: u64 = (size_of::<Memory>() as u64).next_multiple_of(FRAME_SIZE);

/// Makes the per-CPU block of CPU `index` in `memory`.
///
/// # Safety
///
/// `memory` is [`BYTES`] of frame-aligned, writable memory, mapped for good in
/// the tables of the loader and of the kernel, and used by nothing else.
pub unsafe fn create(index: u32, lapic_id: u32, memory: NonNull<u8>) -> &'static Block {
    let memory = memory.cast::<Memory>().as_ptr();
    // SAFETY: (1) the memory is large and aligned enough and no one else's, as the
    // caller promises; (2) the two fields don't overlap, and each is written once,
    // before a reference to it exists.
    unsafe {
        let tops = Slot::of(index).interrupt_tops();
        let descriptors = Descriptors::create(&raw mut (*memory).descriptors, tops);
        let place: &mut MaybeUninit<Block> = &mut *(&raw mut (*memory).block).cast();
        Block::init(place, index, CpuCache::new(), |cache| {
            let local = Local {
                descriptors,
                frames: FrameSlot::new(),
                traps: Traps::new(),
                timer: Timer::new(),
                held: Held::new(),
                lapic: apic::Mode::new(),
            };
            (local, Shared::new(lapic_id, cache))
        })
    }
}

/// The part of a block that every CPU may read.
pub struct Shared {
    /// The CPU's local APIC id.
    pub lapic_id: u32,
    /// The progress of its bring-up.
    pub report: Progress,
    /// Its own log lines.
    pub journal: Lock<Journal>,
    /// Its cache of the heap; others only read its counters.
    pub cache: &'static CpuCache,
    /// Its state, as last read.
    pub snapshot: Snapshot,
    /// Which CPU it is, by its registers.
    pub identity: Identity,
    /// Why it was stopped, if it was.
    pub end: End,
    /// Its current activity, on a cache line that no other CPU writes.
    pub activity: CachePadded<Activity>,
    /// Whether it is idle, and is spared shootdowns, on a cache line that others write only then.
    pub idle: CachePadded<Idle>,
    /// Its TLB flushes and shootdowns, on a cache line that no other CPU writes.
    pub tlb: CachePadded<TlbCounters>,
    /// The calls that it has sent and served, on a cache line that no other CPU writes.
    pub calls: CachePadded<CallCounters>,
    /// The interrupts that it has taken, on a cache line that no other CPU writes.
    pub interrupts: CachePadded<Counters>,
}

impl Shared {
    /// Creates the shared part of a CPU that the loader has parked.
    pub const fn new(lapic_id: u32, cache: &'static CpuCache) -> Self {
        Self {
            lapic_id,
            cache,
            report: Progress::new(),
            journal: Lock::new(Level::Journal, Journal::new()),
            snapshot: Snapshot::new(),
            identity: Identity::new(),
            end: End {
                begun: AtomicBool::new(false),
                stopped_at: AtomicU64::new(0),
                last_words: WriteOnce::new(),
            },
            activity: CachePadded::new(Activity::new()),
            idle: CachePadded::new(Idle::new()),
            tlb: CachePadded::new(TlbCounters::new()),
            calls: CachePadded::new(CallCounters::new()),
            interrupts: CachePadded::new(Counters::new()),
        }
    }

    /// Returns the registers in which the CPU differs from the BSP, or from what the loader says of
    /// it.
    pub fn differences(&self) -> impl Iterator<Item = Difference> {
        self.identity.differences(self.lapic_id)
    }
}

/// The last state of a CPU when another one's fault ends the run. Release and Acquire: with it comes all
/// that the CPU wrote before.
pub struct End {
    begun: AtomicBool,
    stopped_at: AtomicU64,
    last_words: WriteOnce<LogLine>,
}

impl End {
    /// Records that the CPU has a fault of its own.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Returns whether the CPU has a fault of its own, and will stop by itself.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Records that the CPU stops for good, at `address` of its code.
    pub fn stop_at(&self, address: u64) {
        self.stopped_at.store(address, Ordering::Release);
    }

    /// Returns where it stopped, if it did.
    pub fn stopped_at(&self) -> Option<u64> {
        Some(self.stopped_at.load(Ordering::Acquire)).filter(|&address| address != 0)
    }

    /// Leaves last words for the CPU that reports, the first time. A fault while they are written
    /// leaves none.
    pub fn leave_words(&self, words: fmt::Arguments<'_>) {
        self.last_words.set(|| {
            let mut line = LogLine::new();
            // Too long for a line: its beginning will do.
            let _ = line.write_fmt(words);
            line
        });
    }

    /// Returns the last words, if any.
    pub fn words(&self) -> Option<&LogLine> {
        self.last_words.get()
    }
}

/// One CPU's block, which begins with its cache of the heap.
pub type Block = muster_percpu::Block<Local, Shared, CpuCache>;

/// The register that holds the address of a CPU's own block: GS base.
pub struct Gs;

// SAFETY: (1) GS base is a register of each CPU of its own; (2) nothing but
// `store` writes it after `reset`, and no one loads the GS selector;
// (3) `store` is always given a header whose first word is its own address, or
// that of `UNREGISTERED`, whose first word is null, so the word at gs:0 is the block that
// runs here or null; (4) Muster has no tasks: nothing preempts code or moves it to another
// CPU, so there is nothing to disable.
unsafe impl Register for Gs {
    type Local = Local;
    type Shared = Shared;
    type Head = CpuCache;
    type NoPreempt = ();

    fn disable_preemption() -> Self::NoPreempt {}

    fn unregistered() -> &'static Unregistered<CpuCache> {
        &UNREGISTERED
    }

    #[inline]
    fn load() -> *const Header {
        let header: *const Header;
        // SAFETY: GS base points to a `Header` since the first instruction of this
        // CPU in the kernel (`reset`); the read touches nothing else.
        unsafe {
            core::arch::asm!(
                "mov {}, gs:[0]",
                out(reg) header,
                // Not `pure`: with that, a value from before a switch of tasks could be used after
                // it. There are none here, but it costs nothing to leave it out.
                options(nostack, preserves_flags, readonly)
            );
        }
        header
    }

    unsafe fn store(header: *const Header) {
        // SAFETY: the address of a live object is canonical for the number of levels
        // in use; `VirtAddr::new` knows only four.
        GsBase::write(unsafe { VirtAddr::new_unsafe(header.expose_provenance() as u64) });
    }
}

/// Access to the block of the CPU this runs on.
pub type Cpu = Storage<Gs>;

/// Every CPU's block, by CPU index.
pub static DIRECTORY: Directory<Local, Shared, CpuCache> = Directory::new();

/// Runs `f` with this CPU's block, or returns `None` if it has none yet: for code that also runs
/// before registration, in faults and in NMIs.
#[inline]
pub fn try_with<T>(
    f: impl for<'here> FnOnce(&Here<'here, Local, Shared, CpuCache>) -> T,
) -> Option<T> {
    Cpu::try_with(f)
}

/// Runs `f` with this CPU's block.
///
/// # Panics
///
/// If this CPU has not registered its block.
#[track_caller]
#[inline]
pub fn with<T>(f: impl for<'here> FnOnce(&Here<'here, Local, Shared, CpuCache>) -> T) -> T {
    Cpu::with(f)
}

/// Returns the shared part of every CPU's block, with its index. Empty until the blocks exist.
pub fn all() -> impl ExactSizeIterator<Item = (u32, &'static Shared)> {
    DIRECTORY.iter()
}
