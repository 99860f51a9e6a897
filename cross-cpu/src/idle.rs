//! An idle CPU, for which work is deferred until it wakes.

use core::fmt;
use core::sync::atomic::Ordering;

use muster_sync::{AtomicU8, const_unless_modelled};

// In ascending order, and OWING is UNPAID and IDLE: `enter` relies on it.

/// The CPU runs.
const BUSY: u8 = 0;
/// The CPU runs, and the work that was deferred unwound.
const UNPAID: u8 = 1;
/// The CPU runs, and does the work that was deferred. No call of [`Idle::exit`] leaves it so.
const PAYING: u8 = 2;
/// The CPU is halted, or about to be.
const IDLE: u8 = 4;
/// The same, and it has deferred work to do first when it wakes.
const OWING: u8 = 5;

/// The idle state of a CPU: whether it is idle, and whether it owes work that was deferred until it
/// wakes: a flush of its TLB, say, for which it need not be woken, as its cached translations are of no
/// use to it until then.
///
/// A CPU that needs the work done *defers* it; if that fails, the target is busy and has to be asked.
/// Exactly one of the two happens: if the target wakes in that very moment, either it finds the
/// deferred work, or the other CPU finds it busy.
///
/// # Ordering
///
/// What the CPU did before it became idle is visible to a CPU that defers work for it, and what that
/// one did before is visible to the first CPU when it wakes.
///
/// ```
/// use muster_cross_cpu::Idle;
///
/// static IDLE: Idle = Idle::new();
///
/// assert!(!IDLE.defer(), "it is busy: it must be asked");
/// IDLE.enter();
/// assert!(IDLE.is_idle());
/// assert!(IDLE.defer(), "no need to wake it");
/// let mut flushes = 0;
/// assert!(IDLE.exit(|| flushes += 1), "it owes the work");
/// assert!(!IDLE.exit(|| flushes += 1), "once");
/// assert_eq!(flushes, 1);
/// ```
pub struct Idle(AtomicU8);

impl Idle {
    const_unless_modelled! {
        /// Creates the state of a CPU that is busy.
        pub const fn new() -> Self {
            Self(AtomicU8::new(BUSY))
        }
    }

    /// Marks this CPU as idle. From here on to [`Self::exit`] it uses nothing that deferred work is
    /// about, in no handler either. A second call without an [`Self::exit`] in between keeps the work
    /// that was deferred since the first.
    ///
    /// To be called on the CPU itself, as [`Self::exit`] is: called for another CPU, it would lose work,
    /// or defer work that the CPU needs at once.
    pub fn enter(&self) {
        // Release, with the Acquire of `defer`: what this CPU did before is over when work is deferred.
        // From BUSY to IDLE, and from UNPAID to OWING; these stay.
        self.0.fetch_or(IDLE, Ordering::Release);
    }

    /// Marks this CPU as busy, if it was not, and does the work that was deferred, if any was. Returns whether there was.
    ///
    /// Each handler calls it first, and so does the code behind the halt: a handler that interrupts that before the work
    /// is done does it as well, so `work` may be done twice, and its end is in any case before the end of this call.
    ///
    /// # Panics
    ///
    /// If `work` does. It is still owed then, unless a handler has done it.
    pub fn exit(&self, work: impl FnOnce()) -> bool {
        // Relaxed: only this CPU changes it from or to BUSY.
        let mut state = self.0.load(Ordering::Relaxed);
        loop {
            let next = match state {
                BUSY => return false,
                IDLE => BUSY,
                _ => PAYING,
            };
            // Acquire, with the Release of `defer`: what the work is about is visible. Relaxed where it fails: the next
            // round looks again.
            let moved =
                (self.0).compare_exchange(state, next, Ordering::Acquire, Ordering::Relaxed);
            match moved {
                Ok(IDLE) => return false,
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        let mut payment = Payment {
            state: &self.0,
            next: UNPAID,
        };
        work();
        payment.next = BUSY;
        true
    }

    /// Returns whether the CPU is idle, for reports only: it may wake at any time.
    pub fn is_idle(&self) -> bool {
        // Relaxed: nothing is read by what it says.
        self.0.load(Ordering::Relaxed) >= IDLE
    }

    /// Defers work of the CPU, on another one, until it wakes. `false`: it is busy, and nothing has changed.
    #[must_use = "a busy CPU has to be asked"]
    pub fn defer(&self) -> bool {
        // Acquire, with the Release of `enter`, and Release, with the Acquire of `exit`. Relaxed where
        // it fails: the CPU is asked by other means then.
        let deferred =
            self.0
                .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |state| match state {
                    BUSY | UNPAID | PAYING => None,
                    _ => Some(OWING),
                });
        deferred.is_ok()
    }
}

/// Deferred work that is being done. Its end, or its unwinding, is recorded when this is dropped.
struct Payment<'a> {
    state: &'a AtomicU8,
    /// The state that follows.
    next: u8,
}

impl Drop for Payment<'_> {
    fn drop(&mut self) {
        // From PAYING, it is this work's own: a handler that interrupts it leaves what its own came to, done or not,
        // which stays. Relaxed: a CPU that would defer work is refused before this and after it.
        let _ =
            (self.state).compare_exchange(PAYING, self.next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Default for Idle {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Relaxed: for a report only.
        f.write_str(match self.0.load(Ordering::Relaxed) {
            BUSY | UNPAID | PAYING => "Idle(busy)",
            IDLE => "Idle(idle)",
            _ => "Idle(idle, work deferred)",
        })
    }
}
