//! Calls from CPU to CPU, without the hardware: who has asked whom for what, and who is done.

use alloc::boxed::Box;
use core::fmt;
use core::iter;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU8, AtomicU64, UnsafeCell, mutated, order_unless};

/// Calls that one CPU may have under way at once: its own, and those of handlers that come on top
/// of it while it waits.
pub const DEPTH: usize = 4;

/// Where CPUs call each other: an inbox for each, and what each has to say.
///
/// An inbox is a set: one bit for each call that each CPU may have under way. To call is to set
/// the bit, to take the call is to clear it, and so a call that was not taken can be taken *back*,
/// by clearing it first: exactly one of the two sides finds it set. What the call is about stays
/// with the caller, in a slot of which nothing is reused before every CPU that took the call has
/// said that it is done. Nothing is allocated, locked or waited for.
///
/// The numbers of CPUs are the kernel's word, not proof: code that gives a wrong one, or serves one
/// CPU on two at once, gets calls that are run by the wrong CPU. Each call that is sent is still run
/// once, and nothing is read while it is written.
///
/// An interrupt (how one is sent is the kernel's business) follows the bit, so the CPU that takes it
/// finds the bit; and a CPU that looks into its inbox with interrupts off and then halts, letting
/// them in by the same instruction, misses no call.
///
/// ```
/// use muster_percpu::Exchange;
///
/// let exchange = Exchange::new(2);
/// let call = exchange.call(0, "flush").ok_or("too many calls")?;
/// call.send(1)?;
/// assert!(call.send(1).is_err(), "it is under way");
/// // CPU 1, interrupted or in a wait of its own:
/// let mut taken = Vec::new();
/// while exchange.serve(1, |work| taken.push(work)) {}
/// assert_eq!(taken, ["flush"]);
/// // CPU 0 waits for that:
/// assert!(call.is_done());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Exchange<W> {
    desks: Box<[CachePadded<Desk<W>>]>,
}

/// One CPU's part.
struct Desk<W> {
    /// Who waits for this CPU: bit `DEPTH * caller + slot`. Set by callers; cleared by this CPU,
    /// which takes the call, or by the caller, which takes it back.
    inbox: Bits,
    /// The bit after that of the call taken last; only this CPU's business.
    turn: AtomicUsize,
    slots: [Slot<W>; DEPTH],
}

/// One call that a CPU has under way.
struct Slot<W> {
    /// [`FREE`], [`HELD`] or [`LEFT`]; others don't look at it.
    state: AtomicU8,
    /// Written by the caller while no bit is set for this slot in any inbox and none in `open`.
    work: UnsafeCell<MaybeUninit<W>>,
    /// The CPUs that were called and aren't done: set by the caller, and only where it was not set;
    /// cleared by each when it is. A bit that is set for the slot in an inbox is set here, too: it
    /// comes here first, and goes here last.
    open: Bits,
}

/// The slot is not in use.
const FREE: u8 = 0;
/// There is a [`Call`] for the slot.
const HELD: u8 = 1;
/// The [`Call`] is gone and the slot free as soon as its last CPU is done.
const LEFT: u8 = 2;

// SAFETY: `work` is written on one CPU and copied on others, which `W: Send + Copy` allows. Whatever
// numbers they say that they have: (1) the slot is written by whoever made it HELD (Acquire, after the
// Release with which the last holder let it go), of whom there is one, and only while no CPU is `open`;
// (2) it is read by whoever cleared its bit in an inbox (Acquire, after the Release with which the
// holder set it, after the write), of whom there is one for each time that the bit was set, and before
// that reader clears the bit in `open` (Release); (3) a bit is set in an inbox only by the holder, and
// only after it has set a bit in `open` that was not set, so none is set while `open` has none; (4)
// the next writer has seen `open` without any (Acquire), or the last holder had when it let go.
unsafe impl<W: Copy + Send> Sync for Exchange<W> {}
// SAFETY: as above.
unsafe impl<W: Copy + Send> Send for Exchange<W> {}

impl<W: Copy> Exchange<W> {
    /// An exchange for so many CPUs, numbered from 0.
    pub fn new(cpus: usize) -> Self {
        let slot = || Slot {
            state: AtomicU8::new(FREE),
            work: UnsafeCell::new(MaybeUninit::uninit()),
            open: Bits::new(cpus),
        };
        let desk = |_| {
            CachePadded::new(Desk {
                inbox: Bits::new(cpus * DEPTH),
                turn: AtomicUsize::new(0),
                slots: core::array::from_fn(|_| slot()),
            })
        };
        Self {
            desks: (0..cpus).map(desk).collect(),
        }
    }

