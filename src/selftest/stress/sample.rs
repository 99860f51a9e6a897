//! Samples of each CPU's progress, for programs that watch.

use muster::internals::arch::clock::Deadline;
use muster::internals::boot::owner::Owner;
use muster::internals::boot::stack::Slot;
use muster::internals::bringup::interrupts::INTERRUPTS;
use muster::internals::mm::{heap, shared};
use muster::internals::report::{events, journal};
use muster::internals::smp::activity::ACTIVITY;
use muster::internals::smp::counters::CALL_COUNTERS;
use muster::internals::smp::doing::Doing;
use muster::internals::smp::lock::{Level, Lock};
use muster::internals::smp::online;
use muster::internals::smp::progress::PROGRESS;
use muster_arguments::Workload;
use muster_events::{Memory, Sample};
use muster_frames::FRAME_SIZE;

/// The time from one sample to the next, in milliseconds: not less, however long it takes to emit
/// one.
const EVERY: u64 = 250;

/// Takes samples of all CPUs: from the BSP's loop in a workload, or from its prompt beside one.
pub struct Sampler {
    workload: Workload,
    next: Lock<Deadline>,
}

impl Sampler {
    /// Creates one whose first sample is due at once.
    pub fn new(workload: Workload) -> Self {
        Self {
            workload,
            next: Lock::new(Level::Workload, Deadline::after_millis(0)),
        }
    }

    /// Returns the workload.
    pub fn workload(&self) -> Workload {
        self.workload
    }

    /// Takes a sample if one is due. Costs next to nothing if none is, or if no events are wanted.
    pub fn look(&self) {
        if events::are_wanted() && self.next.lock().passed() {
            emit(Some(self.workload));
            *self.next.lock() = Deadline::after_millis(EVERY);
        }
    }
}

/// Emits a sample of all CPUs, in a workload or in none, and of the memory's owners.
pub fn emit(workload: Option<Workload>) {
    if !events::are_wanted() {
        return;
    }
    let name = workload.map_or("", Workload::name);
    let shared = shared::get();
    for (index, cpu) in online::cpus() {
        let stack = Slot::of(index).main();
        let at_hand = shared.share_of(index).map_or(0, |share| share.cached());
        events::emit(Sample {
            cpu: index,
            phase: cpu.get(&PROGRESS).phase(),
            doing: journal::clip(format_args!("{}", Doing(cpu)))
                .as_str()
                .into(),
            workload: name.into(),
            operations: cpu.get(&ACTIVITY).operations(),
            interrupts: cpu.get(&INTERRUPTS).read().sum(),
            calls_sent: cpu.get(&CALL_COUNTERS).sent(),
            calls_served: cpu.get(&CALL_COUNTERS).served(),
            cached_bytes: cpu.head().cached_bytes() as u64,
            frame_cache_bytes: at_hand as u64 * FRAME_SIZE,
            // SAFETY: an online CPU has its stack, in the shared tables.
            stack_bytes: unsafe { stack.peak_used() },
            stack_limit_bytes: stack.length(),
        });
    }
    let reading = heap::HeapReading::take();
    let totals = shared.totals();
    events::emit(Memory {
        workload: name.into(),
        memory_bytes: shared.memory_bytes(),
        free_bytes: totals[Owner::Free],
        heap_bytes: totals[Owner::Heap],
        heap_live_bytes: reading.live_in_frames(),
        heap_cached_bytes: reading.cached_bytes,
        mapped_bytes: totals[Owner::Mappings],
        page_table_bytes: totals[Owner::PageTables],
    });
}
