//! Samples: what each CPU has done so far, for programs that watch.

use muster_arguments::Workload;
use muster_events::{Memory, Sample};
use muster_memory::{FRAME_SIZE, Owner};

use crate::arch::clock::Deadline;
use crate::boot::stack::Slot;
use crate::mm::{heap, shared};
use crate::report::{events, journal};
use crate::smp::doing::Doing;
use crate::smp::lock::{Level, Lock};
use crate::smp::online;

/// From one sample to the next, in milliseconds: not less, however long it takes to tell it.
const EVERY: u64 = 250;

/// Samples what all CPUs do: from the BSP's loop in a workload, or from its prompt beside one.
pub struct Sampler {
    workload: Workload,
    next: Lock<Deadline>,
}

impl Sampler {
    /// Begins with the first look.
    pub fn new(workload: Workload) -> Self {
        Self {
            workload,
            next: Lock::new(Level::Workload, Deadline::after_millis(0)),
        }
    }

    /// In which workload.
    pub fn workload(&self) -> Workload {
        self.workload
    }

    /// Looks whether it is time for a sample. Costs next to nothing if it is not, or nobody wants any.
    pub fn look(&self) {
        if events::are_wanted() && self.next.lock().passed() {
            emit(Some(self.workload));
            *self.next.lock() = Deadline::after_millis(EVERY);
        }
    }
}

/// Tells what all CPUs have done so far, in a workload or in none, and whose memory is.
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
            phase: cpu.report.phase(),
            doing: journal::clip(format_args!("{}", Doing(cpu)))
                .as_str()
                .into(),
            workload: name.into(),
            operations: cpu.activity.operations(),
            interrupts: cpu.interrupts.read().sum(),
            calls_sent: cpu.calls.sent(),
            calls_served: cpu.calls.served(),
            cached_bytes: cpu.cache.cached_bytes() as u64,
            at_hand_bytes: at_hand as u64 * FRAME_SIZE,
            // SAFETY: a CPU at work has its stack, in the shared tables.
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