    /// Prepares a call of CPU `caller`, on which this runs. `None`: it has [`DEPTH`] calls under
    /// way already, or there is no such CPU.
    ///
    /// A [`Call`] that is neither dropped nor done with (`core::mem::forget`) counts for good.
    pub fn call(&self, caller: usize, work: W) -> Option<Call<'_, W>> {
        let slots = &self.desks.get(caller)?.slots;
        let number = slots.iter().position(Slot::claim)?;
        let slot = &slots[number];
        // SAFETY: the slot is HELD, by this call alone, and no CPU is open: see `claim`.
        slot.work.with_mut(|place| unsafe { (*place).write(work) });
        Some(Call {
            exchange: self,
            slot,
            bit: DEPTH * caller + number,
            _on_this_cpu: PhantomData,
        })
    }

    /// Whether a call waits for CPU `cpu`.
    #[inline]
    pub fn is_called(&self, cpu: usize) -> bool {
        let waits =
            |desk: &CachePadded<Desk<W>>| desk.inbox.iter(Ordering::Relaxed).next().is_some();
        self.desks.get(cpu).is_some_and(waits)
    }

    /// Takes one call to CPU `cpu`, on which this runs, if there is one: runs `run` with what it is
    /// about, and then tells the caller. Says whether there was one. The callers take turns: nobody
    /// waits for more than [`DEPTH`] calls of each of the others'.
    ///
    /// May be called from within `run`, and by a handler on top of it.
    ///
    /// # Panics
    ///
    /// If `run` does. The call counts as done then, as this CPU will never run the rest of it: the
    /// caller goes on, and what it called for may be half done.
    pub fn serve(&self, cpu: usize, run: impl FnOnce(W)) -> bool {
        let Some(slot) = self.take(cpu) else {
            return false;
        };
        // SAFETY: the bit in the inbox was set after the work was written, and the caller does not
        // write it again before this CPU's bit in `open` is cleared, below.
        let work = slot
            .work
            .with(|place| unsafe { (*place).assume_init_read() });
        if mutated("a call is done before it has run") {
            slot.open.clear(cpu, Ordering::Release);
        }
        let _taken = Taken { slot, cpu };
        run(work);
        true
    }

    /// Takes a call out of an inbox.
    fn take(&self, cpu: usize) -> Option<&Slot<W>> {
        let Desk { inbox, turn, .. } = &**self.desks.get(cpu)?;
        loop {
            let after = turn.load(Ordering::Relaxed);
            let bit = (inbox.iter(Ordering::Relaxed).find(|&bit| bit >= after))
                .or_else(|| inbox.iter(Ordering::Relaxed).next())?;
            // Not set any more: the caller took it back, or a handler came in between and took it.
            if inbox.clear(bit, Ordering::Acquire) || mutated("a call is taken without a look") {
                turn.store(bit + 1, Ordering::Relaxed);
                return self.desks.get(bit / DEPTH)?.slots.get(bit % DEPTH);
            }
        }
    }
}

/// A call that a CPU has taken. Dropped, also as `run` unwinds, it is done.
struct Taken<'a, W> {
    slot: &'a Slot<W>,
    cpu: usize,
}

impl<W> Drop for Taken<'_, W> {
    fn drop(&mut self) {
        let order = order_unless("that a call is done is not published", Ordering::Release);
        // The caller may go on from here, with whatever the work is about.
        self.slot.open.clear(self.cpu, order);
    }
}

impl<W> Slot<W> {
    /// Makes a slot HELD that no one uses.
    fn claim(&self) -> bool {
        let swap = |from, to| {
            self.state
                .compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        };
        if swap(FREE, HELD) {
            return true;
        }
        // First held, then looked at: a handler on top of this can't claim it in between.
        if swap(LEFT, HELD) {
            if self.open.is_empty() {
                return true;
            }
            self.state.store(LEFT, Ordering::Release);
        }
        false
    }
}

/// A call under way.
///
/// Dropped before it is done it is *left*: whoever has been sent it runs it all the same, so `W` may
/// not lead to anything that goes before.
#[must_use = "nobody is called yet"]
pub struct Call<'a, W> {
    exchange: &'a Exchange<W>,
    slot: &'a Slot<W>,
    /// Its place in every inbox.
    bit: usize,
    /// Calls of one CPU are that CPU's.
    _on_this_cpu: PhantomData<*const ()>,
}

