//! The admission of a CPU: it joins before a timeout, or it is given up.

use core::fmt;
use core::sync::atomic::Ordering;

use muster_sync::{AtomicU8, const_unless_modelled, fence};

/// The outcome of a roll call for one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// It is not decided yet.
    Pending,
    /// The CPU joined in time.
    Joined,
    /// The deadline passed first: if the CPU comes later, it stays out.
    GivenUp,
}

/// The decision whether a CPU is admitted, between the CPU itself, which joins, and the CPU that calls the
/// roll, which gives it up: exactly one of the two succeeds, and both see which.
///
/// # Ordering
///
/// What the CPU did before it joined is visible to every CPU that sees that it has. And if another CPU
/// changes something, calls [`Self::fence`], and then sees the outcome [`Pending`](Outcome::Pending), the
/// change is visible to the CPU once it has joined. So a CPU that makes a change need ask only those that
/// have joined to act on it; one that joins later drops *then* what it may have cached before
/// (translations in its TLB, say).
///
/// ```
/// use muster_cross_cpu::{Admission, Outcome};
///
/// static CPU: Admission = Admission::new();
///
/// assert!(CPU.give_up());
/// assert!(!CPU.join(), "too late");
/// assert_eq!(CPU.outcome(), Outcome::GivenUp);
/// ```
pub struct Admission(AtomicU8);

impl Admission {
    const_unless_modelled! {
        /// Creates an admission that is not decided yet.
        pub const fn new() -> Self {
            Self(AtomicU8::new(Outcome::Pending as u8))
        }
    }

    /// Joins, as the CPU's last step, and returns whether the CPU is admitted. `false`: it has been given
    /// up. A CPU that has joined before gets the same answer again; the second call does not publish what
    /// it did in between.
    #[must_use = "a CPU that has been given up stays out"]
    pub fn join(&self) -> bool {
        let joined = self.decide(Outcome::Joined) || self.outcome() == Outcome::Joined;
        // With the fence of `fence`: either this CPU sees the change, or the CPU that made the change
        // sees that this one has joined.
        fence(Ordering::SeqCst);
        joined
    }

    /// Orders a change that no CPU may miss before the check which CPUs have joined. Without it the check
    /// can come first, as a processor buffers its stores.
    pub fn fence() {
        // SeqCst: with the fence of `join`, as a store is ordered before a later load by a pair of such fences.
        fence(Ordering::SeqCst);
    }

    /// Gives up a CPU that is silent, as the roll call's last step for it. `false`: it has joined in this
    /// very moment, and what it did before is visible; or it was given up before.
    pub fn give_up(&self) -> bool {
        self.decide(Outcome::GivenUp)
    }

    /// Returns the outcome so far.
    pub fn outcome(&self) -> Outcome {
        // Acquire, with the Release of `decide`: what a CPU that has joined did before is visible.
        match self.0.load(Ordering::Acquire) {
            0 => Outcome::Pending,
            1 => Outcome::Joined,
            _ => Outcome::GivenUp,
        }
    }

    /// Decides, unless it is decided, and returns whether it did.
    fn decide(&self, outcome: Outcome) -> bool {
        // Release, with the Acquire of `outcome` and of a decision that fails: what a CPU that joins did
        // before is published. No Acquire where it succeeds: what it finds is the initial value, with
        // which no CPU has published anything.
        // Acquire: a CPU that is refused because the other has joined may go by what that did before.
        let (from, to) = (Outcome::Pending as u8, outcome as u8);
        self.0
            .compare_exchange(from, to, Ordering::Release, Ordering::Acquire)
            .is_ok()
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admission").field(&self.outcome()).finish()
    }
}
