//! Relief: when memory runs out, the other CPUs give back what they cache.

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::interrupts;

use crate::clock::Deadline;
use crate::{cpu, crew, heap, lapic, shared};

/// How long a CPU that needs memory waits for the others, in milliseconds. A CPU answers within
/// microseconds, unless it is off its host core; memory is out then, for all this CPU knows.
const PATIENCE: u64 = 500;

/// After how long it asks again, in milliseconds: a CPU that was just then using what it should
/// give back has not answered.
const ASK_AGAIN: u64 = 10;

/// How many times a CPU has asked all others.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// How many of the requests a CPU has served, of which it need not have seen each.
pub struct Served(AtomicU64);

impl Served {
    /// None yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn has(&self, request: u64) -> bool {
        self.0.load(Ordering::Acquire) >= request
    }
}

/// Makes the other CPUs give back what they cache, and returns when they have, or when it has
/// taken too long.
///
/// Every CPU that waits here serves the others meanwhile, whether it takes interrupts or not: two
/// that wait for each other both go on.
pub fn ask_others() {
    let Some(own) = cpu::try_with(|here| here.index()) else {
        return;
    };
    // All CPUs meet the end of memory together, and most have nothing left then.
    let has_some = |shared: &cpu::Shared| shared.cache.cached_bytes() > 0;
    if !shared::get().has_cached_frames()
        && !crew::members().any(|(index, shared)| index != own && has_some(shared))
    {
        return;
    }
    let request = ASKED.fetch_add(1, Ordering::Release) + 1;
    let open = || {
        crew::members().filter(move |&(index, shared)| index != own && !shared.relief.has(request))
    };
    let deadline = Deadline::after_millis(PATIENCE);
    let mut ask_again = Deadline::after_micros(0);
    while open().next().is_some() && !deadline.passed() {
        serve();
        if ask_again.passed() {
            ask_again = Deadline::after_millis(ASK_AGAIN);
            for (_, shared) in open() {
                lapic::wake(shared.lapic_id);
            }
        }
        core::hint::spin_loop();
    }
}

/// Does what others have asked this CPU for.
pub fn serve() {
    cpu::try_with(|here| {
        let served = &here.shared().relief.0;
        interrupts::without_interrupts(|| {
            // Before anything is given back, so that what is asked for meanwhile counts anew.
            let asked = ASKED.load(Ordering::Acquire);
            if served.load(Ordering::Relaxed) < asked && heap::drain_here() {
                served.store(asked, Ordering::Release);
            }
        });
    });
}