impl<W: Copy> Call<'_, W> {
    /// Puts the call into the inbox of CPU `target`; the interrupt is to follow.
    ///
    /// It may be sent there again once the CPU is no more in [`open`](Self::open): after it has
    /// carried the call out, of which everything is visible then, or after the call was taken back.
    ///
    /// # Errors
    ///
    /// [`SendError`]. Nothing has changed then.
    pub fn send(&self, target: usize) -> Result<(), SendError> {
        let desk = self.exchange.desks.get(target);
        let desk = desk.ok_or(SendError::NoSuchCpu { target })?;
        // Acquire, with the Release by which the target was done: its taking of the call last time
        // comes before the bit is set in its inbox again, or that would be lost.
        let order = order_unless(
            "a call is sent again without a look at what was done",
            Ordering::Acquire,
        );
        // Before the other: the target clears it when it is done, which may be at once.
        if !self.slot.open.set(target, order) && !mutated("a call is sent while it is under way") {
            return Err(SendError::AlreadySent { target });
        }
        let order = order_unless("a call is not published", Ordering::Release);
        desk.inbox.set(self.bit, order);
        Ok(())
    }

    /// Whether every CPU that was sent the call has carried it out, or it was taken back from it.
    /// What they did is visible then.
    pub fn is_done(&self) -> bool {
        self.slot.open.is_empty()
    }

    /// The CPUs that have been sent the call and have not carried it out.
    pub fn open(&self) -> impl Iterator<Item = usize> {
        self.slot.open.iter(Ordering::Acquire)
    }

    /// Takes the call back from CPU `target`. `false`: it has taken it already, and will be done
    /// sometime; or is.
    pub fn take_back(&self, target: usize) -> bool {
        let Some(desk) = self.exchange.desks.get(target) else {
            return false;
        };
        let taken_back = desk.inbox.clear(self.bit, Ordering::Relaxed);
        if taken_back || mutated("a call counts as taken back when it is not") {
            self.slot.open.clear(target, Ordering::Relaxed);
        }
        taken_back
    }
}

impl<W> Drop for Call<'_, W> {
    fn drop(&mut self) {
        // With LEFT the next claim looks whether a CPU is still at it.
        let state = if self.slot.open.is_empty() {
            FREE
        } else {
            LEFT
        };
        // Release: the next holder writes after all that this one did, and saw done.
        let order = order_unless("that a slot is let go is not published", Ordering::Release);
        self.slot.state.store(state, order);
    }
}

/// Why a call was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The exchange has no CPU of this number.
    NoSuchCpu {
        /// The number.
        target: usize,
    },
    /// The call has been sent to this CPU, which is not done with it.
    AlreadySent {
        /// The CPU's number.
        target: usize,
    },
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchCpu { target } => {
                write!(
                    f,
                    "there is no CPU {target} to call: the exchange has fewer"
                )
            }
            Self::AlreadySent { target } => write!(
                f,
                "the call is under way to CPU {target} already: \
                 wait until it is done, or take it back, before it is sent again"
            ),
        }
    }
}

impl core::error::Error for SendError {}

/// Words of a line that no other set shares; a model has none to spare.
const WORDS: usize = if cfg!(loom) { 1 } else { 16 };

/// A set of numbers that CPUs add to and take from.
struct Bits {
    lines: Box<[CachePadded<[AtomicU64; WORDS]>]>,
    /// How many of the words are in use.
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

    /// Whether nothing is in the set. What came before everything was taken out is visible then.
    fn is_empty(&self) -> bool {
        self.words().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// What is in the set, in order.
    fn iter(&self, order: Ordering) -> impl Iterator<Item = usize> {
        (0..).zip(self.words()).flat_map(move |(place, word)| {
            let mut left = word.load(order);
            iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                Some(64 * place + bit as usize)
            })
        })
    }

    fn word(&self, bit: usize) -> Option<&AtomicU64> {
        self.lines.get(bit / 64 / WORDS)?.get(bit / 64 % WORDS)
    }

    /// Puts `bit` in; says whether it was out.
    fn set(&self, bit: usize, order: Ordering) -> bool {
        let mask = 1 << (bit % 64);
        self.word(bit)
            .is_some_and(|word| word.fetch_or(mask, order) & mask == 0)
    }

    /// Takes `bit` out; says whether it was in.
    fn clear(&self, bit: usize, order: Ordering) -> bool {
        let mask = 1 << (bit % 64);
        self.word(bit)
            .is_some_and(|word| word.fetch_and(!mask, order) & mask != 0)
    }
}
