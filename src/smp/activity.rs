//! What each CPU is doing, by its own word.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use muster_arguments::Workload;

/// In the place of a workload: none.
const NONE: u8 = u8::MAX;

/// In the place of a workload: the monitor's prompt.
const PROMPT: u8 = NONE - 1;

/// What one CPU is doing. It alone says so, all may read; what is read is a little of each moment.
pub struct Activity {
    workload: AtomicU8,
    /// Calls that it is carrying out, one within another.
    answering: AtomicU8,
    /// Operations in the workload at hand, or in the last one.
    operations: AtomicU64,
}

impl Activity {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            workload: AtomicU8::new(NONE),
            answering: AtomicU8::new(0),
            operations: AtomicU64::new(0),
        }
    }

    /// Says that a workload begins.
    pub fn begin(&self, workload: Workload) {
        self.operations.store(0, Ordering::Relaxed);
        self.workload.store(workload as u8, Ordering::Relaxed);
    }

    /// Says how many operations there were in it so far.
    pub fn did(&self, operations: u64) {
        self.operations.store(operations, Ordering::Relaxed);
    }

    /// Says that it is done with the workload, or at the prompt.
    pub fn end(&self) {
        self.workload.store(NONE, Ordering::Relaxed);
    }

    /// Says that it takes lines at the monitor's prompt.
    pub fn attend(&self) {
        self.workload.store(PROMPT, Ordering::Relaxed);
    }

    /// Carries a call out, with interrupts off.
    pub fn answer(&self, work: impl FnOnce()) {
        let before = self.answering.load(Ordering::Relaxed);
        self.answering.store(before + 1, Ordering::Relaxed);
        work();
        self.answering.store(before, Ordering::Relaxed);
    }

    /// Operations in the workload at hand, or in the last one.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Whether it carries calls out.
    pub fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 0
    }

    /// Whether it takes lines at the monitor's prompt.
    pub fn is_at_prompt(&self) -> bool {
        self.workload.load(Ordering::Relaxed) == PROMPT
    }

    /// The workload that it is in, if it is in one.
    pub fn workload(&self) -> Option<Workload> {
        let number = self.workload.load(Ordering::Relaxed);
        Workload::ALL.get(usize::from(number)).copied()
    }
}
