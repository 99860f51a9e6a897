//! The vectors of devices' interrupts, and their handlers.
//!
//! A vector is one CPU's while it is registered: its handler is set, run and removed by that CPU alone, with
//! interrupts disabled. Others have it do so by a cross-CPU call, so an interrupt finds all of a handler or
//! none, and a handler that was removed does not run any more. At any other CPU the vector is unexpected.

use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::call::{self, CallError, Targets, Uses};
use super::{cpu, lapic};
use crate::arch::clock::Deadline;
use crate::arch::vectors::{FIRST_DEVICE, LAST_DEVICE};

/// The handler of a device's interrupt.
pub type Handler = &'static (dyn Fn() + Sync);

/// How long a CPU may take to take a call, in milliseconds, and after that to finish a handler.
const TIMEOUT: u64 = 10_000;

/// The number of vectors.
pub const COUNT: usize = (LAST_DEVICE - FIRST_DEVICE + 1) as usize;

/// Instead of a CPU's index: no CPU has the vector.
const NO_CPU: u32 = u32::MAX;

static SLOTS: [Slot; COUNT] = [const { Slot::new() }; COUNT];

/// A vector, and the CPU that has it.
struct Slot {
    /// Whether a [`DeviceVector`] stands for it. Acquire and Release: all that the last one did comes before all
    /// that the next one does.
    is_claimed: AtomicBool,
    /// The index of the CPU that has a handler at this vector. Relaxed: each CPU stores its own index and
    /// removes it again, and only compares it with its own; so it finds it just where it has stored it.
    cpu: AtomicU32,
    handler: Cell<Option<Handler>>,
    is_running: Cell<bool>,
}

// SAFETY: the cells are used by one CPU at a time: by `set_here`, which the only `DeviceVector` of this slot has
// one CPU run, before any other CPU's index is in `cpu`, and otherwise by the CPU whose index is there. From one
// CPU to the next, the end of the call and `is_claimed` order their accesses. On that CPU, they are used with
// interrupts disabled, and no NMI handler comes here. A handler is `Sync`, so any CPU may call it.
unsafe impl Sync for Slot {}

impl Slot {
    const fn new() -> Self {
        Self {
            is_claimed: AtomicBool::new(false),
            cpu: AtomicU32::new(NO_CPU),
            handler: Cell::new(None),
            is_running: Cell::new(false),
        }
    }

    /// Returns whether it is the vector of the CPU with this index, which this runs on.
    fn is_of(&self, own: u32) -> bool {
        self.cpu.load(Ordering::Relaxed) == own
    }

    /// Sets the handler on this CPU, whose index is `own`, with interrupts disabled.
    fn set_here(&self, own: u32, handler: Handler) {
        self.handler.set(Some(handler));
        self.cpu.store(own, Ordering::Relaxed);
    }

    /// Removes the handler on this CPU, which has it, with interrupts disabled. Returns `false`, and leaves it
    /// there, while the handler runs below this call, or one of its interrupts waits to be taken.
    fn remove_here(&self, vector: u8) -> bool {
        if self.is_running.get() || lapic::is_requested(vector) {
            return false;
        }
        self.cpu.store(NO_CPU, Ordering::Relaxed);
        self.handler.set(None);
        true
    }
}

fn slot(vector: u8) -> Option<&'static Slot> {
    SLOTS.get(usize::from(vector.checked_sub(FIRST_DEVICE)?))
}

/// Returns whether this CPU has a handler at a vector. Called with interrupts disabled.
pub fn is_here(vector: u8) -> bool {
    slot(vector).is_some_and(|slot| cpu::try_with(|here| slot.is_of(here.index())) == Some(true))
}

/// Runs this CPU's handler at a vector, if there is one. Called by the interrupt.
pub fn run(vector: u8) {
    if let Some(slot) = slot(vector)
        && is_here(vector)
        && let Some(handler) = slot.handler.get()
    {
        slot.is_running.set(true);
        handler();
        slot.is_running.set(false);
    }
}

