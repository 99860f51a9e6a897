//! Cross-CPU calls, without the hardware: which CPU has called which for what, and which call is done.

use alloc::boxed::Box;
use core::fmt;
use core::iter;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use muster_sync::{AtomicU8, AtomicU64, UnsafeCell};

/// The number of calls that one CPU may have under way at once: its own, and those of handlers that
/// interrupt it while it waits.
pub const MAX_CALLS: usize = 4;

/// A queue of cross-CPU calls: an inbox for each CPU, and slots for the calls that it makes.
///
/// An inbox is a set: one bit for each call that each CPU may have under way, so it can't be full. To call
/// is to set the bit, to take the call is to clear it, and so a call that was not taken can be *cancelled*
/// by clearing the bit first: exactly one of the two sides finds it set. The work of a call stays in a slot
/// of the caller's, which is not reused before every CPU that took the call is done with it. Nothing is
/// allocated, locked or waited for.
///
/// The CPU indices are the kernel's word, not proof. If code passes a wrong one, or serves one
/// CPU on two at once, calls are run by the wrong CPU; but each call that is sent is still run
/// once, and nothing is read while it is written.
///
/// The kernel sends the interrupt after the bit is set, so the CPU that takes it
/// finds the bit. A CPU that checks its inbox with interrupts disabled, and then enables them and halts
/// by the same instruction, misses no call.
///
/// ```
/// use muster_cross_cpu::CallQueue;
///
/// let queue = CallQueue::new(2);
/// let call = queue.call(0, "flush").ok_or("too many calls")?;
/// call.send(1)?;
/// assert!(call.send(1).is_err(), "it is under way");
/// // CPU 1, interrupted or in a wait of its own:
/// let mut taken = Vec::new();
/// while queue.serve(1, |work| taken.push(work)) {}
/// assert_eq!(taken, ["flush"]);
/// // CPU 0 waits for that:
/// assert!(call.is_done());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CallQueue<W> {
    cpus: Box<[CachePadded<Cpu<W>>]>,
}

/// One CPU's part.
struct Cpu<W> {
    /// The calls to this CPU: bit `MAX_CALLS * caller + slot`. Set by callers; cleared by this CPU,
    /// which takes the call, or by the caller, which cancels it.
    inbox: Bits,
    /// The bit after that of the call taken last; used by this CPU only.
    turn: AtomicUsize,
    slots: [Slot<W>; MAX_CALLS],
}

/// One call that a CPU has under way.
struct Slot<W> {
    /// [`FREE`], [`HELD`] or [`DETACHED`]; used by the caller only.
    state: AtomicU8,
    /// Written by the caller while no bit is set for this slot in any inbox and none in `pending`.
    work: UnsafeCell<MaybeUninit<W>>,
    /// The CPUs that were called and aren't done: set by the caller, and only where it was not set;
    /// cleared by each when it is done. A bit that is set for the slot in an inbox is set here, too: it
    /// is set here first, and cleared here last.
    pending: Bits,
}

/// The slot is not in use.
const FREE: u8 = 0;
/// There is a [`Call`] for the slot.
const HELD: u8 = 1;
/// The [`Call`] is dropped, and the slot is free as soon as the last CPU is done with it.
const DETACHED: u8 = 2;

// SAFETY: `work` is written on one CPU and copied on others, which `W: Send + Copy` allows. For any
// indices that callers pass: (1) the slot is written by whoever made it HELD (Acquire, after the
// Release with which the last holder released it), of whom there is one, and only while no CPU is
// `pending`; (2) it is read by whoever cleared its bit in an inbox (Acquire, after the Release with
// which the holder set it, after the write), of whom there is one for each time that the bit was set,
// and before that reader clears the bit in `pending` (Release); (3) a bit is set in an inbox only by
// the holder, and only after it has set a bit in `pending` that was not set, so none is set while
// `pending` has none; (4) the next writer has seen `pending` without any (Acquire), or the last holder
// had when it released the slot.
unsafe impl<W: Copy + Send> Sync for CallQueue<W> {}
// SAFETY: as above.
unsafe impl<W: Copy + Send> Send for CallQueue<W> {}

impl<W: Copy> CallQueue<W> {
    /// Creates a queue for `cpus` CPUs, numbered from 0.
    pub fn new(cpus: usize) -> Self {
        let slot = || Slot {
            state: AtomicU8::new(FREE),
            work: UnsafeCell::new(MaybeUninit::uninit()),
            pending: Bits::new(cpus),
        };
        let cpu = |_| {
            CachePadded::new(Cpu {
                inbox: Bits::new(cpus * MAX_CALLS),
                turn: AtomicUsize::new(0),
                slots: core::array::from_fn(|_| slot()),
            })
        };
        Self {
            cpus: (0..cpus).map(cpu).collect(),
        }
    }

