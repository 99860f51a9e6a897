//! A broadcast: one CPU has all CPUs run a job.

use alloc::boxed::Box;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use crossbeam_utils::CachePadded;
use muster_sync::{AtomicU64, UnsafeCell};

/// Jobs for all CPUs, one after the other: each CPU runs each job once. A CPU is known here by the
/// index of its *slot*, from 0.
///
/// No function here waits. The submitter polls until all slots are done, and a CPU polls for a job; it may
/// halt in between if an interrupt follows the submission. Nothing is allocated after [`Self::new`].
///
/// ```
/// use muster_cross_cpu::Broadcast;
///
/// let broadcast = Broadcast::new(2);
/// assert!(broadcast.submit("count the frames"));
/// assert!(!broadcast.submit("and more"), "the first job is not done yet");
/// for slot in 0..2 {
///     assert!(broadcast.run(slot, |job| assert_eq!(job, "count the frames")));
///     assert!(!broadcast.run(slot, |_| unreachable!()), "once");
/// }
/// assert!(broadcast.is_done());
/// ```
pub struct Broadcast<W> {
    /// The number of jobs submitted so far. A slot whose own count is behind has one to run.
    submitted: CachePadded<AtomicU64>,
    job: UnsafeCell<MaybeUninit<W>>,
    slots: Box<[CachePadded<Slot>]>,
}

/// The progress of the CPU at one slot.
struct Slot {
    /// The number of jobs that were taken here.
    taken: AtomicU64,
    /// The number of those that are done.
    done: AtomicU64,
}

impl Slot {
    /// Takes the job of this number. `false`: another CPU at the same slot has taken it.
    fn take(&self, number: u64) -> bool {
        let before = number - 1;
        // Relaxed: the job itself is read after the count of those submitted, with Acquire.
        self.taken
            .compare_exchange(before, number, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

/// A job that was taken at a slot. When this is dropped, also as `run` unwinds, the job is done there.
struct Taken<'a> {
    slot: &'a Slot,
    number: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // Release, with the Acquire of the CPU that sees that all are done: the job's effects are
        // visible then.
        self.slot.done.store(self.number, Ordering::Release);
    }
}

// SAFETY: `job` is written by whoever raised `submitted` last or is about to, while every slot has done
// all jobs submitted (Acquire, after the Release of each slot's last `done`), and copied at a slot
// only after that saw a new count (Acquire, after the Release of the count) and before it is done
// with it. Two submitters exclude each other by `submitted` itself, two CPUs at one slot by `taken`.
unsafe impl<W: Copy + Send> Sync for Broadcast<W> {}
// SAFETY: as above.
unsafe impl<W: Copy + Send> Send for Broadcast<W> {}

/// In `submitted`: a submitter is writing a job.
const WRITING: u64 = 1 << 63;

impl<W: Copy> Broadcast<W> {
    /// Creates a broadcast for `cpus` CPUs, with nothing to run yet.
    pub fn new(cpus: usize) -> Self {
        let slot = |_| {
            CachePadded::new(Slot {
                taken: AtomicU64::new(0),
                done: AtomicU64::new(0),
            })
        };
        Self {
            submitted: CachePadded::new(AtomicU64::new(0)),
            job: UnsafeCell::new(MaybeUninit::uninit()),
            slots: (0..cpus).map(slot).collect(),
        }
    }

    /// Submits a job to all slots. `false`: not all are done with the last one, or another CPU is
    /// submitting one; nothing has changed then.
    #[must_use = "the job is refused while the last one is not done"]
    pub fn submit(&self, job: W) -> bool {
        // Acquire, with the Release of the last submitter, whose writing of its job comes first.
        let number = self.submitted.load(Ordering::Acquire);
        if number & WRITING != 0 || !self.have_all_done(number) {
            return false;
        }
        // While the flag is set no CPU takes a job, and none submits one. Acquire as above; Relaxed
        // where it fails, as nothing is read then.
        let began = self.submitted.compare_exchange(
            number,
            number | WRITING,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        if began.is_err() {
            return false;
        }
        // SAFETY: all are done with the last job, as was seen above, and this call alone submits one.
        self.job.with_mut(|place| unsafe { (*place).write(job) });
        // Release, with the Acquire of `waiting`: a CPU that sees the count reads this job.
        self.submitted.store(number + 1, Ordering::Release);
        true
    }

    /// Returns whether there is a job that no CPU has taken at this slot.
    pub fn has_job(&self, slot: usize) -> bool {
        self.waiting(slot).is_some()
    }

    /// Runs the job that waits at this slot, if there is one, and returns whether there was.
    ///
    /// # Panics
    ///
    /// If `run` does. The job counts as done at this slot then, as no CPU will ever run the rest of it
    /// there.
    pub fn run(&self, slot: usize, run: impl FnOnce(W)) -> bool {
        let (slot, number) = loop {
            let Some((slot, number)) = self.waiting(slot) else {
                return false;
            };
            // If a handler, or another CPU, has taken the job, the next one may wait by now. This ends with the jobs that others
            // take here.
            if slot.take(number) {
                break (slot, number);
            }
        };
        // SAFETY: the count was read with Acquire and is ahead of this slot's, so the job was
        // written before, and is not written again until this slot has done it.
        let job = self.job.with(|job| unsafe { (*job).assume_init_read() });
        let _taken = Taken { slot, number };
        run(job);
        true
    }

    /// Returns whether every slot has done the last job. The job's effects are visible then.
    pub fn is_done(&self) -> bool {
        self.first_unfinished().is_none()
    }

    /// Returns the first slot that has not done the last job.
    pub fn first_unfinished(&self) -> Option<usize> {
        // Relaxed: the submitter, who asks, has written the count itself. Another CPU may get the
        // answer for an earlier job.
        let number = self.submitted.load(Ordering::Relaxed) & !WRITING;
        self.slots
            .iter()
            // Acquire, with the Release by which the job was done: its effects are visible.
            .position(|slot| slot.done.load(Ordering::Acquire) < number)
    }

    fn have_all_done(&self, number: u64) -> bool {
        self.slots
            .iter()
            // Acquire, with the Release by which the job was done: it has been read, and may be written over.
            .all(|slot| slot.done.load(Ordering::Acquire) == number)
    }

    /// Returns the job that waits at a slot, by its number.
    fn waiting(&self, slot: usize) -> Option<(&Slot, u64)> {
        let slot = &**self.slots.get(slot)?;
        // Acquire: this comes first. The other way round, a handler in between could take the job of the number read, and
        // the next one that was submitted would not be seen. If the count is out of date, `take` refuses.
        let taken = slot.taken.load(Ordering::Acquire);
        // Acquire, with the Release of `submit`: the job is read after this.
        let number = self.submitted.load(Ordering::Acquire);
        // `taken` may be ahead if another CPU at this slot has taken a job that this one does not see yet.
        let is_waiting = number & WRITING == 0 && taken < number;
        is_waiting.then_some((slot, number))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// What a CPU sees where another one at the same slot has run a job that this one does not see yet.
    #[test]
    fn a_slot_that_is_ahead_has_no_job() {
        let broadcast = Broadcast::<()>::new(1);
        let slot = &broadcast.slots[0];
        slot.taken.store(1, Ordering::Relaxed);
        slot.done.store(1, Ordering::Relaxed);
        assert!(!broadcast.has_job(0) && broadcast.is_done());
        assert!(!broadcast.run(0, |()| ()));
    }
}