/// Why a vector has no handler, or keeps the one it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VectorError {
    /// All vectors are in use.
    NoneFree,
    /// The CPU did not take the call.
    Call(CallError),
    /// The CPU's handler does not come to its end.
    Busy {
        /// The vector.
        vector: u8,
        /// The CPU's index.
        cpu: u32,
    },
}

impl fmt::Display for VectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoneFree => write!(
                f,
                "all {COUNT} vectors of devices are in use: remove the route of another interrupt first"
            ),
            Self::Call(error) => error.fmt(f),
            Self::Busy { vector, cpu } => write!(
                f,
                "the handler of vector {vector:#x} still runs on CPU {cpu}, or is about to: remove a route outside \
                 its handler, with interrupts enabled"
            ),
        }
    }
}

impl core::error::Error for VectorError {}

/// A vector with a handler on one CPU. One that is dropped without [`remove`](Self::remove) stays as it is, for
/// good.
#[derive(Debug)]
pub struct DeviceVector {
    vector: u8,
    cpu: u32,
}

impl DeviceVector {
    /// Claims a free vector, and sets its handler on the CPU with this index. The handler runs with interrupts
    /// disabled and may use the heap; the interrupt is ended after it.
    ///
    /// # Errors
    ///
    /// [`VectorError`]; no vector is claimed then.
    ///
    /// # Panics
    ///
    /// As [`call::run`].
    pub fn register(cpu: u32, handler: Handler) -> Result<Self, VectorError> {
        let is_claimed = |slot: &Slot| {
            let claim = (slot.is_claimed).compare_exchange(
                false,
                true,
                Ordering::Acquire,
                // Another CPU's: nothing of it is read.
                Ordering::Relaxed,
            );
            claim.is_ok()
        };
        let (vector, slot) = (FIRST_DEVICE..=LAST_DEVICE)
            .zip(&SLOTS)
            .find(|(_, slot)| is_claimed(slot))
            .ok_or(VectorError::NoneFree)?;
        call::insist(Uses::NoHeap, Targets::One(cpu), TIMEOUT, &|own| {
            slot.set_here(own, handler);
        })
        .inspect_err(|_| slot.is_claimed.store(false, Ordering::Release))
        .map_err(VectorError::Call)?;
        Ok(Self { vector, cpu })
    }

    /// Returns the vector's number.
    pub fn vector(&self) -> u8 {
        self.vector
    }

    /// Returns the index of the CPU that takes its interrupts.
    pub fn cpu(&self) -> u32 {
        self.cpu
    }

    /// Removes the handler, and frees the vector. Called once no device sends its interrupt any more. When it
    /// returns, the handler does not run, and never will; the interrupts that had come by then have been taken.
    ///
    /// # Errors
    ///
    /// [`VectorError`]: the vector and its handler stay as they are, for good.
    ///
    /// # Panics
    ///
    /// As [`call::run`].
    pub fn remove(self) -> Result<(), VectorError> {
        let Self { vector, cpu } = self;
        let Some(slot) = slot(vector) else {
            return Ok(());
        };
        let busy = Err(VectorError::Busy { vector, cpu });
        let own = cpu::with(|here| here.index());
        if slot.is_of(own) && slot.is_running.get() {
            // This is the handler, which can't wait for its own end.
            return busy;
        }
        let deadline = Deadline::after_millis(TIMEOUT);
        // Relaxed: the end of the call publishes it.
        let is_removed = AtomicBool::new(false);
        loop {
            call::insist(Uses::NoHeap, Targets::One(cpu), TIMEOUT, &|_| {
                is_removed.store(slot.remove_here(vector), Ordering::Relaxed);
            })
            .map_err(VectorError::Call)?;
            if is_removed.load(Ordering::Relaxed) {
                slot.is_claimed.store(false, Ordering::Release);
                return Ok(());
            }
            if deadline.passed() {
                return busy;
            }
            call::relax();
        }
    }
}
