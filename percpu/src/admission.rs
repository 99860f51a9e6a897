//! Whether a CPU is taken in: it asks, and somebody's patience ends.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::sync::{AtomicU8, fence, mutated, order_unless};

/// How a roll call ended for one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// It has not.
    Pending,
    /// The CPU reported in time.
    Joined,
    /// The deadline passed first: the CPU, should it still come, stays out.
    GivenUp,
}

/// The decision whether a CPU is taken in, between the CPU itself, which comes, and whoever holds the
/// roll call, who gives it up: exactly one of the two gets their way, and both see which.
///
/// # Ordering
///
/// What the CPU did before it joined is visible to whoever sees that it has. And what a CPU changed
/// before [`Self::before_looking`], and then saw it [`Pending`](Outcome::Pending), is visible to the
/// CPU once it has joined: so it asks only those who have joined to take note of a change, and who
/// joins later drops *then* whatever it may have from before (translations in its TLB, say).
///
/// ```
/// use muster_percpu::{Admission, Outcome};
///
/// static CPU: Admission = Admission::new();
///
/// assert!(CPU.give_up());
/// assert!(!CPU.join(), "too late");
/// assert_eq!(CPU.outcome(), Outcome::GivenUp);
/// ```
pub struct Admission(AtomicU8);

impl Admission {
    /// Nobody has decided yet.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU8::new(Outcome::Pending as u8))
    }

    /// Nobody has decided yet.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU8::new(Outcome::Pending as u8))
    }

    /// Joins, as the CPU's last step, and returns whether the CPU is taken in. `false`: it has been given
    /// up. A CPU that has joined before gets the same answer again; what it did in between is not
    /// published by that.
    #[must_use = "a CPU that has been given up stays out"]
    pub fn join(&self) -> bool {
        let joined = self.decide(Outcome::Joined) || self.outcome() == Outcome::Joined;
        // With that of `before_looking`: either the CPU sees the change, or whoever made it the CPU.
        fence(Ordering::SeqCst);
        joined
    }

    /// Comes between a change that no CPU may miss and the look at who has joined: without it the
    /// look can come first, as a processor keeps its stores to itself for a while.
    pub fn before_looking() {
        if !mutated("a CPU looks who has joined before its change is seen") {
            fence(Ordering::SeqCst);
        }
    }

    /// The roll call's last step for a CPU that is silent. `false`: it has joined in this very moment,
    /// or was given up before.
    pub fn give_up(&self) -> bool {
        self.decide(Outcome::GivenUp)
    }

    /// How it stands.
    pub fn outcome(&self) -> Outcome {
        match self.0.load(Ordering::Acquire) {
            0 => Outcome::Pending,
            1 => Outcome::Joined,
            _ => Outcome::GivenUp,
        }
    }

    fn decide(&self, outcome: Outcome) -> bool {
        if mutated("a CPU joins without a look") && outcome == Outcome::Joined {
            let is_pending = self.outcome() == Outcome::Pending;
            self.0.store(outcome as u8, Ordering::Release);
            return is_pending;
        }
        let order = order_unless("that a CPU has joined is not published", Ordering::AcqRel);
        let (from, to) = (Outcome::Pending as u8, outcome as u8);
        self.0
            .compare_exchange(from, to, order, Ordering::Acquire)
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
