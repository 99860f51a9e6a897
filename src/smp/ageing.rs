//! Ageing: an idle CPU gives back the memory that it has cached, once nothing has used it for a while.

use muster_percpu::{InterruptSafe, LocalWord, cpu_local};

use super::cpu::Cpu;
use super::hooks::{self, Hooks};
use super::timer;
use crate::arch::clock;

/// How long the caches must be unused, in microseconds: long beside the time to fill them again, some tens of microseconds,
/// and short beside what a user calls idle.
const AGE: u64 = 100_000;

cpu_local! {
    static AGEING: Ageing = Ageing::new();
}

/// What an idle CPU remembers of its caches' use.
struct Ageing {
    /// The use ([`Hooks::cache_use`]) at the last look, and the stamp of the look that first saw it.
    seen: LocalWord<u64>,
    since: LocalWord<u64>,
    /// The use when the caches were last drained.
    drained: LocalWord<u64>,
}

// SAFETY: each field is a `LocalWord`, so a handler at any instruction finds it as it was or as it is; and one that looks in the
// midst of a look makes a drain come too early or too late, which does no harm.
unsafe impl InterruptSafe for Ageing {}

impl Ageing {
    const fn new() -> Self {
        Self {
            seen: LocalWord::new(0),
            since: LocalWord::new(0),
            drained: LocalWord::new(0),
        }
    }

    /// Returns whether the caches have aged. If they will, the timer ends the next halt then.
    fn look(&self, used: u64) -> bool {
        if used == self.drained.get() {
            return false;
        }
        let now = clock::ticks();
        if used != self.seen.get() {
            self.seen.set(used);
            self.since.set(now);
        }
        let age = now.saturating_sub(self.since.get());
        let whole = clock::from_micros(AGE);
        if age < whole {
            timer::end_halt_after(whole - age);
        }
        age >= whole
    }
}

/// Returns whether this CPU's caches have aged, so that it should [drain] them and not halt. If they will, the
/// timer ends the halt then, unless it is in use. To be called with interrupts disabled, before a halt.
pub fn has_aged() -> bool {
    let Hooks { cache_use, .. } = hooks::get();
    Cpu::try_with_own(&AGEING, |ageing| ageing.look(cache_use())).unwrap_or(false)
}

/// Drains this CPU's caches. To be called with interrupts enabled: it takes long, in short steps.
pub fn drain() {
    let Hooks {
        cache_use,
        drain_caches,
        ..
    } = hooks::get();
    drain_caches();
    let used = cache_use();
    Cpu::try_with_own(&AGEING, |ageing| ageing.drained.set(used));
}