    /// Prepares a call of CPU `caller`, on which this runs. `None`: it has [`MAX_CALLS`] calls under
    /// way already, or there is no such CPU. Where a handler calls in the midst of this, either may get
    /// `None` with one less: another try finds the slot.
    ///
    /// A [`Call`] that is never dropped (`core::mem::forget`) is under way for good.
    pub fn call(&self, caller: usize, work: W) -> Option<Call<'_, W>> {
        let slots = &self.cpus.get(caller)?.slots;
        let number = slots.iter().position(Slot::claim)?;
        let slot = &slots[number];
        // SAFETY: the slot is HELD, by this call alone, and no CPU is pending: see `claim`.
        slot.work.with_mut(|place| unsafe { (*place).write(work) });
        Some(Call {
            queue: self,
            slot,
            bit: MAX_CALLS * caller + number,
            _on_this_cpu: PhantomData,
        })
    }

    /// Returns whether a call waits for CPU `cpu`.
    #[inline]
    pub fn is_called(&self, cpu: usize) -> bool {
        // Relaxed: `serve` takes the call with Acquire.
        let waits = |cpu: &CachePadded<Cpu<W>>| cpu.inbox.iter(Ordering::Relaxed).next().is_some();
        self.cpus.get(cpu).is_some_and(waits)
    }

    /// Takes one call to CPU `cpu`, on which this runs, if there is one: runs `run` with its
    /// work, marks it as done for the caller, and returns whether there was one. The callers take turns: no
    /// caller waits for more than [`MAX_CALLS`] calls of each other caller, and one more for each handler, one within
    /// the other, that serves in the midst of this.
    ///
    /// May be called from within `run`, and by a handler that interrupts it.
    ///
    /// # Panics
    ///
    /// If `run` does. The call counts as done then, as this CPU will never run the rest of it: the
    /// caller goes on, and its work may be half done.
    pub fn serve(&self, cpu: usize, run: impl FnOnce(W)) -> bool {
        let Some(slot) = self.take(cpu) else {
            return false;
        };
        // SAFETY: the bit in the inbox was set after the work was written, and the caller does not
        // write it again before this CPU's bit in `pending` is cleared, below.
        let work = slot
            .work
            .with(|place| unsafe { (*place).assume_init_read() });
        let _taken = Taken { slot, cpu };
        run(work);
        true
    }

    /// Takes a call out of an inbox.
    fn take(&self, cpu: usize) -> Option<&Slot<W>> {
        let Cpu { inbox, turn, .. } = &**self.cpus.get(cpu)?;
        loop {
            // Relaxed, here and below: `turn` is this CPU's only, and which call is taken is decided
            // by `clear`, whose Acquire, with the Release of `send`, makes the work visible.
            let after = turn.load(Ordering::Relaxed);
            let bit = (inbox.iter(Ordering::Relaxed).find(|&bit| bit >= after))
                .or_else(|| inbox.iter(Ordering::Relaxed).next())?;
            // First: a handler that serves from here on goes on behind this call, and one that did so in between has
            // moved the turn on, which must not go back.
            let is_next = turn
                .compare_exchange(after, bit + 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
            // If it is not set any more, the caller cancelled the call, or a handler took it in between.
            if is_next && inbox.clear(bit, Ordering::Acquire) {
                return self.cpus.get(bit / MAX_CALLS)?.slots.get(bit % MAX_CALLS);
            }
        }
    }
}

/// A call that a CPU has taken. When this is dropped, also as `run` unwinds, the call is done.
struct Taken<'a, W> {
    slot: &'a Slot<W>,
    cpu: usize,
}

impl<W> Drop for Taken<'_, W> {
    fn drop(&mut self) {
        // Release, with the Acquire of `is_done`: the caller sees the effects of the work, and from here
        // on it may reuse all that the work refers to.
        self.slot.pending.clear(self.cpu, Ordering::Release);
    }
}

impl<W> Slot<W> {
    /// Makes the slot HELD if nobody uses it, and returns whether it did.
    fn claim(&self) -> bool {
        // Acquire, with the Release by which the last holder released the slot. Relaxed where it fails:
        // nothing is read then.
        let swap = |from, to| {
            self.state
                .compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        };
        if swap(FREE, HELD) {
            return true;
        }
        // Held before it is checked: a handler that interrupts this can't claim it in between.
        if swap(DETACHED, HELD) {
            if self.pending.is_empty() {
                return true;
            }
            // Release: it passes on what the last holder released.
            self.state.store(DETACHED, Ordering::Release);
        }
        false
    }
}

/// A call under way.
///
/// If it is dropped before it is done, it is *detached*: every CPU that was sent the call runs it all the
/// same, so `W` must not refer to anything that may go before.
#[must_use = "no CPU is called before `send`"]
pub struct Call<'a, W> {
    queue: &'a CallQueue<W>,
    slot: &'a Slot<W>,
    /// Its index in every inbox.
    bit: usize,
    /// A call stays on the CPU that makes it.
    _on_this_cpu: PhantomData<*const ()>,
}

