//! Each CPU's current activity, as it reports it itself.

#[cfg(feature = "selftest")]
use core::sync::atomic::AtomicU64;
use core::sync::atomic::{AtomicU8, Ordering};

use crossbeam_utils::CachePadded;
use muster_arguments::Workload;
use muster_percpu::cpu_local;

/// Instead of a workload: none.
const NONE: u8 = u8::MAX;

/// Instead of a workload: the monitor's prompt.
const PROMPT: u8 = NONE - 1;

cpu_local! {
    /// The CPU's current activity, on a cache line that no other CPU writes.
    pub shared static ACTIVITY: CachePadded<Activity> = CachePadded::new(Activity::new());
}

/// One CPU's current activity. It alone writes, all may read; the parts of a reading may be of
/// slightly different moments: they are Relaxed, as nothing else is read by them.
pub struct Activity {
    workload: AtomicU8,
    /// Calls that it is serving, one within another.
    answering: AtomicU8,
    /// Operations in the current workload, or in the last one.
    #[cfg(feature = "selftest")]
    operations: AtomicU64,
}

impl Activity {
    /// Creates one without any activity.
    pub const fn new() -> Self {
        Self {
            workload: AtomicU8::new(NONE),
            answering: AtomicU8::new(0),
            #[cfg(feature = "selftest")]
            operations: AtomicU64::new(0),
        }
    }

    /// Records that a workload begins.
    #[cfg(feature = "selftest")]
    pub fn begin(&self, workload: Workload) {
        self.operations.store(0, Ordering::Relaxed);
        self.workload.store(workload as u8, Ordering::Relaxed);
    }

    /// Records the number of operations in it so far.
    #[cfg(feature = "selftest")]
    pub fn did(&self, operations: u64) {
        self.operations.store(operations, Ordering::Relaxed);
    }

    /// Records that the workload, or the prompt, has ended.
    #[cfg(feature = "selftest")]
    pub fn end(&self) {
        self.workload.store(NONE, Ordering::Relaxed);
    }

    /// Records that it takes lines at the monitor's prompt.
    #[cfg(feature = "selftest")]
    pub fn attend(&self) {
        self.workload.store(PROMPT, Ordering::Relaxed);
    }

    /// Serves a call, with interrupts disabled.
    pub fn answer(&self, work: impl FnOnce()) {
        let before = self.answering.load(Ordering::Relaxed);
        self.answering.store(before + 1, Ordering::Relaxed);
        work();
        self.answering.store(before, Ordering::Relaxed);
    }

    /// Returns the operations in the current workload, or in the last one.
    #[cfg(feature = "selftest")]
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Returns whether it serves a call.
    pub fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 0
    }

    /// Returns whether it takes lines at the monitor's prompt.
    pub fn is_at_prompt(&self) -> bool {
        self.workload.load(Ordering::Relaxed) == PROMPT
    }

    /// Returns the workload that it is in, if it is in one.
    pub fn workload(&self) -> Option<Workload> {
        let number = self.workload.load(Ordering::Relaxed);
        Workload::ALL.get(usize::from(number)).copied()
    }
}
