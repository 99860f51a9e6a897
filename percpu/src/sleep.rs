//! A CPU asleep, whom others spare what it can do when it wakes.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::sync::{AtomicU8, mutated, order_unless};

// The greater, the more: `begin` counts on it.

/// The CPU runs.
const AWAKE: u8 = 0;
/// The CPU is halted, or about to be.
const ASLEEP: u8 = 1;
/// The same, and it has something to do first when it wakes.
const OWING: u8 = 2;

/// Whether a CPU sleeps, and whether it owes something that it was spared meanwhile: a flush of its
/// TLB, say, for which it need not be woken, as what it has cached is of no use to it until then.
///
/// Whoever wants it done *spares* the CPU; if that fails, the CPU is awake and has to be asked.
/// Exactly one of the two is so: of a CPU that wakes in that very moment, either it finds what it
/// owes, or the other finds it awake.
///
/// # Ordering
///
/// What the CPU did before it fell asleep is visible to whoever spares it, and what that one did
/// before is visible to the CPU when it wakes.
///
/// ```
/// use muster_percpu::Sleep;
///
/// static SLEEP: Sleep = Sleep::new();
///
/// assert!(!SLEEP.spare(), "it is awake: it must be asked");
/// SLEEP.begin();
/// assert!(SLEEP.is_asleep());
/// assert!(SLEEP.spare(), "no need to wake it");
/// assert!(SLEEP.end(), "and it learns of it");
/// assert!(!SLEEP.end(), "once");
/// ```
pub struct Sleep(AtomicU8);

impl Sleep {
    /// A CPU that is awake.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU8::new(AWAKE))
    }

    /// A CPU that is awake.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU8::new(AWAKE))
    }

    /// Says that this CPU falls asleep. From here on to [`Self::end`] it touches nothing of what it
    /// may be spared for, in no handler either. If it has said so before and not ended it, what it
    /// owes since then it still owes.
    ///
    /// To be called on the CPU itself, as [`Self::end`] is: by another one's word it would owe
    /// nothing, or be spared what it needs.
    pub fn begin(&self) {
        let order = order_unless(
            "what a CPU did before its sleep is not published",
            Ordering::Release,
        );
        if mutated("a CPU that falls asleep twice forgets what it owes") {
            self.0.store(ASLEEP, order);
        } else {
            // From AWAKE to ASLEEP; OWING stays.
            self.0.fetch_max(ASLEEP, order);
        }
    }

    /// Says that this CPU is awake, if it was not. `true`: it was spared, and has to make up for it
    /// before it does anything else.
    #[must_use = "a CPU that was spared owes what it was spared for"]
    pub fn end(&self) -> bool {
        // Nobody but this CPU changes it from or to this.
        if self.0.load(Ordering::Relaxed) == AWAKE {
            return false;
        }
        let was = if mutated("a CPU wakes in two steps") {
            let was = self.0.load(Ordering::Acquire);
            self.0.store(AWAKE, Ordering::Release);
            was
        } else {
            self.0.swap(AWAKE, Ordering::Acquire)
        };
        was == OWING
    }

    /// Whether the CPU sleeps, for those who only want to tell: it may wake at any time.
    pub fn is_asleep(&self) -> bool {
        self.0.load(Ordering::Relaxed) != AWAKE
    }

    /// Spares the CPU, for another one: it will make up for it when it wakes. `false`: it is awake.
    #[must_use = "a CPU that is awake has not been spared"]
    pub fn spare(&self) -> bool {
        let order = order_unless("a CPU is spared without looking", Ordering::AcqRel);
        let spared = self
            .0
            .fetch_update(order, Ordering::Relaxed, |state| match state {
                AWAKE => None,
                _ => Some(OWING),
            });
        spared.is_ok()
    }
}

impl Default for Sleep {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.load(Ordering::Relaxed) {
            AWAKE => "Sleep(awake)",
            ASLEEP => "Sleep(asleep)",
            _ => "Sleep(asleep, owing)",
        })
    }
}