impl<W: Copy> Call<'_, W> {
    /// Puts the call into the inbox of CPU `target`; the interrupt is to follow.
    ///
    /// It may be sent there again once the CPU is no longer [`pending`](Self::pending): after it has
    /// run the call, whose effects are visible then, or after the call was cancelled.
    ///
    /// # Errors
    ///
    /// [`SendError`]. Nothing has changed then.
    pub fn send(&self, target: usize) -> Result<(), SendError> {
        let cpu = self.queue.cpus.get(target);
        let cpu = cpu.ok_or(SendError::NoSuchCpu { target })?;
        // Acquire, with the Release by which the target was done: it took the call last time
        // before the bit is set in its inbox again, or that would be lost.
        // Set before the bit in the inbox: the target clears it when it is done, which may be at once.
        if !self.slot.pending.set(target, Ordering::Acquire) {
            return Err(SendError::AlreadySent { target });
        }
        // Release, with the Acquire of `take`: the target reads the work that was written before.
        cpu.inbox.set(self.bit, Ordering::Release);
        Ok(())
    }

    /// Returns whether each CPU that was sent the call has run it, unless it was cancelled there.
    /// The effects are visible then.
    pub fn is_done(&self) -> bool {
        self.slot.pending.is_empty()
    }

    /// Returns the CPUs that have been sent the call and have not run it.
    pub fn pending(&self) -> impl Iterator<Item = usize> {
        // Acquire, with the Release of the targets: the effects on a CPU that is missing here are visible.
        self.slot.pending.iter(Ordering::Acquire)
    }

    /// Cancels the call on CPU `target`, and returns whether the call waited there. If not, the CPU has taken it, and
    /// is done with it or will be; or it was not sent there, or is cancelled already; or there is no such CPU.
    pub fn cancel(&self, target: usize) -> bool {
        let Some(cpu) = self.queue.cpus.get(target) else {
            return false;
        };
        // Relaxed, here and below: where the bit is found set, the target has not taken the call, so
        // nothing that it did is to be seen; and this caller itself set both bits.
        let cancelled = cpu.inbox.clear(self.bit, Ordering::Relaxed);
        if cancelled {
            self.slot.pending.clear(target, Ordering::Relaxed);
        }
        cancelled
    }
}

impl<W> Drop for Call<'_, W> {
    fn drop(&mut self) {
        // If it is DETACHED the next claim checks whether a CPU still runs it.
        let state = if self.slot.pending.is_empty() {
            FREE
        } else {
            DETACHED
        };
        // Release, with the Acquire of `claim`: the next holder writes after all that this one did, and
        // saw done.
        self.slot.state.store(state, Ordering::Release);
    }
}

/// The reason why a call was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The queue has no CPU of this index.
    NoSuchCpu {
        /// The index.
        target: usize,
    },
    /// The call has been sent to this CPU, which is not done with it.
    AlreadySent {
        /// The CPU's index.
        target: usize,
    },
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchCpu { target } => {
                write!(f, "there is no CPU {target} to call: the queue has fewer")
            }
            Self::AlreadySent { target } => write!(
                f,
                "the call is under way to CPU {target} already: \
                 wait until it is done, or cancel it, before it is sent again"
            ),
        }
    }
}

impl core::error::Error for SendError {}

/// The number of words of a set in one pair of cache lines, which no other set shares. A model has one.
const WORDS: usize = if cfg!(loom) { 1 } else { 16 };

/// A set of numbers that CPUs insert into and remove from.
struct Bits {
    lines: Box<[CachePadded<[AtomicU64; WORDS]>]>,
    /// The number of words in use.
    words: usize,
}

impl Bits {
    fn new(count: usize) -> Self {
        let words = count.div_ceil(64);
        let line = || CachePadded::new(core::array::from_fn(|_| AtomicU64::new(0)));
        Self {
            lines: iter::repeat_with(line)
                .take(words.div_ceil(WORDS))
                .collect(),
            words,
        }
    }

    fn words(&self) -> impl Iterator<Item = &AtomicU64> {
        self.lines
            .iter()
            .flat_map(|line| line.iter())
            .take(self.words)
    }

    /// Returns whether the set is empty. All that came before each removal is visible then.
    fn is_empty(&self) -> bool {
        // Acquire, with the Release of `clear`.
        self.words().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// Iterates over the numbers in the set, in ascending order.
    fn iter(&self, order: Ordering) -> impl Iterator<Item = usize> {
        (0..).zip(self.words()).flat_map(move |(index, word)| {
            let mut left = word.load(order);
            iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                Some(64 * index + bit as usize)
            })
        })
    }

    fn word(&self, bit: usize) -> Option<&AtomicU64> {
        self.lines.get(bit / 64 / WORDS)?.get(bit / 64 % WORDS)
    }

    /// Inserts `bit`, and returns whether it was missing.
    fn set(&self, bit: usize, order: Ordering) -> bool {
        let mask = 1 << (bit % 64);
        self.word(bit)
            .is_some_and(|word| word.fetch_or(mask, order) & mask == 0)
    }

    /// Removes `bit`, and returns whether it was there.
    fn clear(&self, bit: usize, order: Ordering) -> bool {
        let mask = 1 << (bit % 64);
        self.word(bit)
            .is_some_and(|word| word.fetch_and(!mask, order) & mask != 0)
    }
}
